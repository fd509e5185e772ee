package trigger

import (
	"fmt"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/capture/chunk"
)

// facts are what a source says of itself in one snapshot.
type facts struct {
	System   uint64
	Database uint32 // its OID
	Recovery bool
	Snapshot chunk.Snapshot
	// Tick is the snapshot that it has of the position's tick, empty for none;
	// TickDatabase the OID of the database that it was taken in.
	Tick         string
	TickDatabase uint32
}

// fenceMode refuses a position of another way of capture.
func fenceMode(p millrace.Position) error {
	if p.Mode != millrace.ModeTrigger {
		return fmt.Errorf("%w: its position is %v; mend: capture it in that mode, or %s", capture.ErrMode, p, capture.NewEpoch)
	}
	return nil
}

// fence refuses a source that does not hold the history up to p. The zero position
// has none.
func fence(p millrace.Position, f *facts, pl planted) error {
	if f.Recovery {
		return fmt.Errorf("%w, whose snapshots leave running transactions out; mend: give the primary's address in the source URL", capture.ErrStandby)
	}
	if p.IsZero() {
		return nil
	}
	if err := fenceMode(p); err != nil {
		return err
	}
	if p.SystemID != f.System {
		return fmt.Errorf("%w: the stream was captured from system %d, the source URL leads to system %d; mend: correct the URL, or %s", capture.ErrOtherSystem, p.SystemID, f.System, capture.NewEpoch)
	}
	if pl.tickless() {
		return nil
	}
	rewound := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s; mend: %s", capture.ErrRewound, fmt.Sprintf(format, args...), capture.NewEpoch)
	}
	switch {
	case f.Tick == "":
		return rewound("it does not have tick %d, at which the stream stands: it was restored to an earlier state, or is a standby that was promoted without it", p.Tick)
	case f.Tick != p.Snapshot:
		return rewound("its tick %d has snapshot %s, the stream has %s: it went on from an earlier state", p.Tick, f.Tick, p.Snapshot)
	case f.TickDatabase != f.Database:
		return rewound("its tick %d was taken in the database with OID %d, and this one has OID %d: it was restored from a dump, and what it has are copies with other transactions", p.Tick, f.TickDatabase, f.Database)
	}
	s, err := chunk.ParseSnapshot(p.Snapshot)
	if err != nil {
		return fmt.Errorf("%w: position %v: %w", millrace.ErrMalformed, p, err)
	}
	if f.Snapshot.Xmax < s.Xmax {
		return rewound("its transactions have come to number %d, the stream to %d: they were numbered anew, as after pg_resetwal", f.Snapshot.Xmax, s.Xmax)
	}
	return nil
}
