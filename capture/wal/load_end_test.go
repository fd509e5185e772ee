package wal

import (
	"testing"

	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/internal/pgtest"
)

// A load whose last row with missing columns goes, or comes whole, by a change
// has nothing left to read, and ends all the same.
func TestLoadEndsByAChange(t *testing.T) {
	for name, sql := range map[string]string{
		"deleted":   "delete from a where id = 1",
		"whole":     "update a set big = 'w' where id = 1",
		"truncated": "truncate a",
	} {
		t.Run(name, func(t *testing.T) {
			db := pgtest.New(t)
			db.Exec(`create table a (id int primary key, n int, v text, big text) with (fillfactor = 50); alter table a alter big set storage external;
				insert into a select i, 0, repeat('v', 500), case when i = 1 then repeat('y', 3000) end from generate_series(1, 60) i`)
			r := newRig(t, db, nil, "a")
			r.c.chunks.Blocks = 4
			r.openHeld(true)
			r.sync() // the load begins
			r.oneChunk("a")
			// The row stays in a block that has been read.
			db.Exec("update a set n = 1 where id = 1")
			r.sync()
			until(t, "all blocks are read", func() bool {
				r.oneChunk("a")
				l := r.src.Loads()
				return len(l) == 1 && l[0].Blocks > 0 && l[0].BlocksDone == l[0].Blocks
			})
			if len(r.edge.at.Catalog.Loads) != 1 {
				t.Fatal("the load has ended too early for this test")
			}
			db.Exec(sql)
			r.sync()
			if len(r.edge.at.Catalog.Loads) != 0 {
				t.Error("the load has not ended")
			}
			r.equal()
			if l := r.underWay(); len(l) != 0 {
				t.Errorf("loads: %+v", l)
			}
		})
	}
}

// Loads that end because another table leaves are over then.
func TestLoadsThatWaitedForATableThatLeaves(t *testing.T) {
	db := pgtest.New(t)
	db.Exec("create table a (id int primary key); create table b (id int primary key, v text); insert into a values (1); insert into b select i, repeat('v', 300) from generate_series(1, 500) i")
	r := newRig(t, db, func(c *Config) { c.LoadWorkers = 1 }, "a", "b")
	r.c.chunks.Blocks = 4
	r.openHeld(true)
	r.sync()        // the loads begin
	r.oneChunk("a") // all of a, which waits for b
	if l := r.underWay(); len(l) != 1 || l[0].Table != "public.b" {
		t.Fatalf("loads: %+v, want only that of public.b not to be read to its end", l)
	}
	r.reconfigure("a")
	r.open()
	r.src.PauseLoads(false)
	r.copied()
	if l := r.underWay(); len(l) != 0 {
		t.Errorf("loads: %+v", l)
	}
	db.Exec("alter table a add column w int default 7; insert into a values (2)")
	r.sync()
	r.load()
	r.equal()
	if all := r.verify(); len(all) != 1 || all[0].Phase != capture.PassDone || all[0].Ranges != 1 {
		t.Errorf("passes: %+v", all)
	}
}

// A table whose key was renamed, and of which nothing has told, is loaded and
// verified; so is one whose name another table has by now.
func TestAlteredBeforeItIsRead(t *testing.T) {
	for name, sql := range map[string]string{
		"key renamed": "alter table a rename id to key",
		"exchanged":   "alter table a rename to z; create table a (like z including all); insert into a values (7, 'other')",
	} {
		t.Run(name, func(t *testing.T) {
			db := pgtest.New(t)
			db.Exec("create table a (id int primary key, v text); insert into a select i, 'v' from generate_series(1, 30) i")
			r := newRig(t, db, nil, "a")
			r.open()
			r.copied()
			if err := r.src.RequestLoad(r.ctx(), "public.a", "asked"); err != nil {
				t.Fatal(err)
			}
			r.sync()
			r.restart()
			db.Exec(sql)
			r.load()
			if name == "exchanged" {
				r.c.tables[0].Name = "z"
			} else {
				db.Exec("alter table a rename key to id") // the pass comes upon that
			}
			r.src.PauseLoads(false)
			if all := r.verify(); len(all) != 1 || all[0].Phase != capture.PassDone || all[0].Ranges != 1 || all[0].Rows != 30 || len(r.edge.differing) > 0 {
				t.Errorf("passes: %+v; differing: %q", all, r.edge.differing)
			}
			r.equal()
		})
	}
}
