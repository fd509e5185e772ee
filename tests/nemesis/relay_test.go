package nemesis

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/millrace-db/millrace/tests/harness"
)

func (r *run) addEdge() {
	e := r.s.NewEdge(fmt.Sprintf("edge-%d", len(r.edges)+1))
	e.More = r.edgeKeys(e, r.trimmed) // it reads the topic from its start, where that is there
	e.WriteConfig()
	e.Start()
	r.edges = append(r.edges, e)
}

// addLeaf adds an edge that follows the others.
func (r *run) addLeaf() {
	e := r.s.NewEdge("leaf")
	for _, o := range r.edges {
		e.Upstream = append(e.Upstream, "http://"+o.Address)
	}
	e.More = r.edgeKeys(e, false)
	e.WriteConfig()
	e.Start()
	r.edges, r.leaf = append(r.edges, e), e
}

// edgeKeys are the other keys of an edge's configuration. Images are taken by those alone
// that need them: the others are to read the topic.
func (r *run) edgeKeys(e *harness.Edge, images bool) string {
	text := "  report: 1s\n"
	if e.Upstream != nil {
		text += "  follow: {silence: 2s}\n"
	}
	text += fmt.Sprintf("  images: {dir: %q", filepath.Join(r.s.Dir, e.ID+"-images"))
	if images && e.Upstream == nil {
		var from []string
		for _, o := range r.edges {
			if o != e {
				from = append(from, fmt.Sprintf("%q", "http://"+o.Address))
			}
		}
		text += fmt.Sprintf(", from: [%s]", strings.Join(from, ", "))
	}
	return text + "}\n"
}

// relayed kills or hangs a relay, twice in a walk each at most.
func (w *walker) relayed(what string) bool {
	if w.faults[what] == 2 {
		return false
	}
	w.readable()
	return w.fault(what, 2)
}

// relay kills the edge that the leaf follows, or stops it for a while: what is committed
// then comes by way of the other one. The leaf, which follows edges alone, begins with the
// first of these steps.
func (r *run) relay(hang bool) error {
	if r.leaf == nil {
		if len(r.edges) == 1 {
			r.addEdge()
		}
		r.addLeaf()
	}
	if err := r.settle(false); err != nil {
		return err
	}
	var relay *harness.Edge
	err := harness.Wait(r.t.Context(), r.limit, func(ctx context.Context) error {
		s, err := r.leaf.Status(ctx)
		if err != nil {
			return err
		}
		for _, e := range r.edges {
			if s.Upstream != nil && s.Upstream.Node == e.ID {
				relay = e
				return nil
			}
		}
		return harness.NotYet("%s follows %+v", r.leaf.ID, s.Upstream)
	})
	if err != nil {
		return err
	}
	all := slices.Clone(r.edges)
	r.edges = slices.DeleteFunc(slices.Clone(all), func(e *harness.Edge) bool { return e == relay })
	if hang {
		relay.Pause()
	} else {
		relay.Kill()
	}
	err = r.settle(false)
	if hang {
		relay.Resume()
	} else {
		relay.Start()
	}
	r.edges = all
	if err != nil {
		return fmt.Errorf("while the relay %s of %s is away: %w", relay.ID, r.leaf.ID, err)
	}
	r.counts["relay left"]++
	return r.settle(false)
}
