package main

import (
	"context"
	"errors"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge"
)

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
