package trigger

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/internal/pgtest"
)

// A window with much in it streams: its transaction is open until its last row has
// been read, and its last entry is given out only when the tick is written.
func TestStreamedBody(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec("create table a (id int primary key, v text); create table b (id int primary key, v text)")
	r := newRig(t, db, nil, "a", "b")
	r.c.heldBody = 64 << 10
	r.begin()
	// More than sockets take up; otherwise the server is done before the rows are read.
	db.Exec("insert into a select i, repeat('v', 20000) from generate_series(1, 2000) i; insert into b values (1, repeat(md5('x'), 10000)), (2, 'v'); truncate b; insert into b values (3, repeat(md5('y'), 10000))")
	before := r.edge.at
	open := func() string {
		return db.String("select count(*) from pg_stat_activity where application_name = 'millrace' and datname = current_database() and xact_start is not null")
	}
	ticks := func() string { return db.String("select max(tick) from millrace.tick") }

	// Given up in the middle, it is void, and comes again.
	u, err := r.src.Next(r.ctx())
	if err != nil {
		t.Fatal(err)
	}
	was := ticks()
	if _, err := u.Body.Next(1 << 10); err != nil {
		t.Fatal(err)
	}
	if open() != "1" || ticks() != was {
		t.Errorf("in its middle: %s transactions are open, the newest tick is %s, before %s", open(), ticks(), was)
	}
	if _, err := r.src.Next(r.ctx()); !errors.Is(err, errUnread) || millrace.NeedsOperator(err) {
		t.Errorf("the unit was not read, and next gives %v", err)
	}
	if _, err := u.Body.Next(1 << 10); err == nil {
		t.Error("a void unit goes on")
	}
	_ = u.Body.Close() // the source has ended
	until(t, "the transaction ends", func() bool { return open() == "0" })

	r.close()
	r.open()
	a := r.next()
	if got, want := a.String(), "put:2001 delete:2 truncate:1"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	r.equal()
	if a.position.Tick <= before.Position.Tick || open() != "0" {
		t.Errorf("position %v after %v, %s transactions open", a.position, before.Position, open())
	}
	r.exec("update a set v = 'w'")
	r.exec("delete from a")
}

// Nobody holds a window's transaction open for ever, because VACUUM and ALTER TABLE
// wait for it.
func TestStalledBody(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec("create table a (id int primary key, v text)")
	r := newRig(t, db, nil, "a")
	r.c.heldBody, r.c.bodyLimit = 64<<10, 200*time.Millisecond
	r.begin()
	db.Exec("insert into a select i, repeat('v', 1000) from generate_series(1, 20000) i")
	u, err := r.src.Next(r.ctx())
	if err != nil {
		t.Fatal(err)
	}
	db.Exec("alter table a add column w int") // it waits until the window gives way
	for err == nil {
		_, err = u.Body.Next(1 << 20)
	}
	if !errors.Is(err, errUnread) || !strings.Contains(err.Error(), "nobody took its rows") || millrace.NeedsOperator(err) {
		t.Errorf("got %v", err)
	}
	_ = u.Body.Close()
	r.close()
	r.c.bodyLimit = bodyLimit
	r.open()
	r.next()
	r.equal()
}

// A context that ends in a pause ends nothing else; Close ends a Next that waits.
func TestEnds(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec("create table a (id int primary key, v text)")
	r := newRig(t, db, func(c *Config) { c.PollMin, c.PollMax = 2*time.Second, 2*time.Second }, "a")
	r.begin()
	ctx, cancel := context.WithCancel(r.ctx())
	defer cancel()
	polls, before := &r.src.polls, r.src.polls.n
	go func() {
		for over := false; !over && ctx.Err() == nil; {
			polls.mu.Lock()
			over = polls.n > before && polls.conn == nil // it makes a pause, or is about to
			polls.mu.Unlock()
		}
		cancel()
	}()
	if _, err := r.src.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	r.exec("insert into a values (1, 'v')")
	done := make(chan error, 1)
	src := r.src
	go func() {
		_, err := src.Next(context.Background())
		done <- err
	}()
	r.close()
	if err := <-done; !errors.Is(err, capture.ErrClosed) {
		t.Errorf("next beside close: got %v", err)
	}
	if _, err := src.Next(r.ctx()); !errors.Is(err, capture.ErrClosed) {
		t.Errorf("next after close: got %v", err)
	}
}

// Somebody who holds a table against everybody puts the window off, and nobody waits
// for it longer than a moment.
func TestBusy(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec("create table a (id int primary key, v text)")
	registry := prometheus.NewRegistry()
	told := make(chan string, 100)
	r := newRig(t, db, func(c *Config) {
		c.Registerer, c.Heartbeat = registry, 50*time.Millisecond
		c.Logger = slog.New(slog.NewTextHandler(lines(told), nil))
	}, "a")
	r.c.lockTimeout = 20 * time.Millisecond
	r.begin()
	r.next() // a heartbeat
	db.Exec("insert into a values (0, 'not read yet')")
	holder := r.client()
	holder.exec("begin; lock table a")
	done := make(chan error, 1)
	go func() {
		for {
			a, err := r.tryNext()
			if err != nil || a.counts[millrace.KindPut] > 0 {
				done <- err
				return
			}
		}
	}()
	until(t, "the window is put off", func() bool {
		return counted(t, registry, "millrace_capture_lock_waits_total") >= 3
	})
	until(t, "the log tells that the stream stands still", func() bool {
		select {
		case line := <-told:
			return strings.Contains(line, "stands still") && strings.Contains(line, "public.a has news and is locked")
		default:
			return false
		}
	})
	holder.exec("insert into a values (1, 'v'); commit")
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	r.equal()
	if windows, tick := counted(t, registry, "millrace_capture_windows_total"), counted(t, registry, "millrace_capture_tick"); windows < 3 || tick != float64(r.edge.at.Position.Tick) {
		t.Errorf("%v windows, tick %v", windows, tick)
	}
}

// lines takes what is written to it, as long as there is room.
type lines chan string

func (l lines) Write(b []byte) (int, error) {
	select {
	case l <- string(b):
	default:
	}
	return len(b), nil
}

func counted(t testing.TB, registry *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			m := f.GetMetric()[0]
			if f.GetType() == dto.MetricType_GAUGE {
				return m.GetGauge().GetValue()
			}
			return m.GetCounter().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

// What is confirmed and old goes, and the stream goes on over it.
func TestTended(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec("create table a (id int primary key, v text)")
	r := newRig(t, db, nil, "a")
	r.c.tendInterval, r.c.tickKeep = time.Millisecond, time.Millisecond
	r.begin()
	for range 5 {
		r.exec("insert into a select coalesce(max(id), 0) + 1, 'v' from a")
	}
	if got := db.String("select count(*) from millrace.tick"); got != "6" {
		t.Errorf("%s ticks, want 6 while nothing is confirmed", got)
	}
	r.src.Confirm(r.edge.at.Position)
	r.exec("insert into a values (100, 'v')")
	if got := db.String("select count(*) from millrace.tick"); got != "2" {
		t.Errorf("%s ticks, want the confirmed one and the newest", got)
	}
	// The oldest segment is emptied once all that is in it is confirmed: the clock of
	// the segments is turned.
	db.Exec("update millrace.key_log set period = 1")
	until(t, "the log is emptied", func() bool {
		r.src.Confirm(r.edge.at.Position)
		r.due()
		r.next()
		return db.String("select (select count(*) from millrace.log_1_0) + (select count(*) from millrace.log_1_1) + (select count(*) from millrace.log_1_2)") == "0"
	})
	r.restart()
	r.exec("insert into a values (101, 'v')")
	// DDL of a time in which nobody captured is read before it is cleared away, although
	// what was published before is confirmed at once.
	r.close()
	r.edge.loads()
	db.Exec("alter table a alter column v type text using v || 'w'")
	r.open()
	r.src.Confirm(r.edge.at.Position)
	r.next()
	if got := r.edge.loads(); got != "a: "+rewritten {
		t.Errorf("loads %q after a rewrite", got)
	}
}
