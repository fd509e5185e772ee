package edgestatus

import (
	"fmt"
	"math"
	"testing"
	"time"
)

// TestVerificationAddsUp: a tree of relays says how far the edges below it have compared their
// rows, and what they have found; of those that are silent nothing is expected.
func TestVerificationAddsUp(t *testing.T) {
	verify := func(id uint64, p Pass) []TableVerify {
		p.ID = id
		return []TableVerify{{Table: "public.t", Pass: p}}
	}
	var leaves []*Report
	add := func(n int, change func(*Report)) {
		for range n {
			r := report(fmt.Sprintf("edge-%03d", len(leaves)), 2, 1000)
			r.Verifying, r.Verify, r.Diverged, r.Holds = 0, verify(9, Pass{Equal: 5}), nil, nil
			if change != nil {
				change(r)
			}
			leaves = append(leaves, r)
		}
	}
	add(40, nil)
	add(3, func(r *Report) { r.Verifying, r.Verify = 900, verify(8, Pass{Equal: 5}) })
	add(2, func(r *Report) { r.Verify = verify(9, Pass{Equal: 4}) })
	add(4, func(r *Report) { r.Verify = verify(9, Pass{Equal: 5, Skipped: 1}) })
	add(5, func(r *Report) { r.Verify = verify(9, Pass{Equal: 5, Different: 1}) })
	add(6, func(r *Report) { r.State = StateFault })
	add(7, func(r *Report) { r.State = StateStopped })
	add(8, func(r *Report) { r.Epoch = 1 })
	add(1, func(r *Report) { r.Holds, r.Verify = []Held{{Table: "public.t"}}, verify(9, Pass{Equal: 6}) })
	add(1, func(r *Report) {
		r.Holds, r.Verify = []Held{{Table: "public.t", Prefixes: 2}}, verify(9, Pass{Skipped: 5})
	})
	add(1, func(r *Report) {
		r.Holds, r.Verify = []Held{{Table: "public.t", Prefixes: 2}}, verify(9, Pass{Different: 1})
	})
	add(1, func(r *Report) { r.Holds, r.Verify = []Held{{Table: "public.other"}}, nil })
	var list []Edge
	for _, r := range leaves {
		list = append(list, Edge{Report: *r})
	}
	root := climb(t, leaves, 10)
	relays := root.Below.Edges - len(leaves)
	for name, s := range map[string]*Summary{"list": Summarise(list, nil), "tree": root.Below} {
		more := 0
		if name == "tree" {
			more = relays // whose own reports have a pass that is older
		}
		if got, want := s.Reporting, 40+3+2+4+5+8+4+more; got != want || s.Partial != 4 {
			t.Errorf("%s: %d report, %d partial; want %d, 4", name, got, s.Partial, want)
		}
		if got, want := s.Verified(2, 1000), 40+2+4+5+4; got < want || got > want+more {
			t.Errorf("%s: %d have compared all up to index 1000, want %d", name, got, want)
		}
		if got, want := s.Verified(2, 899), 40+3+2+4+5+4+more; got != want {
			t.Errorf("%s: %d have compared all up to index 899, want %d", name, got, want)
		}
		p, ok := s.Pass("public.t")
		if want := (PassSummary{Table: "public.t", ID: 9, Edges: 40 + 2 + 4 + 5 + 8 + 1, Partial: 1, Different: 6, Skipped: 4, Equal: 4}); !ok || p != want {
			t.Errorf("%s: found is %+v, want %+v", name, p, want)
		}
	}
	if _, ok := root.Below.Pass("public.none"); ok {
		t.Error("there is a result of no table")
	}

	// A relay that reports no more.
	c := new(Collector)
	now := time.Now()
	b, err := root.Encode()
	if err != nil {
		t.Fatal(err)
	}
	c.take(root.Edge, b, now)
	if s := c.below(nil, now.Add(10*time.Minute)); s.Reporting != 0 || s.Verified(2, 1) != 0 || len(s.Passes) != 0 || s.Silent != s.Edges {
		t.Errorf("below a silent relay: %+v", s)
	}
	if s := c.below(nil, now); s.Reporting != root.Below.Reporting+1 {
		t.Errorf("%d report, want %d", s.Reporting, root.Below.Reporting+1)
	}

	var many Summary
	for i := range 2 * maxPasses {
		many.passes([]PassSummary{{Table: fmt.Sprint("t", i), ID: uint64(i), Edges: 1, Equal: math.MaxUint64}})
	}
	if _, ok := many.Pass(fmt.Sprint("t", 2*maxPasses-1)); !ok || len(many.Passes) != maxPasses {
		t.Errorf("%d passes stay, and not the newest", len(many.Passes))
	}
}
