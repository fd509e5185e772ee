package millrace

import (
	"fmt"
	"strconv"

	"google.golang.org/protobuf/encoding/protowire"
)

// Mode is the way in which changes are captured at the source.
type Mode uint8

// The capture modes.
const (
	// ModeNone marks the zero Position: capture has not begun.
	ModeNone Mode = 0
	// ModeWAL is logical decoding.
	ModeWAL Mode = 1
	// ModeTrigger is a log of keys that triggers write.
	ModeTrigger Mode = 2
)

// String returns none, wal or trigger.
func (m Mode) String() string {
	switch m {
	case ModeNone:
		return "none"
	case ModeWAL:
		return "wal"
	case ModeTrigger:
		return "trigger"
	}
	return "mode " + strconv.Itoa(int(m))
}

// Position says where the capture of a stream stands, always at the end of a
// unit. Transfer stores it and gives it back without reading it; only the
// capture that made it compares its parts. A unit of a load carries the
// Position before the load.
type Position struct {
	Mode Mode
	// SystemID is the system identifier of the source cluster.
	SystemID uint64
	// Timeline is the timeline of the source cluster (WAL mode).
	Timeline uint32
	// Slot names the replication slot (WAL mode).
	Slot string
	// LSN is the end of the commit record of the newest unit (WAL mode).
	LSN LSN
	// Tick numbers the newest window (trigger mode).
	Tick uint64
	// Snapshot is the snapshot of that window, as pg_current_snapshot() prints
	// it (trigger mode).
	Snapshot string
}

// IsZero reports whether capture has not begun.
func (p Position) IsZero() bool { return p == Position{} }

// Token is the part of a Position that can be compared within a stream: the
// LSN in WAL mode and the tick in trigger mode. It grows with the stream.
func (p Position) Token() uint64 {
	if p.Mode == ModeTrigger {
		return p.Tick
	}
	return uint64(p.LSN)
}

// Validate says what is wrong with p.
func (p Position) Validate() error {
	switch p.Mode {
	case ModeNone:
		if !p.IsZero() {
			return fmt.Errorf("validate position: parts are set but the mode is not")
		}
	case ModeWAL:
		if p.Slot == "" || p.SystemID == 0 || p.Timeline == 0 || p.Tick != 0 || p.Snapshot != "" {
			return fmt.Errorf("validate position: %v is not a WAL position", p)
		}
	case ModeTrigger:
		if p.SystemID == 0 || p.Slot != "" || p.LSN != 0 {
			return fmt.Errorf("validate position: %v is not a trigger position", p)
		}
	default:
		return fmt.Errorf("validate position: unknown %v", p.Mode)
	}
	return nil
}

// String is for people and logs.
func (p Position) String() string {
	switch p.Mode {
	case ModeNone:
		return "none"
	case ModeTrigger:
		return fmt.Sprintf("trigger system=%d tick=%d snapshot=%s", p.SystemID, p.Tick, p.Snapshot)
	}
	return fmt.Sprintf("%v system=%d timeline=%d slot=%s lsn=%v", p.Mode, p.SystemID, p.Timeline, p.Slot, p.LSN)
}

const (
	positionMode     protowire.Number = 1
	positionSystem   protowire.Number = 2
	positionTimeline protowire.Number = 3
	positionSlot     protowire.Number = 4
	positionLSN      protowire.Number = 5
	positionTick     protowire.Number = 6
	positionSnapshot protowire.Number = 7
)

// AppendPosition appends the encoded form of p, which is empty for the zero
// Position.
func AppendPosition(dst []byte, p Position) []byte {
	dst = appendVarintField(dst, positionMode, uint64(p.Mode))
	dst = appendVarintField(dst, positionSystem, p.SystemID)
	dst = appendVarintField(dst, positionTimeline, uint64(p.Timeline))
	dst = appendStringField(dst, positionSlot, p.Slot)
	dst = appendVarintField(dst, positionLSN, uint64(p.LSN))
	dst = appendVarintField(dst, positionTick, p.Tick)
	dst = appendStringField(dst, positionSnapshot, p.Snapshot)
	return dst
}

// DecodePosition reads what AppendPosition wrote.
func DecodePosition(b []byte) (Position, error) {
	var p Position
	err := eachField(b, "position", func(f *field) error {
		switch f.num {
		case positionMode:
			return decodeSmall(f, &p.Mode)
		case positionSystem:
			return f.varint(&p.SystemID)
		case positionTimeline:
			return f.uint32(&p.Timeline)
		case positionSlot:
			return f.string(&p.Slot)
		case positionLSN:
			return f.varint((*uint64)(&p.LSN))
		case positionTick:
			return f.varint(&p.Tick)
		case positionSnapshot:
			return f.string(&p.Snapshot)
		}
		return f.unknown()
	})
	if err != nil {
		return Position{}, err
	}
	if err := p.Validate(); err != nil {
		return Position{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return p, nil
}
