package wal

import (
	"testing"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/pgtest"
)

func TestFirstCopyThenStream(t *testing.T) {
	db := pgtest.New(t)
	db.Exec(`create table a (id int primary key, v text, n numeric);
		create table b (x int, y text, primary key (y, x));
		create table empty (id int primary key);
		insert into a select i, case when i % 3 = 0 then null else E'tab\tnew\nback\\slash ' || i end, i / 7.0 from generate_series(1, 25000) i;
		insert into b values (1, 'one'), (2, '')`)
	r := newRig(t, db, nil, "a", "b", "empty")
	r.open()
	units := r.copied()
	if got, want := units[0].kinds(), "schema load_begin schema load_begin schema load_begin"; got != want {
		t.Errorf("first unit: got %s, want %s", got, want)
	}
	last := units[len(units)-1]
	if got := last.count(millrace.KindLoadEnd); got != 3 {
		t.Errorf("the last unit has %d ends of loads, want all 3", got)
	}
	for _, u := range units {
		if u.position != units[0].position || u.position.LSN == 0 || u.bytes > 2*chunkBytes {
			t.Errorf("unit of the copy at %v with %d bytes", u.position, u.bytes)
		}
	}
	r.equal()

	db.Exec(`insert into a values (0, 'zero', 1.50); update a set v = 'x' where id <= 3; delete from a where id = 4;
		update b set y = 'two' where x = 2; insert into empty values (1)`)
	r.sync()
	r.equal()
	db.Exec("begin; insert into a values (-1); insert into b values (3, 'c'); commit")
	units = r.sync()
	if len(units) != 1 || units[0].count(millrace.KindPut) != 2 {
		t.Errorf("a transaction came as %d units", len(units))
	}
	r.equal()
	r.restart()
	db.Exec("update a set n = id")
	r.sync()
	r.equal()
}
