package migrations

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/internal/pgtest"
)

// given gives units that a test sends.
type given struct {
	changes
	units chan *millrace.Unit
}

func (g *given) Next(ctx, until context.Context) (*millrace.Unit, error) {
	select {
	case u := <-g.units:
		return u, nil
	case <-until.Done():
		return nil, ctx.Err()
	}
}

func (g *given) Behind(*fence) bool { return false }

func (g *given) Gathers() bool { return true }

// TestGather wants a batch to end when it may, and no sooner.
func TestGather(t *testing.T) {
	const bytes = 100_000
	row := millrace.AppendRow(nil, 1, []millrace.Datum{{State: millrace.ColumnValue, Text: make([]byte, 100)}})
	unit := func(key int, message string) *millrace.Unit {
		var w millrace.UnitWriter
		if err := w.Put(1, []byte(fmt.Sprint("key", key)), nil, row, 0); err != nil {
			t.Fatal(err)
		}
		if message != "" {
			if err := w.Append(&millrace.Entry{Kind: millrace.KindMessage, Message: &millrace.LogicalMessage{Prefix: fencePrefix, Content: []byte(message)}}); err != nil {
				t.Fatal(err)
			}
		}
		n := w.Len()
		b, err := w.Finish(millrace.UnitEnd{})
		if err != nil {
			t.Fatal(err)
		}
		return millrace.NewUnit(millrace.Position{}, time.Time{}, n, b)
	}
	busy, free := make(chan struct{}), make(chan struct{})
	close(free)
	for _, c := range []struct {
		name            string
		interval, pause time.Duration // of the batch, and a tenth of what says that nothing comes
		sink            chan struct{}
		units           int
		message         string // in the last
		ends            bool   // by itself
		fewest          int64
	}{
		{"the interval is over", 50 * time.Millisecond, time.Minute, free, 1, "", true, 1},
		{"few changes wait for the interval", time.Hour, 10 * time.Millisecond, free, 1, "", false, 1},
		{"a backlog has come to its end", time.Hour, 500 * time.Millisecond, free, 20, "", true, 20},
		{"it is full", time.Hour, time.Hour, busy, 1000, "", true, 100},
		{"the sink is busy", 10 * time.Millisecond, time.Hour, busy, 20, "", false, 20},
		{"the fence has come", time.Hour, time.Hour, busy, 3, "here", true, 3},
		{"another fence has come", time.Hour, time.Hour, free, 3, "there", false, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			from := &given{units: make(chan *millrace.Unit, c.units)}
			for i := range c.units {
				message := ""
				if i == c.units-1 {
					message = c.message
				}
				from.units <- unit(i, message)
			}
			g := &gatherer{
				m: &Migration{cfg: Config{BatchInterval: quietShare * c.pause, BatchBytes: bytes}}, from: from,
				at: &millrace.Checkpoint{},
			}
			g.fence.Store(&fence{message: "here"})
			b := newBatch(map[millrace.TableID]*mapping{1: {carried: make([]carried, 1)}})
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			done := make(chan *gathered, 1)
			go func() { done <- g.gather(ctx, b, c.interval, c.sink) }()
			var got *gathered
			if c.ends {
				select {
				case got = <-done:
				case <-time.After(limit):
					t.Fatal("the batch does not end")
				}
				if got.err != nil {
					t.Fatal(got.err)
				}
			} else {
				waitFor(t, "all to be taken", func() bool { return len(from.units) == 0 })
				select {
				case <-done:
					t.Fatal("the batch ends")
				case <-time.After(100 * time.Millisecond): // it would end within a tenth
				}
				cancel()
				got = <-done
			}
			if got.units < c.fewest || got.batch.size > bytes+1000 || got.at.Index < millrace.Index(got.units) {
				t.Errorf("got %d units, %d bytes, up to index %v; want %d units or more, %d bytes or little more", got.units, got.batch.size, got.at.Index, c.fewest, bytes)
			}
			if (got.passed != nil) != (c.message == "here") {
				t.Errorf("got behind the fence: %v", got.passed)
			}
		})
	}
}

// asked counts the units with changes that it gives. When it has given two, it keeps
// what is confirmed to the source next, and calls fn.
type asked struct {
	changes
	fn        func()
	given     atomic.Int64
	confirmed millrace.Position
}

func (a *asked) Confirm(p millrace.Position) {
	if a.given.Load() == 2 && a.confirmed.IsZero() {
		a.confirmed = p
		a.fn()
	}
	a.changes.Confirm(p)
}

func (a *asked) Next(ctx, until context.Context) (*millrace.Unit, error) {
	u, err := a.changes.Next(ctx, until)
	if u != nil && u.Entries > 1 { // not a heartbeat
		a.given.Add(1)
	}
	return u, err
}

// beside commits a change in a batch of its own, and another one at the source while the
// target is at work on that: it returns when that has been gathered too, and the batch is
// committed.
func (r *rig) beside(f *follower, from *asked, first, second string) {
	r.t.Helper()
	f.from, f.gatherer.from = from, from
	lock, err := r.dst.Pool.Acquire(r.ctx())
	r.must("connect", err)
	defer lock.Release()
	_, err = lock.Exec(r.ctx(), "BEGIN; LOCK TABLE t IN SHARE MODE", pgx.QueryExecModeSimpleProtocol)
	r.must("lock", err)
	r.src.Exec(first)
	done := make(chan error, 1)
	go func() {
		for ctx := r.ctx(); ; {
			if err := f.once(ctx); err != nil || !from.confirmed.IsZero() {
				done <- err
				return
			}
		}
	}()
	waitFor(r.t, "the first to wait for the lock", func() bool {
		return r.dst.String("SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 't'::regclass") == "1"
	})
	r.src.Exec(second)
	waitFor(r.t, "the second to be gathered", func() bool { return from.given.Load() == 2 })
	_, err = lock.Exec(r.ctx(), "COMMIT")
	r.must("unlock", err)
	r.must("follow", <-done)
}

// opened opens a follower as Follow does, until it is closed.
func (r *rig) opened() (f *follower, closed func()) {
	r.t.Helper()
	src, dst, err := r.m.both(r.ctx())
	r.must("connect", err)
	r.must("take", r.m.take(r.ctx(), dst))
	f = &follower{m: r.m, src: src, dst: dst}
	r.must("open", f.open(r.ctx()))
	closed = sync.OnceFunc(func() {
		f.close()
		capture.Close(src)
		capture.Close(dst)
	})
	r.t.Cleanup(closed)
	return f, closed
}

// TestConfirmedIsThere kills the target at the moment when the source is told that it
// may forget changes, while others have been gathered: those are there when the target
// has come back, and these come again. It commits asynchronously, unless a session asks for
// more.
func TestConfirmedIsThere(t *testing.T) {
	r := newRig(t, 15, "CREATE TABLE t (id int PRIMARY KEY, a int); INSERT INTO t SELECT n, 0 FROM generate_series(1, 100) n", tablesOf("t")...)
	mortal := server(t, "mortal", 15)
	r.dst = pgtest.On(t, mortal)
	r.cfg.TargetURL = r.dst.URL
	r.renew()
	r.follow()
	f, closed := r.opened()
	from := &asked{changes: f.from, fn: func() {
		if err := mortal.Kill(); err != nil {
			t.Errorf("kill the target: %v", err)
		}
	}}
	r.beside(f, from, "UPDATE t SET a = 1 WHERE id % 3 = 0", "UPDATE t SET a = 1 WHERE id % 3 = 1")
	closed()
	r.must("restart the target", mortal.Restart(r.ctx()))
	r.dst.Pool.Reset() // its connections are dead
	src, dst, err := r.m.both(r.ctx())
	r.must("connect", err)
	at, err := readPlace(r.ctx(), dst, r.m.cfg.Name)
	r.must("read the place", err)
	if at.Position.Token() < from.confirmed.Token() {
		t.Errorf("%v is confirmed to the source, the target has %v", from.confirmed, at.Position)
	}
	capture.Close(src)
	capture.Close(dst)
	r.catchUp()
	r.same()
	const entered = "SELECT count(*) || ' ' || sum(units) || ' ' || max(last_index) FROM millrace.migration_batch"
	if got, want := r.src.String(entered), r.dst.String(entered); got != want {
		t.Errorf("batches entered at the source: %s, at the target: %s", got, want)
	}
}

// TestPausedHoldsNothing pauses while a unit that is too large for memory is being
// gathered: it is brought to its end, and no transaction stays open at the target.
func TestPausedHoldsNothing(t *testing.T) {
	r := newRig(t, 15, "CREATE TABLE t (id int PRIMARY KEY, a text); INSERT INTO t SELECT n, '' FROM generate_series(1, 2000) n", tablesOf("t")...)
	r.cfg.BatchBytes = 10_000
	r.renew()
	r.follow()
	f, closed := r.opened()
	r.beside(f, &asked{changes: f.from, fn: func() {}}, "UPDATE t SET a = 'small' WHERE id IN (1, 2)", "UPDATE t SET a = repeat('large', 200)")
	if f.ahead == nil {
		t.Fatal("nothing is gathered beside a commit")
	}
	f.pausing = true
	for n := 0; f.ahead != nil; n++ {
		r.must("follow", f.once(r.ctx()))
		if f.sink.open || n == 100 {
			t.Fatalf("after %d batches of a pause a transaction is open: %v", n, f.sink.open)
		}
	}
	closed()
	r.catchUp()
	r.same()
	if got := r.dst.String("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction'"); got != "0" {
		t.Errorf("%s transactions are open", got)
	}
}
