package transfer

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/control"
)

var testStream = millrace.StreamID{9}

// frames runs units through sequencer and queue. take decides after each piece
// whether a publisher comes by.
func frames(t testing.TB, units []*millrace.Unit, take func() bool) []*batch {
	t.Helper()
	s := newSequencer(&millrace.Checkpoint{Chain: millrace.NewChain(testStream, 1)})
	q := newQueue()
	var batches []*batch
	grab := func() {
		if b := q.gathering; b != nil {
			q.gathering = nil
			batches = append(batches, b)
		}
	}
	for _, u := range units {
		err := s.add(u, func(p *piece) error {
			if !q.tryPut(p) {
				grab()
				if !q.tryPut(p) {
					t.Fatal("an empty queue has no room")
				}
			}
			if take() {
				grab()
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	grab()
	return batches
}

// foldBatches encodes, decodes and folds batches.
func foldBatches(t testing.TB, batches []*batch) *millrace.Fold {
	t.Helper()
	f := millrace.NewFold(testStream, 1)
	step := func(h millrace.Header, payload []byte, want millrace.Outcome) {
		h.Stream, h.Epoch, h.Term, h.Publisher = testStream, 1, 1, millrace.PublisherID{5}
		b, err := millrace.AppendRecord(nil, &h, payload, nil)
		if err != nil {
			t.Fatal(err)
		}
		r, err := millrace.DecodeRecord(b, nil)
		if err != nil {
			t.Fatal(err)
		}
		if o, err := f.Step(r); err != nil || o != want {
			t.Fatalf("fold of indexes %v to %v: %v, %v", h.First, h.Last(), o, err)
		}
	}
	step(millrace.Header{Kind: millrace.RecordTerm}, nil, millrace.Reign)
	for _, b := range batches {
		back := control.Counts{}
		if err := countPayload(b.payload, back); err != nil || !back.Equal(b.captured) || back.Total() != uint64(b.count) {
			t.Fatalf("counts of indexes %v to %v: %v, payload has %v (%v)", b.first, b.last(), b.captured, back, err)
		}
		if len(b.payload) > maxBatch && b.count > 1 {
			t.Fatalf("batch of %d entries has %d bytes", b.count, len(b.payload))
		}
		step(b.header(), b.payload, millrace.Accepted)
		if f.Open() != b.open {
			t.Fatalf("unit open at the fold: %v, at the publisher: %v", f.Open(), b.open)
		}
		if !b.open && (f.Index() != b.last() || f.Chain() != b.chain || f.Position() != b.position || !f.Time().Equal(b.at)) {
			t.Fatalf("after indexes %v to %v the fold is elsewhere", b.first, b.last())
		}
	}
	return f
}

func TestFraming(t *testing.T) {
	for seed := range uint64(25) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 0))
			var units []*millrace.Unit
			var want []byte
			n := 1 + random.IntN(40)
			for i := 1; i <= n; i++ {
				sizes := make([]int, 1+random.IntN(5))
				for j := range sizes {
					sizes[j] = 10 + random.IntN(200)
					switch random.IntN(30) {
					case 0:
						sizes[j] = random.IntN(2 * maxBatch)
					case 1:
						sizes = append(sizes, make([]int, random.IntN(3000))...)
						sizes[j] = maxBatch - 100 + random.IntN(200)
					}
				}
				for j := range sizes {
					sizes[j] = max(sizes[j], 10)
				}
				units = append(units, unitOf(i, sizes))
				want = append(want, (&world{t: t, make: func(int) *millrace.Unit { return unitOf(i, sizes) }}).payload(i)...)
			}
			every := 1 + random.IntN(20)
			batches := frames(t, units, func() bool { return random.IntN(every) == 0 })
			fold := foldBatches(t, batches)
			if fold.Open() || fold.Position() != position(n) {
				t.Errorf("fold ends at %v, want unit %d", fold.Position(), n)
			}
			var got []byte
			for _, b := range batches {
				got = append(got, b.payload...)
			}
			if !bytes.Equal(got, want) {
				t.Error("batches do not hold what the units gave")
			}
		})
	}
}

func TestLargestEntry(t *testing.T) {
	var w millrace.UnitWriter
	for _, size := range []int{50, millrace.MaxEntry - 100, 50} {
		row := make([]byte, size)
		if _, err := rand.NewChaCha8([32]byte{}).Read(row); err != nil {
			t.Fatal(err)
		}
		if err := w.Put(16384, []byte{1}, nil, row, 0); err != nil {
			t.Fatal(err)
		}
	}
	payload, err := w.Finish(millrace.UnitEnd{Time: unitTime(2), Token: 2})
	if err != nil {
		t.Fatal(err)
	}
	units := []*millrace.Unit{unitOf(1, []int{50}), millrace.NewUnit(position(2), unitTime(2), 3, payload), unitOf(3, []int{50})}
	var largest int
	batches := frames(t, units, func() bool { return false })
	for _, b := range batches {
		largest = max(largest, len(b.payload))
	}
	if largest < millrace.MaxEntry-200 {
		t.Errorf("the largest batch has %d bytes", largest)
	}
	foldBatches(t, batches)
}

func TestGathering(t *testing.T) {
	var units []*millrace.Unit
	for i := 1; i <= 100; i++ {
		units = append(units, unitOf(i, []int{50}))
	}
	if got := len(frames(t, units, func() bool { return false })); got != 1 {
		t.Errorf("100 small units that nobody takes are %d batches, want 1", got)
	}
}

// TestVerifyEndsItsBatch: an edge compares its rows with a Verify entry after the
// commit that the entry's unit ends, and it commits batches.
func TestVerifyEndsItsBatch(t *testing.T) {
	var units []*millrace.Unit
	for i := 1; i <= 100; i++ {
		if i%10 != 0 {
			units = append(units, unitOf(i, []int{50}))
			continue
		}
		var w millrace.UnitWriter
		if err := w.Append(&millrace.Entry{Kind: millrace.KindVerify, Table: 16384, Verify: &millrace.VerifyRange{ID: 1}}); err != nil {
			t.Fatal(err)
		}
		payload, err := w.Finish(millrace.UnitEnd{Time: unitTime(i), Token: uint64(i)})
		if err != nil {
			t.Fatal(err)
		}
		units = append(units, millrace.NewUnit(position(i), unitTime(i), 1, payload))
	}
	batches := frames(t, units, func() bool { return false })
	foldBatches(t, batches)
	if len(batches) != 10 {
		t.Errorf("100 small units, each tenth with a Verify entry, are %d batches, want 10", len(batches))
	}
	for _, b := range batches {
		if b.last()%10 != 0 {
			t.Errorf("a batch ends at index %v", b.last())
		}
	}
}

// TestBadUnits: what a capture must never give stops the stream.
func TestBadUnits(t *testing.T) {
	payload := func(n int) []byte { return (&world{t: t, make: smallUnit}).payload(n) }
	whole := payload(3) // four entries
	first := func() int {
		var h millrace.Head
		rest, err := millrace.NextHead(whole, &h)
		if err != nil {
			t.Fatal(err)
		}
		return len(whole) - len(rest)
	}()
	for name, u := range map[string]*millrace.Unit{
		"first entry missing":   millrace.NewUnit(position(1), unitTime(1), 3, whole[first:]),
		"wrong number":          millrace.NewUnit(position(1), unitTime(1), 5, whole),
		"two units in one":      millrace.NewUnit(position(1), unitTime(1), 8, append(append([]byte{}, whole...), whole...)),
		"last entry missing":    millrace.NewUnit(position(1), unitTime(1), 1, whole[:first]),
		"no entries":            millrace.NewUnit(position(1), unitTime(1), 0, nil),
		"cut off in an entry":   millrace.NewUnit(position(1), unitTime(1), 4, whole[:len(whole)-1]),
		"an entry of no format": millrace.NewUnit(position(1), unitTime(1), 1, []byte{0xff, 1, 2}),
	} {
		s := newSequencer(&millrace.Checkpoint{Chain: millrace.NewChain(testStream, 1)})
		err := s.add(u, func(*piece) error { return nil })
		if !errors.Is(err, millrace.ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCounts(t *testing.T) {
	a := control.Counts{}
	a.Add(1, millrace.KindPut, 5)
	a.Add(2, millrace.KindDelete, 1)
	b := clone(a)
	a.Add(1, millrace.KindPut, 2)
	subtract(a, b)
	want := control.Counts{}
	want.Add(1, millrace.KindPut, 2)
	if len(a) != 1 || !a.Equal(want) {
		t.Errorf("after subtraction: %v", a)
	}
}

// BenchmarkSequencer is one unit of four rows of 100 bytes through sequencer and
// queue; SetBytes counts its payload.
func BenchmarkSequencer(b *testing.B) {
	sizes := []int{100, 100, 100, 100}
	payload := (&world{t: b, make: func(int) *millrace.Unit { return unitOf(1, sizes) }}).payload(1)
	s := newSequencer(&millrace.Checkpoint{Chain: millrace.NewChain(testStream, 1)})
	q := newQueue()
	put := func(p *piece) error {
		for !q.tryPut(p) {
			full := q.gathering
			q.gathering = nil
			q.done(full)
		}
		return nil
	}
	b.SetBytes(int64(len(payload)))
	b.ReportAllocs()
	for b.Loop() {
		if err := s.add(millrace.NewUnit(position(1), unitTime(1), 4, payload), put); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkSequencerBulk is one unit of 10,000 rows of 100 bytes.
func BenchmarkSequencerBulk(b *testing.B) {
	sizes := make([]int, 10_000)
	for i := range sizes {
		sizes[i] = 100
	}
	payload := (&world{t: b, make: func(int) *millrace.Unit { return unitOf(1, sizes) }}).payload(1)
	s := newSequencer(&millrace.Checkpoint{Chain: millrace.NewChain(testStream, 1)})
	q := newQueue()
	put := func(p *piece) error {
		for !q.tryPut(p) {
			full := q.gathering
			q.gathering = nil
			q.done(full)
		}
		return nil
	}
	b.SetBytes(int64(len(payload)))
	b.ReportAllocs()
	for b.Loop() {
		if err := s.add(millrace.NewUnit(position(1), unitTime(1), 10_000, payload), put); err != nil {
			b.Fatal(err)
		}
	}
}
