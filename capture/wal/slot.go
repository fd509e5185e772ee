package wal

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/capture/table"
)

// makeSlot makes the stream's slot and returns the position at which it begins.
// It waits for the transactions that are running.
func (c *Capture) makeSlot(ctx context.Context, conn *pgx.Conn, server *serverInfo) (p millrace.Position, err error) {
	slot, err := c.lookUpSlot(ctx, conn)
	if err != nil {
		return p, err
	}
	if slot != nil {
		if err := c.ownSlot(slot, server); err != nil {
			return p, err
		}
		c.log.Info("slot is there, and the stream has not begun; making it anew", "slot", c.cfg.Slot)
		if err := c.dropSlot(ctx, conn); err != nil {
			return p, err
		}
	}
	repl, err := c.connectReplication(ctx)
	if err != nil {
		return p, err
	}
	defer capture.Close(repl)
	sys, err := identify(ctx, repl)
	if err != nil {
		return p, err
	}
	c.log.Info("making slot; this waits for transactions that are running", "slot", c.cfg.Slot)
	point, err := c.createSlot(ctx, repl, server)
	if err != nil {
		return p, err
	}
	return millrace.Position{Mode: millrace.ModeWAL, SystemID: sys.id, Timeline: sys.timeline, Slot: c.cfg.Slot, LSN: point}, nil
}

// createSlot makes the slot and returns its consistent point. No snapshot is
// exported: the first copy reads in snapshots of its own.
func (c *Capture) createSlot(ctx context.Context, repl *replication, server *serverInfo) (millrace.LSN, error) {
	sql := "CREATE_REPLICATION_SLOT " + table.Quote(c.cfg.Slot) + " LOGICAL pgoutput "
	switch {
	case server.version >= 170000:
		sql += "(SNAPSHOT 'nothing', FAILOVER true)"
	case server.version >= 150000:
		sql += "(SNAPSHOT 'nothing')"
	default:
		sql += "NOEXPORT_SNAPSHOT"
	}
	results, err := repl.Exec(ctx, sql).ReadAll()
	var pg *pgconn.PgError
	switch {
	case errors.As(err, &pg) && pg.Code == "53400": // configuration_limit_exceeded
		return 0, fmt.Errorf("%w: make slot %s: %w; mend: raise max_replication_slots and restart the server, or drop a slot that nobody uses", ErrSlotMissing, c.cfg.Slot, err)
	case err != nil:
		return 0, fmt.Errorf("make slot %s: %w", c.cfg.Slot, err)
	case len(results) != 1 || len(results[0].Rows) != 1 || len(results[0].Rows[0]) < 2:
		return 0, fmt.Errorf("%w: answer to CREATE_REPLICATION_SLOT", ErrProtocol)
	}
	row := results[0].Rows[0] // slot_name, consistent_point, …
	point, err := millrace.ParseLSN(string(row[1]))
	if err != nil {
		return 0, fmt.Errorf("%w: answer to CREATE_REPLICATION_SLOT: %w", ErrProtocol, err)
	}
	return point, nil
}
