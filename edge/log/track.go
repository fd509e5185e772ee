package log

import (
	"fmt"

	"github.com/millrace-db/millrace"
)

// place is an end of a unit: the index and chain there, and where in the segment the
// batch ends that it came with.
type place struct {
	index millrace.Index
	chain millrace.Chain
	pos   int64
}

// track follows headers from the end of a unit on, and says where units end. A batch
// that begins a unit names the chain after the batch before it; one that goes on with
// a unit names the chain before that unit, as the batch before it did.
type track struct {
	// unit is the end of the newest unit that is known to be complete, last that of
	// the newest batch, where a unit may have ended.
	unit, last place
}

func trackFrom(p place) track { return track{unit: p, last: p} }

// step takes the header of the record that ends at pos. ended tells that what was last
// before it has turned out to be the end of a unit.
func (t *track) step(h *millrace.Header, pos int64) (ended bool, err error) {
	switch h.Kind {
	case millrace.RecordTerm:
		return false, nil
	case millrace.RecordState:
		if h.First != t.last.index+1 || h.Chain != t.last.chain {
			return false, fmt.Errorf("%w: state record of index %v chain %v stands behind index %v chain %v",
				ErrDamaged, h.First-1, h.Chain.Short(), t.last.index, t.last.chain.Short())
		}
		return false, nil
	case millrace.RecordBatch:
	default:
		return false, fmt.Errorf("%w: %v", ErrDamaged, h.Kind)
	}
	if h.First != t.last.index+1 || h.Count == 0 || h.Prev != t.last.chain && h.Prev != t.unit.chain {
		return false, fmt.Errorf("%w: batch of %d entries from %v on, after chain %v, stands behind index %v chain %v",
			ErrDamaged, h.Count, h.First, h.Prev.Short(), t.last.index, t.last.chain.Short())
	}
	if ended = h.Prev == t.last.chain; ended {
		t.unit = t.last
	}
	t.last = place{h.Last(), h.Chain, pos}
	return ended, nil
}
