package proof

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge"
	"github.com/millrace-db/millrace/internal/wait"
)

// Latency is the time from commit to visible: from the moment at which the
// source has answered a COMMIT to the moment at which a new reader of the edge's
// store sees what was committed.
type Latency struct {
	Probes   int
	P50, P99 time.Duration
	Max      time.Duration
}

// keptProbes bounds memory: figures are of the newest probes.
const keptProbes = 100_000

// Prober measures Latency with transactions of its own, beside whatever else is
// committed: heartbeats, which take the same way as every other transaction, or where
// capture is by triggers, transactions that come with the next window. There, a source
// with nothing else to do shows the time between capture's own heartbeats. Its methods
// may be called concurrently.
type Prober struct {
	url, stream string
	mode        millrace.Mode
	store       *edge.Store
	interval    time.Duration

	mu    sync.Mutex
	more  chan struct{} // closed at the next figure
	taken []time.Duration
	next  int
	count int
	max   time.Duration
}

// NewProber makes a prober that commits a transaction at each interval; mode is how
// the stream is captured.
func NewProber(url, stream string, mode millrace.Mode, store *edge.Store, interval time.Duration) *Prober {
	return &Prober{url: url, stream: stream, mode: mode, store: store, interval: interval, more: make(chan struct{})}
}

// probe is a transaction under way.
type probe struct {
	mark      mark
	committed time.Time
}

// Run probes until ctx ends. Where the source cannot be reached it tries again;
// there are no probes meanwhile.
func (p *Prober) Run(ctx context.Context) {
	probes := make(chan probe, 1024)
	var watching sync.WaitGroup
	watching.Go(func() { p.watch(ctx, probes) })
	defer watching.Wait()
	defer close(probes)
	for ctx.Err() == nil {
		_ = p.session(ctx, probes) // the next one tries again
		_ = wait.For(ctx, retryPause)
	}
}

const retryPause = 500 * time.Millisecond

// session probes over one connection.
func (p *Prober) session(ctx context.Context, probes chan<- probe) error {
	conn, err := pgx.Connect(ctx, p.url)
	if err != nil {
		return err
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = conn.Close(closing) // nothing is under way on it
	}()
	tick := time.NewTicker(p.interval)
	defer tick.Stop()
	for {
		m, err := setMark(ctx, conn, p.mode, p.stream)
		if err != nil {
			return err
		}
		select {
		case probes <- probe{m, time.Now()}:
		case <-ctx.Done():
			return ctx.Err()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// watch waits for each probe to become visible. They come in the order of their
// commits, so the oldest is always the next.
func (p *Prober) watch(ctx context.Context, probes <-chan probe) {
	for one := range probes {
		for {
			changed := p.store.Changed()
			at, _, err := applied(ctx, p.store)
			now := time.Now()
			if err != nil {
				return // the store is closing, or ctx has ended
			}
			passed, err := one.mark.passed(&at)
			if err != nil {
				return
			}
			if passed {
				p.add(max(0, now.Sub(one.committed)))
				break
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}
}

func (p *Prober) add(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.more)
	p.more = make(chan struct{})
	p.count++
	p.max = max(p.max, d)
	if len(p.taken) < keptProbes {
		p.taken = append(p.taken, d)
		return
	}
	p.taken[p.next] = d
	p.next = (p.next + 1) % keptProbes
}

// Wait returns when n probes have become visible.
func (p *Prober) Wait(ctx context.Context, n int) error {
	for {
		p.mu.Lock()
		count, more := p.count, p.more
		p.mu.Unlock()
		if count >= n {
			return nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Latency returns the figures of the probes so far.
func (p *Prober) Latency() Latency {
	p.mu.Lock()
	sorted := slices.Clone(p.taken)
	l := Latency{Probes: p.count, Max: p.max}
	p.mu.Unlock()
	if len(sorted) == 0 {
		return l
	}
	slices.Sort(sorted)
	// The nearest rank: the smallest value that this share is not above.
	rank := func(percent int) time.Duration { return sorted[(len(sorted)*percent+99)/100-1] }
	l.P50, l.P99 = rank(50), rank(99)
	return l
}

// String is for people.
func (l Latency) String() string {
	if l.Probes == 0 {
		return "not measured yet"
	}
	ms := func(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000) }
	return fmt.Sprintf("p50 %s, p99 %s, max %s of %d probes", ms(l.P50), ms(l.P99), ms(l.Max), l.Probes)
}
