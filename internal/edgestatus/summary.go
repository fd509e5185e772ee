package edgestatus

import (
	"cmp"
	"maps"
	"slices"

	"github.com/millrace-db/millrace"
)

// The bounds of a summary, whatever the number of edges.
const (
	maxVersions = 16
	maxEpochs   = 4
	maxBins     = 128
	maxChains   = 16
	maxForks    = 10
	maxTables   = 20
	maxPasses   = 32
	maxWorst    = 20
	maxLast     = 20
	maxName     = 80
	maxWhy      = 200
	maxState    = 20
	maxChain    = 64

	// others stands for names that there was no room for.
	others = "others"
)

// lagBounds are the upper bounds of the lag histogram's classes in seconds; the last
// class has none.
var lagBounds = [...]float64{0.1, 0.5, 1, 2, 5, 10, 30, 60, 300, 1800, 7200, 86400}

// LagBounds returns the upper bounds of the classes of Summary.Lag, in seconds. There
// is one class more, for what is above the last.
func LagBounds() []float64 { return slices.Clone(lagBounds[:]) }

// Summary is what is said of many edges at once. Its size has a bound that does not
// depend on their number; what is cut off is counted. Summaries of parts of a tree add
// up to one of the whole.
type Summary struct {
	// Edges is how many there are, relays included. Silent of them should have reported
	// again and have not, or are below one that has not; Stopped have ended in order.
	Edges   int `json:"edges"`
	Silent  int `json:"silent"`
	Stopped int `json:"stopped"`
	// Gone are edges that followed a relay within the last hour and do so no more. They
	// are not among Edges: they may follow another one.
	Gone int `json:"gone"`
	// Relays of the edges have others below them, at most Levels deep.
	Relays int `json:"relays"`
	Levels int `json:"levels"`
	// States and Versions count edges.
	States   map[string]int `json:"states"`
	Versions map[string]int `json:"versions"`
	// Epochs are what edges hold, the newest first; of more than four, those that
	// most edges hold; the edges of the rest are in OtherEpochs.
	Epochs      []EpochSummary `json:"epochs"`
	OtherEpochs int            `json:"other_epochs,omitempty"`
	// Lag counts edges by how far they were behind when they reported (LagBounds);
	// LagUnknown have nothing yet.
	Lag        []int `json:"lag"`
	LagUnknown int   `json:"lag_unknown"`
	// Room counts edges whose store has little room left.
	Room int `json:"room_alarms"`
	// Different counts edges with rows that are known to differ from the source's,
	// Tables says where; MoreTables is how many there was no room for, at least.
	Different  int            `json:"different"`
	Tables     []TableSummary `json:"tables,omitempty"`
	MoreTables int            `json:"more_tables,omitempty"`
	// Compared counts edges whose chain was held against a history that knows their
	// index: the publisher's, or their relay's. Forked counts those whose chain is another
	// one than that, or than another edge's at the same index.
	Compared int    `json:"compared"`
	Forked   int    `json:"forked"`
	Forks    []Fork `json:"forks,omitempty"`
	// Reporting are the edges of which results of verification are to be expected, Partial
	// those of them that hold less than all of the stream.
	Reporting int `json:"reporting,omitempty"`
	Partial   int `json:"partial,omitempty"`
	// Passes are the newest passes of verification that edges have results of: of 32
	// tables at most, those with the newest.
	Passes []PassSummary `json:"passes,omitempty"`
	// Worst are edges that somebody should look at, the worst first, and Last those
	// that have come least far; each at most twenty.
	Worst []Line `json:"worst,omitempty"`
	Last  []Line `json:"last,omitempty"`
}

// Fork is an edge that has another history than the one it was compared with.
type Fork struct {
	Epoch millrace.Epoch `json:"epoch"`
	Index millrace.Index `json:"index"`
	Edge  string         `json:"edge"`
	Chain string         `json:"chain"`
	// With is who has the other chain: an edge, or the publisher.
	With  string `json:"with"`
	Other string `json:"other_chain"`
}

// TableSummary is a table that differs from the source's at some edges.
type TableSummary struct {
	Table string `json:"table"`
	Edges int    `json:"edges"`
	// Edge is one of them, Reason what it says.
	Edge   string `json:"edge"`
	Reason string `json:"reason"`
}

// Line is an edge by name.
type Line struct {
	Edge       string         `json:"edge"`
	Epoch      millrace.Epoch `json:"epoch"`
	Index      millrace.Index `json:"index"`
	State      string         `json:"state"`
	LagSeconds *float64       `json:"lag_seconds"`
	// Why says what is wrong, if anything.
	Why string `json:"why,omitempty"`
	// rank orders Worst: the higher the worse.
	Rank int `json:"rank,omitempty"`
}

// The ranks of what is wrong with an edge.
const (
	rankForked = 7 - iota
	rankDifferent
	rankFault
	rankRoom
	rankSilent
	rankRetry
	rankBehind
)

// behindLag is how many seconds of lag are worth a look.
const behindLag = 60

// valid tells that a summary which somebody else has made can be added to others.
func (s *Summary) valid() bool {
	numbers := []int{s.Edges, s.Silent, s.Stopped, s.Gone, s.Relays, s.Levels, s.OtherEpochs, s.LagUnknown, s.Room, s.Different, s.MoreTables, s.Forked, s.Compared, s.Reporting, s.Partial}
	numbers = append(numbers, s.Lag...)
	numbers = slices.AppendSeq(slices.AppendSeq(numbers, maps.Values(s.States)), maps.Values(s.Versions))
	for i := range s.Epochs {
		numbers = append(numbers, s.Epochs[i].Edges)
		for _, b := range slices.Concat(s.Epochs[i].Bins, s.Epochs[i].Verified) {
			numbers = append(numbers, b.Edges)
		}
	}
	for i := range s.Tables {
		numbers = append(numbers, s.Tables[i].Edges)
	}
	for i := range s.Passes {
		numbers = append(numbers, s.Passes[i].Edges, s.Passes[i].Partial, s.Passes[i].Different, s.Passes[i].Skipped)
	}
	return !slices.ContainsFunc(numbers, func(n int) bool { return n < 0 || n > maxCount })
}

// clip cuts what somebody else has made down to the bounds of a summary.
func (s *Summary) clip() {
	s.Lag = s.Lag[:min(len(s.Lag), len(lagBounds)+1)]
	s.Forks, s.Tables = s.Forks[:min(len(s.Forks), maxForks)], s.Tables[:min(len(s.Tables), maxTables)]
	s.Worst, s.Last = s.Worst[:min(len(s.Worst), maxWorst)], s.Last[:min(len(s.Last), maxLast)]
	for i := range s.Forks {
		f := &s.Forks[i]
		f.Edge, f.Chain, f.With, f.Other = short(f.Edge, maxName), short(f.Chain, maxChain), short(f.With, maxName), short(f.Other, maxChain)
	}
	for i := range s.Tables {
		t := &s.Tables[i]
		t.Table, t.Edge, t.Reason = short(t.Table, maxName), short(t.Edge, maxName), short(t.Reason, maxWhy)
	}
	s.Passes = s.Passes[:min(len(s.Passes), maxPasses)]
	for i := range s.Passes {
		s.Passes[i].Table = short(s.Passes[i].Table, maxName)
	}
	for _, lines := range [][]Line{s.Worst, s.Last} {
		for i := range lines {
			l := &lines[i]
			l.Edge, l.State, l.Why = short(l.Edge, maxName), short(l.State, maxState), short(l.Why, maxWhy)
		}
	}
	s.Epochs = s.Epochs[:min(len(s.Epochs), maxEpochs)]
	for i := range s.Epochs {
		e := &s.Epochs[i]
		e.Bins, e.Verified, e.Chains = bins(e.Bins, maxBins), bins(e.Verified, maxBins), e.Chains[:min(len(e.Chains), maxChains)]
		for j := range e.Chains {
			c := &e.Chains[j]
			c.Chain, c.Edge = short(c.Chain, maxChain), short(c.Edge, maxName)
		}
	}
}

// maxCount keeps sums from running over.
const maxCount = 1 << 32

// newSummary is of no edge.
func newSummary() *Summary {
	return &Summary{States: map[string]int{}, Versions: map[string]int{}, Epochs: []EpochSummary{}, Lag: make([]int, len(lagBounds)+1)}
}

// chainOf tells the chain that a history has at an index, if it is known there, and
// whose history it is.
type chainOf func(epoch millrace.Epoch, index millrace.Index) (chain, whose string, ok bool)

// add counts an edge by its report, and what it says of those below it.
func (s *Summary) add(e *Edge, known chainOf) {
	s.Edges++
	count(s.States, e.State, 1, maxVersions)
	count(s.Versions, e.Version, 1, maxVersions)
	if e.LagSeconds == nil {
		s.LagUnknown++
	} else {
		i, _ := slices.BinarySearch(lagBounds[:], *e.LagSeconds)
		s.Lag[i]++
	}
	fork := s.compare(e, known)
	one := EpochSummary{Epoch: e.Epoch, Edges: 1, Lowest: e.Index, Highest: e.Index, Bins: []Bin{{e.Index, 1}}}
	if e.Chain != "" && fork == nil { // others are not compared with a chain that is wrong
		one.Chains = []ChainAt{{e.Index, short(e.Chain, maxChain), short(e.Edge, maxName)}}
	}
	line := Line{Edge: short(e.Edge, maxName), Epoch: e.Epoch, Index: e.Index, State: short(e.State, maxState), LagSeconds: e.LagSeconds}
	line.Rank, line.Why = trouble(e, fork)
	if e.Silent {
		s.Silent++
	}
	if e.State == StateStopped {
		s.Stopped++
	}
	if e.Space != nil && e.Space.Alarm != "" {
		s.Room++
	}
	if e.Differs() {
		s.Different++
		s.tables(tablesOf(&e.Report))
	}
	if e.Reports() {
		s.Reporting++
		if len(e.Holds) > 0 {
			s.Partial++
		}
		one.Verified = []Bin{{e.comparedTo(), 1}}
		s.passes(passesOf(&e.Report))
	}
	s.epochs([]EpochSummary{one})
	if line.Rank > 0 {
		s.worst([]Line{line})
	}
	s.last([]Line{line})
	if e.Below != nil {
		s.Relays++
		s.Levels = max(s.Levels, 1)
		below := e.Below
		if e.Silent {
			below = below.unreported()
		}
		s.merge(below, 1)
		if e.Silent {
			s.Silent += e.Below.Edges - e.Below.Silent
		}
	}
}

// finish brings it into its last form.
func (s *Summary) finish() *Summary {
	for i := range s.Epochs {
		s.Epochs[i].Bins, s.Epochs[i].Verified = bins(s.Epochs[i].Bins, maxBins), bins(s.Epochs[i].Verified, maxBins)
	}
	return s
}

// trouble is what is worst about an edge.
func trouble(e *Edge, fork *Fork) (rank int, why string) {
	switch {
	case fork != nil:
		return rankForked, "chain " + shortChain(fork.Chain) + " where " + fork.With + " has " + shortChain(fork.Other)
	case e.Differs():
		return rankDifferent, "rows differ from the source's"
	case e.State == StateFault:
		return rankFault, short(e.Error, maxWhy)
	case e.Space != nil && e.Space.Alarm != "":
		return rankRoom, short(e.Space.Alarm, maxWhy)
	case e.Silent:
		return rankSilent, "does not report"
	case e.State == StateRetry:
		return rankRetry, short(e.Error, maxWhy)
	case e.State != StateStopped && e.LagSeconds != nil && *e.LagSeconds >= behindLag:
		return rankBehind, "is behind"
	}
	return 0, ""
}

// WorstFirst sorts edges: those first that somebody should look at.
func WorstFirst(edges []Edge) {
	slices.SortStableFunc(edges, func(a, b Edge) int {
		x, _ := trouble(&a, nil)
		y, _ := trouble(&b, nil)
		return cmp.Or(cmp.Compare(y, x), cmp.Compare(a.Epoch, b.Epoch), cmp.Compare(a.Index, b.Index), cmp.Compare(a.Edge, b.Edge))
	})
}

func shortChain(chain string) string { return chain[:min(len(chain), 12)] }

// compare holds an edge's chain against a history that is known.
func (s *Summary) compare(e *Edge, known chainOf) *Fork {
	if known == nil || e.Chain == "" {
		return nil
	}
	chain, whose, ok := known(e.Epoch, e.Index)
	if !ok {
		return nil
	}
	s.Compared++
	if chain == e.Chain {
		return nil
	}
	f := Fork{Epoch: e.Epoch, Index: e.Index, Edge: short(e.Edge, maxName), Chain: short(e.Chain, maxChain), With: short(whose, maxName), Other: chain}
	s.Forked++
	s.forks([]Fork{f})
	return &f
}

// merge adds a summary of edges that are levels below.
func (s *Summary) merge(o *Summary, levels int) {
	s.Edges += o.Edges
	s.Silent += o.Silent
	s.Stopped += o.Stopped
	s.Gone += o.Gone
	s.Relays += o.Relays
	s.Levels = max(s.Levels, o.Levels+levels)
	for state, n := range o.States {
		count(s.States, state, n, maxVersions)
	}
	for _, version := range slices.Sorted(maps.Keys(o.Versions)) {
		count(s.Versions, version, o.Versions[version], maxVersions)
	}
	for i, n := range o.Lag {
		s.Lag[min(i, len(s.Lag)-1)] += n
	}
	s.LagUnknown += o.LagUnknown
	s.Room += o.Room
	s.Different += o.Different
	s.OtherEpochs += o.OtherEpochs
	s.MoreTables += o.MoreTables
	s.Forked += o.Forked
	s.Compared += o.Compared
	s.Reporting += o.Reporting
	s.Partial += o.Partial
	s.passes(o.Passes)
	s.forks(o.Forks)
	s.tables(o.Tables)
	s.epochs(o.Epochs)
	s.worst(o.Worst)
	s.last(o.Last)
}

// count adds to a counter, or to that of others where there is no room.
func count(m map[string]int, name string, n, most int) {
	name = short(name, maxName)
	if _, ok := m[name]; !ok && len(m) >= most {
		name = others
	}
	m[name] += n
}

func (s *Summary) forks(more []Fork) {
	s.Forks = append(s.Forks, more...)
	s.Forks = s.Forks[:min(len(s.Forks), maxForks)]
}

// tablesOf are the tables of a report that differ.
func tablesOf(r *Report) []TableSummary {
	all := r.tables
	add := func(table, reason string) {
		if !slices.ContainsFunc(all, func(t TableSummary) bool { return t.Table == table }) {
			all = append(slices.Clip(all), TableSummary{Table: short(table, maxName), Edges: 1, Edge: short(r.Edge, maxName), Reason: short(reason, maxWhy)})
		}
	}
	for _, d := range r.Diverged {
		add(d.Table, d.Reason)
	}
	for i := range r.Verify {
		if v := &r.Verify[i]; len(v.Differences) > 0 {
			add(v.Table, v.Differences[0].Reason)
		}
	}
	return all
}

func (s *Summary) tables(more []TableSummary) {
	for _, t := range more {
		i := slices.IndexFunc(s.Tables, func(o TableSummary) bool { return o.Table == t.Table })
		switch {
		case i >= 0:
			s.Tables[i].Edges += t.Edges
		case len(s.Tables) < maxTables:
			s.Tables = append(s.Tables, t)
		default:
			s.MoreTables++
		}
	}
}

// worst keeps the worst lines: by rank, then by index.
func (s *Summary) worst(more []Line) {
	s.Worst = keep(append(s.Worst, more...), maxWorst, func(a, b Line) int {
		return cmp.Or(cmp.Compare(b.Rank, a.Rank), cmp.Compare(a.Epoch, b.Epoch), cmp.Compare(a.Index, b.Index), cmp.Compare(a.Edge, b.Edge))
	})
}

// last keeps the lines with the lowest places.
func (s *Summary) last(more []Line) {
	s.Last = keep(append(s.Last, more...), maxLast, func(a, b Line) int {
		return cmp.Or(cmp.Compare(a.Epoch, b.Epoch), cmp.Compare(a.Index, b.Index), cmp.Compare(a.Edge, b.Edge))
	})
}

// keep returns the first n in an order.
func keep[T any](all []T, n int, order func(a, b T) int) []T {
	if len(all) <= 1 {
		return all
	}
	slices.SortStableFunc(all, order)
	return all[:min(len(all), n)]
}
