package edgestatus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/topic"
)

// Edge is the newest report of an edge, with what its reader makes of it.
type Edge struct {
	Report
	// AgeSeconds is how long ago the report came, by the brokers' clock.
	AgeSeconds float64 `json:"age_seconds"`
	// Silent tells that the edge should have reported again and has not. An
	// edge that has stopped is not.
	Silent bool `json:"silent"`
}

// silentAfter is how many intervals may pass without a report.
const silentAfter = 3

// maxEdges bounds what a reader holds.
const maxEdges = 100_000

type seen struct {
	report *Report
	at     time.Time
}

// Fleet is the newest report of each edge of a stream.
type Fleet struct {
	// StreamID, if set, is the stream's: reports of another are ignored.
	StreamID string
	edges    map[string]seen
	// slim tells to keep the numbers alone: of 100,000 edges the rest would be
	// too much.
	slim bool
	// Ignored counts records that are no reports of this format.
	Ignored int
}

// Take takes in a record of the topic: records come in their order.
func (f *Fleet) Take(m topic.Message) {
	if len(m.Value) == 0 {
		delete(f.edges, string(m.Key)) // removed by somebody
		return
	}
	r, err := Decode(m.Key, m.Value)
	_, known := f.edges[string(m.Key)]
	if err != nil || !known && len(f.edges) >= maxEdges || f.StreamID != "" && r.StreamID != "" && r.StreamID != f.StreamID {
		f.Ignored++
		return
	}
	if f.edges == nil {
		f.edges = make(map[string]seen)
	}
	if f.slim {
		r.slim()
	}
	f.edges[r.Edge] = seen{r, m.Time}
}

// slim leaves the numbers, and of what differs what a summary says.
func (r *Report) slim() {
	r.differs, r.tables, r.passes = r.Differs(), tablesOf(r), passesOf(r)
	r.Verify, r.Diverged, r.Log, r.Error = nil, nil, nil, short(r.Error, maxWhy)
}

// Edges returns the edges in the order of their names.
func (f *Fleet) Edges(now time.Time) []Edge {
	all := make([]Edge, 0, len(f.edges))
	for _, name := range slices.Sorted(maps.Keys(f.edges)) {
		all = append(all, edgeOf(f.edges[name], now))
	}
	return all
}

// Summary sums all edges up, those below relays included. history is the publisher's,
// nil if it is not known.
func (f *Fleet) Summary(now time.Time, history *History) *Summary {
	return Summarise(f.Edges(now), history)
}

// Summarise sums edges up, and those below them.
func Summarise(edges []Edge, history *History) *Summary {
	s := newSummary()
	var known chainOf
	if history != nil {
		known = func(epoch millrace.Epoch, index millrace.Index) (chain, whose string, ok bool) {
			chain, ok = history.At(epoch, index)
			return chain, "the publisher", ok
		}
	}
	for i := range edges {
		s.add(&edges[i], known)
	}
	return s.finish()
}

// Lowest returns the lowest index of all edges that hold the epoch, silent and
// stopped ones and those below relays included: each of them will want what comes
// after it. ok is false if there is none.
func (f *Fleet) Lowest(epoch millrace.Epoch) (index millrace.Index, ok bool) {
	take := func(i millrace.Index) {
		if !ok || i < index {
			index, ok = i, true
		}
	}
	for _, s := range f.edges {
		if s.report.Epoch == epoch {
			take(s.report.Index)
		}
		if below := s.report.Below; below != nil {
			if lowest, some := below.Lowest(epoch); some {
				take(lowest)
			}
		}
	}
	return index, ok
}

// Read reads all reports about a stream, or about any if streamID is empty, that
// are in the topic now. It gives topic.ErrNoTopic if there is none.
func Read(ctx context.Context, t *topic.Topic, streamID string) (*Fleet, error) {
	info, err := t.Info(ctx)
	if err != nil {
		return nil, err
	}
	f := &Fleet{StreamID: streamID}
	if info.Start >= info.End {
		return f, nil
	}
	r, err := t.Read(ctx, info.Start)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return f, f.takeUntil(ctx, r, info.End)
}

func (f *Fleet) takeUntil(ctx context.Context, r *topic.Reader, end millrace.Offset) error {
	for {
		m, err := r.Until(ctx, end)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read reports of edges: %w", err)
		}
		f.Take(m)
	}
}
