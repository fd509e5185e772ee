package wal

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/capture/chunk"
	"github.com/millrace-db/millrace/internal/pgtest"
)

// underWay are the loads that have not ended.
func (r *rig) underWay() []capture.LoadStatus {
	all := r.src.Loads()
	return slices.DeleteFunc(all, func(l capture.LoadStatus) bool { return l.Done || l.Waiting })
}

// A load that is asked for brings the table anew, beside its changes.
func TestRequestLoad(t *testing.T) {
	db := pgtest.New(t)
	db.Exec("create table a (id int primary key, v text); create table b (id int primary key); insert into a select i, 'v' from generate_series(1, 1000) i")
	r := newRig(t, db, nil, "a", "b")
	r.open()
	r.copied()
	if err := r.src.RequestLoad(r.ctx(), "public.c", ""); !errors.Is(err, capture.ErrNoTable) || !strings.Contains(err.Error(), "public.a, public.b") {
		t.Errorf("load of a table that the stream does not have: %v", err)
	}
	// The edge has lost a row and has one too much.
	id := r.edge.at.Catalog.Schemas[0].Table
	for key := range r.edge.tables[id] {
		r.edge.tables[id]["\x80\x00\x00\x00\x7f\xff\xff\xff"] = r.edge.tables[id][key]
		delete(r.edge.tables[id], key)
		break
	}
	if err := r.src.RequestLoad(r.ctx(), "public.a", "somebody asked\n"); err != nil {
		t.Fatal(err)
	}
	r.sync()
	if err := r.src.RequestLoad(r.ctx(), "public.a", ""); !errors.Is(err, capture.ErrLoading) {
		t.Errorf("second load: %v", err)
	}
	l := r.underWay()
	if len(l) != 1 || l[0].Table != "public.a" || l[0].Reason != "somebody asked" || l[0].Initial || l[0].Waiting {
		t.Errorf("loads: %+v", l)
	}
	db.Exec("update a set v = 'w' where id % 2 = 0")
	if got := r.load(); len(got) != 1 || got[0] != "a: somebody asked" {
		t.Errorf("loads were begun because of %q", got)
	}
	r.sync()
	r.equal()
	if l := r.underWay(); len(l) != 0 {
		t.Errorf("loads after the end: %+v", l)
	}
	r.src.Confirm(r.edge.at.Position)
	if l := r.src.Loads(); len(l) != 3 || !l[2].Done || l[2].Table != "public.a" || l[2].Rows != 1000 {
		t.Errorf("ended loads: %+v", l)
	}
}

// A paused load reads nothing; what is not paused does not go faster than its
// rate.
func TestLoadPauseAndRate(t *testing.T) {
	db := pgtest.New(t)
	db.Exec("create table a (id int primary key, v text); insert into a select i, repeat('x', 1000) from generate_series(1, 400) i")
	r := newRig(t, db, func(c *Config) { c.LoadRate = 1000 }, "a")
	r.c.chunks.Blocks = 8
	r.openHeld(true)
	for _, u := range r.sync() {
		if u.count(millrace.KindPut) > 0 {
			t.Errorf("a paused load emitted %s", u.kinds())
		}
	}
	start := time.Now()
	r.load()
	if took := time.Since(start); took < 300*time.Millisecond {
		t.Errorf("400 rows at 1000 a second took %v", took)
	}
	r.equal()
}

// A table leaves with its load under way, and is dropped.
func TestLoadedTableIsDropped(t *testing.T) {
	db := pgtest.New(t)
	db.Exec("create table a (id int primary key); create table b (id int primary key); insert into a values (1); insert into b values (1)")
	r := newRig(t, db, nil, "a", "b")
	r.open()
	r.copied()
	if err := r.src.RequestLoad(r.ctx(), "public.b", ""); err != nil {
		t.Fatal(err)
	}
	r.sync()
	r.reconfigure("a")
	db.Exec("drop table b")
	r.open()
	r.src.PauseLoads(false)
	r.sync()
	if l := r.underWay(); len(l) != 0 {
		t.Errorf("loads: %+v", l)
	}
	r.equal()
}

// One of the tables of the first copy leaves: the others do not wait for it.
func TestFirstCopyOfATableThatLeaves(t *testing.T) {
	db := pgtest.New(t)
	db.Exec("create table a (id int primary key); create table b (id int primary key); insert into a values (1); insert into b values (1)")
	r := newRig(t, db, nil, "a", "b")
	r.open()
	r.next()
	r.reconfigure("a")
	r.open()
	r.src.PauseLoads(false)
	r.copied()
	r.sync()
	r.equal()
}

// Tables that are altered, renamed, rewritten and truncated while they are
// loaded.
func TestAlteredWhileLoaded(t *testing.T) {
	for name, sql := range map[string]string{
		"column added":    "alter table a add w int default 7",
		"column dropped":  "alter table a drop n",
		"column renamed":  "alter table a rename n to m",
		"column retyped":  "alter table a alter n type numeric using n / 7.0",
		"table renamed":   "alter table a rename to z",
		"table moved":     "create schema s; alter table a set schema s",
		"rewritten":       "alter table a alter n type int using n + 1",
		"truncated":       "truncate a",
		"vacuum":          "vacuum full a",
		"not null":        "alter table a alter n set not null",
		"added, written":  "alter table a add w int default 7; update a set w = 8 where id < 9",
		"renamed, unused": "alter table a rename n to m; alter table a add n int",
		"exchanged":       "alter table a rename to z; create table a (like z including all)",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := pgtest.New(t)
			db.Exec("create table a (id int primary key, n int, v text); insert into a select i, i, repeat('x', 400) from generate_series(1, 2000) i")
			r := newRig(t, db, nil, "a")
			r.c.chunks.Blocks = 16
			r.open()
			r.next()
			r.next() // a chunk
			r.src.PauseLoads(true)
			for _, statement := range strings.Split(sql, "; ") {
				db.Exec(statement)
			}
			r.src.PauseLoads(false)
			r.copied()
			r.sync()
			r.load()
			switch name {
			case "table renamed", "exchanged":
				r.c.tables[0].Name = "z"
			case "table moved":
				r.c.tables[0].Schema = "s"
			}
			r.equal()
		})
	}
}

// Writers at work on tables that are loaded again and again, with rows that are
// stored out of line, keys that move, rewrites; the source is closed at random
// places.
func TestLoadsBesideWriters(t *testing.T) {
	seed := testSeed(t)
	random := rand.New(rand.NewPCG(seed, 7))
	db := pgtest.New(t)
	db.Exec(`create table a (id int primary key, n int, big text); alter table a alter big set storage external;
		create table b (id int primary key, n int);
		insert into a select i, 0, repeat('y', 3000) || i from generate_series(1, 300) i;
		insert into b select i, 0 from generate_series(1, 2000) i`)
	r := newRig(t, db, func(c *Config) { c.Heartbeat = 20 * time.Millisecond }, "a", "b")
	r.c.chunks.Blocks = 4
	r.c.chunks.Keys = 3
	r.c.chunks.Missing = 4000
	stop := r.writers(seed, 3)
	defer stop()

	r.open()
	places := 12 // restarts at any place
	for loads, deadline := 0, time.Now().Add(2*limit); loads < 12; {
		if time.Now().After(deadline) {
			t.Fatalf("%d loads have ended within %v: %+v", loads, 2*limit, r.src.Loads())
		}
		a := r.next()
		if a.has(millrace.KindLoadEnd) {
			loads++
		}
		// What is not confirmed is read once more at each start.
		if random.IntN(3) == 0 {
			r.src.Confirm(a.position)
		}
		r.src.PauseLoads(false)
		// However late the units come, a load comes on between most restarts.
		chunk := a.has(millrace.KindLoadProgress) && a.entries[len(a.entries)-1].End.XID == 0
		anywhere := places > 0 && random.IntN(150) == 0
		if anywhere {
			places--
		}
		if anywhere || chunk && random.IntN(8) == 0 {
			r.restart()
			r.src.PauseLoads(false)
		}
		if len(r.edge.at.Catalog.Loads) < 2 && !r.edge.copying() && random.IntN(10) == 0 {
			table := []string{"public.a", "public.b"}[random.IntN(2)]
			if err := r.src.RequestLoad(r.ctx(), table, "again"); err != nil && !errors.Is(err, capture.ErrLoading) {
				t.Fatal(err)
			}
		}
	}
	stop()
	r.sync()
	r.load()
	r.equal()
	t.Logf("%d loads begun, %d restarts anywhere", r.edge.at.Catalog.LastLoad, 12-places)
}

// writers lets some connections change rows, and returns what ends them and waits
// for that; it may be called again.
func (r *rig) writers(seed uint64, number int) (stop func()) {
	r.t.Helper()
	ctx, cancel := context.WithCancel(r.ctx())
	var wg sync.WaitGroup
	stop = func() { cancel(); wg.Wait() }
	for n := range number {
		conn, err := pgx.Connect(ctx, r.db.URL)
		if err != nil {
			stop()
			r.t.Fatal(err)
		}
		wg.Go(func() {
			defer capture.Close(conn)
			writeLoaded(ctx, r.t, conn, rand.New(rand.NewPCG(seed, uint64(n))))
		})
	}
	return stop
}

// writeLoaded changes rows until ctx ends.
func writeLoaded(ctx context.Context, t testing.TB, conn *pgx.Conn, random *rand.Rand) {
	id := func() int { return 1 + random.IntN(320) }
	// A source that is read anew all the time must be able to keep up.
	pace := time.NewTicker(10 * time.Millisecond)
	defer pace.Stop()
	// What is cut off may be committed all the same, after the test has looked.
	live := context.WithoutCancel(ctx)
	for ctx.Err() == nil {
		<-pace.C
		var sql string
		switch random.IntN(12) {
		case 0, 1, 2:
			sql = fmt.Sprintf("update a set n = n + 1 where id = %d", id())
		case 3:
			sql = fmt.Sprintf("update a set big = repeat('z', 2500) || n where id = %d", id())
		case 4, 5:
			sql = fmt.Sprintf("update a set id = %d where id = %d and not exists (select from a where id = %d)", id()+1000*random.IntN(2), id(), id())
		case 6:
			sql = fmt.Sprintf("delete from a where id = %d", id())
		case 7, 8:
			sql = fmt.Sprintf("insert into a values (%d, 0, repeat('w', %d)) on conflict do nothing", id(), 10+random.IntN(4000))
		case 9:
			sql = fmt.Sprintf("update b set n = n + 1 where id %% 50 = %d", random.IntN(50))
		case 10:
			sql = fmt.Sprintf("begin; update b set n = n - 1 where id = %d; savepoint s; delete from b where id = %d; rollback to s; update a set n = -1 where id = %d; commit", id(), id(), id())
		default:
			if random.IntN(10) > 0 {
				continue
			}
			sql = []string{"vacuum full a", "truncate b", "vacuum b", "cluster a using a_pkey"}[random.IntN(4)]
		}
		if _, err := conn.Exec(live, sql); err != nil {
			if conn.PgConn().TxStatus() != 'I' {
				_, _ = conn.Exec(live, "rollback")
			}
			// Two writers may meet: a key twice, a deadlock.
			if !strings.Contains(err.Error(), "SQLSTATE 23505") && !strings.Contains(err.Error(), "SQLSTATE 40P01") {
				t.Errorf("%s: %v", sql, err)
				return
			}
		}
	}
}

// Transactions are kept in mind only until the source sees them, also without a
// heartbeat.
func TestPendingIsBounded(t *testing.T) {
	d := testDecoder(t, func(*millrace.Unit) {})
	asked := 0
	d.snapshot = func() (chunk.Snapshot, error) {
		asked++
		return chunk.Snapshot{Xmin: 1 << 20, Xmax: 1 << 20}, nil
	}
	for i := range uint64(2*maxPending + 10) {
		lsn := 200 + 16*i
		for _, m := range [][]byte{msg('B').u64(lsn).u64(1).u32(uint32(i + 5)).b, commitMsg(lsn)} {
			if err := d.message(m); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n := d.loads.pending.Len(); asked != 1 || n != 0 {
		t.Errorf("asked %d times, %d transactions kept", asked, n)
	}
}

// A load waits while a physical standby replays late, and goes on when it has
// come up.
func TestLoadWaitsForReplica(t *testing.T) {
	t.Parallel()
	primary := pgtest.Cluster(t, pgtest.Options{})
	db := pgtest.On(t, primary)
	standby := pgtest.Standby(t, primary, nil)
	replica, err := pgx.Connect(t.Context(), standby.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer capture.Close(replica)
	db.Exec("create table a (id int primary key, v text); insert into a select i, repeat('x', 300) from generate_series(1, 3000) i")
	r := newRig(t, db, func(c *Config) {
		c.LoadMaxLag, c.LoadRate, c.Heartbeat = 200*time.Millisecond, 1000, 20*time.Millisecond
	}, "a")
	r.c.chunks.Blocks = 8
	exec := func(sql string) {
		t.Helper()
		if _, err := replica.Exec(r.ctx(), sql); err != nil {
			t.Fatal(err)
		}
	}
	caughtUp(t, db)
	r.openHeld(true)
	r.sync() // the load begins
	exec("select pg_wal_replay_pause()")
	r.src.PauseLoads(false)
	// Chunks may come until the lag is seen; then only heartbeats, for a second.
	for quiet := 0; quiet < 50; quiet++ {
		if u := r.next(); u.has(millrace.KindLoadProgress) || u.has(millrace.KindLoadEnd) {
			quiet = 0
		}
		if len(r.edge.at.Catalog.Loads) == 0 {
			t.Fatal("the load has ended while the standby stood still")
		}
	}
	exec("select pg_wal_replay_resume()")
	r.copied()
	r.equal()
}

// A block of the heap may lead to far more than a chunk's bytes: then they go
// through files, on both sides of the message.
func TestChunkOfLargeRows(t *testing.T) {
	db := pgtest.New(t)
	db.Exec(`create table a (id int primary key, v text); alter table a alter v set storage external;
		insert into a select i, repeat(chr(97 + i % 26), 400000) || i from generate_series(1, 100) i`)
	r := newRig(t, db, func(c *Config) { c.MemoryBudget = 4 << 20 }, "a")
	r.open()
	files := 0.0
	for done := false; !done; {
		a := r.next()
		files = max(files, metricValue(t, r.c.metrics.files))
		done = a.has(millrace.KindLoadEnd)
	}
	if files == 0 {
		t.Error("nothing went through a file")
	}
	r.sync()
	r.equal()
	r.close()
	if n := metricValue(t, r.c.metrics.files); n != 0 {
		t.Errorf("%v files are left", n)
	}
}
