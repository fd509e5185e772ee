package trigger

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
)

// unit makes the unit of a window. How many entries it has is known from the counts,
// before the rows are read. Few rows are read here and now, so that the transaction
// ends; many are read as the unit's body is.
func (w *window) unit(ctx context.Context) (*millrace.Unit, error) {
	s := w.s
	w.entries = s.out.Len()
	for i := range w.news {
		w.entries += w.news[i].keys
		if w.news[i].truncated > 0 {
			w.entries++
		}
		s.c.metrics.keys.Add(float64(w.news[i].keys))
	}
	at, wanted := s.loads.due()
	w.open = wanted && !at.After(time.Now()) || s.c.inspect != nil
	if err := w.choosePlans(ctx); err != nil {
		return nil, err
	}
	w.ctx, w.end = context.WithCancelCause(s.ctx)
	stop := context.AfterFunc(ctx, func() { w.end(context.Cause(ctx)) })
	defer stop()
	w.read()
	whole, err := w.fill(s.c.heldBody)
	if err != nil {
		return nil, err
	}
	u := &millrace.Unit{Position: w.position, Time: w.at, Entries: w.entries}
	if !whole {
		b := newBody(w)
		s.body, u.Body = b, b
	} else {
		payload, err := w.finish()
		if err != nil {
			return nil, err
		}
		u = millrace.NewUnit(w.position, w.at, w.entries, payload)
	}
	s.given = time.Now()
	s.answered.Store(w.asked)
	return u, nil
}

// read asks for the rows, and for the end of the window behind them unless others
// read in it too.
func (w *window) read() {
	var parts []string
	for i := range w.news {
		if n := &w.news[i]; n.keys > 0 {
			if n.scan {
				parts = append(parts, scanOn, n.t.rowsQuery(&w.unseen, w.s.c.planted), scanOff)
			} else {
				parts = append(parts, n.t.rowsQuery(&w.unseen, w.s.c.planted))
			}
		}
	}
	if !w.open {
		parts = append(parts, w.endQuery())
	}
	if len(parts) == 0 {
		parts = append(parts, "SELECT")
	}
	w.results = w.conn.PgConn().Exec(w.ctx, strings.Join(parts, "; "))
}

// nextRows goes to the next answer that has rows.
func (w *window) nextRows() *pgconn.ResultReader {
	for w.results.NextResult() {
		if r := w.results.ResultReader(); len(r.FieldDescriptions()) > 0 {
			return r
		}
	}
	return nil
}

// fill reads rows until so many bytes of entries are held, at least one. whole says
// that there are no more.
func (w *window) fill(until int) (whole bool, err error) {
	out := &w.s.out
	for ; w.next < len(w.news); w.next++ {
		n := &w.news[w.next]
		if !w.begun {
			w.begun = true
			if n.truncated > 0 {
				if err := out.Append(&millrace.Entry{Kind: millrace.KindTruncate, Table: n.t.id}); err != nil {
					return false, err
				}
			}
			if n.keys > 0 {
				if w.rows = w.nextRows(); w.rows == nil {
					return false, fmt.Errorf("read rows of %v: %w", n.t.name, errors.Join(w.results.Close(), io.ErrUnexpectedEOF))
				}
			}
		}
		if w.rows != nil {
			for w.rows.NextRow() {
				n.read++
				if err := n.t.take(w.rows.Values(), out); err != nil {
					return false, n.t.wrap(err)
				}
				if out.Buffered() >= until {
					return false, nil
				}
			}
			if _, err := w.rows.Close(); err != nil {
				return false, fmt.Errorf("read rows of %v: %w", n.t.name, err)
			}
			w.rows = nil
		}
		if n.read > n.keys && n.t.choice.Key != nil {
			return false, fmt.Errorf("%w: %v has rows of the same key (%s) in two partitions; mend: DELETE all but one of each", capture.ErrTable, n.t.name, strings.Join(n.t.choice.Key, ", "))
		}
		if n.read != n.keys {
			return false, fmt.Errorf("%w: %d rows of %v were read, and %d distinct keys counted; mend: report it, and begin a new epoch", ErrInexact, n.read, n.t.name, n.keys)
		}
		w.begun = false
	}
	return true, nil
}

// endRows ends the answer with the rows, and the window's transaction with it where
// the end was asked for behind them.
func (w *window) endRows() error {
	if w.results == nil {
		return nil
	}
	err := w.results.Close()
	w.results = nil
	if err != nil {
		return fmt.Errorf("read rows: %w", err)
	}
	return nil
}

// finish writes the tick, ends the transaction and only then flags the last entry.
func (w *window) finish() ([]byte, error) {
	s := w.s
	if err := w.endRows(); err != nil {
		return nil, err
	}
	if w.open {
		if s.c.inspect != nil {
			if err := s.c.inspect(w); err != nil {
				return nil, err
			}
		}
		var err error
		if s.after, err = s.loads.read(w.ctx, w); err != nil {
			return nil, err
		}
		if err := ask(w.ctx, w.conn.PgConn(), w.endQuery()); err != nil {
			return nil, fmt.Errorf("end window: %w", err)
		}
	}
	if n := s.out.Len(); n != w.entries {
		return nil, fmt.Errorf("%w: %d entries, and %d counted; mend: report it, and begin a new epoch", ErrInexact, n, w.entries)
	}
	payload, err := s.out.Finish(millrace.UnitEnd{Time: w.at, Token: w.position.Tick})
	if err != nil {
		return nil, err
	}
	w.end(nil)
	s.position, s.before, s.tick = w.position, w.facts.Snapshot, w.position.Tick
	s.polls.seen = nil
	s.joining, s.leaving = false, nil
	s.c.metrics.windows.Inc()
	s.c.metrics.tick.Set(float64(s.tick))
	return payload, nil
}

// body streams the rows of a window. Its transaction is open until the last of them
// has been read.
type body struct {
	w *window
	// run are entries that were read and not given out.
	run      millrace.Body
	finished bool // the last entry is among them, or was given out
	stall    *time.Timer
	stalled  atomic.Bool
}

func newBody(w *window) *body {
	b := &body{w: w}
	b.stall = time.AfterFunc(w.s.c.bodyLimit, func() {
		b.stalled.Store(true)
		_ = w.conn.PgConn().Conn().Close() // which ends the transaction; whoever reads next hears of it
	})
	return b
}

// Next implements millrace.Body.
func (b *body) Next(max int) ([]byte, error) {
	s := b.w.s
	s.turn.Lock()
	defer s.turn.Unlock()
	if s.err != nil && !b.finished {
		return nil, s.err
	}
	if !b.finished {
		b.stall.Reset(s.c.bodyLimit)
	}
	for {
		if b.run != nil {
			if run, err := b.run.Next(max); !errors.Is(err, io.EOF) {
				return run, err
			}
			b.run = nil
		}
		if b.finished {
			return nil, io.EOF
		}
		if err := b.fill(); err != nil {
			if b.stalled.Load() {
				err = fmt.Errorf("%w: nobody took its rows for %v: %w", errUnread, s.c.bodyLimit, err)
			}
			s.fail(err)
			return nil, s.err
		}
	}
}

// fill reads the next run.
func (b *body) fill() error {
	out := &b.w.s.out
	if out.Buffered() < b.w.s.c.heldBody {
		whole, err := b.w.fill(b.w.s.c.heldBody)
		if err != nil {
			return err
		}
		if whole {
			payload, err := b.w.finish()
			if err != nil {
				return err
			}
			b.stall.Stop()
			b.finished, b.run = true, millrace.NewUnit(b.w.position, b.w.at, b.w.entries, payload).Body
			return nil
		}
	}
	if run := out.Take(); len(run) > 0 {
		b.run = millrace.NewUnit(b.w.position, b.w.at, b.w.entries, run).Body
		return nil
	}
	// A single entry is held, the newest, which stays until the one after it has come.
	_, err := b.w.fill(0)
	return err
}

// Close implements millrace.Body. A body that was not read to its end ends the
// source: its window is begun anew by the next one.
func (b *body) Close() error {
	s := b.w.s
	s.turn.Lock()
	defer s.turn.Unlock()
	b.stall.Stop()
	b.run = nil
	if !b.finished {
		s.fail(errUnread)
	}
	return nil
}
