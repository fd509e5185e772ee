package migrations

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

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
		{"a backlog has come to its end", time.Hour, 10 * time.Millisecond, free, 20, "", true, 20},
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

// asked calls fn for what is confirmed to the source.
type asked struct {
	changes
	fn func(millrace.Position)
}

func (a *asked) Confirm(p millrace.Position) {
	a.fn(p)
	a.changes.Confirm(p)
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
// may forget changes: they are there when the target has come back, while others are
// being gathered already.
func TestConfirmedIsThere(t *testing.T) {
	r := newRig(t, 15, "CREATE TABLE t (id int PRIMARY KEY, a int); INSERT INTO t SELECT n, 0 FROM generate_series(1, 100) n", tablesOf("t")...)
	mortal := server(t, "mortal", 15)
	r.dst = pgtest.On(t, mortal)
	r.cfg.TargetURL = r.dst.URL
	r.renew()
	r.follow()
	for round := range 3 {
		f, closed := r.opened()
		var confirmed millrace.Position
		f.from = &asked{f.from, func(p millrace.Position) {
			if confirmed = p; mortal.Kill() != nil {
				t.Error("the target was not killed")
			}
		}}
		r.src.Exec(fmt.Sprintf("UPDATE t SET a = %d WHERE id %% 3 = 0", round))
		for confirmed.IsZero() {
			if err := f.once(r.ctx()); err != nil {
				t.Fatalf("follow: %v", err)
			}
			r.src.Exec(fmt.Sprintf("UPDATE t SET a = -%d WHERE id %% 3 = 1", round)) // for the next batch
		}
		closed()
		r.must("restart the target", mortal.Restart(r.ctx()))
		src, dst, err := r.m.both(r.ctx())
		r.must("connect", err)
		at, err := readPlace(r.ctx(), dst, r.m.cfg.Name)
		r.must("read the place", err)
		if at.Position.Token() < confirmed.Token() {
			t.Errorf("round %d: %v is confirmed to the source, the target has %v", round, confirmed, at.Position)
		}
		capture.Close(src)
		capture.Close(dst)
	}
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
	r.src.Exec("UPDATE t SET a = 'small' WHERE id = 1")
	r.src.Exec("UPDATE t SET a = repeat('large', 20)")
	waitFor(t, "a batch ahead", func() bool {
		r.must("follow", f.once(r.ctx()))
		return f.ahead != nil
	})
	f.pausing = true
	for f.ahead != nil {
		r.must("follow", f.once(r.ctx()))
		if f.sink.open {
			t.Fatal("a transaction is open behind a commit")
		}
	}
	closed()
	r.catchUp()
	r.same()
	if got := r.dst.String("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction'"); got != "0" {
		t.Errorf("%s transactions are open", got)
	}
}
