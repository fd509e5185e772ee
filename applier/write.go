package applier

import (
	"fmt"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge"
)

// commitTime bounds how long complete units wait while more and more arrives.
const commitTime = 250 * time.Millisecond

// sweepTime is how often rows of gone generations are removed while there is
// no idle time for it.
const sweepTime = 200 * time.Millisecond

// writer takes work off the queue and brings it into the store. It runs on one
// goroutine, which owns the store's write transaction.
type writer struct {
	config  *Config
	status  *status
	stall   time.Duration
	careful bool
	// full tells that the attempt before found no room: batches are committed one
	// by one then, and what is gone is removed in between.
	full bool

	q *queue
	w *edge.Writer
	// at is the checkpoint of the newest complete unit in the transaction, nil
	// if there is none. partial tells that a unit has begun and not ended; then
	// nothing complete is in the transaction.
	at      *millrace.Checkpoint
	last    *millrace.Record // which ends at at
	partial bool
	// size and began are of the open transaction.
	size  int64
	began time.Time
	// held is how many bytes of batches the store still needs.
	held    int64
	swept   time.Time
	planted planted
}

// run works until the queue is closed, and then commits what is complete.
func (w *writer) run(q *queue) (err error) {
	w.q = q
	if w.w, err = w.config.Store.NewWriter(); err != nil {
		return err
	}
	defer w.w.Close()
	if w.full {
		if err := w.makeRoom(); err != nil {
			return err
		}
	}
	for {
		next, more, err := w.next()
		if err != nil {
			return err
		}
		if !more {
			return w.commit()
		}
		if next == nil {
			continue
		}
		if err := w.step(next); err != nil {
			return err
		}
	}
}

// next returns what comes next. While complete units are in the transaction it
// does not wait: with nothing at hand they are committed, and it returns no
// work. more is false once the queue is closed and empty.
func (w *writer) next() (next *work, more bool, err error) {
	if w.at == nil && !w.partial && !w.w.HasChores() {
		next, more = <-w.q.ch
		next, more = w.q.taken(next, more)
		return next, more, nil
	}
	select {
	case next, more = <-w.q.ch:
		next, more = w.q.taken(next, more)
		return next, more, nil
	default:
	}
	switch {
	case w.at != nil:
		return nil, true, w.commit()
	case w.partial:
		return w.waitForRest()
	}
	return nil, true, w.sweep()
}

// waitForRest waits for the rest of a unit, but not for ever: its publisher may
// be gone, and the open transaction holds memory and pages.
func (w *writer) waitForRest() (*work, bool, error) {
	t := time.NewTimer(w.stall)
	defer t.Stop()
	select {
	case next, more := <-w.q.ch:
		next, more = w.q.taken(next, more)
		return next, more, nil
	case <-t.C:
		return nil, false, fmt.Errorf("%w within %v after index %v", errStalled, w.stall, w.config.Store.Index())
	}
}

func (w *writer) step(next *work) error {
	if next.batch == nil {
		if next.reign && w.partial {
			w.give()
		}
		w.log(next)
		return nil
	}
	if next.refill {
		w.log(next)
		if next.at != nil {
			w.config.Log.Commit(next.at)
		}
		return nil
	}
	whole := next.at != nil
	if !whole && !w.partial {
		// Nothing that is complete may be lost with the part.
		if err := w.commit(); err != nil {
			return err
		}
	}
	if !w.w.Open() {
		if err := w.w.Begin(); err != nil {
			return err
		}
		w.began, w.size = time.Now(), 0
	}
	if err := w.apply(next); err != nil {
		return err
	}
	w.log(next)
	w.at, w.last, w.partial = next.at, next.batch, !whole
	if w.at == nil {
		return nil
	}
	if w.full {
		// Little by little, so that what a commit frees is there for the next.
		if err := w.commit(); err != nil {
			return err
		}
		return w.makeRoom()
	}
	if w.careful || w.w.Verifying() || w.size >= w.config.CommitBytes || time.Since(w.began) >= commitTime {
		if err := w.commit(); err != nil {
			return err
		}
		if time.Since(w.swept) >= sweepTime {
			return w.sweep()
		}
	}
	return nil
}

// apply brings the entries of a batch into the transaction.
func (w *writer) apply(next *work) error {
	w.held += next.weight
	w.size += next.weight
	r := next.batch
	entries, err := r.Entries(next.unit)
	if err != nil {
		return fmt.Errorf("apply batch %v to %v: %w", r.First, r.Last(), err)
	}
	var h millrace.Head
	var e millrace.Entry
	for {
		i, more, err := entries.Next(&h)
		if err != nil {
			return fmt.Errorf("apply batch %v to %v: %w", r.First, r.Last(), err)
		}
		if !more {
			break
		}
		if err := w.planted.applying(w, next, i); err != nil {
			return err
		}
		if err = millrace.DecodeEntry(h.Body, &e); err == nil {
			err = w.w.Apply(&e, next.mode)
		}
		if err != nil {
			return fmt.Errorf("apply index %v: %w", i, err)
		}
	}
	if w.held < w.config.FlushBytes {
		return nil
	}
	if err := w.w.Flush(); err != nil {
		return fmt.Errorf("apply up to index %v: %w", r.Last(), err)
	}
	w.held = 0
	return nil
}

// log hands a record to the log, if there is one.
func (w *writer) log(next *work) {
	if next.record != nil {
		w.config.Log.Append(next.offset, next.value, next.record, next.at != nil)
	}
}

// commit commits the complete units in the transaction, if any.
func (w *writer) commit() error {
	if w.at == nil {
		return nil
	}
	if err := w.planted.committing(w); err != nil {
		return err
	}
	w.w.Header(w.last.SignedHeader())
	if err := w.w.Commit(w.at); err != nil {
		return fmt.Errorf("apply up to index %v: %w", w.at.Index, err)
	}
	if w.config.Log != nil {
		w.config.Log.Commit(w.at)
	}
	w.status.applied(w.at)
	w.at, w.last, w.held = nil, nil, 0
	return nil
}

// give gives the part of a unit up.
func (w *writer) give() {
	w.w.Abort()
	w.partial, w.held = false, 0
}

// roomTime bounds how long rows of gone generations are removed before a store
// that was full is written again.
const roomTime = 2 * time.Second

// makeRoom removes what a full store does not need: its pages may be all that the
// changes lack.
func (w *writer) makeRoom() error {
	for began := time.Now(); time.Since(began) < roomTime; {
		more, err := w.w.Sweep()
		if err != nil {
			return fmt.Errorf("make room: %w", err)
		}
		if !more {
			return nil
		}
	}
	return nil
}

func (w *writer) sweep() error {
	w.swept = time.Now()
	_, err := w.w.Chore()
	return err
}
