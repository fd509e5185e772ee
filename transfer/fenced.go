package transfer

import (
	"context"
	"errors"
	"fmt"

	"github.com/millrace-db/millrace"
)

// whyEnded tells a publisher that was replaced from one that failed by itself.
// A successor takes the hold and the slot away, so the first error of the one
// before is often a broken connection to the source; but it begins a term at
// once, which stands in the topic by then, unless it is only just about to: then
// this process waits for the hold as any second one does. It returns ErrFenced
// or the error that ended the reign.
func (r *reign) whyEnded(ctx context.Context, ended error) error {
	if ctx.Err() != nil || errors.Is(ended, ErrFenced) || millrace.NeedsOperator(ended) {
		return ended
	}
	// What reads the topic back may have met it, and been second to say so.
	r.accepted.mu.Lock()
	term, by := r.history.fold.Term()
	r.accepted.mu.Unlock()
	if term > r.term {
		return r.fencedBy(term, by)
	}
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeLimit)
	defer cancel()
	cannot := func(err error) error {
		r.t.log.Debug("look for a successor", "error", err)
		return ended
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
			return r.fencedBy(record.Term, record.Publisher)
		}
	}
}

func (r *reign) fencedBy(term millrace.Term, by millrace.PublisherID) error {
	return fmt.Errorf("%w: publisher %v began term %v, ours was %v: it took over because this process had shown no life for longer than the lease",
		ErrFenced, by, term, r.term)
}
