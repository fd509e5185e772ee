package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace-db/millrace/internal/kafkatest"
	"github.com/millrace-db/millrace/tests/harness"
)

const (
	// stopLimit is how long a process may take to end in order.
	stopLimit = time.Minute
	// progressLimit is how long the edge may take to move on after a fault, and
	// anything else that comes of itself.
	progressLimit = 3 * time.Minute
	// serveLimit is how long an edge may take from its start to an answer,
	// whatever it is cut off from; a loaded machine is slow.
	serveLimit = time.Minute
	// copyLimit is how long the first copy may take.
	copyLimit = 5 * time.Minute
	// waitsForHold is what a transfer logs while another one has the hold.
	waitsForHold = "waiting for the stream's hold"
	// bulkRows make a unit of about 3 MiB, which is three batches.
	bulkRows = 20_000
)

// run is one run of pgbench and journal clients through a stream, with all
// witnesses looking on.
type run struct {
	t        *testing.T
	rng      *rand.Rand
	size     size
	s        *harness.System
	kafka    *kafkatest.Cluster
	edge     *harness.Edge
	transfer *harness.Transfer
	bench    *harness.Pgbench
	journal  *harness.Journal
	books    *harness.BookReader
	witness  *harness.Witness
	watch    *harness.ConfirmWatch
	// seen is what the first witness has said that has seen something wrong.
	seen atomic.Pointer[error]
	// faulted counts the faults by their names, marks the rows of awaitProgress.
	faulted map[string]int
	marks   int
	// phases tells how long each part of the run took, since the end of the one
	// before.
	phases []string
	since  time.Time

	stopLoad, stopWitnesses   context.CancelFunc
	awaitLoad, awaitWitnesses func() error
}

// newRun makes the tables and runs init; nothing else is started.
func newRun(t *testing.T, rng *rand.Rand, kafka *kafkatest.Cluster, size size, variant harness.Variant) *run {
	t.Helper()
	return newRunOn(t, rng, newSystem(t, kafka), size, variant)
}

// newSystem is a system with the tables of a run.
func newSystem(t *testing.T, kafka *kafkatest.Cluster) *harness.System {
	t.Helper()
	return harness.NewSystem(t, kafka, append(harness.PgbenchTables(), harness.JournalTable)...)
}

// newRunOn is newRun over a system that is there.
func newRunOn(t *testing.T, rng *rand.Rand, s *harness.System, size size, variant harness.Variant) *run {
	t.Helper()
	s.Lease, s.Variant = time.Second, variant
	r := &run{t: t, rng: rng, size: size, s: s, kafka: s.Kafka, edge: s.NewEdge("edge-1"), faulted: map[string]int{}, since: time.Now()}
	r.bench = harness.NewPgbench(t, s.DB, size.scale, 4)
	r.bench.Rate = size.rate
	r.journal = harness.NewJournal(t, s, 2)
	r.journal.Every = size.journal
	s.Init()
	r.witness = s.Witness()
	r.books = &harness.BookReader{Dir: r.edge.StoreDir(), Client: r.edge.Client, Scale: size.scale}
	r.watch = &harness.ConfirmWatch{DB: s.DB, Witness: r.witness}
	return r
}

// phase ends a part of the run.
func (r *run) phase(name string) {
	now := time.Now()
	r.phases = append(r.phases, fmt.Sprintf("%s %.1f s", name, now.Sub(r.since).Seconds()))
	r.since = now
}

// startLoad starts the clients and the witnesses.
func (r *run) startLoad() {
	r.phase("tables and init")
	var load, witnesses context.Context
	load, r.stopLoad = context.WithCancel(r.t.Context())
	witnesses, r.stopWitnesses = context.WithCancel(r.t.Context())
	r.t.Cleanup(r.stopLoad)
	r.t.Cleanup(r.stopWitnesses)
	r.awaitLoad = together(
		func() error { return r.bench.Run(load) },
		func() error { return r.bench.Bulk(load, bulkRows, r.size.bulk) },
		func() error { return r.journal.Run(load) },
	)
	r.awaitWitnesses = together(
		func() error { return r.witnessed(r.books.Run(witnesses)) },
		func() error { return r.witnessed(r.watch.Run(witnesses)) },
	)
}

// witnessed ends all witnesses with the first that has seen something wrong.
func (r *run) witnessed(err error) error {
	if err != nil {
		r.seen.CompareAndSwap(nil, &err)
		r.stopWitnesses()
	}
	return err
}

// wrong is what a witness has seen, nil if nothing is wrong so far.
func (r *run) wrong() error {
	if err := r.seen.Load(); err != nil {
		return *err
	}
	return r.books.Ended()
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

// finish ends the load, lets the edge come to the end, and asks the witnesses.
// It returns the figures of the run in a line a witness.
func (r *run) finish() string {
	t := r.t
	t.Helper()
	r.phase("faults")
	r.stopLoad()
	if err := r.awaitLoad(); err != nil {
		t.Fatal(err)
	}
	r.phase("end of the load")
	r.keepUp()
	if err := r.s.Settle(t.Context(), r.edge, r.size.settle); err != nil {
		t.Fatal(err)
	}
	r.phase("catching up")
	r.lastAudit()
	r.stopWitnesses()
	if err := r.awaitWitnesses(); err != nil {
		t.Error(err)
	}
	v := r.s.Judge(r.edge, r.witness, r.transfer.Config, r.journal, "public.pgbench_history", harness.JournalTable)
	v.Report(t)
	r.phase("verdict")
	r.transfer.Stop(stopLimit)
	r.edge.Stop(stopLimit)
	audit := r.s.Audit(r.transfer.Config)
	r.phase("audit")
	if err := r.edge.CheckStore(t.Context()); err != nil {
		t.Error(err)
	}
	slotless := r.s.Mode() != harness.CaptureWAL
	if r.books.Views.Load() == 0 || r.books.Requests.Load() == 0 || r.watch.Looks.Load() == 0 && !slotless {
		t.Errorf("a witness saw nothing: %d snapshots of the store, %d over HTTP, %d looks at the slot",
			r.books.Views.Load(), r.books.Requests.Load(), r.watch.Looks.Load())
	}
	r.phase("end and check")
	w := r.witness
	return fmt.Sprintf(`scale %d: %d pgbench transactions, %d of %d rows, %d journalled commits; faults: %v
  %d rows compared; index %v in %d units, dense; chain equal at topic, transfer and edge; %d reigns, %d void entries, %d stale records, %d repeats
  books balanced in %d snapshots of the store and %d over HTTP; %d looks at the slot
  audit: equal; %v
  lost %d, differing %d, duplicates %d, torn 0 (a torn unit ends the run)
  %s`,
		r.size.scale, r.bench.Transactions.Load(), r.bench.Bulks.Load(), bulkRows, r.journal.Acknowledged.Load(), r.faulted,
		v.Rows, w.Index, w.Units, w.Reigns, w.Void, w.Stale, w.Repeats,
		r.books.Views.Load(), r.books.Requests.Load(), r.watch.Looks.Load(), audit,
		v.Lost, v.Differing, v.Duplicates, strings.Join(r.phases, ", "))
}

// keepUp starts what has ended by itself with an exit code that a unit file
// restarts on. Any other end fails the run.
func (r *run) keepUp() {
	r.t.Helper()
	if !r.transfer.Running() {
		if code := r.transfer.ExitCode(); code != harness.ExitFailure {
			r.t.Fatalf("transfer ended by itself with exit code %d", code)
		}
		r.faulted["transfer restarted"]++
		r.transfer = r.s.StartTransferWith(r.transfer.Config, r.transfer.Admin)
	}
	if !r.edge.Running() {
		if code := r.edge.ExitCode(); code != harness.ExitFailure {
			r.t.Fatalf("the edge ended by itself with exit code %d", code)
		}
		r.faulted["edge restarted"]++
		r.edge.Start()
	}
}

func (r *run) killTransfer(when string) {
	r.keepUp()
	r.transfer.Kill()
	r.faulted["transfer "+when]++
	r.transfer = r.s.StartTransferWith(r.transfer.Config, r.transfer.Admin)
}

func (r *run) killEdge(when string) {
	r.keepUp()
	r.edge.Kill()
	r.faulted["edge "+when]++
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
	r.wake(old, "a transfer that was stopped")
	r.faulted["zombie"]++
}

// wake lets a stopped transfer go on that a successor has deposed. It ends by itself and
// says that it was fenced; or its connections were gone, the topic did not tell it in time
// by whom, and it waits for the hold as any second one does.
func (r *run) wake(old *harness.Transfer, what string) {
	r.t.Helper()
	before := len(old.Stderr())
	old.Resume()
	waits := false
	harness.Until(r.t, progressLimit, what+" is fenced", func(context.Context) error {
		if waits = strings.Contains(old.Stderr()[before:], waitsForHold); waits || !old.Running() {
			return nil
		}
		return harness.NotYet("it goes on")
	})
	if waits {
		r.faulted["zombie waits"]++
		old.Kill()
		return
	}
	if code := old.ExitCode(); code != harness.ExitFenced {
		r.t.Errorf("%s and deposed ended with exit code %d, want %d", what, code, harness.ExitFenced)
	}
}

// awaitProgress waits until a row that is committed now is at the edge, so
// somebody publishes and the edge applies.
func (r *run) awaitProgress() {
	r.t.Helper()
	r.marks++
	r.s.DB.Exec(fmt.Sprintf("INSERT INTO public.journal VALUES (-2, %d, 'mark')", r.marks))
	harness.Until(r.t, progressLimit, "the edge moves on", func(ctx context.Context) error {
		r.keepUp()
		_, err := r.edge.Row(ctx, harness.JournalTable, "-2", fmt.Sprint(r.marks))
		return err
	})
}

// lastAudit waits until the reader of the store has audited the end, and the slot
// has been looked at.
func (r *run) lastAudit() {
	r.t.Helper()
	end, err := r.edge.Status(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	harness.Until(r.t, progressLimit, "the books of the end are audited, and the slot is looked at", func(context.Context) error {
		if got := r.books.Newest.Load(); got < int64(end.Index) { //nolint:gosec // far from the limit
			return harness.NotYet("audited to %d, the end is %d: %v", got, end.Index, r.wrong())
		}
		if r.s.Mode() == harness.CaptureWAL && r.watch.Looks.Load() == 0 {
			return harness.NotYet("no look yet: %v", r.wrong())
		}
		return nil
	})
}

// stopped holds when the process is stopped by a signal.
func stopped(p *harness.Transfer) func(context.Context) error {
	return func(context.Context) error {
		if !p.Running() {
			return fmt.Errorf("it has ended with exit code %d", p.ExitCode())
		}
		if !p.Paused() {
			return harness.NotYet("it runs")
		}
		return nil
	}
}
