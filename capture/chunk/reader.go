package chunk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/millrace-db/millrace"
)

// ErrBusy occurs when the lock on the table was not to be had in time, because
// somebody holds or awaits one against everybody. Begin again a little later, in
// the same window.
var ErrBusy = errors.New("table is locked")

// ErrOrder occurs when the server returns a heap's rows in another order than
// that of their blocks. It has to be reported.
var ErrOrder = errors.New("rows came out of the order of their blocks")

// ErrReshaped occurs when the table's columns are not those of the schema that it
// is read with, or another table has its name. Look the table up again, and let the stream have its schema.
var ErrReshaped = errors.New("table was altered")

// MessagePrefix is the prefix of the logical message that Reader.End writes.
const MessagePrefix = "millrace.chunk"

// ReaderConfig says what a Reader reads and how.
type ReaderConfig struct {
	// Schema is that of the table, with the table's OID.
	Schema *millrace.Schema
	// Listed says that the schema has some of the table's columns only.
	Listed bool
	// Where is an SQL expression over the table's columns; only rows for which
	// it is true are read. Empty: all.
	Where string
	// LockTimeout is how long a chunk waits for its lock; writers queue behind
	// it no longer than that. Default 200 ms.
	LockTimeout time.Duration
	// Bytes is about how many bytes of rows one chunk may have; a chunk ends
	// early, after a block, when it has more. Default 8 MiB.
	Bytes int
	// Joins says that the transactions are another's, who begins and ends them:
	// Join takes the place of Begin, Cancel and End. Nothing is set for the
	// session then, so that a pooler may share the connection out.
	Joins bool
}

// Reader reads the chunks of one table: Begin, Rows, End, each time; or Join and
// Rows, as often as is wanted, in a transaction of another. Whoever owns
// the connection has pinned the settings that the text of values depends on. A
// Reader is not safe for concurrent use; it may be used by another goroutine than
// the one that owns the Load and the Window.
//
// With Begin each chunk is a transaction of its own and holds ACCESS SHARE, which stops no
// writer, for as long as the server takes to send its rows: who waits for a lock
// against everybody gets it after one chunk.
type Reader struct {
	conn    *pgx.Conn
	cfg     ReaderConfig
	codec   *millrace.KeyCodec
	columns string   // SELECT list
	byKey   string   // query of rows by key
	types   []string // of the key columns, as SQL writes them
	shape   string   // what the catalog has to say of the columns
	row     []millrace.Datum
	key     []byte
}

// NewReader makes a Reader on a connection that nothing else uses. The
// connection's commits must not wait for standbys; NewReader sets that. One that
// joins transactions is made within one of them, and the connection is used by
// whoever has begun it. It returns ErrReshaped where the table does not have the
// key's columns.
func NewReader(ctx context.Context, conn *pgx.Conn, cfg ReaderConfig) (*Reader, error) {
	if cfg.LockTimeout <= 0 {
		cfg.LockTimeout = 200 * time.Millisecond
	}
	if cfg.Bytes <= 0 {
		cfg.Bytes = 8 << 20
	}
	r := &Reader{conn: conn, cfg: cfg, row: make([]millrace.Datum, len(cfg.Schema.Columns))}
	var err error
	if r.codec, err = millrace.NewKeyCodec(cfg.Schema); err != nil {
		return nil, fmt.Errorf("read chunks of %s: %w", cfg.Schema.QualifiedName(), err)
	}
	if !cfg.Joins {
		if _, err := conn.Exec(ctx, "SET synchronous_commit = local"); err != nil {
			return nil, fmt.Errorf("read chunks of %s: %w", cfg.Schema.QualifiedName(), err)
		}
	}
	if err := r.prepare(ctx); err != nil {
		return nil, fmt.Errorf("read chunks of %s: %w", cfg.Schema.QualifiedName(), err)
	}
	return r, nil
}

// prepare writes the queries.
func (r *Reader) prepare(ctx context.Context) error {
	var columns []string
	for i := range r.cfg.Schema.Columns {
		columns = append(columns, "t."+pgx.Identifier{r.cfg.Schema.Columns[i].Name}.Sanitize())
	}
	r.columns = strings.Join(columns, ", ")
	var arrays, names, joins []string
	for i, c := range r.codec.Columns() {
		name := r.cfg.Schema.Columns[c].Name
		var typ string
		if err := r.conn.QueryRow(ctx, `SELECT format_type(atttypid, atttypmod) FROM pg_attribute
			WHERE attrelid = $1 AND attname = $2 AND NOT attisdropped`, uint32(r.cfg.Schema.Table), name).Scan(&typ); errors.Is(err, pgx.ErrNoRows) {
			return fmt.Errorf("%w: it has no key column %q", ErrReshaped, name)
		} else if err != nil {
			return fmt.Errorf("look at key column %q: %w", name, err)
		}
		r.types = append(r.types, typ)
		arrays = append(arrays, fmt.Sprintf("$%d::text[]", i+1))
		names = append(names, fmt.Sprintf("k%d", i))
		joins = append(joins, fmt.Sprintf("t.%s = w.k%d::%s", pgx.Identifier{name}.Sanitize(), i, typ))
	}
	from := r.name()
	if r.cfg.Where != "" {
		from = fmt.Sprintf("(SELECT * FROM %s WHERE (%s))", from, r.cfg.Where)
	}
	r.byKey = fmt.Sprintf("SELECT %s FROM unnest(%s) w (%s) JOIN %s t ON %s",
		r.columns, strings.Join(arrays, ", "), strings.Join(names, ", "), from, strings.Join(joins, " AND "))
	r.shape = shapeOf(r.cfg.Schema)
	return nil
}

// shapeOf writes a schema's columns as shapeQuery does the catalog's.
func shapeOf(s *millrace.Schema) string {
	var b strings.Builder
	for i := range s.Columns {
		c := &s.Columns[i]
		notNull := 0
		if c.NotNull {
			notNull = 1
		}
		fmt.Fprintf(&b, "%d %d %d %d %s\n", c.Number, c.Type, c.Typmod, notNull, c.Name)
	}
	return b.String()
}

// shapeQuery takes the table, and its chosen columns or NULL for all.
const shapeQuery = `SELECT coalesce(string_agg(concat_ws(' ', attnum, atttypid, atttypmod, attnotnull::int, attname) || E'\n', '' ORDER BY attnum), '')
	FROM pg_attribute WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped AND attgenerated = '' AND ($2::text[] IS NULL OR attname = ANY ($2::text[]))`

func (r *Reader) name() string { return quoted(r.cfg.Schema.Namespace, r.cfg.Schema.Name) }

func quoted(schema, name string) string { return pgx.Identifier{schema, name}.Sanitize() }

// CurrentSnapshot lets a transaction of its own begin and end and then takes a
// snapshot, so that everything that was given a number before the call is either
// seen or named: what NewPending asks for. It waits for nobody.
func CurrentSnapshot(ctx context.Context, conn *pgx.Conn) (Snapshot, error) {
	var text string
	for _, sql := range []string{"SELECT pg_current_xact_id()::text", "SELECT pg_current_snapshot()::text"} {
		if err := conn.QueryRow(ctx, sql).Scan(&text); err != nil {
			return Snapshot{}, fmt.Errorf("take snapshot: %w", err)
		}
	}
	return ParseSnapshot(text)
}

// Begin locks the table, takes the chunk's snapshot and then, when nobody can
// exchange or alter them any more, looks at the table's heaps and columns. After
// an error the transaction has ended: ErrBusy, ErrReshaped. If the window does not
// accept the snapshot, call Cancel and Begin again.
func (r *Reader) Begin(ctx context.Context) (Snapshot, []Leaf, error) {
	s, leaves, err := r.begin(ctx)
	if err != nil {
		err = errors.Join(err, r.Cancel(ctx))
		return s, nil, fmt.Errorf("begin chunk of %s: %w", r.cfg.Schema.QualifiedName(), err)
	}
	return s, leaves, nil
}

func (r *Reader) begin(ctx context.Context) (s Snapshot, leaves []Leaf, err error) {
	// Neither SET nor LOCK takes the snapshot of the transaction.
	lock := fmt.Sprintf(`BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
		SET LOCAL lock_timeout = %d;
		%s;
		LOCK TABLE %s IN ACCESS SHARE MODE;
		SET LOCAL lock_timeout = 0`, max(1, r.cfg.LockTimeout.Milliseconds()), inOrder, r.name())
	if _, err := r.conn.Exec(ctx, lock, pgx.QueryExecModeSimpleProtocol); err != nil {
		var pg *pgconn.PgError
		if errors.As(err, &pg) && pg.Code == "55P03" { // lock_not_available
			return s, nil, fmt.Errorf("%w: %w", ErrBusy, err)
		}
		return s, nil, err
	}
	return r.look(ctx)
}

// inOrder is set for each transaction: rows have to come in the order of their
// blocks, or by the key's index, and all of them.
const inOrder = `SET LOCAL enable_seqscan = off; SET LOCAL synchronize_seqscans = off; SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off;
		SET LOCAL row_security = off`

// Join takes the place of Begin in a transaction that the connection is in
// already: at REPEATABLE READ, and with the table locked in ACCESS SHARE MODE
// before its snapshot was taken. It returns that snapshot. The transaction has
// other settings from here on: its queries go by indexes. After an error it has
// failed, or the table is not as the schema says: ErrReshaped. Then nothing of
// the table may be read.
func (r *Reader) Join(ctx context.Context) (s Snapshot, leaves []Leaf, err error) {
	if !r.cfg.Joins {
		panic("chunk: Join by a reader that begins its own transactions")
	}
	if _, err = r.conn.Exec(ctx, inOrder, pgx.QueryExecModeSimpleProtocol); err == nil {
		s, leaves, err = r.look(ctx)
	}
	if err != nil {
		return s, nil, fmt.Errorf("join for a chunk of %s: %w", r.cfg.Schema.QualifiedName(), err)
	}
	return s, leaves, nil
}

// look looks at the table, which is locked, and at the snapshot.
func (r *Reader) look(ctx context.Context) (s Snapshot, leaves []Leaf, err error) {
	var listed []string
	if r.cfg.Listed {
		for i := range r.cfg.Schema.Columns {
			listed = append(listed, r.cfg.Schema.Columns[i].Name)
		}
	}
	var text, shape string
	var named bool
	if err := r.conn.QueryRow(ctx, "SELECT pg_current_snapshot()::text, ("+shapeQuery+"), to_regclass($3)::oid IS NOT DISTINCT FROM $1",
		uint32(r.cfg.Schema.Table), listed, r.name()).Scan(&text, &shape, &named); err != nil {
		return s, nil, err
	}
	if s, err = ParseSnapshot(text); err != nil {
		return s, nil, err
	}
	if shape != r.shape || !named {
		return s, nil, ErrReshaped
	}
	rows, err := r.conn.Query(ctx, `
		WITH RECURSIVE tree (oid) AS (
		    SELECT $1::oid
		  UNION
		    SELECT i.inhrelid FROM tree JOIN pg_inherits i ON i.inhparent = tree.oid
		    JOIN pg_class p ON p.oid = tree.oid AND p.relkind = 'p'
		)
		SELECT c.oid, coalesce(pg_relation_filenode(c.oid), 0)
		FROM tree JOIN pg_class c ON c.oid = tree.oid
		WHERE c.relkind <> 'p' ORDER BY c.oid`, uint32(r.cfg.Schema.Table))
	if err != nil {
		return s, nil, err
	}
	leaves, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (l Leaf, err error) {
		err = row.Scan((*uint32)(&l.ID), &l.File)
		if err == nil && l.File == 0 {
			err = fmt.Errorf("heap %v has no file: only ordinary tables and partitions can be loaded", l.ID)
		}
		return l, err
	})
	return s, leaves, err
}

// Cancel ends the transaction of a chunk that is not read.
func (r *Reader) Cancel(ctx context.Context) error {
	if r.conn.PgConn().IsClosed() || r.conn.PgConn().TxStatus() == 'I' {
		return nil
	}
	_, err := r.conn.Exec(ctx, "ROLLBACK")
	return err
}

// Rows reads the rows of a chunk and calls fn for each with its encoded key and
// its columns, which are valid during the call. It narrows c to what it has read
// where that became too many bytes, and opens it at its end where the heap ends.
func (r *Reader) Rows(ctx context.Context, c *Chunk, fn func(key []byte, columns []millrace.Datum) error) error {
	var err error
	switch {
	case len(c.Keys) > 0:
		err = r.keys(ctx, c, fn)
	case c.Leaf != 0:
		err = r.blocks(ctx, c, fn)
	}
	if err != nil {
		return fmt.Errorf("read chunk of %s: %w", r.cfg.Schema.QualifiedName(), err)
	}
	return nil
}

// End ends the chunk's transaction and writes a transactional logical message
// with MessagePrefix and the given content. When the stream has passed the commit
// that brings it, the rows can be emitted.
func (r *Reader) End(ctx context.Context, content string) error {
	if _, err := r.conn.Exec(ctx, "COMMIT"); err != nil {
		return fmt.Errorf("end chunk of %s: %w", r.cfg.Schema.QualifiedName(), err)
	}
	if _, err := r.conn.Exec(ctx, "SELECT pg_logical_emit_message(true, $1, $2::text)", MessagePrefix, content); err != nil {
		return fmt.Errorf("write message behind a chunk of %s: %w", r.cfg.Schema.QualifiedName(), err)
	}
	return nil
}

const (
	// fetchRows come in one answer at most: what is sent in vain where a chunk
	// ends early is bounded by it. It begins with firstRows, and where rows are
	// large it is no more than there is room for, but minRows.
	fetchRows = 500
	firstRows = 16
	minRows   = 8
	// fetchKeys are asked for at once, at most.
	fetchKeys = 100
)

func (r *Reader) blocks(ctx context.Context, c *Chunk, fn func([]byte, []millrace.Datum) error) error {
	var schema, name string
	var size, blockSize int64
	if err := r.conn.QueryRow(ctx, `SELECT n.nspname::text, c.relname::text, pg_relation_size(c.oid), current_setting('block_size')::bigint
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1`, uint32(c.Leaf)).Scan(&schema, &name, &size, &blockSize); err != nil {
		return fmt.Errorf("look at heap %v: %w", c.Leaf, err)
	}
	c.Bound(uint32((size + blockSize - 1) / blockSize))
	query := fmt.Sprintf("DECLARE chunk NO SCROLL CURSOR FOR SELECT %s, t.ctid FROM ONLY %s t WHERE t.ctid >= '(%d,0)'", r.columns, quoted(schema, name), c.From)
	if c.To != 0 {
		query += fmt.Sprintf(" AND t.ctid < '(%d,0)'", c.To)
	}
	if r.cfg.Where != "" {
		query += " AND (" + r.cfg.Where + ")"
	}
	if _, err := r.conn.Exec(ctx, query); err != nil {
		return err
	}
	b := &blockCutter{last: c.From, bytes: r.cfg.Bytes}
	err := r.drain(ctx, "chunk", func() (room int, more bool) { return b.bytes, !b.full }, func(raw [][]byte) (bool, error) {
		ok, err := b.take(raw)
		if err != nil || !ok {
			return false, err
		}
		return true, r.give(raw[:len(r.row)], fn)
	})
	if b.full {
		c.To = b.next
	}
	return err
}

// drain fetches from a cursor until it has no more, and closes it. left says
// before each fetch for how many bytes there is room, and whether to go on.
func (r *Reader) drain(ctx context.Context, cursor string, left func() (room int, more bool), fn func([][]byte) (bool, error)) error {
	rows, size := 0, 0
	for want := firstRows; ; {
		n, err := r.fetch(ctx, fmt.Sprintf("FETCH %d FROM %s", want, cursor), nil, func(raw [][]byte) (bool, error) {
			for _, text := range raw {
				size += len(text)
			}
			return fn(raw)
		})
		if err != nil {
			return err
		}
		rows += n
		room, more := left()
		if n < want || !more {
			break
		}
		want = fitting(room, size, rows)
	}
	_, err := r.conn.Exec(ctx, "CLOSE "+cursor)
	return err
}

// fitting is how many more rows to ask for where there is room for so many bytes,
// going by the rows that came.
func fitting(room, size, rows int) int {
	return min(max(room/(size/max(rows, 1)+1), minRows), fetchRows)
}

// blockCutter ends a chunk after the block with which it has enough bytes.
type blockCutter struct {
	last, next uint32
	bytes      int
	full       bool
}

// take says whether the row belongs to the chunk; its last column is its ctid.
func (b *blockCutter) take(raw [][]byte) (bool, error) {
	if b.full {
		return false, nil
	}
	ctid := raw[len(raw)-1] // (block,item)
	text, _, _ := bytes.Cut(bytes.TrimPrefix(ctid, []byte("(")), []byte(","))
	n, err := strconv.ParseUint(string(text), 10, 32)
	if err != nil {
		return false, fmt.Errorf("parse ctid %q: %w", ctid, err)
	}
	block := uint32(n)
	if block < b.last {
		return false, fmt.Errorf("%w: block %d after block %d", ErrOrder, block, b.last)
	}
	if block > b.last && b.bytes <= 0 {
		b.full, b.next = true, block
		return false, nil
	}
	b.last = block
	for _, text := range raw {
		b.bytes -= len(text)
	}
	return true, nil
}

func (r *Reader) keys(ctx context.Context, c *Chunk, fn func([]byte, []millrace.Datum) error) error {
	room, rows, want := r.cfg.Bytes, 0, firstRows
	for done := 0; done < len(c.Keys); {
		if room <= 0 {
			c.Keys = c.Keys[:done]
			return nil
		}
		some := c.Keys[done:min(done+want, len(c.Keys))]
		args := make([][]string, len(r.codec.Columns()))
		var texts [][]byte
		for _, key := range some {
			var err error
			if texts, err = r.codec.Decode(key, texts[:0]); err != nil {
				return err
			}
			for i, text := range texts {
				args[i] = append(args[i], string(text))
			}
		}
		var params []any
		for _, a := range args {
			params = append(params, a)
		}
		n, err := r.fetch(ctx, r.byKey, params, func(raw [][]byte) (bool, error) {
			for _, text := range raw {
				room -= len(text)
			}
			return true, r.give(raw, fn)
		})
		if err != nil {
			return err
		}
		done, rows = done+len(some), rows+n
		want = min(fitting(room, r.cfg.Bytes-room, rows), fetchKeys)
	}
	return nil
}

// fetch calls fn for each row of a query's answer until it returns false, and
// returns how many rows the answer had.
func (r *Reader) fetch(ctx context.Context, query string, params []any, fn func([][]byte) (bool, error)) (n int, err error) {
	rows, err := r.conn.Query(ctx, query, append([]any{pgx.QueryExecModeExec, pgx.QueryResultFormats{pgx.TextFormatCode}}, params...)...)
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	for more := true; rows.Next(); n++ {
		if more {
			if more, err = fn(rows.RawValues()); err != nil {
				return n, err
			}
		}
	}
	return n, rows.Err()
}

func (r *Reader) give(raw [][]byte, fn func([]byte, []millrace.Datum) error) error {
	for i, text := range raw {
		r.row[i] = millrace.Datum{State: millrace.ColumnValue, Text: text}
		if text == nil {
			r.row[i] = millrace.Datum{State: millrace.ColumnNull}
		}
	}
	var err error
	if r.key, err = r.codec.AppendRowKey(r.key[:0], r.row); err != nil {
		return err
	}
	return fn(r.key, r.row)
}
