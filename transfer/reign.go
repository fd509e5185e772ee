package transfer

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/control"
	"github.com/millrace-db/millrace/internal/failpoint"
	"github.com/millrace-db/millrace/internal/topic"
)

var (
	errHoldLost = errors.New("the hold of the source was lost")
	errDrained  = errors.New("all that was published has been read back")
	errUnread   = errors.New("what was published was not read back in time")
)

const closeLimit = 5 * time.Second // for the database to take a last statement

// reign is one publisher's time over the stream, from taking the hold to giving
// it back.
//
//	source ─► intake ─► queue ─► publish ─► topic ─► read ─► confirm to source
//	                                │                  │
//	                                └─► accepted ◄─────┴─► ledger
type reign struct {
	t  *Transfer
	me millrace.PublisherID
	// term is the one that this reign began, 0 before.
	term    millrace.Term
	log     Log
	ledger  Ledger
	reader  *topic.Reader
	history *history // until the goroutines run; then accepted has it
	source  Source

	accepted *accepted
	queue    *queue
	sequence *sequencer
	planted  planted
	// marked is the newest state record that is kept as a mark, and markNext when the
	// next one may be tried; base is what countedBefore has found.
	marked   millrace.Offset
	markNext time.Time
	base     atomic.Pointer[uint64]

	record []byte // buffer of the record in flight
	// sinceState are the bytes published since the newest state record, which
	// was written at stateAt.
	sinceState int64
	stateAt    time.Time
}

func (r *reign) now() time.Time { return time.Now().UTC() }

// wrote tells whether this reign wrote a record.
func (r *reign) wrote(record *millrace.Record) bool {
	return record.Term == r.term && record.Publisher == r.me
}

func (r *reign) progress() bool {
	if r.accepted == nil {
		return false
	}
	r.accepted.mu.Lock()
	defer r.accepted.mu.Unlock()
	return r.accepted.progress
}

// reign runs one reign. It returns nil only after ctx has ended.
func (t *Transfer) reign(ctx context.Context) (r *reign, err error) {
	r = &reign{t: t, marked: millrace.NoOffset}
	if _, err := rand.Read(r.me[:]); err != nil {
		return r, fmt.Errorf("make publisher ID: %w", err)
	}
	t.setPhase(PhaseWaiting)
	hold, err := t.config.AcquireHold(ctx, r.me)
	if err != nil {
		return r, stopIfPermanent(err)
	}
	defer func() {
		limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeLimit)
		defer cancel()
		if closeErr := hold.Close(limited); closeErr != nil {
			t.log.Debug("close", "what", "hold", "error", closeErr)
		}
	}()

	// work is the context of all that the reign does. It outlives ctx for the
	// time of a clean end, and ends at once when the hold is lost.
	work, giveUp := context.WithCancelCause(context.WithoutCancel(ctx))
	defer giveUp(nil)
	watching := make(chan struct{})
	defer func() { <-watching }()
	defer giveUp(nil)
	go func() {
		defer close(watching)
		select {
		case <-hold.Lost():
			giveUp(errHoldLost)
		case <-work.Done():
		}
	}()
	return r, r.run(ctx, work)
}

// stopIfPermanent marks errors of the control schema that no retry mends.
func stopIfPermanent(err error) error {
	for _, e := range []error{control.ErrNotInitialised, control.ErrNoStream, control.ErrPooler, control.ErrNewer} {
		if errors.Is(err, e) {
			return fmt.Errorf("%w: %w", millrace.ErrStop, err)
		}
	}
	return err
}

// run prepares the reign and then publishes.
func (r *reign) run(ctx, work context.Context) (err error) {
	t := r.t
	// Until publishing begins there is nothing to bring to a clean end.
	prepare, cancel := context.WithCancelCause(work)
	defer cancel(nil)
	defer context.AfterFunc(ctx, func() { cancel(context.Cause(ctx)) })()

	t.setPhase(PhaseRecovering)
	if r.log, err = t.config.OpenLog(prepare); err != nil {
		return err
	}
	defer t.closeLogged("topic", r.log)
	if r.ledger, err = t.config.OpenLedger(prepare); err != nil {
		return err
	}
	defer func() {
		limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeLimit)
		defer cancel()
		if closeErr := r.ledger.Close(limited); closeErr != nil {
			t.log.Debug("close", "what", "ledger", "error", closeErr)
		}
	}()
	if r.history, r.reader, err = t.recover(prepare, r.log, r.ledger); err != nil {
		return stopIfPermanent(err)
	}
	defer func() { r.reader.Close() }()
	if err := r.crown(prepare); err != nil {
		return err
	}
	if err := r.attest(prepare); err != nil {
		return err
	}
	// The reader was opened for the time of preparing.
	r.reader.Close()
	if r.reader, err = r.log.Read(work, r.reader.Position()); err != nil {
		return err
	}
	r.accepted = newAccepted(r.history, r.term, r.me)
	r.accepted.read = r.reader.Position()
	t.config.Accepted(r.history.fold.Index(), r.history.fold.Chain())
	r.stateAt = r.now()
	t.metrics.reigns.Inc()
	t.current.Store(r.accepted)
	t.setPhase(PhaseOpening)
	t.log.Info("reign begun", "term", r.term, "publisher", r.me, "index", r.history.fold.Index(), "position", r.history.fold.Position())

	if r.source, err = r.open(ctx, work); err != nil {
		return err
	}
	defer t.closeLogged("source", r.source)
	// A publisher before this one may have ended between publishing and
	// confirming.
	if p := r.history.fold.Position(); !p.IsZero() {
		r.source.Confirm(p)
	}
	t.setPhase(PhasePublishing)
	defer func() {
		if w := r.accepted.witness(&t.config.Stream); w != nil {
			t.seen = w
		}
	}()
	if err := r.publishUnits(ctx, work); err != nil {
		return r.whyEnded(ctx, err)
	}
	return nil
}

// open opens the source. The context it gets ends with the reign, or with ctx
// while it is still opening.
func (r *reign) open(ctx, work context.Context) (Source, error) {
	opening, cancel := context.WithCancelCause(work)
	undo := context.AfterFunc(ctx, func() { cancel(context.Cause(ctx)) })
	source, err := r.t.config.OpenSource(opening, r.checkpoint())
	undo()
	if err != nil {
		cancel(nil)
		return nil, fmt.Errorf("open source: %w", err)
	}
	context.AfterFunc(work, func() { cancel(nil) })
	return source, nil
}

// publishUnits runs the reign's goroutines until one fails or ctx ends and what
// was published has been read back.
func (r *reign) publishUnits(ctx, work context.Context) error {
	r.queue = newQueue()
	r.sequence = newSequencer(r.checkpoint())
	group, work := errgroup.WithContext(work)
	intake, stopIntake := context.WithCancelCause(work)
	defer context.AfterFunc(ctx, func() { stopIntake(context.Cause(ctx)) })()
	reading, stopReading := context.WithCancelCause(work)

	group.Go(func() error {
		defer r.queue.close()
		err := r.takeIn(intake)
		if ctx.Err() != nil {
			return nil // what was taken in and not published is captured again
		}
		return err
	})
	group.Go(func() error {
		if err := r.publish(work); err != nil {
			return err
		}
		// Only a clean end closes the queue without an error.
		if err := r.accepted.drained(work); err != nil {
			return err
		}
		stopReading(errDrained)
		return nil
	})
	group.Go(func() error {
		select {
		case <-ctx.Done():
		case <-reading.Done():
			return nil
		}
		select {
		case <-reading.Done():
			return nil
		case <-time.After(r.t.config.Grace):
			return errUnread // ends the append or the read that hangs
		}
	})
	group.Go(func() error {
		err := r.readBack(reading)
		if errors.Is(context.Cause(reading), errDrained) {
			return nil
		}
		return err
	})
	group.Go(func() error {
		r.keepLedger(reading)
		return nil
	})
	group.Go(func() error {
		r.keepTrimmed(reading)
		return nil
	})
	err := group.Wait()
	stopIntake(nil)
	stopReading(nil)
	return err
}

// takeIn brings units from the source into the queue.
func (r *reign) takeIn(ctx context.Context) error {
	put := func(p *piece) error { return r.queue.put(ctx, p) }
	for {
		unit, err := r.source.Next(ctx)
		if err != nil {
			return fmt.Errorf("capture: %w", err)
		}
		failpoint.Hit("captured")
		for _, u := range r.planted.units(unit) {
			err := r.sequence.add(u, put)
			if closeErr := u.Body.Close(); err == nil && closeErr != nil {
				err = fmt.Errorf("close unit: %w", closeErr)
			}
			if err != nil {
				return err
			}
			r.planted.sequenced(r, u)
		}
		failpoint.Hit("sequenced")
	}
}
