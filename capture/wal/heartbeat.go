package wal

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// heartbeat writes a logical message every now and then. It comes back through
// the slot as a unit like any other: so our position moves on, and the server
// can let go of WAL, while only other databases are busy; and so the stream
// shows that all of it is alive. ctx ends it.
func (c *Capture) heartbeat(ctx context.Context) {
	var conn *pgx.Conn
	defer func() {
		if conn != nil {
			closeConn(conn)
		}
	}()
	failing := false
	for wait(ctx, c.cfg.Heartbeat) == nil {
		err := c.beat(ctx, &conn)
		if ctx.Err() != nil {
			return
		}
		if failed := err != nil; failed != failing {
			failing = failed
			if failed {
				c.log.Warn("heartbeat fails; the position stands still while the captured tables are idle", "error", err)
			} else {
				c.log.Info("heartbeat is back")
			}
		}
	}
}

// beatLimit bounds one heartbeat.
const beatLimit = 30 * time.Second

func (c *Capture) beat(ctx context.Context, conn **pgx.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, beatLimit)
	defer cancel()
	if *conn == nil {
		// It need not wait for standbys: the message is no data.
		fresh, err := c.connect(ctx, map[string]string{"synchronous_commit": "local"})
		if err != nil {
			return err
		}
		*conn = fresh
	}
	_, err := (*conn).Exec(ctx, "SELECT pg_logical_emit_message(true, $1, $2::text)", heartbeatPrefix, c.cfg.Stream)
	if err != nil {
		closeConn(*conn)
		*conn = nil
	}
	return err
}
