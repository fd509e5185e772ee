package wal

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/internal/wait"
)

// system is what IDENTIFY_SYSTEM says.
type system struct {
	id       uint64
	timeline uint32
	end      millrace.LSN // of the WAL that is flushed
}

func identify(ctx context.Context, conn *replication) (system, error) {
	r, err := pglogrepl.IdentifySystem(ctx, conn.PgConn)
	if err != nil {
		return system{}, fmt.Errorf("identify the source: %w", err)
	}
	id, err := strconv.ParseUint(r.SystemID, 10, 64)
	if err != nil || r.Timeline <= 0 {
		return system{}, fmt.Errorf("%w: source identifies itself as system %q, timeline %d", ErrProtocol, r.SystemID, r.Timeline)
	}
	return system{id: id, timeline: uint32(r.Timeline), end: millrace.LSN(r.XLogPos)}, nil
}

// fenceCapture refuses a position that another mode or slot has made.
func (c *Capture) fenceCapture(p millrace.Position) error {
	if p.Mode != millrace.ModeWAL {
		return fmt.Errorf("%w: its position is %v; mend: capture it in that mode, or %s", capture.ErrMode, p, capture.NewEpoch)
	}
	if p.Slot != c.cfg.Slot {
		return fmt.Errorf("%w: the stream was captured through slot %s, %s is configured; mend: configure that one, or %s", ErrSlotForeign, p.Slot, c.cfg.Slot, capture.NewEpoch)
	}
	return nil
}

// fenceSystem refuses a source that does not hold the history up to p. history
// returns the timeline history file of the source's timeline.
func fenceSystem(p millrace.Position, s system, history func() ([]byte, error)) error {
	if p.SystemID != s.id {
		return fmt.Errorf("%w: the stream was captured from system %d, the source URL leads to system %d; mend: correct the URL, or %s", capture.ErrOtherSystem, p.SystemID, s.id, capture.NewEpoch)
	}
	if p.Timeline > s.timeline {
		return fmt.Errorf("%w: the stream was captured from timeline %d, the source is on timeline %d, which is older; mend: find the primary, or %s", capture.ErrTimeline, p.Timeline, s.timeline, capture.NewEpoch)
	}
	if p.Timeline < s.timeline {
		file, err := history()
		if err != nil {
			return err
		}
		left, err := switchPoint(file, p.Timeline)
		if err != nil {
			return fmt.Errorf("%w: timeline %d of the source: %w; mend: %s", capture.ErrTimeline, s.timeline, err, capture.NewEpoch)
		}
		if p.LSN > left {
			return fmt.Errorf("%w: the source left timeline %d at %v for timeline %d, the stream went on to %v: it has changes that the source lost in a failover; mend: %s",
				capture.ErrTimeline, p.Timeline, left, s.timeline, p.LSN, capture.NewEpoch)
		}
	}
	if p.LSN > s.end {
		return fmt.Errorf("%w: its WAL ends at %v, the stream is at %v: it was restored to an earlier state; mend: %s", capture.ErrRewound, s.end, p.LSN, capture.NewEpoch)
	}
	return nil
}

// switchPoint returns where the history of a timeline says that it left an
// earlier one. A line of the file is: number, tab, LSN, tab, reason.
func switchPoint(file []byte, timeline uint32) (millrace.LSN, error) {
	lines := bufio.NewScanner(bytes.NewReader(file))
	for lines.Scan() {
		text := strings.TrimSpace(lines.Text())
		if text == "" || strings.HasPrefix(text, "#") {
			continue
		}
		fields := strings.Fields(text)
		n, err := strconv.ParseUint(fields[0], 10, 32)
		if err != nil || len(fields) < 2 {
			return 0, fmt.Errorf("its history has a line %q that cannot be read", text)
		}
		if uint32(n) == timeline {
			return millrace.ParseLSN(fields[1])
		}
	}
	if err := lines.Err(); err != nil {
		return 0, fmt.Errorf("read its history: %w", err)
	}
	return 0, fmt.Errorf("its history does not contain timeline %d", timeline)
}

// slotInfo is a replication slot. Columns that older servers lack stay empty.
type slotInfo struct {
	Plugin       string `json:"plugin"`
	Type         string `json:"slot_type"`
	Database     string `json:"database"`
	Temporary    bool   `json:"temporary"`
	ActivePID    int    `json:"active_pid"`
	Restart      string `json:"restart_lsn"`
	Confirmed    string `json:"confirmed_flush_lsn"`
	Safe         *int64 `json:"safe_wal_size"`
	Failover     bool   `json:"failover"`
	Status       string `json:"wal_status"`
	Invalidation string `json:"invalidation_reason"`
	Conflicting  bool   `json:"conflicting"`
}

// lookUpSlot returns nil if there is no slot of our name.
func (c *Capture) lookUpSlot(ctx context.Context, conn *pgx.Conn) (*slotInfo, error) {
	var text string
	err := conn.QueryRow(ctx, "SELECT to_jsonb(s)::text FROM pg_replication_slots s WHERE slot_name = $1", c.cfg.Slot).Scan(&text)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	var s slotInfo
	if err == nil {
		err = json.Unmarshal([]byte(text), &s)
	}
	if err != nil {
		return nil, fmt.Errorf("look up slot %s: %w", c.cfg.Slot, err)
	}
	return &s, nil
}

// ownSlot refuses a slot that is somebody else's.
func (c *Capture) ownSlot(s *slotInfo, server *serverInfo) error {
	if s.Type != "logical" || s.Plugin != "pgoutput" || s.Database != server.database || s.Temporary {
		return fmt.Errorf("%w: slot %s is a %s slot of plugin %q in database %q, want a logical one of pgoutput in %q; mend: configure another slot name, or drop that slot",
			ErrSlotForeign, c.cfg.Slot, s.Type, s.Plugin, s.Database, server.database)
	}
	return nil
}

// fenceSlot refuses a slot that can give no changes any more.
func (c *Capture) fenceSlot(s *slotInfo, server *serverInfo) error {
	if err := c.ownSlot(s, server); err != nil {
		return err
	}
	if s.Status == "lost" || s.Invalidation != "" || s.Conflicting {
		return fmt.Errorf("%w: slot %s: %s; mend: %s, then %s", ErrSlotLost, c.cfg.Slot, s.why(), s.mend(), capture.NewEpoch)
	}
	return nil
}

// why says why the server has given the slot up. Servers before Postgres 17 tell
// only that they have.
func (s *slotInfo) why() string {
	switch {
	case s.Invalidation != "":
		return s.Invalidation
	case s.Conflicting:
		return "it conflicted with recovery"
	}
	return "wal_status is " + s.Status
}

// mend says what keeps the server from doing it again.
func (s *slotInfo) mend() string {
	switch s.Invalidation {
	case "idle_timeout":
		return "raise idle_replication_slot_timeout"
	case "wal_level_insufficient":
		return "set wal_level to logical again"
	case "rows_removed":
		return "set hot_standby_feedback on the standby"
	}
	return "raise max_slot_wal_keep_size"
}

// slotMissing is the error of a stream at p whose slot is gone.
func (c *Capture) slotMissing(p millrace.Position) error {
	return fmt.Errorf("%w: slot %s, at which the stream stands at %v: it was dropped; mend: %s", ErrSlotMissing, c.cfg.Slot, p.LSN, capture.NewEpoch)
}

// fencePosition refuses a slot that does not begin at or before p, and a source
// that has another history up to there. at is the time of the newest unit.
func (c *Capture) fencePosition(ctx context.Context, s *slotInfo, p millrace.Position, at time.Time) error {
	confirmed, err := millrace.ParseLSN(s.Confirmed)
	if err != nil {
		return fmt.Errorf("look up slot %s: %w", c.cfg.Slot, err)
	}
	if confirmed > p.LSN {
		return fmt.Errorf("%w: slot %s begins at %v, the stream ends at %v, so the changes between are gone: the slot was made again, advanced, or read by another; mend: %s",
			ErrSlotAhead, c.cfg.Slot, confirmed, p.LSN, capture.NewEpoch)
	}
	return c.proveHistory(ctx, confirmed, p, at)
}

const (
	freeLimit = 30 * time.Second
	freePoll  = 20 * time.Millisecond
)

// freeSlot ends the connection that reads from the slot. The caller holds the
// stream exclusively, so it can only be that of a process which lost the hold
// and does not know it yet, or one of ours that the server has not missed yet.
func (c *Capture) freeSlot(ctx context.Context, conn *pgx.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, freeLimit)
	defer cancel()
	for told := 0; ; {
		var pid int
		var ended bool
		err := conn.QueryRow(ctx, `
SELECT active_pid, pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1 AND active_pid IS NOT NULL`, c.cfg.Slot).Scan(&pid, &ended)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("end the connection that reads from slot %s: %w", c.cfg.Slot, err)
		}
		if pid != told {
			c.log.Info("ending the connection that reads from our slot", "slot", c.cfg.Slot, "pid", pid)
			told = pid
		}
		if err := wait.For(ctx, freePoll); err != nil {
			return fmt.Errorf("wait until slot %s is free: server process %d still reads from it: %w", c.cfg.Slot, pid, err)
		}
	}
}

func (c *Capture) dropSlot(ctx context.Context, conn *pgx.Conn) error {
	for {
		if err := c.freeSlot(ctx, conn); err != nil {
			return err
		}
		_, err := conn.Exec(ctx, "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1", c.cfg.Slot)
		var pg *pgconn.PgError
		switch {
		case err == nil:
			return nil
		case errors.As(err, &pg) && pg.Code == "42704": // gone by itself
			return nil
		case errors.As(err, &pg) && pg.Code == "55006": // taken again in between
		default:
			return fmt.Errorf("drop slot %s: %w", c.cfg.Slot, err)
		}
	}
}
