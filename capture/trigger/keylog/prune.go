package keylog

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Prune deletes what no longer serves: ticks of the stream before tick (of the given
// epoch, or of epochs before) and noted DDL, both older than keep; at most limit
// rows of each, so that one call is short. It returns how many rows it deleted.
//
// Noted DDL stays, however old, while a stream may begin at a snapshot that does not
// see it: a rewrite that nobody noted would be taken for a VACUUM FULL. No stream
// begins before its oldest tick. (Its age says little: a rewrite is noted when it
// begins, and a stream may stand still while others go on.)
func Prune(ctx context.Context, db Beginner, stream string, epoch, tick uint64, keep time.Duration, limit int) (int64, error) {
	var deleted int64
	for _, d := range []struct {
		query string
		args  []any
	}{
		{`
DELETE FROM millrace.tick WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM millrace.tick
    WHERE stream = $1 AND (epoch, tick) < ($2::bigint, $3::bigint) AND taken_at < clock_timestamp() - make_interval(secs => $4)
    ORDER BY epoch, tick LIMIT $5))`, []any{stream, int64(epoch), int64(tick), keep.Seconds(), limit}},
		{`
WITH oldest AS MATERIALIZED (
    SELECT t.snapshot::pg_snapshot AS snapshot
    FROM (SELECT DISTINCT stream FROM millrace.key_log) s
    CROSS JOIN LATERAL (SELECT snapshot FROM millrace.tick t WHERE t.stream = s.stream ORDER BY epoch, tick LIMIT 1) t
)
DELETE FROM millrace.ddl_event WHERE id IN (
    SELECT id FROM millrace.ddl_event e
    WHERE happened_at < clock_timestamp() - make_interval(secs => $1)
      AND NOT EXISTS (SELECT FROM oldest o WHERE NOT pg_visible_in_snapshot(e.txid::text::xid8, o.snapshot))
    ORDER BY id LIMIT $2)`, []any{keep.Seconds(), limit}},
	} {
		tx, err := db.BeginTx(ctx, pgx.TxOptions{AccessMode: pgx.ReadWrite})
		if err != nil {
			return deleted, fmt.Errorf("prune ticks: %w", err)
		}
		tag, err := tx.Exec(ctx, d.query, d.args...)
		if err := errors.Join(err, end(ctx, tx, err == nil)); err != nil {
			return deleted, fmt.Errorf("prune ticks: %w", err)
		}
		deleted += tag.RowsAffected()
	}
	return deleted, nil
}
