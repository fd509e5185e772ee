package wal

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/capture/chunk"
	"github.com/millrace-db/millrace/internal/wait"
)

const (
	// chunkBytes is about how many bytes of rows one chunk, and so one unit of a
	// load, has at most.
	chunkBytes = 4 << 20
	// firstRetry and lastRetry bound the pause before a lock or a snapshot is
	// tried again, and workPause that after a failed connection.
	firstRetry = 2 * time.Millisecond
	lastRetry  = 250 * time.Millisecond
	workPause  = 2 * time.Second
	// lagPause is the pause before a replica's lag is looked at again.
	lagPause = 500 * time.Millisecond
)

// worker reads chunks, one load after the other.
type worker struct {
	c *Capture
	l *loads

	conn   *pgx.Conn
	reader *chunk.Reader
	schema *millrace.Schema // of reader
	rows   rowBuffer
	row    []byte
	paced  time.Time // when the next chunk may be read
	lag    capture.LagGauge
	told   int // times that the window overflowed
}

// work runs a worker until ctx ends or a load meets what needs an operator.
func (l *loads) work(ctx context.Context, c *Capture) error {
	w := &worker{c: c, l: l, rows: rowBuffer{spool: l.spool}}
	defer w.disconnect()
	defer func() { _ = w.rows.reset() }() // a file that stays is removed at the next start
	for {
		ld := l.take(ctx)
		if ld == nil {
			return nil
		}
		err := w.bring(ctx, ld)
		l.mu.Lock()
		ld.taken = false
		name := ld.name // as the decoder has it by now
		l.mu.Unlock()
		switch {
		case ctx.Err() != nil:
			return nil
		case millrace.NeedsOperator(err):
			return fmt.Errorf("load %s: %w", name, err)
		case err != nil:
			c.log.Warn("load is held up, another attempt follows", "table", name, "error", err, "pause", workPause)
			w.disconnect()
			if wait.For(ctx, workPause) != nil {
				return nil
			}
		}
	}
}

// take waits for a load that is to be read. It returns nil when ctx has ended.
func (l *loads) take(ctx context.Context) *load {
	for {
		l.mu.Lock()
		for _, ld := range l.inOrderLocked() {
			if !l.paused && !ld.taken && !ld.work.Finished() {
				ld.taken = true
				l.mu.Unlock()
				return ld
			}
		}
		changed := l.changed
		l.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}

// bring reads chunks of a load until all are read, or the load is paused or has
// gone.
func (w *worker) bring(ctx context.Context, ld *load) error {
	w.told = 0
	for pause := firstRetry; ; {
		again, err := w.step(ctx, ld)
		switch {
		case errors.Is(err, chunk.ErrBusy) || err == nil && again == waitForMore:
			if err := wait.For(ctx, pause); err != nil {
				return err
			}
			pause = min(2*pause, lastRetry)
		case err != nil:
			return explain(err)
		case again == nothingMore:
			return nil
		default:
			pause = firstRetry
		}
	}
}

type progress int

const (
	more        progress = iota // another chunk follows
	waitForMore                 // the same one a little later
	nothingMore                 // for this load
)

// step reads one chunk and waits until it has passed in the stream.
func (w *worker) step(ctx context.Context, ld *load) (progress, error) {
	if err := w.pace(ctx); err != nil {
		return more, err
	}
	window, schema, overflows := w.l.window(ld)
	if window == nil {
		return nothingMore, nil
	}
	if overflows > w.told {
		w.told = overflows
		w.c.log.Warn("load does not come on: more rows of the table change than can be noted while one chunk is read; it goes on when the stream has caught up, or writers slow down",
			"table", schema.QualifiedName(), "times", overflows)
	}
	if err := w.prepare(ctx, schema); altered(err) {
		return w.describe(ctx, schema)
	} else if err != nil {
		return more, err
	}
	snapshot, leaves, err := w.reader.Begin(ctx)
	if altered(err) {
		return w.describe(ctx, schema)
	}
	if err != nil {
		return more, err
	}
	c, ok := w.l.accept(ld, window, snapshot, leaves)
	if !ok {
		return waitForMore, w.reader.Cancel(ctx)
	}
	if err := w.measure(ctx, ld, leaves); err != nil {
		return more, err
	}
	if err := w.rows.reset(); err != nil {
		return more, errors.Join(err, w.reader.Cancel(ctx))
	}
	err = w.reader.Rows(ctx, &c, func(key []byte, columns []millrace.Datum) error {
		w.row = millrace.AppendRow(w.row[:0], schema.Version, columns)
		return w.rows.add(key, w.row)
	})
	if err != nil {
		return more, errors.Join(err, w.reader.Cancel(ctx))
	}
	n := w.rows.n
	err = w.l.pass(ctx, func(d *decoder) error { return d.emitChunk(ld, c, schema, &w.rows) }, w.reader.End)
	w.hasRead(n, w.c.cfg.LoadRate)
	return more, err
}

// hasRead says how many rows were read, for pace; rate is the most in a second, 0
// for no limit.
func (w *worker) hasRead(rows, rate int) {
	if rate > 0 {
		w.paced = time.Now().Add(time.Duration(rows) * time.Second / time.Duration(rate))
	}
}

// window returns the window of a load's next chunk and the schema to read it
// with; nil where nothing is to be read. overflows is how often more rows changed
// than a window of the load could note.
func (l *loads) window(ld *load) (_ *chunk.Window, _ *millrace.Schema, overflows int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.paused || ld.ended || ld.work.Finished() {
		return nil, nil, 0
	}
	if ld.window != nil && ld.window.Overflown() {
		l.closeLocked(ld.table, ld.window)
		ld.window = nil
		ld.overflows++
	}
	if ld.window == nil {
		ld.window = ld.work.Open(l.pending)
		l.openLocked(ld.table, ld.window)
	}
	return ld.window, ld.schema, ld.overflows
}

// accept says which chunk to read in a snapshot, or false if it does not see
// enough.
func (l *loads) accept(ld *load, w *chunk.Window, s chunk.Snapshot, leaves []chunk.Leaf) (c chunk.Chunk, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pending.Show(s)
	if ld.ended || ld.window != w || w.Overflown() || !w.Accept(s) {
		return c, false
	}
	if known := ld.work.Known(); !ld.work.Match(w, leaves) && known != nil {
		ld.restarts++
	}
	if ld.work.Finished() {
		return c, false
	}
	return ld.work.Next(w), true
}

// pass waits until the stream has passed a message that end writes, and emit has
// been called there.
func (l *loads) pass(ctx context.Context, emit func(*decoder) error, end func(ctx context.Context, message string) error) error {
	message, err := nonce()
	if err != nil {
		return err
	}
	a := &arrival{emit: emit, passed: make(chan struct{})}
	l.mu.Lock()
	l.arrivals[message] = a
	l.mu.Unlock()
	if err = end(ctx, message); err == nil {
		select {
		case <-a.passed:
			return nil
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
	}
	l.mu.Lock()
	_, waits := l.arrivals[message]
	delete(l.arrivals, message)
	l.mu.Unlock()
	if waits {
		return err
	}
	// It was written although the connection failed, and the decoder is at it.
	select {
	case <-a.passed:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// altered reports whether a table is not the one any more that the stream knows,
// or has not the name, or a column.
func altered(err error) bool {
	var pg *pgconn.PgError
	return errors.Is(err, chunk.ErrReshaped) || errors.As(err, &pg) && slices.Contains([]string{"42P01", "42703", "3F000"}, pg.Code)
}

// describe lets the stream have the schema that the table has by now.
func (w *worker) describe(ctx context.Context, known *millrace.Schema) (progress, error) {
	var there bool
	if err := w.conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_class WHERE oid = $1::bigint::oid)", int64(known.Table)).Scan(&there); err != nil {
		return more, fmt.Errorf("look up table %s: %w", known.QualifiedName(), err)
	}
	if !there {
		return more, fmt.Errorf("%s was dropped at the source while it was read; mend: take it out of source.tables, then millrace init, and start transfer again", known.QualifiedName())
	}
	w.reader = nil
	err := w.l.pass(ctx, func(d *decoder) error { return d.redescribe(known.Table) }, func(ctx context.Context, message string) error {
		_, err := w.conn.Exec(ctx, "SELECT pg_logical_emit_message(true, $1, $2::text)", chunk.MessagePrefix, message)
		return err
	})
	w.l.mu.Lock()
	defer w.l.mu.Unlock()
	if w.l.schemas[known.Table] == known {
		return waitForMore, err // it was altered back
	}
	return more, err
}

// prepare has a connection and a reader for a schema.
func (w *worker) prepare(ctx context.Context, schema *millrace.Schema) (err error) {
	if w.conn == nil {
		if w.conn, err = w.c.connect(ctx, map[string]string{"application_name": "millrace load"}); err != nil {
			w.conn = nil
			return err
		}
	}
	if w.reader != nil && w.schema == schema {
		return nil
	}
	w.reader, err = chunk.NewReader(ctx, w.conn, chunk.ReaderConfig{
		Schema: schema, Listed: w.c.choiceOf(schema.Table).Columns != nil, Where: w.c.choiceOf(schema.Table).Where, Bytes: chunkBytes,
	})
	w.schema = schema
	return err
}

func (w *worker) disconnect() {
	if w.conn != nil {
		capture.Close(w.conn)
	}
	w.conn, w.reader = nil, nil
}

// measure notes how long the heaps are, for people.
func (w *worker) measure(ctx context.Context, ld *load, leaves []chunk.Leaf) error {
	w.l.mu.Lock()
	known := ld.sizes != nil && ld.measured == ld.restarts
	w.l.mu.Unlock()
	if known {
		return nil
	}
	ids := make([]uint32, len(leaves))
	for i := range leaves {
		ids[i] = uint32(leaves[i].ID)
	}
	rows, err := w.conn.Query(ctx, `SELECT pg_relation_size(oid) / current_setting('block_size')::bigint
FROM unnest($1::oid[]) WITH ORDINALITY l (oid, n) ORDER BY n`, ids)
	if err != nil {
		return err
	}
	sizes, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return err
	}
	w.l.mu.Lock()
	defer w.l.mu.Unlock()
	if ld.sizes == nil {
		ld.sizes = sizes
		ld.before = ld.statusLocked().BlocksDone
	}
	ld.sizes, ld.measured = sizes, ld.restarts
	return nil
}

// pace waits as the configuration wants: for the rate of rows, and for replicas
// that lag.
func (w *worker) pace(ctx context.Context) error {
	if err := wait.For(ctx, time.Until(w.paced)); err != nil {
		return err
	}
	for w.c.cfg.LoadMaxLag > 0 && w.conn != nil {
		over, err := w.lag.Over(ctx, w.conn, time.Now(), w.c.cfg.LoadMaxLag, w.c.log)
		if err != nil || !over {
			return err
		}
		if err := wait.For(ctx, lagPause); err != nil {
			return err
		}
	}
	return nil
}

// explain tells what no retry mends.
func explain(err error) error {
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == "42501" { // insufficient_privilege
		return fmt.Errorf("%w: %w; mend: grant the role SELECT on the table, and BYPASSRLS if it has row security", capture.ErrTable, err)
	}
	return err
}
