package audit

import (
	"context"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/control"
)

// Counter folds the records of a topic and gives out each complete unit, counted.
// It is used by one goroutine.
type Counter struct {
	fold *millrace.Fold
	unit *Unit // the one that is open
}

// NewCounter begins where a fold stands, which it takes over.
func NewCounter(fold *millrace.Fold) *Counter { return &Counter{fold: fold} }

// Fold is the one that the counter goes on with.
func (c *Counter) Fold() *millrace.Fold { return c.fold }

// Step takes the next record and gives the units that end in it to take.
func (c *Counter) Step(ctx context.Context, r *millrace.Record, take func(context.Context, *Unit) error) error {
	next := c.fold.Next()
	outcome, err := c.fold.Step(r)
	if err != nil {
		return err
	}
	switch outcome {
	case millrace.Reign:
		c.unit = nil // what was open is void
	case millrace.Accepted:
		return c.count(ctx, next, r.Payload, take)
	}
	return nil
}

func (c *Counter) count(ctx context.Context, index millrace.Index, payload []byte, take func(context.Context, *Unit) error) error {
	var h millrace.Head
	for ; len(payload) > 0; index++ {
		rest, err := millrace.NextHead(payload, &h)
		if err != nil {
			return err
		}
		payload = rest
		if c.unit == nil {
			c.unit = &Unit{First: index, Counts: make(control.Counts), Tables: make(map[millrace.TableID]Published)}
		}
		if err := c.unit.add(&h); err != nil {
			return err
		}
		if !h.Last {
			continue
		}
		u := c.unit
		c.unit = nil
		u.Last, u.Token = index, h.End.Token
		if err := take(ctx, u); err != nil {
			return err
		}
	}
	return nil
}

// add counts one entry.
func (u *Unit) add(h *millrace.Head) error {
	addKind(u.Counts, h.Table, int(h.Kind), 1)
	var p Published
	switch h.Kind {
	case millrace.KindPut:
		var e millrace.Entry
		if err := millrace.DecodeEntry(h.Body, &e); err != nil {
			return err
		}
		if e.Load != 0 {
			p.Loaded = 1
		} else {
			p.Puts = 1
		}
	case millrace.KindDelete:
		p.Deletes = 1
	case millrace.KindTruncate:
		p.Truncates = 1
	default:
		return nil
	}
	sum := u.Tables[h.Table]
	add(&sum, p)
	u.Tables[h.Table] = sum
	return nil
}

func addKind(counts control.Counts, id millrace.TableID, kind int, n uint64) {
	counts.Add(id, millrace.Kind(kind), n) //nolint:gosec // it is one of a few kinds
}
