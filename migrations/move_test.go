package migrations

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/pgtest"
)

// TestCutoverAndRollback has clients hammer both sides while writers go over and come
// back: at no moment do both sides take writes, what was accepted is there once, and
// sequences go on.
func TestCutoverAndRollback(t *testing.T) { bothModes(t, cutoverAndRollback) }

func cutoverAndRollback(t *testing.T, mode millrace.Mode) {
	r := newRigBy(t, mode, 17, hits, tablesOf("hits", "other")...)
	r.cfg.PauseBudget = 20 * time.Second // the machine may be busy
	r.renew()
	r.follow()
	p, err := r.m.Rehearse(r.ctx())
	r.must("rehearse", err)
	t.Logf("rehearsed: %+v", *p)
	if _, err := r.dst.Pool.Exec(r.ctx(), "INSERT INTO hits (id) VALUES (0)"); code(err) != "25006" {
		t.Errorf("a write to the target before writers go over: got %v, want it denied", err)
	}
	// Not only what applies changes may have this setting.
	r.src.Exec(`BEGIN; SET LOCAL session_replication_role = replica; UPDATE other SET "Order" = "Order" + 1000 WHERE id <= 10; COMMIT`)
	r.catchUp()
	r.same()

	both, stop := r.hammers()
	waitFor(t, "writes at the source", func() bool {
		both[source].mu.Lock()
		defer both[source].mu.Unlock()
		return len(both[source].accepted) > 50
	})
	p, err = r.m.Cutover(r.ctx())
	r.must("cutover", err)
	t.Logf("cut over: %+v", *p)
	waitFor(t, "writes at the target", func() bool {
		both[target].mu.Lock()
		defer both[target].mu.Unlock()
		return len(both[target].accepted) > 50
	})
	stop()
	apart(t, both[source], both[target])
	all := slices.Concat(both[source].accepted, both[target].accepted)
	r.accounted(all)
	if got := r.dst.String(`INSERT INTO other ("Order") VALUES (5000) RETURNING id`); got != "101" {
		t.Errorf("the target's sequence goes on at %s, want 101", got)
	}

	// Back: what was written at the target comes too, with values that did not change.
	r.dst.Exec("UPDATE hits SET note = 'at the target' WHERE id < -250; UPDATE hits SET id = id - 10000 WHERE id < -490; DELETE FROM hits WHERE id BETWEEN -20 AND -1")
	r.must("follow back", r.m.Follow(r.ctx(), r.reachedBack()))
	r.same()
	certificate, err := r.m.Verify(r.ctx())
	r.must("verify the way back", err)
	if !certificate.Equal {
		t.Errorf("certificate: %+v", certificate)
	}
	status, err := r.m.Status(r.ctx())
	r.must("status", err)
	if status.Active != "target" || status.Term != 1 || status.Follow == nil || !strings.Contains(status.Phase, "the way back is following") {
		t.Errorf("status: %+v", status)
	}
	if err := r.m.Abort(r.ctx()); !errors.Is(err, ErrStep) {
		t.Errorf("abort while the target takes writes: got %v, want ErrStep", err)
	}
	both, stop = r.hammers()
	waitFor(t, "writes at the target", func() bool {
		both[target].mu.Lock()
		defer both[target].mu.Unlock()
		return len(both[target].accepted) > 50
	})
	p, err = r.m.Rollback(r.ctx())
	r.must("rollback", err)
	t.Logf("rolled back: %+v", *p)
	waitFor(t, "writes at the source", func() bool {
		both[source].mu.Lock()
		defer both[source].mu.Unlock()
		return len(both[source].accepted) > 50
	})
	stop()
	apart(t, both[target], both[source])
	r.accounted(slices.Concat(all, both[source].accepted, both[target].accepted))
	if got := r.src.String(`INSERT INTO other ("Order") VALUES (5001) RETURNING id`); got != "102" {
		t.Errorf("the source's sequence goes on at %s, want 102", got)
	}
	r.catchUp() // the way there again
	r.same()

	p, err = r.m.Cutover(r.ctx())
	r.must("cutover again", err)
	t.Logf("cut over again: %+v", *p)
	r.must("finish", r.m.Finish(r.ctx()))
	r.src.Exec("INSERT INTO hits (id) VALUES (-1)") // nobody is kept out any more
	r.dst.Exec("INSERT INTO hits (id) VALUES (-1)")
	for _, db := range []*pgtest.DB{r.src, r.dst} {
		for what, sql := range map[string]string{
			"slots":        "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()",
			"publications": "SELECT count(*) FROM pg_publication",
			"triggers":     "SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'millrace%'",
			"logs":         "SELECT count(*) FROM pg_class WHERE relnamespace = 'millrace'::regnamespace AND relname LIKE 'log\\_%'",
		} {
			if got := db.String(sql); got != "0" {
				t.Errorf("finish leaves %s %s", got, what)
			}
		}
	}
}

// reachedBack is reached for the way back.
func (r *rig) reachedBack() Until { return upTo(r.ctx()) }

var targetFlag = flag.Int("migrate.target", 0, "version of the target's server for TestCutoverKilled and TestJournals; 0 for 17, and for what the seed says")

var killsFlag = flag.Int("migrate.kills", 1, "how often TestCutoverKilled kills at each step of cutover; with more than one, at each of rollback too")

// TestCutoverKilled kills the process at each step of going over and of coming back.
// Whoever comes next finds one side that takes writes, or none and opens it; nothing is
// lost, and the same command goes on.
func TestCutoverKilled(t *testing.T) { bothModes(t, cutoverKilled) }

func cutoverKilled(t *testing.T, mode millrace.Mode) {
	version := 17
	if *targetFlag != 0 {
		version = *targetFlag
	}
	r := newRigBy(t, mode, version, hits, tablesOf("hits", "other")...)
	r.cfg.PauseBudget = 20 * time.Second
	r.renew()
	r.follow()
	steps := []string{"guarded", "armed", "proven", "drained", "held", "fenced", "ahead", "closing", "closed", "opening", "at the fence"}
	if mode == millrace.ModeTrigger && *killsFlag == 1 { // where it differs
		steps = []string{"fenced", "closed"}
	}
	var longest time.Duration
	for n := range *killsFlag * len(steps) {
		step := steps[n%len(steps)]
		before := !slices.Contains([]string{"closed", "opening", "at the fence"}, step)
		r.src.Exec(fmt.Sprintf("INSERT INTO hits (id, note) VALUES (%d, 'before %s')", 1_000_000+n, step))
		longest = max(longest, r.killedAt("cutover", step, source, before))
		if _, err := r.m.Cutover(r.ctx()); err != nil {
			t.Fatalf("cutover after %s: %v", step, err)
		}
		if got := r.dst.String("SELECT count(*) FROM hits WHERE id = $1", 1_000_000+n); got != "1" {
			t.Errorf("%s: the row is %s times at the target", step, got)
		}
		r.dst.Exec(fmt.Sprintf("INSERT INTO hits (id, note) VALUES (%d, 'after %s')", 2_000_000+n, step))
		if *killsFlag > 1 || step == "closing" || step == "closed" || step == "opening" {
			longest = max(longest, r.killedAt("rollback", step, target, before))
		}
		if _, err := r.m.Rollback(r.ctx()); err != nil {
			t.Fatalf("rollback after %s: %v", step, err)
		}
		if got := r.src.String("SELECT count(*) FROM hits WHERE id IN ($1, $2)", 1_000_000+n, 2_000_000+n); got != "2" {
			t.Errorf("%s: %s of the two rows are back at the source", step, got)
		}
		r.same()
	}
	t.Logf("behind a kill, one side took writes after %v at most", longest)
}

// killedAt has a command that takes writers away from a side be killed at a step, and
// wants exactly one side to take writes as soon as somebody looks: before the step at
// which the side closes, that one. It returns how long that took.
func (r *rig) killedAt(command, step string, from side, before bool) time.Duration {
	r.t.Helper()
	cmd, out := r.start(command + ":" + step)
	err := cmd.Wait()
	if cmd.ProcessState.ExitCode() != -1 {
		r.t.Fatalf("%s at %s: the process was not killed: %v\n%s", command, step, err, out)
	}
	if open := r.open(); open[source] && open[target] {
		r.t.Fatalf("%s at %s: both sides take writes", command, step)
	}
	waitFor(r.t, "what the killed process held to be free", func() bool {
		free := "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'millrace migrate%' AND datname = current_database()"
		return r.src.String(free) == "0" && r.dst.String(free) == "0"
	})
	began := time.Now()
	way, err := r.m.inUse(r.ctx())
	took := time.Since(began)
	r.must(fmt.Sprintf("look who takes writes after %s at %s", command, step), err)
	active := from
	if !before {
		active = from.other()
	}
	if (active == source) != (way.base == "") {
		r.t.Errorf("%s at %s: writers are at the wrong side", command, step)
	}
	if open := r.open(); open[source] == open[target] || !open[active] {
		r.t.Fatalf("%s at %s: open at %v, want the %s alone", command, step, open, active)
	}
	if took > r.cfg.PauseBudget {
		r.t.Errorf("%s at %s: one side took writes after %v, the budget is %v", command, step, took, r.cfg.PauseBudget)
	}
	return took
}

// open tells which sides take writes, by their gates.
func (r *rig) open() map[side]bool {
	r.t.Helper()
	all := make(map[side]bool)
	for where, pool := range map[side]*pgxpool.Pool{source: r.src.Pool, target: r.dst.Pool} {
		var there bool
		gate := `millrace."gate_` + r.cfg.Name + `"`
		r.must("look for the gate", pool.QueryRow(r.ctx(), "SELECT to_regclass($1) IS NOT NULL", gate).Scan(&there))
		if !there {
			all[where] = where == source
			continue
		}
		var open bool
		r.must("read the gate", pool.QueryRow(r.ctx(), "SELECT last_value % 2 = 1 FROM "+gate).Scan(&open))
		all[where] = open
	}
	return all
}

// TestOverBudget holds a table longer than the budget: writers go on at the source, and
// nothing has changed.
func TestOverBudget(t *testing.T) {
	r := newRig(t, 15, hits, tablesOf("hits", "other")...)
	r.cfg.PauseBudget = 300 * time.Millisecond
	r.renew()
	r.follow()
	if _, err := r.m.Rehearse(r.ctx()); err != nil && !errors.Is(err, ErrBudget) { // a busy machine
		t.Fatal(err)
	}
	tx, err := r.src.Pool.Begin(r.ctx())
	r.must("begin", err)
	if _, err := tx.Exec(r.ctx(), "UPDATE other SET id = id WHERE id = 1"); err != nil {
		t.Fatal(err)
	}
	// The way back has to have been made: that waits for nobody at the source.
	if _, err := r.m.Cutover(r.ctx()); !errors.Is(err, ErrBudget) {
		t.Errorf("cutover beside a long transaction: got %v, want ErrBudget", err)
	}
	r.must("commit", tx.Commit(r.ctx()))
	r.src.Exec("INSERT INTO hits (id) VALUES (77)")
	if open := r.open(); !open[source] || open[target] {
		t.Errorf("open: %v, want the source alone", open)
	}
	r.src.Exec("BEGIN; INSERT INTO hits (id) VALUES (78); PREPARE TRANSACTION 'left'")
	if _, err := r.m.Cutover(r.ctx()); !errors.Is(err, ErrBlocked) || !strings.Contains(err.Error(), "left") {
		t.Errorf("cutover beside a prepared transaction: got %v, want ErrBlocked and its name", err)
	}
	r.src.Exec("COMMIT PREPARED 'left'")
	r.catchUp()
	r.same()
	r.must("abort", r.m.Abort(r.ctx()))
	r.dst.Exec("INSERT INTO hits (id) VALUES (79)")
}

// TestGate wants writes to be denied to every role and in every way on the side that
// does not take them, and nowhere else.
func TestGate(t *testing.T) {
	r := newRig(t, 15, hits, tablesOf("hits", "other")...)
	r.cfg.PauseBudget = 20 * time.Second
	r.renew()
	r.follow()
	if _, err := r.m.Rehearse(r.ctx()); err != nil {
		t.Fatal(err)
	}
	role := "app_" + r.cfg.Name
	for _, db := range []*pgtest.DB{r.src, r.dst} {
		db.Exec("CREATE ROLE " + role + "; GRANT ALL ON hits, other TO " + role)
		t.Cleanup(func() { db.Exec("DROP OWNED BY " + role + "; DROP ROLE " + role) })
	}
	for _, c := range []struct {
		before, sql string
		source      bool // takes it
	}{
		{"", "INSERT INTO hits (id) VALUES (1)", true},
		{"SET ROLE " + role, "INSERT INTO hits (id) VALUES (2)", true},
		{"SET session_replication_role = replica", "UPDATE hits SET note = 'x' WHERE id = -1", true},
		{"", "DELETE FROM hits WHERE id = -2", true},
		{"", "TRUNCATE other", true},
		{"", "WITH w AS (INSERT INTO hits (id) VALUES (3) RETURNING id) SELECT id FROM w", true},
		{"SET millrace.applier = 'a guess'", "INSERT INTO hits (id) VALUES (4)", false},
		{"SET ROLE " + role, "SELECT count(*) FROM hits", true},
	} {
		for where, db := range map[side]*pgtest.DB{source: r.src, target: r.dst} {
			conn, err := pgx.Connect(r.ctx(), db.URL)
			r.must("connect", err)
			if c.before != "" {
				_, err = conn.Exec(r.ctx(), c.before)
				r.must(c.before, err)
			}
			_, err = conn.Exec(r.ctx(), c.sql)
			takes := where == source && c.source || strings.HasPrefix(c.sql, "SELECT")
			if takes && err != nil || !takes && code(err) != "25006" {
				t.Errorf("%s; %s at the %s: got %v, want it taken: %v", c.before, c.sql, where, err, takes)
			}
			r.must("close", conn.Close(r.ctx()))
		}
	}
	r.catchUp()
	r.same()
}

// TestFollowGoesOn has a process follow while writers go over and come back: it lets
// go, and goes on in the other direction.
func TestFollowGoesOn(t *testing.T) {
	r := newRig(t, 15, hits, tablesOf("hits", "other")...)
	r.cfg.PauseBudget = 20 * time.Second
	r.renew()
	r.follow()
	ctx, stop := context.WithCancel(r.ctx())
	done := make(chan error, 1)
	go func() { done <- r.m.Follow(ctx, Forever) }()
	arrives := func(from, to *pgtest.DB, id int) {
		t.Helper()
		from.Exec(fmt.Sprintf("INSERT INTO hits (id) VALUES (%d)", id))
		waitFor(t, fmt.Sprintf("row %d to arrive", id), func() bool { return to.String("SELECT count(*) FROM hits WHERE id = $1", id) == "1" })
	}
	arrives(r.src, r.dst, 1)
	_, err := r.m.Cutover(r.ctx())
	r.must("cutover beside a process that follows", err)
	arrives(r.dst, r.src, 2)
	_, err = r.m.Rollback(r.ctx())
	r.must("rollback beside a process that follows", err)
	arrives(r.src, r.dst, 3)
	stop()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("follow ended with %v", err)
	}
	r.same()
}

// TestPartitionedAndBack goes over to a table that is partitioned by an expression, so
// that no key holds over all partitions, and back: with rows that change partition.
func TestPartitionedAndBack(t *testing.T) { bothModes(t, partitionedAndBack) }

func partitionedAndBack(t *testing.T, mode millrace.Mode) {
	r := newRigBy(t, mode, 15, dns, append(tablesOf("zones"), Table{From: public("Records"), PartitionBy: "mod(zone_id, 4)", PartitionCount: 4})...)
	r.cfg.PauseBudget = 20 * time.Second
	r.renew()
	r.follow()
	// What goes over while the way back keeps changes already never comes back on it.
	r.m.passed = func(step string) {
		if step == "armed" {
			r.src.Exec(`UPDATE "Records" SET ttl = ttl + 1 WHERE id % 9 = 0`)
		}
	}
	if _, err := r.m.Cutover(r.ctx()); err != nil {
		t.Fatal(err)
	}
	r.m.passed = nil
	r.must("follow back", r.m.Follow(r.ctx(), r.reachedBack()))
	if got := r.src.String("SELECT count(*) FROM millrace.migration_batch WHERE name LIKE '%_back'"); got != "0" {
		t.Errorf("%s batches came back before anybody wrote at the target", got)
	}
	r.dst.Exec(`UPDATE "Records" SET zone_id = zone_id + 1, "order" = NULL WHERE id % 3 = 0; UPDATE "Records" SET content = 'short' WHERE id % 10 = 0;
		BEGIN; UPDATE "Records" SET zone_id = zone_id + 1 WHERE id % 6 = 0; UPDATE "Records" SET zone_id = zone_id - 1 WHERE id % 6 = 0; COMMIT;
		DELETE FROM "Records" WHERE id % 7 = 0; INSERT INTO "Records" (zone_id, type) SELECT n, 'A' FROM generate_series(2000, 2100) n`)
	r.must("follow back", r.m.Follow(r.ctx(), r.reachedBack()))
	r.same()
	certificate, err := r.m.Verify(r.ctx())
	tables := 6 // a partition each
	if mode == millrace.ModeTrigger {
		tables = 2
	}
	if err != nil || !certificate.Equal || len(certificate.Tables) != tables {
		t.Errorf("verify the way back: %v, %+v", err, certificate)
	}
	if _, err := r.src.Pool.Exec(r.ctx(), `UPDATE "Records" SET ttl = 1 WHERE id = 1`); code(err) != "25006" {
		t.Errorf("a write at the source: got %v, want it denied", err)
	}
	// A statement for a partition by its own name is denied too, wherever it is closed.
	if _, err := r.m.Rollback(r.ctx()); err != nil {
		t.Fatal(err)
	}
	if _, err := r.dst.Pool.Exec(r.ctx(), `INSERT INTO "Records_1" (id, zone_id, type) VALUES (1000000, 1, 'A')`); code(err) != "25006" {
		t.Errorf("a write to a partition at the target: got %v, want it denied", err)
	}
	r.src.Exec(`INSERT INTO "Records" (zone_id, type) VALUES (1, 'A')`)
	r.catchUp()
	r.same()
}
