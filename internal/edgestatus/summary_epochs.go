package edgestatus

import (
	"cmp"
	"math"
	"slices"

	"github.com/millrace-db/millrace"
)

// EpochSummary is of the edges that hold one epoch.
type EpochSummary struct {
	Epoch   millrace.Epoch `json:"epoch"`
	Edges   int            `json:"edges"`
	Lowest  millrace.Index `json:"lowest"`
	Highest millrace.Index `json:"highest"`
	// Bins say how far edges are: each stands for a number of edges that are at its
	// index or after it, so what is counted from them is never too much. Their indexes
	// ascend.
	Bins []Bin `json:"bins"`
	// Verified say so of the edges that report results, by the index up to which all that
	// was to be compared there has been.
	Verified []Bin `json:"verified,omitempty"`
	// Chains are those at the highest indexes.
	Chains []ChainAt `json:"chains,omitempty"`
}

// Bin is a number of edges that have come to an index.
type Bin struct {
	Index millrace.Index `json:"index"`
	Edges int            `json:"edges"`
}

// ChainAt is the chain that an edge, and perhaps others, have at an index.
type ChainAt struct {
	Index millrace.Index `json:"index"`
	Chain string         `json:"chain"`
	Edge  string         `json:"edge"`
}

// epochs adds up what is said of epochs.
func (s *Summary) epochs(more []EpochSummary) {
	for i := range more {
		m := &more[i]
		at := slices.IndexFunc(s.Epochs, func(o EpochSummary) bool { return o.Epoch == m.Epoch })
		if at < 0 {
			s.Epochs = append(s.Epochs, EpochSummary{Epoch: m.Epoch, Lowest: millrace.Index(math.MaxUint64)})
			at = len(s.Epochs) - 1
		}
		e := &s.Epochs[at]
		e.Edges += m.Edges
		e.Lowest, e.Highest = min(e.Lowest, m.Lowest), max(e.Highest, m.Highest)
		if e.Bins = append(e.Bins, m.Bins...); len(e.Bins) > 8*maxBins {
			e.Bins = bins(e.Bins, maxBins)
		}
		if e.Verified = append(e.Verified, m.Verified...); len(e.Verified) > 8*maxBins {
			e.Verified = bins(e.Verified, maxBins)
		}
		s.chains(e, m.Chains)
	}
	// Whatever one edge says, the epochs that most hold stay.
	slices.SortFunc(s.Epochs, func(a, b EpochSummary) int {
		return cmp.Or(cmp.Compare(b.Edges, a.Edges), cmp.Compare(b.Epoch, a.Epoch))
	})
	for len(s.Epochs) > maxEpochs {
		s.OtherEpochs += s.Epochs[len(s.Epochs)-1].Edges
		s.Epochs = s.Epochs[:len(s.Epochs)-1]
	}
	slices.SortFunc(s.Epochs, func(a, b EpochSummary) int { return cmp.Compare(b.Epoch, a.Epoch) })
}

// bins puts equal indexes together and, where there are more than most, neighbours of
// which there are few. What is told from them is short of a part 2/most of the edges at
// most, and of none where all are on one side.
func bins(all []Bin, most int) []Bin {
	slices.SortFunc(all, func(a, b Bin) int { return cmp.Compare(a.Index, b.Index) })
	total := 0
	few := all[:0]
	for _, b := range all {
		total += b.Edges
		if n := len(few); n > 0 && few[n-1].Index == b.Index {
			few[n-1].Edges += b.Edges
			continue
		}
		few = append(few, b)
	}
	if len(few) <= most {
		return few
	}
	limit := (2*total + most - 1) / most
	fewer := few[:1]
	for _, b := range few[1:] {
		if last := &fewer[len(fewer)-1]; last.Edges+b.Edges <= limit {
			last.Edges += b.Edges
		} else {
			fewer = append(fewer, b)
		}
	}
	return fewer
}

// chains compares edges at the same index with each other, and keeps those of the
// highest indexes.
func (s *Summary) chains(e *EpochSummary, more []ChainAt) {
	for _, c := range more {
		i := slices.IndexFunc(e.Chains, func(o ChainAt) bool { return o.Index == c.Index })
		switch {
		case i < 0:
			e.Chains = append(e.Chains, c)
		case e.Chains[i].Chain != c.Chain:
			s.Forked++
			s.forks([]Fork{{Epoch: e.Epoch, Index: c.Index, Edge: c.Edge, Chain: c.Chain, With: "edge " + e.Chains[i].Edge, Other: e.Chains[i].Chain}})
		}
	}
	e.Chains = keep(e.Chains, maxChains, func(a, b ChainAt) int { return cmp.Compare(b.Index, a.Index) })
}

// Reached returns how many edges hold at least index of an epoch, or a later epoch. It
// is never too many; where indexes lie close together it may be too few, until all of
// them are past it.
func (s *Summary) Reached(epoch millrace.Epoch, index millrace.Index) (n int) {
	for i := range s.Epochs {
		e := &s.Epochs[i]
		switch {
		case e.Epoch > epoch:
			n += e.Edges
		case e.Epoch == epoch:
			for _, b := range e.Bins {
				if b.Index >= index {
					n += b.Edges
				}
			}
		}
	}
	return n
}

// Lowest returns the lowest index of the edges that hold an epoch; ok is false if none
// does.
func (s *Summary) Lowest(epoch millrace.Epoch) (index millrace.Index, ok bool) {
	for i := range s.Epochs {
		if s.Epochs[i].Epoch == epoch {
			return s.Epochs[i].Lowest, true
		}
	}
	return 0, false
}

// Behind returns how many edges hold an older epoch, or none.
func (s *Summary) Behind(epoch millrace.Epoch) (n int) {
	n = s.OtherEpochs
	for i := range s.Epochs {
		if s.Epochs[i].Epoch < epoch {
			n += s.Epochs[i].Edges
		}
	}
	return n
}
