// Package follow keeps streams at an edge: it joins what an edge is made of (where
// records come from, the applier, the store, the log) and leads readers from one epoch,
// or one store, to the next.
package follow

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/applier"
	"github.com/millrace-db/millrace/edge"
	"github.com/millrace-db/millrace/edge/relay"
	"github.com/millrace-db/millrace/edge/serve"
	"github.com/millrace-db/millrace/edge/watch"
	"github.com/millrace-db/millrace/internal/config"
	"github.com/millrace-db/millrace/internal/edgestatus"
	"github.com/millrace-db/millrace/internal/mend"
	"github.com/millrace-db/millrace/internal/topic"
)

// lostEvery is how often a topic that was found lost is tried again.
const lostEvery = 10 * time.Second

// Stream keeps one stream at this edge through its epochs. An applier brings
// the topic of the epoch that readers use into its store. When a newer epoch has
// begun, a second one fills the store of that beside it, and once its first copy
// is complete, readers go over at once, for good.
//
// An epoch that is lost (its topic deleted, emptied or made again) ends nothing
// here: its rows are served, with the loss as the stream's fault, until a newer
// epoch has taken its place. So does any other stop of the old epoch while a
// newer one is being copied.
//
// Run is called once, and again after a TakeOver that follows on Yield; all other methods
// may be called at any time by anyone until Close.
type Stream struct {
	whole  *config.Config
	config *config.Stream
	edge   *config.Edge
	home   *edge.Home
	log    *slog.Logger
	// logs are its own logs of what the stores have taken in; those who look at them
	// hold mu.
	logs logKeep
	head head
	// hub is where watchers are told from; nil where no log is kept.
	hub *watch.Hub
	// filter is what is to be held of it.
	filter *millrace.Filter
	// metrics takes those of the applier for readers' store.
	metrics prometheus.Registerer
	// id is the stream that the configuration names, or zero.
	id millrace.StreamID
	// trusted are the keys that its records have to be signed with.
	trusted *millrace.Keyring
	// version is the program's.
	version string
	// upstreams are the edges that are followed; nil where it is Kafka. relay serves
	// the log to others; nil where none is kept.
	upstreams *relay.Client
	relay     *relay.Server
	// reporter tells whoever asks for the edges of the stream; nil where there is neither
	// Kafka nor an upstream. tree takes what edges that follow this one report.
	reporter *edgestatus.Reporter
	tree     *tree
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
	// boots is what is known of images taken from peers, imageDir where they are kept.
	boots     *boots
	bootRules bootRules
	imageDir  string
	clients   imageClients
}

// Config of a Stream. All but Trusted and Metrics must be set.
type Config struct {
	// Whole is the configuration of the process, and Stream the part of it that is
	// followed.
	Whole  *config.Config
	Stream *config.Stream
	// Trusted are the keys that the records have to be signed with; nil asks for none.
	Trusted *millrace.Keyring
	// ViewAge is the age limit of views of the store; 0 is edge's default.
	ViewAge time.Duration
	// Version is the program's, for reports.
	Version string
	// Standby tells that another process follows the stream now: it is only read until
	// TakeOver.
	Standby bool
	Logger  *slog.Logger
	// Metrics takes the stream's metrics.
	Metrics prometheus.Registerer
}

// StoreDir is where an edge keeps a stream.
func StoreDir(c *config.Config, s *config.Stream) string {
	return filepath.Join(c.Edge.DataDir, s.Name)
}

// New opens the stream's store and log; nothing is applied yet. The caller calls Run,
// if at all, and then Close.
func New(c Config) (*Stream, error) {
	f := &Stream{
		config: c.Stream, edge: &c.Whole.Edge, log: c.Logger, metrics: c.Metrics, trusted: c.Trusted, version: c.Version,
		compactAsked: make(chan struct{}, 1), imageDir: filepath.Join(c.Whole.Edge.Images.Dir, c.Stream.Name),
	}
	f.boots, f.bootRules, f.tree = newBoots(f), defaultBootRules(), f.newTree()
	var err error
	if f.clients, err = newImageClients(&f.edge.Peers, c.Logger); err != nil {
		return nil, err
	}
	if c.Stream.ID != "" {
		f.id, _ = millrace.ParseStreamID(c.Stream.ID) // the configuration has checked it
	}
	if f.filter, err = f.edge.Tables.Filter(c.Stream.Name); err != nil {
		return nil, fmt.Errorf("edge.tables: %w", err)
	}
	openHome := edge.OpenHome
	if c.Standby {
		openHome = edge.OpenHomeStandby
	}
	f.whole = c.Whole
	f.home, err = openHome(edge.Options{
		Dir: StoreDir(c.Whole, c.Stream), Stream: f.id, MapSize: int64(f.edge.MapSize), MaxViewAge: c.ViewAge, Logger: c.Logger, Registerer: c.Metrics,
		Indexes: f.edge.Indexes[c.Stream.Name], Filter: f.filter,
	})
	if err != nil {
		return nil, err
	}
	f.epoch.Store(uint64(f.home.Place().Epoch))
	if err := f.open(c); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	f.boots.register(c.Metrics)
	return f, nil
}

// open opens what the stream is made of beside its store.
func (f *Stream) open(c Config) (err error) {
	if !c.Standby {
		if f.logs, err = f.openLogs(f.home.Place().Epoch); err != nil {
			return err
		}
	}
	if f.hub, err = f.newWatch(c.Metrics); err != nil {
		return err
	}
	peers, err := newPeers(&f.edge.Peers, c.Logger)
	if err != nil {
		return err
	}
	if f.upstreams, err = f.newUpstreams(peers, c.Metrics); err != nil {
		return err
	}
	if f.relay, err = f.newRelay(c.Metrics); err != nil {
		return err
	}
	if len(c.Stream.Kafka.Brokers) > 0 || f.upstreams != nil {
		f.reporter, err = f.reports()
	}
	return err
}

// Name is the stream's in the configuration.
func (f *Stream) Name() string { return f.config.Name }

// Home holds the stream's store, for reading. It is closed with the Stream.
func (f *Stream) Home() *edge.Home { return f.home }

// Close gives store and log up, once nothing runs any more.
func (f *Stream) Close() error {
	f.boots.unregister(f.metrics)
	var errs []error
	if f.hub != nil {
		errs = append(errs, f.hub.Close())
	}
	if f.relay != nil {
		errs = append(errs, f.relay.Close())
	}
	if f.upstreams != nil {
		errs = append(errs, f.upstreams.Close())
	}
	return errors.Join(append(errs, f.logs.close(), f.home.Close())...)
}

// stream is the one that all epochs must be of, zero if it is not known yet.
func (f *Stream) stream() millrace.StreamID {
	if id := f.home.Stream(); !id.IsZero() {
		return id
	}
	return f.id
}

// Fault says what keeps the stream from going on, nil if nothing does.
func (f *Stream) Fault() error {
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
	return mend.Error(f.config.Name, errors.Join(append(errs, f.trouble)...))
}

func (f *Stream) setTrouble(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err != nil && (f.trouble == nil || f.trouble.Error() != err.Error()) {
		f.log.Error("the next epoch cannot be gone over to yet", "error", err)
	}
	f.trouble = err
}

// Run follows the stream, and reports on it, until ctx ends or it stops. The last
// report comes after the last commit.
func (f *Stream) Run(ctx context.Context) error {
	var work sync.WaitGroup
	reporting, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	if f.reporter != nil {
		work.Go(func() { f.reporter.Run(reporting) })
	}
	if f.upstreams != nil {
		work.Go(func() { f.upstreams.Run(reporting) })
	}
	err := f.throughEpochs(ctx)
	stop()
	work.Wait()
	return err
}

// throughEpochs goes from epoch to epoch.
func (f *Stream) throughEpochs(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := f.reign(ctx); err != nil {
			err = fmt.Errorf("stream %s, %s, store %s: %w", f.config.Name, f.origin(), f.home.Store().Dir(), err)
			return mend.Error(f.config.Name, err)
		}
	}
	return nil
}

func (f *Stream) topicName() string {
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
func (f *Stream) apply(ctx context.Context, store *edge.Store, records applier.Log, epoch millrace.Epoch, metrics prometheus.Registerer, at **applier.Applier) (*task, error) {
	log := f.log
	if epoch != 0 {
		log = log.With("epoch", uint64(epoch))
	}
	a, err := applier.New(applier.Config{
		Store: store, Log: records, Stream: f.id, Epoch: epoch, Trusted: f.trusted, Logger: log, Registerer: metrics,
		OpenSource: f.sourceOf(store, epoch, at == &f.current),
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

// watch sends the newest epoch after the one that readers use that has begun, 0
// if there is none, again and again, and when it is asked to look.
func (f *Stream) watch(ctx context.Context, s epochs, found chan<- millrace.Epoch, look <-chan struct{}) {
	defer s.Close()
	tick := time.NewTicker(f.bootRules.look)
	defer tick.Stop()
	var told string
	for {
		var epoch millrace.Epoch
		var err error
		if now := millrace.Epoch(f.epoch.Load()); now != 0 {
			epoch, err = s.Newest(ctx, now, f.stream())
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
