package migrations

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/capture/table"
)

// ErrWayBack occurs when writers are not let go over because the way back could not be
// shown to work. Nothing has changed then, and nobody was held. What it wraps says what
// is wrong.
var ErrWayBack = errors.New("the way back does not work")

const (
	// proveLimit bounds how long the way back may take to show that it works.
	proveLimit = 2 * time.Minute
	// proveBytes is about what is kept of the changes that it gives meanwhile.
	proveBytes = 4 << 20
	// proveRows is how many rows of a table are offered, of which one is tried: rows that
	// are just being written differ between the sides.
	proveRows = 8
	// proveWait is how long the closing side may keep a table from being tried.
	proveWait = "1s"
)

// prove shows that changes of the side that is to open arrive at the one that is to
// close, and that they can be applied there: a few rows of each table are set to what they are
// at the opening side, read back through the capture of the way back behind all that
// it has kept so far (where triggers capture, which leave out what is carried over, they
// are read from the table), and one of them is put into the closing side's table, by the
// statements by which changes will be, in a transaction that is taken back. A table that
// has no row on which the two sides agree is tried without any: rights and types are
// looked at all the same. Whoever calls it has taken the way there, so that nobody applies changes
// meanwhile. Errors: ErrWayBack.
func (w *ways) prove(ctx context.Context, from side) error {
	began := time.Now()
	limited, cancel := context.WithTimeout(ctx, proveLimit)
	defer cancel()
	rows, without, err := w.tryBack(limited, from)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrWayBack, err)
	}
	w.m.log.Info("the way back works", "rows", rows, "tables_without_a_row", without, "took", time.Since(began))
	return nil
}

func (w *ways) tryBack(ctx context.Context, from side) (rows int64, without []string, err error) {
	way := w.from(from.other())
	src, dst, err := way.both(ctx)
	if err != nil {
		return 0, nil, err
	}
	defer capture.Close(src)
	defer capture.Close(dst)
	at, err := readPlace(ctx, dst, way.cfg.Name)
	if err != nil {
		return 0, nil, err
	}
	if at == nil {
		return 0, nil, fmt.Errorf("%w: it has no place", ErrChanged)
	}
	all, err := way.mappings(ctx, src, dst, &at.Catalog)
	if err != nil {
		return 0, nil, err
	}
	byID := make(map[millrace.TableID]*mapping)
	for _, t := range all {
		byID[t.id] = t
	}
	c, err := way.capture(ctx, src)
	if err != nil {
		return 0, nil, err
	}
	b := newBatch(byID)
	if c.Skips() {
		err = w.readTouched(ctx, from, c, at, all, b)
	} else {
		err = way.readSamples(ctx, src, c, at, all, b)
	}
	if err != nil {
		return 0, nil, err
	}
	sink, err := way.openSink(ctx, all, true)
	if err != nil {
		return 0, nil, err
	}
	defer sink.close()
	return sink.try(ctx, b)
}

// readTouched sets rows of each table to what they are, and reads on until that has come.
func (w *ways) readTouched(ctx context.Context, from side, c capturer, at *millrace.Checkpoint, all []*mapping, b *batch) error {
	way := w.from(from.other())
	canary, err := newToken()
	if err != nil {
		return err
	}
	if err := w.from(from).touch(ctx, all); err != nil {
		return err
	}
	if _, err := w.gates[from.other()].conn.Exec(ctx, way.fenceSQL(canary), pgx.QueryExecModeSimpleProtocol); err != nil {
		return fmt.Errorf("write a message at the %s: %w", from.other(), err)
	}
	if err := way.skip(ctx, c, at, canary, func(h *millrace.Head) error {
		var e millrace.Entry
		if h.Kind != millrace.KindPut {
			return nil
		}
		if err := millrace.DecodeEntry(h.Body, &e); err != nil {
			return err
		}
		if b.size > proveBytes {
			b.clear()
		}
		return b.add(&e)
	}); err != nil {
		return fmt.Errorf("read what was written at the %s: %w", from.other(), err)
	}
	return nil
}

// readSamples reads on until the capture has seen all that there is, and takes rows from
// the tables themselves: what is carried over does not come, and nobody else may write.
func (m *Migration) readSamples(ctx context.Context, src *pgx.Conn, c capturer, at *millrace.Checkpoint, all []*mapping, b *batch) error {
	open, err := c.Open(ctx, at)
	if err != nil {
		return err
	}
	defer open.Close() //nolint:errcheck // what was not taken comes again
	f := new(fence)
	if !open.Fence(f) {
		return fmt.Errorf("make a fence: %w", errors.ErrUnsupported)
	}
	for !open.Behind(f) {
		u, err := open.Next(ctx, ctx)
		if err == nil && u == nil {
			err = ctx.Err()
		}
		if err != nil {
			return fmt.Errorf("read what is captured: %w", err)
		}
		if err := readThrough(u, func(*millrace.Head) error { return nil }, func() {}); err != nil {
			return fmt.Errorf("read what is captured: %w", err)
		}
	}
	for _, t := range all {
		if err := t.sample(ctx, src, b.tables[t.id]); err != nil {
			return fmt.Errorf("read rows of %v: %w", t.from, err)
		}
	}
	return nil
}

// sample takes rows of the source into a batch, as far as there are any.
func (m *mapping) sample(ctx context.Context, src *pgx.Conn, b *tableBatch) error {
	rows, err := src.Query(ctx, fmt.Sprintf("SELECT %s FROM %s LIMIT %d", m.columns(source), m.from.Quoted(), proveRows), pgx.QueryExecModeExec, pgx.QueryResultFormats{pgx.TextFormatCode})
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		columns := make([]millrace.Datum, len(m.carried))
		for i, text := range rows.RawValues() {
			columns[i] = millrace.Datum{State: millrace.ColumnValue, Text: text}
			if text == nil {
				columns[i] = millrace.Datum{State: millrace.ColumnNull}
			}
		}
		key, err := m.codec.AppendRowKey(nil, columns)
		if err != nil {
			return err
		}
		b.put(key, nil, columns)
	}
	return rows.Err()
}

// touch sets rows of each table at the target to what they are, as one who applies
// changes. back are the mappings of the way back.
func (m *Migration) touch(ctx context.Context, back []*mapping) error {
	conn, err := m.connect(ctx, target)
	if err != nil {
		return err
	}
	defer capture.Close(conn)
	if err := m.showApplier(ctx, conn); err != nil {
		return err
	}
	loud, err := silence(ctx, conn, nil)
	if err != nil {
		return err
	}
	if _, err := conn.Exec(ctx, "SET lock_timeout = '"+proveWait+"'"); err != nil {
		return fmt.Errorf("set the session at the target: %w", err)
	}
	for _, t := range back {
		if loud {
			if err := (&mapping{from: t.to, to: t.from}).staysSilent(ctx, conn); err != nil {
				return err
			}
		}
		for _, column := range t.settable() {
			_, err := conn.Exec(ctx, fmt.Sprintf("UPDATE %[1]s t SET %[2]s = t.%[2]s FROM (SELECT tableoid, ctid FROM %[1]s LIMIT %[3]d FOR UPDATE SKIP LOCKED) x WHERE t.tableoid = x.tableoid AND t.ctid = x.ctid",
				t.from.Quoted(), table.Quote(column), proveRows))
			if code(err) == "428C9" { // generated_always: an identity
				continue
			}
			if err != nil {
				return fmt.Errorf("set rows of %v to what they are: %w", t.from, err)
			}
			break
		}
	}
	return nil
}

// settable are the columns of the source, the key's last.
func (m *mapping) settable() []string {
	var names, keys []string
	for c := range m.carried {
		if slices.Contains(m.key, c) {
			keys = append(keys, m.carried[c].source)
		} else {
			names = append(names, m.carried[c].source)
		}
	}
	return append(names, keys...)
}

// try puts a row of each table of a batch into the target, at which others write, and
// takes it back. It returns how many there were, and which tables had none.
func (s *sink) try(ctx context.Context, b *batch) (rows int64, without []string, err error) {
	// Here others write, and who applies changes does not.
	if _, err := s.conn.Exec(ctx, "SELECT set_config('millrace.applier', '', false)"); err != nil {
		return 0, nil, fmt.Errorf("set the session at the side that is to close: %w", err)
	}
	for i, t := range s.tables {
		tb := b.tables[t.id]
		if tb.m != t {
			continue // another partition's, and tried with that
		}
		n, err := s.tryTable(ctx, s.merges[i], tb)
		if err != nil {
			return 0, nil, fmt.Errorf("apply a change of %v to %v: %w", t.from, t.to, err)
		}
		if rows += n; n == 0 {
			without = append(without, t.to.String())
		}
	}
	return rows, without, nil
}

func (s *sink) tryTable(ctx context.Context, g *merge, tb *tableBatch) (n int64, err error) {
	if err := s.begin(ctx); err != nil {
		return 0, err
	}
	defer func() {
		s.open = false
		if _, again := s.conn.Exec(context.WithoutCancel(ctx), "ROLLBACK"); err == nil {
			err = again
		}
	}()
	s.buf = s.buf[:0]
	if s.buf, _, err = tb.stage(s.buf, s.exact); err != nil {
		return 0, err
	}
	if _, err := s.conn.PgConn().CopyFrom(ctx, bytes.NewReader(s.buf), g.copyIn); err != nil {
		return 0, fmt.Errorf("stage: %w", err)
	}
	var kept, updated, inserted, done int64
	jobs := []job{
		{"SET LOCAL lock_timeout = '" + proveWait + "'", &done},
		{g.complete, &done},
		// Others write here: one row that is as it was, and stays so, is left.
		{tb.m.agreed(g.staging), &done},
		{"SELECT FROM " + g.staging, &kept},
		{g.remove, &done},
	}
	for _, sql := range g.holders {
		jobs = append(jobs, job{sql, &done})
	}
	jobs = append(jobs, job{g.update, &updated}, job{g.insert, &inserted})
	var text strings.Builder
	for _, j := range jobs {
		text.WriteString(j.sql + ";\n")
	}
	results, err := s.conn.PgConn().Exec(ctx, text.String()).ReadAll()
	if err != nil {
		return 0, err
	}
	for i, r := range results {
		*jobs[i].rows += r.CommandTag.RowsAffected()
	}
	if updated != kept || inserted != 0 {
		return 0, fmt.Errorf("%w: %d rows were to be put, %d were updated and %d inserted; mend: look whether a rule or trigger there keeps rows out", ErrBlocked, kept, updated, inserted)
	}
	return kept, nil
}

// agreed takes all rows out of a staging table but one which the target has as it is,
// and locks that one.
func (m *mapping) agreed(staging string) string {
	var terms []string
	for c := range m.carried {
		terms = append(terms, fmt.Sprintf("(s.c%d)::%s::text IS NOT DISTINCT FROM t.%s::text", c, m.carried[c].targetCast, table.Quote(m.carried[c].target)))
	}
	for k, place := range m.key {
		terms = append(terms, fmt.Sprintf("t.%s = (s.k%d)::%s", table.Quote(m.carried[place].target), k, m.carried[place].targetCast))
	}
	return fmt.Sprintf("WITH one AS MATERIALIZED (SELECT s.ctid AS at FROM %[1]s s JOIN %[2]s t ON %[3]s WHERE s.op = 'p' AND s.u IS NULL LIMIT 1 FOR UPDATE OF t SKIP LOCKED) DELETE FROM %[1]s s WHERE s.ctid NOT IN (SELECT at FROM one)",
		staging, m.to.Quoted(), strings.Join(terms, " AND "))
}
