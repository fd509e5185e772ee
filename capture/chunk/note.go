package chunk

import (
	"encoding/binary"
	"fmt"

	"github.com/millrace-db/millrace"
)

// Note is what a capture keeps of a load beside its Progress. It stands before
// that in millrace.Load.Progress, because a Progress grows at its end: flags,
// length of the reason, reason.
type Note struct {
	// Initial tells that the load is one of those that end together.
	Initial bool
	// Reason says why it was begun, for people.
	Reason string
}

const noteInitial = 1 // flag

// Append appends the note; a Progress follows, or nothing where the load has just
// begun.
func (n Note) Append(b []byte) []byte {
	flags := byte(0)
	if n.Initial {
		flags |= noteInitial
	}
	b = append(b, flags)
	b = binary.AppendUvarint(b, uint64(len(n.Reason)))
	return append(b, n.Reason...)
}

// CutNote returns the note at the start of b, and the Progress behind it. The error
// is millrace.ErrMalformed.
func CutNote(b []byte) (n Note, progress []byte, err error) {
	bad := fmt.Errorf("%w: note of a load", millrace.ErrMalformed)
	if len(b) < 2 || b[0] > noteInitial {
		return n, nil, bad
	}
	n.Initial = b[0]&noteInitial != 0
	size, head := binary.Uvarint(b[1:])
	b = b[1:]
	if head <= 0 || size > uint64(len(b)-head) {
		return n, nil, bad
	}
	n.Reason = string(b[head : head+int(size)])
	return n, b[head+int(size):], nil
}
