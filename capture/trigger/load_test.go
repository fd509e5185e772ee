package trigger

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/internal/pgtest"
)

// Tables are loaded and verified beside writers, by sources that are killed all the
// time: the first copy ends at once, every range agrees, and at the end all is equal.
func TestLoadsBesideWriters(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	db := pgtest.New(t)
	db.Exec(`create table a (id int primary key, v text, n int);
		create table b (k text collate "en-x-icu", d numeric(8, 2), v text, primary key (k, d) deferrable initially deferred);
		create table p (id int, v text, primary key (id)) partition by range (id);
		create table p1 partition of p for values from (0) to (1000); create table p2 partition of p for values from (1000) to (100000);
		insert into a select i, repeat('v', 300), i from generate_series(1, 1500) i;
		insert into b select 'key ' || i, i / 4.0, repeat('w', 200) from generate_series(1, 400) i;
		insert into p select i * 2, repeat('x', 100) from generate_series(1, 600) i`)
	r := newLoadRig(t, db, func(c *Config) { c.Where = map[string]string{"public.a": "n % 10 <> 3"} }, "a", "b", "p")
	ctx, stop := context.WithCancel(r.ctx())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	for i := range 3 {
		rnd := rand.New(rand.NewPCG(seed, uint64(i)))
		wg.Go(func() {
			for ctx.Err() == nil {
				n, m := rnd.IntN(2000), rnd.IntN(400)
				sql := []string{
					fmt.Sprintf("insert into a values (%d, 'new', %d) on conflict (id) do update set v = 'again', n = a.n + 1", n, m),
					fmt.Sprintf("delete from a where id between %d and %d", n, n+3),
					fmt.Sprintf("update a set id = id + 10000 * (1 - 2 * (id / 10000)), v = 'moved' where id %% 10000 = %d and not exists (select from a b where b.id = a.id + 10000 * (1 - 2 * (a.id / 10000)))", n),
					fmt.Sprintf("update b set v = 'changed %d', d = d + 1000 where k = 'key %d'", m, m),
					fmt.Sprintf("begin; insert into p values (%d, 'p') on conflict do nothing; savepoint s; delete from p where id = %d; rollback to s; commit", n, n),
					fmt.Sprintf("update p set id = (id + 1000) %% 2000 + %d, v = 'other leaf' where id = %d", 10000*i, n%2000),
					"begin; delete from a where id < 500; rollback",
					fmt.Sprintf("update a set v = 'some %d' where id %% 50 = %d", n, n%50),
					fmt.Sprintf("update p set v = 'some %d' where id %% 50 = %d", n, n%50),
				}[rnd.IntN(9)]
				if _, err := db.Pool.Exec(r.ctx(), sql); err != nil && !strings.Contains(err.Error(), "duplicate key") && !strings.Contains(err.Error(), "deadlock") && !strings.Contains(err.Error(), "another partition") {
					t.Error(err)
					return
				}
			}
		})
	}
	rnd := rand.New(rand.NewPCG(seed, 9))
	r.open()
	together := false
	for loads := 0; loads < 3; {
		a := r.take()
		if len(a.ends) > 0 {
			together = together || len(a.ends) == 3
			if !together {
				t.Fatalf("the first copy of %d tables ended, of 3", len(a.ends))
			}
			loads++
			if err := r.src.Verify(nil); err != nil {
				t.Fatal(err)
			}
			for name, n := range map[string]int{"a": 1, "b": 2, "p": 3} {
				if id := r.table(name); n == loads {
					if err := r.src.RequestLoad(ctx, "public."+name, "again"); err != nil && r.store.at.Catalog.Loads == nil {
						t.Fatal(err, id)
					}
				}
			}
		}
		if rnd.IntN(8) == 0 {
			r.open() // as after a kill: from what was published
		}
	}
	stop()
	wg.Wait()
	r.settle()
	r.verified()
	if len(r.store.differing) > 0 {
		t.Errorf("ranges differ: %q", r.store.differing)
	}
}

// verified has all tables verified, and takes units until that has ended.
func (r *loadRig) verified() []capture.PassStatus {
	r.t.Helper()
	if err := r.src.Verify(nil); err != nil {
		r.t.Fatal(err)
	}
	late := r.bounded("passes end")
	for {
		late()
		all := r.src.Passes()
		ended := true
		for _, p := range all {
			ended = ended && (p.Phase == capture.PassDone || p.Phase == capture.PassFailed)
		}
		if ended {
			return all
		}
		r.take()
	}
}

// A source that is killed loses one chunk of a load, and says how far it has come.
func TestLoadGoesOn(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec("create table a (id int primary key, v text); insert into a select i, repeat('v', 500) from generate_series(1, 2000) i")
	r := newLoadRig(t, db, nil, "a")
	read := 0
	for first := true; first || len(r.store.at.Catalog.Loads) > 0; first = false {
		r.open()
		for range 3 {
			read += r.take().loads[r.table("a")]
			if len(r.store.at.Catalog.Loads) == 0 {
				break
			}
		}
		l := r.src.Loads()
		if len(l) != 1 || l[0].Reason != "first copy" || !l[0].Initial || l[0].Restarts > 0 || !l[0].Waiting && (l[0].BlocksDone > l[0].Blocks || l[0].BlocksBefore > l[0].BlocksDone || int(l[0].Rows) < read || int(l[0].Rows) > read+100) {
			t.Fatalf("loads: %+v, rows read: %d", l, read)
		}
	}
	if read != 2000 {
		t.Errorf("%d rows were read, want 2000", read)
	}
	r.settle()
	if l := r.src.Loads(); len(l) != 1 || !l[0].Done || l[0].Rows != 2000 {
		t.Errorf("loads: %+v", l)
	}
}

// One of the tables of the first copy leaves: the others do not wait for it.
func TestFirstCopyOfATableThatLeaves(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec("create table a (id int primary key, v text); create table b (id int primary key, v text); insert into a values (1); insert into b select i, repeat('v', 500) from generate_series(1, 500) i")
	r := newLoadRig(t, db, func(c *Config) { c.LoadWorkers = 1 }, "a", "b")
	r.open()
	for r.take().loads[r.table("b")] == 0 {
	}
	if l := r.src.Loads(); len(l) != 2 || !l[0].Waiting || l[0].Done || l[1].Waiting {
		t.Errorf("loads: %+v", l)
	}
	cfg := r.c.cfg
	cfg.Tables = []string{"public.a"}
	r.configure(cfg)
	if err := r.c.Install(r.ctx()); err != nil {
		t.Fatal(err)
	}
	r.c.holdLoads = false
	r.open()
	if a := r.take(); a.counts[millrace.KindDrop] != 1 || len(a.ends) != 1 {
		t.Errorf("the first unit has %v", a.counts)
	}
	if l := r.src.Loads(); len(l) != 1 || l[0].Done {
		t.Errorf("loads before that is published: %+v", l)
	}
	r.take()
	if l := r.src.Loads(); len(l) != 1 || !l[0].Done {
		t.Errorf("loads after the next window: %+v", l)
	}
	r.settle()
}

// The capture role reads the partitions too, wherever they are; check tells of one that
// came later and that it may not read, and init mends that.
func TestLoadOfPartitionsByTheCaptureRole(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	role := "reader_" + db.Name
	db.Exec(`create role "` + role + `" login; create schema elsewhere; create table p (id int primary key, v text) partition by range (id);
		create table p1 partition of p for values from (0) to (10); create table elsewhere.p2 partition of p for values from (10) to (20); insert into p select g, 'v' from generate_series(0, 19) g`)
	t.Cleanup(func() { db.Exec(`drop owned by "` + role + `"; drop role "` + role + `"`) })
	r := newLoadRig(t, db, func(c *Config) { c.Login = role }, "p")
	u, err := url.Parse(db.URL)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.User(role)
	r.at(u.String())
	r.c.holdLoads = false
	r.open()
	r.settle()
	r.close()
	db.Exec("create table p3 partition of p for values from (20) to (30); insert into p values (20, 'v')")
	if found, err := r.c.Check(r.ctx()); err != nil || len(found) != 1 || found[0].Subject != "partition public.p3 of public.p" {
		t.Errorf("check: %+v, %v", found, err)
	}
	r.at(db.URL) // as the owner
	if err := r.c.Install(r.ctx()); err != nil {
		t.Fatal(err)
	}
	r.at(u.String())
	r.c.holdLoads = false
	if found, err := r.c.Check(r.ctx()); err != nil || len(found) > 0 {
		t.Errorf("check after init: %+v, %v", found, err)
	}
	r.open()
	if err := r.src.RequestLoad(r.ctx(), "public.p", "again"); err != nil {
		t.Fatal(err)
	}
	r.settle()
}

// What takes the heaps from under a load does not harm it.
func TestLoadOfAlteredTables(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	const a, p = "insert into a (id, v) select i, repeat('v', 500) from generate_series(1, 500) i", "insert into p select i, repeat('v', 500) from generate_series(800, 1200) i"
	for _, sql := range []string{
		"create table a (id int primary key, v text, n int, gone int)", "create table p (id int primary key, v text) partition by range (id)",
		"create table p1 partition of p for values from (0) to (1000)", "create table p2 partition of p for values from (1000) to (100000)", a, p,
	} {
		db.Exec(sql)
	}
	r := newLoadRig(t, db, nil, "a", "p")
	r.open()
	for _, c := range []struct {
		name string
		sql  []string
	}{
		{"truncate", []string{"truncate a, p", a, p}},
		{"vacuum full", []string{"delete from a where id % 3 = 0", "vacuum full a", "vacuum full p1"}},
		{"rewrite", []string{"alter table a alter n type bigint using n * 2"}},
		{"columns", []string{"alter table a add extra text, add filled text not null default 'x', drop gone"}},
		{"leaf truncated", []string{"truncate p2", "insert into p2 values (1000, 'new')"}},
		{"leaf exchanged", []string{"alter table p detach partition p1", "create table p3 partition of p for values from (500) to (600)", "insert into p values (555, 'p3')"}},
	} {
		r.settle()
		for _, table := range []string{"public.a", "public.p"} {
			if err := r.src.RequestLoad(r.ctx(), table, "test"); err != nil {
				t.Fatal(err)
			}
		}
		for len(r.store.at.Catalog.Loads) < 2 {
			r.take()
		}
		for range 4 {
			r.take()
		}
		if len(r.store.at.Catalog.Loads) < 2 {
			t.Fatalf("%s: a load has ended before", c.name)
		}
		for _, sql := range c.sql {
			db.Exec(sql)
		}
		r.settle()
		if t.Failed() {
			t.Fatalf("%s, loads %q", c.name, r.store.reasons)
		}
		r.store.reasons = nil
	}
	for _, p := range r.verified() {
		if p.Phase != capture.PassDone {
			t.Errorf("pass: %+v", p)
		}
	}
	if len(r.store.differing) > 0 {
		t.Errorf("ranges differ: %q", r.store.differing)
	}
}

// A load that is asked for takes the table's place whole, beside its changes; what
// is asked for of a source that ends before anybody hears of it, the next one does.
func TestRequestLoad(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec("create table a (id int primary key, v text); create table b (id int primary key); insert into a select i, repeat('v', 200) from generate_series(1, 1000) i")
	r := newLoadRig(t, db, nil, "a", "b")
	r.open()
	r.loaded()
	if err := r.src.RequestLoad(r.ctx(), "public.c", ""); !errors.Is(err, capture.ErrNoTable) || !strings.Contains(err.Error(), "public.a, public.b") {
		t.Errorf("load of a table that the stream does not have: %v", err)
	}
	// The store has lost a row and has one too much.
	rows := r.store.tables[r.table("a")]
	for key := range rows {
		rows["\x80\x00\x00\x00\x7f\xff\xff\xff"] = rows[key]
		delete(rows, key)
		break
	}
	r.store.reasons = nil
	r.src.PauseLoads(true)
	if err := r.src.RequestLoad(r.ctx(), "public.a", "somebody asked\n"); err != nil {
		t.Fatal(err)
	}
	if err := r.src.RequestLoad(r.ctx(), "public.a", ""); !errors.Is(err, capture.ErrLoading) {
		t.Errorf("second load: %v", err)
	}
	// Its begin is given out, and what follows, and all of that is void.
	for range 4 {
		u, err := r.src.Next(r.ctx())
		if err != nil {
			t.Fatal(err)
		}
		if err := u.Body.Close(); err != nil {
			t.Fatal(err)
		}
	}
	r.open()
	r.src.PauseLoads(true)
	for n := 0; len(r.store.at.Catalog.Loads) == 0; n++ {
		if r.take(); n > 100 {
			t.Fatal("the load was forgotten")
		}
	}
	if err := r.src.RequestLoad(r.ctx(), "public.a", ""); !errors.Is(err, capture.ErrLoading) {
		t.Errorf("load beside one under way: %v", err)
	}
	db.Exec("update a set v = 'w' where id % 2 = 0")
	for range 5 {
		if a := r.take(); len(a.loads) > 0 {
			t.Error("a paused load gave rows out")
		}
	}
	if !r.src.LoadsPaused() {
		t.Error("loads are not paused")
	}
	r.src.PauseLoads(false)
	r.loaded()
	r.settle()
	for range 3 {
		r.take()
	}
	if got := strings.Join(r.store.reasons, "; "); got != "a: somebody asked" {
		t.Errorf("loads were begun because of %q", got)
	}
}

// Tables take turns, and a load does not go faster than its rate.
func TestLoadRate(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(`create table a (id int primary key, v text); create table b (id int primary key, v text); create table c (id int primary key);
		insert into a select i, repeat('x', 1000) from generate_series(1, 300) i; insert into b select * from a`)
	r := newLoadRig(t, db, nil, "a", "b", "c")
	r.open()
	turns := ""
	for first := true; first || len(r.store.at.Catalog.Loads) > 0; first = false {
		for id := range r.take().loads {
			turns += r.store.at.Catalog.Schema(id).Name
		}
	}
	if !strings.HasPrefix(turns, "abab") {
		t.Errorf("tables were read in the order %s", turns)
	}
	r.c.cfg.LoadRate = 500
	start := time.Now()
	if err := r.src.RequestLoad(r.ctx(), "public.a", ""); err != nil {
		t.Fatal(err)
	}
	r.settle()
	if took := time.Since(start); took < 400*time.Millisecond {
		t.Errorf("300 rows at 500 a second took %v", took)
	}
}

// Rows that are too large for memory go through a file, of which nothing stays.
func TestLoadOfLargeRows(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec("create table a (id int primary key, v text); alter table a alter v set storage external; insert into a select i, repeat('x', 1 << 20) from generate_series(1, 30) i")
	dir := t.TempDir()
	r := newLoadRig(t, db, func(c *Config) { c.SpoolDir = dir + "/made" }, "a")
	r.open()
	for len(r.store.tables) == 0 {
		u, err := r.src.Next(r.ctx())
		if err != nil {
			t.Fatal(err)
		}
		if u.Entries > 10 {
			files, err := os.ReadDir(r.c.cfg.SpoolDir)
			if err != nil || len(files) > 0 {
				t.Errorf("files that a killed process would leave: %v, %v", files, err)
			}
		}
		if _, err := r.store.apply(u); err != nil {
			t.Fatal(err)
		}
	}
	r.same()
	// Where none can be written the stream stops.
	r.c.cfg.SpoolDir = "/dev/null/nowhere"
	if err := r.src.RequestLoad(r.ctx(), "public.a", ""); err != nil {
		t.Fatal(err)
	}
	for {
		u, err := r.src.Next(r.ctx())
		if err == nil {
			_, err = r.store.apply(u)
			if err != nil {
				t.Fatal(err)
			}
			continue
		}
		if !errors.Is(err, ErrSpool) || !millrace.NeedsOperator(err) || !strings.Contains(err.Error(), "mend: ") {
			t.Errorf("without room: %v", err)
		}
		break
	}
}
