package chunk

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// XID is a transaction's number with its epoch in the high 32 bits, Postgres's
// xid8. Only top-level transactions have one here.
type XID uint64

// Widen gives the 32 bits of a transaction's number, as logical decoding sends
// them, the epoch that brings it nearest to near. That is right as long as both
// are less than 2^31 transactions apart. Postgres gives out no number that is
// further ahead of the oldest that is not frozen, and a replication slot keeps
// what it has not sent from being frozen in the catalogs.
func Widen(xid uint32, near XID) XID {
	return XID(int64(near) + int64(int32(xid-uint32(near))))
}

// Snapshot is what pg_current_snapshot() prints on a primary. (On a standby it
// leaves running transactions out.)
type Snapshot struct {
	// Xmin is the lowest number that was running.
	Xmin XID
	// Xmax is one more than the highest number that had ended.
	Xmax XID
	// Running are the numbers from Xmin to before Xmax that were running, in
	// ascending order. What runs at or after Xmax is not among them.
	Running []XID
}

var errSnapshot = errors.New("want the text of pg_current_snapshot(), such as 10:20:10,14")

// ParseSnapshot reads the text form of a pg_snapshot: xmin:xmax:xip,xip,…
func ParseSnapshot(text string) (Snapshot, error) {
	var s Snapshot
	bad := func() (Snapshot, error) { return Snapshot{}, fmt.Errorf("parse snapshot %q: %w", text, errSnapshot) }
	parts := strings.Split(text, ":")
	if len(parts) != 3 {
		return bad()
	}
	for i, to := range []*XID{&s.Xmin, &s.Xmax} {
		n, err := strconv.ParseUint(parts[i], 10, 64)
		if err != nil || n == 0 {
			return bad()
		}
		*to = XID(n)
	}
	if s.Xmin > s.Xmax {
		return bad()
	}
	if parts[2] == "" {
		return s, nil
	}
	for part := range strings.SplitSeq(parts[2], ",") {
		n, err := strconv.ParseUint(part, 10, 64)
		x := XID(n)
		if err != nil || x < s.Xmin || x >= s.Xmax || len(s.Running) > 0 && s.Running[len(s.Running)-1] >= x {
			return bad()
		}
		s.Running = append(s.Running, x)
	}
	return s, nil
}

// String returns the text form.
func (s Snapshot) String() string {
	b := fmt.Appendf(nil, "%d:%d:", s.Xmin, s.Xmax)
	for i, x := range s.Running {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendUint(b, uint64(x), 10)
	}
	return string(b)
}

// Sees reports whether a transaction had ended when s was taken: if it was
// committed, s sees what it did.
func (s Snapshot) Sees(x XID) bool {
	if x >= s.Xmax {
		return false
	}
	_, running := slices.BinarySearch(s.Running, x)
	return !running
}
