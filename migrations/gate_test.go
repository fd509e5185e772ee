package migrations

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"
)

// TestGateBelow moves a partition without the table that it is of: rows that come
// through that table are denied where the partition takes no writes, and others are not.
func TestGateBelow(t *testing.T) {
	r := newRig(t, 15, `CREATE TABLE whole (id int PRIMARY KEY, a text) PARTITION BY RANGE (id);
		CREATE TABLE low PARTITION OF whole FOR VALUES FROM (0) TO (100); CREATE TABLE high PARTITION OF whole FOR VALUES FROM (100) TO (200);
		INSERT INTO whole SELECT n, 'a' FROM generate_series(1, 199) n`, tablesOf("low")...)
	r.cfg.PauseBudget = 20 * time.Second
	r.renew()
	r.follow()
	r.src.Exec("ALTER TABLE low SET (fillfactor = 90)") // what the owner may do at any time
	if _, err := r.m.Cutover(r.ctx()); err != nil {
		t.Fatal(err)
	}
	for _, sql := range []string{
		"UPDATE whole SET a = 'b' WHERE id = 5", "DELETE FROM whole WHERE id = 5", "INSERT INTO whole VALUES (0)", "TRUNCATE whole",
		"UPDATE whole SET id = 0 WHERE id = 150", "SET session_replication_role = replica; DELETE FROM whole WHERE id < 10", "INSERT INTO low VALUES (0)",
	} {
		if _, err := r.src.Pool.Exec(r.ctx(), sql); code(err) != "25006" {
			t.Errorf("%s: got %v, want it denied", sql, err)
		}
	}
	r.src.Exec("SET session_replication_role = origin; DELETE FROM whole WHERE id = 120; INSERT INTO whole VALUES (120)")
	r.dst.Exec("INSERT INTO low VALUES (0)")
	if _, err := r.m.Rollback(r.ctx()); err != nil {
		t.Fatal(err)
	}
	r.src.Exec("UPDATE whole SET a = 'c' WHERE id < 120")
	r.catchUp()
	r.same()
	r.must("abort", r.m.Abort(r.ctx()))
	if got := r.src.String("SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'millrace%'"); got != "0" {
		t.Errorf("abort leaves %s triggers", got)
	}
}

// TestGateStands has triggers gone and partitions come between the making of the gate
// and the pause: writers do not go over.
func TestGateStands(t *testing.T) {
	r := newRig(t, 15, `CREATE TABLE whole (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE low PARTITION OF whole FOR VALUES FROM (0) TO (100);
		CREATE TABLE t (id int PRIMARY KEY)`, tablesOf("whole", "t")...)
	r.cfg.PauseBudget = 20 * time.Second
	r.renew()
	r.follow()
	for _, sql := range []string{"ALTER TABLE t DISABLE TRIGGER USER", "DROP EVENT TRIGGER millrace_migration_guard; CREATE TABLE high PARTITION OF whole FOR VALUES FROM (100) TO (200)"} {
		r.m.passed = func(step string) {
			if step == "paused" {
				r.src.Exec(sql)
			}
		}
		if _, err := r.m.Cutover(r.ctx()); !errors.Is(err, ErrBlocked) {
			t.Errorf("cutover beside %s: got %v, want ErrBlocked", sql, err)
		}
		if open := r.open(); !open[source] || open[target] {
			t.Errorf("beside %s: open: %v, want the source alone", sql, open)
		}
	}
}

// TestHolderSilent stops the process in the pause, as the loss of its host would: the
// server lets writers go on at the end of the budget, and they do not go over later.
func TestHolderSilent(t *testing.T) {
	r := newRig(t, 15, hits, tablesOf("hits", "other")...)
	r.cfg.PauseBudget = 3 * time.Second
	r.renew()
	r.follow()
	waited := make(chan error, 1)
	r.m.passed = func(step string) {
		if step == "held" {
			ctx, cancel := context.WithTimeout(context.Background(), limit)
			defer cancel()
			_, err := r.src.Pool.Exec(ctx, "INSERT INTO hits (id) VALUES (77)")
			waited <- err
		}
	}
	began := time.Now()
	for held := false; !held; {
		_, err := r.m.Cutover(r.ctx())
		if err == nil {
			t.Fatal("writers went over that had not been held")
		}
		select {
		case waiting := <-waited:
			r.must("write while the process is stopped", waiting)
			held = true
		default:
			if !errors.Is(err, ErrBudget) || time.Since(began) > limit {
				t.Fatalf("writers were not held: %v", err)
			}
			t.Logf("the machine is busy: %v", err) // the budget was spent before the tables were locked
		}
	}
	if open := r.open(); !open[source] || open[target] {
		t.Errorf("open: %v, want the source alone", open)
	}
	r.m.passed = nil
	r.catchUp()
	r.same()
}

// TestKeysMadeLate makes foreign keys at the target while a process follows: changes
// come table by table, and rows of the one that refers first.
func TestKeysMadeLate(t *testing.T) {
	r := newRig(t, 15, "CREATE TABLE a (id int PRIMARY KEY, b int); CREATE TABLE b (id int PRIMARY KEY)", tablesOf("a", "b")...)
	r.follow()
	ctx, stop := context.WithCancel(r.ctx())
	defer stop()
	done := make(chan error, 1)
	go func() { done <- r.m.Follow(ctx, Forever) }()
	for i, sql := range []string{"", "ALTER TABLE a ADD FOREIGN KEY (b) REFERENCES b"} {
		if sql != "" {
			r.dst.Exec(sql)
		}
		r.src.Exec(fmt.Sprintf("BEGIN; INSERT INTO b VALUES (%d); INSERT INTO a VALUES (%[1]d, %[1]d); COMMIT", i))
		waitFor(t, "rows to arrive", func() bool {
			select {
			case err := <-done:
				t.Fatalf("follow ended: %v", err)
			default:
			}
			return r.dst.String("SELECT count(*) FROM a WHERE id = $1", i) == "1"
		})
	}
	stop()
	if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("follow: %v", err)
	}
	r.same()
}
