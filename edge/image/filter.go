package image

import (
	"fmt"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge"
)

// Suits returns nil where an edge that holds what filter says can take the image: one
// of a partial edge has the rows that that one held and no others. What the image has
// beyond filter is left out where it is restored. The error is an edge.ErrWider.
func (m *Manifest) Suits(filter *millrace.Filter) error {
	if m.Filter.Covers(filter) {
		return nil
	}
	return fmt.Errorf("image %s: %w: it is of an edge that holds %v, and this one is to hold %v; mend: take it from an edge that holds as much",
		m.Name(), edge.ErrWider, m.Filter, filter)
}

func decodeFilter(b []byte) (*millrace.Filter, error) {
	f, err := millrace.DecodeFilter(b)
	if err != nil {
		return nil, malformed("%v", err)
	}
	if f.All() {
		return nil, malformed("a filter that holds everything is written")
	}
	return f, nil
}
