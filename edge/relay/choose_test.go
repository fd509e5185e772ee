package relay

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/millrace-db/millrace"
)

// go test -run TestChoiceModel ./edge/relay -seed N -runs N
var (
	seedFlag = flag.Uint64("seed", 0, "seed of the first random run; 0 takes any")
	runsFlag = flag.Int("runs", 60, "number of random runs")
)

var testRules = rules{
	stale: 10 * time.Second, margin: 5 * time.Second, probe: 10 * time.Second, check: time.Minute,
	retryMin: 200 * time.Millisecond, retryMax: 15 * time.Second, ban: 10 * time.Minute, silence: 5 * time.Second,
}

// relayModel is an upstream of the model: what it would say, and whether it does.
type relayModel struct {
	secondary, down, lying bool
	// frozen tells that it answers and gets nothing new itself.
	frozen bool
	said   standing
}

// world is a source, upstreams that follow it, and one edge that chooses among them.
type world struct {
	t     *testing.T
	seed  uint64
	rnd   *rand.Rand
	start time.Time
	now   time.Time
	c     *choice
	all   []*relayModel
	// index and time are of the source; quiet tells that nothing new comes there.
	index millrace.Index
	quiet bool
	// here is what the edge has applied.
	here millrace.Index
	// connected tells that the edge reads c.current.
	connected bool
	changes   int
	last      int
	// lost is since when the edge follows nobody although one serves.
	lost time.Time
}

func newWorld(t *testing.T, seed uint64) *world {
	rnd := rand.New(rand.NewPCG(seed, 3)) //nolint:gosec // a test that can be repeated
	w := &world{t: t, seed: seed, rnd: rnd, start: testTime, now: testTime, index: 100, here: 100, last: -1}
	var urls [2][]string
	for i := range 1 + rnd.IntN(3) {
		urls[0] = append(urls[0], fmt.Sprint("p", i))
		w.all = append(w.all, &relayModel{})
	}
	for i := range rnd.IntN(3) {
		urls[1] = append(urls[1], fmt.Sprint("s", i))
		w.all = append(w.all, &relayModel{secondary: true})
	}
	for _, r := range w.all {
		r.said = standing{epoch: 1, oldest: 1, newest: 100, time: w.now}
	}
	w.c = newChoice(testRules, rnd, urls[0], urls[1])
	return w
}

func (w *world) fatalf(format string, args ...any) {
	w.t.Helper()
	w.t.Fatalf("seed %d after %v: %s", w.seed, w.now.Sub(w.start), fmt.Sprintf(format, args...))
}

func (w *world) want() millrace.Place { return millrace.Place{Epoch: 1, Index: w.here} }

var errModel = errors.New("it does not answer")

// step lets a quarter of a second pass.
func (w *world) step() {
	w.now = w.now.Add(250 * time.Millisecond)
	if !w.quiet {
		w.index++
		for _, r := range w.all {
			if !r.frozen && !r.down {
				r.said.newest, r.said.time = w.index, w.now
			}
		}
	}
	if w.c.current < 0 || !w.connected {
		w.connect()
	}
	if w.connected {
		w.read()
	}
	for _, i := range w.c.probes(w.now) {
		w.probe(i)
	}
	w.check()
}

// connect does what Open does, once.
func (w *world) connect() {
	w.connected = false
	i, wait, v := w.c.pick(w.now, w.want())
	switch v {
	case pickNow:
	case pickWait:
		if wait > testRules.ban*5/4 {
			w.fatalf("it waits %v", wait)
		}
		return
	case pickGone:
		w.fatalf("gone, although every log goes back to index 1")
	case pickUntrue:
		for j, r := range w.all {
			if !r.lying && w.c.all[j].strikes < 2 {
				w.fatalf("all are called untrue, and %d never was", j)
			}
		}
		return
	}
	r := w.all[i]
	if r.down {
		w.c.fail(w.now, i, errModel, nil)
		return
	}
	if w.now.Before(w.c.all[i].banned) {
		w.fatalf("%d is banned and asked", i)
	}
	w.c.follow(w.now, i, r.said)
	w.connected = true
	if w.last != i {
		w.last = i
		w.changes++
	}
}

// read takes what the upstream has.
func (w *world) read() {
	i := w.c.current
	r := w.all[i]
	switch {
	case r.down:
		if w.now.Sub(w.c.all[i].heard) > testRules.silence {
			w.c.fail(w.now, i, errSilent, nil)
			w.connected = false
		}
	case r.lying && r.said.newest > w.here:
		w.c.reject(w.now, i, w.want(), millrace.ErrSignature, w.rnd.IntN(2) == 0)
		w.connected = false
	default:
		w.c.hear(w.now, i, r.said)
		w.here = max(w.here, r.said.newest)
	}
}

func (w *world) probe(i int) {
	r := w.all[i]
	if i == w.c.current {
		w.fatalf("%d is followed and probed", i)
	}
	if r.down {
		w.c.fail(w.now, i, errModel, nil)
		return
	}
	w.c.hear(w.now, i, r.said)
	from := w.c.current
	if _, leave := w.c.better(w.now, i, w.want()); leave {
		a, b := r.said, w.c.all[from].said
		back := w.c.all[from].secondary && !r.secondary
		if back && b.time.Sub(a.time) >= testRules.margin {
			w.fatalf("a secondary (%+v) is left for a primary (%+v) that is far behind", b, a)
		}
		if !back && (a.newest <= b.newest || a.time.Sub(b.time) < testRules.margin) {
			w.fatalf("%d (%+v) is left for %d (%+v), which is not fresher", from, b, i, a)
		}
		w.c.current, w.connected = -1, false
	}
}

// check wants an edge to be served where it can be.
func (w *world) check() {
	served := false
	for i, r := range w.all {
		served = served || !r.down && !r.lying && !r.frozen && w.c.all[i].strikes == 0
	}
	following := w.connected && !w.all[w.c.current].down
	if !served || following {
		w.lost = time.Time{}
		return
	}
	if w.lost.IsZero() {
		w.lost = w.now
	}
	// Silence is noticed, and each of the others may be in its longest pause.
	if most := testRules.silence + testRules.retryMax*5/4 + time.Second; w.now.Sub(w.lost) > most {
		w.fatalf("one serves, and the edge has followed none for %v", w.now.Sub(w.lost))
	}
}

func (w *world) run(d time.Duration) {
	for end := w.now.Add(d); w.now.Before(end); {
		w.step()
	}
}

// TestChoiceModel plays random histories of upstreams that die, hang, stand still, lie
// and come back: the edge is served whenever one serves, leaves none without a reason,
// never asks one that is banned, and does not move while all is well or all is quiet.
func TestChoiceModel(t *testing.T) {
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64() //nolint:gosec // printed where it fails
	}
	for n := range uint64(*runsFlag) {
		w := newWorld(t, seed+n)
		for range 12 {
			for _, r := range w.all {
				if w.rnd.IntN(3) == 0 {
					r.down, r.frozen = w.rnd.IntN(3) == 0, w.rnd.IntN(3) == 0
					r.lying = w.rnd.IntN(6) == 0
				}
			}
			w.quiet = w.rnd.IntN(4) == 0
			w.run(time.Duration(w.rnd.IntN(120)) * time.Second)
		}
		// All is well: after a while nobody moves any more, and not in silence either.
		for i, r := range w.all {
			*r = relayModel{secondary: r.secondary, said: r.said}
			w.c.all[i].strikes, w.c.all[i].certain, w.c.all[i].banned = 0, false, time.Time{}
		}
		w.quiet = false
		w.run(15 * time.Minute)
		if !w.connected || w.all[w.c.current].secondary || w.here < w.index-4 {
			w.fatalf("all is well, and it follows %d at index %v, the source is at %v", w.c.current, w.here, w.index)
		}
		changes := w.changes
		w.run(5 * time.Minute)
		w.quiet = true
		w.run(30 * time.Minute)
		if w.changes != changes {
			w.fatalf("it moved %d times while all was well, and then quiet", w.changes-changes)
		}
	}
}

// TestChoiceLeavesStale: an upstream that gets nothing new is left for one that does,
// within the time of a probe, and one that is a little behind is not.
func TestChoiceLeavesStale(t *testing.T) {
	w := newWorld(t, 1)
	w.all = []*relayModel{{said: standing{epoch: 1, oldest: 1, newest: 100, time: w.now}}, {said: standing{epoch: 1, oldest: 1, newest: 100, time: w.now}}}
	w.c = newChoice(testRules, w.rnd, []string{"a", "b"}, nil)
	w.run(time.Minute)
	if w.c.current != 0 {
		t.Fatalf("it follows %d, want 0", w.c.current)
	}
	w.all[0].frozen = true
	w.run(testRules.stale + 2*testRules.probe)
	if w.c.current != 1 {
		t.Fatalf("%d is followed, want 1", w.c.current)
	}
	w.all[0].frozen = false
	w.run(5 * time.Minute)
	if w.c.current != 1 {
		t.Fatal("it has gone back, although nothing is wrong")
	}
}

// TestChoiceGone: where logs do not reach back far enough, the next ones are asked,
// secondaries last; and when none does, that is said, with who reaches back farthest.
func TestChoiceGone(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 3)) //nolint:gosec // a test that can be repeated
	c := newChoice(testRules, rnd, []string{"a", "b"}, []string{"s"})
	now, want := testTime, millrace.Place{Epoch: 1, Index: 10}
	for i, oldest := range []millrace.Index{50, 40, 11} {
		got, _, v := c.pick(now, want)
		if v != pickNow || got != i {
			t.Fatalf("pick %d, %d, want %d", got, v, i)
		}
		c.fail(now, i, ErrRefused, &standing{epoch: 1, oldest: oldest, newest: 60})
		now = now.Add(10 * time.Millisecond)
	}
	if i, wait, v := c.pick(now, want); v != pickWait || wait <= 0 {
		t.Fatalf("pick %d, %v, %d: the secondary is to be asked again", i, wait, v)
	}
	now = now.Add(time.Second)
	if i, _, v := c.pick(now, want); v != pickNow || i != 2 {
		t.Fatalf("pick %d, %d, want the secondary", i, v)
	}
	want.Index = 9
	if i, _, v := c.pick(now, want); v != pickGone || i != 2 {
		t.Fatalf("pick %d, %d, want gone, and that the secondary reaches back farthest", i, v)
	}
	c.fail(now, 2, errModel, &standing{epoch: 1, oldest: 1, newest: 60})
	if _, _, v := c.pick(now, want); v != pickWait {
		t.Fatalf("the secondary has it after all: %d", v)
	}
	for range failing {
		c.fail(now, 2, errModel, nil)
	}
	if i, _, v := c.pick(now, want); v != pickGone || i != 1 {
		t.Fatalf("pick %d, %d: the secondary is not there, and the others lack it", i, v)
	}
	for i := range 3 {
		c.ended(i, 1)
	}
	if _, _, v := c.pick(now.Add(time.Hour), millrace.Place{Epoch: 1, Index: 60}); v != pickGone {
		t.Fatalf("the epoch is over everywhere: %d", v)
	}
}

// TestChoiceUntrue: one that gave something untrue is asked once more, others first; then
// it is left alone, and when all are, that is said.
func TestChoiceUntrue(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 3)) //nolint:gosec // a test that can be repeated
	c := newChoice(testRules, rnd, []string{"a", "b"}, nil)
	now, want := testTime, millrace.Place{Epoch: 1, Index: 10}
	said := standing{epoch: 1, oldest: 1, newest: 60}
	c.follow(now, 0, said)
	if c.reject(now, 0, want, millrace.ErrDiverged, false) {
		t.Error("once is no alarm yet: it may have been altered on its way")
	}
	if i, _, v := c.pick(now, want); v != pickNow || i != 1 {
		t.Fatalf("pick %d, %d, want the other one", i, v)
	}
	c.fail(now, 1, errModel, nil)
	now = now.Add(testRules.retryMax)
	c.follow(now, 0, said)
	if !c.reject(now, 0, want, millrace.ErrDiverged, false) {
		t.Error("twice is an alarm")
	}
	if i, _, v := c.pick(now.Add(testRules.ban/2), want); v != pickNow || i != 1 {
		t.Fatalf("pick %d, %d, want the other one", i, v)
	}
	c.reject(now, 1, want, millrace.ErrDiverged, false)
	if _, _, v := c.pick(now, want); v != pickWait {
		t.Fatalf("the other one is asked once more: %d", v)
	}
	c.reject(now, 1, want, millrace.ErrDiverged, false)
	if _, _, v := c.pick(now, want); v != pickUntrue {
		t.Fatalf("all have given something untrue: %d", v)
	}
	if one := newChoice(testRules, rnd, []string{"a", "b"}, nil); !one.reject(now, 0, want, millrace.ErrSignature, true) {
		t.Error("what cannot have been altered on its way is an alarm at once")
	} else if i, _, v := one.pick(now.Add(time.Minute), want); v != pickNow || i != 1 {
		t.Errorf("pick %d, %d, want the other one", i, v)
	}
	if c.clear(0, want) {
		t.Error("it is cleared at the place itself")
	}
	if !c.clear(0, millrace.Place{Epoch: 1, Index: 11}) {
		t.Error("it is not cleared beyond the place")
	}
}
