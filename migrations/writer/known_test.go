package writer

import (
	"math/rand/v2"
	"testing"
)

// TestKnown gives answers in their order and wants the pool that takes writes.
func TestKnown(t *testing.T) {
	type said struct {
		target bool // the pool
		answer
		want bool // the target's pool is gone to
	}
	for name, all := range map[string][]said{
		"there and back": {
			{false, answer{"source", "source", "x", 0}, false}, {true, answer{"source", "target", "x", 0}, false},
			{false, answer{"target", "source", "x", 1}, true}, {true, answer{"source", "target", "x", 0}, true}, {true, answer{"target", "target", "x", 1}, true},
			{true, answer{"source", "target", "x", 2}, false}, {false, answer{"target", "source", "x", 1}, false},
		},
		"of a version that says less": {{true, answer{"source", "target", "", 0}, false}, {true, answer{"target", "target", "", 1}, true}, {false, answer{"source", "source", "", 0}, true}, {false, answer{"source", "source", "", 2}, false}},
		"the next goes the other way": {
			{false, answer{"target", "source", "x", 3}, false}, {true, answer{"target", "target", "x", 3}, true},
			{true, answer{"source", "source", "y", 0}, true}, {false, answer{"target", "source", "x", 3}, true}, {false, answer{"source", "target", "y", 0}, true},
			{true, answer{"target", "source", "y", 1}, false}, {false, answer{"target", "target", "y", 1}, false},
		},
		"the next goes elsewhere": {
			{false, answer{"target", "source", "x", 1}, false}, {true, answer{"target", "target", "x", 1}, true},
			{true, answer{"source", "source", "y", 0}, true}, {false, answer{"target", "source", "x", 1}, true},
			{true, answer{"target", "source", "y", 1}, true}, // denied there, and held: the old source may be open
		},
	} {
		t.Run(name, func(t *testing.T) {
			k := known{past: make(map[string]bool)}
			for i, s := range all {
				if k.take(&s.answer, s.target); k.target != s.want {
					t.Fatalf("after answer %d, %+v: to the target %v, want %v", i+1, s, k.target, s.want)
				}
			}
		})
	}
}

// TestKnownInAnyOrder shuffles answers of two migrations that are on their way at once:
// the end is the same.
func TestKnownInAnyOrder(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	for range 500 {
		k := known{past: map[string]bool{"x": true}, id: "y"}
		type said struct {
			answer
			target bool
		}
		var all []said
		for term, active := range []string{"source", "target", "source", "target"} {
			all = append(all, said{answer{active, "source", "y", int64(term)}, true}, said{answer{active, "target", "y", int64(term)}, false}, said{answer{active, "source", "x", int64(term) + 5}, false})
		}
		random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		for _, s := range all {
			k.take(&s.answer, s.target)
		}
		if k.target || k.term != 3 || k.id != "y" {
			t.Fatalf("the end is %+v", k)
		}
	}
}
