package migrations

import (
	"slices"
	"sync"
)

// queue hands out chunks. Workers are kept apart: where several write to the end of
// one heap, each reads through what the others have written to find its own rows.
type queue struct {
	mu    sync.Mutex
	heaps []*queued
}

// queued are the chunks of a heap that are left.
type queued struct {
	left []*chunkToCopy
	busy int // workers that copy others of it
}

// newQueue takes chunks of the same heap one behind the other.
func newQueue(left []*chunkToCopy) *queue {
	q := new(queue)
	for i, c := range left {
		if i == 0 || left[i-1].oid != c.oid {
			q.heaps = append(q.heaps, new(queued))
		}
		h := q.heaps[len(q.heaps)-1]
		h.left = append(h.left, c)
	}
	return q
}

// next returns a chunk, nil if none is left: one of the heap that was had last, or of
// another one that fewer are at; of these, of the one that has most left.
func (q *queue) next(last *queued) (*queued, *chunkToCopy) {
	q.mu.Lock()
	defer q.mu.Unlock()
	best := last
	if best != nil {
		best.busy--
	}
	if best != nil && len(best.left) == 0 {
		best = nil
	}
	for _, h := range q.heaps {
		if len(h.left) == 0 || h == best {
			continue
		}
		if best == nil || h.busy < best.busy || h.busy == best.busy && best != last && len(h.left) > len(best.left) {
			best = h
		}
	}
	if best == nil {
		return nil, nil
	}
	c := best.left[0]
	best.left = best.left[1:]
	best.busy++
	return best, c
}

// some reports whether chunks are left.
func (q *queue) some() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.ContainsFunc(q.heaps, func(h *queued) bool { return len(h.left) > 0 })
}
