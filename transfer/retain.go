package transfer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/control"
)

// Retain says which records of the topic may go. They go up to a state record, so that
// the topic begins where a reader may begin, and only as long as nobody is known to
// need them.
type Retain struct {
	// Time is how old records may grow, by the time at which the state record behind
	// them was written; Bytes how many bytes of records, as they are in the topic, are
	// kept at least. What one of the two lets go goes. 0: that one lets nothing go.
	Time  time.Duration
	Bytes int64
	// Absent is how long an edge that has stopped, or does not report, holds back what
	// it still needs. 0: until it is forgotten.
	Absent time.Duration
	// Least is how young a state record may not be to become the topic's start: who
	// reads the ledger while it is written, or has one that lags, finds what he needs.
	// Default: 10 min.
	Least time.Duration
	// Every is how often the topic is looked at. Default: 1 min.
	Every time.Duration
	// Readers returns what the edges have reported of themselves, with all that had been
	// reported when it was called. Without it nothing is trimmed.
	Readers func(ctx context.Context) ([]Reader, error)
}

// Reader is an edge, or several of which the last is meant, that reads the topic.
type Reader struct {
	Name  string
	Epoch millrace.Epoch
	// Index is the last one that it has; 0 if it has nothing of the epoch yet.
	Index millrace.Index
	// Absent is how long ago it reported, where it has stopped or should have reported
	// again; 0 of one that reports.
	Absent time.Duration
}

func (r *Retain) on() bool { return r.Time > 0 || r.Bytes > 0 }

func (r *Retain) complete() error {
	setDefault(&r.Least, 10*time.Minute)
	setDefault(&r.Every, time.Minute)
	if r.Time < 0 || r.Bytes < 0 || r.Absent < 0 {
		return fmt.Errorf("configure transfer: retention of %v, %d bytes, %v for absent edges: want 0 or more", r.Time, r.Bytes, r.Absent)
	}
	if r.on() && r.Readers == nil {
		return errors.New("configure transfer: records may go, and nobody says what edges need")
	}
	return nil
}

// maxHolders is how many edges a plan names.
const maxHolders = 20

// Trim is what may go of a topic, and why not more.
type Trim struct {
	Stream string         `json:"stream"`
	Epoch  millrace.Epoch `json:"epoch"`
	Topic  string         `json:"topic"`
	// Start is the offset of the topic's first record, StartIndex the index that it
	// begins behind; End is the offset of the record to come.
	Start      millrace.Offset `json:"start_offset"`
	StartIndex millrace.Index  `json:"start_index"`
	End        millrace.Offset `json:"end_offset"`
	// Retain is what may go, as configured; both 0 keep all.
	RetainSeconds float64 `json:"retain_seconds"`
	RetainBytes   int64   `json:"retain_bytes"`
	// Wanted is where the topic would begin if only time and bytes counted, To where it
	// may; both are Start where nothing goes.
	Wanted      millrace.Offset `json:"wanted_offset"`
	WantedIndex millrace.Index  `json:"wanted_index"`
	To          millrace.Offset `json:"to_offset"`
	ToIndex     millrace.Index  `json:"to_index"`
	// Bytes are those of the records that go, as far as they were counted, Seconds the
	// least age of them.
	Bytes   uint64  `json:"bytes"`
	Seconds float64 `json:"age_seconds"`
	// Holders are edges that still need what would go, those that are furthest behind
	// first; More is how many there are besides.
	Holders []Holder `json:"held_by"`
	More    int      `json:"held_by_more,omitempty"`
	// Passed are edges that nothing is kept for: absent for too long, or too far behind
	// for what is there.
	Passed int  `json:"passed_over"`
	Forced bool `json:"forced,omitempty"`
	// Why says why nothing goes, where that is neither age nor an edge.
	Why string `json:"why,omitempty"`
	// Done tells that the records before To were deleted, At when.
	Done bool       `json:"done"`
	At   *time.Time `json:"at,omitempty"`
}

// Holder is an edge that needs what would go.
type Holder struct {
	Edge  string         `json:"edge"`
	Epoch millrace.Epoch `json:"epoch"`
	Index millrace.Index `json:"index"`
	// AbsentSeconds is how long ago it reported, 0 if it reports.
	AbsentSeconds float64 `json:"absent_seconds"`
}

// goes reports whether there is something to delete.
func (t *Trim) goes() bool { return t.To > t.Start }

// held reports whether edges keep what time and bytes would let go.
func (t *Trim) held() bool { return t.To < t.Wanted }

// grounds are what a plan is made from.
type grounds struct {
	retain *Retain
	epoch  millrace.Epoch
	// newest is the state record that the ledger attests.
	newest millrace.Offset
	marks  []control.Mark
	// total is how many bytes were counted up to the topic's end.
	total   uint64
	readers []Reader
	forced  bool
	planted planted
}

// plan decides where the topic may begin. t has what is known of the topic.
func (t *Trim) plan(g *grounds) {
	t.RetainSeconds, t.RetainBytes, t.Forced = g.retain.Time.Seconds(), g.retain.Bytes, g.forced
	t.Wanted, t.WantedIndex, t.To, t.ToIndex, t.Holders = t.Start, t.StartIndex, t.Start, t.StartIndex, []Holder{}
	if !g.retain.on() {
		t.Why = "kafka.retain keeps all records"
		return
	}
	var places []control.Mark // where it may begin if only time and bytes counted
	for _, m := range g.marks {
		old := g.retain.Time > 0 && m.Age >= g.retain.Time
		many := g.retain.Bytes > 0 && g.total >= m.Bytes && g.total-m.Bytes >= uint64(g.retain.Bytes)
		// What a restarted transfer begins at is never before the topic's start, nor is
		// what one would that sees the ledger as it was a while ago.
		// Behind index 0 there is nothing to begin without, and a reader there would be a new one.
		if m.Index > 0 && m.Offset > t.Start && m.Offset <= g.newest && m.Age >= g.retain.Least && (old || many) {
			places = append(places, m)
		}
	}
	if len(places) == 0 {
		return
	}
	wanted := places[len(places)-1]
	t.Wanted, t.WantedIndex = wanted.Offset, wanted.Index
	needed, some := t.hold(g, wanted.Index)
	for _, m := range places {
		// An edge that is at the mark's own index may have its place before the state
		// record, so it has to be further.
		if some && m.Index >= needed && !g.planted.trimsPastEdges() {
			break
		}
		t.To, t.ToIndex, t.Seconds = m.Offset, m.Index, m.Age.Seconds()
		t.Bytes = m.Bytes - min(m.Bytes, t.startBytes(g.marks))
	}
	if !t.goes() {
		t.Bytes, t.Seconds = 0, 0
	}
}

// startBytes is what was counted before the topic's start.
func (t *Trim) startBytes(marks []control.Mark) (n uint64) {
	for _, m := range marks {
		if m.Offset <= t.Start {
			n = m.Bytes
		}
	}
	return n
}

// hold finds the edges that need what is before wanted, and the least index of them.
func (t *Trim) hold(g *grounds, wanted millrace.Index) (needed millrace.Index, some bool) {
	if g.forced {
		return 0, false
	}
	var all []Holder
	for _, r := range g.readers {
		index := r.Index
		if r.Epoch != g.epoch {
			index = 0 // it will want all of this one
		}
		switch {
		case index > wanted:
			continue
		case g.retain.Absent > 0 && r.Absent > g.retain.Absent, t.Start > 0 && index < t.StartIndex:
			// The topic is of no use any more to one that is behind its start.
			t.Passed++
			continue
		}
		all = append(all, Holder{Edge: r.Name, Epoch: r.Epoch, Index: index, AbsentSeconds: r.Absent.Seconds()})
	}
	if len(all) == 0 {
		return 0, false
	}
	slices.SortFunc(all, func(a, b Holder) int { return cmp.Or(cmp.Compare(a.Index, b.Index), cmp.Compare(a.Edge, b.Edge)) })
	needed = all[0].Index
	t.More = max(0, len(all)-maxHolders)
	t.Holders = all[:len(all)-t.More]
	return needed, true
}
