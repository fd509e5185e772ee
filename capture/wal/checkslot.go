package wal

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/capture/table"
)

// The versions from which servers can do something with slots.
const (
	failoverVersion = 170000 // carry them over to standbys
	idleVersion     = 180000 // give up those that are not read from
)

// checkSlot says what may become of the slot, and of the source's disk because
// of it. slot is nil where it has not been made yet.
func (c *Capture) checkSlot(ctx context.Context, conn *pgx.Conn, server *serverInfo, slot *slotInfo) ([]capture.Problem, error) {
	var problems []capture.Problem
	if server.keep < 0 && c.cfg.RetainLimit == 0 {
		problems = append(problems, capture.Warn("max_slot_wal_keep_size", "it is -1, and there is no source.wal.limit: while nobody reads from the slot, the WAL it holds may fill the source's disk",
			"set source.wal.limit, or max_slot_wal_keep_size at the source, to what its disk can spare"))
	}
	if server.idleTimeout > 0 {
		problems = append(problems, capture.Warn("idle_replication_slot_timeout", fmt.Sprintf("it is %d s: a slot that nobody reads from for so long is given up, and only a new epoch mends that", server.idleTimeout),
			"set it to 0, or to more than transfer may ever stand still"))
	}
	if slot != nil {
		look, err := c.lookAtSlot(ctx, conn)
		if err != nil {
			return nil, err
		}
		if look != nil {
			problems = append(problems, c.judgeSlot(look)...)
		}
	}
	found, err := c.checkFailover(ctx, conn, server, slot)
	return append(problems, found...), err
}

func (c *Capture) judgeSlot(look *slotLook) []capture.Problem {
	subject := "slot " + c.cfg.Slot
	switch state, text := c.slot.limits.judge(c.cfg.Slot, look, slotFine); {
	case state == slotLow:
		return []capture.Problem{capture.Warn(subject, text, "start millrace transfer, and look for what keeps it from going on")}
	case state == slotOver && c.cfg.DropAtLimit:
		return []capture.Problem{capture.Refuse(ErrSlotGivenUp, subject, text+", and the next start of millrace transfer drops it (source.wal.on_limit)", "raise source.wal.limit before that start, or "+capture.NewEpoch)}
	case state == slotOver:
		return []capture.Problem{capture.Refuse(ErrSlotGivenUp, subject, text, "start millrace transfer, and look for what keeps it from going on; or raise source.wal.limit")}
	}
	return nil
}

// checkFailover says what becomes of the stream when a standby is promoted. That
// there are standbys shows in physical slots; one that streams without a slot is
// not seen, and cannot take a logical slot over either.
func (c *Capture) checkFailover(ctx context.Context, conn *pgx.Conn, server *serverInfo, slot *slotInfo) ([]capture.Problem, error) {
	var standbys int
	var waited string
	err := conn.QueryRow(ctx, `
SELECT (SELECT count(*) FROM pg_replication_slots WHERE slot_type = 'physical' AND NOT temporary)::int,
       coalesce(current_setting('synchronized_standby_slots', true), '')`).Scan(&standbys, &waited)
	if err != nil {
		return nil, fmt.Errorf("look for standbys: %w", err)
	}
	var problems []capture.Problem
	subject := "slot " + c.cfg.Slot
	if server.version >= failoverVersion && slot != nil && !slot.Failover {
		problems = append(problems, capture.Warn(subject, "it is not carried over to standbys (failover is off): when one is promoted, the stream stops and only a new epoch mends that",
			"stop millrace transfer, then over a connection with replication=database: ALTER_REPLICATION_SLOT "+table.Quote(c.cfg.Slot)+" (FAILOVER true)"))
	}
	if standbys == 0 {
		return problems, nil
	}
	switch {
	case server.version < failoverVersion:
		problems = append(problems, capture.Warn("standbys", "servers before Postgres 17 do not carry logical slots over to standbys: when one is promoted, the stream stops and only a new epoch mends that", "move the source to Postgres 17 or later, or be ready to begin a new epoch"))
	case waited == "":
		problems = append(problems, capture.Warn("synchronized_standby_slots", "it is empty, and there are standbys: changes may be published that a promoted standby never had, and the stream then stops",
			"set it to the physical slots of the standbys that may be promoted"))
	}
	return problems, nil
}
