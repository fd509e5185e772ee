package wal

import (
	"context"
	"sync"

	"github.com/millrace-db/millrace"
)

// queue holds units between the goroutine that makes them and Next, up to a
// number of bytes. One goroutine pushes, one takes.
type queue struct {
	mu    sync.Mutex
	units []queued
	bytes int64
	limit int64
	err   error // set at the end

	notEmpty, notFull chan struct{} // capacity 1: a signal is never lost
}

type queued struct {
	unit *millrace.Unit
	size int64
}

// unitOverhead is what a queued unit costs beside its entries, in bytes.
const unitOverhead = 512

func newQueue(limit int64) *queue {
	return &queue{limit: limit, notEmpty: make(chan struct{}, 1), notFull: make(chan struct{}, 1)}
}

func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// tryPush reports whether there was room. An empty queue has room for any unit.
func (q *queue) tryPush(u *millrace.Unit, size int64) bool {
	size += unitOverhead
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.units) > 0 && q.bytes+size > q.limit {
		return false
	}
	q.units = append(q.units, queued{u, size})
	q.bytes += size
	signal(q.notEmpty)
	return true
}

// take waits for a unit. When the queue is closed and empty it returns the
// error that it was closed with.
func (q *queue) take(ctx context.Context) (*millrace.Unit, error) {
	for {
		if u, err := q.tryTake(); u != nil || err != nil {
			return u, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-q.notEmpty:
		}
	}
}

func (q *queue) tryTake() (*millrace.Unit, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.units) == 0 {
		if q.err != nil {
			signal(q.notEmpty) // for the next call
		}
		return nil, q.err
	}
	head := q.units[0]
	q.units[0] = queued{}
	q.units = q.units[1:]
	if len(q.units) == 0 {
		q.units = nil
	}
	q.bytes -= head.size
	signal(q.notFull)
	return head.unit, nil
}

// close lets what is queued be taken, and then err.
func (q *queue) close(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.err = err
	signal(q.notEmpty)
}

// drain throws away what is queued.
func (q *queue) drain() error {
	var first error
	for {
		q.mu.Lock()
		if len(q.units) == 0 {
			q.mu.Unlock()
			return first
		}
		u := q.units[0].unit
		q.units = q.units[1:]
		q.mu.Unlock()
		if err := u.Body.Close(); err != nil && first == nil {
			first = err
		}
	}
}
