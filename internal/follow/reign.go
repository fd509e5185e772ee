package follow

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/applier"
	"github.com/millrace-db/millrace/internal/config"
	"github.com/millrace-db/millrace/internal/mend"
)

// reign follows one epoch for readers. It returns nil when they have gone over to
// another, when that has failed and is to be tried again, or when ctx ends; an
// error stops the stream.
func (f *Stream) reign(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var work sync.WaitGroup
	r := &epochReign{Stream: f, ctx: ctx, found: make(chan millrace.Epoch), look: make(chan struct{}, 1), work: &work}
	defer func() {
		cancel()
		r.next.stop()
		r.current.stop()
		r.endCompaction(errors.New("the edge has stopped following the stream"))
		if err := r.dropImage(); err != nil {
			f.log.Warn("what is left of an image", "error", err)
		}
		f.mu.Lock()
		f.next = nil
		f.mu.Unlock()
		work.Wait()
	}()
	successors, err := f.newEpochs()
	if err != nil {
		return err
	}
	work.Go(func() { f.watch(ctx, successors, r.found, r.look) })
	if !r.bootFirst() {
		if err := r.follow(); err != nil {
			return err
		}
	}
	return r.run()
}

// epochReign is the state of reign; its goroutine alone uses it.
type epochReign struct {
	*Stream
	ctx           context.Context //nolint:containedctx // of the one call that it belongs to
	work          *sync.WaitGroup
	found         chan millrace.Epoch
	look          chan struct{}
	current, next *task
	compact       *compactTask
	boot          bootReign
	// ending is the stop of readers' epoch that is to be decided on: it ends the stream
	// unless a newer one that has begun is being copied, or an image of it is taken. held
	// is one that is served with its fault instead.
	ending, held error
	again        <-chan time.Time
	// failed is the epoch whose copy has stopped for good.
	failed millrace.Epoch
}

// follow starts the applier of readers' epoch.
func (r *epochReign) follow() (err error) {
	r.ending = nil
	store := r.home.Store()
	r.current, err = r.apply(r.ctx, store, r.readersLog(), store.Place().Epoch, r.metrics, &r.Stream.current)
	return err
}

func (r *epochReign) run() error {
	for {
		select {
		case <-r.ctx.Done():
			return r.held
		case <-r.current.endedC():
			err := r.current.err
			r.current = nil
			if r.ctx.Err() == nil {
				r.stoppedCurrent(err)
			}
		case <-r.again:
			r.again = nil
			if err := r.follow(); err != nil {
				return err
			}
		case epoch := <-r.found:
			r.begin(epoch)
			if err := r.settle(); err != nil {
				return err
			}
		case <-r.next.endedC():
			if err := r.stoppedNext(); err != nil {
				return err
			}
			if err := r.settle(); err != nil {
				return err
			}
		case <-r.next.copiedC():
			return r.goOver()
		case <-r.boot.again:
			r.retryImage()
		case <-r.boot.behindC():
			r.lookBehind()
		case <-r.boot.task.takenC():
			if err := r.imageTaken(); err != nil {
				return err
			}
		case <-r.boot.task.endedC():
			if err := r.imageFollowed(); err != nil {
				return err
			}
		case <-r.boot.task.confirmedC():
			if over, err := r.imageConfirmed(); over || err != nil {
				return err
			}
		case <-r.compactAsked:
			r.beginCompaction()
		case <-r.compact.madeC():
			r.copyMade()
		case <-r.compact.endedC():
			r.copyStopped()
		case <-r.compact.caughtC():
			if over, err := r.compacted(); over || err != nil {
				return err
			}
		}
	}
}

// lost tells that the topic is not what it was, which a new epoch alone mends.
func lost(err error) bool {
	return errors.Is(err, applier.ErrSourceGone) || errors.Is(err, applier.ErrOtherTopic)
}

// stoppedCurrent decides what follows from the stop of readers' epoch.
func (r *epochReign) stoppedCurrent(err error) {
	r.mu.Lock()
	news := r.stopped == nil || r.stopped.Error() != err.Error()
	r.stopped = err
	r.mu.Unlock()
	switch {
	case r.next != nil:
		r.ending = err
		r.log.Warn("readers' epoch has stopped; a newer one is being copied", "error", err)
	case lost(err):
		take := passed(err) && len(r.peers()) > 0
		if take {
			r.wantImage(bootGone, r.home.Place().Epoch)
		}
		switch {
		case take && news:
			r.log.Error("the source no longer has what comes after the rows here; they are answered until an image has been taken from a peer",
				"error", mend.Error(r.config.Name, err))
		case news && passed(err):
			r.log.Error("the source no longer has what comes after the rows here; they are answered until somebody acts",
				"error", mend.Error(r.config.Name, err), "mend", "name peers in edge.images.from, or take an image by hand: millrace image fetch and restore; only where records were lost, "+mend.EpochCommand(r.config.Name))
		case news:
			r.log.Error("the stream's topic is lost; its last rows are still answered, until a new epoch is begun",
				"error", mend.Error(r.config.Name, err), "mend", mend.EpochCommand(r.config.Name))
		}
		r.again = time.After(lostEvery)
	default:
		r.ending = err
		select {
		case r.look <- struct{}{}:
		default: // it looks already
		}
	}
}

// settle decides on the stop of readers' epoch where no newer one is on its way that mends
// it. One that cannot be copied is not, where no peer is named that may have an image of it.
func (r *epochReign) settle() error {
	if r.ending == nil || r.next != nil || r.awaitsImage() && len(r.peers()) > 0 {
		return nil
	}
	err := r.ending
	r.ending = nil
	if lost(err) {
		r.stoppedCurrent(err)
		return nil
	}
	return r.hold(err)
}

// hold ends the stream, or serves on with its fault, as the configuration says.
func (r *epochReign) hold(err error) error {
	if r.edge.OnStop != config.OnStopServe {
		return err
	}
	r.log.Error("stream stopped; its last rows are still answered", "error", mend.Error(r.config.Name, err))
	r.held = err
	return nil
}

// begin starts to copy an epoch that was found, if it is not being copied.
func (r *epochReign) begin(epoch millrace.Epoch) {
	now := millrace.Epoch(r.epoch.Load())
	if epoch <= now || epoch <= r.failed || r.next != nil && epoch <= r.next.epoch {
		return
	}
	if r.next != nil {
		r.log.Info("a still newer epoch has begun; the copy under way is given up", "epoch", uint64(r.next.epoch))
		r.dropNextTask()
	}
	if r.awaitsImage() && r.boot.epoch >= epoch {
		return // nothing else leads there
	}
	r.endCompaction(fmt.Errorf("epoch %v has begun, whose store takes the place of this one", epoch))
	if r.boot.task != nil {
		if err := r.noImage(fmt.Errorf("epoch %v has begun, whose store takes the place of this one", epoch)); err != nil {
			r.setTrouble(err)
			return
		}
	}
	r.boot.again = nil
	store, err := r.home.Next(epoch)
	var records applier.Log
	if err == nil {
		records, err = r.logs.follow()
	}
	if err == nil {
		r.next, err = r.apply(r.ctx, store, records, epoch, nil, &r.Stream.next)
	}
	if err != nil {
		err = errors.Join(err, r.logs.drop())
	}
	r.setTrouble(err)
	if err != nil {
		return // the next look tries again
	}
	r.log.Info("a newer epoch has begun; its copy is made beside the rows that are served", "epoch", uint64(epoch), "serving", uint64(now), "index", store.Index())
	t := r.next
	r.work.Go(func() { awaitCopy(r.ctx, store, t) })
}

func (r *epochReign) dropNextTask() {
	r.next.stop()
	r.next = nil
	if err := r.logs.drop(); err != nil {
		r.log.Warn("log of an epoch that is no longer copied", "error", err)
	}
	r.mu.Lock()
	r.Stream.next = nil
	r.mu.Unlock()
}

// stoppedNext decides what follows from the stop of a copy.
func (r *epochReign) stoppedNext() error {
	epoch, err := r.next.epoch, r.next.err
	r.dropNextTask()
	if r.ctx.Err() != nil || err == nil {
		return nil //nolint:nilerr // it was told to stop
	}
	err = fmt.Errorf("copy of epoch %v: %w", epoch, err)
	r.setTrouble(err)
	if lost(err) {
		// Should the topic have been made again, the copy begins again too.
		derr := r.home.DropNext()
		if derr == nil && passed(err) {
			r.wantEpoch(epoch)
		}
		return derr
	}
	r.failed = epoch
	return r.hold(err)
}

// goOver leads readers to the copy that is complete.
func (r *epochReign) goOver() error {
	epoch := r.next.epoch
	r.next.stop()
	r.current.stop()
	from := r.home.Place()
	err := r.home.Switch(r.ctx)
	if r.ctx.Err() != nil {
		return nil //nolint:nilerr // told to stop in the middle; the next start goes on
	}
	r.setTrouble(err)
	if err != nil {
		select {
		case <-r.ctx.Done():
		case <-time.After(r.bootRules.look):
		}
		return nil
	}
	r.epoch.Store(uint64(epoch))
	r.mu.Lock()
	r.stopped = nil
	err = r.logs.goOver(epoch)
	r.mu.Unlock()
	if err != nil {
		return fmt.Errorf("go over to the log of epoch %v: %w", epoch, err)
	}
	r.log.Info("readers have gone over to a new epoch", "epoch", uint64(epoch), "index", r.home.Place().Index, "from_epoch", uint64(from.Epoch), "from_index", from.Index)
	return nil
}
