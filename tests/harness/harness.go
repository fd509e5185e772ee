// Package harness runs millrace as its users run it: the built program as
// processes, beside real Postgres and real Kafka, read through its HTTP API.
//
// It owns the build of the program, its processes, their configuration files
// and logs, and the witnesses that judge a run: a reader of the topic that
// folds it anew, a comparison of every row at the source with every row at the
// edge, a journal of the commits that a client saw acknowledged, and a reader
// of pgbench's books. The witnesses share the codecs with the program and none
// of its decisions: continuity is judged by the topic witness's own rule.
//
// A package that uses it calls Main from its TestMain.
package harness

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/millrace-db/millrace/internal/kafkatest"
	"github.com/millrace-db/millrace/internal/pgtest"
)

//nolint:gochecknoglobals // flags of the test binary
var (
	seedFlag = flag.Uint64("seed", 0, "seed of randomised runs; 0 chooses one and prints it")
	fullFlag = flag.Bool("full", false, "run the end-to-end tests at their full size, not at that of CI")
	// captureFlag is for systems whose test does not choose.
	captureFlag = flag.String("capture", CaptureWAL, "how changes are captured where the test does not say: wal or trigger")
	trials      = flag.Int("trials", 0, "how often each step is tried; 0 means a few in CI and the size of a release with -full")
)

// pollInterval is how often a condition is looked at. It bounds no result: a
// condition that holds is only noticed this much later.
const pollInterval = 10 * time.Millisecond

// Main runs the tests of a package, ends the servers they share, removes what
// was built and exits.
func Main(m *testing.M) {
	flag.Parse()
	if *captureFlag != CaptureWAL && *captureFlag != CaptureTrigger {
		fmt.Fprintf(os.Stderr, "-capture %s: want wal or trigger\n", *captureFlag)
		os.Exit(ExitUsage)
	}
	pgtest.Main(m, kafkatest.StopShared, removeBinaries)
}

// Full reports whether the tests run at their full size (-full).
func Full() bool { return *fullFlag }

// Trials is how often each step of a fault test is tried: what -trials says, or
// ci, or full with -full.
func Trials(ci, full int) int {
	switch {
	case *trials > 0:
		return *trials
	case Full():
		return full
	}
	return ci
}

// Rand returns the source of randomness of a run and its seed. The seed is
// printed where the run fails or is verbose; -seed takes it back.
func Rand(t testing.TB) (*rand.Rand, uint64) {
	t.Helper()
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()>>1 | 1
	}
	t.Logf("seed %d (take it back with -seed %d)", seed, seed)
	return rand.New(rand.NewPCG(seed, 0)), seed
}

// Between returns a random duration from low to high.
func Between(r *rand.Rand, low, high time.Duration) time.Duration {
	return low + time.Duration(r.Int64N(int64(high-low)+1))
}

// errNotYet is what a condition returns that does not hold yet and has nothing
// to say about it.
var errNotYet = errors.New("not yet")

// NotYet returns an error for a condition that does not hold yet; its text goes
// into the message when time is up.
func NotYet(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errNotYet, fmt.Sprintf(format, args...))
}

// Until waits for cond to return nil and fails the test after limit, with the
// newest error of cond.
func Until(t testing.TB, limit time.Duration, what string, cond func(context.Context) error) {
	t.Helper()
	if err := Wait(t.Context(), limit, cond); err != nil {
		t.Fatalf("wait until %s: %v", what, err)
	}
}

// Wait is Until for goroutines other than the test's own.
func Wait(ctx context.Context, limit time.Duration, cond func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	var newest error
	for {
		err := cond(ctx)
		if err == nil {
			return nil
		}
		if newest == nil || ctx.Err() == nil { // what the end cuts off has nothing to say
			newest = err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w after %s: %w", ctx.Err(), limit, newest)
		case <-tick.C:
		}
	}
}

// Pass lets d go by: the time between two faults, which is part of what a run
// is made of and no wait for a condition. It ends early with ctx.
func Pass(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// must fails the test for an error of the harness itself.
func must(t testing.TB, doing string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", doing, err)
	}
}

func writeFile(t testing.TB, path, text string) {
	t.Helper()
	must(t, "write "+path, os.WriteFile(path, []byte(text), 0o644)) //nolint:gosec // a configuration for any user of the test
}
