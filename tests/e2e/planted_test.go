package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/kafkatest"
	"github.com/millrace-db/millrace/tests/harness"
)

const (
	// plantedLoad is how long the load goes on over a planted bug before those
	// that judge a system at rest are asked; tornLoad is that for one which they
	// cannot see any more: until a witness does.
	plantedLoad = 2 * time.Second
	tornLoad    = time.Minute
	// restLimit is how long the system may take to come to rest.
	restLimit = 3 * time.Minute
)

// TestPlantedBugsAreCaught runs the load over a program with one planted bug at
// a time. A checker that stays silent would be worth nothing in the other tests.
func TestPlantedBugsAreCaught(t *testing.T) {
	t.Parallel()
	for _, one := range []struct{ in, plant string }{
		{"transfer", "drop_unit:30"},
		{"transfer", "repeat_unit:30"},
		{"transfer", "swap_two:30"},
		{"transfer", "alter_byte:30"},
		{"transfer", "skip_index:30"},
		{"edge", "torn_unit"},
		{"edge", "checkpoint_first"},
	} {
		t.Run(strings.ReplaceAll(one.plant, ":30", ""), func(t *testing.T) {
			t.Parallel()
			rng, _ := harness.Rand(t)
			r := newRun(t, rng, kafkatest.Shared(t), faultySize(), harness.Faulty)
			r.startCopied()
			env := "MILLRACE_PLANT=" + one.plant
			if one.in == "transfer" {
				r.transfer.Stop(stopLimit)
				r.transfer = r.s.StartTransferWith(r.transfer.Config, r.transfer.Admin, env)
			} else {
				r.edge.Stop(stopLimit)
				r.edge.Start(env)
			}
			r.wantCaught(one.plant)
		})
	}
}

// TestConfirmBeforeAcceptanceIsCaught plants a transfer that confirms what it
// has captured, with the broker stopped, so that nothing is accepted, and then
// dead, so that nothing that is on its way arrives.
func TestConfirmBeforeAcceptanceIsCaught(t *testing.T) {
	t.Parallel()
	rng, _ := harness.Rand(t)
	kafka := kafkatest.Start(t, 1)
	size := faultySize()
	size.bulk = time.Hour // a large unit fills the queue, and the mistake stands behind the queue
	r := newRun(t, rng, kafka, size, harness.Faulty)
	r.startCopied()
	r.transfer.Stop(stopLimit)
	r.transfer = r.s.StartTransferWith(r.transfer.Config, r.transfer.Admin, "MILLRACE_PLANT=confirm_unfolded:1")
	r.awaitProgress()
	if err := kafka.Pause(0); err != nil {
		t.Fatal(err)
	}
	dead := r.s.DB.String("SELECT pg_current_wal_insert_lsn()")
	r.journal.AwaitMore(t, 50, progressLimit)
	harness.Until(t, progressLimit, "the source is told that commits are done which no broker can have", func(context.Context) error {
		if r.s.DB.String("SELECT bool_or(confirmed_flush_lsn > $1::text::pg_lsn) FROM pg_replication_slots WHERE database = current_database()", dead) != "t" {
			return harness.NotYet("nothing after %s is confirmed", dead)
		}
		return nil
	})
	r.transfer.Kill()
	if err := kafka.Kill(0); err != nil {
		t.Fatal(err)
	}
	if err := kafka.Restart(0); err != nil {
		t.Fatal(err)
	}
	r.transfer = r.s.StartTransferWith(r.transfer.Config, r.transfer.Admin)
	r.wantCaught("confirm_unfolded")
}

// TestStaleBatchIsIgnored appends a batch that continues the history in
// everything but its term, as a fenced publisher's late append does. A right
// edge ignores it; one with the planted bug takes it, and is caught.
func TestStaleBatchIsIgnored(t *testing.T) {
	t.Parallel()
	for _, plant := range []string{"", "stale_accepted"} {
		t.Run("plant "+plant, func(t *testing.T) {
			t.Parallel()
			rng, _ := harness.Rand(t)
			r := newRun(t, rng, kafkatest.Shared(t), faultySize(), harness.Faulty)
			r.startCopied()
			r.edge.Stop(stopLimit)
			r.edge.Start("MILLRACE_PLANT=" + plant)
			// Nobody publishes meanwhile, so the place is the right one.
			r.transfer.Stop(stopLimit)
			r.s.Produce(staleBatch(t, r.s))
			r.transfer = r.s.StartTransferWith(r.transfer.Config, r.transfer.Admin)
			if plant != "" {
				r.wantCaught(plant)
				return
			}
			t.Log(r.finish())
			if r.witness.Stale == 0 {
				t.Error("the witness has not seen the stale batch")
			}
		})
	}
}

// staleBatch makes a batch that puts a row of the journal's newest unit again,
// at the next index and with the right chain, by a publisher that does not
// reign.
func staleBatch(t *testing.T, s *harness.System) []byte {
	t.Helper()
	var last *millrace.Record
	for _, value := range s.Records(t) {
		r, err := millrace.DecodeRecord(value, nil)
		if err != nil {
			t.Fatal(err)
		}
		if r.Kind == millrace.RecordBatch {
			last = r
		}
	}
	h := last.Header
	h.First, h.Prev = last.Last()+1, last.Chain
	h.Publisher[0] ^= 1
	h.Chain = harness.ChainAfterUnits(t, h.Prev, last.Payload)
	value, err := millrace.AppendRecord(nil, &h, last.Payload, nil)
	if err != nil {
		t.Fatal(err)
	}
	return value
}

// startCopied starts everything and waits for the first copy.
func (r *run) startCopied() {
	r.t.Helper()
	r.startLoad()
	r.transfer = r.s.StartTransfer()
	r.edge.Start()
	r.edge.AwaitRow(copyLimit, "public.pgbench_branches", "1")
}

// wantCaught lets the load go on until a checker speaks, or ends it and asks
// those that judge a system at rest.
func (r *run) wantCaught(plant string) {
	t := r.t
	t.Helper()
	load := plantedLoad
	if plant == "torn_unit" {
		load = tornLoad
	}
	by := r.caught(load)
	if by == "" {
		t.Fatalf("nobody has noticed the planted bug %s", plant)
	}
	if len(by) > 300 {
		by = by[:300] + " …"
	}
	t.Logf("%s is caught: %s", plant, by)
}

func (r *run) caught(load time.Duration) string {
	witnesses := make(chan error, 1)
	go func() { witnesses <- r.awaitWitnesses() }()
	loaded := make(chan error, 1)
	go func() {
		harness.Pass(r.t.Context(), load)
		r.stopLoad()
		loaded <- r.awaitLoad()
	}()
	ctx, cancel := context.WithCancel(r.t.Context())
	defer cancel()
	var err error
	for rest := (chan error)(nil); ; {
		select {
		case <-r.transfer.Done():
			return fmt.Sprintf("transfer ended with exit code %d: %s", r.transfer.ExitCode(), lastLine(r.transfer.Stderr()))
		case <-r.edge.Done():
			return fmt.Sprintf("the edge ended with exit code %d: %s", r.edge.ExitCode(), lastLine(r.edge.Stderr()))
		case err = <-witnesses:
			return fmt.Sprintf("a witness: %v", err)
		case err = <-loaded:
			if err != nil {
				r.t.Fatal(err)
			}
			rest = make(chan error, 1)
			go func() { rest <- r.s.Rest(ctx, r.edge, restLimit) }()
			continue
		case err = <-rest:
		}
		break
	}
	if err != nil {
		r.t.Fatal(err)
	}
	r.stopWitnesses()
	if err := <-witnesses; err != nil {
		return fmt.Sprintf("a witness: %v", err)
	}
	v := r.s.Judge(r.edge, r.witness, r.transfer.Config, r.journal, "public.pgbench_history", harness.JournalTable)
	return strings.Join(v.Faults, "; ")
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}
