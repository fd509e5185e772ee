package relay

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/millrace-db/millrace/internal/kafkatest"
	"github.com/millrace-db/millrace/tests/harness"
)

const (
	copyLimit = 3 * time.Minute
	moveLimit = 3 * time.Minute
)

// tree is a stream whose edges follow each other.
type tree struct {
	t        *testing.T
	s        *harness.System
	transfer *harness.Transfer
	rows     int
}

func newTree(t *testing.T) *tree {
	t.Helper()
	s := harness.NewSystem(t, kafkatest.Shared(t), "public.items")
	s.DB.Exec(`CREATE TABLE items (id int PRIMARY KEY, v text)`)
	r := &tree{t: t, s: s}
	r.insert(10)
	s.Init()
	r.transfer = s.StartTransfer()
	return r
}

func (r *tree) insert(n int) {
	r.t.Helper()
	r.s.DB.Exec(fmt.Sprintf(`INSERT INTO items SELECT i, 'value ' || i FROM generate_series(%d, %d) i`, r.rows+1, r.rows+n))
	r.rows += n
}

// edge starts an edge; without upstreams it follows Kafka.
func (r *tree) edge(id string, upstreams ...*harness.Edge) *harness.Edge {
	r.t.Helper()
	e := r.s.NewEdge(id)
	e.More = "  report: 1s\n"
	for _, u := range upstreams {
		e.Upstream = append(e.Upstream, "http://"+u.Address)
	}
	e.WriteConfig()
	e.Start()
	return e
}

// await waits until an edge has all rows, and its chain is that of another at the same
// index.
func (r *tree) await(limit time.Duration, e, as *harness.Edge) {
	r.t.Helper()
	harness.Until(r.t, limit, fmt.Sprintf("%s has all rows, and the chain of %s", e.ID, as.ID), func(ctx context.Context) error {
		a, err := e.Status(ctx)
		if err != nil {
			return err
		}
		b, err := as.Status(ctx)
		if err != nil {
			return err
		}
		if got := a.Rows("public.items"); got != uint64(r.rows) || a.Epoch != b.Epoch || a.Index != b.Index {
			return harness.NotYet("it has %d of %d rows at index %d/%d, %s stands at %d/%d; fault %s", got, r.rows, a.Epoch, a.Index, as.ID, b.Epoch, b.Index, a.Fault)
		}
		if a.Chain != b.Chain {
			r.t.Fatalf("at index %d %s has chain %s, %s has %s", a.Index, e.ID, a.Chain, as.ID, b.Chain)
		}
		return nil
	})
}

// upstream is whom an edge follows.
func (r *tree) upstream(e *harness.Edge, of ...*harness.Edge) *harness.Edge {
	r.t.Helper()
	var found *harness.Edge
	harness.Until(r.t, moveLimit, e.ID+" follows an edge", func(ctx context.Context) error {
		s, err := e.Status(ctx)
		if err != nil {
			return err
		}
		for _, one := range of {
			if s.Upstream != nil && s.Upstream.Node == one.ID {
				found = one
				return nil
			}
		}
		return harness.NotYet("it follows %+v", s.Upstream)
	})
	return found
}

// TestTree runs Kafka → root → two relays → leaf, stops the relay that the leaf follows,
// kills it, and begins a new epoch: the leaf goes on by way of the other, and readers go
// over, with the chain of the root at each step.
func TestTree(t *testing.T) {
	r := newTree(t)
	root := r.edge("root")
	left, right := r.edge("left", root), r.edge("right", root)
	leaf := r.edge("leaf", left, right)
	r.await(copyLimit, leaf, root)

	// Edges behind relays compare their rows too, and are waited for once they have reported.
	r.s.AwaitReport(moveLimit, r.transfer.Config, root, 3)
	if p := r.s.Run(r.transfer.Config, "verify", "--wait", "--timeout", "2m"); p.ExitCode() != 0 || !strings.Contains(p.Stdout(), "3 below root") {
		t.Errorf("verify --wait: exit code %d: %s%s", p.ExitCode(), p.Stdout(), p.Stderr())
	}
	first := r.upstream(leaf, left, right)
	harness.Until(t, moveLimit, "leaf names the path above it", func(ctx context.Context) error {
		s, err := leaf.Status(ctx)
		if err == nil && (s.Upstream == nil || !slices.Equal(s.Upstream.Path, []string{first.ID, "root"})) {
			err = harness.NotYet("it follows %+v, want the path %s, root", s.Upstream, first.ID)
		}
		return err
	})
	other := right
	if first == right {
		other = left
	}

	first.Pause()
	r.insert(10)
	r.upstream(leaf, other)
	r.await(moveLimit, leaf, root)
	first.Resume()
	r.await(moveLimit, first, root)

	other.Kill()
	r.insert(10)
	r.upstream(leaf, first)
	r.await(moveLimit, leaf, root)
	other.Start()
	r.await(moveLimit, other, root)

	r.transfer.Stop(moveLimit)
	if p := r.s.Run(r.transfer.Config, "epoch", "new", "--yes"); p.ExitCode() != 0 {
		t.Fatalf("epoch new: exit code %d: %s", p.ExitCode(), p.Stderr())
	}
	r.transfer = r.s.StartTransfer()
	r.insert(10)
	for _, e := range []*harness.Edge{root, left, right, leaf} {
		harness.Until(t, copyLimit, "readers of "+e.ID+" have gone over", func(ctx context.Context) error {
			s, err := e.Status(ctx)
			if err == nil && s.Epoch != 2 {
				err = harness.NotYet("they are at epoch %d index %d, next %+v: %s", s.Epoch, s.Index, s.Next, s.Fault)
			}
			return err
		})
	}
	r.await(moveLimit, leaf, root)
}

// TestCircle: an edge that is told to follow itself is refused by name, and answers on.
func TestCircle(t *testing.T) {
	r := newTree(t)
	root := r.edge("root")
	r.await(copyLimit, root, root)
	e := r.s.NewEdge("lonely")
	e.Upstream = []string{"http://" + e.Address}
	e.WriteConfig()
	e.Start()
	harness.Until(t, moveLimit, "the edge is refused", func(ctx context.Context) error {
		s, err := e.Status(ctx)
		if err == nil && (s.Upstream == nil || !strings.Contains(s.Upstream.Upstreams[0].Problem, "edge lonely would follow itself")) {
			err = harness.NotYet("its status is %+v", s.Upstream)
		}
		return err
	})
}
