package trigger

import (
	"fmt"
	"strings"
	"testing"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/internal/pgtest"
)

// step is a change at the source, the entries of the window that brings it, and the
// loads that it begins.
type step struct{ sql, entries, loads string }

// play does steps and compares the edge with the source after each that leaves the
// tables as they are.
func (r *rig) play(steps ...step) {
	r.t.Helper()
	for _, s := range steps {
		r.db.Exec(s.sql)
		a := r.next()
		if got := a.String(); got != s.entries {
			r.t.Errorf("%s: got entries %s, want %s", s.sql, got, s.entries)
		}
		if got := r.edge.loads(); got != s.loads {
			r.t.Errorf("%s: got loads %q, want %q", s.sql, got, s.loads)
		}
		if !strings.Contains(s.entries, "schema") && !strings.Contains(s.entries, "load") {
			r.equal()
		}
	}
}

// A window has each changed key once, whatever was done to it.
func TestWindow(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(`create table a (id int primary key, v text, d int generated always as (id * 2) stored);
		create table "We ird" ("Key ""1" text, b date, v numeric, primary key (b, "Key ""1"))`)
	r := newRig(t, db, nil, "a", "We ird")
	if got, want := r.begin().String(), "schema:2 load_begin:2"; got != want {
		t.Errorf("first window: got %s, want %s", got, want)
	}
	if got, want := r.edge.loads(), "a: first copy; We ird: first copy"; got != want {
		t.Errorf("loads: got %q, want %q", got, want)
	}
	r.play(
		step{"insert into a select i, 'v' || i from generate_series(1, 10) i", "put:10", ""},
		step{"update a set v = 'w' where id < 4; update a set v = 'x' where id < 3; delete from a where id = 1", "put:2 delete:1", ""},
		step{"update a set id = id + 100 where id > 5", "put:5 delete:5", ""},
		step{`insert into "We ird" values ('k', '2024-01-01', 1.0), ('l', '2024-01-01', null); insert into a values (200, null)`, "put:3", ""},
		step{"truncate a; insert into a values (1, 'after')", "put:1 truncate:1", ""},
		step{"insert into a values (7, '7'); truncate a", "delete:1 truncate:1", ""},
		step{"truncate a", "truncate:1", ""},
		step{"begin; insert into a values (1, 'v'); savepoint s; insert into a values (2, 'v'); rollback to s; insert into a values (3, 'v'); commit", "put:2", ""},
	)
	p := r.edge.at.Position
	if p.Mode != millrace.ModeTrigger || p.SystemID == 0 || p.Validate() != nil {
		t.Errorf("position %v", p)
	}
	tick := db.String("select counts->'tables'->>($1::regclass::oid::text) from millrace.tick where tick = $2::bigint and snapshot = $3", "a", fmt.Sprint(p.Tick), p.Snapshot)
	if !strings.Contains(tick, `"keys": 2`) || !strings.Contains(tick, `"inserted": 2`) {
		t.Errorf("tick %d has counts %s", p.Tick, tick)
	}
	// Units are given out once, and nothing is left behind.
	if got := r.restart().String(); got != "heartbeat:1" {
		t.Errorf("after a restart: got %s, want a heartbeat", got)
	}
}

// Altered tables are described anew, and loaded where rows that are stored have become
// others without being changed.
func TestAltered(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(`create type mood as enum ('sad', 'ok');
		create table a (id int primary key, v varchar(10), m mood, n int, o int, g int generated always as (n + 1) stored)`)
	r := newRig(t, db, nil, "a")
	r.begin()
	r.edge.loads()
	db.Exec("insert into a values (1, 'v', 'sad', 1, 1)")
	r.next()
	r.play(
		step{"alter table a add column w text; insert into a values (2, 'v', 'ok', 2, 2)", "put:1 schema:1", ""},
		step{"alter table a alter column v type varchar(20); update a set v = v", "put:2 schema:1", ""},
		step{"alter table a add column x int default 7; update a set n = 3 where id = 1", "put:1 schema:1 load_begin:1", "a: column x came with a value for the rows that were there before"},
		step{"alter table a rename column w to ww; update a set n = 3 where id = 1", "put:1 schema:1 load_begin:1", "a: column w was renamed to ww"},
		step{"alter table a drop column ww; update a set n = 3 where id = 1", "put:1 schema:1 load_begin:1", "a: column ww was dropped"},
		step{"alter type mood add value 'fine'; update a set n = 3 where id = 1", "put:1 schema:1", ""},
		step{"alter type mood rename value 'sad' to 'blue'; update a set n = 4 where id = 1", "put:1 schema:1 load_begin:1", "a: a label of enum mood was renamed"},
		step{"alter table a alter column o type int using o + 1; update a set v = 'z' where id = 1", "put:1 load_begin:1", "a: " + rewritten},
		step{"alter table a alter column g drop expression; update a set v = 'z' where id = 1", "put:1 schema:1 load_begin:1", "a: a column that was generated is not any more"},
		step{"alter table a rename to b; insert into b values (9, 'b')", "put:1 schema:1", ""},
		step{"create schema other; alter table b set schema other; insert into other.b values (10, 'b')", "put:1 schema:1", ""},
	)
	// What a crash would take without a word is not captured.
	db.Exec("alter table other.b set unlogged; insert into other.b values (12, 'b')")
	_ = r.fails(capture.ErrTable)
	db.Exec("alter table other.b set logged")
	c := r.c.cfg
	c.Tables, c.Registerer = []string{"other.b"}, nil
	r.close()
	r.configure(c)
	r.restart()
	// The key goes.
	db.Exec("alter table other.b drop constraint a_pkey; insert into other.b values (11, 'b')")
	_ = r.fails(capture.ErrTable)
}
