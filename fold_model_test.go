package millrace

import (
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// The model: a source with committed units, a topic, several publisher
// processes that do not know of each other (nothing stands between them: the
// exclusive hold on the source is left out on purpose), appends that are
// delayed, repeated, lost or acknowledged late, and readers that start at every
// place where a reader may start. What is played is drawn at random; what must
// hold is checked at every step against the plain truth, the source's list of
// units.

// flaw is a rule broken on purpose, to see that the model notices.
type flaw string

const (
	flawNone          flaw = ""
	flawAcknowledged  flaw = "confirm what Kafka acknowledged"
	flawAnyState      flaw = "start at any state record"
	flawKeepReign     flaw = "go on after an append of unknown outcome"
	flawProvisional   flaw = "confirm a unit whose end was not read"
	flawTermUnordered flaw = "publish before the own term was read"
)

var modelSeed = flag.Uint64("model.seed", 0, "seed of the first random run of the fold model; 0 draws one")

type model struct {
	draw   func(n int) int // uniform in [0, n)
	flaw   flaw
	stream StreamID
	log    [][]byte // the topic
	// flying are appends that left their publisher and have not landed.
	flying [][]byte
	units  []*modelUnit // all that the source will ever commit
	// confirmed is how far the source was told that it may forget.
	confirmed uint64
	// attested is the log position of the newest state record that a
	// publisher's fold accepted, or -1.
	attested   int
	publishers []*modelPublisher
	next       byte // names publishers
	witness    *witness
}

type modelUnit struct {
	payload []byte
	entries int
}

// modelPublisher is one process. Its fields are its memory.
type modelPublisher struct {
	id   PublisherID
	term Term
	fold *Fold
	read int // the log position it reads next
	// reigning once its own term record was read and valid.
	reigning bool
	fenced   bool
	// Capture, sequencer and framer.
	unit  uint64 // the source unit to take next (1-based)
	body  Body
	index Index
	chain Chain
	hash  UnitHash
	// sent holds, for every appended record that is not yet confirmed, the
	// unit that is complete with it.
	sent []sentRecord
}

type sentRecord struct {
	unit uint64 // newest unit complete after the record
	last Index
}

func runModel(draw func(int) int, f flaw, steps int) error {
	m := &model{draw: draw, flaw: f, stream: StreamID{7}, attested: -1}
	m.witness = newWitness(m.stream)
	for range 4 + draw(20) {
		m.units = append(m.units, m.newUnit())
	}
	for range steps {
		if err := m.step(); err != nil {
			return err
		}
		if err := m.check(); err != nil {
			return err
		}
	}
	return m.finish()
}

// newUnit makes a unit of one or several entries; some are so large beside the
// model's frame that they are cut.
func (m *model) newUnit() *modelUnit {
	n := uint64(len(m.units) + 1)
	count := 1 + m.draw(3)
	if m.draw(4) == 0 {
		count = 4 + m.draw(8)
	}
	var w UnitWriter
	for i := range count {
		key := binary.BigEndian.AppendUint64(nil, n<<8|uint64(i))
		if err := w.Put(TableID(1+m.draw(3)), key, nil, AppendRow(nil, 1, []Datum{{Text: key}}), 0); err != nil {
			panic(err)
		}
	}
	payload, err := w.Finish(UnitEnd{Token: n, Time: time.UnixMicro(int64(n)).UTC()})
	if err != nil {
		panic(err)
	}
	return &modelUnit{payload, count}
}

func modelPosition(unit uint64) Position {
	if unit == 0 {
		return Position{}
	}
	return Position{Mode: ModeWAL, SystemID: 1, Timeline: 1, Slot: "s", LSN: LSN(unit)}
}

func (m *model) step() error {
	switch n := m.draw(20); {
	case n == 0 || len(m.publishers) == 0:
		return m.start()
	case n == 1:
		m.land()
		return nil
	case n == 2 && len(m.log) > 0:
		// A record lands once more: a repeat that came late, but not later than
		// a fold remembers.
		back := min(len(m.log), 20)
		m.log = append(m.log, m.log[len(m.log)-1-m.draw(back)])
		return nil
	case n == 3 && len(m.publishers) > 1:
		// A process dies.
		i := m.draw(len(m.publishers))
		m.publishers = slices.Delete(m.publishers, i, i+1)
		return nil
	}
	p := m.publishers[m.draw(len(m.publishers))]
	switch n := m.draw(8); {
	case n < 3:
		return m.readOne(p)
	case n == 3 && p.reigning && !p.fenced && p.body == nil:
		return m.publishState(p)
	default:
		return m.publish(p)
	}
}

// land lets one delayed append arrive.
func (m *model) land() {
	if len(m.flying) == 0 {
		return
	}
	i := m.draw(len(m.flying))
	m.log = append(m.log, m.flying[i])
	m.flying = slices.Delete(m.flying, i, i+1)
}

// start lets a new process take the stream: fold the topic to its end from
// where a reader may start, then append a term record.
func (m *model) start() error {
	m.next++
	p := &modelPublisher{id: PublisherID{m.next}, fold: NewFold(m.stream, 1)}
	if at := m.startState(); at >= 0 {
		r, err := DecodeRecord(m.log[at], nil)
		if err != nil {
			return err
		}
		if p.fold, err = FoldFromState(r); err != nil {
			return err
		}
		p.read = at + 1
	}
	for p.read < len(m.log) {
		if err := m.foldNext(p); err != nil {
			return err
		}
	}
	m.publishers = append(m.publishers, p)
	return nil
}

// claim appends the term record of a process that has folded the topic to what
// was its end then.
func (m *model) claim(p *modelPublisher) error {
	term, _ := p.fold.Term()
	p.term = term + 1
	h := Header{Kind: RecordTerm, Stream: m.stream, Epoch: 1, Term: p.term, Publisher: p.id}
	acked, _, err := m.append(&h, nil)
	if acked && m.flaw == flawTermUnordered {
		m.reign(p)
	}
	return err
}

// startState picks the state record a process begins at, or -1 for the topic's
// start.
func (m *model) startState() int {
	if m.flaw == flawAnyState {
		for i := len(m.log) - 1; i >= 0; i-- {
			if r, err := DecodeRecord(m.log[i], nil); err == nil && r.Kind == RecordState {
				return i
			}
		}
		return -1
	}
	if m.draw(2) == 0 {
		return -1
	}
	return m.attested
}

// append sends a record. It may land at once or later or never, and the answer
// may be lost: acked says that the process got an acknowledgement, lost that it
// got none and cannot know.
func (m *model) append(h *Header, payload []byte) (acked, lost bool, err error) {
	b, err := AppendRecord(nil, h, payload, nil)
	if err != nil {
		return false, false, err
	}
	switch m.draw(12) {
	case 0: // delayed, the process waits no longer
		m.flying = append(m.flying, b)
		return false, true, nil
	case 1: // never arrives
		return false, true, nil
	case 2: // lands, the answer is lost
		m.log = append(m.log, b)
		return false, true, nil
	}
	m.log = append(m.log, b)
	return true, false, nil
}

// foldNext lets p read one record.
func (m *model) foldNext(p *modelPublisher) error {
	r, err := DecodeRecord(m.log[p.read], nil)
	if err != nil {
		return err
	}
	o, err := p.fold.Step(r)
	if err != nil {
		return fmt.Errorf("publisher %v at log position %d: %w", p.id[0], p.read, err)
	}
	if o == Noted && r.Publisher == p.id && p.read > m.attested {
		m.attested = p.read
	}
	p.read++
	return nil
}

func (m *model) readOne(p *modelPublisher) error {
	if p.read >= len(m.log) {
		return nil
	}
	if err := m.foldNext(p); err != nil {
		return err
	}
	term, id := p.fold.Term()
	mine := term == p.term && id == p.id
	switch {
	case p.term == 0:
		// It has not claimed a term yet.
	case mine && !p.reigning:
		m.reign(p)
	case !mine && term >= p.term:
		p.fenced = true
	}
	if m.flaw != flawAcknowledged {
		m.confirmFolded(p)
	}
	return nil
}

// reign makes p capture from the folded position.
func (m *model) reign(p *modelPublisher) {
	if p.reigning {
		return
	}
	p.reigning = true
	p.unit = uint64(p.fold.Position().LSN) + 1
	p.index, p.chain = p.fold.Index(), p.fold.Chain()
}

func (m *model) confirmFolded(p *modelPublisher) {
	if !p.reigning {
		return
	}
	through := p.fold.Index()
	if m.flaw == flawProvisional {
		through = p.fold.Next() - 1
	}
	for len(p.sent) > 0 && p.sent[0].last <= through {
		if !p.fenced {
			m.confirm(p.sent[0].unit)
		}
		p.sent = p.sent[1:]
	}
}

func (m *model) confirm(unit uint64) { m.confirmed = max(m.confirmed, unit) }

// publish appends the next batch: whole units, or a part of exactly one.
func (m *model) publish(p *modelPublisher) error {
	if p.term == 0 {
		return m.claim(p)
	}
	if !p.reigning || p.fenced {
		return nil
	}
	if p.body == nil {
		if p.unit > uint64(len(m.units)) {
			return nil
		}
		if p.unit <= m.confirmed {
			// The source has forgotten what this process would need; only a
			// process that has been overtaken can ask for it, and what it would
			// publish is void. A real source refuses here.
			if term, _ := m.truth().Term(); term == p.term {
				return fmt.Errorf("unit %d was confirmed and is needed by the reigning publisher %d: it is lost", p.unit, p.id[0])
			}
			p.fenced = true
			return nil
		}
		p.body = NewUnit(Position{}, time.Time{}, 1, m.units[p.unit-1].payload).Body
		p.hash.Reset()
	}
	const frame = 120 // bytes: about three entries
	run, err := p.body.Next(frame)
	if err != nil {
		return err
	}
	h := Header{
		Kind: RecordBatch, Stream: m.stream, Epoch: 1, Term: p.term, Publisher: p.id,
		First: p.index + 1, Prev: p.chain, Position: modelPosition(p.unit - 1),
	}
	var head Head
	var r Run
	for rest := run; len(rest) > 0; h.Count++ {
		if rest, err = NextHead(rest, &head); err != nil {
			return err
		}
		r.Extend(&p.hash, &head)
	}
	r.Flush(&p.hash)
	h.Chain = p.hash.Chain(p.chain)
	p.hash.Absorb()
	p.index = h.Last()
	complete := p.unit - 1
	if head.Last {
		complete = p.unit
		h.Position = modelPosition(p.unit)
		p.chain = h.Chain
		p.unit++
		p.body = nil
	} else if m.flaw == flawProvisional {
		complete = p.unit
	}
	return m.send(p, &h, run, sentRecord{unit: complete, last: h.Last()})
}

func (m *model) publishState(p *modelPublisher) error {
	if p.fold.Index() != p.index || p.fold.Open() {
		return nil
	}
	if term, id := p.fold.Term(); term != p.term || id != p.id {
		return nil
	}
	h, payload := p.fold.StateRecord()
	return m.send(p, &h, payload, sentRecord{unit: uint64(h.Position.LSN), last: p.index})
}

// send appends a record of a reigning publisher, which gives its reign up when
// the outcome is unknown.
func (m *model) send(p *modelPublisher, h *Header, payload []byte, s sentRecord) error {
	acked, lost, err := m.append(h, payload)
	if err != nil {
		return err
	}
	if lost && m.flaw != flawKeepReign {
		m.publishers = slices.DeleteFunc(m.publishers, func(o *modelPublisher) bool { return o == p })
		return nil
	}
	if acked && m.flaw == flawAcknowledged {
		m.confirm(s.unit)
	}
	p.sent = append(p.sent, s)
	return nil
}

// truth folds the whole topic from its start.
func (m *model) truth() *Fold { return m.witness.fold }

// witness is a reader from the topic's start that keeps what it accepted.
type witness struct {
	fold  *Fold
	read  int
	part  []byte // payload of the open unit
	units [][]byte
	marks []mark
}

// mark is a place where another reader could have started.
type mark struct {
	checkpoint Checkpoint
	read       int
}

func newWitness(id StreamID) *witness { return &witness{fold: NewFold(id, 1)} }

func (w *witness) follow(log [][]byte) error {
	for ; w.read < len(log); w.read++ {
		r, err := DecodeRecord(log[w.read], nil)
		if err != nil {
			return err
		}
		o, err := w.fold.Step(r)
		if err != nil {
			return fmt.Errorf("reader at log position %d: %w", w.read, err)
		}
		switch o {
		case Reign:
			w.part = nil
		case Accepted:
			var h Head
			for rest := r.Payload; len(rest) > 0; {
				if rest, err = NextHead(rest, &h); err != nil {
					return err
				}
				w.part = append(w.part, h.Raw...)
				if h.Last {
					w.units = append(w.units, w.part)
					w.part = nil
				}
			}
		}
		if !w.fold.Open() {
			w.marks = append(w.marks, mark{w.fold.Checkpoint(), w.read + 1})
		}
	}
	return nil
}

// check holds the topic against the source.
func (m *model) check() error {
	w := m.witness
	if err := w.follow(m.log); err != nil {
		return err
	}
	for i, got := range w.units {
		if i >= len(m.units) || !slices.Equal(got, m.units[i].payload) {
			return fmt.Errorf("unit %d of the history is not unit %d of the source", i+1, i+1)
		}
	}
	if n := uint64(len(w.units)); n != uint64(w.fold.Position().LSN) {
		return fmt.Errorf("%d units accepted, position says %d", n, w.fold.Position().LSN)
	}
	if m.confirmed > uint64(len(w.units)) {
		return fmt.Errorf("unit %d was confirmed to the source and is not in the history, which has %d", m.confirmed, len(w.units))
	}
	return nil
}

// finish lets one undisturbed publisher publish the rest, and readers start at
// every place where one may.
func (m *model) finish() error {
	for len(m.flying) > 0 {
		m.land()
	}
	m.publishers = nil
	calm := func(n int) int { return n - 1 } // no fault is the last choice
	m.draw = calm
	if err := m.start(); err != nil {
		return err
	}
	p := m.publishers[0]
	for p.read < len(m.log) || !p.reigning || p.unit <= uint64(len(m.units)) {
		if err := m.readOne(p); err != nil {
			return err
		}
		if p.fenced {
			return errors.New("an undisturbed publisher was fenced")
		}
		if err := m.publish(p); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if err := m.check(); err != nil {
			return err
		}
	}
	w := m.witness
	if len(w.units) != len(m.units) {
		return fmt.Errorf("%d of %d units arrived", len(w.units), len(m.units))
	}
	for _, k := range w.marks {
		other := &witness{fold: FoldFrom(&k.checkpoint), read: k.read}
		if err := other.follow(m.log); err != nil {
			return fmt.Errorf("reader from the checkpoint at index %v: %w", k.checkpoint.Index, err)
		}
		if other.fold.Index() != w.fold.Index() || other.fold.Chain() != w.fold.Chain() {
			return fmt.Errorf("reader from the checkpoint at index %v came to another history", k.checkpoint.Index)
		}
	}
	return nil
}

// TestFoldModel plays random runs of the model by rapid, which shrinks a
// failing run to its shortest form.
func TestFoldModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := func(n int) int { return rapid.IntRange(0, n-1).Draw(t, "") }
		if err := runModel(draw, flawNone, 150); err != nil {
			t.Fatal(err)
		}
	})
}

// TestFoldModelSeeds plays many runs by seed, which is quicker than rapid.
func TestFoldModelSeeds(t *testing.T) {
	first := firstModelSeed(t)
	for seed := first; seed < first+1500; seed++ {
		if err := runModel(rand.New(rand.NewPCG(seed, 1)).IntN, flawNone, 300); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}

// TestFoldModelCatchesFlaws breaks one rule at a time: the model must notice
// each within a bounded number of runs.
func TestFoldModelCatchesFlaws(t *testing.T) {
	for _, f := range []flaw{flawAcknowledged, flawAnyState, flawKeepReign, flawProvisional, flawTermUnordered} {
		t.Run(string(f), func(t *testing.T) {
			first := firstModelSeed(t)
			for seed := first; seed < first+3000; seed++ {
				if err := runModel(rand.New(rand.NewPCG(seed, 1)).IntN, f, 300); err != nil {
					t.Logf("caught by run %d (seed %d): %v", seed-first+1, seed, err)
					return
				}
			}
			t.Fatalf("the flaw %q was not noticed in 3000 runs from seed %d", f, first)
		})
	}
}

func firstModelSeed(t *testing.T) uint64 {
	t.Helper()
	seed := *modelSeed
	if seed == 0 {
		seed = rand.Uint64N(1 << 40)
	}
	t.Logf("first seed %d (repeat with -model.seed=%d)", seed, seed)
	return seed
}
