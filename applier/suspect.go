package applier

import (
	"errors"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge"
)

// Suspect is a Source that is not the arbiter of the history, and beside which there may
// be others: another edge. What it gives may be untrue without the stream being at
// fault.
type Suspect interface {
	Source
	// Reject is told of an error that a record of this source has led to. It returns
	// the error that the attempt ends with in its place: a temporary one while another
	// source may be asked, and otherwise one that stops the stream.
	Reject(err error) error
}

// untrue tells that an error may be the source's doing alone.
func untrue(err error, p *policy) bool {
	if errors.Is(err, edge.ErrInconsistent) {
		return p.careful // otherwise it is tried once more, batch by batch
	}
	for _, kind := range []error{
		errRefetch, ErrOtherTopic, millrace.ErrDiverged, millrace.ErrForeign, millrace.ErrSignature, millrace.ErrMalformed, millrace.ErrFilter, millrace.ErrTooLarge,
	} {
		if errors.Is(err, kind) {
			return true
		}
	}
	return false
}
