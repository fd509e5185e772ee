package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/millrace-db/millrace/internal/kafkatest"
	"github.com/millrace-db/millrace/tests/harness"
)

// The steps at which a process is killed, and how often the step may pass
// before: the ledger gets a row a second at most.
var (
	transferSteps = []step{ //nolint:gochecknoglobals // a table of cases
		{"captured", 40}, {"sequenced", 40}, {"before-produce", 20}, {"mid-produce", 20}, {"acknowledged", 20}, {"folded", 20}, {"ledger", 2}, {"confirmed", 10},
	}
	edgeSteps = []step{{"edge_before_put", 200}, {"edge_before_commit", 20}, {"edge_after_commit", 20}} //nolint:gochecknoglobals // see above
)

type step struct {
	name string
	most int
}

// hitLimit is how long a process may take to come to a step under load.
const hitLimit = 3 * time.Minute

func failpoint(r *run, s step) string {
	return fmt.Sprintf("MILLRACE_FAILPOINT=%s:%d", s.name, 1+r.rng.IntN(s.most))
}

func faultySize() size {
	s := size{scale: 1, rate: 100, journal: 20 * time.Millisecond, bulk: 2 * time.Second, settle: 4 * time.Minute}
	if harness.Full() {
		s.rate, s.journal = 200, 10*time.Millisecond
	}
	return s
}

// TestKillAtEveryStep kills transfer and edge at each step of their work, under
// load, again and again on the same stream.
func TestKillAtEveryStep(t *testing.T) {
	t.Parallel()
	rng, seed := harness.Rand(t)
	r := newRun(t, rng, kafkatest.Shared(t), faultySize(), harness.Faulty)
	r.startCopied()
	var kills []func()
	for range harness.Trials(2, 500) {
		for _, s := range transferSteps {
			kills = append(kills, func() { r.killTransferAt(s) })
		}
		for _, s := range edgeSteps {
			kills = append(kills, func() { r.killEdgeAt(s) })
		}
	}
	rng.Shuffle(len(kills), func(i, j int) { kills[i], kills[j] = kills[j], kills[i] })
	for _, kill := range kills {
		kill()
	}
	t.Logf("kill -9 at every step: seed %d, %s", seed, r.finish())
}

func (r *run) killTransferAt(s step) {
	r.t.Helper()
	r.transfer.Kill()
	arm := failpoint(r, s)
	r.transfer = r.s.StartTransferWith(r.transfer.Config, r.transfer.Admin, arm)
	if code := r.transfer.Wait(hitLimit); code != -1 {
		r.t.Fatalf("%s: transfer ended with exit code %d, want the kill", arm, code)
	}
	r.faulted[s.name]++
	r.transfer = r.s.StartTransferWith(r.transfer.Config, r.transfer.Admin)
}

func (r *run) killEdgeAt(s step) {
	r.t.Helper()
	r.edge.Kill()
	arm := failpoint(r, s)
	r.edge.Start(arm)
	if code := r.edge.Wait(hitLimit); code != -1 {
		r.t.Fatalf("%s: the edge ended with exit code %d, want the kill", arm, code)
	}
	r.faulted[s.name]++
	r.edge.Start()
}

// TestKillInFirstCopy kills transfer and edge within the first copy, at steps
// rather than at times, so that some copy is always cut off.
func TestKillInFirstCopy(t *testing.T) {
	t.Parallel()
	rng, seed := harness.Rand(t)
	r := newRun(t, rng, kafkatest.Shared(t), faultySize(), harness.Faulty)
	r.startLoad()
	for range harness.Trials(3, 100) {
		arm := failpoint(r, step{[]string{"captured", "sequenced", "mid-produce", "acknowledged", "folded"}[rng.IntN(5)], 8})
		r.transfer = r.s.StartTransfer(arm)
		r.edge.Start(failpoint(r, step{"edge_before_put", 1000}))
		r.transfer.Wait(hitLimit)
		r.faulted["in the first copy"]++
		r.edge.Kill()
	}
	r.transfer = r.s.StartTransfer()
	r.edge.Start()
	r.edge.AwaitRow(copyLimit, "public.pgbench_branches", "1")
	t.Logf("kill -9 in the first copy: seed %d, %s", seed, r.finish())
}

// TestZombieAtEveryStep stops transfer at each step, lets a successor reign, and
// wakes the stopped one, which then does its next step: appends, confirms.
func TestZombieAtEveryStep(t *testing.T) {
	t.Parallel()
	rng, seed := harness.Rand(t)
	r := newRun(t, rng, kafkatest.Shared(t), faultySize(), harness.Faulty)
	r.startCopied()
	for range harness.Trials(1, 200) {
		for _, s := range []step{{"sequenced", 20}, {"before-produce", 20}, {"mid-produce", 20}, {"acknowledged", 20}, {"folded", 20}} {
			r.zombieAt(s)
		}
	}
	t.Logf("zombie at every step: seed %d, %s", seed, r.finish())
}

func (r *run) zombieAt(s step) {
	r.t.Helper()
	r.transfer.Kill()
	arm := failpoint(r, s) + ":stop"
	old := r.s.StartTransferWith(r.transfer.Config, r.transfer.Admin, arm)
	harness.Until(r.t, hitLimit, "transfer has stopped at "+arm, stopped(old))
	r.transfer = r.s.StartTransfer()
	r.awaitProgress()
	r.faulted["zombie at "+s.name]++
	// One that was stopped before its reign had begun is fenced by its own record, which
	// is void, or waits.
	r.wake(old, "a transfer that was stopped at "+arm)
}
