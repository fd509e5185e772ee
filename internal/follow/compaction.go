package follow

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/millrace-db/millrace/applier"
	"github.com/millrace-db/millrace/edge"
	"github.com/millrace-db/millrace/edge/serve"
)

// A store is compacted in four steps. A copy is written beside it from one
// snapshot; an applier of its own brings the copy up to date from the topic; when
// it has come to where readers are, their applier ends, and the copy comes to the
// index at which that stopped; readers go over. Until then nothing depends on the
// copy, and whatever goes wrong costs only it.

// catchUpLimit bounds how long applying for readers stands still while the copy
// comes to where it stopped.
const catchUpLimit = 10 * time.Second

// Compact asks for a compaction of the store. It returns serve.ErrCompacting if one is
// under way.
func (f *Stream) Compact() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.compaction != nil && f.compaction.Running() {
		return serve.ErrCompacting
	}
	f.compaction = &serve.Compaction{State: serve.CompactionWaiting, StartedAt: time.Now()}
	select {
	case f.compactAsked <- struct{}{}:
	default: // asked already
	}
	return nil
}

// Compaction says how far the newest one is; nil if there was none.
func (f *Stream) Compaction() *serve.Compaction {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.compaction == nil {
		return nil
	}
	c := *f.compaction
	return &c
}

// note changes what is shown of the compaction.
func (f *Stream) note(change func(*serve.Compaction)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f.compaction)
}

// compactTask is a compaction under way; the goroutine of the reign alone uses
// it, but for made and caught.
type compactTask struct {
	cancel context.CancelFunc
	// made is closed when the copy has been made, or could not be.
	made  chan struct{}
	store *edge.Store
	err   error
	// follow is the copy's applier. caught is closed when it has come to where
	// readers are.
	follow  *task
	caught  chan struct{}
	applier *applier.Applier
}

func (t *compactTask) madeC() <-chan struct{} {
	if t == nil || t.follow != nil {
		return nil
	}
	return t.made
}

func (t *compactTask) endedC() <-chan struct{} {
	if t == nil {
		return nil
	}
	return t.follow.endedC()
}

func (t *compactTask) caughtC() <-chan struct{} {
	if t == nil {
		return nil
	}
	return t.caught
}

// beginCompaction begins to copy.
func (r *epochReign) beginCompaction() {
	if r.next != nil {
		r.failCompaction(errors.New("a newer epoch is being copied, which takes the place of the store; mend: wait until readers have gone over to it"))
		return
	}
	if r.boot.task != nil {
		r.failCompaction(errors.New("an image is being taken, whose store takes the place of this one; mend: wait until readers have gone over to it"))
		return
	}
	ctx, cancel := context.WithCancel(r.ctx)
	t := &compactTask{cancel: cancel, made: make(chan struct{})}
	r.compact = t
	r.log.Info("the store is being compacted beside the one that is served", "dir", r.home.Store().Dir())
	r.work.Go(func() {
		defer close(t.made)
		t.store, t.err = r.home.Compact(ctx, func(p edge.CopyProgress) {
			r.note(func(c *serve.Compaction) {
				c.State, c.Items, c.Of = serve.CompactionCopying, p.Items, p.Of
				if p.Checking {
					c.State = serve.CompactionChecking
				}
			})
		})
	})
}

// copyMade starts the copy's applier.
func (r *epochReign) copyMade() {
	t := r.compact
	err := t.err
	if err == nil {
		r.note(func(c *serve.Compaction) { c.State = serve.CompactionFollowing })
		t.follow, err = r.apply(r.ctx, t.store, nil, t.store.Place().Epoch, nil, &t.applier)
	}
	if err != nil {
		r.endCompaction(err)
		return
	}
	r.awaitCatchUp()
}

// awaitCatchUp closes t.caught when the copy is not behind readers.
func (r *epochReign) awaitCatchUp() {
	t := r.compact
	t.caught = make(chan struct{})
	caught := t.caught
	r.work.Go(func() {
		for {
			changed := t.store.Changed()
			if t.store.Index() >= r.home.Place().Index {
				close(caught)
				return
			}
			select {
			case <-r.ctx.Done():
				return
			case <-t.follow.ended:
				return
			case <-changed:
			}
		}
	})
}

// compacted leads readers to the copy. over tells that they have gone, and that
// the reign ends so that another one follows their store.
func (r *epochReign) compacted() (over bool, err error) {
	t := r.compact
	applied := r.current != nil
	r.current.stop()
	r.current = nil
	ctx, cancel := context.WithTimeout(r.ctx, catchUpLimit)
	defer cancel()
	if err := t.store.WaitIndex(ctx, r.home.Place().Index); err != nil {
		if r.ctx.Err() != nil {
			return true, nil // told to end
		}
		// Readers' applier goes on, and the copy after it.
		r.awaitCatchUp()
		if applied {
			return false, r.follow()
		}
		return false, nil
	}
	t.follow.stop()
	was, err := r.home.SwitchCompacted()
	if err != nil {
		r.endCompaction(err)
		if applied {
			return false, r.follow()
		}
		return false, nil
	}
	r.compact = nil
	now := r.home.Space().File
	r.note(func(c *serve.Compaction) {
		c.State, c.BytesBefore, c.BytesAfter, c.EndedAt = serve.CompactionDone, was, now, time.Now()
	})
	r.log.Info("the store has been compacted, and readers have gone over", "dir", r.home.Store().Dir(), "bytes", now, "bytes_before", was)
	return true, nil
}

// endCompaction gives the compaction up, for a reason.
func (r *epochReign) endCompaction(err error) {
	t := r.compact
	if t == nil {
		return
	}
	r.compact = nil
	t.cancel()
	<-t.made
	t.follow.stop()
	r.failCompaction(errors.Join(err, r.home.DropCompacted()))
}

func (r *epochReign) failCompaction(err error) {
	r.note(func(c *serve.Compaction) {
		c.State, c.Problem, c.EndedAt = serve.CompactionFailed, err.Error(), time.Now()
	})
	if r.ctx.Err() == nil {
		r.log.Warn("the store was not compacted; everything is as it was", "error", err)
	}
}

// copyStopped gives up a copy whose applier has stopped.
func (r *epochReign) copyStopped() {
	err := r.compact.follow.err
	if err == nil {
		err = errors.New("its applier has ended")
	}
	r.endCompaction(fmt.Errorf("bring the copy up to date: %w", err))
}
