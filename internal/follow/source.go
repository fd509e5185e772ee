package follow

import (
	"context"
	"errors"
	"fmt"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/applier"
	"github.com/millrace-db/millrace/edge"
	"github.com/millrace-db/millrace/internal/finding"
	"github.com/millrace-db/millrace/internal/lineage"
	"github.com/millrace-db/millrace/internal/topic"
)

// topicSource reads a topic for an applier.
type topicSource struct {
	topic  *topic.Topic
	reader *topic.Reader
	id     string
}

func (s *topicSource) TopicID() string { return s.id }

func (s *topicSource) Next(ctx context.Context) (millrace.Offset, []byte, error) {
	message, err := s.reader.Next(ctx)
	return message.Offset, message.Value, gone(err)
}

func (s *topicSource) Close() error {
	s.reader.Close()
	return s.topic.Close()
}

// gone gives the applier's name to a place that the topic does not have.
func gone(err error) error {
	if errors.Is(err, topic.ErrOffsetGone) || errors.Is(err, topic.ErrNoTopic) {
		return fmt.Errorf("%w: %w", applier.ErrSourceGone, err)
	}
	return err
}

// openSource opens the topic of an epoch behind an offset; epoch 0 stands for the
// newest that has begun. A topic that may lose records, or is another stream's, is
// refused each time.
func (f *Stream) openSource(ctx context.Context, store *edge.Store, epoch millrace.Epoch, after millrace.Offset) (applier.Source, error) {
	if epoch == 0 {
		var err error
		if epoch, err = f.choose(ctx); err != nil {
			return nil, err
		}
	}
	t, err := lineage.OpenTopic(ctx, f.config, topic.EpochName(f.config.Kafka.Topic, epoch), f.log)
	if err != nil {
		return nil, err
	}
	source, err := f.readTopic(ctx, t, store, after)
	if err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return source, nil
}

// choose returns the epoch that a new store follows: the newest that has begun, or
// the first one if none has. It chooses once: what begins later is a successor.
func (f *Stream) choose(ctx context.Context) (millrace.Epoch, error) {
	if epoch := f.epoch.Load(); epoch != 0 {
		return millrace.Epoch(epoch), nil
	}
	s, err := lineage.NewEpochs(f.config, f.log)
	if err != nil {
		return 0, err
	}
	defer s.Close()
	epoch, err := s.Newest(ctx, 0, f.stream())
	if err != nil {
		return 0, err
	}
	epoch = max(epoch, 1)
	f.epoch.Store(uint64(epoch))
	return epoch, nil
}

func (f *Stream) readTopic(ctx context.Context, t *topic.Topic, store *edge.Store, after millrace.Offset) (*topicSource, error) {
	info, err := t.Info(ctx)
	if errors.Is(err, topic.ErrNoTopic) && after == millrace.NoOffset {
		return nil, err // it may still be made
	}
	if err != nil {
		return nil, gone(err)
	}
	found, err := t.Check(ctx)
	if err != nil {
		return nil, err
	}
	if err := finding.Error(found); err != nil {
		return nil, fmt.Errorf("%w: %w", millrace.ErrStop, err)
	}
	if err := f.sameStream(ctx, t, info, store); err != nil {
		return nil, err
	}
	from := info.Start
	if after != millrace.NoOffset {
		from = after + 1
	}
	if from < info.Start {
		return nil, trimmedPast(ctx, t, info, store)
	}
	reader, err := t.Read(ctx, from)
	if err != nil {
		return nil, gone(err)
	}
	return &topicSource{topic: t, reader: reader, id: info.ID}, nil
}

// trimmedPast says that a topic begins behind what the store needs.
func trimmedPast(ctx context.Context, t *topic.Topic, info topic.Info, store *edge.Store) error {
	where := fmt.Sprintf("at offset %v", info.Start)
	r, ok, err := lineage.FirstRecord(ctx, t, info)
	if err != nil {
		return err
	}
	if ok && r.First > 0 {
		where += fmt.Sprintf(", behind index %v", r.First-1)
	}
	return fmt.Errorf("%w: topic %s begins %s, and this edge has come to index %v; mend: an image takes it on from there: name peers in edge.images.from, or millrace image fetch and restore; if records were lost, millrace epoch new STREAM",
		applier.ErrSourceGone, t.Name(), where, store.Place().Index)
}

// sameStream refuses a topic of another stream than the store's, before the
// applier finds that it is another topic at all: this says more.
func (f *Stream) sameStream(ctx context.Context, t *topic.Topic, info topic.Info, store *edge.Store) error {
	id, ok, err := lineage.IdentityOf(ctx, t, info)
	if err != nil || !ok {
		return err
	}
	if err := lineage.Want(f.config, "topic "+t.Name(), id.Stream); err != nil {
		return fmt.Errorf("%w: %w", millrace.ErrStop, err)
	}
	if held := store.Stream(); !held.IsZero() && held != id.Stream {
		return fmt.Errorf("%w: store %s holds another stream (%v) than topic %s does (%v); mend: give each stream a data_dir of its own, or correct kafka.topic",
			edge.ErrOtherStream, store.Dir(), held, t.Name(), id.Stream)
	}
	return nil
}
