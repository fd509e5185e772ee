package e2e

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/millrace-db/millrace/internal/kafkatest"
	"github.com/millrace-db/millrace/internal/pgtest"
	"github.com/millrace-db/millrace/tests/harness"
)

// epochRun is a run that begins new epochs, with a reader of pgbench's books
// looking on: it fails on a sum that does not agree, on rows that go, and on a
// state that is older than the one before.
type epochRun struct {
	*run
	epoch uint64
}

func newEpochRun(t *testing.T, rng *rand.Rand, s *harness.System, variant harness.Variant) *epochRun {
	t.Helper()
	return &epochRun{newRunOn(t, rng, s, size{scale: 1, rate: 100, journal: 20 * time.Millisecond, settle: 4 * time.Minute}, variant), 1}
}

func newEpochSystem(t *testing.T) *harness.System {
	t.Helper()
	return harness.NewSystem(t, kafkatest.Shared(t), append(harness.PgbenchTables(), harness.JournalTable)...)
}

// begin starts all but the witness of the slot, which is dropped here.
func (r *epochRun) begin(journal bool) {
	r.t.Helper()
	r.loads(journal)
	var witnesses context.Context
	witnesses, r.stopWitnesses = context.WithCancel(r.t.Context())
	r.t.Cleanup(r.stopWitnesses)
	r.awaitWitnesses = together(func() error { return r.books.Run(witnesses) })
	r.transfer = r.s.StartTransfer()
	r.edge.Start()
	r.edge.AwaitRow(copyLimit, "public.pgbench_branches", "1")
}

func (r *epochRun) loads(journal bool) {
	var load context.Context
	load, r.stopLoad = context.WithCancel(r.t.Context())
	r.t.Cleanup(r.stopLoad)
	r.awaitLoad = together(func() error { return r.bench.Run(load) }, func() error {
		if !journal {
			return nil
		}
		return r.journal.Run(load)
	})
}

func (r *epochRun) topic() string { return fmt.Sprintf("%s.%d", r.s.Topic, r.epoch) }

// command runs a command beside the running ones.
func (r *epochRun) command(env string, args ...string) *harness.Process {
	r.t.Helper()
	args = append(args, "-c", r.transfer.Config)
	c := harness.Command{Name: strings.Join(args[:2], "-"), Binary: harness.Binary(r.t, r.s.Variant), Args: args, Dir: r.s.Dir}
	if env != "" {
		c.Env = []string{env}
	}
	p := harness.Start(r.t, c)
	p.Wait(progressLimit)
	return p
}

// newEpoch runs the command to its end and wants it to begin the next epoch.
func (r *epochRun) newEpoch() {
	r.t.Helper()
	if p := r.command("", "epoch", "new", "--yes"); p.ExitCode() != 0 {
		r.t.Fatalf("epoch new: exit code %d: %s", p.ExitCode(), p.Stderr())
	}
	r.epoch++
	r.registered()
}

// registered wants the registry to be at the run's epoch.
func (r *epochRun) registered() {
	r.t.Helper()
	want := fmt.Sprint(r.epoch, " ", r.s.Topic)
	if r.epoch > 1 {
		want = fmt.Sprint(r.epoch, " ", r.topic())
	}
	if got := r.s.DB.String(`SELECT epoch || ' ' || topic FROM millrace.stream`); got != want {
		r.t.Errorf("the registry has %s, want %s", got, want)
	}
}

// stopsFor wants transfer, started anew, to end and to name the command.
func (r *epochRun) stopsFor(word string) {
	r.t.Helper()
	p := r.s.StartTransferWith(r.transfer.Config, r.transfer.Admin)
	harness.WantRefusal(r.t, p.Process, harness.ExitOperator, word, "millrace epoch new "+r.s.Stream)
	if check := r.command("", "check", "--quick"); check.ExitCode() != harness.ExitOperator || !strings.Contains(check.Stdout(), "millrace epoch new "+r.s.Stream) {
		r.t.Errorf("check ends with exit code %d and does not name the command: %s", check.ExitCode(), check.Stdout())
	}
}

func (r *epochRun) dropSlot() {
	r.t.Helper()
	harness.Until(r.t, progressLimit, "the slot is dropped", func(context.Context) error {
		got := r.s.DB.String(`SELECT count(pg_drop_replication_slot(slot_name)) FROM pg_replication_slots WHERE database = current_database() AND NOT active`)
		if got != "1" {
			return harness.NotYet("dropped %s", got)
		}
		return nil
	})
}

// goneOver waits until the edge's readers are at the run's epoch.
func (r *epochRun) goneOver() {
	r.t.Helper()
	harness.Until(r.t, copyLimit, fmt.Sprintf("readers have gone over to epoch %d", r.epoch), func(ctx context.Context) error {
		status, err := r.edge.Status(ctx)
		if err == nil && status.Epoch != r.epoch {
			err = harness.NotYet("they are at epoch %d index %d: %s", status.Epoch, status.Index, status.Fault)
		}
		return err
	})
}

// copying waits until the edge copies the run's epoch.
func (r *epochRun) copying() {
	r.t.Helper()
	harness.Until(r.t, copyLimit, fmt.Sprintf("the edge copies epoch %d", r.epoch), func(ctx context.Context) error {
		status, err := r.edge.Status(ctx)
		if err == nil && (status.Next == nil || status.Next.Epoch != r.epoch || status.Next.Index == 0) {
			err = harness.NotYet("it is at epoch %d index %d, next %v: %s", status.Epoch, status.Index, status.Next, status.Fault)
		}
		return err
	})
}

// judge ends the load and wants every row at the edge, and the topic's entries,
// to be the source's.
func (r *epochRun) judge(journal *harness.Journal) {
	t := r.t
	t.Helper()
	r.stopLoad()
	if err := r.awaitLoad(); err != nil {
		t.Fatal(err)
	}
	if err := r.s.Settle(t.Context(), r.edge, r.size.settle); err != nil {
		t.Fatal(err)
	}
	harness.Until(t, progressLimit, "the books of the last epoch are audited", func(context.Context) error {
		if got := r.books.Epoch.Load(); got != int64(r.epoch) { //nolint:gosec // far from the limit
			return harness.NotYet("audited epoch %d: %v", got, r.books.Ended())
		}
		return nil
	})
	r.stopWitnesses()
	if err := r.awaitWitnesses(); err != nil {
		t.Error(err)
	}
	w, err := harness.NewWitness(r.s.Kafka.Brokers(), r.topic())
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	v := r.s.Judge(r.edge, w, r.transfer.Config, journal)
	v.Report(t)
	r.transfer.Stop(stopLimit)
	r.edge.Stop(stopLimit)
	if err := r.edge.CheckStore(t.Context()); err != nil {
		t.Error(err)
	}
	entries, err := os.ReadDir(r.edge.StoreDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if name := e.Name(); name == "data.mdb" || strings.HasPrefix(name, "epoch-") && name != fmt.Sprint("epoch-", r.epoch) {
			t.Errorf("%s is left in %s", name, r.edge.StoreDir())
		}
	}
	t.Logf("epoch %d: %d rows compared, %d journalled commits; books balanced in %d snapshots of the store and %d over HTTP",
		r.epoch, v.Rows, r.journal.Acknowledged.Load(), r.books.Views.Load(), r.books.Requests.Load())
}

// TestNewEpochKilledAtEveryStep drops the slot behind the publisher's back, kills
// the command that mends it at each of its steps, lets a copy be overtaken by a
// still newer epoch, and kills the edge while it copies and at each step of going
// over.
func TestNewEpochKilledAtEveryStep(t *testing.T) {
	t.Parallel()
	rng, _ := harness.Rand(t)
	r := newEpochRun(t, rng, newEpochSystem(t), harness.Faulty)
	r.begin(true)
	r.transfer.Kill()
	r.dropSlot()
	r.stopsFor("slot")
	for _, step := range []string{"epoch-checked", "epoch-topic", "epoch-registered"} {
		if p := r.command("MILLRACE_FAILPOINT="+step, "epoch", "new", "--yes"); p.ExitCode() != -1 {
			t.Fatalf("epoch new was not killed at %s: exit code %d: %s", step, p.ExitCode(), p.Stderr())
		}
		if step == "epoch-registered" {
			r.epoch = 2
		}
		r.registered()
	}
	if p := r.command("", "epoch", "new", "--yes"); p.ExitCode() != 0 || !strings.Contains(p.Stdout(), "epoch 2") {
		t.Fatalf("epoch new, again: exit code %d: %s%s", p.ExitCode(), p.Stdout(), p.Stderr())
	}
	r.registered()

	// The copy of epoch 2 is cut off, and epoch 3 takes its place.
	r.transfer = r.s.StartTransferWith(r.transfer.Config, r.transfer.Admin, "MILLRACE_FAILPOINT=acknowledged:4")
	if code := r.transfer.Wait(hitLimit); code != -1 {
		t.Fatalf("transfer was not killed in the copy of epoch 2: exit code %d", code)
	}
	r.copying()
	r.newEpoch()
	// That of epoch 3 stands still while the edge is killed, and then goes on.
	r.transfer = r.s.StartTransferWith(r.transfer.Config, r.transfer.Admin, "MILLRACE_FAILPOINT=acknowledged:6:stop")
	harness.Until(t, hitLimit, "transfer has stopped in the copy of epoch 3", stopped(r.transfer))
	r.copying()
	for range harness.Trials(3, 30) {
		harness.Pass(t.Context(), harness.Between(rng, 0, 300*time.Millisecond))
		r.edge.Kill()
		r.edge.Start()
		r.edge.AwaitRow(serveLimit, "public.pgbench_branches", "1")
	}
	r.edge.Kill() // it must not go over before it is to be killed at that
	r.transfer.Resume()
	for _, one := range []struct{ step, current string }{
		{"edge_before_commit", ""}, {"edge_before_switch", ""}, {"edge_after_switch", "epoch-3\n"}, {"edge_before_remove", "epoch-3\n"},
	} {
		r.edge.Kill()
		r.edge.Start("MILLRACE_FAILPOINT=" + one.step)
		if code := r.edge.Wait(hitLimit); code != -1 {
			t.Fatalf("the edge was not killed at %s: exit code %d", one.step, code)
		}
		current, err := os.ReadFile(filepath.Join(r.edge.StoreDir(), "CURRENT"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) || string(current) != one.current {
			t.Fatalf("after the kill at %s the current store is %q, %v, want %q", one.step, current, err, one.current)
		}
	}
	r.edge.Start()
	r.edge.AwaitRow(serveLimit, "public.pgbench_branches", "1")
	r.goneOver()
	r.judge(r.journal)
}

// TestNewEpochOfLostTopic deletes the topic while everything runs. The edge, which
// nothing kills, answers every request, before, during and after.
func TestNewEpochOfLostTopic(t *testing.T) {
	t.Parallel()
	rng, _ := harness.Rand(t)
	r := newEpochRun(t, rng, newEpochSystem(t), harness.Release)
	r.begin(true)
	r.books.Strict.Store(true)
	r.s.DeleteTopic()
	if code := r.transfer.Wait(progressLimit); code != harness.ExitOperator {
		t.Errorf("transfer ended with exit code %d without its topic, want %d", code, harness.ExitOperator)
	}
	r.stopsFor("no such topic")
	harness.Until(t, progressLimit, "the edge's status names the mend", func(ctx context.Context) error {
		status, err := r.edge.Status(ctx)
		if err == nil && !strings.Contains(status.Fault, "millrace epoch new "+r.s.Stream) {
			err = harness.NotYet("its fault is %q", status.Fault)
		}
		return err
	})
	r.newEpoch()
	r.transfer = r.s.StartTransferWith(r.transfer.Config, r.transfer.Admin)
	r.goneOver()
	r.books.Strict.Store(false)
	r.judge(r.journal)
}

// TestNewEpochBesideZombie stops a publisher right before it appends, begins a new
// epoch without it, and wakes it when readers have gone over: what it appends to
// the old topic reaches nobody.
func TestNewEpochBesideZombie(t *testing.T) {
	t.Parallel()
	rng, _ := harness.Rand(t)
	r := newEpochRun(t, rng, newEpochSystem(t), harness.Faulty)
	r.begin(true)
	r.books.Strict.Store(true)
	r.transfer.Kill()
	old := r.s.StartTransferWith(r.transfer.Config, r.transfer.Admin, "MILLRACE_FAILPOINT=before-produce:20:stop")
	harness.Until(t, hitLimit, "transfer has stopped before an append", stopped(old))
	r.newEpoch()
	r.transfer = r.s.StartTransfer()
	r.goneOver()
	ends := r.ends(r.s.Topic)
	old.Resume()
	if code := old.Wait(progressLimit); code != harness.ExitFailure {
		t.Errorf("a transfer of the old epoch ended with exit code %d, want %d: its supervisor starts it for the new one", code, harness.ExitFailure)
	}
	if now := r.ends(r.s.Topic); now == ends {
		t.Log("the zombie has appended nothing")
	}
	r.books.Strict.Store(false)
	r.judge(r.journal)
}

// ends counts the records of a topic.
func (r *epochRun) ends(topic string) int {
	r.t.Helper()
	base := r.s.Topic
	r.s.Topic = topic
	defer func() { r.s.Topic = base }()
	return len(r.s.Records(r.t))
}

// TestNewEpochOfRestoredSource puts the files of a source back to what they were
// before much was published. The edge has the rows of the source then, and not
// those that the source has lost.
func TestNewEpochOfRestoredSource(t *testing.T) {
	t.Parallel()
	rng, _ := harness.Rand(t)
	server := pgtest.Cluster(t, pgtest.Options{})
	s := newEpochSystem(t)
	s.DB = pgtest.On(t, server)
	s.SourceURL = s.DB.URL
	r := newEpochRun(t, rng, s, harness.Release)
	r.begin(false)
	r.books.Strict.Store(true)
	r.rest()

	backup := server.Dir() + ".backup"
	ctx, cancel := context.WithTimeout(t.Context(), 2*progressLimit)
	defer cancel()
	restart := func(doing ...string) {
		t.Helper()
		err := server.Stop(ctx)
		if err == nil && len(doing) > 0 {
			err = exec.CommandContext(ctx, "sh", "-c", doing[0], "sh", server.Dir(), backup).Run()
		}
		if err := errors.Join(err, server.Restart(ctx)); err != nil {
			t.Fatal(err)
		}
		r.s.DB.Pool.Reset()
	}
	restart(`cp -a "$1" "$2"`)
	r.loads(false)
	lost := r.bench.Transactions.Load()
	harness.Until(t, progressLimit, "transactions that will be lost are made", func(context.Context) error {
		if now := r.bench.Transactions.Load(); now == lost {
			return harness.NotYet("none yet")
		}
		return nil
	})
	r.rest()
	status, err := r.edge.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r.transfer.Stop(stopLimit)
	restart(`rm -r "$1" && cp -a "$2" "$1"`)
	r.stopsFor("source is older")
	r.newEpoch()
	r.transfer = r.s.StartTransferWith(r.transfer.Config, r.transfer.Admin)
	r.goneOver()
	t.Logf("the source was put back from index %d", status.Index)
	r.loads(false)
	r.books.Strict.Store(false)
	r.judge(nil)
}

// rest ends the load and waits until the edge has all of it.
func (r *epochRun) rest() {
	r.t.Helper()
	r.stopLoad()
	if err := r.awaitLoad(); err != nil {
		r.t.Fatal(err)
	}
	if err := r.s.Settle(r.t.Context(), r.edge, r.size.settle); err != nil {
		r.t.Fatal(err)
	}
}

// TestSwitchBeforeCopyIsCaught plants an edge that leads readers to a store whose
// copy is not complete.
func TestSwitchBeforeCopyIsCaught(t *testing.T) {
	t.Parallel()
	rng, _ := harness.Rand(t)
	r := newEpochRun(t, rng, newEpochSystem(t), harness.Faulty)
	r.begin(true)
	r.edge.Stop(stopLimit)
	r.edge.Start("MILLRACE_PLANT=switch_early")
	r.edge.AwaitRow(serveLimit, "public.pgbench_branches", "1")
	r.transfer.Stop(stopLimit)
	r.newEpoch()
	caught := make(chan error, 1)
	go func() { caught <- r.awaitWitnesses() }()
	r.transfer = r.s.StartTransferWith(r.transfer.Config, r.transfer.Admin, "MILLRACE_FAILPOINT=acknowledged:6:stop")
	select {
	case err := <-caught:
		if err == nil {
			t.Error("the books were audited to their end")
		}
		t.Logf("switch_early is caught: %v", err)
	case <-time.After(progressLimit):
		t.Error("nobody has noticed that readers were led to a copy that was not complete")
	}
	r.stopLoad()
	if err := r.awaitLoad(); err != nil {
		t.Error(err)
	}
}
