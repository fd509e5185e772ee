package relay

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// TestNetwork: nodes that name each other as upstreams, at random and in rings, and come
// and go while a root makes units, all end with the root's log, in paths without a circle.
func TestNetwork(t *testing.T) {
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64() //nolint:gosec // printed where it fails
	}
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 5)) //nolint:gosec // a test that can be repeated
	root := newRoot(t, "root", 1, nil)
	var nodes []*node
	for i := range 8 {
		nodes = append(nodes, newNode(t, fmt.Sprint("n", i), nil))
	}
	for i, n := range nodes {
		// Every node can reach the root by way of those before it, if they do.
		some := []Upstream{root.upstream()}
		if i > 0 {
			some = []Upstream{nodes[rnd.IntN(i)].upstream(), root.upstream()}[:1+rnd.IntN(2)]
		}
		for range rnd.IntN(3) {
			if other := nodes[rnd.IntN(len(nodes))]; other != n && !slices.Contains(some, other.upstream()) {
				some = append(some, other.upstream())
			}
		}
		split := 1 + rnd.IntN(len(some))
		n.follow(func(c *ClientConfig) { c.Secondaries, c.Seed = some[split:], seed+uint64(i) }, some[:split]...)
	}
	for end := time.Now().Add(1500 * time.Millisecond); time.Now().Before(end); {
		root.batches(1 + rnd.IntN(5))
		n := nodes[rnd.IntN(len(nodes))]
		switch {
		case n.stop == nil:
			n.run()
		case rnd.IntN(4) == 0:
			n.halt()
		}
		_ = sleep(t.Context(), time.Duration(rnd.IntN(20))*time.Millisecond)
	}
	for _, n := range nodes {
		if n.stop == nil {
			n.run()
		}
	}
	for _, n := range nodes {
		// A node that follows one which has stopped to come on leaves it only for one
		// that is younger, by the source's clock.
		await(t, n.name+" to come to the root", func() bool {
			root.batches(1)
			return n.place().Index+20 > root.place().Index
		})
	}
	root.batches(1)
	for _, n := range nodes {
		n.awaitIndex(root.place().Index)
		n.sameAs(root)
		path := n.client.Path()
		if slices.Contains(path, n.name) {
			t.Errorf("seed %d: the path above %s is %q", seed, n.name, path)
		}
	}
}
