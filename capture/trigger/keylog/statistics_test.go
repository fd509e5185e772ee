package keylog

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/millrace-db/millrace"
)

// A writer that fires no trigger is found by the rows it wrote; statements that fail
// are a suspicion only; and all that is logged is none.
func TestWatch(t *testing.T) {
	r := newRig(t, `create table a (x int, y text, v int unique, primary key (y, x)); create table p (id int primary key, v int) partition by range (id);
		create table p1 partition of p for values from (0) to (1000); insert into a values (1, 'k', 1), (2, 'k', 2), (3, 'k', 3); insert into p values (1, 1)`, "a", "p")
	writer := r.connect(r.URL)
	statistics := func(statements string) {
		t.Helper()
		for _, s := range strings.Split(statements, "; ") {
			if _, err := writer.Exec(r.ctx(), s); err != nil && code(err) != "23505" { // unique_violation is meant
				t.Fatalf("%s: %v", s, err)
			}
		}
		// Every backend reports at the end of a transaction, a second after its
		// last report; older servers only to a collector.
		mustExec(t, writer, "create table if not exists last (n int); insert into last values (1)")
		for deadline := time.Now().Add(limit); r.String("select n_tup_ins from pg_stat_user_tables where relname = 'last'") != r.String("select count(*) from last"); {
			if time.Now().After(deadline) {
				t.Fatal("the statistics do not come")
			}
			if _, err := writer.Exec(r.ctx(), "select pg_sleep(0.05)"); err != nil {
				t.Fatal(err)
			}
		}
	}
	w, err := NewWatch("s")
	if err != nil {
		t.Fatal(err)
	}
	w.anewIn = 0
	// looks takes the two looks that a suspicion needs.
	looks := func() ([]Suspect, error) {
		t.Helper()
		clear(w.asked) // asking takes long on a loaded machine, and then is not done again soon
		if s, err := w.Look(r.ctx(), r.conn); err != nil || len(s) > 0 {
			t.Fatalf("first look: %v, %v", s, err)
		}
		return w.Look(r.ctx(), r.conn)
	}
	statistics("select 1")
	if s, err := looks(); err != nil || len(s) > 0 {
		t.Errorf("at the beginning: %v, %v", s, err)
	}

	statistics("insert into a values (4, 'k', 4); update a set v = -v; update a set x = 9 where x = 1; delete from a where x = 2; begin; insert into a values (5, 'k', 5); rollback; insert into p select g, g from generate_series(10, 90) g; update p set v = 0; begin; truncate a; rollback")
	if s, err := looks(); err != nil || len(s) > 0 {
		t.Errorf("after logged changes: %v, %v", s, err)
	}
	statistics("vacuum full a; cluster p1 using p1_pkey; alter table p add w int default 5")
	if s, err := looks(); err != nil || len(s) > 0 {
		t.Errorf("after rewrites: %v, %v", s, err)
	}

	statistics("insert into a values (6, 'k', 6), (3, 'k', 7)")
	s, err := looks()
	if err != nil || len(s) != 1 || s[0].Table != r.log("a").Table.ID || s[0].Missing != 2 {
		t.Errorf("after a statement that failed: %v, %v", s, err)
	}
	if s, err := looks(); err != nil || len(s) > 0 {
		t.Errorf("the same again: %v, %v", s, err)
	}
	statistics("insert into a values (8, 'k', 8), (3, 'k', 9)")
	for range 2 {
		w.asked[r.log("a").ID] = time.Now().Add(time.Hour)
		if s, err := w.Look(r.ctx(), r.conn); err != nil || len(s) > 0 {
			t.Errorf("soon after rows were asked: %v, %v", s, err)
		}
	}
	clear(w.asked)
	if s, err := w.Look(r.ctx(), r.conn); err != nil || len(s) != 1 || s[0].Missing != 2 {
		t.Errorf("later: %v, %v", s, err)
	}

	l := r.log("a")
	statistics("delete from " + l.Segment(0) + "; delete from " + l.Segment(1) + "; delete from " + l.Segment(2))
	if s, err := w.Look(r.ctx(), r.conn); err != nil || len(s) != 1 || s[0].Missing != 0 || !strings.Contains(s[0].Text, "log") {
		t.Errorf("after somebody has deleted from the log: %v, %v", s, err)
	}

	// In the place of a tool that writes below SQL: while pg_class says that the table
	// has no triggers none fires, and they are as they were left afterwards.
	silently := func(table, statement string) string {
		const tell = "update pg_class set relhastriggers = V where oid = 'T'::regclass"
		return strings.NewReplacer("T", table, "V", "false").Replace(tell) + "; " + statement + "; " + strings.NewReplacer("T", table, "V", "true").Replace(tell)
	}
	statistics(silently("a", "delete from a where x = 9"))
	if s, err := looks(); err != nil || len(s) != 1 || s[0].Missing != 1 || !strings.Contains(s[0].Text, "public.a") {
		t.Errorf("after a delete without triggers: %v, %v", s, err)
	}
	statistics(silently("a", "insert into a values (78, 'new', 78)"))
	if s, err := looks(); !errors.Is(err, ErrUnlogged) || !millrace.NeedsOperator(err) || !strings.Contains(err.Error(), "public.a") || !strings.Contains(err.Error(), "new, 78") || !strings.Contains(err.Error(), "mend: ") {
		t.Errorf("after an insert without triggers: %v, %v", s, err)
	}
	statistics(silently("p1", "begin; savepoint x; update p set v = 8 where id = 1; release x; commit"))
	if s, err := looks(); !errors.Is(err, ErrUnlogged) || !strings.Contains(err.Error(), "(1)") {
		t.Errorf("after an update without triggers: %v, %v", s, err)
	}
	r.intact()
}
