package capture

import (
	"context"
	"fmt"
	"log/slog"
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
	over    bool         // what Over said last
}

type queryRower interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// Over looks whether the standbys replay later than a limit, and tells log when that begins and when it is
// over, for loads that wait for it.
func (g *LagGauge) Over(ctx context.Context, conn queryRower, now time.Time, limit time.Duration, log *slog.Logger) (bool, error) {
	late, err := g.Look(ctx, conn, now)
	if err != nil {
		return false, err
	}
	before := g.over
	switch g.over = late > limit; {
	case g.over && !before:
		log.Info("loads wait for a standby that replays late (see pg_stat_replication)", "lag", late, "limit", limit)
	case !g.over && before:
		log.Info("loads go on: the standbys have come up")
	}
	return g.over, nil
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
		g.written, g.at = 0, time.Time{}
		return 0, nil
	}
	at, err := millrace.ParseLSN(*replayed)
	if err != nil {
		return 0, err
	}
	if g.at.IsZero() || at >= g.written {
		g.written, g.at = end, now
	}
	return now.Sub(g.at), nil
}
