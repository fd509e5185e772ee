// Package edgetest has readers of stores as tests of what answers from them need them.
package edgetest

import (
	"context"
	"sync/atomic"

	"github.com/millrace-db/millrace/edge"
)

// LateReader learns of its place by being read, as a store does that another process
// writes: until then it is an entry behind. It may be used concurrently, as its Store may.
type LateReader struct {
	*edge.Store
	read atomic.Bool
}

// Place is where the store is, as far as is known.
func (r *LateReader) Place() edge.Place {
	p := r.Store.Place()
	if !r.read.Load() {
		p.Index--
	}
	return p
}

// View is the store's.
func (r *LateReader) View(ctx context.Context, fn func(*edge.View) error) error {
	defer r.read.Store(true)
	return r.Store.View(ctx, fn)
}
