package capture

import (
	"errors"
	"fmt"

	"github.com/millrace-db/millrace/internal/finding"
)

// Problem is a finding with the error that it is where it stops something.
type Problem struct {
	Kind error // nil for a warning
	finding.Finding
}

// Refuse makes a problem that stops something with an error of a kind.
func Refuse(kind error, subject, text, mend string) Problem {
	return Problem{kind, finding.Finding{Level: finding.Problem, Subject: subject, Text: text, Mend: mend}}
}

// Warn makes a problem that stops nothing.
func Warn(subject, text, mend string) Problem {
	return Problem{nil, finding.Finding{Level: finding.Warning, Subject: subject, Text: text, Mend: mend}}
}

// FirstError returns the problems as one error, or nil if there are only
// warnings.
func FirstError(problems []Problem) error {
	var all []error
	for _, p := range problems {
		if p.Kind != nil {
			all = append(all, fmt.Errorf("%w: %s", p.Kind, p.Finding))
		}
	}
	return errors.Join(all...)
}

// Findings returns the problems as findings.
func Findings(problems []Problem) []finding.Finding {
	var all []finding.Finding
	for _, p := range problems {
		all = append(all, p.Finding)
	}
	return all
}
