package chunk

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// testLimit bounds each test.
const testLimit = 5 * time.Minute

// bench is a table of a real server, with a reader and a load of it.
type bench struct {
	t      testing.TB
	ctx    context.Context
	db     *pgtest.DB
	schema *millrace.Schema
	reader *Reader
	load   *Load
	got    map[string]string // key column's text → column a's
}

// newBench makes table t by the given statements. It has columns id (the key, of
// a type with the given OID and name), a and c, both text.
func newBench(t testing.TB, typ uint32, typName string, cfg ReaderConfig, limits Limits, ddl string) *bench {
	t.Helper()
	return newBenchOn(t, pgtest.New(t), typ, typName, cfg, limits, ddl)
}

func newBenchOn(t testing.TB, db *pgtest.DB, typ uint32, typName string, cfg ReaderConfig, limits Limits, ddl string) *bench {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testLimit)
	t.Cleanup(cancel)
	b := &bench{t: t, ctx: ctx, db: db, load: NewLoad(limits), got: make(map[string]string)}
	b.db.Exec(ddl)
	b.schema = &millrace.Schema{
		Version: 1, Namespace: "public", Name: "t",
		Columns: []millrace.Column{
			{Number: 1, Name: "id", Type: typ, Typmod: -1, NotNull: true, KeyOrdinal: 1},
			{Number: 2, Name: "a", Type: 25, Typmod: -1},
			{Number: 3, Name: "c", Type: 25, Typmod: -1},
		},
		Types: []millrace.TypeDesc{
			{OID: typ, Kind: millrace.TypeBase, Schema: "pg_catalog", Name: typName},
			{OID: 25, Kind: millrace.TypeBase, Schema: "pg_catalog", Name: "text"},
		},
	}
	slices.SortFunc(b.schema.Types, func(x, y millrace.TypeDesc) int { return int(x.OID) - int(y.OID) })
	if _, err := fmt.Sscan(b.db.String("SELECT 't'::regclass::oid::text"), (*uint32)(&b.schema.Table)); err != nil {
		t.Fatal(err)
	}
	cfg.Schema = b.schema
	var err error
	if b.reader, err = NewReader(ctx, b.connect(), cfg); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *bench) connect() *pgx.Conn {
	b.t.Helper()
	conn, err := pgx.Connect(b.ctx, b.db.URL)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func (b *bench) pending() *Pending {
	b.t.Helper()
	s, err := CurrentSnapshot(b.ctx, b.reader.conn)
	if err != nil {
		b.t.Fatal(err)
	}
	return NewPending(s)
}

// accepted takes snapshots until the window accepts one: autovacuum may be at work even
// where nobody else is.
func (b *bench) accepted(w *Window) []Leaf {
	b.t.Helper()
	for {
		s, leaves, err := b.reader.Begin(b.ctx)
		if err == nil && w.Accept(s) {
			return leaves
		}
		if err == nil {
			err = b.reader.Cancel(b.ctx)
		}
		if err != nil {
			b.t.Fatalf("snapshot %v is not accepted: %v", s, err)
		}
	}
}

// chunk carries one chunk through, on a source that stands still.
func (b *bench) chunk() Chunk {
	b.t.Helper()
	w := b.load.Open(b.pending())
	leaves := b.accepted(w)
	b.load.Match(w, leaves)
	c := b.load.Next(w)
	err := b.reader.Rows(b.ctx, &c, func(key []byte, columns []millrace.Datum) error {
		id, a := string(columns[0].Text), string(columns[1].Text)
		if columns[1].State == millrace.ColumnNull {
			a = "null"
		}
		b.got[id] = a
		b.load.Row(key)
		return nil
	})
	if err != nil {
		b.t.Fatal(err)
	}
	if err := b.reader.End(b.ctx, "x"); err != nil {
		b.t.Fatal(err)
	}
	b.load.Done(w, c)
	return c
}

// finish reads the rest and compares with the table.
func (b *bench) finish() (chunks int) {
	b.t.Helper()
	for !b.load.Finished() {
		b.chunk()
		chunks++
	}
	want := make(map[string]string)
	rows, err := b.db.Pool.Query(b.ctx, "SELECT id::text, coalesce(a, 'null') FROM t")
	if err != nil {
		b.t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var id, a string
		if err := rows.Scan(&id, &a); err != nil {
			b.t.Fatal(err)
		}
		want[id] = a
	}
	if err := rows.Err(); err != nil {
		b.t.Fatal(err)
	}
	if !maps.Equal(b.got, want) {
		b.t.Errorf("got %d rows, want %d, or other values", len(b.got), len(want))
	}
	return chunks
}

const plainTable = "CREATE TABLE t (id integer PRIMARY KEY, a text, c text)"

func TestReaderEmptyTable(t *testing.T) {
	b := newBench(t, 23, "int4", ReaderConfig{}, Limits{}, plainTable)
	if got := b.finish(); got != 1 {
		t.Errorf("read %d chunks of an empty table, want 1", got)
	}
}

func TestReaderRanges(t *testing.T) {
	b := newBench(t, 23, "int4", ReaderConfig{}, Limits{Blocks: 4}, plainTable+
		"; INSERT INTO t SELECT i, CASE WHEN i % 7 > 0 THEN 'a' || i END, repeat('c', 100) FROM generate_series(1, 3000) i")
	conn := b.connect()
	if _, err := conn.Exec(b.ctx, "SET enable_seqscan = off"); err != nil {
		t.Fatal(err)
	}
	var plan string
	if err := conn.QueryRow(b.ctx, "EXPLAIN SELECT ctid FROM ONLY t WHERE ctid >= '(4,0)' AND ctid < '(8,0)'").Scan(&plan); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(plan, "Tid Range Scan") {
		t.Errorf("the plan of a range is %s", plan)
	}
	if got := b.finish(); got < 10 {
		t.Errorf("read %d chunks, want several", got)
	}
}

// TestReaderBytes: chunks end early, after a whole block.
func TestReaderBytes(t *testing.T) {
	b := newBench(t, 23, "int4", ReaderConfig{Bytes: 20_000}, Limits{}, plainTable+
		"; INSERT INTO t SELECT i, 'a' || i, repeat('c', 1000) FROM generate_series(1, 200) i")
	if got := b.finish(); got < 5 {
		t.Errorf("read %d chunks, want several", got)
	}
}

func TestReaderPartitions(t *testing.T) {
	b := newBench(t, 23, "int4", ReaderConfig{}, Limits{Blocks: 2}, `
		CREATE TABLE t (id integer PRIMARY KEY, a text, c text) PARTITION BY RANGE (id);
		CREATE TABLE low PARTITION OF t FOR VALUES FROM (0) TO (100);
		CREATE TABLE high PARTITION OF t FOR VALUES FROM (100) TO (10000) PARTITION BY RANGE (id);
		CREATE TABLE higher PARTITION OF high FOR VALUES FROM (100) TO (500);
		CREATE SCHEMA "other place";
		CREATE TABLE "other place"."the rest" (c text, a text, id integer NOT NULL);
		ALTER TABLE high ATTACH PARTITION "other place"."the rest" FOR VALUES FROM (500) TO (10000);
		INSERT INTO t SELECT i, 'a' || i, repeat('c', 100) FROM generate_series(1, 900) i`)
	b.finish()
}

// TestReaderKeys finishes by key what lacks columns, for keys whose text is not
// their only one.
func TestReaderKeys(t *testing.T) {
	b := newBench(t, 1700, "numeric", ReaderConfig{Bytes: 10}, Limits{Keys: 250}, `
		CREATE TABLE t (id numeric PRIMARY KEY, a text, c text);
		INSERT INTO t SELECT i + 0.50, 'a', 'c' FROM generate_series(1, 300) i`)
	b.finish()
	codec, err := millrace.NewKeyCodec(b.schema)
	if err != nil {
		t.Fatal(err)
	}
	b.load.complete = false
	for i := range 302 { // two of them are not there
		key, err := codec.Append(nil, [][]byte{fmt.Appendf(nil, "%d.5", i)})
		if err != nil {
			t.Fatal(err)
		}
		b.load.Emitted(Change{Kind: millrace.KindPut, Key: key, Unchanged: true})
	}
	b.load.complete = true
	b.db.Exec("UPDATE t SET a = 'b'")
	if got := b.finish(); got < 3 {
		t.Errorf("read %d chunks by key, want several", got)
	}
}

// TestReaderRewrites: rows that moved without having been changed are found,
// whatever moved them between two chunks.
func TestReaderRewrites(t *testing.T) {
	for name, sql := range map[string]string{
		"vacuum full": "DELETE FROM t WHERE id % 2 = 0; VACUUM FULL t",
		"cluster":     "CLUSTER t USING t_pkey",
		"alter":       "ALTER TABLE t ALTER a TYPE text COLLATE \"C\", ALTER c SET DATA TYPE text USING c || 'x'",
		"truncate":    "TRUNCATE t; INSERT INTO t SELECT i, 'new' FROM generate_series(500, 900) i",
		"copy freeze": "COPYFREEZE",
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, 23, "int4", ReaderConfig{}, Limits{Blocks: 4}, plainTable+
				"; INSERT INTO t SELECT 1000 - i, 'a' || i, repeat('c', 100) FROM generate_series(1, 900) i")
			for range 3 {
				b.chunk()
			}
			_, _, before := b.load.Place()
			if sql == "COPYFREEZE" {
				b.copyFreeze()
			} else {
				for part := range strings.SplitSeq(sql, ";") { // VACUUM stands alone
					b.db.Exec(part)
				}
			}
			// The changes come by the stream.
			b.got = maps.Clone(b.got)
			for id := range b.got {
				if b.db.String("SELECT 1 FROM t WHERE id = $1::text::integer", id) == "" {
					delete(b.got, id)
				}
			}
			b.chunk()
			if _, _, block := b.load.Place(); before != 12 || block > 4 {
				t.Errorf("the pass went on from block %d to %d, want it to begin anew", before, block)
			}
			b.finish()
		})
	}
}

func (b *bench) copyFreeze() {
	b.t.Helper()
	conn := b.connect()
	if _, err := conn.Exec(b.ctx, "BEGIN; TRUNCATE t", pgx.QueryExecModeSimpleProtocol); err != nil {
		b.t.Fatal(err)
	}
	if _, err := conn.PgConn().CopyFrom(b.ctx, strings.NewReader("1\tone\tx\n2\ttwo\ty\n"), "COPY t FROM STDIN (FREEZE)"); err != nil {
		b.t.Fatal(err)
	}
	if _, err := conn.Exec(b.ctx, "COMMIT"); err != nil {
		b.t.Fatal(err)
	}
}

// TestReaderGivesWay: a chunk does not wait for long behind a lock against
// everybody, and the next one is read when it is gone.
func TestReaderGivesWay(t *testing.T) {
	b := newBench(t, 23, "int4", ReaderConfig{LockTimeout: 20 * time.Millisecond}, Limits{}, plainTable+"; INSERT INTO t VALUES (1, 'a', 'c')")
	conn := b.connect()
	if _, err := conn.Exec(b.ctx, "BEGIN; LOCK TABLE t", pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.reader.Begin(b.ctx); !errors.Is(err, ErrBusy) {
		t.Fatalf("begin: got %v, want ErrBusy", err)
	}
	if _, err := conn.Exec(b.ctx, "ROLLBACK"); err != nil {
		t.Fatal(err)
	}
	b.finish()
}

// TestReaderSnapshotAfterLock: what was committed while the lock was awaited is
// in the snapshot.
func TestReaderSnapshotAfterLock(t *testing.T) {
	b := newBench(t, 23, "int4", ReaderConfig{LockTimeout: testLimit}, Limits{}, plainTable)
	conn := b.connect()
	if _, err := conn.Exec(b.ctx, "BEGIN; TRUNCATE t; INSERT INTO t VALUES (1, 'a', 'c')", pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		for b.ctx.Err() == nil {
			var n int
			if err := b.db.Pool.QueryRow(b.ctx, "SELECT count(*) FROM pg_locks WHERE NOT granted").Scan(&n); err != nil {
				done <- err
				return
			}
			if n > 0 {
				_, err := conn.Exec(b.ctx, "COMMIT")
				done <- err
				return
			}
		}
		done <- b.ctx.Err()
	}()
	b.chunk()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	b.finish()
}

// TestReaderReshaped: a table whose columns are not those of the schema any more
// is not read.
func TestReaderReshaped(t *testing.T) {
	db := pgtest.New(t)
	for _, sql := range []string{
		"alter table t add d text", "alter table t drop c", "alter table t rename c to d",
		"alter table t alter a type varchar(9)", "alter table t alter a set not null",
	} {
		db.Exec("drop table if exists t")
		b := newBenchOn(t, db, 20, "int8", ReaderConfig{}, Limits{}, "create table t (id bigint primary key, a text, c text)")
		db.Exec(sql)
		if _, _, err := b.reader.Begin(b.ctx); !errors.Is(err, ErrReshaped) {
			t.Errorf("%s: got %v, want ErrReshaped", sql, err)
		}
	}
}

// countedConn counts what is received.
type countedConn struct {
	net.Conn
	n *int
}

func (c countedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	*c.n += n
	return n, err
}

// Of large rows no more is sent than a chunk, or a range, has room for; but a
// little.
func TestLargeRowsAreSentOnce(t *testing.T) {
	const rows, length = 200, 50_000
	b := newBench(t, 23, "int4", ReaderConfig{}, Limits{}, fmt.Sprintf(`CREATE TABLE t (id int PRIMARY KEY, a text, c text); ALTER TABLE t ALTER c SET STORAGE EXTERNAL;
		INSERT INTO t SELECT i, repeat('a', 900), repeat('x', %d) FROM generate_series(1, %d) i`, length, rows))
	config, err := pgx.ParseConfig(b.db.URL)
	if err != nil {
		t.Fatal(err)
	}
	received := 0
	dial := config.DialFunc
	config.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		return countedConn{conn, &received}, err
	}
	conn, err := pgx.ConnectConfig(b.ctx, config)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(b.ctx) }()
	r, err := NewReader(b.ctx, conn, ReaderConfig{Schema: b.schema, Bytes: 10 * length})
	if err != nil {
		t.Fatal(err)
	}
	var keys [][]byte
	count := func(key []byte, _ []millrace.Datum) error {
		keys = append(keys, slices.Clone(key))
		return nil
	}
	sent := func(what string) {
		t.Helper()
		if len(keys) != rows || received > 3*rows*length {
			t.Errorf("%s: %d rows, %d bytes were received for %d", what, len(keys), received, rows*length)
		}
		received = 0
	}
	read := func(fn func(leaf millrace.TableID)) {
		t.Helper()
		_, leaves, err := r.Begin(b.ctx)
		if err != nil {
			t.Fatal(err)
		}
		fn(leaves[0].ID)
		if err := r.Cancel(b.ctx); err != nil {
			t.Fatal(err)
		}
	}
	for low, more := []byte(nil), true; more; more = low != nil {
		read(func(millrace.TableID) {
			if low, err = r.Range(b.ctx, low, 1000, []bool{false}, count); err != nil {
				t.Fatal(err)
			}
		})
	}
	sent("ranges")
	all := keys
	keys = nil
	for from, more := uint32(0), true; more; more = from != 0 {
		read(func(leaf millrace.TableID) {
			c := Chunk{Leaf: leaf, From: from}
			if err := r.Rows(b.ctx, &c, count); err != nil {
				t.Fatal(err)
			}
			from = c.To
		})
	}
	sent("blocks")
	keys = nil
	for done := 0; done < rows; {
		read(func(millrace.TableID) {
			c := Chunk{Keys: all[done:]}
			if err := r.Rows(b.ctx, &c, count); err != nil {
				t.Fatal(err)
			}
			if n := len(c.Keys); n > 2*firstRows {
				t.Errorf("a chunk by key has %d large rows", n)
			}
			done += len(c.Keys)
		})
	}
	sent("keys")
}
