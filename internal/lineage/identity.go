package lineage

import (
	"context"
	"fmt"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/config"
	"github.com/millrace-db/millrace/internal/topic"
)

// Identity is which stream's epoch a topic or store holds.
type Identity struct {
	Stream millrace.StreamID
	Epoch  millrace.Epoch
}

// FirstRecord reads the first record of a topic. ok is false if it is empty.
func FirstRecord(ctx context.Context, t *topic.Topic, info topic.Info) (r *millrace.Record, ok bool, err error) {
	if info.Start >= info.End {
		return nil, false, nil
	}
	reader, err := t.Read(ctx, info.Start)
	if err != nil {
		return nil, false, err
	}
	defer reader.Close()
	message, err := reader.Next(ctx)
	if err != nil {
		return nil, false, fmt.Errorf("read the first record of topic %s: %w", t.Name(), err)
	}
	r, err = millrace.DecodeRecord(message.Value, nil)
	if err != nil {
		return nil, false, fmt.Errorf("topic %s, offset %v: %w; mend: name the stream's own topic in kafka.topic", t.Name(), message.Offset, err)
	}
	return r, true, nil
}

// IdentityOf tells whose topic it is. ok is false if it is empty.
func IdentityOf(ctx context.Context, t *topic.Topic, info topic.Info) (id Identity, ok bool, err error) {
	r, ok, err := FirstRecord(ctx, t, info)
	if err != nil || !ok {
		return Identity{}, false, err
	}
	return Identity{r.Stream, r.Epoch}, true, nil
}

// stopError is an error that only an operator mends.
type stopError string

func (e stopError) Error() string { return string(e) }
func (stopError) Unwrap() error   { return millrace.ErrStop }

// Want compares an ID that was found with the configured one. Its error wraps
// millrace.ErrStop.
func Want(s *config.Stream, where string, found millrace.StreamID) error {
	if s.ID == "" || s.ID == found.String() {
		return nil
	}
	return stopError(fmt.Sprintf("%s is of stream %v, and streams.%s.id says %s; correct the configuration", where, found, s.Name, s.ID))
}
