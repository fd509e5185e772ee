package transfer

import (
	"context"
	"fmt"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/failpoint"
)

// append writes one record of the reign. Whatever goes wrong, its outcome is
// unknown, and the reign is over.
func (r *reign) append(ctx context.Context, h *millrace.Header, payload []byte) (millrace.Offset, error) {
	s := &r.t.config.Stream
	h.Stream, h.Epoch, h.Term, h.Publisher = s.ID, s.Epoch, r.term, r.me
	var err error
	if r.record, err = millrace.AppendRecord(r.record[:0], h, payload, r.t.config.Key); err != nil {
		return millrace.NoOffset, err
	}
	return r.log.Append(ctx, r.record, h.First, h.Count)
}

// publish appends what gathers in the queue, one record at a time, until the
// queue is closed.
func (r *reign) publish(ctx context.Context) error {
	for {
		b, err := r.queue.take(ctx)
		if err != nil || b == nil {
			return err
		}
		if err := r.publishBatch(ctx, b); err != nil {
			return err
		}
		open := b.open
		r.queue.done(b)
		if !open && r.stateDue() {
			if err := r.publishState(ctx); err != nil {
				return err
			}
		}
	}
}

func (r *reign) publishBatch(ctx context.Context, b *batch) error {
	header := b.header()
	p := published{
		kind: millrace.RecordBatch, first: b.first, last: b.last(), chain: b.chain,
		captured: b.captured, bytes: int64(len(b.payload)), at: time.Now(),
	}
	if err := r.accepted.expect(ctx, p, r.t.config.Unread); err != nil {
		return err
	}
	started := time.Now()
	if _, err := r.append(ctx, &header, b.payload); err != nil {
		return fmt.Errorf("publish indexes %v to %v: %w", b.first, b.last(), err)
	}
	failpoint.Hit("acknowledged")
	if p, ok := r.accepted.acknowledge(b.last()); ok {
		r.confirm(p)
	}
	m := r.t.metrics
	m.produce.Observe(time.Since(started).Seconds())
	m.batches.Inc()
	m.entries.Add(float64(b.count))
	m.bytes.Add(float64(len(r.record)))
	r.sinceState += int64(len(r.record))
	return nil
}

func (r *reign) stateDue() bool {
	c := &r.t.config
	return r.sinceState >= c.StateBytes || r.now().Sub(r.stateAt) >= c.StateEvery
}

// publishState writes a state record at the place to which everything has been
// published. Its content is the fold's, so the fold has to come there first.
func (r *reign) publishState(ctx context.Context) error {
	if err := r.accepted.drained(ctx); err != nil {
		return err
	}
	header, payload := r.accepted.stateRecord()
	p := published{kind: millrace.RecordState, first: header.First, chain: header.Chain, bytes: int64(len(payload)), at: time.Now()}
	if err := r.accepted.expect(ctx, p, r.t.config.Unread); err != nil {
		return err
	}
	if _, err := r.append(ctx, &header, payload); err != nil {
		return fmt.Errorf("publish state at index %v: %w", header.First-1, err)
	}
	r.t.metrics.states.Inc()
	r.sinceState, r.stateAt = 0, r.now()
	return nil
}

// readBack folds the topic and confirms to the source what the fold accepted,
// unless its acknowledgement is still to come: then publishBatch does.
func (r *reign) readBack(ctx context.Context) error {
	buf := make([]byte, 0, maxBatch)
	for {
		m, err := r.reader.Next(ctx)
		if err != nil {
			return err
		}
		a := r.accepted
		a.mu.Lock()
		record, outcome, err := a.history.step(&m, buf)
		var own *published
		if err == nil {
			own, err = a.take(record, outcome)
		}
		complete := outcome == millrace.Accepted && !a.history.fold.Open()
		index, chain := a.history.fold.Index(), a.history.fold.Chain()
		a.mu.Unlock()
		if err != nil {
			return err
		}
		if outcome == millrace.Stale {
			r.t.metrics.stale.Inc()
		}
		a.folded(m.Offset + 1)
		if own != nil {
			r.t.metrics.readBack.Observe(time.Since(own.at).Seconds())
		}
		if complete {
			r.t.config.Accepted(index, chain)
			failpoint.Hit("folded")
			a.mu.Lock()
			position, ok := a.confirmable()
			a.mu.Unlock()
			if ok {
				r.confirm(position)
			}
		}
	}
}

func (r *reign) confirm(p millrace.Position) {
	r.source.Confirm(p)
	failpoint.Hit("confirmed")
}
