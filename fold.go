package millrace

import (
	"bytes"
	"fmt"
	"slices"
	"time"
)

// Outcome is what a Fold made of a record.
type Outcome uint8

// The outcomes of a step.
const (
	// Accepted: the batch is the next part of the history. Its entries are
	// provisional while the unit it ends in goes on (Fold.Open).
	Accepted Outcome = 1
	// Reign: a publisher's reign has begun. If a unit was open, its entries are
	// void and their indexes free again.
	Reign Outcome = 2
	// Noted: a state record of the reign agrees with the history.
	Noted Outcome = 3
	// Repeated: the batch was accepted before; it changes nothing.
	Repeated Outcome = 4
	// Stale: the record is of a publisher that does not reign; it changes
	// nothing.
	Stale Outcome = 5
)

// String returns the name of the outcome in lower case.
func (o Outcome) String() string {
	switch o {
	case Accepted:
		return "accepted"
	case Reign:
		return "reign"
	case Noted:
		return "noted"
	case Repeated:
		return "repeated"
	case Stale:
		return "stale"
	}
	return fmt.Sprintf("outcome %d", uint8(o))
}

// Fold is the rule of continuity: it reads the records of a topic in their
// order and decides what belongs to the history. The order of the records is
// the only arbiter, so every reader that folds the same records from a proper
// place comes to the same history, whatever zombies, repeats and losers of a
// race wrote in between. It does no I/O; CRCs and signatures are checked before
// it. Publisher, applier, relay, verifier and tail share it.
//
// A Fold is used by one goroutine. After an error it stays stopped: every later
// Step returns the same error.
type Fold struct {
	stream    StreamID
	epoch     Epoch
	term      Term
	publisher PublisherID

	// index and chain are those at the end of the newest complete unit.
	index    Index
	chain    Chain
	position Position
	time     time.Time
	catalog  Catalog

	// next is the index to come: index + 1 + the open unit's entries.
	next Index
	unit UnitHash
	// pending are the schema, load and drop entries of the open unit.
	pending []Entry
	recent  []Recent
	err     error

	// filter is what a partial edge holds; nil for everything. The rest is of
	// partial batches: kept tells that entries of the open unit are here.
	filter *Filter
	scopes map[TableID]*foldScope
	kept   bool
	parts  partialBatch
	places partialPlaces
	here   []bool
}

// NewFold begins at the start of a topic.
func NewFold(stream StreamID, epoch Epoch) *Fold {
	return &Fold{stream: stream, epoch: epoch, next: 1, chain: NewChain(stream, epoch)}
}

// FoldFrom begins after the record that a checkpoint names.
func FoldFrom(c *Checkpoint) *Fold {
	return &Fold{
		stream: c.Stream, epoch: c.Epoch, term: c.Term, publisher: c.Publisher,
		index: c.Index, next: c.Index + 1, chain: c.Chain,
		position: c.Position, time: c.Time, catalog: c.Catalog.Clone(), recent: slices.Clone(c.Recent),
	}
}

// FoldFromState begins after a state record. The caller must know from the
// ledger that the record was accepted: a publisher that was fenced leaves state
// records too, and one who begins there follows a history nobody else has.
func FoldFromState(r *Record) (*Fold, error) {
	if r.Kind != RecordState {
		return nil, fmt.Errorf("%w: %v record where a state record should be", ErrMalformed, r.Kind)
	}
	s, err := DecodeState(r.Payload)
	if err != nil {
		return nil, err
	}
	return &Fold{
		stream: r.Stream, epoch: r.Epoch, term: r.Term, publisher: r.Publisher,
		index: r.First - 1, next: r.First, chain: r.Chain,
		position: r.Position, time: r.Time, catalog: s.Catalog, recent: s.Recent,
	}, nil
}

// Step takes the next record. The record is not kept.
func (f *Fold) Step(r *Record) (Outcome, error) {
	if f.err != nil {
		return 0, f.err
	}
	o, err := f.step(r)
	if err != nil {
		f.err = err
		return 0, err
	}
	return o, nil
}

func (f *Fold) step(r *Record) (Outcome, error) {
	if r.Stream != f.stream || r.Epoch != f.epoch {
		return 0, fmt.Errorf("%w: %v record of stream %v epoch %v in the topic of stream %v epoch %v",
			ErrForeign, r.Kind, r.Stream, r.Epoch, f.stream, f.epoch)
	}
	if r.Kind == RecordTerm {
		if r.Term <= f.term {
			return Stale, nil
		}
		f.begin(r)
		return Reign, nil
	}
	if r.Term < f.term || r.Term == f.term && r.Publisher != f.publisher {
		return Stale, nil
	}
	if r.Term > f.term {
		return 0, fmt.Errorf("%w: %v record at index %v names term %v, the newest term record is of %v",
			ErrUnknownTerm, r.Kind, r.First, r.Term, f.term)
	}
	if r.Kind == RecordState {
		return f.state(r)
	}
	return f.batch(r)
}

// begin makes r's publisher the reigning one.
func (f *Fold) begin(r *Record) {
	f.term, f.publisher = r.Term, r.Publisher
	f.next = f.index + 1
	f.unit.Reset()
	f.pending, f.kept = nil, false
	f.recent = slices.DeleteFunc(f.recent, func(b Recent) bool { return b.Last > f.index })
}

func (f *Fold) state(r *Record) (Outcome, error) {
	at := r.First - 1
	if at > f.index {
		return 0, fmt.Errorf("%w: state record of index %v, the history has come to %v", ErrGap, at, f.index)
	}
	if at == f.index && r.Chain != f.chain {
		return 0, fmt.Errorf("%w: state record at index %v has chain %v, the history has %v", ErrDiverged, at, r.Chain.Short(), f.chain.Short())
	}
	// The reign's own state of an earlier place, come late, is as harmless as a
	// repeated batch.
	if at < f.index || f.Open() {
		return Repeated, nil
	}
	if f.filter != nil {
		if err := f.agrees(r); err != nil {
			return 0, err
		}
	}
	return Noted, nil
}

func (f *Fold) batch(r *Record) (Outcome, error) {
	if r.First != f.next {
		if slices.Contains(f.recent, Recent{r.First, r.Last(), r.Chain}) {
			return Repeated, nil
		}
		if r.First < f.next {
			return 0, fmt.Errorf("%w: batch %v to %v stands where another history went on to %v", ErrDiverged, r.First, r.Last(), f.next-1)
		}
		return 0, fmt.Errorf("%w: batch %v to %v comes after index %v", ErrGap, r.First, r.Last(), f.next-1)
	}
	if r.Prev != f.chain {
		return 0, fmt.Errorf("%w: batch %v to %v continues chain %v, the history is at %v", ErrDiverged, r.First, r.Last(), r.Prev.Short(), f.chain.Short())
	}
	take := f.entries
	if r.Partial {
		take = f.partial
	}
	if err := take(r); err != nil {
		return 0, err
	}
	if len(f.recent) == KeepRecent {
		f.recent = slices.Delete(f.recent, 0, 1)
	}
	f.recent = append(f.recent, Recent{r.First, r.Last(), r.Chain})
	return Accepted, nil
}

// entries takes in the entries of a batch that fits, and checks that they are
// what its header and chain say. Where they are not, index, chain and catalog
// stay as they were.
func (f *Fold) entries(r *Record) error {
	bad := func(i Index, format string, args ...any) error {
		return fmt.Errorf("%w: batch %v to %v: entry %v: %s", ErrMalformed, r.First, r.Last(), i, fmt.Sprintf(format, args...))
	}
	var (
		payload = r.Payload
		started = f.Open()
		index   = f.index // of the newest complete unit
		chain   = f.chain
		at      = f.time
		ended   int // units that end in the batch
		settled int // of f.pending, those of complete units
		run     Run
		h       Head
		err     error
	)
	lacking := f.filter != nil && started && f.unit.lacks()
	for i := r.First; i <= r.Last(); i++ {
		if payload, err = NextHead(payload, &h); err != nil {
			return fmt.Errorf("batch %v to %v: entry %v: %w", r.First, r.Last(), i, err)
		}
		if lacking && f.unit.given(h.Table) {
			return bad(i, "entries of table %v follow others that were left out, without a state", h.Table)
		}
		if want := uint64(i - index - 1); h.Ordinal != want {
			return bad(i, "ordinal %d, want %d", h.Ordinal, want)
		}
		run.Extend(&f.unit, &h)
		if h.Kind.changesCatalog() {
			if err := f.pend(&h); err != nil {
				return fmt.Errorf("batch %v to %v: entry %v: %w", r.First, r.Last(), i, err)
			}
		}
		if h.Last {
			run.Flush(&f.unit)
			chain = f.unit.Chain(chain)
			f.unit.Reset()
			index, at, settled = i, h.End.Time, len(f.pending)
			ended++
		}
	}
	open := index != r.Last()
	switch {
	case len(payload) != 0:
		return bad(r.Last(), "bytes follow it")
	case open && ended > 0, started && ended > 1:
		return bad(r.Last(), "part of a unit stands in a batch with other units")
	}
	after := chain
	if open {
		run.Flush(&f.unit)
		after = f.unit.Chain(chain)
		f.unit.Absorb()
	}
	if after != r.Chain {
		return fmt.Errorf("%w: batch %v to %v says chain %v, its entries give %v", ErrDiverged, r.First, r.Last(), r.Chain.Short(), after.Short())
	}
	if err := f.settle(settled); err != nil {
		return fmt.Errorf("batch %v to %v: %w", r.First, r.Last(), err)
	}
	f.index, f.chain, f.next, f.time = index, chain, r.Last()+1, at
	f.kept = open
	if !open {
		f.position = r.Position
	}
	return nil
}

// pend keeps an entry that changes the catalog until its unit ends.
func (f *Fold) pend(h *Head) error {
	if f.filter != nil && h.Kind == KindLoadProgress {
		return nil // only who captures needs it, and not all of them come
	}
	var e Entry
	if err := DecodeEntry(h.Body, &e); err != nil {
		return err
	}
	// They may wait for the end of their unit longer than the record.
	e.Key, e.From, e.Row = nil, nil, nil
	if e.LoadInfo != nil {
		e.LoadInfo.Progress, e.LoadInfo.Added = bytes.Clone(e.LoadInfo.Progress), bytes.Clone(e.LoadInfo.Added)
		if f.filter != nil {
			e.LoadInfo.Progress = nil
		}
	}
	f.pending = append(f.pending, e)
	return nil
}

// settle enters the first n pending entries, those of complete units, into the
// catalog.
func (f *Fold) settle(n int) error {
	if n == 0 {
		return nil
	}
	catalog := f.catalog.Clone()
	for i := range f.pending[:n] {
		if err := catalog.apply(&f.pending[i]); err != nil {
			return err
		}
	}
	f.catalog = catalog
	f.pending = slices.Delete(f.pending, 0, n)
	return nil
}

// Open reports whether a unit has begun and not ended: entries after Index are
// provisional.
func (f *Fold) Open() bool { return f.next != f.index+1 }

// Index returns the index of the last entry of the newest complete unit.
func (f *Fold) Index() Index { return f.index }

// Next returns the index that the next batch must begin with.
func (f *Fold) Next() Index { return f.next }

// Chain returns the chain at Index.
func (f *Fold) Chain() Chain { return f.chain }

// Term returns the term of the reign, and who reigns.
func (f *Fold) Term() (Term, PublisherID) { return f.term, f.publisher }

// Position returns that of the newest complete unit.
func (f *Fold) Position() Position { return f.position }

// Time returns when the newest complete unit was committed at the source.
func (f *Fold) Time() time.Time { return f.time }

// Catalog returns schemas and loads as of Index. It is valid until the next
// Step; Clone it to keep it.
func (f *Fold) Catalog() *Catalog { return &f.catalog }

// Checkpoint returns the fold's place as of Index. Offset and TopicID are the
// caller's to set. It shares nothing with the fold that a Step changes.
func (f *Fold) Checkpoint() Checkpoint {
	recent := slices.DeleteFunc(slices.Clone(f.recent), func(b Recent) bool { return b.Last > f.index })
	return Checkpoint{
		Stream: f.stream, Epoch: f.epoch, Index: f.index, Chain: f.chain,
		Term: f.term, Publisher: f.publisher, Offset: NoOffset,
		Position: f.position, Time: f.time, Recent: recent, Catalog: f.catalog.Clone(),
	}
}

// StateRecord returns header and payload of a state record at Index.
func (f *Fold) StateRecord() (Header, []byte) {
	c := f.Checkpoint()
	h := Header{
		Kind: RecordState, Stream: f.stream, Epoch: f.epoch, Term: f.term, Publisher: f.publisher,
		First: f.index + 1, Prev: f.chain, Chain: f.chain, Position: f.position, Time: f.time,
	}
	return h, AppendState(nil, &State{Catalog: c.Catalog, Recent: c.Recent})
}

// Run gathers consecutive entries of one table, so that they are hashed in one
// go. Sequencer and Fold walk payloads with it.
type Run struct {
	table TableID
	bytes []byte
}

// Extend adds the entry of h, which must follow the one before in memory or be
// of another table or unit.
func (r *Run) Extend(u *UnitHash, h *Head) {
	if r.bytes != nil && r.table == h.Table {
		r.bytes = r.bytes[:len(r.bytes)+len(h.Raw)]
		return
	}
	r.Flush(u)
	r.table, r.bytes = h.Table, h.Raw
}

// Flush hands what was gathered to u.
func (r *Run) Flush(u *UnitHash) {
	if r.bytes != nil {
		u.Add(r.table, r.bytes)
		r.bytes = nil
	}
}
