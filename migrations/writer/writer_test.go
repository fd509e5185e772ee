package writer_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millrace-db/millrace/capture/table"
	"github.com/millrace-db/millrace/internal/pgtest"
	"github.com/millrace-db/millrace/migrations"
	"github.com/millrace-db/millrace/migrations/writer"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

const limit = 2 * time.Minute

// TestHeldNotFailed has clients write through a Writer while writers go over, back and
// over again: no write fails, each is there once, and how long they were held is told.
func TestHeldNotFailed(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*limit)
	defer cancel()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	src, dst := pgtest.New(t), pgtest.New(t)
	src.Exec("CREATE TABLE hits (id bigint PRIMARY KEY)")
	name := table.Name{Schema: "public", Name: "hits"}
	const budget = 30 * time.Second // the machine may be busy
	m, err := migrations.New(migrations.Config{
		Name: "held", SourceURL: src.URL, TargetURL: dst.URL, Tables: []migrations.Table{{From: name, To: name}}, SpoolDir: t.TempDir(),
		BatchInterval: 20 * time.Millisecond, Heartbeat: 50 * time.Millisecond, PauseBudget: budget, Logger: log,
	})
	must(t, err)
	w, err := writer.Open(ctx, writer.Config{Migration: "held", Source: src.Pool, Target: dst.Pool, Poll: time.Second, Logger: log})
	must(t, err)
	defer w.Close()
	must(t, m.Prepare(ctx, nil))
	must(t, m.Copy(ctx))
	must(t, m.Follow(ctx, migrations.Converged))

	var ids atomic.Int64
	var mu sync.Mutex
	var took []time.Duration
	writing, stop := context.WithCancel(ctx)
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			pace := time.NewTicker(4 * time.Millisecond) // 1,000 a second of all together
			defer pace.Stop()
			for writing.Err() == nil {
				<-pace.C
				id, began := ids.Add(1), time.Now()
				err := w.Do(ctx, func(ctx context.Context, pool *pgxpool.Pool) error {
					_, err := pool.Exec(ctx, "INSERT INTO hits VALUES ($1)", id)
					return err
				})
				if err != nil {
					t.Errorf("write %d: %v", id, err)
					return
				}
				mu.Lock()
				took = append(took, time.Since(began))
				mu.Unlock()
			}
		})
	}
	defer func() { stop(); group.Wait() }()
	for i, move := range []func(context.Context) (*migrations.Pause, error){m.Cutover, m.Rollback, m.Cutover} {
		until(t, "writes", func() bool { mu.Lock(); defer mu.Unlock(); return len(took) > 200 })
		mu.Lock()
		took = nil
		mu.Unlock()
		p, err := move(ctx)
		must(t, err)
		over := time.Now()
		until(t, "writes", func() bool { mu.Lock(); defer mu.Unlock(); return len(took) > 400 })
		mu.Lock()
		slices.Sort(took)
		longest := took[len(took)-1]
		t.Logf("move %d: tables held for %v; writes: median %v, 99th of 100 %v, longest %v", i+1, p.Total, took[len(took)/2], took[len(took)*99/100], longest)
		took = nil
		mu.Unlock()
		if p.Total > budget || longest > 2*budget {
			t.Errorf("move %d: tables were held for %v, a write for %v; the budget is %v", i+1, p.Total, longest, budget)
		}
		// Soon writes take no longer than those that are made at that side without asking,
		// at the same time.
		var direct []time.Duration
		until(t, "writes to be as fast as others", func() bool {
			pool, term := w.Pool()
			if term != int64(i+1) {
				return false
			}
			began := time.Now()
			_, err := pool.Exec(ctx, "INSERT INTO hits VALUES ($1)", ids.Add(1))
			must(t, err)
			direct = append(direct, time.Since(began))
			mu.Lock()
			defer mu.Unlock()
			if len(direct) < 30 || len(took) < 100 {
				return false
			}
			slices.Sort(took)
			slices.Sort(direct)
			with, without := took[len(took)*9/10], direct[len(direct)*9/10]
			took, direct = nil, nil
			return with <= 2*without+5*time.Millisecond
		})
		t.Logf("move %d: writes take no longer than others since %v", i+1, time.Since(over))
	}
	stop()
	group.Wait()
	if pool, term := w.Pool(); pool != dst.Pool || term != 3 {
		t.Errorf("after three moves the writer is at term %d", term)
	}
	want := fmt.Sprintf("%d of %[1]d", ids.Load())
	if got := dst.String("SELECT count(*) || ' of ' || max(id) FROM hits"); got != want {
		t.Errorf("the target has %s writes, want %s", got, want)
	}
	must(t, m.Finish(ctx))
	// Somebody who asks later is told where writers are.
	late, err := writer.Open(ctx, writer.Config{Migration: "held", Source: src.Pool, Target: dst.Pool})
	must(t, err)
	defer late.Close()
	if pool, _ := late.Pool(); pool != dst.Pool {
		t.Error("after finish a new writer goes to the source")
	}

	// Another migration of the same name goes the other way; its terms begin anew. Both
	// writers follow it.
	src.Exec("TRUNCATE hits")
	m, err = migrations.New(migrations.Config{
		Name: "held", SourceURL: dst.URL, TargetURL: src.URL, Tables: []migrations.Table{{From: name, To: name}}, SpoolDir: t.TempDir(),
		BatchInterval: 20 * time.Millisecond, Heartbeat: 50 * time.Millisecond, PauseBudget: budget, Logger: log,
	})
	must(t, err)
	must(t, m.Prepare(ctx, nil))
	must(t, m.Copy(ctx))
	must(t, m.Follow(ctx, migrations.Converged))
	_, err = m.Cutover(ctx)
	must(t, err)
	for _, w := range []*writer.Writer{w, late} {
		id := ids.Add(1)
		must(t, w.Do(ctx, func(ctx context.Context, pool *pgxpool.Pool) error {
			_, err := pool.Exec(ctx, "INSERT INTO hits VALUES ($1)", id)
			return err
		}))
		if got := src.String("SELECT count(*) FROM hits WHERE id = $1", id); got != "1" {
			t.Errorf("behind another migration of the same name a write is not at its target")
		}
	}

	// A transaction that is denied midway: what is given back to the pool is of use.
	cfg := dst.Pool.Config().Copy()
	cfg.MaxConns = 1
	one, err := pgxpool.NewWithConfig(ctx, cfg)
	must(t, err)
	defer one.Close()
	stale, err := writer.Open(ctx, writer.Config{Migration: "unknown", Source: one, Target: one, Hold: 20 * time.Millisecond})
	must(t, err)
	defer stale.Close()
	for _, rollBack := range []bool{true, false} {
		err = stale.Do(ctx, func(ctx context.Context, pool *pgxpool.Pool) error {
			conn, err := pool.Acquire(ctx)
			if err != nil {
				return err
			}
			defer conn.Release()
			tx, err := conn.Begin(ctx)
			if err != nil {
				return err
			}
			if rollBack {
				defer tx.Rollback(ctx) //nolint:errcheck // the failure of the write counts
			}
			if _, err := tx.Exec(ctx, "SELECT count(*) FROM hits"); err != nil {
				return err
			}
			_, err = tx.Exec(ctx, "INSERT INTO hits VALUES (-1)")
			return err
		})
		if !errors.Is(err, writer.ErrHeld) || !writer.Denied(err) {
			t.Errorf("a transaction at the closed side: %v", err)
		}
		if _, err := one.Exec(ctx, "SELECT count(*) FROM hits"); err != nil {
			t.Errorf("the pool's only connection, behind a transaction that was denied: %v", err)
		}
	}
}

// TestSideDoesNotAnswer has one side take connections and say nothing: nobody waits for it
// for longer than is allowed.
func TestSideDoesNotAnswer(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	db := pgtest.New(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer listener.Close() //nolint:errcheck // the test ends
	silent, err := pgxpool.New(ctx, "postgres://postgres@"+listener.Addr().String()+"/postgres?sslmode=disable")
	must(t, err)
	opened, stop := context.WithTimeout(ctx, 30*time.Second)
	defer stop()
	w, err := writer.Open(opened, writer.Config{Migration: "none", Source: db.Pool, Target: silent, Hold: 200 * time.Millisecond})
	must(t, err)
	// Who waited would do so each time; a machine may stand still for a moment.
	took, allowed := time.Hour, 4*time.Second
	for n := 0; n < 5 && took > allowed; n++ {
		began := time.Now()
		err = w.Do(context.Background(), func(ctx context.Context, pool *pgxpool.Pool) error {
			_, err := pool.Exec(ctx, "DO $$ BEGIN RAISE EXCEPTION 'closed' USING ERRCODE = '25006'; END $$")
			return err
		})
		if took = time.Since(began); !errors.Is(err, writer.ErrHeld) {
			t.Fatalf("a write that is denied while a side does not answer: %v after %v", err, took)
		}
	}
	if took > allowed {
		t.Errorf("a write that is denied while a side does not answer was held for %v", took)
	}
	w.Close()
	silent.Close()
}

// TestHeldTooLong closes both sides: a write is held for as long as it may be.
func TestHeldTooLong(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	db := pgtest.New(t)
	w, err := writer.Open(ctx, writer.Config{Migration: "none", Source: db.Pool, Target: db.Pool, Hold: time.Second})
	must(t, err)
	defer w.Close()
	calls := 0
	err = w.Do(ctx, func(ctx context.Context, pool *pgxpool.Pool) error {
		calls++
		_, err := pool.Exec(ctx, "DO $$ BEGIN RAISE EXCEPTION 'closed' USING ERRCODE = '25006'; END $$")
		return err
	})
	if !errors.Is(err, writer.ErrHeld) || calls < 2 {
		t.Errorf("a write that every side denies: got %v after %d calls, want ErrHeld after some", err, calls)
	}
	other := errors.New("something else")
	if err := w.Do(ctx, func(context.Context, *pgxpool.Pool) error { return other }); !errors.Is(err, other) {
		t.Errorf("another error: got %v", err)
	}
	ended, end := context.WithCancel(ctx)
	end()
	if err := w.Do(ended, func(ctx context.Context, pool *pgxpool.Pool) error {
		_, err := pool.Exec(context.Background(), "DO $$ BEGIN RAISE EXCEPTION 'closed' USING ERRCODE = '25006'; END $$")
		return err
	}); !errors.Is(err, context.Canceled) {
		t.Errorf("a write whose context has ended: got %v", err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(limit)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for %s", limit, what)
		}
		<-tick.C
	}
}
