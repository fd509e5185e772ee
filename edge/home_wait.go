package edge

import (
	"context"

	"github.com/millrace-db/millrace"
)

// WaitIndex is Store.WaitIndex on the store that readers use. Where they go over to
// another one meanwhile, that one has to come to index: a new epoch counts from 1.
func (h *Home) WaitIndex(ctx context.Context, index millrace.Index) error {
	for {
		s := h.Store()
		err := s.WaitIndex(ctx, index)
		if err != nil && h.moved(ctx, s, err) {
			continue
		}
		return err
	}
}
