package wal

import (
	"fmt"
	"testing"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture/chunk"
	"github.com/millrace-db/millrace/internal/pgtest"
)

// A worker that comes upon an altered table lets it be described in the stream as it is
// when the stream gets there. What is altered after the worker has looked, and passes
// before its message, is not taken back.
func TestAlteredBehindAWorkersBack(t *testing.T) {
	db := pgtest.New(t)
	register(t, db)
	db.Exec("create type p as (x int, y text); create table a (id int primary key, p p); insert into a values (1, row(1, 'y')::p)")
	r := newRig(t, db, nil, "a")
	r.open()
	r.copied()
	if err := r.src.RequestLoad(r.ctx(), "public.a", "asked"); err != nil {
		t.Fatal(err)
	}
	r.sync()
	// The worker's last statement says how far it has come: its lock was not to be had in
	// time, or it has looked the table up and is about to write its message, for which it
	// needs what is locked here.
	const gaveUp = "ROLLBACK"
	last := gaveUp
	for n := 0; last == gaveUp; n++ {
		s := r.client()
		s.exec(fmt.Sprintf("begin; alter table a add column w%d int", n))
		r.src.PauseLoads(false)
		until(t, "a worker waits for the table", func() bool {
			return db.String("select count(*) from pg_locks where relation = 'a'::regclass and not granted") == "1"
		})
		func() {
			r.src.loads.mu.Lock()
			defer r.src.loads.mu.Unlock()
			s.exec("commit")
			until(t, "the worker has come to its next step", func() bool {
				last = db.String("select query from pg_stat_activity where datname = current_database() and application_name = 'millrace load' and state = 'idle'")
				return last != ""
			})
			if last != gaveUp {
				db.Exec("alter type p add attribute z int cascade")
			}
		}()
		r.src.PauseLoads(true)
		r.sync()
	}
	r.load()
	conn := r.pinned()
	if err := r.equalJSON(conn, "a"); err != nil {
		t.Error(err)
	}
}

// A column comes with a type that is altered before the stream has got to the column:
// the catalogs describe the type as it is by then, and the rows that were sent before
// the alteration are not like that.
func TestTypeAheadOfItsRows(t *testing.T) {
	db := pgtest.New(t)
	register(t, db)
	db.Exec("create type p as (x int, y text); create type e as enum ('a', 'b'); create table a (id int primary key); create table b (id int primary key); create table c (id int primary key, e e); insert into c values (1, 'b')")
	r := newRig(t, db, func(c *Config) { c.Heartbeat = 20 * time.Millisecond }, "a", "b", "c")
	r.c.watchInterval = 20 * time.Millisecond
	r.open()
	r.copied()
	r.kept("first copy")
	r.close()
	for _, sql := range []string{
		"alter table a add column p p", "insert into a values (1, row(1, 'y')::p)", "alter type p add attribute z int cascade", "insert into a values (2, row(1, 'y', 2)::p)", "alter type p add attribute w int cascade", "insert into a values (3, row(1, 'y', 2, 3)::p)",
		"alter table b add column e e[]", "insert into b values (1, '{a,b}')", "alter type e rename value 'a' to 'z'", "insert into b values (2, '{z,b}')",
	} {
		db.Exec(sql)
	}
	r.open()
	r.sync()
	if got, want := fmt.Sprint(r.load()), "[a: type p was altered b: type e was altered c: a label of enum e was renamed]"; got != want {
		t.Errorf("loads were begun because of %s, want %s", got, want)
	}
	conn := r.pinned()
	for _, name := range []string{"a", "b", "c"} {
		if err := r.equalJSON(conn, name); err != nil {
			t.Error(err)
		}
	}
}

// What a description can have been ahead of is told by what its look-up saw.
func TestDoubt(t *testing.T) {
	before, behind := chunk.Snapshot{Xmin: 10, Xmax: 10}, chunk.Snapshot{Xmin: 11, Xmax: 11}
	running := chunk.Snapshot{Xmin: 10, Xmax: 11, Running: []chunk.XID{10}}
	type snapshots = map[millrace.TableID]chunk.Snapshot
	none, may, must := cause{}, cause{ahead: "x"}, cause{text: "x", ahead: "x"}
	for _, c := range []struct {
		name        string
		first       chunk.Snapshot
		under, read snapshots
		asSent      bool
		want        cause
	}{
		{"described before it", behind, snapshots{1: before}, nil, false, none},
		{"described while it ran", behind, snapshots{1: running}, nil, false, none},
		{"described behind it", before, snapshots{1: behind}, nil, false, must},
		{"and read before it", before, snapshots{1: behind}, snapshots{1: before}, false, must},
		{"and read behind it", before, snapshots{1: behind}, snapshots{1: behind}, false, none},
		{"by those before us", behind, snapshots{2: before}, nil, false, may},
		{"by those before us, before it", before, snapshots{2: behind}, nil, false, none},
		{"by those before us, and read behind it", behind, nil, snapshots{1: behind}, false, none},
		{"as sent", behind, snapshots{1: behind}, nil, true, none},
	} {
		d := testDecoder(t, nil)
		d.begin.xid, d.loads.first, d.under, d.read, d.asSent = 10, c.first, c.under, c.read, c.asSent
		if got := d.doubt(1, may); got != c.want {
			t.Errorf("%s: got %+v, want %+v", c.name, got, c.want)
		}
	}
}
