package migrations

import (
	"fmt"
	"slices"
)

// Step is how far a migration has come: the last step that is done.
type Step string

// The steps, in their order.
const (
	// StepNone: neither database knows the migration.
	StepNone Step = ""
	// StepPrepared: state, publication and tables are there.
	StepPrepared Step = "prepared"
	// StepCopied: every chunk has been copied.
	StepCopied Step = "copied"
	// StepFollowing: the target has converged, and follows.
	StepFollowing Step = "following"
	// StepArmed: the way is made, and not in use while writers are at its other end,
	// or have left it.
	StepArmed Step = "armed"
)

func stepOrder() []Step { return []Step{StepNone, StepPrepared, StepCopied, StepFollowing} }

// Valid reports whether this version knows the step.
func (s Step) Valid() bool { return s == StepArmed || slices.Contains(stepOrder(), s) }

// String is for people.
func (s Step) String() string {
	if s == StepNone {
		return "not begun"
	}
	return string(s)
}

// command is what leads to each step.
func (s Step) command() string {
	return map[Step]string{StepPrepared: "prepare", StepCopied: "copy", StepFollowing: "follow"}[s]
}

// Next decides whether work is needed to get from s to the step want: false means
// that it is done already. Errors: ErrStep, where another step comes first or one of
// the two is not known.
func (s Step) Next(want Step) (bool, error) {
	order := stepOrder()
	at, to := slices.Index(order, s), slices.Index(order, want)
	switch {
	case s == StepArmed:
		return false, fmt.Errorf("%w: writers have gone over, so nothing goes this way; mend: millrace migrate status -f FILE says who takes writes", ErrStep)
	case at < 0:
		return false, fmt.Errorf("%w: the migration is at step %q, which this version does not know; mend: use the version that took it there", ErrStep, string(s))
	case to <= 0:
		return false, fmt.Errorf("%w: no step is called %q", ErrStep, string(want))
	case at >= to:
		return false, nil
	case at < to-1:
		first := order[at+1]
		return false, fmt.Errorf("%w: it is %v, and %s comes first; mend: millrace migrate %s -f FILE", ErrStep, s, first.command(), first.command())
	}
	return true, nil
}
