package trigger

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/capture/chunk"
)

// lockedLong is after how many times its lockTimeout a window that waits for locks is
// told of.
const lockedLong = 25

// Source gives the units of a stream, from a Position on. It works only while Next
// or a unit's Body is called: there is no goroutine of its own and no queue. Next
// and Bodies are used by one goroutine; the other methods may be called beside it.
type Source struct {
	c     *Capture
	epoch millrace.Epoch
	ctx   context.Context //nolint:containedctx // it is the source's life, which Close ends
	end   context.CancelCauseFunc
	woken chan struct{} // buffered: something other than time ends a pause

	// turn is held by whoever uses what follows.
	turn sync.Mutex
	conn *pgx.Conn
	err  error // what the source ended with
	// tables are those of the stream, in ascending order of their IDs, with those
	// that join in the next window; leaving are those that leave in it.
	tables  []*captured
	leaving []millrace.TableID
	joining bool
	// position is that of the newest window that was given out, and before its
	// snapshot: what it saw is known. tick is the highest number used.
	position millrace.Position
	before   chunk.Snapshot
	tick     uint64
	version  millrace.SchemaVersion
	out      millrace.UnitWriter
	body     *body            // of the newest unit, if it streams
	after    []*millrace.Unit // that follow the newest window, at its position
	backoff  backoff
	given    time.Time // when a window was last given out
	// asked counts the calls of Soon, answered those that the newest window that was
	// given out began behind. hurried has windows be made without an interval.
	asked, answered atomic.Uint64
	hurried         atomic.Bool
	tending         tending
	polls           polls
	// apart are the tables that windows go on without; heldUp tells that the last
	// window was not to be had for a lock.
	apart  map[millrace.TableID]bool
	heldUp bool

	loads     *loads
	confirmed atomic.Pointer[millrace.Position]
	closing   sync.Once
}

// Next waits for the next unit. Whoever takes it reads its Body to the end and
// closes it before the next call; else the unit is void and the source has ended.
// After an error, and after Close, each call returns the error. A ctx that ends in
// a pause leaves the source as it is, and one that ends at another time ends it.
func (s *Source) Next(ctx context.Context) (*millrace.Unit, error) {
	return s.NextBy(ctx, context.Background())
}

// NextBy is Next, and returns nil where until ends before there is a unit. That ends a
// pause and never a window, so the source stays as it is.
func (s *Source) NextBy(ctx, until context.Context) (*millrace.Unit, error) {
	s.turn.Lock()
	defer s.turn.Unlock()
	if s.body != nil && !s.body.finished {
		s.fail(errUnread)
	}
	if s.err != nil {
		return nil, s.err
	}
	s.body = nil
	work, cancel := context.WithCancelCause(s.ctx)
	defer cancel(nil)
	stop := context.AfterFunc(ctx, func() { cancel(context.Cause(ctx)) })
	defer stop()
	interrupt := context.AfterFunc(work, s.polls.interrupt)
	defer interrupt()
	u, err := s.next(work, until)
	switch {
	case err == nil:
		s.c.metrics.units.Inc()
		return u, nil
	case errors.Is(err, errUntil):
		return nil, nil
	case ctx.Err() != nil && s.ctx.Err() == nil && !s.conn.IsClosed() && s.conn.PgConn().TxStatus() == 'I':
		return nil, context.Cause(ctx)
	}
	s.fail(err)
	return nil, s.err
}

// errUntil occurs where the caller waits no longer.
var errUntil = errors.New("nobody waits for a unit")

// Soon asks for a window that sees everything that has committed by now, at once and
// whether or not anything is new. It is made when Answered has come to the number that is
// returned. Both may be called by any goroutine.
func (s *Source) Soon() (asked uint64) {
	defer s.wake()
	return s.asked.Add(1)
}

// Answered is the number of the newest call of Soon that the newest window which was given
// out is behind.
func (s *Source) Answered() uint64 { return s.answered.Load() }

// soon reports whether a window is wanted at once.
func (s *Source) soon() bool { return s.asked.Load() > s.answered.Load() }

// Hurry has windows be made as soon as there is anything, whatever Config.Interval says.
func (s *Source) Hurry() {
	s.hurried.Store(true)
	s.wake()
}

// Newest is the tick of the newest window that has begun: every later one has a higher one.
func (s *Source) Newest() uint64 {
	s.turn.Lock()
	defer s.turn.Unlock()
	if s.body != nil && !s.body.finished {
		return s.tick + 1 // its tick is not written yet
	}
	return s.tick
}

// fail ends the source.
func (s *Source) fail(err error) {
	if s.err != nil {
		return
	}
	if cause := context.Cause(s.ctx); cause != nil {
		err = cause
	} else {
		err = fmt.Errorf("capture stream %s: %w", s.c.cfg.Stream, sourceError(err))
	}
	s.err = err
	s.end(err)
	s.c.source.CompareAndSwap(s, nil)
	for _, u := range s.after {
		_ = u.Body.Close() // nobody has seen it
	}
	s.after = nil
	capture.Close(s.conn)
}

func (s *Source) next(ctx, until context.Context) (*millrace.Unit, error) {
	var locked time.Time // since when, zero for not
	for waits := 0; ; {
		if len(s.after) > 0 {
			u := s.after[0]
			s.after = s.after[1:]
			return u, nil
		}
		if until.Err() != nil {
			return nil, errUntil
		}
		if err := s.tend(ctx); err != nil {
			return nil, err
		}
		if pause := s.early(); pause > 0 {
			if err := s.pause(ctx, until, pause); err != nil {
				return nil, err
			}
			continue
		}
		due := s.due()
		if now := time.Now(); due.After(now) {
			found, err := s.poll(ctx)
			if err != nil {
				return nil, err
			}
			if !found {
				if err := s.pause(ctx, until, min(s.backoff.next(), due.Sub(now))); err != nil {
					return nil, err
				}
				continue
			}
		}
		u, err := s.window(ctx)
		if errors.Is(err, errBusy) {
			s.c.metrics.busy.Inc()
			if waits++; waits == 1 {
				locked = time.Now()
			} else if !locked.IsZero() && time.Since(locked) > lockedLong*s.c.lockTimeout {
				locked = time.Time{} // is told once
				s.c.log.Warn("the stream stands still: somebody keeps a captured table or its log locked (see pg_locks)", "error", err)
			}
			if err := s.pause(ctx, until, min(time.Duration(waits)*s.c.lockTimeout/4, s.c.lockTimeout)); err != nil {
				return nil, err
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		waits = 0
		if u != nil {
			s.backoff.came()
			return u, nil
		}
		if err := s.pause(ctx, until, s.backoff.next()); err != nil {
			return nil, err
		}
	}
}

// due says when a window is made whether or not anything is new.
func (s *Source) due() time.Time {
	if s.soon() || s.joining || len(s.leaving) > 0 {
		return time.Time{}
	}
	due := s.given.Add(s.c.cfg.Heartbeat)
	if at, wanted := s.loads.due(); wanted && at.Before(due) {
		due = at
	}
	return due
}

// early says how long it is until a window may be made.
func (s *Source) early() time.Duration {
	if s.c.cfg.Interval == 0 || s.hurried.Load() || s.soon() {
		return 0
	}
	now := time.Now()
	if at, wanted := s.loads.due(); wanted && !at.After(now) {
		return 0
	}
	return s.given.Add(s.c.cfg.Interval).Sub(now)
}

// pause waits, or until something else is to be done.
func (s *Source) pause(ctx, until context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-until.Done(): // the next turn of the loop sees it
	case <-s.woken:
	case <-timer.C:
	}
	return nil
}

// wake ends a pause. It may be called by any goroutine.
func (s *Source) wake() {
	select {
	case s.woken <- struct{}{}:
	default: // it is awake, or will be
	}
}

// Confirm says that everything up to p is published: the source may forget what was
// before it. It never blocks.
func (s *Source) Confirm(p millrace.Position) {
	if p.Mode != millrace.ModeTrigger {
		return
	}
	for {
		old := s.confirmed.Load()
		if old != nil && p.Tick <= old.Tick {
			return
		}
		if s.confirmed.CompareAndSwap(old, &p) {
			return
		}
	}
}

// Close ends the source, and a window whose unit was not read to its end. What was
// not published comes again after the next Open.
func (s *Source) Close() error {
	s.closing.Do(func() {
		s.end(capture.ErrClosed)
		s.turn.Lock()
		defer s.turn.Unlock()
		s.fail(capture.ErrClosed)
	})
	return nil
}
