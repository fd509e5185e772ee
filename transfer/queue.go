package transfer

import (
	"context"
	"sync"
)

// queue stands between sequencer and publisher. It holds one batch, which
// gathers while another is in flight: the first unit is taken at once by an idle
// publisher, and the busier it is the more go together. When the batch is full
// the sequencer waits, and with it the source.
type queue struct {
	mu        sync.Mutex
	gathering *batch
	free      *batch // to use again
	closed    bool

	ready chan struct{} // something is gathering, or the queue is closed
	room  chan struct{} // nothing is gathering
}

func newQueue() *queue {
	return &queue{ready: make(chan struct{}, 1), room: make(chan struct{}, 1)}
}

// put adds a piece, when there is room for it. One goroutine calls it.
func (q *queue) put(ctx context.Context, p *piece) error {
	for {
		if q.tryPut(p) {
			signal(q.ready)
			return nil
		}
		select {
		case <-q.room:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (q *queue) tryPut(p *piece) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.gathering == nil:
		q.gathering, q.free = q.free, nil
		if q.gathering == nil {
			q.gathering = new(batch)
		}
		q.gathering.begin(p)
	case q.gathering.fits(p):
		q.gathering.add(p)
	default:
		return false
	}
	return true
}

// close says that no piece follows.
func (q *queue) close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	signal(q.ready)
}

// take returns what has gathered, or nil once the queue is closed and empty. One
// goroutine calls it; it gives the batch back with done.
func (q *queue) take(ctx context.Context) (*batch, error) {
	for {
		q.mu.Lock()
		b, closed := q.gathering, q.closed
		q.gathering = nil
		q.mu.Unlock()
		if b != nil {
			signal(q.room)
			return b, nil
		}
		if closed {
			return nil, nil
		}
		select {
		case <-q.ready:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// done takes back a batch's buffer. Those of single large entries are let go.
func (q *queue) done(b *batch) {
	if cap(b.payload) > 2*maxBatch {
		return
	}
	q.mu.Lock()
	q.free = b
	q.mu.Unlock()
}

// signal wakes the one who waits on c, or who will look next.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
