package topic

import (
	"context"
	"errors"
	"fmt"

	"github.com/IBM/sarama"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/failpoint"
)

// The record headers that repeat first index and count, for people with kcat.
const (
	headerFirst = "first"
	headerCount = "count"
)

// producer appends records one at a time. The library's own retries repeat a
// record with the same sequence number; what it repeats nevertheless is dropped
// by every fold.
type producer struct {
	conn  *connection
	async sarama.AsyncProducer
}

// Append writes one record to the topic and returns its offset once all in-sync
// replicas have it. It does not keep value. An error means that the outcome is
// unknown: the record may be in the topic, or get there later. The producer is
// then closed for good, and later calls give ErrClosed: the caller has to find
// out by reading. ErrTooLarge is the exception: nothing was sent.
func (t *Topic) Append(ctx context.Context, value []byte, first millrace.Index, count uint32) (millrace.Offset, error) {
	if len(value) > millrace.MaxRecord {
		return millrace.NoOffset, fmt.Errorf("append to topic %s: record of %d bytes: %w; the limit is %d", t.config.Topic, len(value), millrace.ErrTooLarge, millrace.MaxRecord)
	}
	p, err := t.begin(ctx)
	if err != nil {
		return millrace.NoOffset, fmt.Errorf("append to topic %s: %w", t.config.Topic, t.noTopic(err))
	}
	message := &sarama.ProducerMessage{
		Topic: t.config.Topic, Partition: 0, Value: sarama.ByteEncoder(value),
		Headers: []sarama.RecordHeader{
			{Key: []byte(headerFirst), Value: []byte(first.String())},
			{Key: []byte(headerCount), Value: fmt.Append(nil, count)},
		},
	}
	offset, err := p.send(ctx, message)
	if err != nil {
		_ = t.Close()
		if errors.Is(err, sarama.ErrMessageSizeTooLarge) {
			err = fmt.Errorf("%w: %w: record of %d bytes: give the topic max.message.bytes=%d (millrace check shows its settings)", millrace.ErrTooLarge, err, len(value), MaxMessage)
		}
		return millrace.NoOffset, fmt.Errorf("append to topic %s: %w", t.config.Topic, err)
	}
	return offset, nil
}

// begin returns the producer, made at the first append.
func (t *Topic) begin(ctx context.Context) (*producer, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, ErrClosed
	}
	if t.producer != nil {
		return t.producer, nil
	}
	// The producer outlives this call's context.
	conn, err := t.connect(context.WithoutCancel(ctx))
	if err != nil {
		return nil, err
	}
	undo := context.AfterFunc(ctx, conn.dialer.cut)
	defer undo()
	async, err := sarama.NewAsyncProducerFromClient(conn.client)
	if err != nil {
		conn.close()
		return nil, conn.explain(ctx, fmt.Errorf("start producer: %w", err))
	}
	t.producer = &producer{conn: conn, async: async}
	t.config.Logger.Debug("producer started", "topic", t.config.Topic)
	return t.producer, nil
}

func (p *producer) send(ctx context.Context, message *sarama.ProducerMessage) (millrace.Offset, error) {
	if err := ctx.Err(); err != nil {
		return millrace.NoOffset, err
	}
	failpoint.Hit("before-produce")
	p.async.Input() <- message
	failpoint.Hit("mid-produce")
	select {
	case m := <-p.async.Successes():
		return millrace.Offset(m.Offset), nil
	case e := <-p.async.Errors():
		return millrace.NoOffset, p.conn.explain(ctx, e.Err)
	case <-ctx.Done():
		return millrace.NoOffset, context.Cause(ctx)
	}
}

// close cuts the connections and waits until the library has given up.
func (p *producer) close() {
	p.conn.dialer.cut()
	p.async.AsyncClose()
	successes, failures := p.async.Successes(), p.async.Errors()
	for successes != nil || failures != nil {
		select {
		case _, ok := <-successes:
			if !ok {
				successes = nil
			}
		case _, ok := <-failures:
			if !ok {
				failures = nil
			}
		}
	}
	p.conn.close()
}
