package applier

import (
	"context"

	"golang.org/x/sync/semaphore"

	"github.com/millrace-db/millrace"
)

// work is what the fetching side hands to the writing side.
type work struct {
	// batch is an accepted batch; nil stands for a state record, or for the
	// beginning of a reign, which makes an open unit void.
	batch *millrace.Record
	reign bool
	// unit is the index of the newest unit that was complete before the batch.
	unit millrace.Index
	// record is what came, decoded from value at offset; nil where there is no log.
	record *millrace.Record
	value  []byte
	offset millrace.Offset
	// refill tells that the store has the batch and the log has not.
	refill bool
	// mode is the capture mode of the batch's units.
	mode millrace.Mode
	// at is the checkpoint after the batch; nil while its unit goes on.
	at *millrace.Checkpoint
	// weight is how many bytes it holds.
	weight int64
}

// queue is bounded in number and in bytes.
type queue struct {
	ch     chan *work
	weight *semaphore.Weighted
	most   int64
}

func newQueue(most int64) *queue {
	return &queue{ch: make(chan *work, queueRecords), weight: semaphore.NewWeighted(most), most: most}
}

// push waits for room.
func (q *queue) push(ctx context.Context, w *work) error {
	w.weight = min(w.weight, q.most)
	if err := q.weight.Acquire(ctx, w.weight); err != nil {
		return err
	}
	select {
	case q.ch <- w:
		return nil
	case <-ctx.Done():
		q.weight.Release(w.weight)
		return ctx.Err()
	}
}

// taken gives back the room of work that was taken out.
func (q *queue) taken(w *work, ok bool) (*work, bool) {
	if ok {
		q.weight.Release(w.weight)
	}
	return w, ok
}

func (q *queue) close() { close(q.ch) }
