package transfer

import (
	"context"
	"fmt"

	"github.com/millrace-db/millrace"
)

// afterHoldLost tells a publisher that was replaced from one whose connection to
// the source broke. A successor that took the hold away begins a term at once,
// so it stands in the topic by now, unless it is only just about to: then this
// process waits for the hold as any second one does. It returns ErrFenced or
// lost.
func (r *reign) afterHoldLost(ctx context.Context, lost error) error {
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeLimit)
	defer cancel()
	cannot := func(err error) error {
		r.t.log.Debug("look for a successor", "error", err)
		return lost
	}
	info, err := r.log.Info(limited)
	if err != nil {
		return cannot(err)
	}
	reader, err := r.log.Read(limited, r.reader.Position())
	if err != nil {
		return cannot(err)
	}
	defer reader.Close()
	for {
		m, err := reader.Until(limited, info.End)
		if err != nil {
			return cannot(err)
		}
		r.accepted.mu.Lock() // Status reads the history too
		record, outcome, err := r.history.step(&m, nil)
		r.accepted.mu.Unlock()
		if err != nil {
			return err
		}
		if outcome == millrace.Reign {
			return fmt.Errorf("%w: publisher %v began term %v, ours was %v: it took the hold of the source because this process had shown no life for longer than the lease",
				ErrFenced, record.Publisher, record.Term, r.term)
		}
	}
}
