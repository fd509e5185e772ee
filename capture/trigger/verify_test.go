package trigger

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/internal/pgtest"
)

// What the source has is stated for keys of every kind, and a row that is lost,
// altered or too much in the store is found.
func TestVerify(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(`create table a (id int primary key, v text, w numeric(10, 2));
		create table b (x text collate "en-x-icu", y int, v text, primary key (x, y));
		create table c (x text collate "en-x-icu" primary key, v text); create index on c (x collate "C");
		create type mood as enum ('sad', 'ok', 'happy'); create table e (m mood, n int, primary key (n, m));
		create table empty (id uuid primary key);
		insert into a select i, case when i % 3 > 0 then 'v' || i end, i / 7.0 from generate_series(1, 25000) i;
		insert into b select chr(97 + i % 26) || chr(65 + i % 7) || i, i, 'v' from generate_series(1, 2000) i;
		insert into c select x, v from b; insert into e select 'happy', i from generate_series(1, 50) i`)
	r := newLoadRig(t, db, func(c *Config) { c.VerifyRate = 1_000_000 }, "a", "b", "c", "e", "empty")
	r.c.chunks = chunkLimits()
	r.open()
	r.loaded()
	if err := r.src.Verify([]string{"public.a", "public.z"}); !errors.Is(err, capture.ErrNoTable) {
		t.Errorf("pass over a table that the stream does not have: %v", err)
	}
	rows := map[string]uint64{"public.a": 25000, "public.b": 2000, "public.c": 2000, "public.e": 50, "public.empty": 0}
	var ids []uint64
	for _, p := range r.verified() {
		if p.Phase != capture.PassDone || p.Rows != rows[p.Table] || p.Ranges < 1 || p.Table == "public.a" && p.Ranges != 3 {
			t.Errorf("pass: %+v", p)
		}
		ids = append(ids, p.ID)
	}
	if len(ids) != len(rows) || len(r.store.differing) > 0 {
		t.Errorf("passes %v, differing: %q", ids, r.store.differing)
	}
	// Above a limit the source needs an index that sorts as we do.
	r.c.verifyWhole = 2000 * (16 + 10)
	db.Exec("insert into b values ('z', 0, 'one too many'); create index on b (x collate \"C\", y)")
	if p := r.verified()[1]; p.Phase != capture.PassDone || p.Rows != 2001 {
		t.Errorf("pass over a large table with an index: %+v", p)
	}
	db.Exec("drop index b_x_y_idx")
	if p := r.verified()[1]; p.Phase != capture.PassFailed || !strings.Contains(p.Problem, `CREATE INDEX ON "public"."b" ("x" COLLATE "C", "y")`) {
		t.Errorf("pass over a large table without an index: %+v", p)
	}
	id := r.table("a")
	for name, spoil := range map[string]func(table map[string]storedRow, key string){
		"lost":    func(table map[string]storedRow, key string) { delete(table, key) },
		"altered": func(table map[string]storedRow, key string) { table[key].columns[2].Text = []byte("0.00") },
		"doubled": func(table map[string]storedRow, key string) { table[key+"\x00"] = table[key] },
	} {
		r.store.differing = nil
		table := r.store.tables[id]
		was := make(map[string]storedRow)
		for key, row := range table {
			was[key] = storedRow{row.version, append([]millrace.Datum(nil), row.columns...)}
		}
		spoil(table, "\x80\x00\x40\x00")
		r.verified()
		if len(r.store.differing) != 1 {
			t.Errorf("%s: %d ranges differ: %q", name, len(r.store.differing), r.store.differing)
		}
		r.store.tables[id] = was
	}
}

// All tables are verified in rotation, without being asked, also where that takes longer
// than from one rotation to the next; but none while it is being loaded, and what cannot
// be read fails its pass and nothing else.
func TestVerifyInRotation(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec("create table a (id int primary key); create table b (id int primary key); insert into a values (1); insert into b select i + 10 from generate_series(1, 25000) i")
	r := newLoadRig(t, db, nil, "a", "b")
	r.c.chunks = chunkLimits()
	r.c.cfg.VerifyEvery = time.Millisecond
	r.c.holdLoads = true
	r.open()
	for range 10 {
		r.take()
	}
	if len(r.store.verified) > 0 {
		t.Errorf("tables were verified before they were loaded: %v", r.store.verified)
	}
	r.src.PauseLoads(false)
	for r.store.verified[r.table("a")] < 3 || r.store.verified[r.table("b")] < 3 {
		r.take()
	}
	if len(r.store.differing) > 0 {
		t.Errorf("ranges differ: %q", r.store.differing)
	}
	// A function that the condition uses fails for one row.
	db.Exec("insert into a values (7)")
	r.src.loads.mu.Lock()
	r.src.loads.passes.rotation = time.Time{} // a pass that is to be looked at stays the newest
	of := r.src.loads.tables[r.table("a")]
	of.choice.Where = "1 / (id - 7) < 10"
	r.src.loads.tables[r.table("a")] = of
	clear(r.src.loads.readers)
	r.src.loads.mu.Unlock()
	var failed string
	for _, p := range r.verified() {
		if p.Phase == capture.PassFailed {
			failed += p.Table + ": " + p.Problem
		}
	}
	if failed == "" || r.src.err != nil {
		t.Errorf("failed passes: %q; the source: %v", failed, r.src.err)
	}
	db.Exec("insert into b values (8)")
	r.settle()
}

// Rows of a partition that is attached between a range's snapshot and its reading are
// no part of the range.
func TestVerifyBesideAttach(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(`create table p (id int primary key, v text) partition by range (id);
		create table p1 partition of p for values from (0) to (10); create table p2 (id int primary key, v text);
		insert into p values (1, 'v'); insert into p2 values (11, 'there before')`)
	r := newLoadRig(t, db, nil, "p")
	r.open()
	r.loaded()
	r.c.inspect = func(*window) error {
		r.src.loads.mu.Lock()
		wanted := r.src.loads.passLocked() != nil
		r.src.loads.mu.Unlock()
		if wanted {
			r.c.inspect = nil
			db.Exec("alter table p attach partition p2 for values from (10) to (20)")
		}
		return nil
	}
	if p := r.verified(); len(p) != 1 || p[0].Phase != capture.PassDone || p[0].Rows != 2 || len(r.store.differing) > 0 {
		t.Errorf("passes %+v, differing: %q", p, r.store.differing)
	}
	r.settle()
}
