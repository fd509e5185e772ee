package edgestatus

import (
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/millrace-db/millrace"
)

const (
	// maxChildren bounds what a collector holds: a relay has far fewer.
	maxChildren = 4096
	// goneAfter is how long an edge that follows a relay no more is counted as gone.
	goneAfter = time.Hour
)

// Collector takes the reports of the edges that follow a relay, and sums them up for
// the relay's own report. It holds the newest of each. It is safe for concurrent use.
type Collector struct {
	// History tells the chain that this edge has, or had, at an index; nil if it cannot
	// say.
	History func(epoch millrace.Epoch, index millrace.Index) (chain string, ok bool)
	// StreamID, if set, tells the stream's: reports of another are passed over.
	StreamID func() string

	mu       sync.Mutex
	children map[string]seen
	gone     map[string]time.Time
	ignored  uint64
}

// Take takes in the report of a child, by its node's name. What is no report of that
// node is counted and otherwise passed over.
func (c *Collector) Take(node string, payload []byte) { c.take(node, payload, time.Now()) }

func (c *Collector) take(node string, payload []byte, now time.Time) {
	r, err := Decode([]byte(node), payload)
	c.mu.Lock()
	defer c.mu.Unlock()
	_, known := c.children[node]
	if err != nil || !known && len(c.children) >= maxChildren || c.foreign(r) {
		c.ignored++
		return
	}
	if c.children == nil {
		c.children, c.gone = map[string]seen{}, map[string]time.Time{}
	}
	r.slim()
	c.children[node] = seen{r, now}
	delete(c.gone, node)
}

func (c *Collector) foreign(r *Report) bool {
	if c.StreamID == nil || r.StreamID == "" {
		return false
	}
	id := c.StreamID()
	return id != "" && id != r.StreamID
}

// Ignored is how many payloads were no reports.
func (c *Collector) Ignored() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ignored
}

// Below sums up the edges below this one; nil if there are none. connected tells
// whether a node follows this one now: another one whose report is old follows somebody
// else, or nobody.
func (c *Collector) Below(connected func(node string) bool) *Summary {
	return c.below(connected, time.Now())
}

func (c *Collector) below(connected func(node string) bool, now time.Time) *Summary {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := newSummary()
	for node, at := range c.gone {
		if now.Sub(at) > goneAfter {
			delete(c.gone, node)
		}
	}
	for _, node := range slices.Sorted(maps.Keys(c.children)) {
		child := c.children[node]
		e := edgeOf(child, now)
		here := connected == nil || connected(node)
		if !here && (e.Silent || e.State == StateStopped) {
			delete(c.children, node)
			if e.State != StateStopped {
				c.gone[node] = child.at
			}
			continue
		}
		s.add(&e, c.known)
	}
	s.Gone += len(c.gone)
	if s.Edges == 0 && s.Gone == 0 {
		return nil
	}
	return s.finish()
}

func (c *Collector) known(epoch millrace.Epoch, index millrace.Index) (chain, whose string, ok bool) {
	if c.History == nil {
		return "", "", false
	}
	chain, ok = c.History(epoch, index)
	return chain, "its relay", ok
}

// longestInterval is the longest in seconds that an edge can be configured to have
// between two reports: one that claims a longer one would never be silent, and its place
// never free.
const longestInterval = 3600

// edgeOf judges how old a report is.
func edgeOf(s seen, now time.Time) Edge {
	at := s.at
	if at.IsZero() {
		at = s.report.ReportedAt
	}
	e := Edge{Report: *s.report, AgeSeconds: max(0, now.Sub(at).Seconds())}
	e.Silent = e.State != StateStopped && e.AgeSeconds > silentAfter*min(max(e.Interval, 1), longestInterval)
	return e
}
