package edge

import (
	"context"

	"github.com/millrace-db/millrace"
)

// WaitIndex is Store.WaitIndex on the store that readers use. Where they go over to
// another one meanwhile, that one has to come to index: a new epoch counts from 1.
func (h *Home) WaitIndex(ctx context.Context, index millrace.Index) error {
	return h.WaitPlace(ctx, 0, index)
}

// WaitPlace is Store.WaitPlace on the store that readers use, and on the one that they go
// over to meanwhile.
func (h *Home) WaitPlace(ctx context.Context, epoch millrace.Epoch, index millrace.Index) error {
	for {
		s := h.Store()
		err := s.WaitPlace(ctx, epoch, index)
		if err == nil {
			return nil
		}
		if err := h.moved(ctx, s, err); err != nil {
			return err
		}
	}
}
