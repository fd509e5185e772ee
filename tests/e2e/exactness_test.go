package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/millrace-db/millrace/internal/kafkatest"
	"github.com/millrace-db/millrace/internal/pgtest"
	"github.com/millrace-db/millrace/tests/harness"
)

// size is how much a run does.
type size struct {
	scale   int              // of pgbench
	rate    int              // of pgbench, transactions a second; 0 for all that will go
	journal time.Duration    // between two commits of a journal client
	bulk    time.Duration    // between two transactions of many batches
	load    time.Duration    // at least; it goes on until the faults are done
	kills   int              // of transfer and of the edge, together, after the first copy
	settle  time.Duration    // how long the end may take to reach the edge
	between [2]time.Duration // two faults
}

func sizeOf() size {
	if harness.Full() {
		return size{
			scale: 10, bulk: 5 * time.Second, load: time.Minute, kills: 20, settle: 5 * time.Minute,
			between: [2]time.Duration{50 * time.Millisecond, 3 * time.Second},
		}
	}
	return size{
		scale: 1, rate: 300, journal: 10 * time.Millisecond, bulk: 2 * time.Second, load: 10 * time.Second, kills: 6, settle: 4 * time.Minute,
		between: [2]time.Duration{50 * time.Millisecond, time.Second},
	}
}

// TestExactness runs pgbench through every fault that a publisher, an edge and
// a broker can suffer from signals, and then wants each row at the edge to be
// the source's, the books to have balanced at every index that a reader saw,
// and every acknowledged commit to be there once.
func TestExactness(t *testing.T) {
	t.Parallel()
	for _, brokers := range []int{1, 3} {
		t.Run(fmt.Sprintf("brokers %d", brokers), func(t *testing.T) {
			t.Parallel()
			rng, seed := harness.Rand(t)
			exactness(t, newRun(t, rng, kafkatest.Start(t, brokers), sizeOf(), harness.Release), seed)
		})
	}
}

// TestExactnessOfTriggers is TestExactness for a stream that is captured by triggers,
// through a pooler in transaction mode. What the source counted, what the topic
// holds and what the ledger says are the same at its end.
func TestExactnessOfTriggers(t *testing.T) {
	t.Parallel()
	size := sizeOf()
	if !harness.Full() {
		size.load, size.kills = 8*time.Second, 6
	}
	rng, seed := harness.Rand(t)
	s := newSystem(t, kafkatest.Start(t, 1))
	s.Capture, s.More = harness.CaptureTrigger, fmt.Sprintf(", setup_url: %q", s.DB.URL)
	s.SourceURL = pgtest.Bouncer(t, s.DB.Server, s.DB.Name, "")
	exactness(t, newRunOn(t, rng, s, size, harness.Release), seed)
}

func exactness(t *testing.T, r *run, seed uint64) {
	size := r.size
	began := time.Now()
	r.startLoad()
	r.copyUnderLoad()
	r.phase("first copy under load")
	r.faults()
	harness.Pass(t.Context(), size.load-time.Since(began))
	v := r.finish()
	t.Logf("exactness: capture %s, seed %d, %d broker(s), %s", r.s.Mode(), seed, len(r.kafka.Brokers()), v)
}

// copyUnderLoad makes the first copy, with transfer and edge killed in the
// middle of it.
func (r *run) copyUnderLoad() {
	r.transfer = r.s.StartTransfer()
	r.edge.Start()
	harness.Pass(r.t.Context(), harness.Between(r.rng, 100*time.Millisecond, time.Second))
	r.killTransfer("in the first copy")
	harness.Pass(r.t.Context(), harness.Between(r.rng, 100*time.Millisecond, time.Second))
	r.killEdge("in the first copy")
	r.edge.AwaitRow(copyLimit, "public.pgbench_branches", "1")
}

// faults goes through all kinds of faults in random order.
func (r *run) faults() {
	var faults []func()
	for range r.size.kills / 2 {
		faults = append(faults, func() { r.killTransfer("kill") }, func() { r.killEdge("kill") })
	}
	faults = append(faults, r.zombie, r.killBroker)
	r.rng.Shuffle(len(faults), func(i, j int) { faults[i], faults[j] = faults[j], faults[i] })
	for _, fault := range faults {
		// Some faults hit a system that works, some one that is still mending.
		if r.rng.IntN(2) == 0 {
			r.awaitProgress()
		}
		harness.Pass(r.t.Context(), harness.Between(r.rng, r.size.between[0], r.size.between[1]))
		fault()
	}
	r.awaitProgress()
}

// killBroker kills one broker, and the edge, which must answer all the same, and
// starts the broker again.
func (r *run) killBroker() {
	r.keepUp()
	node := r.rng.IntN(len(r.kafka.Brokers()))
	if err := r.kafka.Kill(node); err != nil {
		r.t.Fatal(err)
	}
	r.killEdge("while a broker is dead")
	r.edge.AwaitRow(serveLimit, "public.pgbench_branches", "1")
	harness.Pass(r.t.Context(), harness.Between(r.rng, 0, 2*time.Second))
	if err := r.kafka.Restart(node); err != nil {
		r.t.Fatal(err)
	}
	r.faulted["broker"]++
}
