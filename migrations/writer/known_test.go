package writer

import (
	"math/rand/v2"
	"testing"
)

// TestKnown gives answers in their order and wants the pool that takes writes.
func TestKnown(t *testing.T) {
	type said struct {
		of where
		answer
		want where
	}
	for name, all := range map[string][]said{
		"there and back": {
			{toSource, answer{"source", "source", "x", 0}, toSource},
			{toTarget, answer{"source", "target", "x", 0}, toSource},
			{toSource, answer{"target", "source", "x", 1}, toTarget},
			{toTarget, answer{"source", "target", "x", 0}, toTarget},
			{toTarget, answer{"target", "target", "x", 1}, toTarget},
			{toTarget, answer{"source", "target", "x", 2}, toSource},
			{toSource, answer{"target", "source", "x", 1}, toSource},
		},
		"of a version that says less": {{toTarget, answer{"source", "target", "", 0}, toSource}, {toTarget, answer{"target", "target", "", 1}, toTarget}, {toSource, answer{"source", "source", "", 0}, toTarget}, {toSource, answer{"source", "source", "", 2}, toSource}},
		"the next goes the other way": {
			{toSource, answer{"target", "source", "x", 3}, nowhere},
			{toTarget, answer{"target", "target", "x", 3}, toTarget},
			{toTarget, answer{"source", "source", "y", 0}, toTarget},
			{toSource, answer{"target", "source", "x", 3}, toTarget},
			{toSource, answer{"source", "target", "y", 0}, toTarget},
			{toTarget, answer{"target", "source", "y", 1}, toSource},
			{toSource, answer{"target", "target", "y", 1}, toSource},
		},
		"the next goes elsewhere": {
			{toSource, answer{"target", "source", "x", 1}, nowhere},
			{toTarget, answer{"target", "target", "x", 1}, toTarget},
			{toTarget, answer{"source", "source", "y", 0}, toTarget},
			{toSource, answer{"target", "source", "x", 1}, toTarget},
			{toTarget, answer{"target", "source", "y", 1}, nowhere}, // the old source may be open
		},
	} {
		t.Run(name, func(t *testing.T) {
			k := known{past: make(map[string]bool)}
			for i, s := range all {
				if k.take(&s.answer, s.of); k.pool != s.want {
					t.Fatalf("after answer %d, %+v: to %v, want %v", i+1, s, k.pool, s.want)
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
			of where
		}
		var all []said
		for term, active := range []string{"source", "target", "source", "target"} {
			all = append(all, said{answer{active, "source", "y", int64(term)}, toTarget}, said{answer{active, "target", "y", int64(term)}, toSource}, said{answer{active, "source", "x", int64(term) + 5}, toSource})
		}
		random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		for _, s := range all {
			k.take(&s.answer, s.of)
		}
		if k.pool != toSource || k.term != 3 || k.id != "y" {
			t.Fatalf("the end is %+v", k)
		}
	}
}
