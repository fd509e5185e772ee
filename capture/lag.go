package capture

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
)

// LagGauge measures how late the physical standbys replay: for how long the
// slowest has not come to what was written when it was looked at. (replay_lag of
// pg_stat_replication stands still with a standby that does.)
type LagGauge struct {
	written millrace.LSN // what the standbys have not all come to yet
	at      time.Time    // when that was the end
}

type queryRower interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// Look measures once, over a connection or in a transaction. Without a physical standby there is no lag.
// A connection that streams no more, after an error or at the end of a timeline, and stays open shows the place
// that was last reported over it; it does not count until it streams again.
func (g *LagGauge) Look(ctx context.Context, conn queryRower, now time.Time) (time.Duration, error) {
	var written string
	var replayed *string
	err := conn.QueryRow(ctx, `
SELECT pg_current_wal_lsn()::text, (
    SELECT min(replay_lsn)::text FROM pg_stat_replication r
    WHERE r.state <> 'startup'
    AND NOT EXISTS (SELECT FROM pg_replication_slots s WHERE s.active_pid = r.pid AND s.slot_type = 'logical'))`).Scan(&written, &replayed)
	if err != nil {
		return 0, fmt.Errorf("look at the lag of replicas: %w", err)
	}
	end, err := millrace.ParseLSN(written)
	if err != nil {
		return 0, err
	}
	if replayed == nil {
		*g = LagGauge{}
		return 0, nil
	}
	at, err := millrace.ParseLSN(*replayed)
	if err != nil {
		return 0, err
	}
	if g.at.IsZero() || at >= g.written {
		*g = LagGauge{end, now}
	}
	return now.Sub(g.at), nil
}
