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

// TakeUp takes up a load that a stream has under way, of the table with schema, from
// its note and Progress. The error is millrace.ErrMalformed, also where schema is nil.
func TakeUp(l *millrace.Load, schema *millrace.Schema, limits Limits) (n Note, work *Load, err error) {
	fail := func(err error) (Note, *Load, error) {
		return Note{}, nil, fmt.Errorf("resume load %v of table %v: %w", l.ID, l.Table, err)
	}
	if schema == nil {
		return fail(fmt.Errorf("%w: there is no schema", millrace.ErrMalformed))
	}
	n, progress, err := CutNote(l.Progress)
	if err != nil {
		return fail(err)
	}
	if work, err = Resume(progress, limits); err != nil {
		return fail(err)
	}
	return n, work, nil
}
