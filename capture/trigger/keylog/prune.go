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
DELETE FROM millrace.ddl_event WHERE id IN (
    SELECT id FROM millrace.ddl_event WHERE happened_at < clock_timestamp() - make_interval(secs => $1) ORDER BY id LIMIT $2)`, []any{keep.Seconds(), limit}},
	} {
		tx, err := db.BeginTx(ctx, pgx.TxOptions{})
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
