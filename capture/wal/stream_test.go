package wal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"go.uber.org/goleak"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/internal/pgtest"
)

// The source is told what was confirmed and nothing more, whatever else it sends
// and asks.
func TestConfirm(t *testing.T) {
	r := started(t, func(c *Config) { c.Heartbeat = 20 * time.Millisecond })
	begin := r.slotLSN()
	var positions []millrace.Position
	for range 20 { // heartbeats
		positions = append(positions, r.next().position)
	}
	if got := r.slotLSN(); got != begin {
		t.Errorf("slot went from %v to %v without a confirmation", begin, got)
	}
	for _, p := range positions[:10] {
		r.src.Confirm(p)
	}
	want := positions[9].LSN
	until(t, "confirmation reaches the slot", func() bool { return r.slotLSN() == want })
	// Neither an older one, nor one of another slot, nor one not given out.
	r.src.Confirm(positions[0])
	far := positions[19]
	far.Slot = "other"
	r.src.Confirm(far)
	for range 10 {
		r.next()
	}
	if got := r.slotLSN(); got != want {
		t.Errorf("slot is at %v, confirmed was %v", got, want)
	}
	far = r.next().position
	last := far.LSN
	far.LSN += 1 << 30
	r.src.Confirm(far)
	until(t, "confirmation reaches the slot", func() bool { return r.slotLSN() == last })
	// All three positions were set.
	if got := db3(r); got != last.String()+" "+last.String()+" "+last.String() {
		t.Errorf("write, flush and replay positions: %s, want three times %v", got, last)
	}
	// The last confirmation goes out with Close.
	p := r.next().position
	r.src.Confirm(p)
	r.close()
	until(t, "last confirmation reaches the slot", func() bool { return r.slotLSN() == p.LSN })
}

func db3(r *rig) string {
	return r.db.String(`select write_lsn || ' ' || flush_lsn || ' ' || replay_lsn from pg_stat_replication
		where pid = (select active_pid from pg_replication_slots where slot_name = $1)`, r.cfg.Slot)
}

func TestHeartbeat(t *testing.T) {
	reg := prometheus.NewRegistry()
	r := started(t, func(c *Config) { c.Heartbeat, c.Registerer = 10*time.Millisecond, reg })
	a := r.next()
	for a.kinds() != "heartbeat" {
		a = r.next()
	}
	if age := time.Since(a.time); age > limit {
		t.Errorf("heartbeat is %v old", age)
	}
	// Its connection may die.
	r.db.Exec("select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and query like '%pg_logical_emit_message%' and pid <> pg_backend_pid()")
	for range 5 {
		if a := r.next(); a.kinds() != "heartbeat" {
			t.Errorf("got %s, want a heartbeat", a.kinds())
		}
	}
	if m := gathered(t, reg); len(m) < 8 || m["units_total"] < 7 || m["received_lsn_bytes"] == 0 {
		t.Errorf("metrics: %v", m)
	}
	if got := metricValue(t, r.c.metrics.units); got < 7 {
		t.Errorf("units counted: %v", got)
	}
}

func TestLargeTransactionsAreSpooled(t *testing.T) {
	db := pgtest.New(t)
	db.Exec("create table a (id int primary key, v text)")
	dir := t.TempDir()
	old := filepath.Join(dir, "millrace-s-17.spool")
	others := filepath.Join(dir, "millrace-s-2-17.spool") // of stream s-2
	for _, path := range []string{old, others} {
		if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r := newRig(t, db, func(c *Config) { c.MemoryBudget, c.SpoolDir = 2<<20, dir }, "a")
	r.open()
	if _, err := os.Stat(old); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("old spool file: %v", err)
	}
	if _, err := os.Stat(others); err != nil {
		t.Errorf("another stream's spool file: %v", err)
	}
	r.copied()
	db.Exec("insert into a select i, repeat(md5(i::text), 10) from generate_series(1, 30000) i; insert into a values (0)")
	u, err := r.src.Next(r.ctx())
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "millrace-s-?.spool"))
	if err != nil || len(files) != 1 {
		t.Fatalf("spool files: %v, %v", files, err)
	}
	info, err := os.Stat(files[0])
	if err != nil || info.Mode().Perm() != 0o600 || info.Size() < 10<<20 {
		t.Errorf("spool file: %v, %v", info, err)
	}
	if got := metricValue(t, r.c.metrics.spool); int64(got) != info.Size() {
		t.Errorf("spool metric: %v, the file has %d", got, info.Size())
	}
	a, err := r.edge.apply(u)
	if err != nil {
		t.Fatal(err)
	}
	if len(a.entries) != 30001 {
		t.Errorf("unit has %d entries", len(a.entries))
	}
	if _, err := os.Stat(files[0]); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("spool file after Close of the body: %v", err)
	}
	if got := metricValue(t, r.c.metrics.spool); got != 0 {
		t.Errorf("spool metric: %v", got)
	}
	r.sync()
	r.equal()
	// One that nobody takes goes away with the source.
	db.Exec("update a set v = v || 'x'")
	until(t, "unit is spooled and queued", func() bool {
		r.src.queue.mu.Lock()
		defer r.src.queue.mu.Unlock()
		return len(r.src.queue.units) > 0
	})
	r.close()
	if files, _ := filepath.Glob(filepath.Join(dir, "millrace-s-?.spool")); len(files) != 0 {
		t.Errorf("spool files after Close: %v", files)
	}
	r.open()
	r.sync()
	r.equal()
	// Cut off while it is being received.
	db.Exec("update a set v = v || 'y'")
	until(t, "unit is being spooled", func() bool { return metricValue(t, r.c.metrics.spool) > 0 })
	r.close()
	if got := metricValue(t, r.c.metrics.spool) + metricValue(t, r.c.metrics.files); got != 0 {
		t.Errorf("spool metrics after Close: %v", got)
	}
}

func TestSpoolDirectoryFails(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	r := started(t, func(c *Config) { c.MemoryBudget, c.SpoolDir = 1<<20, dir })
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	r.db.Exec("insert into a select i from generate_series(10, 100000) i")
	err := r.fails(ErrSpool)
	if !millrace.NeedsOperator(err) || !strings.Contains(err.Error(), dir) {
		t.Errorf("error: %v", err)
	}
	r.close()
	if err := os.WriteFile(dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_ = r.openFails(ErrSpool)
}

func TestRowsTooLarge(t *testing.T) {
	db := pgtest.New(t)
	db.Exec("create table a (id int primary key, v text)")
	r := newRig(t, db, nil, "a")
	r.open()
	r.copied()
	db.Exec("insert into a values (1, repeat('x', 10 << 20))")
	r.sync()
	r.equal()
	for _, size := range []string{"17 << 20", "60 << 20"} {
		db.Exec("insert into a values (2, repeat('x', " + size + ")); delete from a where id = 2")
		_ = r.fails(millrace.ErrTooLarge)
	}
}

// A reader that does not call Next holds the source back; the source goes on
// hearing of us.
func TestBackPressure(t *testing.T) {
	t.Parallel()
	db := pgtest.On(t, pgtest.Cluster(t, pgtest.Options{}))
	db.Exec("create table a (id int primary key, v text); alter database " + db.Name + " set wal_sender_timeout = '4s'")
	r := newRig(t, db, func(c *Config) { c.MemoryBudget, c.Silence = 1<<20, 4*time.Second }, "a")
	r.open()
	r.copied()
	for range 80 {
		db.Exec("truncate a; insert into a select i, repeat(md5(i::text), 100) from generate_series(1, 100) i")
	}
	pid := db.String("select active_pid from pg_replication_slots where slot_name = $1", r.cfg.Slot)
	// Longer than the server waits for a dead one and we for a silent one.
	until(t, "time passes at the source", func() bool {
		return db.String("select reply_time > backend_start + interval '9 seconds' from pg_stat_replication where pid = $1::int", pid) == "t"
	})
	r.src.queue.mu.Lock()
	held := r.src.queue.bytes
	r.src.queue.mu.Unlock()
	if held > r.c.cfg.MemoryBudget {
		t.Errorf("%d bytes are queued, the budget is %d", held, r.c.cfg.MemoryBudget)
	}
	r.sync()
	r.equal()
	if got := db.String("select active_pid from pg_replication_slots where slot_name = $1", r.cfg.Slot); got != pid {
		_, err := r.src.Next(r.ctx())
		t.Errorf("walsender is %s, was %s: %v", got, pid, err)
	}
}

func TestWalsenderKilled(t *testing.T) {
	r := started(t, nil)
	r.db.Exec("select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = '" + r.cfg.Slot + "'")
	_, err := r.src.Next(r.ctx())
	if err == nil || millrace.NeedsOperator(err) {
		t.Fatalf("next: %v, want an error that a retry mends", err)
	}
	if _, again := r.src.Next(r.ctx()); again == nil || again.Error() != err.Error() {
		t.Errorf("next again: %v", again)
	}
	r.db.Exec("insert into a values (3)")
	r.restart()
	r.sync()
	r.equal()
}

func TestServerKilled(t *testing.T) {
	t.Parallel()
	server := pgtest.Cluster(t, pgtest.Options{})
	db := pgtest.On(t, server)
	db.Exec("create table a (id int primary key)")
	r := newRig(t, db, nil, "a")
	r.open()
	r.copied()
	db.Exec("insert into a values (1)")
	r.sync()
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.src.Next(r.ctx()); err == nil || millrace.NeedsOperator(err) {
		t.Fatalf("next: %v, want an error that a retry mends", err)
	}
	r.close()
	if _, err := r.c.Open(r.ctx(), &r.edge.at); err == nil || millrace.NeedsOperator(err) {
		t.Fatalf("open: %v, want an error that a retry mends", err)
	}
	if err := server.Restart(r.ctx()); err != nil {
		t.Fatal(err)
	}
	db.Pool.Reset()
	r.open()
	db.Exec("insert into a values (2)")
	r.sync()
	r.equal()
}

// A successor ends a zombie's connection.
func TestZombieIsEnded(t *testing.T) {
	r := started(t, nil)
	zombie := r.src
	r.open()
	if _, err := zombie.Next(r.ctx()); err == nil || millrace.NeedsOperator(err) {
		t.Errorf("zombie: %v, want an error that a retry mends", err)
	}
	r.db.Exec("insert into a values (3)")
	r.sync()
	r.equal()
	if err := zombie.Close(); err != nil {
		t.Error(err)
	}
}

func TestCloseEndsEverything(t *testing.T) {
	r := started(t, func(c *Config) { c.Heartbeat = time.Millisecond })
	before := goleak.IgnoreCurrent() // the rig's pool, and the source
	r.close()
	r.open()
	src := r.src
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for {
		if _, err := src.Next(ctx); errors.Is(err, context.Canceled) {
			break
		}
	}
	r.close()
	if _, err := src.Next(t.Context()); !errors.Is(err, capture.ErrClosed) {
		t.Errorf("next after close: %v", err)
	}
	src.Confirm(r.edge.at.Position)
	// A query that was cut off is still being cancelled for a moment.
	var left error
	until(t, "everything ends", func() bool {
		left = goleak.Find(before)
		return left == nil
	}, func() string { return left.Error() })
}

// frozen is a proxy that can stop passing bytes on without closing anything.
type frozen struct {
	listener net.Listener
	mu       sync.Mutex
	gate     chan struct{} // closed when open
	conns    []net.Conn
}

func freezer(t *testing.T, target string) *frozen {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &frozen{listener: l, gate: make(chan struct{})}
	close(f.gate)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			var d net.Dialer
			out, err := d.DialContext(context.Background(), "tcp", target)
			if err != nil {
				_ = in.Close()
				continue
			}
			f.mu.Lock()
			f.conns = append(f.conns, in, out)
			f.mu.Unlock()
			wg.Go(func() { f.pass(out, in) })
			wg.Go(func() { f.pass(in, out) })
		}
	})
	t.Cleanup(func() {
		f.thaw()
		_ = l.Close()
		f.mu.Lock()
		for _, c := range f.conns {
			_ = c.Close()
		}
		f.mu.Unlock()
		wg.Wait()
	})
	return f
}

func (f *frozen) pass(dst, src net.Conn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := src.Read(buf)
		f.mu.Lock()
		gate := f.gate
		f.mu.Unlock()
		<-gate
		if n > 0 {
			if _, err := dst.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			_ = dst.Close()
			return
		}
	}
}

func (f *frozen) freeze() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gate = make(chan struct{})
}

func (f *frozen) thaw() {
	f.mu.Lock()
	defer f.mu.Unlock()
	select {
	case <-f.gate:
	default:
		close(f.gate)
	}
}

// A half-open connection is noticed; a quiet one is asked, and kept.
func TestSilence(t *testing.T) {
	t.Parallel()
	db := pgtest.On(t, pgtest.Cluster(t, pgtest.Options{}))
	db.Exec("create table a (id int primary key)")
	proxy := freezer(t, "127.0.0.1:"+strconv.Itoa(db.Server.Port()))
	_, port, err := net.SplitHostPort(proxy.listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t, db, func(c *Config) {
		c.URL = strings.Replace(db.URL, ":"+strconv.Itoa(db.Server.Port())+"/", ":"+port+"/", 1)
		c.Silence = 3 * time.Second // no shorter: a loaded machine stands still for a while
	}, "a")
	r.open()
	r.copied()
	r.sync()
	// Nothing to send for more than twice as long: the server answers when asked.
	pid := db.String("select active_pid from pg_replication_slots where slot_name = $1", r.cfg.Slot)
	begin := time.Now()
	until(t, "quiet time passes", func() bool {
		return db.String("select reply_time > $2::timestamptz from pg_stat_replication where pid = $1::int", pid, begin.Add(7*time.Second)) == "t"
	})
	r.sync()
	proxy.freeze()
	_, err = r.src.Next(r.ctx())
	if !errors.Is(err, ErrSilent) || millrace.NeedsOperator(err) {
		t.Fatalf("next over a frozen connection: %v", err)
	}
	proxy.thaw()
	db.Exec("insert into a values (1)")
	r.restart()
	r.sync()
	r.equal()
}

// A copy that is cut off at any unit goes on where it was.
func TestCopyCutOff(t *testing.T) {
	db := pgtest.New(t)
	db.Exec(`create table a (id int primary key, v text); create table b (id int primary key);
		insert into a select i, repeat('x', 300) from generate_series(1, 9000) i; insert into b values (1)`)
	r := newRig(t, db, func(c *Config) { c.MemoryBudget = 1 << 20 }, "a", "b")
	r.c.chunks.Blocks = 16
	r.open()
	first := r.next()
	if got, want := first.kinds(), "schema load_begin schema load_begin"; got != want {
		t.Errorf("first unit: got %s, want %s", got, want)
	}
	for taken := range 4 {
		for range taken {
			r.next()
		}
		r.restart()
		if got := db.String("select count(*) from pg_replication_slots where slot_name = $1", r.cfg.Slot); got != "1" {
			t.Fatalf("slots after a copy that was cut off: %s", got)
		}
		db.Exec("insert into a select max(id) + 1 from a")
	}
	for _, l := range r.src.Loads() {
		if !l.Initial || l.Reason != "first copy" {
			t.Errorf("load: %+v", l)
		}
	}
	for _, u := range r.copied() {
		if u.has(millrace.KindLoadBegin) || u.has(millrace.KindSchema) {
			t.Errorf("a copy that goes on has a unit of %s", u.kinds())
		}
	}
	r.sync()
	r.equal()
	if l := r.underWay(); len(l) > 0 {
		t.Errorf("loads after the copy: %+v", l)
	}
	db.Exec("insert into a values (-1)")
	r.sync()
	r.equal()
}

// Tables that are truncated or altered while the slot is being made.
func TestAlteredWhileSlotIsMade(t *testing.T) {
	for name, sql := range map[string]string{
		"truncated": "truncate a",
		"rewritten": "alter table a alter column v type text using 'rewritten'",
		"altered":   "alter table a add column w int default 7",
	} {
		t.Run(name, func(t *testing.T) {
			db := pgtest.New(t)
			db.Exec("create table a (id int primary key, v varchar); create table z (id int); insert into a select i, 'v' from generate_series(1, 1000) i")
			r := newRig(t, db, nil, "a")
			// A running transaction holds the making of the slot up.
			tx, err := db.Pool.Begin(r.ctx())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := tx.Exec(r.ctx(), "insert into z values (1)"); err != nil {
				t.Fatal(err)
			}
			opened := make(chan error, 1)
			go func() {
				src, err := r.c.Open(r.ctx(), &r.edge.at)
				r.src = src
				opened <- err
			}()
			until(t, "slot is being made", func() bool {
				return db.String("select count(*) from pg_replication_slots where slot_name = $1 and active", r.cfg.Slot) == "1"
			})
			db.Exec(sql)
			if err := tx.Commit(r.ctx()); err != nil {
				t.Fatal(err)
			}
			if err := <-opened; err != nil {
				t.Fatal(err)
			}
			r.copied()
			r.equal()
			db.Exec("insert into a (id) values (5000)")
			r.sync()
			r.equal()
		})
	}
}

// Writers at work all the time, the first copy among them; the source is closed,
// cut off and opened again at random places: every unit comes once.
func TestWritersAndRestarts(t *testing.T) {
	seed := testSeed(t)
	random := rand.New(rand.NewPCG(seed, 1))
	db := pgtest.New(t)
	db.Exec(`create table acc (id int primary key, bal bigint not null, v text);
		create table hist (id bigint generated always as identity primary key, acc int, delta int);
		insert into acc select i, 0, ` + strings.Replace(outOfLine, "200", "100", 1) + ` from generate_series(1, 500) i`)
	r := newRig(t, db, func(c *Config) { c.MemoryBudget, c.Heartbeat = 1<<20, 5*time.Millisecond }, "acc", "hist")
	const writers, each = 4, 250
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait)
	for w := range writers {
		mine := rand.New(rand.NewPCG(seed, uint64(w)+2))
		wg.Go(func() { write(t, db, mine, w, each) })
	}
	finished := make(chan struct{})
	go func() { wg.Wait(); close(finished) }()
	r.open()
	r.copied()
	for writing := true; writing; {
		for range random.IntN(200) {
			a := r.next()
			if random.IntN(3) == 0 {
				r.src.Confirm(a.position)
			}
			r.balanced()
		}
		select {
		case <-finished:
			writing = false
		default:
		}
		switch random.IntN(3) {
		case 0:
			r.restart()
		case 1:
			r.src.Confirm(r.edge.at.Position)
			db.Exec("select pg_terminate_backend(active_pid) from pg_replication_slots where active and slot_name = '" + r.cfg.Slot + "'")
			r.drained()
			r.restart()
		}
	}
	r.sync()
	r.equal()
	if got, want := r.slotLSN() <= r.edge.at.Position.LSN, true; got != want {
		t.Errorf("slot is at %v, the edge at %v", r.slotLSN(), r.edge.at.Position.LSN)
	}
}

// drained takes units until the source fails.
func (r *rig) drained() {
	r.t.Helper()
	for deadline := time.Now().Add(limit); ; {
		if time.Now().After(deadline) {
			r.t.Fatalf("the source does not fail within %v", limit)
		}
		u, err := r.src.Next(r.ctx())
		if err != nil {
			if millrace.NeedsOperator(err) {
				r.t.Fatal(err)
			}
			return
		}
		if _, err := r.edge.apply(u); err != nil {
			r.t.Fatal(err)
		}
	}
}

// balanced checks that the edge sees whole transactions only.
func (r *rig) balanced() {
	r.t.Helper()
	sums := map[string]int{}
	for _, s := range r.edge.at.Catalog.Schemas {
		column := s.ColumnIndex(map[string]string{"acc": "bal", "hist": "delta"}[s.Name])
		for _, row := range r.edge.tables[s.Table] {
			n, err := strconv.Atoi(string(row.columns[column].Text))
			if err != nil {
				r.t.Fatal(err)
			}
			sums[s.Name] += n
		}
	}
	if sums["acc"] != sums["hist"] {
		r.t.Fatalf("at %v: the accounts hold %d, the history says %d", r.edge.at.Position.LSN, sums["acc"], sums["hist"])
	}
}

// write runs transactions that keep the sum of the accounts equal to that of the
// history.
func write(t *testing.T, db *pgtest.DB, random *rand.Rand, writer, transactions int) {
	for i := range transactions {
		acc, delta := random.IntN(500)+1, random.IntN(1000)
		sql := fmt.Sprintf("begin; update acc set bal = bal + %d where id = %d; insert into hist (acc, delta) select %d, %d where exists (select from acc where id = %d); ", delta, acc, acc, delta, acc)
		switch random.IntN(8) {
		case 0:
			sql += fmt.Sprintf("insert into acc values (%d, 0, 'new'); ", 10000+writer*transactions+i)
		case 1:
			sql += fmt.Sprintf("update acc set id = %d where id = (select id from acc where id > 10000 and id < 20000 and id %% 4 = %d limit 1 for update skip locked); ", 20000+writer*transactions+i, writer)
		case 2:
			sql += fmt.Sprintf("savepoint s; delete from hist; rollback to s; update acc set v = v || 'x' where id = %d; ", acc)
		case 3:
			sql += "savepoint s; insert into acc select 1000000 + i, 0 from generate_series(1, 300) i; delete from acc where id > 1000000; "
		}
		end := "commit"
		if random.IntN(6) == 0 {
			end = "rollback"
		}
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		conn, err := db.Pool.Acquire(ctx)
		if err == nil {
			// A deadlock or a clash of keys rolls it back.
			_, err = conn.Conn().PgConn().Exec(ctx, sql+end).ReadAll()
			if err != nil {
				_, err = conn.Conn().PgConn().Exec(ctx, "rollback").ReadAll()
			}
			conn.Release()
		}
		cancel()
		if err != nil {
			t.Error(err)
			return
		}
	}
}

// A unit's body can be read in runs of any size.
func TestBodiesInSmallRuns(t *testing.T) {
	r := started(t, nil)
	r.db.Exec("insert into a select i from generate_series(10, 1000) i")
	u, err := r.src.Next(r.ctx())
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for {
		run, err := u.Body.Next(100)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		for len(run) > 0 {
			var h millrace.Head
			if run, err = millrace.NextHead(run, &h); err != nil {
				t.Fatal(err)
			}
			n++
		}
	}
	if n != 991 || u.Body.Close() != nil {
		t.Errorf("entries: %d", n)
	}
}

func metricValue(t testing.TB, m prometheus.Metric) float64 {
	t.Helper()
	var d dto.Metric
	if err := m.Write(&d); err != nil {
		t.Fatal(err)
	}
	return d.GetGauge().GetValue() + d.GetCounter().GetValue()
}
