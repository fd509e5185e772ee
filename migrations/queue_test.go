package migrations

import "testing"

// TestQueue has workers spread over heaps, help each other at the end, and take each
// chunk once.
func TestQueue(t *testing.T) {
	var all []*chunkToCopy
	for oid, chunks := range map[uint32]int{1: 2, 2: 5} {
		for i := range chunks {
			all = append(all, &chunkToCopy{heap: heap{oid: oid}, first: int64(i)})
		}
	}
	q := newQueue(all)
	a, first := q.next(nil)
	b, second := q.next(nil)
	if first.oid != 2 || second.oid != 1 {
		t.Fatalf("the first two chunks are of %d and %d, want the larger heap first and the other then", first.oid, second.oid)
	}
	seen := map[*chunkToCopy]bool{first: true, second: true}
	var order []uint32
	for range 5 {
		var c *chunkToCopy
		if b, c = q.next(b); c == nil || seen[c] {
			t.Fatalf("got %v, want another chunk", c)
		}
		seen[c] = true
		order = append(order, c.oid)
	}
	if order[0] != 1 || order[1] != 2 || len(seen) != len(all) {
		t.Errorf("then came %v, %d chunks in all; want the rest of the own heap first, and all %d", order, len(seen), len(all))
	}
	for _, h := range []*queued{a, b} {
		if h, c := q.next(h); h != nil || c != nil {
			t.Errorf("got %v behind the end", c)
		}
	}
}
