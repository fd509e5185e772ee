package migrations

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace/capture/table"
	"github.com/millrace-db/millrace/internal/wait"
)

// chunkToCopy is a chunk of a heap.
type chunkToCopy struct {
	heap
	first, end int64 // blocks; end 0 for none
	read       int64 // rows, once it is copied
	blocks     int64 // of the heap, where it was found rewritten
}

// copier copies chunks on a connection to each side.
type copier struct {
	m        *Migration
	src, dst *pgx.Conn
	tables   []*mapping
	loud     bool // triggers of the target are not silent
}

// prepare settles the sessions: the target's has a staging table for each table,
// for rows that may be there already.
func (w *copier) prepare(ctx context.Context) error {
	if err := w.m.showApplier(ctx, w.dst); err != nil {
		return err
	}
	var err error
	if w.loud, err = silence(ctx, w.dst, w.tables); err != nil {
		return err
	}
	// Each chunk commits with the note that it is there. What a crash of the target
	// takes away is not noted then; all of it is durable before the step is done, which
	// is noted behind it.
	if _, err := w.dst.Exec(ctx, "SET synchronous_commit = off"); err != nil {
		return fmt.Errorf("set the session at the target: %w", err)
	}
	for i, t := range w.tables {
		if _, err := w.dst.Exec(ctx, fmt.Sprintf("CREATE TEMP TABLE millrace_chunk_%d ON COMMIT DELETE ROWS AS SELECT %s FROM %s WITH NO DATA", i, quoteAll("", t.targets()), t.to.Quoted())); err != nil {
			return fmt.Errorf("make a staging table for %v at the target: %w", t.to, err)
		}
	}
	return nil
}

// lockAttempts is how often a lock at the source is asked for.
const (
	lockAttempts = 600
	lockWait     = "200ms"
	lockPause    = 100 * time.Millisecond
)

// copy copies a chunk. It returns false where the heap has another file than the
// chunk was cut for, and then fills in the heap's.
func (w *copier) copy(ctx context.Context, c *chunkToCopy) (same bool, err error) {
	careful := c.again
	for attempt := 0; ; attempt++ {
		same, err = w.once(ctx, c, careful)
		if err == nil {
			return same, nil
		}
		for _, conn := range []*pgx.Conn{w.src, w.dst} {
			if conn.IsClosed() {
				return false, err
			}
			if _, again := conn.Exec(ctx, "ROLLBACK"); again != nil {
				return false, errors.Join(err, again)
			}
		}
		if errors.Is(err, errCopied) {
			return true, nil
		}
		if attempt == lockAttempts {
			return false, err
		}
		switch code(err) {
		case "23505": // unique_violation: the row is there, or one of another time is in its way
			careful = true
		case "40P01", "40001": // deadlock_detected, serialization_failure: with another worker
		case "55P03": // lock_not_available
			if err := wait.For(ctx, lockPause); err != nil {
				return false, err
			}
		default:
			return false, err
		}
	}
}

// once copies a chunk in one transaction on each side. The lock comes before the
// snapshot, so that nobody exchanges the file in between.
func (w *copier) once(ctx context.Context, c *chunkToCopy, careful bool) (same bool, err error) {
	t := w.tables[c.table]
	began := time.Now()
	if _, err := w.src.Exec(ctx, fmt.Sprintf(`BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL lock_timeout = '%s'; LOCK TABLE %s IN ACCESS SHARE MODE; SET LOCAL lock_timeout = 0`, lockWait, c.name), pgx.QueryExecModeSimpleProtocol); err != nil {
		return false, err
	}
	var file uint32
	var blocks int64
	var snapshot string
	if err := w.src.QueryRow(ctx, `SELECT coalesce(pg_relation_filenode($1::oid), 0), pg_relation_size($1::oid) / current_setting('block_size')::bigint, pg_current_snapshot()::text`, c.oid).Scan(&file, &blocks, &snapshot); err != nil {
		return false, err
	}
	if file != c.file {
		c.file, c.blocks = file, blocks
		_, err := w.src.Exec(ctx, "ROLLBACK")
		return false, err
	}
	if _, err := w.dst.Exec(ctx, "BEGIN"); err != nil {
		return false, err
	}
	if w.loud {
		if err := t.staysSilent(ctx, w.dst); err != nil {
			return false, err
		}
	}
	sent, there := t.newSum(), t.newSum()
	into := t.to.Quoted()
	if careful {
		into = fmt.Sprintf("pg_temp.millrace_chunk_%d", c.table)
	}
	var before map[string]int64
	if !careful && !w.m.cfg.NoChecksums {
		if before, err = w.heaps(ctx, t); err != nil {
			return false, err
		}
	}
	rows, err := w.stream(ctx, t.copyOut(c), "COPY "+into+" ("+quoteAll("", t.targets())+") FROM STDIN"+t.format(), sent)
	if err != nil {
		return false, err
	}
	if _, err := w.src.Exec(ctx, "COMMIT"); err != nil {
		return false, err
	}
	if rows != sent.rows {
		return false, fmt.Errorf("%w: the source sent %d rows, the target took %d; mend: report it", ErrChecksum, sent.rows, rows)
	}
	switch {
	case careful:
		err = w.merge(ctx, t, c.table, there)
	case w.m.cfg.NoChecksums:
		there = nil
	default:
		err = w.readBack(ctx, t, before, sent, there)
	}
	if err != nil {
		return false, err
	}
	if there != nil && !careful && !there.same(sent) {
		return false, fmt.Errorf("%w: the source sent %d rows with sum %x, the target has stored %d with sum %x; mend: look for a rule, a trigger or a type at the target that alters rows", ErrChecksum, sent.rows, sent.bytes(), there.rows, there.bytes())
	}
	if err := w.note(ctx, c, sent, there, snapshot, time.Since(began)); err != nil {
		return false, err
	}
	if _, err := w.dst.Exec(ctx, "COMMIT"); err != nil {
		return false, err
	}
	c.read = sent.rows
	return true, nil
}

// copyOut is the statement that sends a chunk.
func (t *mapping) copyOut(c *chunkToCopy) string {
	where := fmt.Sprintf("ctid >= '(%d,0)'", c.first)
	if c.end != 0 {
		where += fmt.Sprintf(" AND ctid < '(%d,0)'", c.end)
	}
	var columns []string
	for _, k := range t.carried {
		name := table.Quote(k.source)
		if t.binary && k.sourceCast != k.targetCast { // a wider one, which has other bytes
			name += "::" + k.targetCast
		}
		columns = append(columns, name)
	}
	for _, d := range t.derived {
		columns = append(columns, "("+d.sql+")::"+d.targetCast)
	}
	return fmt.Sprintf("COPY (SELECT %s FROM ONLY %s WHERE %s) TO STDOUT%s", strings.Join(columns, ", "), c.name, where, t.format())
}

// stream sends what a COPY of the source gives to one of the target, and returns how
// many rows that took.
func (w *copier) stream(ctx context.Context, out, in string, s *sum) (int64, error) {
	p := newPump()
	sent := make(chan error, 1)
	go func() {
		_, err := w.src.PgConn().CopyTo(ctx, io.MultiWriter(s, p), out)
		p.end(err)
		sent <- err
	}()
	tag, err := w.dst.PgConn().CopyFrom(ctx, p, in)
	// Where the target takes no more, the source's connection is of use only if it can
	// send the rest.
	_, drained := io.Copy(io.Discard, p)
	if out := <-sent; out != nil && (err == nil || code(err) == "57014") { // the target's is that the source's has failed
		err = errors.Join(out, err)
	}
	if err == nil {
		err = drained
	}
	return tag.RowsAffected(), err
}

// heaps returns how long the heaps of the target are, in blocks.
func (w *copier) heaps(ctx context.Context, t *mapping) (map[string]int64, error) {
	rows, err := w.dst.Query(ctx, strings.ReplaceAll(tree, "$1::bigint::oid", "to_regclass($1)::oid")+`
SELECT c.oid::regclass::text, pg_relation_size(c.oid) / current_setting('block_size')::bigint FROM tree JOIN pg_class c ON c.oid = tree.oid WHERE c.relkind = 'r'`, t.to.Quoted())
	if err != nil {
		return nil, fmt.Errorf("look up heaps at the target: %w", err)
	}
	defer rows.Close()
	all := make(map[string]int64)
	for rows.Next() {
		var name string
		var blocks int64
		if err := rows.Scan(&name, &blocks); err != nil {
			return nil, fmt.Errorf("look up heaps at the target: %w", err)
		}
		all[name] = blocks
	}
	return all, rows.Err()
}

// readBack reads the rows that this transaction has written. They are behind what
// was there before, or in room that was free; so where too few are found, it looks
// everywhere.
func (w *copier) readBack(ctx context.Context, t *mapping, before map[string]int64, sent, there *sum) error {
	var columns []string
	for _, k := range t.carried {
		columns = append(columns, table.Quote(k.target))
	}
	var xid string
	if err := w.dst.QueryRow(ctx, "SELECT (pg_current_xact_id()::text::bigint & 4294967295)::text").Scan(&xid); err != nil {
		return err
	}
	for _, everywhere := range []bool{false, true} {
		there.reset()
		for heap, blocks := range before {
			where := "xmin = '" + xid + "'::xid"
			if !everywhere {
				where += fmt.Sprintf(" AND ctid >= '(%d,0)'", max(0, blocks-1))
			}
			if _, err := w.dst.PgConn().CopyTo(ctx, there, fmt.Sprintf("COPY (SELECT %s FROM ONLY %s WHERE %s) TO STDOUT%s", strings.Join(columns, ", "), heap, where, t.format())); err != nil {
				return fmt.Errorf("read rows back: %w", err)
			}
		}
		if there.rows == sent.rows {
			return nil
		}
	}
	return nil
}

// merge puts the rows of a staging table where neither their key nor another value
// that has to be unique is taken: who has it has been changed since changes are kept,
// and so has the row.
func (w *copier) merge(ctx context.Context, t *mapping, i int, there *sum) error {
	staged := fmt.Sprintf("pg_temp.millrace_chunk_%d", i)
	names := t.targets()
	where := []string{fmt.Sprintf("NOT EXISTS (SELECT FROM %s t WHERE %s)", t.to.Quoted(), equal("t.", "s.", t.keyNames()))}
	for n := range t.unique {
		where = append(where, "NOT ("+t.clash(n)+")")
	}
	if _, err := w.dst.Exec(ctx, fmt.Sprintf("INSERT INTO %s (%s) OVERRIDING SYSTEM VALUE SELECT %s FROM (%s) s WHERE %s",
		t.to.Quoted(), quoteAll("", names), quoteAll("s.", names), t.withUnique("SELECT * FROM "+staged), strings.Join(where, " AND "))); err != nil {
		return fmt.Errorf("insert rows that are not there: %w", err)
	}
	var columns []string
	for _, k := range t.carried {
		columns = append(columns, k.target)
	}
	if _, err := w.dst.PgConn().CopyTo(ctx, there, fmt.Sprintf("COPY (SELECT %s FROM %s t WHERE EXISTS (SELECT FROM %s s WHERE %s)) TO STDOUT%s", quoteAll("t.", columns), t.to.Quoted(), staged, equal("t.", "s.", t.keyNames()), t.format())); err != nil {
		return fmt.Errorf("read rows back: %w", err)
	}
	return nil
}

// note notes that a chunk is copied, in the transaction that has its rows.
func (w *copier) note(ctx context.Context, c *chunkToCopy, sent, there *sum, snapshot string, took time.Duration) error {
	var rows *int64
	var sum []byte
	if there != nil {
		rows, sum = &there.rows, there.bytes()
	} else {
		rows = &sent.rows
	}
	tag, err := w.dst.Exec(ctx, `
UPDATE millrace.migration_chunk SET rows_read = $4, rows_there = $5, sum_read = $6, sum_there = $7, snapshot = $8, copied_at = clock_timestamp(), took = $9::text::interval
WHERE name = $1 AND heap = $2 AND first_block = $3 AND rows_read IS NULL`,
		w.m.cfg.Name, c.oid, c.first, sent.rows, rows, sent.bytes(), sum, snapshot, fmt.Sprintf("%d microseconds", took.Microseconds()))
	if err != nil {
		return fmt.Errorf("note the chunk: %w", err)
	}
	if tag.RowsAffected() != 1 {
		return errCopied
	}
	return nil
}

// errCopied occurs when a chunk has been copied since it was found left: a process that
// was killed had sent its commit.
var errCopied = errors.New("chunk has been copied")

// equal compares columns of the same names.
func equal(a, b string, names []string) string {
	var terms []string
	for _, n := range names {
		terms = append(terms, a+table.Quote(n)+" = "+b+table.Quote(n))
	}
	return strings.Join(terms, " AND ")
}
