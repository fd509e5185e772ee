package transfer

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/control"
)

// published is a record that was handed to the topic and has not been read back.
type published struct {
	kind        millrace.RecordKind
	first, last millrace.Index
	chain       millrace.Chain
	captured    control.Counts
	bytes       int64
	at          time.Time
}

// accepted is what the publisher's own fold has made of the topic, and what it
// still waits for. Publisher, reader, ledger and status share it.
type accepted struct {
	mu      sync.Mutex
	history *history
	term    millrace.Term
	me      millrace.PublisherID

	// waiting are the published records in the order of the topic, bytes their
	// sum.
	waiting []published
	bytes   int64
	// changed wakes the publisher when something was read back.
	changed chan struct{}
	// acknowledged is the last index that the brokers have acknowledged: a
	// record can be read before all replicas that must have it have it.
	// confirmed is the last one that was given out for the source to be told.
	acknowledged, confirmed millrace.Index

	// Counts of entries since the newest ledger row: of complete units, and of
	// the unit that is open.
	captured, readBack         control.Counts
	openCaptured, openReadBack control.Counts
	ledgered                   millrace.Index // last index of the newest ledger row
	ledgeredState              millrace.Offset
	progress                   bool

	// read is where the record after the newest that was folded begins. Who waits for
	// it to come to until has readTo closed.
	read, until millrace.Offset
	readTo      chan struct{}
}

func newAccepted(h *history, term millrace.Term, me millrace.PublisherID) *accepted {
	return &accepted{
		history: h, term: term, me: me, changed: make(chan struct{}, 1),
		captured: control.Counts{}, readBack: control.Counts{}, openCaptured: control.Counts{}, openReadBack: control.Counts{},
		ledgered: h.fold.Index(), ledgeredState: millrace.NoOffset, acknowledged: h.fold.Index(), confirmed: h.fold.Index(),
	}
}

// expect says that a record is about to be appended. It blocks while limit bytes
// are waiting already.
func (a *accepted) expect(ctx context.Context, p published, limit int64) error {
	return a.await(ctx, func() bool {
		if len(a.waiting) > 0 && a.bytes+p.bytes > limit {
			return false
		}
		a.waiting = append(a.waiting, p)
		a.bytes += p.bytes
		return true
	})
}

// drained blocks until everything that was published has been read back.
func (a *accepted) drained(ctx context.Context) error {
	return a.await(ctx, func() bool { return len(a.waiting) == 0 })
}

// await blocks until done, which is called with the lock held, says so. One
// goroutine at a time may wait.
func (a *accepted) await(ctx context.Context, done func() bool) error {
	for {
		a.mu.Lock()
		ok := done()
		a.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-a.changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// confirmable returns the position that the source may be told now, if there is
// a new one: everything up to it is accepted by the fold and acknowledged.
func (a *accepted) confirmable() (p millrace.Position, ok bool) {
	f := a.history.fold
	if f.Index() <= a.confirmed || f.Index() > a.acknowledged {
		return p, false
	}
	a.confirmed = f.Index()
	return f.Position(), true
}

// acknowledge notes that the brokers have everything up to an index.
func (a *accepted) acknowledge(last millrace.Index) (p millrace.Position, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.acknowledged = last
	return a.confirmable()
}

// stateRecord is the state at the fold's place. Nothing may be waiting.
func (a *accepted) stateRecord() (millrace.Header, []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.history.fold.StateRecord()
}

// take judges the outcome of a record that the history has taken in. It returns
// the record it waited for, if this is it.
func (a *accepted) take(r *millrace.Record, outcome millrace.Outcome) (*published, error) {
	own := r.Term == a.term && r.Publisher == a.me
	switch {
	case outcome == millrace.Reign:
		return nil, fmt.Errorf("%w: publisher %v began term %v, ours was %v", ErrFenced, r.Publisher, r.Term, a.term)
	case outcome == millrace.Stale && own && r.Kind == millrace.RecordTerm:
		return nil, nil // the network repeated the record that began our reign
	case outcome == millrace.Stale && own:
		return nil, fmt.Errorf("%w: our %v record of term %v is void", ErrFenced, r.Kind, a.term)
	case outcome == millrace.Stale:
		return nil, nil
	case !own:
		return nil, fmt.Errorf("%w: a %v record of term %v by publisher %v was accepted in our reign: this is a defect of millrace", millrace.ErrStop, r.Kind, r.Term, r.Publisher)
	case outcome == millrace.Repeated && r.Kind == millrace.RecordBatch, r.Kind == millrace.RecordState && !a.expects(r):
		return nil, nil // the client library or the network repeated it
	}
	if len(a.waiting) == 0 {
		return nil, fmt.Errorf("%w: the topic has a %v record of ours from index %v on that we did not publish: another process uses this publisher's ID", millrace.ErrStop, r.Kind, r.First)
	}
	p := a.waiting[0]
	if p.kind != r.Kind || p.first != r.First || p.chain != r.Chain || r.Kind == millrace.RecordBatch && p.last != r.Last() {
		return nil, fmt.Errorf("%w: published was a %v record from index %v to %v with chain %v, read back was a %v record from %v with chain %v: the topic or the network altered it",
			millrace.ErrStop, p.kind, p.first, p.last, p.chain.Short(), r.Kind, r.First, r.Chain.Short())
	}
	if outcome == millrace.Repeated {
		return nil, fmt.Errorf("%w: our state record at index %v is not at the place it was made for: this is a defect of millrace", millrace.ErrStop, r.First-1)
	}
	a.waiting[0] = published{}
	a.waiting = a.waiting[1:]
	a.bytes -= p.bytes
	signal(a.changed)
	return &p, a.count(&p, r)
}

// expects tells whether a state record is the one that is to come next.
func (a *accepted) expects(r *millrace.Record) bool {
	return len(a.waiting) > 0 && a.waiting[0].kind == millrace.RecordState && a.waiting[0].first == r.First
}

// count compares what capture gave with what the topic has.
func (a *accepted) count(p *published, r *millrace.Record) error {
	if r.Kind != millrace.RecordBatch {
		return nil
	}
	back := make(control.Counts, len(p.captured))
	if err := countPayload(r.Payload, back); err != nil {
		return err
	}
	if !back.Equal(p.captured) {
		return fmt.Errorf("%w: of indexes %v to %v capture gave %d entries and the topic has %d, or of other tables and kinds: compare the topic (millrace tail) with the source before going on",
			millrace.ErrStop, p.first, p.last, p.captured.Total(), back.Total())
	}
	merge(a.openCaptured, p.captured)
	merge(a.openReadBack, back)
	if !a.history.fold.Open() {
		merge(a.captured, a.openCaptured)
		merge(a.readBack, a.openReadBack)
		clear(a.openCaptured)
		clear(a.openReadBack)
		a.progress = true
	}
	return nil
}

// folded notes where the record after the newest that was folded begins.
func (a *accepted) folded(next millrace.Offset) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.read = next
	if a.readTo != nil && a.read >= a.until {
		close(a.readTo)
		a.readTo = nil
	}
}

// reaches returns a channel that is closed when everything before an offset has been
// folded. One goroutine at a time asks.
func (a *accepted) reaches(end millrace.Offset) <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	c := make(chan struct{})
	if a.readTo = c; a.read >= end {
		close(c)
		a.readTo = nil
	}
	a.until = end
	return c
}

// mark is the newest accepted state record as a place where the topic may begin;
// counted is how many bytes were read by then, and total by now.
func (a *accepted) mark() (m control.Mark, total uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return control.Mark{Offset: a.history.state, Index: a.history.stateIndex, Bytes: a.history.stateBytes}, a.history.bytes
}

// row returns the ledger row for what was accepted since the newest one, or nil
// if there is nothing to write.
func (a *accepted) row(stream *control.Stream) *control.LedgerRow {
	a.mu.Lock()
	defer a.mu.Unlock()
	f := a.history.fold
	if f.Index() == 0 || f.Index() == a.ledgered && a.history.state == a.ledgeredState {
		return nil
	}
	return &control.LedgerRow{
		Stream: stream.Name, Epoch: stream.Epoch, Term: a.term, Publisher: a.me,
		First: a.ledgered + 1, Last: f.Index(), Chain: f.Chain(), TopicID: stream.TopicID,
		LastOffset: a.history.complete, StateOffset: a.history.state, Position: f.Position(),
		Captured: clone(a.captured), ReadBack: clone(a.readBack), SourceTime: f.Time(),
	}
}

// wrote says that a row is in the ledger: what it counted is not counted again.
func (a *accepted) wrote(row *control.LedgerRow) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ledgered, a.ledgeredState = row.Last, row.StateOffset
	subtract(a.captured, row.Captured)
	subtract(a.readBack, row.ReadBack)
}

// witness is the place that the fold has come to.
func (a *accepted) witness(stream *control.Stream) *witness {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.history.complete == millrace.NoOffset {
		return nil
	}
	return &witness{
		by: "this process", topic: stream.TopicID, index: a.history.fold.Index(), chain: a.history.fold.Chain(), offset: a.history.complete,
	}
}

func clone(c control.Counts) control.Counts {
	d := make(control.Counts, len(c))
	merge(d, c)
	return d
}

// subtract takes from a what b counted, and forgets tables that come to nothing.
func subtract(a, b control.Counts) {
	for table, kinds := range b {
		left := a[table]
		if left == nil {
			continue
		}
		for kind, n := range kinds {
			left[kind] -= n
		}
		if *left == (control.KindCounts{}) {
			delete(a, table)
		}
	}
}
