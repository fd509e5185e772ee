package wal

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/internal/pgtest"
)

// streaming makes the server stream every transaction that changes more than a
// few hundred rows.
func streaming(db *pgtest.DB) {
	db.Exec("alter database " + db.Name + " set logical_decoding_work_mem = '64kB'")
}

// streamedRig captures tables from a server that streams, with the least memory.
func streamedRig(t testing.TB, change func(*Config), schema string, tables ...string) *rig {
	t.Helper()
	db := pgtest.New(t)
	streaming(db)
	db.Exec(schema)
	r := newRig(t, db, func(c *Config) {
		c.MemoryBudget = 1 << 20
		if change != nil {
			change(c)
		}
	}, tables...)
	r.open()
	r.copied()
	return r
}

// client is one connection of its own to the source.
type client struct {
	t    testing.TB
	conn *pgx.Conn
}

func (r *rig) client() *client {
	r.t.Helper()
	conn, err := pgx.Connect(r.ctx(), r.db.URL)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { capture.Close(conn) })
	return &client{r.t, conn}
}

func (s *client) exec(sql string) {
	s.t.Helper()
	if _, err := s.conn.PgConn().Exec(s.t.Context(), sql).ReadAll(); err != nil {
		s.t.Fatalf("%s: %v", sql, err)
	}
}

// streams waits until so many transactions are being streamed.
func (r *rig) streams(n int) {
	r.t.Helper()
	until(r.t, fmt.Sprintf("%d open transactions", n), func() bool { return metricValue(r.t, r.c.metrics.open) == float64(n) })
}

func (r *rig) spoolFiles() []string {
	r.t.Helper()
	files, err := filepath.Glob(filepath.Join(r.cfg.SpoolDir, "*.spool"))
	if err != nil {
		r.t.Fatal(err)
	}
	return files
}

// ended checks that nothing is left of transactions that have ended.
func (r *rig) ended() {
	r.t.Helper()
	r.equal()
	r.streams(0)
	if files := r.spoolFiles(); len(files) != 0 {
		r.t.Errorf("spool files are left: %v", files)
	}
	if got := metricValue(r.t, r.c.metrics.spool); got != 0 {
		r.t.Errorf("spool metric: %v", got)
	}
}

const rows = "insert into a select i, repeat(md5(i::text), 5) from generate_series(%d, %d) i; "

func insert(from, to int) string { return fmt.Sprintf(rows, from, to) }

const tableA = "create table a (id int primary key, v text); "

func TestStreamedTransactions(t *testing.T) {
	r := streamedRig(t, nil, tableA+"create table b (id int primary key)", "a", "b")
	one, two, three := r.client(), r.client(), r.client()
	one.exec("begin; " + insert(1, 3000))
	two.exec("begin; " + insert(10001, 13000))
	three.exec("begin; " + insert(20001, 23000))
	r.streams(3)
	one.exec("update a set v = v || 'one' where id < 1500; truncate b; insert into b values (1)")
	two.exec(insert(13001, 20000))
	three.exec("delete from a where id > 22000")
	r.db.Exec("insert into a values (0)")
	two.exec("commit")
	three.exec("rollback")
	one.exec("commit")
	units := r.sync()
	if len(units) != 3 {
		t.Fatalf("got %d units, want 3", len(units))
	}
	for i, want := range []int{1, 10000, 3000 + 1499 + 2} {
		if got := len(units[i].entries); got != want {
			t.Errorf("unit %d has %d entries, want %d", i+1, got, want)
		}
		if units[i].entries[0].Table == 0 || units[i].entries[len(units[i].entries)-1].End.XID == 0 {
			t.Errorf("unit %d: %+v", i+1, units[i].entries[0])
		}
	}
	r.ended()
}

func TestStreamedSubtransactions(t *testing.T) {
	loop := `do $$ begin for i in 1..3000 loop begin
		insert into a values (i, repeat('x', 100));
		if i %% 3 = 0 then raise exception 'no'; end if;
		if i %% 1000 = 1 then perform 1 / 0; end if;
		exception when others then %s end; end loop; end $$;`
	for name, sql := range map[string]string{
		// Most of a transaction stays where a subtransaction of it aborts.
		"one of many":     insert(1, 4500) + "savepoint s; " + insert(5001, 5500) + "rollback to s; " + insert(6001, 6500),
		"nested":          insert(1, 1000) + "savepoint s; " + insert(1001, 2000) + "savepoint u; " + insert(2001, 3000) + "release u; " + insert(3001, 4000) + "rollback to s; " + insert(4001, 5000) + "savepoint w; " + insert(5001, 6000),
		"inner first":     "savepoint s; savepoint u; " + insert(1, 1500) + "release u; " + insert(1501, 3000) + "savepoint w; " + insert(3001, 4000) + "rollback to w; " + insert(4001, 5000) + "rollback to s; " + insert(5001, 7000),
		"inner stays":     "savepoint s; savepoint u; " + insert(1, 1500) + "rollback to u; " + insert(1501, 3000) + "release s; " + insert(3001, 4000),
		"the whole":       "savepoint s; " + insert(1, 3000) + "rollback to s; ",
		"and again":       insert(1, 10) + strings.Repeat("savepoint s; "+insert(1001, 2000)+"rollback to s; ", 5) + "savepoint s; " + insert(1001, 2000),
		"exceptions":      fmt.Sprintf(loop, "null;"),
		"handlers write":  fmt.Sprintf(loop, "insert into a values (i + 100000, 'handled');"),
		"updates undone":  insert(1, 3000) + "savepoint s; update a set v = 'lost'; delete from a where id < 100; rollback to s; update a set v = v || 'kept' where id % 2 = 0; ",
		"truncate undone": insert(1, 2000) + "savepoint s; truncate a; " + insert(1, 1000) + "rollback to s; " + insert(2001, 3000),
		"truncated":       insert(1, 2000) + "savepoint s; truncate a; " + insert(1, 1000) + "release s; " + insert(2001, 3000),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := streamedRig(t, nil, tableA+"create table b (id int primary key)", "a", "b")
			s := r.client()
			s.exec("begin; " + sql)
			r.streams(1)
			r.db.Exec("insert into b values (1)")
			s.exec("commit")
			if units := r.sync(); len(units) < 1 || len(units) > 2 {
				t.Errorf("got %d units", len(units))
			}
			r.ended()
			// The descriptions that came with it hold on.
			r.db.Exec("update a set v = 'after' where id > 10; delete from a where id % 3 = 0")
			r.sync()
			r.ended()
		})
	}
}

// What is streamed alone and nothing is left of is no unit.
func TestStreamedNothing(t *testing.T) {
	r := streamedRig(t, nil, tableA, "a")
	s := r.client()
	s.exec("begin; savepoint s; " + insert(1, 3000) + "rollback to s; commit")
	s.exec("begin; " + insert(1, 3000) + "rollback")
	if units := r.sync(); len(units) != 0 {
		t.Errorf("got %d units", len(units))
	}
	r.db.Exec("insert into a values (1)")
	r.sync()
	r.ended()
}

func TestStreamedPrepared(t *testing.T) {
	t.Parallel()
	server := pgtest.Cluster(t, pgtest.Options{Settings: map[string]string{"max_prepared_transactions": "5", "logical_decoding_work_mem": "64kB"}})
	db := pgtest.On(t, server)
	db.Exec(tableA)
	r := newRig(t, db, func(c *Config) { c.MemoryBudget = 1 << 20 }, "a")
	r.open()
	r.copied()
	db.Exec("begin; " + insert(1, 3000) + "prepare transaction 'one'")
	db.Exec("begin; " + insert(10001, 13000) + "prepare transaction 'two'")
	db.Exec("begin; insert into a values (-1); prepare transaction 'small'")
	if units := r.sync(); len(units) != 0 {
		t.Errorf("prepared transactions came as %d units", len(units))
	}
	r.streams(2)
	db.Exec("insert into a values (0)")
	db.Exec("commit prepared 'two'")
	db.Exec("rollback prepared 'one'")
	db.Exec("commit prepared 'small'")
	units := r.sync()
	if len(units) != 3 || len(units[1].entries) != 3000 {
		t.Errorf("got %d units", len(units))
	}
	r.ended()
}

func TestStreamedSchemas(t *testing.T) {
	r := streamedRig(t, nil, tableA+"create table b (id int primary key, v text)", "a", "b")
	// A transaction that alters its table, beside one that alters another.
	s := r.client()
	s.exec("begin; " + insert(1, 2000) + "alter table a add column w int; update a set w = id; " +
		"savepoint s; alter table a add column x text; update a set x = 'lost'; rollback to s; " +
		"update a set v = 'kept' where id < 1000")
	r.streams(1)
	r.db.Exec("alter table b add column w int; insert into b values (1, 'one', 1)")
	r.db.Exec("create type mood as enum ('sad'); alter table b add column m mood; insert into b values (2, 'two', 2, 'sad')")
	s.exec("update a set w = w + 1; commit")
	units := r.sync()
	last := units[len(units)-1]
	if got := last.count(millrace.KindSchema); got != 1 {
		t.Errorf("the transaction has %d schema entries, want 1", got)
	}
	r.ended()
	if s := r.edge.at.Catalog.LastVersion; s != 5 {
		t.Errorf("schema versions up to %v, want 5", s)
	}
	r.db.Exec("insert into a values (5000, 'v', 1); insert into b values (3)")
	r.sync()
	r.ended()

	// Altered and rolled back: as if nothing had been.
	s.exec("begin; alter table a add column y int; " + strings.Replace(insert(10001, 13000), "insert into a", "insert into a (id, v)", 1))
	r.streams(1)
	s.exec("rollback")
	r.db.Exec("insert into a values (5001, 'v', 1)")
	units = r.sync()
	for _, u := range units {
		if u.has(millrace.KindSchema) {
			t.Errorf("a schema that was rolled back came")
		}
	}
	r.ended()

	// Even a change that the stream could not follow.
	s.exec("begin; alter table b alter column v type int using 7; insert into b select i, 8 from generate_series(100, 3000) i")
	r.streams(1)
	s.exec("rollback")
	r.db.Exec("insert into b values (4, 'four')")
	r.sync()
	r.ended()

	// An enum that grows while a transaction with its table is open.
	s.exec("begin; insert into b select i, 'v', i, 'sad' from generate_series(1000, 4000) i")
	r.streams(1)
	r.db.Exec("alter type mood add value 'glad'")
	r.db.Exec("insert into b values (5, 'five', 5, 'glad')")
	s.exec("insert into b select i, 'v', i, 'glad' from generate_series(5000, 8000) i; commit")
	r.sync()
	r.ended()
	r.db.Exec("update b set w = w + 1")
	r.sync()
	r.ended()
}

// Messages of a streamed transaction come in their place.
func TestStreamedMessages(t *testing.T) {
	r := streamedRig(t, nil, tableA, "a")
	r.db.Exec("begin; select pg_logical_emit_message(true, 'app', 'first'); " + insert(1, 2000) +
		"savepoint s; insert into a values (-1); select pg_logical_emit_message(true, 'app', 'lost'); " + insert(2001, 3000) + "rollback to s; " +
		"select pg_logical_emit_message(true, 'app', 'last'); commit")
	u := r.sync()[0]
	var got []string
	for i := range u.entries {
		if m := u.entries[i].Message; m != nil {
			got = append(got, fmt.Sprintf("%d %s", i, m.Content))
		}
	}
	if want := []string{"0 first", "2001 last"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	r.ended()
}

// The source is left in the middle of streamed transactions, by both sides.
func TestStreamedResume(t *testing.T) {
	r := streamedRig(t, nil, tableA, "a")
	s := r.client()
	s.exec("begin; " + insert(1, 8000) + "savepoint s; " + insert(8001, 16000))
	r.streams(1)
	until(t, "open transaction is spooled", func() bool { return len(r.spoolFiles()) == 1 })
	r.close()
	if files := r.spoolFiles(); len(files) != 0 {
		t.Errorf("spool files after Close: %v", files)
	}
	// Those of a process that was killed go away at the next start.
	if err := os.WriteFile(filepath.Join(r.cfg.SpoolDir, "millrace-s-1.spool"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.open()
	r.streams(1)
	r.db.Exec("select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = '" + r.cfg.Slot + "'")
	r.drained()
	r.restart()
	r.streams(1)
	s.exec("rollback to s; " + insert(16001, 20000) + "commit")
	units := r.sync()
	if len(units) != 1 || len(units[0].entries) != 12000 {
		t.Errorf("got %d units", len(units))
	}
	r.ended()
	// Not confirmed, so it comes again to who asks from before; here, not.
	r.restart()
	if units := r.sync(); len(units) != 0 {
		t.Errorf("got %d units again", len(units))
	}
	r.ended()
}

// A full disk stops the stream; the files go away with the decoder.
func TestStreamedDiskFull(t *testing.T) {
	d := testDecoder(t, nil)
	d.open.blocks.limit = 0
	if err := d.message(startMsg(7, true)); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(d.spool.dir, "millrace-s-1.spool")
	if err := os.Symlink("/dev/full", path); err != nil {
		t.Fatal(err)
	}
	full, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	d.open.current.tape.file = &spoolFile{s: d.spool, f: full}
	err = d.message(in(7, insertMsg("1", "a")))
	if !errors.Is(err, ErrSpool) || !millrace.NeedsOperator(err) || !strings.Contains(err.Error(), d.spool.dir) || !strings.Contains(err.Error(), "mend:") {
		t.Errorf("error: %v", err)
	}
	if err := d.close(); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(d.spool.dir); err != nil || len(left) != 0 {
		t.Errorf("files are left: %v, %v", left, err)
	}
}

// The memory that a large transaction takes does not grow with it.
func TestStreamedMemory(t *testing.T) {
	r := streamedRig(t, func(c *Config) { c.MemoryBudget = 4 << 20 }, tableA, "a")
	s := r.client()
	s.exec("begin; " + insert(1, 300_000) + "commit")
	runtime.GC() // what earlier tests have left
	var most uint64
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			most = max(most, m.HeapInuse)
			select {
			case <-stop:
				return
			case <-tick.C:
			}
		}
	}()
	u, err := r.src.Next(r.ctx())
	if err != nil {
		t.Fatal(err)
	}
	checkUnit(t, u)
	close(stop)
	<-done
	if u.Entries != 300_000 {
		t.Errorf("unit has %d entries", u.Entries)
	}
	if err := u.Body.Close(); err != nil {
		t.Error(err)
	}
	const limit = 48 << 20
	if t.Logf("heap: %d MiB at most", most>>20); most > limit {
		t.Errorf("heap grew to %d MiB, want less than %d", most>>20, limit>>20)
	}
	if files := r.spoolFiles(); len(files) != 0 {
		t.Errorf("spool files are left: %v", files)
	}
}
