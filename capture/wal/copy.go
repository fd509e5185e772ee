package wal

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

const (
	// A chunk of the copy is a unit of its own, up to either bound.
	chunkBytes = 1 << 20
	chunkRows  = 10_000
	// slotAttempts is how often the copy begins anew because a table was
	// altered while the slot was being made.
	slotAttempts = 5
)

// firstCopy is a copy of all tables in the snapshot at which a slot begins.
type firstCopy struct {
	conn     *pgx.Conn // in the transaction of the snapshot; holds the tables' locks
	position millrace.Position
	time     time.Time // of the snapshot
	tables   []copiedTable
	catalog  millrace.Catalog // as of the copy's end
}

type copiedTable struct {
	info   *tableInfo
	schema *millrace.Schema
	fresh  bool // the stream does not have the schema yet
	codec  *millrace.KeyCodec
	load   millrace.LoadID
	rows   uint64
}

// beginCopy makes the slot, takes its snapshot over into a transaction of its
// own and locks the tables against being rewritten until they are copied.
//
// The snapshot is older than the locks. What a TRUNCATE or rewriting ALTER
// between the two leaves behind, the snapshot cannot read; so tables that were
// altered meanwhile mean a new slot.
func (c *Capture) beginCopy(ctx context.Context, conn *pgx.Conn, server *serverInfo, from *millrace.Checkpoint) (*firstCopy, error) {
	for attempt := 1; ; attempt++ {
		before, err := c.fingerprint(ctx, conn)
		if err != nil {
			return nil, err
		}
		tables, problems, err := c.checkTables(ctx, conn)
		if err != nil {
			return nil, err
		}
		if err := firstError(problems); err != nil {
			return nil, err
		}
		fc, err := c.takeSnapshot(ctx, server)
		if err != nil {
			return nil, err
		}
		after, err := c.fingerprint(ctx, conn)
		if err == nil && after == before {
			if err = fc.plan(tables, from); err == nil {
				return fc, nil
			}
		}
		closeConn(fc.conn)
		if dropErr := c.dropSlot(ctx, conn); err == nil {
			err = dropErr
		}
		if err != nil {
			return nil, err
		}
		c.log.Info("tables were altered while the slot was made, making another", "attempt", attempt)
		if attempt == slotAttempts {
			return nil, errors.New("make slot: tables were altered at each attempt; end what alters them and start again")
		}
	}
}

// fingerprint is the same as long as no configured table or partition of one is
// rewritten, truncated or altered.
func (c *Capture) fingerprint(ctx context.Context, conn *pgx.Conn) (string, error) {
	var schemas, names []string
	for _, t := range c.tables {
		schemas, names = append(schemas, t.schema), append(names, t.name)
	}
	var text string
	err := conn.QueryRow(ctx, `
WITH RECURSIVE tree (oid) AS (
    SELECT c.oid
    FROM pg_class c
    JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN unnest($1::text[], $2::text[]) w (schema, name) ON w.schema = n.nspname AND w.name = c.relname
  UNION
    SELECT i.inhrelid FROM tree JOIN pg_inherits i ON i.inhparent = tree.oid
)
SELECT coalesce(string_agg(concat_ws(' ', c.oid, c.relname, c.relfilenode, c.relreplident, c.relkind, c.relpersistence,
         (SELECT string_agg(concat_ws(' ', attnum, attname, atttypid, atttypmod, attnotnull, attgenerated, attisdropped), ',' ORDER BY attnum)
          FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0)), ';' ORDER BY c.oid), '')
FROM tree JOIN pg_class c ON c.oid = tree.oid`, schemas, names).Scan(&text)
	if err != nil {
		return "", fmt.Errorf("look at the tables: %w", err)
	}
	return text, nil
}

// takeSnapshot makes the slot and a transaction in its snapshot.
func (c *Capture) takeSnapshot(ctx context.Context, server *serverInfo) (_ *firstCopy, err error) {
	repl, err := c.connectReplication(ctx)
	if err != nil {
		return nil, err
	}
	// The snapshot can be imported until this connection's next command; after
	// that the importing transaction holds it.
	defer closeConn(repl)
	sys, err := identify(ctx, repl)
	if err != nil {
		return nil, err
	}
	c.log.Info("making slot; this waits for transactions that are running", "slot", c.cfg.Slot)
	point, snapshot, err := c.createSlot(ctx, repl, server)
	if err != nil {
		return nil, err
	}
	fc := &firstCopy{position: millrace.Position{
		Mode: millrace.ModeWAL, SystemID: sys.id, Timeline: sys.timeline, Slot: c.cfg.Slot, LSN: point,
	}}
	if fc.conn, err = c.connect(ctx, nil); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			closeConn(fc.conn)
		}
	}()
	var names []string
	for _, t := range c.tables {
		names = append(names, t.quoted())
	}
	for _, sql := range []string{
		"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
		"SET TRANSACTION SNAPSHOT '" + strings.ReplaceAll(snapshot, "'", "''") + "'",
		"LOCK TABLE " + strings.Join(names, ", ") + " IN ACCESS SHARE MODE",
	} {
		if _, err := fc.conn.Exec(ctx, sql); err != nil {
			return nil, fmt.Errorf("take over the slot's snapshot: %s: %w", sql, err)
		}
	}
	if err := fc.conn.QueryRow(ctx, "SELECT transaction_timestamp()").Scan(&fc.time); err != nil {
		return nil, fmt.Errorf("read the time of the snapshot: %w", err)
	}
	fc.time = fc.time.UTC()
	return fc, nil
}

// createSlot returns the slot's consistent point and the name of its snapshot.
func (c *Capture) createSlot(ctx context.Context, repl *replication, server *serverInfo) (millrace.LSN, string, error) {
	sql := "CREATE_REPLICATION_SLOT " + quote(c.cfg.Slot) + " LOGICAL pgoutput "
	switch {
	case server.version >= 170000:
		sql += "(SNAPSHOT 'export', FAILOVER true)"
	case server.version >= 150000:
		sql += "(SNAPSHOT 'export')"
	default:
		sql += "EXPORT_SNAPSHOT"
	}
	results, err := repl.Exec(ctx, sql).ReadAll()
	var pg *pgconn.PgError
	switch {
	case errors.As(err, &pg) && pg.Code == "53400": // configuration_limit_exceeded
		return 0, "", fmt.Errorf("%w: make slot %s: %w; mend: raise max_replication_slots and restart the server, or drop a slot that nobody uses", ErrSlotMissing, c.cfg.Slot, err)
	case err != nil:
		return 0, "", fmt.Errorf("make slot %s: %w", c.cfg.Slot, err)
	case len(results) != 1 || len(results[0].Rows) != 1 || len(results[0].Rows[0]) < 3:
		return 0, "", fmt.Errorf("%w: answer to CREATE_REPLICATION_SLOT", ErrProtocol)
	}
	row := results[0].Rows[0] // slot_name, consistent_point, snapshot_name, output_plugin
	point, err := millrace.ParseLSN(string(row[1]))
	if err != nil {
		return 0, "", fmt.Errorf("%w: answer to CREATE_REPLICATION_SLOT: %w", ErrProtocol, err)
	}
	return point, string(row[2]), nil
}

// plan gives every table its schema version and load.
func (fc *firstCopy) plan(tables []*tableInfo, from *millrace.Checkpoint) error {
	fc.catalog = from.Catalog.Clone()
	for _, info := range tables {
		s, err := info.schema()
		if err != nil {
			return err
		}
		fc.catalog.LastLoad++
		t := copiedTable{info: info, load: fc.catalog.LastLoad}
		known := from.Catalog.Schema(info.id)
		if known != nil && known.SameAs(withVersion(s, known.Version)) {
			t.schema = known
		} else {
			fc.catalog.LastVersion++
			t.schema, t.fresh = withVersion(s, fc.catalog.LastVersion), true
		}
		if t.codec, err = millrace.NewKeyCodec(t.schema); err != nil {
			return fmt.Errorf("%w: %v: %w", ErrTable, info.name, err)
		}
		fc.tables = append(fc.tables, t)
	}
	return nil
}

// schemas returns those that the stream has at the copy's end.
func (fc *firstCopy) schemas() map[millrace.TableID]*millrace.Schema {
	m := make(map[millrace.TableID]*millrace.Schema)
	for i := range fc.tables {
		m[fc.tables[i].info.id] = fc.tables[i].schema
	}
	return m
}

// run reads all tables. emit gets the units: one that begins all loads, the
// chunks, and one that ends all loads, so that all tables appear at once.
func (fc *firstCopy) run(ctx context.Context, emit func(*millrace.Unit, int64) error, progress func(table string, rows uint64)) error {
	var w millrace.UnitWriter
	flush := func() error {
		if w.Len() == 0 {
			return nil
		}
		entries := w.Len()
		payload, err := w.Finish(millrace.UnitEnd{Time: fc.time, Token: fc.position.Token()})
		if err != nil {
			return err
		}
		return emit(millrace.NewUnit(fc.position, fc.time, entries, payload), int64(len(payload)))
	}
	for i := range fc.tables {
		t := &fc.tables[i]
		if t.fresh {
			if err := w.Append(&millrace.Entry{Kind: millrace.KindSchema, Table: t.info.id, Schema: t.schema}); err != nil {
				return fmt.Errorf("copy %v: %w", t.info.name, err)
			}
		}
		if err := w.Append(&millrace.Entry{Kind: millrace.KindLoadBegin, Table: t.info.id, Load: t.load, LoadInfo: &millrace.LoadInfo{Reason: "first copy"}}); err != nil {
			return fmt.Errorf("copy %v: %w", t.info.name, err)
		}
	}
	if err := flush(); err != nil {
		return err
	}
	for i := range fc.tables {
		t := &fc.tables[i]
		progress(t.info.name.String(), 0)
		r := &copyReader{
			t: t, w: &w, flush: flush, columns: make([]millrace.Datum, len(t.schema.Columns)),
			progress: func(rows uint64) { progress(t.info.name.String(), rows) },
		}
		if err := fc.copyTable(ctx, t, r); err != nil {
			return fmt.Errorf("copy %v: %w", t.info.name, err)
		}
	}
	if _, err := fc.conn.Exec(ctx, "COMMIT"); err != nil {
		return fmt.Errorf("end the snapshot: %w", err)
	}
	for i := range fc.tables {
		t := &fc.tables[i]
		if err := w.Append(&millrace.Entry{Kind: millrace.KindLoadEnd, Table: t.info.id, Load: t.load, LoadInfo: &millrace.LoadInfo{Rows: t.rows}}); err != nil {
			return fmt.Errorf("copy %v: %w", t.info.name, err)
		}
	}
	return flush()
}

func (fc *firstCopy) copyTable(ctx context.Context, t *copiedTable, r *copyReader) error {
	var columns []string
	for i := range t.schema.Columns {
		columns = append(columns, quote(t.schema.Columns[i].Name))
	}
	list := strings.Join(columns, ", ")
	sql := "COPY " + t.info.name.quoted() + " (" + list + ") TO STDOUT"
	if t.info.kind == "p" { // COPY reads a partitioned table by query only
		sql = "COPY (SELECT " + list + " FROM " + t.info.name.quoted() + ") TO STDOUT"
	}
	tag, err := fc.conn.PgConn().CopyTo(ctx, r, sql)
	if err != nil {
		return copyError(err)
	}
	if len(r.part) != 0 {
		return fmt.Errorf("%w: the copy ends within a row", ErrProtocol)
	}
	// The server's own count must agree with ours.
	if count, ok := strings.CutPrefix(tag.String(), "COPY "); ok {
		if n, err := strconv.ParseUint(count, 10, 64); err == nil && n != t.rows {
			return fmt.Errorf("%w: the server sent %d rows, %d arrived", ErrProtocol, n, t.rows)
		}
	}
	if err := r.flush(); err != nil {
		return err
	}
	r.progress(t.rows)
	return nil
}

func copyError(err error) error {
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == "42501" {
		return fmt.Errorf("%w: %w; mend: grant the role SELECT on the table, and BYPASSRLS if it has row security", ErrTable, err)
	}
	return err
}

// copyReader turns the rows that CopyTo writes into entries.
type copyReader struct {
	t        *copiedTable
	w        *millrace.UnitWriter
	flush    func() error
	progress func(rows uint64)

	columns           []millrace.Datum
	part              []byte // start of a row whose end has not come yet
	scratch, key, row []byte
}

func (r *copyReader) Write(b []byte) (int, error) {
	n := len(b)
	for len(b) > 0 {
		end := bytes.IndexByte(b, '\n')
		if end < 0 {
			if len(r.part)+len(b) > maxMessage {
				return 0, fmt.Errorf("row %d of the copy: %w", r.t.rows+1, millrace.ErrTooLarge)
			}
			r.part = append(r.part, b...)
			break
		}
		line := b[:end]
		if len(r.part) > 0 {
			r.part = append(r.part, line...)
			line = r.part
		}
		if err := r.line(line); err != nil {
			return 0, err
		}
		r.part = r.part[:0]
		b = b[end+1:]
	}
	return n, nil
}

func (r *copyReader) line(line []byte) (err error) {
	if r.scratch, err = copyLine(line, r.columns, r.scratch); err != nil {
		return err
	}
	if r.key, err = r.t.codec.AppendRowKey(r.key[:0], r.columns); err != nil {
		return err
	}
	r.row = millrace.AppendRow(r.row[:0], r.t.schema.Version, r.columns)
	if err := r.w.Put(r.t.info.id, r.key, nil, r.row, r.t.load); err != nil {
		return err
	}
	r.t.rows++
	if r.w.Buffered() < chunkBytes && r.w.Len() < chunkRows {
		return nil
	}
	r.progress(r.t.rows)
	return r.flush()
}
