package follow

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/applier"
	"github.com/millrace-db/millrace/edge"
	"github.com/millrace-db/millrace/edge/image"
	"github.com/millrace-db/millrace/edge/serve"
)

// An edge takes an image in four steps, while it serves the rows that it has. An image is
// fetched from a peer; a store is made of it beside the one that readers use; an applier
// of its own follows the source from there, and the first record that it takes in (a state
// record of the same place does), or the one that the image was taken at, shows that source
// and image are of one history; readers go over. An image that no source has confirmed is not answered from, unless the signature
// of a trusted key vouches for its history. Whatever goes wrong before that costs only the image, and the next peer is asked.

// bootRules are the times and sizes that the taking of images goes by.
type bootRules struct {
	// confirm is how long a store that was restored waits for a source to confirm it
	// before readers go over to it all the same, where its history is proven by a
	// signature, and before status and log say that it waits where it is not.
	confirm time.Duration
	// unconfirmed is how long after that an image is given up which nobody has confirmed.
	unconfirmed time.Duration
	// retryMin and retryMax bound the pause after all peers were asked in vain.
	retryMin, retryMax time.Duration
	// behindEvery is how often an edge that is behind looks whether an image is nearer,
	// lag from which lag on, and few how many entries it follows in any case.
	behindEvery, lag time.Duration
	few              uint64
	// stale is how old an image may be before a peer is asked to make a new one, still how
	// long that may stand still.
	stale, still time.Duration
	// pause is image.Source's, tell how often it is logged how far an image is.
	pause, tell time.Duration
	// look is how often it is asked whether a newer epoch has begun: one request.
	look time.Duration
}

func defaultBootRules() bootRules {
	return bootRules{
		confirm: 10 * time.Second, unconfirmed: 10 * time.Minute, retryMin: 5 * time.Second, retryMax: 2 * time.Minute,
		behindEvery: time.Minute, lag: 5 * time.Minute, few: 100_000, stale: time.Hour, still: 5 * time.Minute, tell: 10 * time.Second,
		look: 5 * time.Second,
	}
}

// boots is what is known of images that were taken, or are being taken.
type boots struct {
	outcomes *prometheus.CounterVec
	bytes    prometheus.GaugeFunc
	rows     prometheus.GaugeFunc
	unproven prometheus.GaugeFunc

	mu sync.Mutex
	// shown is the newest one, nil if there was none.
	shown *serve.Bootstrap
	// told is what was last said of each peer.
	told map[string]string
	// tried tells that peers were asked because the edge is new.
	tried bool
	// refused are images that were fetched in vain.
	refused refusedImages
}

func newBoots(f *Stream) *boots {
	b := &boots{told: make(map[string]string), refused: make(refusedImages)}
	b.outcomes = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "millrace_edge_bootstraps_total", Help: "Attempts to take an image from a peer, by outcome: done, refused (what came is untrue), failed.",
	}, []string{"outcome"})
	gauge := func(name, help string, value func(*serve.Bootstrap) float64) prometheus.GaugeFunc {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 {
			if shown := f.Bootstrap(); shown != nil && shown.Running() {
				return value(shown)
			}
			return 0
		})
	}
	b.bytes = gauge("millrace_edge_bootstrap_bytes", "Bytes of an image that have come while one is being taken; otherwise 0.", func(b *serve.Bootstrap) float64 { return float64(b.Bytes) })
	b.rows = gauge("millrace_edge_bootstrap_rows", "Rows of an image that are restored while one is being taken; otherwise 0.", func(b *serve.Bootstrap) float64 { return float64(b.Rows) })
	b.unproven = prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "millrace_edge_unproven_tables", Help: "Tables with rows that came with an image and were not compared with the source since.",
	}, func() float64 { return float64(len(f.home.Unproven().Tables)) })
	return b
}

func (b *boots) register(r prometheus.Registerer) {
	if r != nil {
		r.MustRegister(b.outcomes, b.bytes, b.rows, b.unproven)
	}
}

func (b *boots) unregister(r prometheus.Registerer) {
	if r != nil {
		for _, c := range []prometheus.Collector{b.outcomes, b.bytes, b.rows, b.unproven} {
			r.Unregister(c)
		}
	}
}

// news reports whether something else than the last time is to be said of a peer.
func (b *boots) news(from string, err error) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.told[from] == err.Error() {
		return false
	}
	b.told[from] = err.Error()
	return true
}

// Bootstrap says how far the taking of an image is, or how the last one ended; nil if
// there was none.
func (f *Stream) Bootstrap() *serve.Bootstrap {
	f.boots.mu.Lock()
	defer f.boots.mu.Unlock()
	if f.boots.shown == nil {
		return nil
	}
	shown := *f.boots.shown
	return &shown
}

// showBoot changes what is shown of it.
func (f *Stream) showBoot(change func(*serve.Bootstrap)) {
	f.boots.mu.Lock()
	defer f.boots.mu.Unlock()
	if f.boots.shown == nil {
		f.boots.shown = new(serve.Bootstrap)
	}
	change(f.boots.shown)
}

// bootTask is the taking of an image; the goroutine of the reign alone uses it, but for
// what is closed by others.
type bootTask struct {
	why    string
	cancel context.CancelFunc
	// taken is closed when a store has been made of an image, or could not be.
	taken    chan struct{}
	restored *edge.Restored
	err      error
	// from is the image, image the index at which it was taken; agreed tells that the
	// source has the record that it was taken at.
	from   *image.Created
	image  millrace.Index
	agreed bool
	// follow is the restored store's applier, witness its log. confirmed is closed when
	// readers may go over to it.
	follow    *task
	witness   *witness
	confirmed chan struct{}
	applier   *applier.Applier
	// unconfirmed tells that follow was ended because no source has confirmed the image.
	unconfirmed atomic.Bool
}

func (t *bootTask) takenC() <-chan struct{} {
	if t == nil || t.follow != nil {
		return nil
	}
	return t.taken
}

func (t *bootTask) endedC() <-chan struct{} {
	if t == nil {
		return nil
	}
	return t.follow.endedC()
}

func (t *bootTask) confirmedC() <-chan struct{} {
	if t == nil {
		return nil
	}
	return t.confirmed
}

// bootReign is what a reign keeps of the taking of images.
type bootReign struct {
	task *bootTask
	// again is when peers are asked again, why for what reason and for which epoch; fails
	// counts how often they were asked in vain for that.
	again <-chan time.Time
	why   string
	epoch millrace.Epoch
	fails int
	// behind comes when it is to be looked whether an image is nearer.
	behind *time.Ticker
}

func (b *bootReign) behindC() <-chan time.Time {
	if b.behind == nil {
		return nil
	}
	return b.behind.C
}

// bootFirst begins a new edge with an image, where peers are named. It reports whether
// one is being taken; the applier begins when it comes to none.
func (r *epochReign) bootFirst() bool {
	if len(r.peers()) == 0 {
		return false
	}
	r.boot.behind = time.NewTicker(r.bootRules.behindEvery)
	r.work.Go(func() { <-r.ctx.Done(); r.boot.behind.Stop() })
	r.boots.mu.Lock()
	tried := r.boots.tried
	r.boots.tried = true
	r.boots.mu.Unlock()
	if r.home.Place().Index > 0 || tried {
		return false
	}
	r.takeImage(bootNew, 0)
	return true
}

// wantImage takes an image if there are peers to take one from and none is being taken.
// epoch is the one that it has to be of.
func (r *epochReign) wantImage(why string, epoch millrace.Epoch) {
	if len(r.peers()) == 0 || r.boot.task != nil || r.boot.again != nil || r.next != nil {
		return
	}
	r.takeImage(why, epoch)
}

// retryLater sets when retryImage comes, after the more failures the later.
func (r *epochReign) retryLater() time.Duration {
	b := &r.boot
	again := min(r.bootRules.retryMin<<min(b.fails, 10), r.bootRules.retryMax)
	again = again/2 + rand.N(again) //nolint:gosec // to spread load
	b.fails++
	b.again = time.After(again)
	return again
}

// wantEpoch wants an image of a newer epoch, which cannot be copied. Where no peer is named
// it is tried later whether it can be.
func (r *epochReign) wantEpoch(epoch millrace.Epoch) {
	if len(r.peers()) > 0 {
		r.wantImage(bootGone, epoch)
		return
	}
	if epoch != r.boot.epoch {
		r.boot.fails = 0
	}
	r.boot.why, r.boot.epoch = bootGone, epoch
	r.retryLater()
}

// retryImage asks peers again. For a newer epoch it is first seen whether its source can be
// copied by now, which asks for an image where it cannot.
func (r *epochReign) retryImage() {
	r.boot.again = nil
	if r.boot.epoch > millrace.Epoch(r.epoch.Load()) {
		r.begin(r.boot.epoch)
		return
	}
	r.wantImage(r.boot.why, r.boot.epoch)
}

// awaitsImage reports whether an image of a newer epoch than readers' is being taken, or
// peers are asked for one again later.
func (r *epochReign) awaitsImage() bool {
	return (r.boot.task != nil || r.boot.again != nil) && r.boot.epoch > millrace.Epoch(r.epoch.Load())
}

func (r *epochReign) takeImage(why string, epoch millrace.Epoch) {
	r.endCompaction(errors.New("an image is being taken, whose store takes the place of this one"))
	ctx, cancel := context.WithCancel(r.ctx)
	t := &bootTask{why: why, cancel: cancel, taken: make(chan struct{}), witness: newWitness()}
	if epoch != r.boot.epoch {
		r.boot.fails = 0
	}
	r.boot.task, r.boot.again, r.boot.why, r.boot.epoch = t, nil, why, epoch
	r.showBoot(func(b *serve.Bootstrap) {
		*b = serve.Bootstrap{State: serve.BootstrapAsking, Reason: why, StartedAt: time.Now().UTC()}
	})
	r.work.Go(func() { r.tellProgress(t.taken) })
	r.work.Go(func() {
		defer close(t.taken)
		if epoch == 0 && r.edge.UsesKafka() {
			// A new store's is the newest that has begun, where that can be asked.
			asked, end := context.WithTimeout(ctx, r.bootRules.confirm)
			epoch, _ = r.choose(asked) // any epoch is better than none
			end()
		}
		taker := &taker{Stream: r.Stream, why: why, epoch: epoch, refused: r.boots.refused}
		if t.restored, t.err = taker.take(ctx); t.err == nil {
			t.from, t.image, t.agreed = taker.taken, t.restored.Store().Place().Index, taker.agreed
		}
	})
}

// tellProgress logs how far the taking of an image is, until it is taken.
func (f *Stream) tellProgress(taken <-chan struct{}) {
	tick := time.NewTicker(f.bootRules.tell)
	defer tick.Stop()
	for {
		select {
		case <-taken:
			return
		case <-tick.C:
		}
		if b := f.Bootstrap(); b != nil && b.Running() {
			f.log.Info("an image is being taken", "state", b.State, "from", b.From, "bytes", b.Bytes, "of_bytes", b.OfBytes, "rows", b.Rows, "of_rows", b.OfRows)
		}
	}
}

// imageTaken starts the applier of the store that was made of an image, or decides what
// follows from there being none.
func (r *epochReign) imageTaken() error {
	t := r.boot.task
	if t.err != nil {
		return r.noImage(t.err)
	}
	r.showBoot(func(b *serve.Bootstrap) { b.State = serve.BootstrapFollowing })
	store := t.restored.Store()
	var err error
	if t.follow, err = r.apply(r.ctx, store, t.witness, store.Place().Epoch, nil, &t.applier); err != nil {
		return r.noImage(err)
	}
	t.confirmed = make(chan struct{})
	confirmed := t.confirmed
	r.work.Go(func() { r.awaitConfirmed(t, store, confirmed) })
	return nil
}

// dropImage ends the taking of an image.
func (r *epochReign) dropImage() error {
	t := r.boot.task
	if t == nil {
		return nil
	}
	r.boot.task = nil
	t.cancel()
	<-t.taken
	t.follow.stop()
	if t.restored == nil {
		return nil
	}
	return t.restored.Drop()
}

// noImage gives the image up and asks again later, or lets a new edge follow the source
// from its start.
func (r *epochReign) noImage(err error) error {
	if derr := r.dropImage(); derr != nil {
		r.log.Warn("what is left of an image", "error", derr)
	}
	if r.ctx.Err() != nil {
		return nil //nolint:nilerr // told to end
	}
	b := &r.boot
	again := time.Duration(0)
	if b.why == bootGone {
		again = r.retryLater()
	}
	r.showBoot(func(s *serve.Bootstrap) {
		s.State, s.Problem, s.EndedAt = serve.BootstrapFailed, err.Error(), time.Now().UTC()
		if again > 0 {
			s.AgainAt = time.Now().Add(again).UTC()
		}
	})
	if r.current == nil && r.again == nil && r.held == nil && b.why == bootNew {
		r.log.Info("a new edge has no image to begin with; it follows the source from its start", "error", err)
		return r.follow()
	}
	return nil
}

// imageConfirmed leads readers to the restored store. over tells that they have gone,
// and that the reign ends so that another one follows their store.
func (r *epochReign) imageConfirmed() (over bool, err error) {
	t := r.boot.task
	applied := r.current != nil
	r.current.stop()
	r.current = nil
	t.follow.stop()
	from, to := r.home.Place(), t.restored.Store().Place()
	err = t.restored.Switch(r.ctx)
	if err != nil && r.ctx.Err() != nil {
		return false, nil //nolint:nilerr // told to end
	}
	if err != nil {
		if err := r.noImage(err); err != nil {
			return false, err
		}
		if applied && r.current == nil {
			return false, r.follow()
		}
		return false, nil
	}
	r.boot.task = nil
	t.cancel()
	r.boots.outcomes.WithLabelValues("done").Inc()
	r.boots.mu.Lock()
	clear(r.boots.told)
	r.boots.mu.Unlock()
	r.showBoot(func(b *serve.Bootstrap) {
		b.State, b.Rows, b.Problem, b.EndedAt = serve.BootstrapDone, b.OfRows, "", time.Now().UTC()
	})
	r.epoch.Store(uint64(to.Epoch))
	r.mu.Lock()
	r.stopped = nil
	if to.Epoch != from.Epoch {
		err = r.logs.goOver(to.Epoch)
	} else {
		err = r.renewLog()
	}
	r.mu.Unlock()
	if err != nil {
		return true, fmt.Errorf("go over to the log of epoch %v: %w", to.Epoch, err)
	}
	r.log.Info("readers have gone over to the rows of an image", "image", t.image, "epoch", uint64(to.Epoch), "index", to.Index,
		"from_epoch", uint64(from.Epoch), "from_index", from.Index, "unproven", "until the next pass of verification")
	return true, nil
}

// renewLog begins the log anew where the store is now: what lies between would have to be
// read for the log alone.
func (r *epochReign) renewLog() error {
	if r.logs.current == nil {
		return nil
	}
	return r.home.View(context.WithoutCancel(r.ctx), func(v *edge.View) error {
		c, err := v.Checkpoint()
		if err == nil {
			r.logs.current.Renew(c)
		}
		return err
	})
}

// lookBehind takes an image where that is less than what there is to follow.
func (r *epochReign) lookBehind() {
	here := r.home.Place()
	if r.current == nil || here.Index == 0 || time.Since(here.Time) < r.bootRules.lag || r.compact != nil {
		return
	}
	r.wantImage(bootBehind, here.Epoch)
}
