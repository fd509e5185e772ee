// Package finding holds what a check found, in the form in which check, init
// and the start of every stage print it.
package finding

import (
	"errors"
	"fmt"
	"strings"
)

// Level says how bad a Finding is.
type Level string

// The levels.
const (
	// Problem: the stage refuses to run.
	Problem Level = "problem"
	// Warning: it runs, and the operator should know.
	Warning Level = "warning"
)

// Finding is one thing that a check found.
type Finding struct {
	Level Level `json:"level"`
	// Subject names the thing: a table, a setting, a topic.
	Subject string `json:"subject"`
	// Text says what is wrong with it, with the value found.
	Text string `json:"text"`
	// Mend says what to do: a statement to run, a setting to change.
	Mend string `json:"mend"`
}

// String is the one line for people.
func (f Finding) String() string {
	return fmt.Sprintf("%s: %s; mend: %s", f.Subject, f.Text, f.Mend)
}

// Error returns the problems among findings as one error, or nil if there are
// only warnings.
func Error(findings []Finding) error {
	var lines []string
	for _, f := range findings {
		if f.Level == Problem {
			lines = append(lines, f.String())
		}
	}
	if len(lines) == 0 {
		return nil
	}
	return errors.New(strings.Join(lines, "\n"))
}
