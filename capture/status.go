package capture

import (
	"strings"
	"time"
)

// LoadStatus says how far a load has come, for people.
type LoadStatus struct {
	Table  string
	Reason string
	// Initial loads end together.
	Initial bool
	// Rows were read; Blocks is the length of the table's heaps, BlocksDone what
	// was read of them. Blocks is 0 until they have been measured.
	Rows, Blocks, BlocksDone uint64
	// Restarts counts how often the table was rewritten meanwhile.
	Restarts int
	// BlocksBefore were read before this process took the load up.
	BlocksBefore uint64
	// Done tells that it has ended, and all of it was published and read back.
	Done bool
	// Waiting tells that all is read, and the load waits for others.
	Waiting bool
	// StartedAt is when this process took the load up.
	StartedAt time.Time
}

// Measure fills in the blocks. sizes are the lengths of the heaps, in the order in which
// they are read; leaf is the one that is being read, up to block; before were read
// before this process took the load up.
func (s *LoadStatus) Measure(sizes []int64, leaf int, block uint32, before uint64) {
	for i, size := range sizes {
		s.Blocks += uint64(size)
		switch {
		case i < leaf:
			s.BlocksDone += uint64(size)
		case i == leaf:
			s.BlocksDone += min(uint64(block), uint64(size))
		}
	}
	s.BlocksBefore = min(before, s.BlocksDone)
}

// Phases of a pass.
const (
	PassWaiting = "waiting"
	PassRunning = "running"
	PassDone    = "done"
	PassFailed  = "failed"
)

// PassStatus says how far the newest pass over a table has come, in which its
// rows are verified.
type PassStatus struct {
	// ID is that of its entries, 0 while it waits. IDs grow within the stream.
	ID           uint64
	Table, Phase string
	// Ranges and Rows were given out.
	Ranges, Rows uint64
	RequestedAt  time.Time
	// Problem says why it failed.
	Problem string
}

const maxText = 200

// Text bounds what somebody else has written for people: it is valid UTF-8 without
// control characters, of at most 200 bytes.
func Text(text string) string {
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return -1
		}
		return r
	}, strings.ToValidUTF8(text, ""))
	if len(text) > maxText {
		text = strings.ToValidUTF8(text[:maxText], "")
	}
	return text
}
