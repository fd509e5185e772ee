package chunk

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/pgtest"
)

// stream is what pgoutput says of a slot, applied to an edge with a live and a
// shadow generation, and a load of the table by the Reader.
type stream struct {
	*bench
	sql     *pgx.Conn
	pending *Pending
	live    map[string]pair
	shadow  map[string]pair
	window  *Window
	x       XID
	queue   chan pglogrepl.Message
	ended   error  // why the queue was closed
	content string // of the open transaction's message
	passed  string // of the newest message that the stream has passed
	units   int
}

type pair struct {
	a, c  string
	lacks bool // of c
}

// receive reads the slot's changes from a replication connection into a queue,
// which ends with the context.
func (s *stream) receive() {
	s.t.Helper()
	cfg, err := pgconn.ParseConfig(s.db.URL)
	if err != nil {
		s.t.Fatal(err)
	}
	cfg.RuntimeParams["replication"] = "database"
	cfg.RuntimeParams["wal_sender_timeout"] = "0" // nobody says here that we are alive
	conn, err := pgconn.ConnectConfig(s.ctx, cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := pglogrepl.StartReplication(s.ctx, conn, "s", 0, pglogrepl.StartReplicationOptions{
		PluginArgs: []string{"proto_version '1'", "publication_names 'p'", "messages 'true'"},
	}); err != nil {
		s.t.Fatal(err)
	}
	s.queue = make(chan pglogrepl.Message, 4096)
	ctx, cancel := context.WithCancel(s.ctx)
	done := make(chan struct{})
	s.t.Cleanup(func() {
		cancel()
		<-done
	})
	go func() {
		defer close(done)
		defer func() { _ = conn.Close(context.Background()) }() // a cancelled connection is closed already
		defer close(s.queue)
		for {
			m, err := conn.ReceiveMessage(ctx)
			if err != nil {
				s.ended = err
				return
			}
			if e, ok := m.(*pgproto3.ErrorResponse); ok {
				s.ended = pgconn.ErrorResponseToPgError(e)
				return
			}
			data, ok := m.(*pgproto3.CopyData)
			if !ok || data.Data[0] != pglogrepl.XLogDataByteID {
				continue
			}
			x, err := pglogrepl.ParseXLogData(data.Data[1:])
			if err != nil {
				s.ended = err
				return
			}
			parsed, err := pglogrepl.Parse(slices.Clone(x.WALData))
			if err != nil {
				s.ended = err
				return
			}
			select {
			case s.queue <- parsed:
			case <-ctx.Done():
				return
			}
		}
	}()
}

// advance emits one transaction, and those that are at hand.
func (s *stream) advance() {
	s.t.Helper()
	for m := range s.queue {
		switch m := m.(type) {
		case *pglogrepl.BeginMessage:
			s.content = ""
			s.x = s.pending.Emitted(m.Xid)
		case *pglogrepl.InsertMessage:
			s.put(nil, m.Tuple)
		case *pglogrepl.UpdateMessage:
			s.put(m.OldTuple, m.NewTuple)
		case *pglogrepl.DeleteMessage:
			s.change(Change{Kind: millrace.KindDelete, Key: s.key(m.OldTuple)}, pair{})
		case *pglogrepl.TruncateMessage:
			s.change(Change{Kind: millrace.KindTruncate}, pair{})
		case *pglogrepl.LogicalDecodingMessage:
			s.content = string(m.Content)
		case *pglogrepl.CommitMessage:
			s.units++
			if s.content != "" {
				s.passed = s.content
				return
			}
			if len(s.queue) == 0 {
				return
			}
		}
	}
	s.t.Fatalf("the replication connection has ended: %v", s.ended)
}

func (s *stream) key(t *pglogrepl.TupleData) []byte {
	s.t.Helper()
	key, err := s.reader.codec.Append(nil, [][]byte{t.Columns[0].Data})
	if err != nil {
		s.t.Fatal(err)
	}
	return key
}

func (s *stream) put(old, row *pglogrepl.TupleData) {
	c := Change{Kind: millrace.KindPut, Key: s.key(row), Unchanged: row.Columns[2].DataType == 'u'}
	if old != nil {
		c.From = s.key(old)
	}
	s.change(c, pair{a: string(row.Columns[1].Data), c: string(row.Columns[2].Data)})
	if old != nil {
		s.change(Change{Kind: millrace.KindDelete, Key: c.From}, pair{})
	}
}

func (s *stream) change(c Change, row pair) {
	s.t.Helper()
	for i, g := range []map[string]pair{s.live, s.shadow} {
		if g == nil {
			continue
		}
		switch c.Kind {
		case millrace.KindTruncate:
			clear(g)
		case millrace.KindDelete:
			delete(g, string(c.Key))
		case millrace.KindPut:
			if c.Unchanged {
				from := c.From
				if from == nil {
					from = c.Key
				}
				base, ok := g[string(from)]
				if !ok && i == 0 {
					s.t.Fatalf("no row to complete key %x from", from)
				}
				row.c, row.lacks = base.c, !ok || base.lacks
			}
			g[string(c.Key)] = row
		}
	}
	if s.shadow == nil {
		return
	}
	s.load.Emitted(c)
	if s.window == nil {
		return
	}
	if c.Kind == millrace.KindTruncate {
		s.window.NoteAll(s.x)
	} else {
		s.window.Note(s.x, c.Key)
	}
}

// chunk carries a chunk through while the source is written to. It returns
// whether it got that far.
func (s *stream) chunk(n int) bool {
	s.t.Helper()
	s.window = s.load.Open(s.pending)
	defer func() { s.window = nil }()
	var leaves []Leaf
	for {
		s.advance()
		snapshot, l, err := s.reader.Begin(s.ctx)
		if errors.Is(err, ErrBusy) {
			continue
		}
		if err != nil {
			s.t.Fatal(err)
		}
		s.pending.Show(snapshot)
		if leaves = l; s.window.Accept(snapshot) {
			break
		}
		if err := s.reader.Cancel(s.ctx); err != nil {
			s.t.Fatal(err)
		}
	}
	s.load.Match(s.window, leaves)
	if s.load.Finished() {
		return false
	}
	c := s.load.Next(s.window)
	rows := make(map[string]pair)
	if err := s.reader.Rows(s.ctx, &c, func(key []byte, columns []millrace.Datum) error {
		rows[string(key)] = pair{a: string(columns[1].Text), c: string(columns[2].Text)}
		return nil
	}); err != nil {
		s.t.Fatal(err)
	}
	content := fmt.Sprintf("chunk %d", n)
	if err := s.reader.End(s.ctx, content); err != nil {
		s.t.Fatal(err)
	}
	for s.passed != content {
		s.advance()
	}
	if s.window.Overflown() {
		return false
	}
	for key, row := range rows {
		if !s.window.LeavesOut([]byte(key)) {
			s.shadow[key] = row
			s.load.Row([]byte(key))
		}
	}
	s.load.Done(s.window, c)
	return true
}

// TestLoadBesideWriters loads a table of a real server again and again while
// sessions write to it in every manner. What the shadow has at each end must be
// what the changes since the table was empty add up to.
func TestLoadBesideWriters(t *testing.T) {
	seed := *modelSeed
	if seed == 0 {
		seed = rand.Uint64N(1 << 40)
	}
	t.Logf("seed %d (repeat the writers' choices with -model.seed=%d)", seed, seed)
	b := newBench(t, 23, "int4", ReaderConfig{}, Limits{}, plainTable+
		"; ALTER TABLE t ALTER c SET STORAGE EXTERNAL; ALTER TABLE t SET (fillfactor = 10); CREATE PUBLICATION p FOR TABLE t")
	b.db.Exec("SELECT pg_create_logical_replication_slot('s', 'pgoutput')")
	s := &stream{bench: b, sql: b.connect(), pending: b.pending(), live: make(map[string]pair)}
	b.db.Exec("INSERT INTO t SELECT i, 'a', repeat('x', CASE WHEN i % 2 = 0 THEN 2500 ELSE 10 END) FROM generate_series(1, 300) i")

	s.receive()
	ctx, stop := context.WithCancel(b.ctx)
	// However fast the writers are beside the reader, a load comes to its end: they move
	// all rows when they are told to, during its first chunks.
	move, draw := make(chan struct{}, 1), rand.New(rand.NewPCG(seed, 3)).IntN
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	for i := range 3 {
		conn := b.connect()
		w := &writer{conn: conn, draw: rand.New(rand.NewPCG(seed, uint64(i))).IntN, name: i, move: move}
		wg.Go(func() { w.run(ctx, t) })
	}
	n, restarts := 0, uint64(0)
	for round := range 12 {
		s.advance()
		s.load, s.shadow = NewLoad(Limits{Blocks: 1, Keys: 20}), make(map[string]pair)
		for chunks := 0; !s.load.Finished(); chunks++ {
			if chunks < 30 && draw(2) == 0 {
				select {
				case move <- struct{}{}:
				default:
				}
			}
			n++
			s.chunk(n)
		}
		if !maps.Equal(s.shadow, s.live) {
			t.Fatalf("load %d: the shadow has %d rows, live has %d, or other values: %s", round+1, len(s.shadow), len(s.live), difference(s.shadow, s.live))
		}
		s.live, s.shadow = s.shadow, nil
		restarts += s.load.pass - 1
	}
	stop()
	wg.Wait()
	t.Logf("%d chunks, %d transactions, %d passes begun anew", n, s.units, restarts)
	// Live rows are the source's.
	b.db.Exec("SELECT pg_logical_emit_message(true, 'x', 'end')")
	for s.passed != "end" {
		s.advance()
	}
	source := make(map[string]pair)
	rows, err := s.sql.Query(b.ctx, "SELECT id::text, a, c FROM t")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var id, a, c string
		if err := rows.Scan(&id, &a, &c); err != nil {
			t.Fatal(err)
		}
		source[string(s.key(&pglogrepl.TupleData{Columns: []*pglogrepl.TupleDataColumn{{Data: []byte(id)}}}))] = pair{a: a, c: c}
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	if !maps.Equal(source, s.live) {
		t.Errorf("the source has other rows: %s", difference(source, s.live))
	}
}

// TestSnapshotBeforeCommitIsVisible: a commit that waits for a standby is in the
// stream and in no snapshot. The chunk waits for it in the same window.
func TestSnapshotBeforeCommitIsVisible(t *testing.T) {
	db := pgtest.On(t, pgtest.Cluster(t, pgtest.Options{}))
	b := newBenchOn(t, db, 23, "int4", ReaderConfig{}, Limits{}, plainTable+"; CREATE PUBLICATION p FOR TABLE t")
	b.db.Exec("SELECT pg_create_logical_replication_slot('s', 'pgoutput')")
	s := &stream{bench: b, sql: b.connect(), pending: b.pending(), live: make(map[string]pair)}
	s.receive()
	waits := b.connect()
	b.db.Exec("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
	b.db.Exec("SELECT pg_reload_conf()")
	// The server learns of the setting in its time; then an insert waits.
	var inserted atomic.Int32
	released := make(chan struct{})
	done := make(chan error, 1)
	go func() {
		for {
			_, err := waits.Exec(b.ctx, "INSERT INTO t VALUES ($1, 'a', 'c')", inserted.Add(1))
			select {
			case <-released:
				done <- err
				return
			default:
			}
			if err != nil {
				done <- err
				return
			}
		}
	}()
	for b.db.String("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND pid = $1", waits.PgConn().PID()) == "0" {
		if b.ctx.Err() != nil {
			t.Fatal("no commit waits for the standby")
		}
	}
	for len(s.live) < int(inserted.Load()) {
		s.advance()
	}
	w := b.load.Open(s.pending)
	for range 3 {
		snapshot, _, err := b.reader.Begin(b.ctx)
		if err != nil {
			t.Fatal(err)
		}
		if w.Accept(snapshot) {
			t.Fatalf("snapshot %v was accepted", snapshot)
		}
		if err := b.reader.Cancel(b.ctx); err != nil {
			t.Fatal(err)
		}
	}
	close(released)
	b.db.Exec("ALTER SYSTEM RESET synchronous_standby_names")
	b.db.Exec("SELECT pg_reload_conf()")
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	_ = b.accepted(w)
	if err := b.reader.Cancel(b.ctx); err != nil {
		t.Fatal(err)
	}
	b.finish()
}

func difference(got, want map[string]pair) string {
	var d []string
	for k, v := range got {
		if w, ok := want[k]; !ok || v != w {
			d = append(d, fmt.Sprintf("key %x: %s/%d/%v, want %v %s/%d", k, v.a, len(v.c), v.lacks, ok, w.a, len(w.c)))
		}
	}
	for k := range want {
		if _, ok := got[k]; !ok {
			d = append(d, fmt.Sprintf("key %x is not there", k))
		}
	}
	return strings.Join(d, "; ")
}

// writer is a session that writes.
type writer struct {
	conn *pgx.Conn
	draw func(int) int
	name int
	n    int
	move <-chan struct{}
}

func (w *writer) run(ctx context.Context, t *testing.T) {
	// The reader must be able to keep up.
	pace := time.NewTicker(2 * time.Millisecond)
	defer pace.Stop()
	for ctx.Err() == nil {
		<-pace.C
		move := false
		select {
		case <-w.move:
			move = true
		default:
		}
		if move && w.draw(2) == 0 {
			w.exec(ctx, t, "SET lock_timeout = 20")
			w.exec(ctx, t, "VACUUM FULL t")
			w.exec(ctx, t, "SET lock_timeout = 0")
			continue
		}
		parts := []string{"BEGIN"}
		if move {
			parts = append(parts, "SET LOCAL lock_timeout = 20", "TRUNCATE t",
				"INSERT INTO t SELECT i, 'fresh', repeat('y', 2500) FROM generate_series(1, 50) i")
		}
		for range 1 + w.draw(4) {
			parts = append(parts, w.statement())
		}
		end := "COMMIT"
		if w.draw(6) == 0 {
			end = "ROLLBACK"
		}
		w.exec(ctx, t, strings.Join(append(parts, end), "; "))
	}
}

func (w *writer) statement() string {
	w.n++
	k := w.draw(400)
	a := fmt.Sprintf("%d-%d", w.name, w.n)
	switch w.draw(8) {
	case 0:
		return fmt.Sprintf("DELETE FROM t WHERE id = %d", k)
	case 1:
		return fmt.Sprintf("UPDATE t SET id = %d, a = '%s' WHERE id = %d AND NOT EXISTS (SELECT FROM t WHERE id = %d)", w.draw(400), a, k, w.draw(400))
	case 2, 3:
		return fmt.Sprintf("INSERT INTO t VALUES (%d, '%s', repeat('%d', %d)) ON CONFLICT (id) DO UPDATE SET a = excluded.a, c = excluded.c",
			k, a, w.name, 10+w.draw(2)*2500)
	}
	return fmt.Sprintf("UPDATE t SET a = '%s' WHERE id = %d", a, k)
}

// exec runs statements. What other sessions refuse them is part of the game.
func (w *writer) exec(ctx context.Context, t *testing.T, sql string) {
	_, err := w.conn.Exec(context.WithoutCancel(ctx), sql, pgx.QueryExecModeSimpleProtocol)
	if err == nil {
		return
	}
	var pg *pgconn.PgError
	if !errors.As(err, &pg) || pg.Code != "40P01" && pg.Code != "55P03" && pg.Code != "23505" {
		t.Errorf("%s: %v", sql, err)
	}
	if w.conn.PgConn().TxStatus() != 'I' {
		if _, err := w.conn.Exec(context.WithoutCancel(ctx), "ROLLBACK"); err != nil {
			t.Error(err)
		}
	}
}
