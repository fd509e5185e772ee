package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/millrace-db/millrace/internal/kafkatest"
	"github.com/millrace-db/millrace/tests/harness"
)

// size is how much an exactness run does.
type size struct {
	scale   int           // of pgbench
	load    time.Duration // at least; it goes on until the faults are done
	kills   int           // of transfer and of the edge, together, after the first copy
	settle  time.Duration // how long the end may take to reach the edge
	between [2]time.Duration
}

func sizeOf() size {
	if harness.Full() {
		return size{scale: 10, load: time.Minute, kills: 16, settle: 5 * time.Minute, between: [2]time.Duration{200 * time.Millisecond, 3 * time.Second}}
	}
	return size{scale: 1, load: 15 * time.Second, kills: 10, settle: 2 * time.Minute, between: [2]time.Duration{50 * time.Millisecond, time.Second}}
}

// TestExactness runs pgbench through every fault that a publisher, an edge and
// a broker can suffer from signals, and then wants each row at the edge to be
// the source's, the books to have balanced at every index that a reader saw,
// and every acknowledged commit to be there once.
func TestExactness(t *testing.T) {
	for _, brokers := range []int{1, 3} {
		t.Run(fmt.Sprintf("%d brokers", brokers), func(t *testing.T) { exactness(t, brokers, sizeOf()) })
	}
}

// stopLimit is how long a process may take to end in order.
const stopLimit = 30 * time.Second

// run is one exactness run.
type run struct {
	t        *testing.T
	rng      *rand.Rand
	size     size
	s        *harness.System
	kafka    *kafkatest.Cluster
	edge     *harness.Edge
	transfer *harness.Transfer
	books    *harness.BookReader
	kills    map[string]int
}

func exactness(t *testing.T, brokers int, size size) {
	rng, seed := harness.Rand(t)
	kafka := kafkatest.Start(t, brokers)
	s := harness.NewSystem(t, kafka, append(harness.PgbenchTables(), harness.JournalTable)...)
	s.Lease = 2 * time.Second
	bench := harness.NewPgbench(t, s.DB, size.scale, 4)
	journal := harness.NewJournal(t, s, 2)
	s.Init()
	r := &run{t: t, rng: rng, size: size, s: s, kafka: kafka, edge: s.NewEdge("edge-1"), kills: map[string]int{}}
	r.books = &harness.BookReader{Dir: r.edge.StoreDir(), Client: r.edge.Client, Scale: size.scale}
	w := s.Witness()
	watch := &harness.ConfirmWatch{DB: s.DB, Witness: w}

	loadCtx, stopLoad := context.WithCancel(t.Context())
	defer stopLoad()
	watchCtx, stopWatch := context.WithCancel(t.Context())
	defer stopWatch()
	load := together(func() error { return bench.Run(loadCtx) }, func() error { return journal.Run(loadCtx) })
	witnesses := together(func() error { return r.books.Run(watchCtx) }, func() error { return watch.Run(watchCtx) })

	began := time.Now()
	r.copyUnderLoad()
	r.faults()
	harness.Pass(t.Context(), size.load-time.Since(began))
	stopLoad()
	if err := load(); err != nil {
		t.Fatal(err)
	}
	r.keepUp()
	if err := s.Settle(t.Context(), r.edge, size.settle); err != nil {
		t.Fatal(err)
	}
	r.lastAudit()
	stopWatch()
	if err := witnesses(); err != nil {
		t.Error(err)
	}
	v := s.Judge(r.edge, w, r.transfer.Config, journal, "public.pgbench_history", harness.JournalTable)
	v.Report(t)
	r.transfer.Stop(stopLimit)
	r.edge.Stop(stopLimit)
	if err := r.edge.CheckStore(t.Context()); err != nil {
		t.Error(err)
	}
	if r.books.Views.Load() == 0 || r.books.Requests.Load() == 0 || watch.Looks.Load() == 0 {
		t.Errorf("a witness saw nothing: %d views, %d requests, %d looks at the slot", r.books.Views.Load(), r.books.Requests.Load(), watch.Looks.Load())
	}
	t.Logf("exactness: seed %d, %d broker(s), scale %d, %.0f s of load: %d pgbench transactions, %d journalled commits; %v",
		seed, brokers, size.scale, time.Since(began).Seconds(), bench.Transactions.Load(), journal.Acknowledged.Load(), r.kills)
	t.Logf("exactness: %d rows compared, index %v in %d units dense, chain equal at topic, transfer and edge; %d reigns, %d void entries, %d stale records, %d repeats; "+
		"books balanced in %d snapshots of the store and %d over HTTP; %d looks at the slot",
		v.Rows, w.Index, w.Units, w.Reigns, w.Void, w.Stale, w.Repeats, r.books.Views.Load(), r.books.Requests.Load(), watch.Looks.Load())
	t.Logf("exactness: lost %d, differing %d, duplicates %d, torn 0 (a torn unit ends the run)", v.Lost, v.Differing, v.Duplicates)
}

// together runs functions and returns one that waits for all of them.
func together(fns ...func() error) func() error {
	errs := make([]error, len(fns))
	var wg sync.WaitGroup
	for i, fn := range fns {
		wg.Go(func() { errs[i] = fn() })
	}
	return func() error {
		wg.Wait()
		return errors.Join(errs...)
	}
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
	r.edge.AwaitRow(3*time.Minute, "public.pgbench_branches", "1")
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
		harness.Pass(r.t.Context(), harness.Between(r.rng, r.size.between[0], r.size.between[1]))
		fault()
	}
	r.awaitProgress()
}

// keepUp starts what has ended by itself with an exit code that a unit file
// restarts on. Any other end fails the run.
func (r *run) keepUp() {
	r.t.Helper()
	if !r.transfer.Running() {
		if code := r.transfer.ExitCode(); code != harness.ExitFailure {
			r.t.Fatalf("transfer ended by itself with exit code %d", code)
		}
		r.kills["transfer restarted"]++
		r.transfer = r.s.StartTransferWith(r.transfer.Config, r.transfer.Admin)
	}
	if !r.edge.Running() {
		if code := r.edge.ExitCode(); code != harness.ExitFailure {
			r.t.Fatalf("the edge ended by itself with exit code %d", code)
		}
		r.kills["edge restarted"]++
		r.edge.Start()
	}
}

func (r *run) killTransfer(when string) {
	r.keepUp()
	r.transfer.Kill()
	r.kills["transfer "+when]++
	r.transfer = r.s.StartTransferWith(r.transfer.Config, r.transfer.Admin)
}

func (r *run) killEdge(when string) {
	r.keepUp()
	r.edge.Kill()
	r.kills["edge "+when]++
	r.edge.Start()
}

// zombie stops transfer, lets a successor publish, and wakes the stopped one,
// which must end by itself and say that it was fenced.
func (r *run) zombie() {
	r.keepUp()
	old := r.transfer
	r.awaitProgress()
	old.Pause()
	r.transfer = r.s.StartTransfer()
	r.awaitProgress()
	old.Resume()
	if code := old.Wait(time.Minute); code != harness.ExitFenced {
		r.t.Errorf("a fenced transfer ended with exit code %d, want %d", code, harness.ExitFenced)
	}
	r.kills["zombie"]++
}

// killBroker kills one broker, leaves it dead for a moment, and starts it again.
func (r *run) killBroker() {
	r.keepUp()
	node := r.rng.IntN(len(r.kafka.Brokers()))
	if err := r.kafka.Kill(node); err != nil {
		r.t.Fatal(err)
	}
	harness.Pass(r.t.Context(), harness.Between(r.rng, 0, 2*time.Second))
	if err := r.kafka.Restart(node); err != nil {
		r.t.Fatal(err)
	}
	r.kills["broker"]++
}

// awaitProgress waits until something that is committed after now is at the
// edge.
func (r *run) awaitProgress() {
	r.t.Helper()
	before, err := r.edge.Client.Status(r.t.Context())
	if err != nil {
		before.Index = 0
	}
	harness.Until(r.t, time.Minute, "the edge moves on", func(ctx context.Context) error {
		r.keepUp()
		now, err := r.edge.Client.Status(ctx)
		if err != nil {
			return err
		}
		if now.Index < before.Index+10 {
			return harness.NotYet("index %d, before %d", now.Index, before.Index)
		}
		return nil
	})
}

// lastAudit waits until the reader of the store has audited the end.
func (r *run) lastAudit() {
	r.t.Helper()
	end, err := r.edge.Client.Status(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	harness.Until(r.t, time.Minute, "the books of the end are audited", func(context.Context) error {
		if got := r.books.Newest.Load(); got < int64(end.Index) { //nolint:gosec // far from the limit
			return harness.NotYet("audited to %d, the end is %d", got, end.Index)
		}
		return nil
	})
}
