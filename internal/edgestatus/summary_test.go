package edgestatus

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/millrace-db/millrace"
)

func lagOf(seconds float64) *float64 { return &seconds }

func chainAt(index millrace.Index) string {
	return millrace.NewChain(millrace.StreamID{9}, millrace.Epoch(index)).String()
}

// randomReport is of an edge that may be in any state, most of them well.
func randomReport(random *rand.Rand, name string) *Report {
	r := report(name, 2, millrace.Index(1_000_000+random.IntN(1000)))
	r.Chain, r.LagSeconds = chainAt(r.Index), lagOf(random.Float64()*10)
	switch random.IntN(40) {
	case 0:
		r.State, r.Error = StateFault, strings.Repeat("it failed ", random.IntN(100))
	case 1:
		r.Index, r.LagSeconds = millrace.Index(random.IntN(1000)), lagOf(5000)
		r.Chain = chainAt(r.Index)
	case 2:
		r.Epoch, r.Index, r.Chain, r.LagSeconds, r.State = 0, 0, "", nil, StateConnecting
	case 3:
		r.Diverged = []Diverged{{fmt.Sprintf("public.t%d", random.IntN(50)), strings.Repeat("why ", 200)}}
	case 4:
		r.Space = &Space{Alarm: "the store is nearly full"}
	case 5:
		r.Epoch = millrace.Epoch(1 + random.IntN(3))
	case 6:
		r.Chain = chainAt(r.Index + 1)
	}
	r.Version = fmt.Sprintf("1.%d", random.IntN(40))
	return r
}

// climb sends reports up a tree of relays, each of which takes those of width children,
// until one relay is left, and returns the report of that one.
func climb(t testing.TB, reports []*Report, width int) *Report {
	t.Helper()
	for level := 1; len(reports) > 1; level++ {
		var above []*Report
		for i := 0; i < len(reports); i += width {
			c := new(Collector)
			for _, r := range reports[i:min(i+width, len(reports))] {
				b, err := r.Encode()
				if err != nil {
					t.Fatal(err)
				}
				c.Take(r.Edge, b)
			}
			if n := c.Ignored(); n > 0 {
				t.Fatalf("%d reports ignored", n)
			}
			relay := report(fmt.Sprintf("relay-%d-%d", level, i/width), 2, 1_000_999)
			relay.Chain, relay.LagSeconds, relay.Below = chainAt(relay.Index), lagOf(0.01), c.Below(nil)
			above = append(above, relay)
		}
		reports = above
	}
	return reports[0]
}

// TestSummariesAddUp: what a tree of relays says of its edges is what a list of all of
// them says, and of bounded size.
func TestSummariesAddUp(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	var leaves []*Report
	var flat []Edge
	for i := range 3000 {
		r := randomReport(random, fmt.Sprintf("edge-%05d", i))
		if i == 7 { // where all relays are, with another history
			r = report(r.Edge, 2, 1_000_999)
			r.Chain, r.LagSeconds = chainAt(1), lagOf(1)
		}
		leaves = append(leaves, r)
		flat = append(flat, Edge{Report: *r})
	}
	list := Summarise(flat, nil)
	root := climb(t, leaves, 15)
	b, err := root.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if len(b) > 100<<10 {
		t.Errorf("the report of a tree of %d edges has %d bytes", len(leaves), len(b))
	}
	tree := root.Below
	relays := tree.Edges - list.Edges
	if want := 15 - 1 + 200/15 + 1; relays < want || tree.Relays+1 < 200 || tree.Levels != 2 {
		t.Errorf("%d relays below the root by count, %d by name, %d levels", relays, tree.Relays, tree.Levels)
	}
	if tree.LagUnknown != list.LagUnknown || tree.Different != list.Different || tree.Room != list.Room || tree.Silent != 0 {
		t.Errorf("tree %+v, list %+v", tree, list)
	}
	for state, n := range list.States {
		if state == StateStream {
			n += relays
		}
		if tree.States[state] != n {
			t.Errorf("%d edges in state %s, want %d", tree.States[state], state, n)
		}
	}
	sum := 0
	for _, n := range tree.Versions {
		sum += n
	}
	if sum != tree.Edges || len(tree.Versions) > maxVersions+1 {
		t.Errorf("%d edges in %d versions, want %d", sum, len(tree.Versions), tree.Edges)
	}
	sum = tree.LagUnknown
	for _, n := range tree.Lag {
		sum += n
	}
	if sum != tree.Edges {
		t.Errorf("%d edges in the classes of lag, want %d", sum, tree.Edges)
	}
	for i, e := range list.Epochs {
		o := tree.Epochs[i]
		if o.Epoch != e.Epoch || o.Lowest != e.Lowest || o.Epoch != 2 && o.Highest != e.Highest {
			t.Errorf("epoch %v: %v to %v, want %v: %v to %v", o.Epoch, o.Lowest, o.Highest, e.Epoch, e.Lowest, e.Highest)
		}
	}
	for _, index := range []millrace.Index{0, 500, 1_000_000, 1_000_500, 1_000_900, 1_001_000} {
		want := 0
		for _, r := range leaves {
			if r.Epoch > 2 || r.Epoch == 2 && r.Index >= index {
				want++
			}
		}
		for name, s := range map[string]*Summary{"list": list, "tree": tree} {
			if got := s.Reached(2, index); got > want+relays || got < want-len(leaves)/10 || index == 0 && s == list && got != want {
				t.Errorf("%s: %d edges have reached index %v, %d have", name, got, index, want)
			}
		}
	}
	if got := tree.Reached(2, 1_001_000); got > list.Reached(2, 1_001_000) {
		t.Errorf("%d edges have reached an index that none has", got)
	}
	if tree.Forked == 0 || len(tree.Forks) == 0 || len(tree.Forks) > maxForks {
		t.Errorf("%d edges with other chains are found, %d are named", tree.Forked, len(tree.Forks))
	}
	for i, l := range tree.Worst {
		if i > 0 && l.Rank > tree.Worst[i-1].Rank || l.Rank < rankDifferent {
			t.Errorf("worst edges: %+v", tree.Worst)
			break
		}
	}
	if len(tree.Worst) != maxWorst || len(tree.Last) != maxLast || tree.Last[0].Index != list.Last[0].Index || tree.MoreTables+len(tree.Tables) == 0 {
		t.Errorf("%d worst, %d last, the very last is %+v, want %+v", len(tree.Worst), len(tree.Last), tree.Last[0], list.Last[0])
	}
	var back Report
	if err := json.Unmarshal(b, &back); err != nil || !back.Below.valid() {
		t.Errorf("read back: %v", err)
	}
}

// TestSummaryIsBounded: names that are long and hard to write make no report too large,
// and numbers that cannot be are refused.
func TestSummaryIsBounded(t *testing.T) {
	var edges []Edge
	bad := strings.Repeat("<\x01\">", 1000)
	for i := range 2000 {
		r := report(fmt.Sprint(i, bad), millrace.Epoch(i%7), millrace.Index(i*1000))
		r.Chain, r.Version, r.State, r.Error = chainAt(r.Index), fmt.Sprint(i, bad), fmt.Sprint(i, bad), bad
		r.Diverged = []Diverged{{fmt.Sprint(i, bad), bad}}
		edges = append(edges, Edge{Report: *r})
	}
	r := report("relay", 1, 1)
	r.Below = Summarise(edges, nil)
	b, err := r.Encode()
	if err != nil || len(b) > MaxReport {
		t.Fatalf("%d bytes: %v", len(b), err)
	}
	back, err := Decode([]byte("relay"), b)
	if err != nil || back.Below.Edges != 2000 {
		t.Fatalf("%+v, %v", back, err)
	}
	for _, wrong := range []string{`"edges":-1`, `"edges":99999999999999`, `"lag":[-5]`, `"states":{"a":-1}`, `"epochs":[{"epoch":1,"bins":[{"index":1,"edges":-3}]}]`} {
		text := `{"v":1,"edge":"x","state":"stream","reported_at":"2026-05-01T12:00:00Z","below":{` + wrong + `}}`
		if _, err := Decode([]byte("x"), []byte(text)); err == nil {
			t.Errorf("%s is taken", wrong)
		}
	}
	if _, err := Decode([]byte("x"), []byte(`{"v":1,"edge":"x","state":"stream","reported_at":"2026-05-01T12:00:00Z","below":{"edges":3}}`)); err != nil {
		t.Error(err)
	}
}

// TestCollector: a relay's children are counted while they follow it, or report in time,
// and are gone afterwards; what is no report of theirs is passed over.
func TestCollector(t *testing.T) {
	history := NewHistory(10)
	history.Add(2, 50, millrace.NewChain(millrace.StreamID{9}, 50))
	c := &Collector{History: history.At, StreamID: func() string { return "ours" }}
	now := time.Now()
	here := map[string]bool{"a": true, "b": true, "c": true}
	take := func(name string, index millrace.Index, change func(*Report)) {
		t.Helper()
		r := report(name, 2, index)
		r.Chain = chainAt(index)
		if change != nil {
			change(r)
		}
		b, err := r.Encode()
		if err != nil {
			t.Fatal(err)
		}
		c.take(name, b, now)
	}
	if e := edgeOf(seen{report: &Report{Interval: 1e12}, at: now}, now.Add(4*time.Hour)); !e.Silent {
		t.Error("an edge that claims to report once in a lifetime is not silent")
	}
	if s := c.below(nil, now); s != nil {
		t.Errorf("a relay without children sums up %+v", s)
	}
	take("a", 50, nil)
	take("b", 50, func(r *Report) { r.Chain = chainAt(51) })
	take("c", 40, func(r *Report) { r.Below = Summarise([]Edge{{Report: *report("below c", 2, 30)}}, nil) })
	b, _ := report("a", 2, 1).Encode()
	c.take("not a", b, now)
	c.take("a", []byte("{"), now)
	take("d", 1, func(r *Report) { r.StreamID = "foreign" })
	if n := c.Ignored(); n != 3 {
		t.Errorf("%d ignored, want 3", n)
	}
	connected := func(node string) bool { return here[node] }
	s := c.below(connected, now)
	if s.Edges != 4 || s.Relays != 1 || s.Levels != 1 || s.Silent != 0 || s.Gone != 0 || s.Forked != 1 || s.Compared != 2 || s.Forks[0].Edge != "b" || s.Forks[0].With != "its relay" {
		t.Errorf("got %+v", s)
	}
	if lowest, ok := s.Lowest(2); !ok || lowest != 30 {
		t.Errorf("lowest index %v, %v", lowest, ok)
	}

	// c is silent with what is below it, b follows another relay.
	now = now.Add(31 * time.Second)
	take("a", 60, nil)
	delete(here, "b")
	s = c.below(connected, now)
	if s.Edges != 3 || s.Silent != 2 || s.Gone != 1 || s.Worst[0].Edge != "c" {
		t.Errorf("got %+v", s)
	}
	take("b", 61, nil)
	here["b"] = true
	if s := c.below(connected, now); s.Gone != 0 || s.Edges != 4 {
		t.Errorf("b is back: %+v", s)
	}
	delete(here, "b")
	take("b", 61, func(r *Report) { r.State = StateStopped })
	if s := c.below(connected, now); s.Gone != 0 || s.Edges != 3 {
		t.Errorf("b has ended in order: %+v", s)
	}
	delete(here, "c")
	if s := c.below(connected, now); s.Gone != 1 || s.Edges != 1 {
		t.Errorf("c is gone: %+v", s)
	}
	if s := c.below(connected, now.Add(2*goneAfter)); s.Gone != 0 {
		t.Errorf("after a long time: %+v", s)
	}
}

func TestHistory(t *testing.T) {
	h := NewHistory(5)
	at := func(index millrace.Index) string {
		chain, ok := h.At(1, index)
		if !ok {
			return "none"
		}
		return chain
	}
	for i := range 13 {
		index := millrace.Index(10 * (i + 1))
		h.Add(1, index, millrace.NewChain(millrace.StreamID{9}, millrace.Epoch(index)))
		for j := range i + 1 {
			want := "none"
			if j > i-5 {
				want = chainAt(millrace.Index(10 * (j + 1)))
			}
			if got := at(millrace.Index(10 * (j + 1))); got != want {
				t.Fatalf("after %v places, at %v: %s, want %s", i+1, 10*(j+1), got, want)
			}
		}
		if got := at(index + 1); got != "none" {
			t.Fatalf("at no place: %s", got)
		}
	}
	if _, ok := h.At(2, 130); ok {
		t.Error("a place of another epoch")
	}
	h.Add(2, 7, millrace.Chain{})
	if got := at(130); got != "none" {
		t.Errorf("a place of the epoch before: %s", got)
	}
}
