package relay

import (
	"errors"
	"slices"
	"testing"

	"github.com/millrace-db/millrace"
)

// TestTwoLevels: what a root has comes to its child and from there to the child's child,
// byte for byte, with the offsets and the identity of the topic.
func TestTwoLevels(t *testing.T) {
	root := newNode(t, "root", nil)
	root.begin()
	root.batches(20)
	middle, leaf := newNode(t, "middle", nil), newNode(t, "leaf", nil)
	leaf.follow(nil, middle.upstream()) // whose own upstream is not there yet
	middle.follow(nil, root.upstream())
	leaf.awaitIndex(20)
	root.reign()
	root.batches(20)
	for range 100 {
		root.batch(string(make([]byte, 40<<10)))
	}
	leaf.awaitIndex(140)
	leaf.sameAs(root)
	middle.sameAs(root)
	if at := leaf.place(); at.TopicID != testTopic || at.Offset != 141 {
		t.Errorf("leaf has topic ID %q offset %v, want %q 141", at.TopicID, at.Offset, testTopic)
	}
	await(t, "the leaf to know the path above it", func() bool { return slices.Equal(leaf.client.Path(), []string{"middle", "root"}) })
	await(t, "the middle to know its child's place", func() bool {
		peers := middle.server.Peers()
		return len(peers) == 1 && peers[0].Node == "leaf" && peers[0].Index == 140
	})
}

// TestGoesOn: a child that was away gets what it lacks, and no more.
func TestGoesOn(t *testing.T) {
	root, child := newNode(t, "root", nil), newNode(t, "child", nil)
	root.begin()
	root.batches(5)
	child.follow(nil, root.upstream())
	child.awaitIndex(5)
	child.halt()
	root.batches(5)
	child.run()
	child.awaitIndex(10)
	child.sameAs(root)
}

// TestCircles: a node that would follow itself is refused, alone and in a ring, and one
// that comes to stand in a ring later leaves it.
func TestCircles(t *testing.T) {
	root := newNode(t, "root", nil)
	root.begin()
	root.batches(3)
	a, b, c := newNode(t, "a", nil), newNode(t, "b", nil), newNode(t, "c", nil)

	a.follow(nil, a.upstream())
	await(t, "a node that asks itself to be refused", func() bool { return a.client.Status().Upstreams[0].Problem != "" })
	if _, err := a.client.open(t.Context(), 0, From{}); !errors.Is(err, ErrLoop) {
		t.Fatalf("a node that asks itself gets %v, want ErrLoop", err)
	}
	a.halt()

	// root → a → b → c, and then a asks c.
	a.follow(nil, root.upstream())
	b.follow(nil, a.upstream())
	c.follow(nil, b.upstream())
	c.awaitIndex(3)
	a.halt()
	a.follow(nil, c.upstream())
	await(t, "a ring to be refused", func() bool { return a.client.Status().Upstreams[0].Problem != "" })
	if _, err := a.client.open(t.Context(), 0, From{}); !errors.Is(err, ErrLoop) {
		t.Fatalf("a node asks one that follows it and gets %v, want ErrLoop", err)
	}

	// Each has asked before the other's path was known to it: told of it, one leaves.
	a.halt()
	a.mu.Lock()
	a.path = func() []string { return []string{"x"} }
	a.mu.Unlock()
	await(t, "c to follow again", func() bool { return len(c.client.Path()) == 3 })
	a.mu.Lock()
	a.path = func() []string { return []string{"x", "c"} }
	a.mu.Unlock()
	await(t, "c to leave the ring", func() bool { return c.client.Status().Upstreams[0].Problem != "" })
	if at := c.place(); at.Index != 3 {
		t.Errorf("c has come to index %v, want 3", at.Index)
	}
}

// TestAhead: a child that is ahead of its upstream waits for it and goes on from where
// it is.
func TestAhead(t *testing.T) {
	root, slow, child := newNode(t, "root", nil), newNode(t, "slow", nil), newNode(t, "child", nil)
	root.begin()
	root.batches(3)
	slow.follow(nil, root.upstream())
	slow.awaitIndex(3)
	slow.halt()
	root.batches(7)
	child.follow(nil, root.upstream())
	child.awaitIndex(10)
	child.halt()
	child.follow(nil, slow.upstream())
	await(t, "the child to follow", func() bool { return child.client.Status().Node == "slow" })
	if s := child.client.Status(); s.Index != 3 || s.Behind != 0 {
		t.Errorf("upstream stands at index %v, the child %v behind; want 3 and 0", s.Index, s.Behind)
	}
	root.batches(2)
	slow.run()
	child.awaitIndex(12)
	child.sameAs(root)
}

// TestForeign: another stream, and another history of the same stream, are refused.
func TestForeign(t *testing.T) {
	root, other, child := newNode(t, "root", nil), newNode(t, "other", nil), newNode(t, "child", nil)
	root.begin()
	root.batches(3)
	other.begin()
	for range 5 {
		other.batch("another text")
	}
	child.follow(nil, root.upstream())
	child.awaitIndex(3)
	if _, err := child.client.open(t.Context(), 0, From{Stream: millrace.StreamID{9}}); !errors.Is(err, ErrRefused) {
		t.Errorf("another stream: %v, want ErrRefused", err)
	}
	child.halt()
	child.follow(nil, other.upstream())
	await(t, "the child to stop", func() bool { return errors.Is(child.fault(), ErrUntrue) })
	if err := child.fault(); !millrace.NeedsOperator(err) {
		t.Errorf("all upstreams disagree: %v, want an error that stops", err)
	}
	if at := child.place(); at.Index != 3 || at.Chain != root.place().Chain {
		t.Errorf("the child has gone to index %v", at.Index)
	}
}
