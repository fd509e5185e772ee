package edge

import (
	"fmt"

	"github.com/millrace-db/millrace"
)

// ForChild returns what makes of each record of this home's log what an edge gets that
// holds what an encoded filter (millrace.AppendFilter) says, as millrace.Rewriter does. It
// is given the records from the end of a unit on. The error is an ErrWider where that
// edge is to hold more than this one does, so that hashes stand here in the place of
// what it wants, and millrace.ErrMalformed where the bytes are no filter.
func (h *Home) ForChild(filter []byte) (func(record []byte) ([]byte, error), error) {
	f, err := millrace.DecodeFilter(filter)
	if err != nil {
		return nil, err
	}
	cat := h.Store().catalog.Load()
	if !cat.filter.Covers(f) {
		return nil, fmt.Errorf("%w: this edge holds %v, and the one that asks is to hold %v; mend: let it follow an edge that holds as much, or Kafka", ErrWider, cat.filter, f)
	}
	var schemas []*millrace.Schema
	for _, t := range cat.tables {
		for _, s := range t.schemas {
			schemas = append(schemas, s)
		}
	}
	return millrace.NewRewriter(f, schemas).Rewrite, nil
}
