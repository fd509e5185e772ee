package wal

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/internal/pgtest"
)

// verify runs a pass over tables, all if none is named, and takes units until it
// has ended.
func (r *rig) verify(tables ...string) []capture.PassStatus {
	r.t.Helper()
	if err := r.src.Verify(tables); err != nil {
		r.t.Fatal(err)
	}
	deadline := time.Now().Add(limit)
	for {
		all := r.src.Passes()
		ended := true
		for _, p := range all {
			ended = ended && (p.Phase == capture.PassDone || p.Phase == capture.PassFailed)
		}
		if ended {
			return all
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("passes do not end: %+v", all)
		}
		r.sync()
		r.src.Confirm(r.edge.at.Position)
	}
}

// What the source has is stated for keys of every kind, and a row that is lost,
// altered or too much at the edge is found.
func TestVerify(t *testing.T) {
	db := pgtest.New(t)
	db.Exec(`create table a (id int primary key, v text, w numeric(10, 2));
		create table b (x text collate "en-x-icu", y int, v text, primary key (x, y));
		create table c (x text collate "en-x-icu" primary key, v text); create index on c (x collate "C");
		create table d (x text collate "C", n numeric, v text, primary key (x, n));
		create type mood as enum ('sad', 'ok', 'happy'); create table e (m mood, n int, primary key (n, m));
		create table empty (id uuid primary key);
		insert into a select i, case when i % 3 > 0 then 'v' || i end, i / 7.0 from generate_series(1, 25000) i;
		insert into b select chr(97 + i % 26) || chr(65 + i % 7) || i, i, 'v' from generate_series(1, 2000) i;
		insert into c select x, v from b; insert into d select x, y / 10.0, v from b;
		insert into e select 'happy', i from generate_series(1, 50) i`)
	r := newRig(t, db, nil, "a", "b", "c", "d", "e", "empty")
	r.open()
	r.copied()
	if err := r.src.Verify([]string{"public.a", "public.z"}); !errors.Is(err, capture.ErrNoTable) {
		t.Errorf("pass over a table that the stream does not have: %v", err)
	}
	rows := map[string]uint64{"public.a": 25000, "public.b": 2000, "public.c": 2000, "public.d": 2000, "public.e": 50, "public.empty": 0}
	var ids []uint64
	for _, p := range r.verify() {
		if p.Phase != capture.PassDone || p.Rows != rows[p.Table] || p.Ranges < 1 || p.Table == "public.a" && p.Ranges != 3 {
			t.Errorf("pass: %+v", p)
		}
		ids = append(ids, p.ID)
	}
	if len(ids) != len(rows) || len(r.edge.differing) > 0 {
		t.Errorf("passes %v, differing: %q", ids, r.edge.differing)
	}

	id := millrace.TableID(0)
	for _, s := range r.edge.at.Catalog.Schemas {
		if s.Name == "a" {
			id = s.Table
		}
	}
	for name, spoil := range map[string]func(table map[string]storedRow, key string){
		"lost":    func(table map[string]storedRow, key string) { delete(table, key) },
		"altered": func(table map[string]storedRow, key string) { table[key].columns[2].Text = []byte("0.00") },
		"doubled": func(table map[string]storedRow, key string) { table[key+"\x00"] = table[key] },
	} {
		r.edge.differing = nil
		table := r.edge.tables[id]
		was := make(map[string]storedRow)
		for key, row := range table {
			was[key] = storedRow{row.version, append([]millrace.Datum(nil), row.columns...)}
		}
		spoil(table, "\x80\x00\x40\x00")
		r.verify("public.a")
		if len(r.edge.differing) != 1 {
			t.Errorf("%s: %d ranges differ: %q", name, len(r.edge.differing), r.edge.differing)
		}
		r.edge.tables[id] = was
	}
}

// All tables are verified in rotation, without being asked.
func TestVerifyInRotation(t *testing.T) {
	db := pgtest.New(t)
	db.Exec("create table a (id int primary key); create table b (id int primary key); insert into a values (1)")
	r := newRig(t, db, func(c *Config) { c.Heartbeat = 10 * time.Millisecond }, "a", "b")
	r.c.cfg.VerifyEvery = 100 * time.Millisecond
	r.open()
	r.copied()
	ranges := func() (n int) {
		for _, ranges := range r.edge.verified {
			n += ranges
		}
		return n
	}
	for deadline := time.Now().Add(limit); ranges() < 6; r.next() {
		if time.Now().After(deadline) {
			t.Fatalf("%d ranges were verified", ranges())
		}
	}
	if len(r.edge.verified) != 2 || len(r.edge.differing) > 0 {
		t.Errorf("verified %v, differing %q", r.edge.verified, r.edge.differing)
	}
}

// A load holds up the pass over its own table only.
func TestVerifyBesideALoad(t *testing.T) {
	db := pgtest.New(t)
	db.Exec("create table a (id int primary key); create table b (id int primary key); insert into a values (1)")
	r := newRig(t, db, nil, "a", "b")
	r.open()
	r.copied() // and loads are paused
	if err := r.src.RequestLoad(r.ctx(), "public.a", "again"); err != nil {
		t.Fatal(err)
	}
	r.sync()
	if err := r.src.Verify(nil); err != nil {
		t.Fatal(err)
	}
	phases := func() string {
		r.sync()
		r.src.Confirm(r.edge.at.Position)
		p := r.src.Passes()
		return p[0].Phase + " " + p[1].Phase
	}
	until(t, "pass over the other table", func() bool { return phases() == "waiting done" })
	r.load()
	until(t, "pass over the table that was loaded", func() bool { return phases() == "done done" })
}

// A table is verified while it is written to, altered and loaded; ranges that
// would say nothing are read again.
func TestVerifyBesideWriters(t *testing.T) {
	seed := testSeed(t)
	db := pgtest.New(t)
	db.Exec(`create table a (id int primary key, n int, big text); create table b (id int primary key, n int);
		insert into a select i, 0, repeat('y', 3000) || i from generate_series(1, 300) i;
		insert into b select i, 0 from generate_series(1, 12000) i`)
	r := newRig(t, db, func(c *Config) { c.Heartbeat = 20 * time.Millisecond }, "a", "b")
	r.open()
	r.copied()
	stop := r.writers(seed, 2)
	defer stop()
	r.src.PauseLoads(false)
	for n := range 10 {
		switch n {
		case 3:
			db.Exec("alter table b add w int default 3")
		case 6:
			if err := r.src.RequestLoad(r.ctx(), "public.b", "again"); err != nil {
				t.Fatal(err)
			}
		}
		for _, p := range r.verify() {
			if p.Phase != capture.PassDone {
				t.Errorf("pass: %+v", p)
			}
		}
	}
	stop()
	r.sync()
	r.load()
	r.equal()
	for id, n := range r.edge.verified {
		t.Logf("table %v: %d ranges", id, n)
	}
	t.Logf("%d keys left out", r.edge.leftOut)
	if len(r.edge.differing) > 0 {
		t.Errorf("differing: %s", strings.Join(r.edge.differing, "\n"))
	}
}
