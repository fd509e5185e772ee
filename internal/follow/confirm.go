package follow

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge"
	"github.com/millrace-db/millrace/edge/serve"
)

// awaitConfirmed closes confirmed when source and image are known to be of one history,
// and the store is not behind readers; where nobody can say so and no signature vouches for
// the image, it waits.
func (r *epochReign) awaitConfirmed(t *bootTask, store *edge.Store, confirmed chan<- struct{}) {
	limit := time.NewTimer(r.bootRules.confirm)
	defer limit.Stop()
	agreed, state := t.agreed, t.witness.state
	for {
		changed := store.Changed()
		here, there := r.home.Place(), store.Place()
		if (agreed || there.Index > t.image) && (there.Epoch > here.Epoch || there.Index >= here.Index) {
			close(confirmed)
			return
		}
		select {
		case <-r.ctx.Done():
			return
		case <-t.follow.ended:
			return
		case <-limit.C:
			if r.trusted != nil {
				r.log.Warn("nothing has come from the source since the image; its rows are answered all the same, as its history is signed", "image", t.image)
				close(confirmed)
				return
			}
			if !r.tellUnconfirmed(t) {
				t.unconfirmed.Store(true)
				t.follow.cancel()
				return
			}
			limit.Reset(r.bootRules.unconfirmed)
		case <-state:
			agreed, state = true, nil
		case <-changed:
		}
	}
}

// tellUnconfirmed says that no source has confirmed an image yet. It reports whether that is
// news.
func (r *epochReign) tellUnconfirmed(t *bootTask) (news bool) {
	r.showBoot(func(b *serve.Bootstrap) {
		if news = b.State == serve.BootstrapFollowing; news {
			b.State = serve.BootstrapUnconfirmed
		}
	})
	if news {
		r.log.Warn("no source has confirmed the image yet; until one has, nothing is answered from it", "image", t.image,
			"mend", "see that a source can be reached that goes on from it; with signing.trusted, signatures vouch for an image")
	}
	return news
}

// imageFollowed gives up a restored store whose applier has stopped: the source does not
// go on from it, or nobody has said that it does.
func (r *epochReign) imageFollowed() error {
	t := r.boot.task
	if t.unconfirmed.Load() {
		return r.noImage(fmt.Errorf("no source has confirmed in %v that it goes on from the image of index %v", r.bootRules.confirm+r.bootRules.unconfirmed, t.image))
	}
	err := t.follow.err
	if err == nil {
		err = errors.New("its applier has ended")
	}
	if shown := r.Bootstrap(); shown != nil {
		r.tellRefused(shown.From, err)
	}
	if err := r.boots.refused.add(t.from, err); err != nil {
		r.log.Warn("what is left of an image", "error", err)
	}
	return r.noImage(fmt.Errorf("follow the source from image %s: %w", t.from.Manifest.Name(), err))
}

// witness is the log of a restored store's applier. It keeps nothing, and sees that a state
// record of who reigns says the chain that the store has: where the topic was trimmed, that is
// all that there is behind the image until something is published.
type witness struct {
	// state is closed when one has come.
	state chan struct{}
	once  sync.Once
}

func newWitness() *witness { return &witness{state: make(chan struct{})} }

// Append implements applier.Log: of the records that the fold has accepted, a state record
// has the chain that the batches before it, or the image, have led to.
func (w *witness) Append(_ millrace.Offset, _ []byte, r *millrace.Record, _ bool) {
	if r.Kind == millrace.RecordState {
		w.once.Do(func() { close(w.state) })
	}
}

// Start implements applier.Log.
func (*witness) Start(at *millrace.Checkpoint) *millrace.Checkpoint { return at }

// Commit implements applier.Log.
func (*witness) Commit(*millrace.Checkpoint) {}

// Renew implements applier.Log.
func (*witness) Renew(*millrace.Checkpoint) {}
