package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/applier"
	"github.com/millrace-db/millrace/edge"
	"github.com/millrace-db/millrace/edge/serve"
	"github.com/millrace-db/millrace/internal/config"
	"github.com/millrace-db/millrace/internal/edgestatus"
	"github.com/millrace-db/millrace/internal/topic"
)

const (
	// successorEvery is how often an edge asks whether a newer epoch has a
	// topic: one request.
	successorEvery = 5 * time.Second
	// lostEvery is how often a topic that was found lost is tried again.
	lostEvery = 10 * time.Second
)

// follower keeps one stream at this edge through its epochs. An applier brings
// the topic of the epoch that readers use into its store. When a newer epoch has
// begun, a second one fills the store of that beside it, and once its first copy
// is complete, readers go over at once, for good.
//
// An epoch that is lost (its topic deleted, emptied or made again) ends nothing
// here: its rows are served, with the loss as the stream's fault, until a newer
// epoch has taken its place. So does any other stop of the old epoch while a
// newer one is being copied.
type follower struct {
	config *config.Stream
	edge   *config.Edge
	home   *edge.Home
	log    *slog.Logger
	// logs are its own logs of what the stores have taken in; those who look at them
	// hold mu.
	logs logKeep
	// metrics takes those of the applier for readers' store.
	metrics prometheus.Registerer
	// id is the stream that the configuration names, or zero.
	id millrace.StreamID
	// trusted are the keys that its records have to be signed with.
	trusted *millrace.Keyring
	// reporter tells whoever asks for the edges of the stream.
	reporter *edgestatus.Reporter
	// epoch is the one whose topic is followed for readers; 0 until it is known.
	epoch atomic.Uint64

	mu      sync.Mutex
	current *applier.Applier
	next    *applier.Applier
	// stopped is why readers' epoch does not go on, trouble why the next one
	// cannot be prepared or gone over to.
	stopped, trouble error
	// compaction is the newest one, nil if there was none.
	compaction *serve.Compaction
	// compactAsked has an item when one is to begin.
	compactAsked chan struct{}
}

func newFollower(c *config.Config, s *config.Stream, viewAge time.Duration, log *slog.Logger, metrics prometheus.Registerer) (*follower, error) {
	f := &follower{config: s, edge: &c.Edge, log: log, metrics: metrics, compactAsked: make(chan struct{}, 1)}
	if s.ID != "" {
		f.id, _ = millrace.ParseStreamID(s.ID) // the configuration has checked it
	}
	var err error
	if f.trusted, err = trusted(s); err != nil {
		return nil, err
	}
	f.home, err = edge.OpenHome(edge.Options{
		Dir: storeDir(c, s), Stream: f.id, MapSize: int64(c.Edge.MapSize), MaxViewAge: viewAge, Logger: log, Registerer: metrics,
		Indexes: c.Edge.Indexes[s.Name],
	})
	if err != nil {
		return nil, err
	}
	f.epoch.Store(uint64(f.home.Place().Epoch))
	if f.logs, err = openLogs(c, s, f.home.Place().Epoch, log, metrics); err == nil {
		f.reporter, err = f.reports()
	}
	if err != nil {
		return nil, errors.Join(err, f.close())
	}
	return f, nil
}

// close gives store and log up, once nothing runs any more.
func (f *follower) close() error { return errors.Join(f.logs.close(), f.home.Close()) }

// stream is the one that all epochs must be of, zero if it is not known yet.
func (f *follower) stream() millrace.StreamID {
	if id := f.home.Stream(); !id.IsZero() {
		return id
	}
	return f.id
}

// fault says what keeps the stream from going on.
func (f *follower) fault() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var errs []error
	if f.current != nil {
		status := f.current.Status()
		switch {
		case status.Err != nil:
			errs = append(errs, status.Err)
		case status.Phase == applier.PhaseConnecting:
			errs = append(errs, f.stopped)
		}
	}
	if f.next != nil {
		if err := f.next.Status().Err; err != nil {
			errs = append(errs, fmt.Errorf("next epoch: %w", err))
		}
	}
	return withMend(f.config.Name, errors.Join(append(errs, f.trouble)...))
}

func (f *follower) setTrouble(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err != nil && (f.trouble == nil || f.trouble.Error() != err.Error()) {
		f.log.Error("the next epoch cannot be gone over to yet", "error", err)
	}
	f.trouble = err
}

// run follows the stream, and reports on it, until ctx ends or it stops. The last
// report comes after the last commit.
func (f *follower) run(ctx context.Context) error {
	reporting, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	reported := make(chan struct{})
	go func() {
		defer close(reported)
		f.reporter.Run(reporting)
	}()
	err := f.throughEpochs(ctx)
	stop()
	<-reported
	return err
}

// throughEpochs goes from epoch to epoch.
func (f *follower) throughEpochs(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := f.reign(ctx); err != nil {
			err = fmt.Errorf("stream %s, topic %s, store %s: %w", f.config.Name, f.topicName(), f.home.Store().Dir(), err)
			return withMend(f.config.Name, err)
		}
	}
	return nil
}

func (f *follower) topicName() string {
	return topic.EpochName(f.config.Kafka.Topic, millrace.Epoch(f.epoch.Load()))
}

// task is an applier that runs.
type task struct {
	epoch  millrace.Epoch
	cancel context.CancelFunc
	ended  chan struct{} // closed when it has
	err    error         // of an applier that has ended
	copied chan struct{} // closed when the first copy is complete
}

// stop ends the applier and returns when its writer is closed.
func (t *task) stop() {
	if t != nil {
		t.cancel()
		<-t.ended
	}
}

func (t *task) endedC() <-chan struct{} {
	if t == nil {
		return nil
	}
	return t.ended
}

func (t *task) copiedC() <-chan struct{} {
	if t == nil {
		return nil
	}
	return t.copied
}

// apply starts an applier of a store, and of a log if it is not nil. epoch 0 is a new
// store's, which takes the newest epoch that there is.
func (f *follower) apply(ctx context.Context, store *edge.Store, records applier.Log, epoch millrace.Epoch, metrics prometheus.Registerer, at **applier.Applier) (*task, error) {
	log := f.log
	if epoch != 0 {
		log = log.With("epoch", uint64(epoch))
	}
	a, err := applier.New(applier.Config{
		Store: store, Log: records, Stream: f.id, Epoch: epoch, Trusted: f.trusted, Logger: log, Registerer: metrics,
		OpenSource: func(ctx context.Context, after millrace.Offset) (applier.Source, error) {
			return f.openSource(ctx, store, epoch, after)
		},
	})
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	*at = a
	f.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	t := &task{epoch: epoch, cancel: cancel, ended: make(chan struct{}), copied: make(chan struct{})}
	go func() {
		defer close(t.ended)
		t.err = a.Run(ctx)
	}()
	return t, nil
}

// awaitCopy closes t.copied when the first copy is complete.
func awaitCopy(ctx context.Context, store *edge.Store, t *task) {
	for {
		changed := store.Changed()
		if copied, err := store.Copied(ctx); err == nil && copied {
			close(t.copied)
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-t.ended:
			return
		case <-changed:
		}
	}
}

// reign follows one epoch for readers. It returns nil when they have gone over to
// another, when that has failed and is to be tried again, or when ctx ends; an
// error stops the stream.
func (f *follower) reign(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var work sync.WaitGroup
	r := &epochReign{follower: f, ctx: ctx, found: make(chan millrace.Epoch), look: make(chan struct{}, 1), work: &work}
	defer func() {
		cancel()
		r.next.stop()
		r.current.stop()
		r.endCompaction(errors.New("the edge has stopped following the stream"))
		f.mu.Lock()
		f.next = nil
		f.mu.Unlock()
		work.Wait()
	}()
	successors, err := newSuccessors(f.config, f.log)
	if err != nil {
		return err
	}
	work.Go(func() { f.watch(ctx, successors, r.found, r.look) })
	if err := r.follow(); err != nil {
		return err
	}
	return r.run()
}

// watch sends the newest epoch after the one that readers use that has begun, 0
// if there is none, again and again, and when it is asked to look.
func (f *follower) watch(ctx context.Context, s *successors, found chan<- millrace.Epoch, look <-chan struct{}) {
	defer s.close()
	tick := time.NewTicker(successorEvery)
	defer tick.Stop()
	var told string
	for {
		var epoch millrace.Epoch
		var err error
		if now := millrace.Epoch(f.epoch.Load()); now != 0 {
			epoch, err = s.newest(ctx, now, f.stream())
		}
		if err != nil && ctx.Err() == nil && err.Error() != told {
			told = err.Error()
			f.log.Warn("cannot look for a newer epoch", "error", err)
		}
		if err != nil {
			epoch = 0
		}
		select {
		case found <- epoch:
		case <-ctx.Done():
			return
		}
		select {
		case <-tick.C:
		case <-look:
		case <-ctx.Done():
			return
		}
	}
}

// epochReign is the state of reign; its goroutine alone uses it.
type epochReign struct {
	*follower
	ctx           context.Context //nolint:containedctx // of the one call that it belongs to
	work          *sync.WaitGroup
	found         chan millrace.Epoch
	look          chan struct{}
	current, next *task
	compact       *compactTask
	// ending is the stop of readers' epoch that ends the stream unless a newer
	// one has begun. held tells that it is being served with its fault instead.
	ending, held error
	again        <-chan time.Time
	// failed is the epoch whose copy has stopped for good.
	failed millrace.Epoch
}

// follow starts the applier of readers' epoch.
func (r *epochReign) follow() (err error) {
	store := r.home.Store()
	r.current, err = r.apply(r.ctx, store, r.logs.ofReaders(), store.Place().Epoch, r.metrics, &r.follower.current)
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
			if r.ending != nil && r.next == nil {
				if err := r.hold(r.ending); err != nil {
					return err
				}
			}
			r.ending = nil
		case <-r.next.endedC():
			if err := r.stoppedNext(); err != nil {
				return err
			}
		case <-r.next.copiedC():
			return r.goOver()
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
		r.log.Warn("readers' epoch has stopped; a newer one is being copied", "error", err)
	case lost(err):
		if news {
			r.log.Error("the stream's topic is lost; its last rows are still answered, until a new epoch is begun",
				"error", withMend(r.config.Name, err), "mend", epochCommand(r.config.Name))
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

// hold ends the stream, or serves on with its fault, as the configuration says.
func (r *epochReign) hold(err error) error {
	if r.edge.OnStop != config.OnStopServe {
		return err
	}
	r.log.Error("stream stopped; its last rows are still answered", "error", withMend(r.config.Name, err))
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
	r.endCompaction(fmt.Errorf("epoch %v has begun, whose store takes the place of this one", epoch))
	store, err := r.home.Next(epoch)
	var records applier.Log
	if err == nil {
		records, err = r.logs.follow()
	}
	if err == nil {
		r.next, err = r.apply(r.ctx, store, records, epoch, nil, &r.follower.next)
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
	r.follower.next = nil
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
		return r.home.DropNext()
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
		case <-time.After(successorEvery):
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
