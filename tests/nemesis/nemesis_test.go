package nemesis

import (
	"flag"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace-db/millrace/tests/harness"
)

//nolint:gochecknoglobals // flags of the test binary
var (
	seedsFlag  = flag.Int("seeds", 0, "how many walks in each mode, the first with the seed that -first or -seed says; 0 means a few")
	firstFlag  = flag.Uint64("first", 1, "seed of the first walk where -seed does not say one")
	lengthFlag = flag.Int("length", 200, "steps of a walk")
	walkFlag   = flag.String("walk", "", "do the steps of this file and no others")
)

func TestMain(m *testing.M) { harness.Main(m) }

// shrinks bounds how often a walk that failed is tried again, shorter.
const shrinks = 6

// modes are those that walks are done in: both, or the one that -capture says.
func modes() []mode {
	all := []mode{byWAL, byTrigger}
	flag.Visit(func(f *flag.Flag) {
		if f.Name == "capture" {
			all = []mode{mode(f.Value.String())}
		}
	})
	return all
}

// few is how many walks are done in a mode where -seeds does not say.
func few(m mode) int {
	if m == byWAL {
		return 5
	}
	return 10
}

// TestNemesis does walks, as many at a time as -parallel says.
func TestNemesis(t *testing.T) {
	t.Parallel()
	if left := lacking(); left != "" {
		t.Logf("left out:%s", left)
	}
	kafka := newBroker(t)
	for _, m := range modes() {
		t.Run(string(m), func(t *testing.T) {
			if *walkFlag != "" {
				steps, err := readSteps(*walkFlag)
				if err != nil {
					t.Fatal(err)
				}
				done(t, newGrounds(t, m, kafka, 1).take(t), steps)
				return
			}
			walks(t, m, kafka)
		})
	}
}

// walks does the walks of some seeds, and over triggers those that are made for
// bugs.
func walks(t *testing.T, m mode, kafka *broker) {
	t.Helper()
	first, seeds := *firstFlag, *seedsFlag
	if seeds == 0 {
		seeds = few(m)
	}
	if f := flag.Lookup("seed").Value.String(); f != "0" {
		_, first = harness.Rand(t)
		seeds = 1
	}
	made := map[string][]step{}
	if m == byTrigger && seeds == few(m) {
		made = map[string][]step{"crashes": crashes(0), "rewrites": rewrites(0)}
	}
	all := newGrounds(t, m, kafka, seeds+len(made))
	var crashed, failed atomic.Int64
	t.Cleanup(func() { // when all of them have ended
		if t.Failed() {
			return
		}
		if m == byWAL && all.streamed.Load() == 0 {
			t.Error("no transaction was streamed before its end")
		}
		t.Logf("%d of %d crashes of the server have lost what it had acknowledged", all.lost.Load(), crashed.Load())
		if crashed.Load() >= 5 && all.lost.Load() == 0 {
			t.Error("no crash of the server has lost a commit that it had acknowledged")
		}
	})
	for i := range seeds {
		seed := first + uint64(i)
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			t.Parallel()
			if failed.Load() > 0 {
				t.Skip("another walk has failed")
			}
			g, steps := all.take(t), walk(m, seed, *lengthFlag)
			if slices.ContainsFunc(steps, func(s step) bool { return s.Do == "crash" }) {
				crashed.Add(1)
			}
			if !done(t, g, steps) {
				failed.Add(1)
				keep(t, m, fmt.Sprintf("seed-%d", seed), steps)
				shrink(t, g, seed, steps)
			}
		})
	}
	for name, steps := range made {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			done(t, all.take(t), steps)
		})
	}
}

// done does the steps and reports whether all is right.
func done(t *testing.T, g *ground, steps []step) bool {
	t.Helper()
	began := time.Now()
	r := newRun(t, g, harness.Release)
	err := r.walk(steps)
	if err == nil {
		err = r.end()
	}
	if err != nil {
		t.Error(err)
		return false
	}
	g.streamed.Add(int64(r.streamed))
	w := r.witness
	t.Logf("%.1f s, %v; %d rows compared, %d audits, %d transactions streamed; index %v in %d units, %d reigns, %d void entries, %d stale records, %d repeats",
		time.Since(began).Seconds(), r.counts, r.rows, r.audits, r.streamed, w.Index, w.Units, w.Reigns, w.Void, w.Stale, w.Repeats)
	return true
}

// shrink looks for a shorter beginning of the walk that fails, too. A process is
// not at the same place in each try, so it may find none.
func shrink(t *testing.T, g *ground, seed uint64, steps []step) {
	t.Helper()
	good, bad := 0, len(steps)
	for try := 0; try < shrinks && bad-good > 5; try++ {
		n := (good + bad) / 2
		short := beginning(steps, n)
		if t.Run(fmt.Sprintf("seed %d, the first %d steps", seed, n), func(t *testing.T) { done(t, g, short) }) {
			good = n
		} else {
			bad = n
		}
	}
	if bad < len(steps) {
		keep(t, g.mode, fmt.Sprintf("seed-%d-first-%d", seed, bad), beginning(steps, bad))
	}
}

// beginning is the first n steps of a walk with what ends them: sessions without
// a transaction do not mind that.
func beginning(steps []step, n int) []step {
	short := slices.Clone(steps[:n])
	for i := range sessions {
		short = append(short, step{Do: "sql", Session: i, SQL: "ROLLBACK"})
	}
	return append(short, step{Do: "final check"})
}

// TestWalk wants a walk to depend on its seed alone, and all its kinds of steps
// to be taken now and then.
func TestWalk(t *testing.T) {
	for _, m := range []mode{byWAL, byTrigger} {
		taken := map[string]bool{}
		for seed := range uint64(20) {
			a, b := walk(m, seed, 150), walk(m, seed, 150)
			if !slices.Equal(a, b) {
				t.Fatalf("seed %d gives two walks", seed)
			}
			for _, s := range a {
				taken[s.Do] = true
			}
		}
		for _, do := range []string{"sql", "pass", "check", "kill transfer", "kill edge", "end connection", "zombie", "pause broker", "crash", "disable trigger", "trim", "kill relay", "hang relay"} {
			if do == "disable trigger" && m == byWAL {
				continue
			}
			if !taken[do] {
				t.Errorf("no walk by %s has the step %q", m, do)
			}
		}
		if slices.Equal(walk(m, 1, 150), walk(m, 2, 150)) {
			t.Error("two seeds give one walk")
		}
	}
}
