package chunk

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/millrace-db/millrace"
)

// The model: a source with one table, its transactions, its WAL and its
// snapshots; a publisher that emits the WAL and loads the table in chunks, and
// that crashes; an edge with a live and a shadow generation. What happens next is
// drawn at random. After every emitted unit the edge must equal the source as of
// that place of the WAL, and so must the shadow at each LoadEnd.
//
// The source is in source_model_test.go.

// flaw is a rule broken on purpose, to see that the model notices.
type flaw string

const (
	flawNone            flaw = ""
	flawEmitAtOnce      flaw = "emit the chunk before the stream has passed the message"
	flawMessageEarly    flaw = "write the message before the snapshot is taken"
	flawLeaveOutNothing flaw = "emit rows whose key was changed by a transaction that the snapshot does not see"
	flawNotAccepted     flaw = "do not check what the snapshot sees"
	flawWindowLate      flaw = "open the window after the snapshot was accepted"
	flawNoTruncate      flaw = "note no TRUNCATE"
	flawOldKey          flaw = "note only the new key of a key update"
	flawNoFile          flaw = "do not compare the relfilenode"
	flawSnapshotFirst   flaw = "take the snapshot before the lock"
	flawEmpty           flaw = "read no chunk of an empty table"
	flawBounded         flaw = "read no further than the table went at the LoadBegin"
	flawNoMissing       flaw = "collect no keys of rows that lack columns"
	flawMissingLate     flaw = "take rows of blocks not read yet for loaded"
	flawForgetMissing   flaw = "forget keys that lack columns when the files differ"
	flawNotAdded        flaw = "do not tell of keys that lack columns since the newest progress"
	flawNotVoid         flaw = "do not tell that the newest progress is void"
	flawNoSuspects      flaw = "resume without what runs then"
	flawSuspectsEarly   flaw = "resume with a snapshot that does not name all that runs"
	flawXmin            flaw = "forget all below the xmax of a snapshot"
	flawOverflow        flaw = "emit the chunk of an overflown window"
)

var flaws = []flaw{
	flawEmitAtOnce, flawMessageEarly, flawLeaveOutNothing, flawNotAccepted, flawWindowLate, flawNoTruncate,
	flawOldKey, flawNoFile, flawSnapshotFirst, flawEmpty, flawBounded, flawNoMissing, flawMissingLate, flawForgetMissing,
	flawNotAdded, flawNotVoid, flawNoSuspects, flawSuspectsEarly, flawXmin, flawOverflow,
}

var (
	modelSeed = flag.Uint64("model.seed", 0, "seed of the first random run of the load model; 0 draws one")
	modelRuns = flag.Uint64("model.runs", 1500, "random runs of the load model without a flaw")
)

// row is a row of the edge; lacks stands for a toasted column that is missing.
type row struct{ a, c int }

const lacks = -1

type edge struct{ live, shadow map[int]row }

// apply does what edge/apply.go does with a live change.
func (e *edge) apply(c change) error {
	for _, shadow := range []bool{false, true} {
		g := e.live
		if shadow {
			g = e.shadow
		}
		if g == nil {
			continue
		}
		switch c.kind {
		case millrace.KindTruncate:
			clear(g)
		case millrace.KindDelete:
			if _, ok := g[c.key]; !ok && !shadow {
				return fmt.Errorf("delete of key %d, which the edge does not have", c.key)
			}
			delete(g, c.key)
		case millrace.KindPut:
			r := row{a: c.a, c: c.c}
			if c.unchanged {
				base, ok := g[c.from]
				switch {
				case ok:
					r.c = base.c
				case shadow:
					r.c = lacks
				default:
					return fmt.Errorf("put of key %d leaves a column unchanged, and the edge has no row %d", c.key, c.from)
				}
			}
			g[c.key] = r
		}
	}
	return nil
}

// model is the whole: the topic is the WAL up to emitted, and what loads put.
type model struct {
	draw    func(int) int
	flaw    flaw
	src     *source
	edge    edge
	truth   edge // live: the source as of the emitted place
	emitted int  // transactions of the WAL
	loads   int  // ended
	crashes int

	pub *publisher
	// progress is what the emitted stream tells of the load under way.
	progress []byte
	begun    int // emitted at the LoadBegin of the load under way, or -1
	// planned is the table's length at the LoadBegin; only flaws look at it.
	planned int
}

// publisher is one process: its memory.
type publisher struct {
	pending *Pending
	load    *Load
	chunk   *reading
}

// reading is a chunk under way.
type reading struct {
	step    int
	window  *Window
	locked  bool
	snap    Snapshot
	taken   bool
	chunk   Chunk
	rows    map[int]row
	message int // in the WAL
}

func limits(draw func(int) int) Limits {
	l := Limits{Blocks: 1 + uint32(draw(2)), Keys: 1 + draw(2)}
	if draw(4) == 0 {
		l.Missing = 3 * (entryCost + 1)
	}
	if draw(4) == 0 {
		l.Window = 1 + 2*(entryCost+1)
	}
	if draw(4) == 0 {
		l.Progress = entryCost
	}
	return l
}

func runModel(draw func(int) int, f flaw, steps int) (*model, error) {
	m := &model{draw: draw, flaw: f, src: newSource(draw), begun: -1}
	m.edge.live, m.truth.live = m.src.rows(), m.src.rows()
	m.start()
	for range steps {
		if err := m.step(); err != nil {
			return m, err
		}
	}
	// Nothing more happens at the source, and the load comes to its end.
	m.src.settle()
	for n := 0; m.emitted < len(m.src.wal) || m.begun >= 0; n++ {
		if err := m.publish(); err != nil {
			return m, err
		}
		if n > 5000 {
			return m, fmt.Errorf("the load does not end: %+v", m.pub.load)
		}
	}
	return m, nil
}

func (m *model) step() error {
	switch n := m.draw(40); {
	case n < 18:
		m.src.step()
	case n == 18 && m.draw(4) == 0:
		m.start()
		m.crashes++
	case n == 20:
		m.pub.pending.Show(m.src.snapshot())
	default:
		return m.publish()
	}
	return nil
}

// start begins a reign.
func (m *model) start() {
	if m.pub != nil && m.pub.chunk != nil && m.pub.chunk.locked {
		m.src.readers--
	}
	if m.flaw != flawSuspectsEarly {
		m.src.bump()
	}
	s := m.src.snapshot()
	if m.flaw == flawNoSuspects {
		s.Running = nil
	}
	m.pub = &publisher{pending: NewPending(s)}
	if m.begun < 0 {
		return
	}
	l, err := Resume(m.progress, limits(m.draw))
	if err != nil {
		panic(err)
	}
	if m.pub.load = l; m.draw(8) == 0 {
		l.Restart()
		m.progress = l.Progress()
	}
}

func key(k int) []byte { return []byte{byte(k)} }

// note tells the load and the window of an emitted change.
func (m *model) note(w *Window, x XID, c change) {
	l := m.pub.load
	if c.kind == millrace.KindTruncate {
		l.Emitted(Change{Kind: c.kind})
		if w != nil && m.flaw != flawNoTruncate {
			w.NoteAll(x)
		}
		return
	}
	ch := Change{Kind: c.kind, Key: key(c.key), Unchanged: c.unchanged && m.flaw != flawNoMissing}
	if c.kind == millrace.KindPut && c.from != c.key {
		ch.From = key(c.from)
	}
	complete := l.complete
	if m.flaw == flawMissingLate && l.block > 0 {
		l.complete = true
	}
	pass := l.pass
	l.Emitted(ch)
	if l.pass == pass {
		l.complete = complete
	}
	if w != nil && (m.flaw != flawOldKey || !c.moved) {
		w.Note(x, key(c.key))
	}
}

// emit emits the next transaction.
func (m *model) emit() error {
	t := m.src.wal[m.emitted]
	x := m.pub.pending.Emitted(uint32(t.xid))
	if x != t.xid {
		return fmt.Errorf("transaction %d was widened to %d", t.xid, x)
	}
	var w *Window
	if m.pub.chunk != nil {
		w = m.pub.chunk.window
	}
	for _, c := range t.changes {
		if err := m.edge.apply(c); err != nil {
			return err
		}
		if err := m.truth.apply(c); err != nil {
			return fmt.Errorf("the model itself: %w", err)
		}
		if m.pub.load != nil {
			m.note(w, x, c)
		}
	}
	if l := m.pub.load; l != nil {
		more, void := l.Added()
		if m.flaw != flawNotAdded {
			m.progress = append(slices.Clip(m.progress), more...)
		}
		if void && m.flaw != flawNotVoid {
			m.progress = nil
		}
	}
	m.emitted++
	return m.check("live", m.edge.live)
}

func (m *model) check(what string, got map[int]row) error {
	if !maps.Equal(got, m.truth.live) {
		return fmt.Errorf("after %d transactions the %s rows are %v, want %v", m.emitted, what, got, m.truth.live)
	}
	return nil
}

// publish lets the publisher do one thing.
func (m *model) publish() error {
	if m.emitted < len(m.src.wal) && m.draw(2) == 0 {
		return m.emit()
	}
	p := m.pub
	switch {
	case p.load == nil:
		if m.loads < 3 || m.begun >= 0 {
			m.edge.shadow = make(map[int]row)
			p.load = NewLoad(limits(m.draw))
			m.begun, m.progress = m.emitted, nil
			m.planned = m.src.blocks()
		}
		return nil
	case p.load.Finished():
		if err := m.check("shadow", m.edge.shadow); err != nil {
			return err
		}
		m.edge.live, m.edge.shadow = m.edge.shadow, nil
		p.load, p.chunk, m.begun = nil, nil, -1
		m.loads++
		return m.check("live", m.edge.live)
	case p.chunk == nil:
		p.chunk = new(reading)
		if m.flaw != flawWindowLate {
			p.chunk.window = p.load.Open(p.pending)
		}
		return nil
	}
	return m.read(p.chunk)
}

// read takes a chunk one step further.
func (m *model) read(r *reading) error {
	l := m.pub.load
	switch r.step {
	case 0: // lock
		if m.flaw == flawSnapshotFirst && !r.taken {
			r.snap, r.taken = m.src.snapshot(), true
			return nil
		}
		if m.src.exclusive != nil {
			return nil
		}
		m.src.readers++
		r.locked = true
		if m.flaw == flawMessageEarly {
			r.message = len(m.src.wal)
		}
	case 1: // snapshot
		if !r.taken {
			r.snap, r.taken = m.src.snapshot(), true
		}
		m.show(r.snap)
		w := r.window
		if m.flaw == flawWindowLate {
			w = l.Open(m.pub.pending)
		}
		if m.flaw == flawNotAccepted {
			w.before = nil
		}
		if !w.Accept(r.snap) {
			m.src.readers--
			r.locked, r.taken, r.step = false, false, 0
			return nil
		}
	case 2: // rows
		if m.flaw == flawWindowLate {
			r.window = l.Open(m.pub.pending)
			r.window.before = nil
			r.window.Accept(r.snap)
		}
		file := uint32(m.src.file)
		if m.flaw == flawNoFile {
			file = 1
		}
		matched := l.Match(r.window, []Leaf{{ID: 1, File: file}})
		if !matched && m.flaw == flawForgetMissing {
			l.forget()
		}
		if l.Finished() { // the flaw forgot what there was to do
			break
		}
		r.chunk = l.Next(r.window)
		if m.flaw == flawBounded || m.flaw == flawEmpty && m.planned == 0 {
			if len(r.chunk.Keys) == 0 && int(r.chunk.To) >= m.planned {
				r.chunk.To = 0
			}
		} else {
			r.chunk.Bound(uint32(m.src.blocks()))
		}
		r.rows = m.src.read(r.snap, r.chunk, m.limit(r.chunk))
		m.src.readers--
		r.locked = false
		if m.flaw != flawMessageEarly {
			r.message = len(m.src.wal)
		}
	case 3: // emit
		if m.emitted < r.message && m.flaw != flawEmitAtOnce {
			return nil
		}
		m.pub.chunk = nil
		if r.rows == nil {
			return nil
		}
		if r.window.Overflown() {
			if m.flaw != flawOverflow {
				return nil // and again
			}
			r.window.overflown = false
		}
		for _, k := range slices.Sorted(maps.Keys(r.rows)) {
			if r.window.LeavesOut(key(k)) && m.flaw != flawLeaveOutNothing {
				continue
			}
			m.edge.shadow[k] = r.rows[k]
			l.Row(key(k))
		}
		l.Done(r.window, r.chunk)
		m.progress = l.Progress()
		return nil
	}
	r.step++
	return nil
}

// limit is the block that no read goes behind.
func (m *model) limit(c Chunk) int {
	if m.flaw == flawBounded || m.flaw == flawEmpty && m.planned == 0 {
		return m.planned
	}
	return 1 << 30
}

func (m *model) show(s Snapshot) {
	if m.flaw == flawXmin {
		s.Running = nil
	}
	m.pub.pending.Show(s)
	if m.flaw == flawXmin && m.pub.chunk.window != nil {
		m.pub.chunk.window.Accept(s)
	}
}

const modelSteps = 400

// flawRuns is how many runs a flaw may take to be noticed. The rarest needs 600 of them
// on average, and so more than 3,000 from one seed in a hundred.
const flawRuns = 50_000

// TestLoadModel plays random runs. The same number gives the same run.
func TestLoadModel(t *testing.T) {
	first := firstSeed(t)
	var loads, crashes int
	for seed := first; seed < first+*modelRuns; seed++ {
		m, err := runModel(rand.New(rand.NewPCG(seed, 2)).IntN, flawNone, modelSteps)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		loads, crashes = loads+m.loads, crashes+m.crashes
	}
	t.Logf("%d runs, %d loads, %d crashes", *modelRuns, loads, crashes)
}

// TestLoadModelCatchesFlaws breaks one rule at a time: the model must notice
// each within a bounded number of runs.
func TestLoadModelCatchesFlaws(t *testing.T) {
	for _, f := range flaws {
		t.Run(string(f), func(t *testing.T) {
			first := firstSeed(t)
			for seed := first; seed < first+flawRuns; seed++ {
				if _, err := runModel(rand.New(rand.NewPCG(seed, 2)).IntN, f, modelSteps); err != nil {
					t.Logf("caught by run %d (seed %d): %v", seed-first+1, seed, err)
					return
				}
			}
			t.Fatalf("the flaw %q was not noticed in %d runs from seed %d", f, flawRuns, first)
		})
	}
}

func firstSeed(t *testing.T) uint64 {
	t.Helper()
	seed := *modelSeed
	if seed == 0 {
		seed = rand.Uint64N(1 << 40)
	}
	t.Logf("first seed %d (repeat with -model.seed=%d)", seed, seed)
	return seed
}
