package wal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
)

// slotLook is what one look at our slot has shown.
type slotLook struct {
	slotInfo
	system uint64 // identifier of the cluster that was looked at
	now    millrace.LSN
	// restart is where the WAL begins that the server keeps for the slot, and
	// confirmed where it has been told that all is done. restart is 0 where the
	// server keeps none.
	restart, confirmed millrace.LSN
	// keep is how many bytes the server keeps for a slot at most, -1 for any
	// number: max_slot_wal_keep_size, or wal_keep_size where that is more.
	keep int64
	// spilled are the bytes that the server has written to its own files while
	// it decoded for the slot, since its statistics were reset.
	spilled int64
}

// retained is how many bytes of WAL the server keeps for the slot.
func (l *slotLook) retained() int64 {
	if l.restart == 0 || l.restart > l.now {
		return 0
	}
	return int64(min(uint64(l.now-l.restart), math.MaxInt64))
}

// unconfirmed is how many bytes of WAL we have not confirmed yet.
func (l *slotLook) unconfirmed() int64 {
	if l.confirmed > l.now {
		return 0
	}
	return int64(min(uint64(l.now-l.confirmed), math.MaxInt64))
}

// safe is how many bytes can be written before the server may give the slot up,
// and false where nothing limits it.
func (l *slotLook) safe() (int64, bool) {
	if l.keep < 0 || l.Safe == nil {
		return 0, false
	}
	return max(*l.Safe, 0), true
}

func (l *slotLook) lost() bool { return l.Status == "lost" || l.Invalidation != "" }

// lookAtSlot asks for all of a look in one statement, so that what is compared
// belongs together. A standby does not answer it. The result is nil if there is
// no slot of our name, or if it is not ours.
const lookAtSlot = `
SELECT to_jsonb(s)::text, pg_current_wal_lsn()::text, (SELECT system_identifier::text FROM pg_control_system()),
       (SELECT max(CASE WHEN name = 'max_slot_wal_keep_size' AND setting = '-1' THEN 9223372036854775807 ELSE setting::bigint END)
        FROM pg_settings WHERE name IN ('max_slot_wal_keep_size', 'wal_keep_size')),
       coalesce(t.spill_bytes, 0)
FROM pg_replication_slots s LEFT JOIN pg_stat_replication_slots t ON t.slot_name = s.slot_name
WHERE s.slot_name = $1 AND s.slot_type = 'logical' AND s.plugin = 'pgoutput' AND s.database = current_database() AND NOT s.temporary`

func (c *Capture) lookAtSlot(ctx context.Context, conn *pgx.Conn) (*slotLook, error) {
	var l slotLook
	var row, now, system string
	var keep int64 // in MiB, as both settings are
	err := conn.QueryRow(ctx, lookAtSlot, c.cfg.Slot).Scan(&row, &now, &system, &keep, &l.spilled)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err == nil {
		err = json.Unmarshal([]byte(row), &l.slotInfo)
	}
	if err == nil {
		l.system, err = strconv.ParseUint(system, 10, 64)
	}
	if err == nil {
		l.now, err = millrace.ParseLSN(now)
	}
	if err == nil && l.Restart != "" {
		l.restart, err = millrace.ParseLSN(l.Restart)
	}
	if err == nil && l.Confirmed != "" {
		l.confirmed, err = millrace.ParseLSN(l.Confirmed)
	}
	if err != nil {
		return nil, fmt.Errorf("look at slot %s: %w", c.cfg.Slot, err)
	}
	l.keep = -1
	if keep < math.MaxInt64>>20 {
		l.keep = keep << 20
	}
	return &l, nil
}

// slotState says how it stands with the WAL that a slot holds.
type slotState int

const (
	slotFine slotState = iota
	// slotLow: little is left of what the server or the configuration allows.
	slotLow
	// slotOver: the slot holds more than the configuration allows.
	slotOver
	// slotGone: the server has given the slot up.
	slotGone
)

// slotLimits are what a slot may hold.
type slotLimits struct {
	// warn is the share of a limit that has to be left, 0 for none.
	warn float64
	// own is our own limit in bytes, 0 for none.
	own int64
}

// slack keeps a state that wavers about its threshold from being told again and
// again: it takes so much more to leave it than to enter it.
const slack = 1.2

// judge says how it stands with a slot, given how it stood, and in words unless
// all is well.
func (l slotLimits) judge(slot string, look *slotLook, before slotState) (slotState, string) {
	if look.lost() {
		return slotGone, fmt.Sprintf("the server has given slot %s up (%s)", slot, look.why())
	}
	held := look.retained()
	holds := fmt.Sprintf("slot %s holds %s of WAL at the source", slot, size(held))
	if own := float64(l.own); l.own > 0 && (held >= l.own || before >= slotOver && float64(held) > own/slack) {
		return slotOver, fmt.Sprintf("%s; source.wal.limit is %s", holds, size(l.own))
	}
	wanted := l.warn
	if before >= slotLow {
		wanted *= slack
	}
	if safe, limited := look.safe(); limited && look.keep > 0 && float64(safe) < wanted*float64(look.keep) {
		return slotLow, fmt.Sprintf("%s; %s (%d %%) are left before the server gives the slot up (max_slot_wal_keep_size)", holds, size(safe), percent(safe, look.keep))
	}
	if left := l.own - held; l.own > 0 && float64(left) < wanted*float64(l.own) {
		return slotLow, fmt.Sprintf("%s; %s (%d %%) are left of source.wal.limit", holds, size(left), percent(left, l.own))
	}
	return slotFine, ""
}

func percent(part, whole int64) int { return int(math.Round(100 * float64(part) / float64(whole))) }

// size writes a number of bytes for people.
func size(n int64) string {
	v, unit := float64(n), "bytes"
	for _, u := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if v < 1024 {
			break
		}
		v, unit = v/1024, u
	}
	if v >= 100 {
		return strconv.FormatFloat(v, 'f', 0, 64) + " " + unit
	}
	return strconv.FormatFloat(v, 'g', 3, 64) + " " + unit
}
