package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge"
	"github.com/millrace-db/millrace/internal/config"
	"github.com/millrace-db/millrace/internal/topic"
)

// identity is which stream's epoch a topic or store holds.
type identity struct {
	stream millrace.StreamID
	epoch  millrace.Epoch
}

// firstRecord reads the first record of a topic. ok is false if it is empty.
func firstRecord(ctx context.Context, t *topic.Topic, info topic.Info) (r *millrace.Record, ok bool, err error) {
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

// topicIdentity tells whose topic it is. ok is false if it is empty.
func topicIdentity(ctx context.Context, t *topic.Topic, info topic.Info) (id identity, ok bool, err error) {
	r, ok, err := firstRecord(ctx, t, info)
	if err != nil || !ok {
		return identity{}, false, err
	}
	return identity{r.Stream, r.Epoch}, true, nil
}

// wantStream compares an ID that was found with the configured one.
func wantStream(s *config.Stream, where string, found millrace.StreamID) error {
	if s.ID == "" || s.ID == found.String() {
		return nil
	}
	return operator("%s is of stream %v, and streams.%s.id says %s; correct the configuration", where, found, s.Name, s.ID)
}

// storeDir is where an edge keeps a stream.
func storeDir(c *config.Config, s *config.Stream) string {
	return filepath.Join(c.Edge.DataDir, s.Name)
}

// storeIdentity looks which stream a store holds, without changing it. ok is
// false if there is none yet.
func storeIdentity(ctx context.Context, dir string) (id millrace.StreamID, checkpoint *millrace.Checkpoint, ok bool, err error) {
	store, err := edge.Open(edge.Options{Dir: dir, ReadOnly: true})
	if errors.Is(err, edge.ErrNoStore) {
		return id, nil, false, nil
	}
	if err != nil {
		return id, nil, false, err
	}
	err = store.View(ctx, func(v *edge.View) (err error) {
		checkpoint, err = v.Checkpoint()
		return err
	})
	return store.Stream(), checkpoint, true, errors.Join(err, store.Close())
}
