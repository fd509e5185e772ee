package edgestatus

import (
	"cmp"
	"math"
	"slices"

	"github.com/millrace-db/millrace"
)

// PassSummary is what edges have found in one pass of verification over a table. An edge
// whose newest pass is an older one is not in it; of one that holds some keys alone it has
// whether they differ.
type PassSummary struct {
	Table string `json:"table"`
	ID    uint64 `json:"id"`
	// Edges hold the whole table and have results of the pass, Partial of them less than all
	// of the stream. At Different some range differs, Skipped have passed over one. Equal is
	// how many ranges are equal at each of Edges, at least.
	Edges     int    `json:"edges"`
	Partial   int    `json:"partial,omitempty"`
	Different int    `json:"different,omitempty"`
	Skipped   int    `json:"skipped,omitempty"`
	Equal     uint64 `json:"equal"`
}

// Reports tells whether results of verification are to be expected of an edge.
func (e *Edge) Reports() bool {
	return !e.Silent && e.State != StateStopped && e.State != StateFault
}

// comparedTo is the index up to which all is compared that was to be.
func (r *Report) comparedTo() millrace.Index {
	if r.Verifying == 0 {
		return r.Index
	}
	return min(r.Index, r.Verifying-1)
}

// passesOf are the passes of a report.
func passesOf(r *Report) []PassSummary {
	all := r.passes
	for i := range r.Verify {
		v := &r.Verify[i]
		p := PassSummary{Table: short(v.Table, maxName), ID: v.Pass.ID, Equal: math.MaxUint64}
		if v.Pass.Different > 0 {
			p.Different = 1
		}
		held, any := r.Held(v.Table)
		switch {
		case v.Pass.ID == 0 || !any:
			continue
		case held.Prefixes > 0 && p.Different == 0:
			continue // most ranges have other keys, too
		case held.Prefixes == 0:
			p.Edges, p.Equal = 1, v.Pass.Equal
			if len(r.Holds) > 0 {
				p.Partial = 1
			}
			if v.Pass.Skipped > 0 {
				p.Skipped = 1
			}
		}
		all = append(slices.Clip(all), p)
	}
	return all
}

// passes adds up what was found. Of each table the newest pass stays.
func (s *Summary) passes(more []PassSummary) {
	for _, p := range more {
		i := slices.IndexFunc(s.Passes, func(o PassSummary) bool { return o.Table == p.Table })
		switch {
		case i < 0:
			s.Passes = append(s.Passes, p)
		case s.Passes[i].ID < p.ID:
			s.Passes[i] = p
		case s.Passes[i].ID == p.ID:
			o := &s.Passes[i]
			o.Edges, o.Partial, o.Equal = o.Edges+p.Edges, o.Partial+p.Partial, min(o.Equal, p.Equal)
			o.Different, o.Skipped = o.Different+p.Different, o.Skipped+p.Skipped
		}
	}
	s.Passes = keep(s.Passes, maxPasses, func(a, b PassSummary) int {
		return cmp.Or(cmp.Compare(b.ID, a.ID), cmp.Compare(a.Table, b.Table))
	})
}

// unreported is a summary whose relay reports no more: nothing is to be expected of those
// below it.
func (s *Summary) unreported() *Summary {
	o := *s
	o.Reporting, o.Partial, o.Passes, o.Epochs = 0, 0, nil, slices.Clone(s.Epochs)
	for i := range o.Epochs {
		o.Epochs[i].Verified = nil
	}
	return &o
}

// Verified returns how many of the edges that report results hold an epoch and have
// compared all that was to be up to an index. Like Reached, it is never too many.
func (s *Summary) Verified(epoch millrace.Epoch, index millrace.Index) (n int) {
	for i := range s.Epochs {
		if s.Epochs[i].Epoch != epoch {
			continue
		}
		for _, b := range s.Epochs[i].Verified {
			if b.Index >= index {
				n += b.Edges
			}
		}
	}
	return n
}

// Pass returns what was found in the newest pass over a table; false if nothing was.
func (s *Summary) Pass(table string) (PassSummary, bool) {
	i := slices.IndexFunc(s.Passes, func(p PassSummary) bool { return p.Table == short(table, maxName) })
	if i < 0 {
		return PassSummary{}, false
	}
	return s.Passes[i], true
}
