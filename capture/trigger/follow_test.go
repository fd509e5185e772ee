package trigger

import (
	"strings"
	"testing"

	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/capture/trigger/keylog"
	"github.com/millrace-db/millrace/internal/pgtest"
)

// Rows of partitions come and go without being logged; the partitions tell.
func TestPartitions(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(`create table p (id int primary key, v text) partition by range (id);
		create table p1 partition of p for values from (0) to (10); create table p2 partition of p for values from (10) to (20) partition by range (id);
		create table p21 partition of p2 for values from (10) to (15); create table p22 partition of p2 for values from (15) to (20);
		create table a (id int primary key)`)
	r := newRig(t, db, nil, "p", "a")
	r.begin()
	r.edge.loads()
	r.play(
		step{"insert into p select i, 'v' from generate_series(1, 19) i", "put:19", ""},
		step{"delete from p where id in (14, 19); update p set id = id + 10 where id = 4; update p21 set v = 'w' where id = 12; delete from p22 where id = 18", "put:2 delete:3", ""},
		step{"create table p0 partition of p for values from (-10) to (0); insert into p values (-1, 'v')", "put:1", ""}, // it came empty, and that was noted
		step{"alter table p detach partition p0; insert into p values (4, 'v')", "put:1 load_begin:1", "p: a partition came or went"},
		step{"insert into p0 values (-2, 'v'); alter table p attach partition p0 for values from (-10) to (0); update p set v = 'z' where id = 16", "put:1 load_begin:1", "p: a partition came or went"},
		step{"truncate p21; insert into p values (11, 'v')", "put:1 load_begin:1", "p: " + rewritten},
		step{"truncate p; insert into p values (11, 'v')", "put:1 truncate:1", ""},
		step{"truncate p; insert into p values (11, 'v'); truncate p21; insert into p21 values (12, 'v')", "put:1 delete:1 truncate:1", ""},
		step{"insert into p values (5, 'v'); drop table p1; insert into p values (13, 'v')", "put:1 delete:1 load_begin:1", "p: a partition came or went"},
		step{"begin; alter table p detach partition p2; alter table p attach partition p2 for values from (10) to (20); insert into p values (14, 'v'); commit", "put:1 load_begin:1", "p: a partition came or went"},
	)
}

// A table that was rewritten is loaded again, unless it is known that its rows are
// still the same.
func TestRewritten(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec("create table a (id int primary key, v text)")
	r := newRig(t, db, nil, "a")
	r.begin()
	r.exec("insert into a select i, 'v' from generate_series(1, 5) i")
	r.edge.loads()
	db.Exec("vacuum full a")
	r.play(step{"update a set v = 'w' where id = 1", "put:1", ""})
	db.Exec("cluster a using a_pkey")
	r.close() // also between two sources
	db.Exec("update a set v = 'w' where id = 2")
	r.open()
	if got := r.next().String(); got != "put:1" {
		t.Errorf("after CLUSTER: got %s", got)
	}
	r.equal()
	r.play(step{"alter table a alter column v type text using v || ''; update a set v = 'x' where id = 1", "put:1 load_begin:1", "a: " + rewritten})
	db.Exec("alter event trigger millrace_note_rewrite disable")
	r.play(step{"update a set v = 'w' where id = 2", "put:1", ""})
	db.Exec("vacuum full a")
	r.play(step{"update a set v = 'w' where id = 3", "put:1 load_begin:1", "a: " + rewritten})
	r.play(step{"truncate a; insert into a values (1, 'v')", "put:1 truncate:1", ""})
}

// Tables join and leave with the configuration, and a table that was dropped and made
// again is another.
func TestJoinAndLeave(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec("create table a (id int primary key, v text); create table b (id int primary key, v text); create table c (id int primary key, v text)")
	r := newRig(t, db, nil, "a", "b")
	r.begin()
	r.exec("insert into a values (1, 'v'); insert into b values (1, 'v')")
	r.edge.loads()
	r.close()
	cfg := r.c.cfg
	cfg.Tables = []string{"public.a", "public.c"}
	r.configure(cfg)
	if err := r.openFails(keylog.ErrNotInstalled); !strings.Contains(err.Error(), "public.c") {
		t.Errorf("got %v", err)
	}
	if err := r.c.Install(r.ctx()); err != nil {
		t.Fatal(err)
	}
	db.Exec("insert into a values (2, 'v'); insert into c values (7, 'not loaded here')")
	r.open()
	if got, want := r.next().String(), "put:1 schema:1 load_begin:1 drop:1"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got := r.edge.loads(); got != "c: it joined the stream" {
		t.Errorf("loads: %q", got)
	}
	db.Exec("delete from c")
	r.next()
	r.exec("insert into c values (1, 'v'); insert into b values (9, 'of no interest')")

	db.Exec("drop table c; create table c (id int primary key, v text)")
	r.due()
	if err := r.fails(capture.ErrTables); !strings.Contains(err.Error(), "public.c") {
		t.Errorf("got %v", err)
	}
	_ = r.openFails(keylog.ErrNotInstalled)
	if err := r.c.Install(r.ctx()); err != nil {
		t.Fatal(err)
	}
	if got, want := r.restart().String(), "schema:1 load_begin:1 drop:1"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	r.exec("insert into c values (1, 'v')")

	// Which name a renamed table has is for the configuration to say.
	db.Exec("alter table c rename to d")
	r.exec("insert into d values (2, 'v')")
	r.close()
	_ = r.openFails(capture.ErrTables)
	cfg.Tables[1] = "public.d"
	r.configure(cfg)
	r.restart()
	r.exec("insert into d values (3, 'v')")
	// Two names are exchanged in one transaction.
	r.exec("begin; alter table a rename to x; alter table d rename to a; alter table x rename to d; insert into a values (4, 'v'); insert into d values (9, 'v'); commit")
}

// Columns and rows are chosen; another choice loads the table again.
func TestChoice(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec("create table a (id int primary key, v text, n int, secret text)")
	r := newRig(t, db, func(c *Config) {
		c.Columns = map[string][]string{"public.a": {"id", "n"}}
		c.Where = map[string]string{"public.a": "n > 0"}
	}, "a")
	r.begin()
	r.edge.loads()
	r.play(
		step{"insert into a values (1, 'v', 1, 's'), (2, 'v', 0, 's'), (3, 'v', null, 's')", "put:1 delete:2", ""},
		step{"update a set n = 1 - n", "put:1 delete:2", ""},
		step{"update a set id = 5 where id = 2", "put:1 delete:1", ""},
	)
	r.close()
	cfg := r.c.cfg
	cfg.Columns = nil
	r.configure(cfg)
	if got, want := r.restart().String(), "schema:1 load_begin:1"; got != want {
		t.Errorf("other columns: got %s, want %s", got, want)
	}
	if got := r.edge.loads(); !strings.HasPrefix(got, "a: ") {
		t.Errorf("loads: %q", got)
	}
	r.close()
	for _, where := range []string{"n > (select 1)", "n > random()", "nothing > 1", "n"} {
		cfg.Where = map[string]string{"public.a": where}
		r.configure(cfg)
		if err := r.c.Install(r.ctx()); err == nil || !strings.Contains(err.Error(), "source.where") {
			t.Errorf("where %s: got %v", where, err)
		}
		found, err := r.c.Check(r.ctx())
		if err != nil || len(found) != 1 || !strings.Contains(found[0].Text, "source.where") {
			t.Errorf("where %s: check has %v, %v", where, found, err)
		}
	}
}

// A trigger that does not fire for a time stops the stream, also if it fires again by
// now, and init mends that with a load.
func TestTampered(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec("create table a (id int primary key, v text)")
	r := newRig(t, db, nil, "a")
	r.begin()
	r.exec("insert into a values (1, 'v')")
	r.edge.loads()
	db.Exec("begin; alter table a disable trigger user; insert into a values (2, 'unlogged'); alter table a enable always trigger millrace_1_i; commit")
	db.Exec("insert into a values (3, 'logged')")
	if err := r.fails(keylog.ErrTriggers); !strings.Contains(err.Error(), "ALTER TABLE by postgres") {
		t.Errorf("who did it is not told: %v", err)
	}
	_ = r.openFails(keylog.ErrTriggers)
	if err := r.c.Install(r.ctx()); err != nil {
		t.Fatal(err)
	}
	r.restart()
	if got := r.edge.loads(); !strings.Contains(got, "a: changes of it may not have been logged: trigger") {
		t.Errorf("loads: %q", got)
	}
	r.restart()
	if got := r.edge.loads(); got != "" {
		t.Errorf("loads after another start: %q", got)
	}
	if err := r.c.Uninstall(r.ctx()); err != nil {
		t.Fatal(err)
	}
	db.Exec("insert into a values (4, 'nobody logs it')")
	r.due()
	_ = r.fails(keylog.ErrNotInstalled)
}

// While a key column has another name, writers log NULL for it. When it has its own
// again nothing at the source is amiss, and the keys are gone all the same.
func TestKeyRenamedForATime(t *testing.T) {
	db := pgtest.New(t)
	db.Exec("create table a (id int, at int, v text, primary key (id, at))")
	r := newRig(t, db, nil, "a")
	r.begin()
	r.exec("insert into a values (1, 1, 'v'), (2, 1, 'v')")
	r.edge.loads()
	db.Exec("alter table a rename at to other; update a set v = 'w' where id = 1; alter table a rename other to at; update a set v = 'w' where id = 2")
	if got := r.next().String(); got != "put:1 load_begin:1" {
		t.Errorf("got %s, want a load", got)
	}
	if got := r.edge.loads(); !strings.Contains(got, "a: a column of its key had another name") {
		t.Errorf("loads: %q", got)
	}
	db.Exec("update a set v = 'x'")
	r.next()
	r.equal()
}
