package resp

import (
	"context"
	"time"
)

// loopPatience is how long a loop waits for a snapshot: longer than a store takes to be
// opened anew, and short enough for those who read another stream.
const loopPatience = 20 * time.Millisecond

// patience is the context with which a loop asks for a snapshot. It ends as the server's
// does, and loopPatience after it was first asked when: which is where there is something to
// wait for, so that a loop without costs no timer. Its loop's goroutine alone uses it.
type patience struct {
	context.Context
	waits  context.Context //nolint:containedctx // of one wait
	cancel context.CancelFunc
}

// Done implements context.Context.
func (p *patience) Done() <-chan struct{} {
	if p.waits == nil {
		p.waits, p.cancel = context.WithTimeout(p.Context, loopPatience)
	}
	return p.waits.Done()
}

// Err implements context.Context.
func (p *patience) Err() error {
	if p.waits == nil {
		return p.Context.Err()
	}
	return p.waits.Err()
}

// renew prepares for the next snapshot, and reports whether the wait for this one was given
// up.
func (p *patience) renew() (over bool) {
	if p.waits == nil {
		return false
	}
	over = p.waits.Err() != nil
	p.cancel()
	p.waits, p.cancel = nil, nil
	return over
}
