package topic

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/IBM/sarama"

	"github.com/millrace-db/millrace"
)

const (
	// fetchBytes is what one fetch asks for. A broker sends at least one whole
	// batch, however large, so nothing is left out for its size. A Reader holds
	// up to three answers.
	fetchBytes = 4 << 20
	// fetchWait is how long a broker waits for the next record before it
	// answers with none. Records are sent as soon as they are committed.
	fetchWait = 500 * time.Millisecond
	// gatherBytes is what a broker gathers for a reader that has no hurry, for fetchWait
	// at most.
	gatherBytes = 256 << 10
	// stallLimit is how long a broker may send nothing although it says that
	// there is more.
	stallLimit = 30 * time.Second

	fetchVersion = 12
)

// Message is one record of the topic. Value belongs to the receiver.
type Message struct {
	Offset millrace.Offset
	// Time is the one that Kafka stored with the record.
	Time time.Time
	// Key is nil in the log of a stream.
	Key   []byte
	Value []byte
}

// Reader reads the topic from an offset on. It is used by one goroutine; Close
// may be called from any. Records of transactions are read whether they were
// committed or not, and the markers that Kafka itself writes are passed over.
type Reader struct {
	topic string
	conn  *connection
	stop  context.CancelFunc
	done  chan struct{}
	close sync.Once

	// chunks are the answers that were fetched ahead.
	chunks chan chunk
	// queue and next are of the chunk in hand: its messages that Next has not
	// returned, and where the records after it begin.
	queue []Message
	next  millrace.Offset
	err   error
}

// chunk is what one fetch gave: messages in ascending order of offset, and where
// to go on. It may have no messages and go on all the same.
type chunk struct {
	messages []Message
	next     millrace.Offset
	err      error
}

// Read begins at offset from, which must be between the topic's start and its
// end: otherwise Next gives ErrOffsetGone. The reader lives until Close or until
// ctx ends.
func (t *Topic) Read(ctx context.Context, from millrace.Offset) (*Reader, error) {
	return t.read(ctx, from, 1)
}

// ReadGathered is Read for who has no hurry: brokers gather small records for half a
// second, which costs both sides less than sending each.
func (t *Topic) ReadGathered(ctx context.Context, from millrace.Offset) (*Reader, error) {
	return t.read(ctx, from, gatherBytes)
}

func (t *Topic) read(ctx context.Context, from millrace.Offset, least int32) (*Reader, error) {
	ctx, stop := context.WithCancel(ctx)
	conn, err := t.connect(ctx)
	if err != nil {
		stop()
		return nil, fmt.Errorf("read topic %s: %w", t.config.Topic, err)
	}
	r := &Reader{
		topic: t.config.Topic, conn: conn, stop: stop, done: make(chan struct{}),
		chunks: make(chan chunk, 1), next: from,
	}
	go r.run(ctx, from, least)
	t.config.Logger.Debug("reader started", "topic", t.config.Topic, "offset", from)
	return r, nil
}

// Close ends the reader and returns when its connections are closed.
func (r *Reader) Close() {
	r.close.Do(func() {
		r.stop()
		r.conn.close()
	})
	<-r.done
}

// Position is the offset of the next record that Next may return.
func (r *Reader) Position() millrace.Offset {
	if len(r.queue) > 0 {
		return r.queue[0].Offset
	}
	return r.next
}

// Next returns the next record as soon as it is in the topic. After an error
// every later call returns the same one: the caller reads again from a place of
// its own.
func (r *Reader) Next(ctx context.Context) (Message, error) {
	for {
		if m, ok := r.take(); ok {
			return m, nil
		}
		if err := r.receive(ctx); err != nil {
			return Message{}, err
		}
	}
}

// Until is Next up to the record before end, which must not be after the
// topic's end. Then, or when no record is left before it, it returns io.EOF. It
// goes by position: offsets before end that hold no records do not hold it up.
func (r *Reader) Until(ctx context.Context, end millrace.Offset) (Message, error) {
	for {
		if r.Position() >= end {
			return Message{}, io.EOF
		}
		if m, ok := r.take(); ok {
			return m, nil
		}
		if err := r.receive(ctx); err != nil {
			return Message{}, err
		}
	}
}

func (r *Reader) take() (Message, bool) {
	if len(r.queue) == 0 {
		return Message{}, false
	}
	m := r.queue[0]
	r.queue[0] = Message{} // do not hold the value
	r.queue = r.queue[1:]
	return m, true
}

func (r *Reader) receive(ctx context.Context) error {
	if r.err != nil {
		return r.err
	}
	select {
	case c := <-r.chunks:
		return r.accept(c)
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-r.done:
	}
	select {
	case c := <-r.chunks: // the last one, with the error that ended run
		return r.accept(c)
	default:
		return fmt.Errorf("read topic %s: %w", r.topic, ErrClosed)
	}
}

func (r *Reader) accept(c chunk) error {
	if c.err != nil {
		r.err = c.err
		return c.err
	}
	r.queue, r.next = c.messages, c.next
	return nil
}

// run fetches ahead until the reader is closed or a fetch fails.
func (r *Reader) run(ctx context.Context, from millrace.Offset, least int32) {
	defer close(r.done)
	f := fetcher{topic: r.topic, client: r.conn.client, least: least, progress: time.Now()}
	for {
		c := f.fetch(from)
		if c.err != nil {
			c.err = fmt.Errorf("read topic %s at offset %v: %w", r.topic, from, r.conn.explain(ctx, c.err))
		} else if c.next == from {
			continue
		}
		select {
		case r.chunks <- c:
		case <-ctx.Done():
			return
		}
		if c.err != nil {
			return
		}
		from = c.next
	}
}

// fetcher asks the leader of partition 0 for records. The library's own consumer
// does not tell its position where there are no records, and that is what a
// reader to a given end goes by.
type fetcher struct {
	topic  string
	client sarama.Client
	// least is how many bytes an answer should have, unless they take fetchWait to come.
	least int32
	// progress is when records came last, or when there were none to come.
	progress time.Time
}

func (f *fetcher) fetch(from millrace.Offset) chunk {
	broker, epoch, err := f.client.LeaderAndEpoch(f.topic, 0)
	if err != nil {
		if errors.Is(err, sarama.ErrUnknownTopicOrPartition) {
			err = fmt.Errorf("%w: run millrace init to make it; if it was there before, its records are lost: millrace epoch new STREAM", ErrNoTopic)
		}
		return chunk{err: err}
	}
	request := &sarama.FetchRequest{
		Version: fetchVersion, MinBytes: f.least, MaxBytes: fetchBytes, MaxWaitTime: int32(fetchWait / time.Millisecond),
		Isolation: sarama.ReadUncommitted, SessionEpoch: -1,
	}
	request.AddBlock(f.topic, 0, int64(from), fetchBytes, epoch)
	response, err := broker.Fetch(request)
	if err != nil {
		return chunk{err: damaged(err)}
	}
	block := response.GetBlock(f.topic, 0)
	if block == nil {
		return chunk{err: sarama.ErrIncompleteResponse}
	}
	switch block.Err {
	case sarama.ErrNoError:
	case sarama.ErrOffsetOutOfRange:
		return chunk{err: f.gone()}
	case sarama.ErrUnknownTopicOrPartition:
		return chunk{err: fmt.Errorf("%w: %w", ErrNoTopic, block.Err)}
	default:
		return chunk{err: block.Err}
	}
	c := decode(block, from)
	if c.err == nil && c.next == from {
		c.err = f.stalled(from, millrace.Offset(block.HighWaterMarkOffset))
	} else {
		f.progress = time.Now()
	}
	return c
}

// gone says what there is in place of the offset that was asked for.
func (f *fetcher) gone() error {
	start, startErr := f.client.GetOffset(f.topic, 0, sarama.OffsetOldest)
	end, endErr := f.client.GetOffset(f.topic, 0, sarama.OffsetNewest)
	if err := errors.Join(startErr, endErr); err != nil {
		return fmt.Errorf("%w: %w", ErrOffsetGone, err)
	}
	return fmt.Errorf("%w: it holds offsets %d to before %d", ErrOffsetGone, start, end)
}

// stalled is called when a fetch gave nothing new. That is usual at the end of
// the topic and, for a while, with a broker that throttles.
func (f *fetcher) stalled(from, end millrace.Offset) error {
	now := time.Now()
	if from >= end {
		f.progress = now
		return nil
	}
	if stood := now.Sub(f.progress); stood > stallLimit {
		return fmt.Errorf("the broker has sent nothing for %s although the topic goes on to offset %v", stood.Round(time.Second), end)
	}
	return nil
}

// damaged marks errors that say that the stored bytes are not what was written.
func damaged(err error) error {
	var packet sarama.PacketDecodingError
	if errors.As(err, &packet) || errors.Is(err, sarama.ErrDecompressedBatchTooLarge) {
		return fmt.Errorf("%w: the topic's records from there on are damaged: restore the segment file from another replica: %w", millrace.ErrMalformed, err)
	}
	return err
}

// decode takes the messages from offset from on out of an answer.
func decode(block *sarama.FetchResponseBlock, from millrace.Offset) chunk {
	c := chunk{next: from}
	for _, records := range block.RecordsSet {
		batch := records.RecordBatch
		if batch == nil {
			return chunk{err: fmt.Errorf("%w: records in a format that Kafka had before 0.11", millrace.ErrMalformed)}
		}
		if batch.PartialTrailingRecord {
			break
		}
		if last := millrace.Offset(batch.LastOffset()); last < c.next {
			continue
		}
		if !batch.Control {
			for _, record := range batch.Records {
				m := Message{Offset: millrace.Offset(batch.FirstOffset + record.OffsetDelta), Key: record.Key, Value: record.Value}
				if m.Offset < c.next {
					continue
				}
				m.Time = batch.FirstTimestamp.Add(record.TimestampDelta)
				if batch.LogAppendTime {
					m.Time = batch.MaxTimestamp
				}
				c.messages = append(c.messages, m)
			}
		}
		c.next = millrace.Offset(batch.LastOffset()) + 1
	}
	return c
}
