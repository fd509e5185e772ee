package wal

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
)

// lagGauge measures how late the physical standbys replay: for how long the
// slowest has not come to what was written when it was looked at. (replay_lag of
// pg_stat_replication stands still with a standby that does.)
type lagGauge struct {
	written millrace.LSN // what the standbys have not all come to yet
	at      time.Time    // when that was the end
}

// look measures once. Without a physical standby there is no lag.
func (g *lagGauge) look(ctx context.Context, conn *pgx.Conn, now time.Time) (time.Duration, error) {
	var written string
	var replayed *string
	err := conn.QueryRow(ctx, `
SELECT pg_current_wal_lsn()::text, (
    SELECT min(replay_lsn)::text FROM pg_stat_replication r
    WHERE NOT EXISTS (SELECT FROM pg_replication_slots s WHERE s.active_pid = r.pid AND s.slot_type = 'logical'))`).Scan(&written, &replayed)
	if err != nil {
		return 0, fmt.Errorf("look at the lag of replicas: %w", err)
	}
	end, err := millrace.ParseLSN(written)
	if err != nil {
		return 0, err
	}
	if replayed == nil {
		*g = lagGauge{}
		return 0, nil
	}
	at, err := millrace.ParseLSN(*replayed)
	if err != nil {
		return 0, err
	}
	if g.at.IsZero() || at >= g.written {
		*g = lagGauge{end, now}
	}
	return now.Sub(g.at), nil
}
