package lineage

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/config"
	"github.com/millrace-db/millrace/internal/topic"
)

// Epochs looks which epochs of a stream have begun, by the topics that there
// are. An epoch has begun when its topic holds a record of it: one whose topic is
// merely there may have been prepared and given up. It is used by one goroutine.
type Epochs struct {
	config *config.Stream
	log    *slog.Logger
	finder *topic.Finder
	// told are the topics that were complained about.
	told map[string]bool
}

// NewEpochs reaches the brokers of a stream. The caller closes what it returns.
func NewEpochs(s *config.Stream, log *slog.Logger) (*Epochs, error) {
	finder, err := topic.NewFinder(topic.Config{Brokers: s.Kafka.Brokers, Topic: s.Kafka.Topic, ClientID: "millrace-" + s.Name, Logger: log})
	if err != nil {
		return nil, err
	}
	return &Epochs{config: s, log: log, finder: finder, told: make(map[string]bool)}, nil
}

// Close gives the connection up.
func (s *Epochs) Close() { s.finder.Close() }

// Newest returns the newest epoch after the given one that has begun, 0 if there
// is none. want is the stream that its records must be of; zero takes any. After
// 0 it looks through all topics.
func (s *Epochs) Newest(ctx context.Context, after millrace.Epoch, want millrace.StreamID) (millrace.Epoch, error) {
	ask := s.finder.All
	if after > 0 {
		ask = func(ctx context.Context) ([]millrace.Epoch, error) { return s.finder.After(ctx, after) }
	}
	epochs, err := ask(ctx)
	if err != nil {
		return 0, err
	}
	for i := len(epochs) - 1; i >= 0; i-- {
		begun, err := s.begun(ctx, epochs[i], want)
		if begun || err != nil {
			return epochs[i], err
		}
	}
	return 0, nil
}

// Newest returns the newest epoch of a stream that has begun, 0 if none has.
func Newest(ctx context.Context, s *config.Stream, log *slog.Logger) (millrace.Epoch, error) {
	var want millrace.StreamID
	if s.ID != "" {
		want, _ = millrace.ParseStreamID(s.ID) // the configuration has checked it
	}
	look, err := NewEpochs(s, log)
	if err != nil {
		return 0, err
	}
	defer look.Close()
	epoch, err := look.Newest(ctx, 0, want)
	if err != nil {
		return 0, fmt.Errorf("%w; are the brokers running, and is streams.%s.kafka.brokers right?", err, s.Name)
	}
	return epoch, nil
}

// begun reports whether the topic of an epoch holds a record of it.
func (s *Epochs) begun(ctx context.Context, epoch millrace.Epoch, want millrace.StreamID) (bool, error) {
	name := topic.EpochName(s.config.Kafka.Topic, epoch)
	t, err := OpenTopic(ctx, s.config, name, s.log)
	if err != nil {
		return false, err
	}
	defer func() { _ = t.Close() }() // nothing is appended
	info, err := t.Info(ctx)
	if errors.Is(err, topic.ErrNoTopic) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	id, ok, err := IdentityOf(ctx, t, info)
	switch {
	case millrace.NeedsOperator(err):
		s.complain(name, "its first record is none of millrace's")
		return false, nil
	case err != nil || !ok:
		return false, err
	case id.Epoch != epoch:
		s.complain(name, "its records are of epoch "+id.Epoch.String())
		return false, nil
	case !want.IsZero() && id.Stream != want:
		s.complain(name, "its records are of stream "+id.Stream.String())
		return false, nil
	}
	return true, nil
}

// complain says once of a topic that it is not what its name says.
func (s *Epochs) complain(name, why string) {
	if s.told[name] {
		return
	}
	s.told[name] = true
	s.log.Warn("a topic has the name of an epoch of the stream and is left alone", "topic", name, "why", why)
}
