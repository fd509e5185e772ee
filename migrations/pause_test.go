package migrations

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// TestCountsCompared has the two sides differ in what they have counted, outside the
// pause and in it: writers do not go over.
func TestCountsCompared(t *testing.T) {
	r := newRig(t, 17, hits, tablesOf("hits", "other")...)
	r.cfg.PauseBudget = 20 * time.Second
	r.renew()
	r.follow()
	r.src.Exec("UPDATE hits SET note = 'a' WHERE id > -10")
	r.catchUp()
	// What is entered late at one side is pruned with the other's.
	r.dst.Exec("UPDATE millrace.migration_batch SET written_at = written_at - interval '6 days'")
	r.src.Exec("DELETE FROM millrace.migration_batch")
	r.catchUp()
	const old = "SELECT string_agg(last_index || (written_at < now() - interval '5 days')::text, ',' ORDER BY last_index) FROM millrace.migration_batch"
	r.sameQuery(old, old)
	for _, c := range []struct {
		name, step string
		plant      func()
		mend       func()
		says       string
	}{
		{"a batch was entered with another count", "armed", func() {
			r.src.Exec(`UPDATE millrace.migration_batch SET counts = jsonb_set(counts, '{public.hits,puts}', '10') WHERE counts -> 'public.hits' ->> 'puts' = '9'`)
		}, func() {
			r.src.Exec(`UPDATE millrace.migration_batch SET counts = jsonb_set(counts, '{public.hits,puts}', '9') WHERE counts -> 'public.hits' ->> 'puts' = '10'`)
		}, "public.hits: 10 puts"},
		{"a row is gone from a small table", "drained", func() {
			r.dst.Exec(`ALTER TABLE other DISABLE TRIGGER millrace_deny; DELETE FROM other WHERE id = 5; ALTER TABLE other ENABLE ALWAYS TRIGGER millrace_deny`)
		}, func() {
			r.dst.Exec(`ALTER TABLE other DISABLE TRIGGER millrace_deny; INSERT INTO other (id, "Order") VALUES (5, 5); ALTER TABLE other ENABLE ALWAYS TRIGGER millrace_deny`)
		}, "public.other has 100 rows at the source, and public.other has 99 at the target"},
		{"the newest batch is not entered", "fenced", func() {
			r.dst.Exec("DELETE FROM millrace.migration_batch WHERE last_index = (SELECT max(last_index) FROM millrace.migration_batch)")
		}, func() {
			r.src.Exec("DELETE FROM millrace.migration_batch")
			r.dst.Exec("DELETE FROM millrace.migration_batch")
		}, "behind index "},
	} {
		r.m.passed = func(step string) {
			if step == "drained" && c.step == "fenced" {
				r.src.Exec("UPDATE hits SET note = 'b' WHERE id = -1")
			}
			if step == c.step {
				c.plant()
			}
		}
		if _, err := r.m.Cutover(r.ctx()); !errors.Is(err, ErrCounts) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: got %v, want ErrCounts with %q", c.name, err, c.says)
		}
		if open := r.open(); !open[source] || open[target] {
			t.Fatalf("%s: open: %v, want the source alone", c.name, open)
		}
		r.src.Exec("UPDATE hits SET note = 'c' WHERE id = -2") // writers go on
		c.mend()
	}
	r.m.passed = nil
	p, err := r.m.Cutover(r.ctx())
	r.must("cutover when all is mended", err)
	if len(p.Steps) == 0 || p.Steps[len(p.Steps)-1].At != p.Total {
		t.Errorf("the pause took %v, and its steps are %v", p.Total, p.Steps)
	}
	// What was owed to the side that writers left is entered there.
	r.sameQuery("SELECT string_agg(last_index || ' ' || units, ',' ORDER BY last_index) FROM millrace.migration_batch", "SELECT string_agg(last_index || ' ' || units, ',' ORDER BY last_index) FROM millrace.migration_batch")
}

// TestOverBudgetAtEachStep has each step of the pause last longer than the budget: the
// move is given up, and writers go on at the source, whatever had been done.
func TestOverBudgetAtEachStep(t *testing.T) {
	r := newRig(t, 15, hits, tablesOf("hits", "other")...)
	r.cfg.PauseBudget = time.Second
	r.renew()
	r.follow()
	n := 0
	move := r.m.Rehearse
	refused := func(what string) {
		t.Helper()
		if _, err := move(r.ctx()); !errors.Is(err, ErrBudget) {
			t.Errorf("%s lasts too long: got %v, want ErrBudget", what, err)
		}
		if open := r.open(); !open[source] || open[target] {
			t.Fatalf("%s lasts too long: open: %v, want the source alone", what, open)
		}
		n++
		r.src.Exec(fmt.Sprintf("INSERT INTO hits (id) VALUES (%d)", n)) // at once
	}
	for _, step := range []string{"counted", "paused", "held", "fenced", "ahead", "sent", "closing"} {
		r.m.passed = func(at string) {
			if at == step {
				<-time.After(r.cfg.PauseBudget + 100*time.Millisecond)
			}
		}
		refused(step)
		move = r.m.Cutover
	}
	// A row at the target that somebody holds: changes cannot be applied.
	var tx pgx.Tx
	r.m.passed = func(at string) {
		if at != "drained" {
			return
		}
		var err error
		tx, err = r.dst.Pool.Begin(r.ctx())
		r.must("begin", err)
		_, err = tx.Exec(r.ctx(), "SELECT FROM other WHERE id = 1 FOR UPDATE")
		r.must("hold a row", err)
		r.src.Exec(`UPDATE other SET "Order" = "Order" + 1000 WHERE id = 1`)
	}
	refused("draining")
	r.must("let the row go", tx.Rollback(context.WithoutCancel(r.ctx())))
	r.m.passed = nil
	r.cfg.PauseBudget = 20 * time.Second // the machine may be busy
	r.renew()
	_, err := r.m.Cutover(r.ctx())
	r.must("cutover within the budget", err)
	r.must("follow back", r.m.Follow(r.ctx(), r.reachedBack()))
	r.same()
}

// TestOtherOrder has a writer take the tables in another order than going over does: the
// writer goes first, and writers go over.
func TestOtherOrder(t *testing.T) {
	r := newRig(t, 15, hits, tablesOf("hits", "other")...)
	r.cfg.PauseBudget = 30 * time.Second // the machine may be busy
	r.renew()
	r.follow()
	_, err := r.m.Rehearse(r.ctx()) // which makes gates, and waits for writers
	r.must("rehearse", err)
	r.src.Exec("ALTER DATABASE " + r.src.Name + " SET deadlock_timeout = '3s'") // until when the writer is to wait too
	writer, err := pgx.Connect(r.ctx(), r.src.URL)
	r.must("connect", err)
	defer writer.Close(context.Background()) //nolint:errcheck // nothing is lost with it
	write := func(sql string) error {
		_, err := writer.Exec(r.ctx(), sql, pgx.QueryExecModeSimpleProtocol)
		return err
	}
	r.must("write", write(`SET deadlock_timeout = '10min'; BEGIN; UPDATE other SET "Order" = 7000 WHERE id = 7`))
	done := make(chan error, 1)
	go func() {
		_, err := r.m.Cutover(r.ctx())
		done <- err
	}()
	waitFor(t, "the tables to be locked up to the writer's", func() bool {
		select {
		case err := <-done:
			t.Fatalf("cutover beside a writer: %v", err)
		default:
		}
		return r.src.String("SELECT count(*) FROM pg_locks WHERE NOT granted AND mode = 'ExclusiveLock' AND relation = 'other'::regclass") == "1"
	})
	r.must("write to the table that is locked", write("UPDATE hits SET note = 'in another order' WHERE id = -7; COMMIT"))
	r.must("cutover", <-done)
	if got := r.dst.String(`SELECT (SELECT "Order" FROM other WHERE id = 7) || ' ' || (SELECT note FROM hits WHERE id = -7)`); got != "7000 in another order" {
		t.Errorf("the target has %s", got)
	}
}
