package keylog

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
)

// rotateLockTimeout is how long emptying a segment may wait for those who use it,
// and so hold back those who come after.
const rotateLockTimeout = 100 * time.Millisecond

// Beginner is what begins a transaction: a connection or a pool.
type Beginner interface {
	Querier
	BeginTx(ctx context.Context, options pgx.TxOptions) (pgx.Tx, error)
}

// Rotation says what Rotate did.
type Rotation struct {
	// Emptied are the names of segments that it emptied.
	Emptied []string
	// Kept are those that hold keys which are not published.
	Kept []string
	// Busy are those that somebody had locked.
	Busy []string
}

// candidatesQuery gives the segments that may be emptied: of each log the one that
// is written to next, which is the oldest.
const candidatesQuery = `
SELECT l.id, (millrace.segment(l.period) + 1) % 3
FROM millrace.key_log l
JOIN pg_class c ON c.relnamespace = 'millrace'::regnamespace AND c.relname = concat('log_', l.id, '_', (millrace.segment(l.period) + 1) % 3)
WHERE l.stream = $1 AND pg_relation_size(c.oid) > 0
ORDER BY l.id`

// Rotate empties what has been published and is older than a period. snapshot is the
// newest that has been published, as pg_current_snapshot() prints it.
//
// Of each log one segment is looked at: the one that is written to next, whose keys
// are one to two periods old. It is emptied by TRUNCATE, under an ACCESS EXCLUSIVE
// lock that is held for some milliseconds, and asked for no longer than 100 ms at a
// time: a transaction that began that long ago and wrote to it, or a window that is
// being read, makes Rotate leave it for another time. Writers use another segment.
//
// Nothing is lost: under the lock no transaction that wrote to the segment is still
// open, prepared ones included, and one that is to write to it later finds it empty.
// So each row there is of a transaction that has ended, and it is looked, with a
// snapshot taken under the lock, whether snapshot sees them all. Where time jumps,
// or a session is late, the lock and the look decide, not the clock.
//
// Call it every few seconds; with nothing to do it is one cheap query.
func Rotate(ctx context.Context, db Beginner, stream, snapshot string) (Rotation, error) {
	var r Rotation
	rows, err := db.Query(ctx, candidatesQuery, stream)
	if err != nil {
		return r, fmt.Errorf("look for segments to empty: %w", err)
	}
	type candidate struct{ log, segment int }
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (c candidate, err error) {
		return c, row.Scan(&c.log, &c.segment)
	})
	if err != nil {
		return r, fmt.Errorf("look for segments to empty: %w", err)
	}
	for _, c := range all {
		name := Segment(c.log, c.segment)
		published, err := isPublished(ctx, db, name, snapshot)
		if err != nil {
			return r, err
		}
		if published {
			published, err = emptySegment(ctx, db, c.log, c.segment, snapshot)
		}
		switch {
		case code(err) == "55P03" || code(err) == "40P01": // lock_not_available, deadlock_detected
			r.Busy = append(r.Busy, name)
		case code(err) == "42P01": // undefined_table: an init or uninstall came in between
		case err != nil:
			return r, fmt.Errorf("empty %s: %w", name, err)
		case published:
			r.Emptied = append(r.Emptied, name)
		default:
			r.Kept = append(r.Kept, name)
		}
	}
	return r, nil
}

// isPublished reports whether the snapshot sees every transaction that has rows in
// a segment that q can see.
func isPublished(ctx context.Context, q Querier, segment, snapshot string) (bool, error) {
	var published bool
	err := q.QueryRow(ctx, `
SELECT NOT EXISTS (SELECT FROM `+segment+` WHERE txid >= pg_snapshot_xmax($1::text::pg_snapshot)::text::bigint)
   AND NOT EXISTS (SELECT FROM `+segment+` WHERE txid = ANY (ARRAY(SELECT x::text::bigint FROM pg_snapshot_xip($1::text::pg_snapshot) x)))`, snapshot).Scan(&published)
	if err != nil && code(err) != "42P01" {
		return false, fmt.Errorf("look whether all of %s is published: %w", segment, err)
	}
	return published, nil
}

// emptySegment reports whether it did.
func emptySegment(ctx context.Context, db Beginner, log, segment int, snapshot string) (done bool, err error) {
	name := Segment(log, segment)
	// READ COMMITTED: the look's snapshot is taken under the lock.
	tx, err := db.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.ReadCommitted, AccessMode: pgx.ReadWrite})
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, end(ctx, tx, done && err == nil)) }()
	for _, statement := range []string{
		"SET LOCAL lock_timeout = " + strconv.FormatInt(rotateLockTimeout.Milliseconds(), 10),
		"SET LOCAL enable_seqscan = off", // a segment may have no statistics yet
		"LOCK TABLE " + name + " IN ACCESS EXCLUSIVE MODE",
	} {
		if _, err := tx.Exec(ctx, statement); err != nil {
			return false, err
		}
	}
	published, err := isPublished(ctx, tx, name, snapshot)
	if err != nil || !published {
		return false, err
	}
	// Where somebody else has emptied or rewritten it, the mark is to go on saying so.
	var untouched bool
	err = tx.QueryRow(ctx, `
SELECT l.mark #>> ARRAY['segments', $3::text] = concat_ws(' ', s.oid, s.relfilenode)
FROM millrace.key_log l, pg_class s
WHERE l.id = $1 AND s.oid = $2::text::regclass`, log, name, segmentName(log, segment)).Scan(&untouched)
	if err != nil || !untouched {
		return false, err
	}
	if _, err := tx.Exec(ctx, "TRUNCATE "+name); err != nil {
		return false, err
	}
	_, err = tx.Exec(ctx, `
UPDATE millrace.key_log l SET mark = jsonb_set(l.mark, ARRAY['segments', $3::text], to_jsonb(concat_ws(' ', s.oid, s.relfilenode)))
FROM pg_class s WHERE l.id = $1 AND s.oid = $2::text::regclass`, log, name, segmentName(log, segment))
	return err == nil, err
}

// end commits or takes back.
func end(ctx context.Context, tx pgx.Tx, commit bool) error {
	if commit {
		return tx.Commit(ctx)
	}
	if err := tx.Rollback(context.WithoutCancel(ctx)); err != nil && !errors.Is(err, pgx.ErrTxClosed) {
		return err
	}
	return nil
}
