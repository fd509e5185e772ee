package millrace

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"
)

// scribe makes the records of one publisher, continuing its own history.
type scribe struct {
	t         testing.TB
	stream    StreamID
	epoch     Epoch
	term      Term
	publisher PublisherID
	index     Index // of the last entry written
	done      Index // of the last complete unit
	chain     Chain
	ordinal   uint64
	hash      UnitHash
}

func newScribe(t testing.TB, term Term, name byte) *scribe {
	id := StreamID{1}
	return &scribe{t: t, stream: id, epoch: 1, term: term, publisher: PublisherID{name}, chain: NewChain(id, 1)}
}

// after makes a scribe that goes on from another one's last complete unit.
func (s *scribe) after(term Term, name byte) *scribe {
	return &scribe{
		t: s.t, stream: s.stream, epoch: s.epoch, term: term, publisher: PublisherID{name},
		index: s.done, done: s.done, chain: s.chain,
	}
}

func (s *scribe) header(kind RecordKind) Header {
	return Header{Kind: kind, Stream: s.stream, Epoch: s.epoch, Term: s.term, Publisher: s.publisher}
}

func (s *scribe) record(h Header, payload []byte) *Record {
	s.t.Helper()
	b, err := AppendRecord(nil, &h, payload, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	r, err := DecodeRecord(b, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	return r
}

func (s *scribe) reign() *Record { return s.record(s.header(RecordTerm), nil) }

func (s *scribe) state() *Record {
	h := s.header(RecordState)
	h.First, h.Prev, h.Chain = s.done+1, s.chain, s.chain
	return s.record(h, AppendState(nil, &State{}))
}

// batch writes the given entries; Ordinal is filled in.
func (s *scribe) batch(entries ...Entry) *Record {
	s.t.Helper()
	h := s.header(RecordBatch)
	h.First, h.Count, h.Prev = s.index+1, uint32(len(entries)), s.chain
	var payload []byte
	chain := s.chain
	for _, e := range entries {
		e.Ordinal = s.ordinal
		one := appendMessageField(nil, payloadEntries, func(dst []byte) []byte { return AppendEntry(dst, &e) })
		payload = append(payload, one...)
		s.hash.Add(e.Table, one)
		s.hash.Absorb()
		s.index++
		s.ordinal++
		if e.Last {
			chain = s.hash.Chain(chain)
			s.hash.Reset()
			s.ordinal, s.done = 0, s.index
		}
	}
	h.Chain = chain
	if s.ordinal > 0 {
		h.Chain = s.hash.Chain(chain)
	} else {
		h.Position = Position{Mode: ModeWAL, SystemID: 1, Timeline: 1, Slot: "s", LSN: LSN(s.done)}
	}
	s.chain = chain
	return s.record(h, payload)
}

func put(key string) Entry {
	return Entry{Kind: KindPut, Table: 9, Key: []byte(key), Row: AppendRow(nil, 1, []Datum{{Text: []byte(key)}})}
}

func end(e Entry) Entry {
	e.Last = true
	e.End = UnitEnd{Time: time.UnixMicro(5).UTC(), Token: 5}
	return e
}

// altered returns a copy of r after fn, with a CRC that fits: what an altered
// record looks like that no checksum gives away.
func altered(r *Record, fn func(*Record)) *Record {
	c := *r
	c.Payload = append([]byte(nil), r.Payload...)
	fn(&c)
	return &c
}

func TestFoldCases(t *testing.T) {
	type step struct {
		record *Record
		want   Outcome
		err    error
	}
	ok := func(r *Record, o Outcome) step { return step{r, o, nil} }
	stop := func(r *Record, err error) step { return step{r, 0, err} }
	var zero Record

	for _, tt := range []struct {
		name  string
		steps func(t *testing.T) []step
		index Index // at the end
		open  bool
	}{
		{"a reign, whole units, a cut unit", func(t *testing.T) []step {
			a := newScribe(t, 1, 'a')
			return []step{
				ok(a.reign(), Reign),
				ok(a.batch(end(put("1")), put("2"), end(put("3"))), Accepted),
				ok(a.batch(put("4"), put("5")), Accepted),
				ok(a.batch(put("6")), Accepted),
				ok(a.batch(end(put("7"))), Accepted),
				ok(a.state(), Noted),
			}
		}, 7, false},
		{"a unit that goes on is provisional", func(t *testing.T) []step {
			a := newScribe(t, 1, 'a')
			return []step{ok(a.reign(), Reign), ok(a.batch(end(put("1"))), Accepted), ok(a.batch(put("2"), put("3")), Accepted)}
		}, 1, true},
		{"a new reign voids the open unit and frees its indexes", func(t *testing.T) []step {
			a := newScribe(t, 1, 'a')
			steps := []step{ok(a.reign(), Reign), ok(a.batch(end(put("1"))), Accepted), ok(a.batch(put("2"), put("3")), Accepted)}
			b := a.after(2, 'b')
			late := a.batch(end(put("4")))
			return append(steps, ok(b.reign(), Reign), ok(b.batch(end(put("x"))), Accepted), ok(late, Stale))
		}, 2, false},
		{"of two that claim one term the first wins", func(t *testing.T) []step {
			a, b := newScribe(t, 1, 'a'), newScribe(t, 1, 'b')
			return []step{
				ok(a.reign(), Reign), ok(b.reign(), Stale),
				ok(b.batch(end(put("lost"))), Stale), ok(b.state(), Stale),
				ok(a.batch(end(put("1"))), Accepted),
			}
		}, 1, false},
		{"a term record that comes late is ignored", func(t *testing.T) []step {
			a := newScribe(t, 1, 'a')
			b := a.after(3, 'b')
			c := a.after(2, 'c')
			return []step{ok(a.reign(), Reign), ok(b.reign(), Reign), ok(c.reign(), Stale), ok(b.batch(end(put("1"))), Accepted)}
		}, 1, false},
		{"a repeated batch, part or state changes nothing", func(t *testing.T) []step {
			a := newScribe(t, 1, 'a')
			reign := a.reign()
			one, state, two, three := a.batch(end(put("1"))), a.state(), a.batch(put("2")), a.batch(end(put("3")))
			return []step{
				ok(reign, Reign), ok(reign, Stale), ok(one, Accepted), ok(one, Repeated), ok(state, Noted), ok(two, Accepted),
				ok(state, Repeated), ok(two, Repeated), ok(one, Repeated), ok(three, Accepted), ok(two, Repeated), ok(state, Repeated),
			}
		}, 3, false},
		{"a differing repeat stops", func(t *testing.T) []step {
			a := newScribe(t, 1, 'a')
			other := a.after(1, 'a').batch(end(put("other")))
			return []step{ok(a.reign(), Reign), ok(a.batch(end(put("1"))), Accepted), stop(other, ErrDiverged)}
		}, 1, false},
		{"a gap stops, and stays a stop", func(t *testing.T) []step {
			a := newScribe(t, 1, 'a')
			reign, one, two, three := a.reign(), a.batch(end(put("1"))), a.batch(end(put("2"))), a.batch(end(put("3")))
			return []step{ok(reign, Reign), ok(one, Accepted), stop(three, ErrGap), stop(two, ErrGap)}
		}, 1, false},
		{"another history at the same index stops", func(t *testing.T) []step {
			a := newScribe(t, 1, 'a')
			b := a.after(1, 'a')
			b.chain = Chain{1}
			return []step{ok(a.reign(), Reign), stop(b.batch(end(put("1"))), ErrDiverged)}
		}, 0, false},
		{"an altered entry stops, and its batch is not taken in", func(t *testing.T) []step {
			a := newScribe(t, 1, 'a')
			reign, one, two := a.reign(), a.batch(end(put("1"))), a.batch(end(put("2")), end(put("zz")))
			bad := altered(two, func(r *Record) { r.Payload[strings.Index(string(r.Payload), "zz")]++ })
			return []step{ok(reign, Reign), ok(one, Accepted), stop(bad, ErrDiverged)}
		}, 1, false},
		{"an altered part of a unit stops at once", func(t *testing.T) []step {
			a := newScribe(t, 1, 'a')
			reign, one := a.reign(), a.batch(put("1"), put("zz"))
			bad := altered(one, func(r *Record) { r.Payload[strings.Index(string(r.Payload), "zz")]++ })
			return []step{ok(reign, Reign), stop(bad, ErrDiverged)}
		}, 0, false},
		{"a term that was never seen stops", func(t *testing.T) []step {
			a := newScribe(t, 1, 'a')
			return []step{ok(a.reign(), Reign), stop(a.after(2, 'b').batch(end(put("1"))), ErrUnknownTerm)}
		}, 0, false},
		{"a state that names another history stops", func(t *testing.T) []step {
			a := newScribe(t, 1, 'a')
			b := a.after(1, 'a')
			b.chain = Chain{1}
			return []step{ok(a.reign(), Reign), stop(b.state(), ErrDiverged)}
		}, 0, false},
		{"a state ahead of the history stops", func(t *testing.T) []step {
			a := newScribe(t, 1, 'a')
			b := a.after(1, 'a')
			b.done = 5
			return []step{ok(a.reign(), Reign), stop(b.state(), ErrGap)}
		}, 0, false},
		{"another stream or epoch stops", func(t *testing.T) []step {
			a := newScribe(t, 1, 'a')
			b := newScribe(t, 1, 'a')
			b.stream = StreamID{2}
			return []step{ok(a.reign(), Reign), stop(b.reign(), ErrForeign)}
		}, 0, false},
		{"another epoch stops", func(t *testing.T) []step {
			a := newScribe(t, 1, 'a')
			a.epoch = 2
			return []step{stop(a.reign(), ErrForeign)}
		}, 0, false},
		{"ordinals with a hole stop", func(t *testing.T) []step {
			a := newScribe(t, 1, 'a')
			reign := a.reign()
			a.ordinal = 1
			return []step{ok(reign, Reign), stop(a.batch(end(put("1"))), ErrMalformed)}
		}, 0, false},
		{"a part of a unit beside another unit stops", func(t *testing.T) []step {
			a := newScribe(t, 1, 'a')
			return []step{ok(a.reign(), Reign), stop(a.batch(end(put("1")), put("2")), ErrMalformed)}
		}, 0, false},
		{"the rest of a cut unit beside another unit stops", func(t *testing.T) []step {
			a := newScribe(t, 1, 'a')
			return []step{ok(a.reign(), Reign), ok(a.batch(put("1")), Accepted), stop(a.batch(end(put("2")), end(put("3"))), ErrMalformed)}
		}, 0, true},
		{"an entry more than the header says stops", func(t *testing.T) []step {
			a := newScribe(t, 1, 'a')
			two := a.batch(end(put("1")), end(put("2")))
			return []step{ok(a.reign(), Reign), stop(altered(two, func(r *Record) { r.Count = 1 }), ErrMalformed)}
		}, 0, false},
		{"an entry less than the header says stops", func(t *testing.T) []step {
			a := newScribe(t, 1, 'a')
			one := a.batch(end(put("1")))
			return []step{ok(a.reign(), Reign), stop(altered(one, func(r *Record) { r.Count = 2 }), ErrMalformed)}
		}, 0, false},
		{"an unknown entry type stops", func(t *testing.T) []step {
			a := newScribe(t, 1, 'a')
			e := put("1")
			e.Kind = Kind(NumKinds)
			return []step{ok(a.reign(), Reign), stop(a.batch(end(e)), ErrMalformed)}
		}, 0, false},
		{"a record of no kind stops", func(t *testing.T) []step {
			return []step{stop(&zero, ErrForeign)}
		}, 0, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := NewFold(StreamID{1}, 1)
			for i, s := range tt.steps(t) {
				got, err := f.Step(s.record)
				if !errors.Is(err, s.err) || got != s.want {
					t.Fatalf("step %d: got %v, %v; want %v, %v", i, got, err, s.want, s.err)
				}
				if err != nil && !NeedsOperator(err) {
					t.Errorf("step %d: %v would be retried", i, err)
				}
			}
			if f.Index() != tt.index || f.Open() != tt.open {
				t.Errorf("at index %v open %v, want %v %v", f.Index(), f.Open(), tt.index, tt.open)
			}
		})
	}
}

func TestFoldCatalog(t *testing.T) {
	schema := func(v SchemaVersion) *Schema {
		return &Schema{
			Version: v, Table: 9, Namespace: "public", Name: "t",
			Columns: []Column{{Name: "id", Type: 20, Typmod: -1, NotNull: true, KeyOrdinal: 1}},
			Types:   []TypeDesc{{OID: 20, Kind: TypeBase, Schema: "pg_catalog", Name: "int8"}},
		}
	}
	a := newScribe(t, 1, 'a')
	f := NewFold(a.stream, 1)
	step := func(r *Record) {
		t.Helper()
		if _, err := f.Step(r); err != nil {
			t.Fatal(err)
		}
	}
	step(a.reign())
	step(a.batch(Entry{Kind: KindSchema, Table: 9, Schema: schema(1)}, end(Entry{Kind: KindLoadBegin, Table: 9, Load: 1})))
	if c := f.Catalog(); c.Schema(9) == nil || len(c.Loads) != 1 || c.LastLoad != 1 || c.LastVersion != 1 {
		t.Fatalf("catalog %+v", c)
	}
	// What an open unit says is not in the catalog before its end, and never if
	// the unit is void.
	step(a.batch(Entry{Kind: KindLoadEnd, Table: 9, Load: 1}))
	if len(f.Catalog().Loads) != 1 {
		t.Fatal("an open unit ended a load")
	}
	b := a.after(2, 'b')
	step(b.reign())
	step(b.batch(end(put("1"))))
	if len(f.Catalog().Loads) != 1 {
		t.Fatal("a void unit ended a load")
	}
	// A new load of the table takes the place of the one that was cut off.
	step(b.batch(Entry{Kind: KindSchema, Table: 9, Schema: schema(2)}, end(Entry{Kind: KindLoadBegin, Table: 9, Load: 2})))
	if c := f.Catalog(); len(c.Loads) != 1 || c.Loads[0].ID != 2 || c.Schema(9).Version != 2 {
		t.Fatalf("catalog %+v", c)
	}
	h, payload := f.StateRecord()
	state := b.record(h, payload)
	step(state)
	g, err := FoldFromState(state)
	if err != nil {
		t.Fatal(err)
	}
	rest := []*Record{b.batch(end(Entry{Kind: KindLoadEnd, Table: 9, Load: 2})), b.batch(end(put("2")))}
	for _, r := range rest {
		step(r)
		if _, err := g.Step(r); err != nil {
			t.Fatal(err)
		}
	}
	if g.Chain() != f.Chain() || len(g.Catalog().Loads) != 0 || g.Catalog().LastLoad != 2 {
		t.Fatalf("a reader from the state record came to %v %+v", g.Chain(), g.Catalog())
	}
	// A load ends once.
	if _, err := f.Step(b.batch(end(Entry{Kind: KindLoadEnd, Table: 9, Load: 2}))); !errors.Is(err, ErrMalformed) {
		t.Fatalf("ending a load twice: %v", err)
	}
}

// TestFoldProgress: notes of a load add up, and nobody who has a catalog sees
// them change.
func TestFoldProgress(t *testing.T) {
	a := newScribe(t, 1, 'a')
	f := NewFold(a.stream, 1)
	try := func(r *Record) error { _, err := f.Step(r); return err }
	step := func(e Entry) {
		t.Helper()
		if err := try(a.batch(end(e))); err != nil {
			t.Fatal(err)
		}
	}
	progress := func(info LoadInfo) Entry { return Entry{Kind: KindLoadProgress, Table: 9, Load: 1, LoadInfo: &info} }
	if err := try(a.reign()); err != nil {
		t.Fatal(err)
	}
	step(Entry{Kind: KindSchema, Table: 9, Schema: &Schema{
		Version: 1, Table: 9, Namespace: "public", Name: "t",
		Columns: []Column{{Name: "id", Type: 20, Typmod: -1, NotNull: true, KeyOrdinal: 1}},
		Types:   []TypeDesc{{OID: 20, Kind: TypeBase, Schema: "pg_catalog", Name: "int8"}},
	}})
	step(Entry{Kind: KindLoadBegin, Table: 9, Load: 1, LoadInfo: &LoadInfo{Progress: []byte("ab")}})
	kept := f.Catalog().Clone()
	for _, tt := range []struct {
		info LoadInfo
		want string
	}{
		{LoadInfo{Added: []byte("c")}, "abc"},
		{LoadInfo{Added: []byte("d")}, "abcd"},
		{LoadInfo{Progress: []byte("x")}, "x"},
		{LoadInfo{Reason: "anew"}, ""},
		{LoadInfo{Added: bytes.Repeat([]byte("y"), MaxProgress-1)}, strings.Repeat("y", MaxProgress-1)},
		{LoadInfo{Added: []byte("z")}, strings.Repeat("y", MaxProgress-1) + "z"},
	} {
		before := f.Catalog().Clone()
		was := string(before.Loads[0].Progress)
		r := a.batch(end(progress(tt.info)))
		if err := try(r); err != nil {
			t.Fatal(err)
		}
		clear(r.Payload) // the record is not kept
		if got := string(f.Catalog().Loads[0].Progress); got != tt.want {
			t.Errorf("progress is %.20q (%d bytes), want %.20q", got, len(got), tt.want)
		}
		if got := string(before.Loads[0].Progress); got != was {
			t.Errorf("a catalog that was kept went from %.20q to %.20q", was, got)
		}
	}
	if got := string(kept.Loads[0].Progress); got != "ab" {
		t.Errorf("the first catalog has come to %q", got)
	}
	// A reader may begin at the largest note.
	h, payload := f.StateRecord()
	g, err := FoldFromState(a.record(h, payload))
	if err != nil || !reflect.DeepEqual(g.Catalog(), f.Catalog()) {
		t.Errorf("from the state record: %v", err)
	}
	// None of these belongs to the history.
	for name, e := range map[string]Entry{
		"note above the limit": progress(LoadInfo{Added: []byte("z")}),
		"another load":         {Kind: KindLoadProgress, Table: 9, Load: 2, LoadInfo: &LoadInfo{}},
		"another table":        {Kind: KindLoadProgress, Table: 8, Load: 1, LoadInfo: &LoadInfo{}},
		"drop of another":      {Kind: KindDrop, Table: 8},
	} {
		c := f.Checkpoint()
		b := *a
		if _, err := FoldFrom(&c).Step(b.batch(end(e))); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: got %v, want ErrMalformed", name, err)
		}
	}
	// With the table its load goes; its versions stay used.
	step(Entry{Kind: KindDrop, Table: 9})
	if c := f.Catalog(); c.Schema(9) != nil || len(c.Loads) != 0 || c.LastVersion != 1 || c.LastLoad != 1 {
		t.Errorf("after the drop: %+v", c)
	}
}

// A late repeat must be judged alike by a reader from the topic's start and by
// one that began at a state record after the batch.
func TestFoldFromStateKnowsRepeats(t *testing.T) {
	a := newScribe(t, 1, 'a')
	f := NewFold(a.stream, 1)
	reign, one := a.reign(), a.batch(end(put("1")))
	for _, r := range []*Record{reign, one} {
		if _, err := f.Step(r); err != nil {
			t.Fatal(err)
		}
	}
	h, payload := f.StateRecord()
	g, err := FoldFromState(a.record(h, payload))
	if err != nil {
		t.Fatal(err)
	}
	for name, fold := range map[string]*Fold{"start": f, "state": g} {
		if o, err := fold.Step(one); o != Repeated || err != nil {
			t.Errorf("reader from the %s: %v, %v", name, o, err)
		}
	}
}

// FuzzFold plays scripts of records, most of them wrong in some way. Whatever
// comes, the fold keeps its invariants, and a second fold that starts at a
// checkpoint of the first agrees with it from there on.
func FuzzFold(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9})
	f.Add([]byte("\x00\x10\x10\x11\x20\x10\x00\x10\x13\x10\x12"))
	f.Add([]byte{0, 16, 17, 18, 19, 20, 21, 22, 23, 0, 16, 40, 41, 42})
	f.Fuzz(func(t *testing.T, script []byte) {
		if len(script) > 200 {
			return
		}
		scribes := []*scribe{newScribe(t, 1, 'a'), newScribe(t, 1, 'b'), newScribe(t, 2, 'c')}
		full := NewFold(scribes[0].stream, 1)
		var late *Fold
		var made []*Record
		for _, op := range script {
			s := scribes[int(op>>4)%len(scribes)]
			var r *Record
			switch op & 15 {
			case 0:
				s.term++
				r = s.reign()
			case 1, 2, 3:
				r = s.batch(end(put(fmt.Sprint(op))))
			case 4, 5:
				r = s.batch(put("p"), put("q"))
			case 6:
				r = s.batch(put("r"), end(put("s")))
			case 7:
				r = s.state()
			case 8, 9:
				if len(made) == 0 {
					continue
				}
				r = made[int(op)%len(made)]
			case 10:
				// The scribe reads the topic: it goes on from the accepted end.
				*s = *s.after(s.term, s.publisher[0])
				s.index, s.done, s.chain = full.Index(), full.Index(), full.Chain()
				continue
			case 11:
				c := full.Checkpoint()
				if !full.Open() {
					late = FoldFrom(&c)
				}
				continue
			case 12:
				if len(made) == 0 {
					continue
				}
				r = altered(made[len(made)-1], func(r *Record) {
					if len(r.Payload) > 0 {
						r.Payload[int(op)%len(r.Payload)] ^= 1 << (op >> 5)
					}
				})
			default:
				r = s.batch(end(put("a")), end(put("b")))
			}
			made = append(made, r)
			index, next, chain := full.Index(), full.Next(), full.Chain()
			o, err := full.Step(r)
			if full.Index() < index || full.Next() <= full.Index() {
				t.Fatalf("index went from %v to %v, next %v", index, full.Index(), full.Next())
			}
			if (err != nil || o != Accepted && o != Reign) && (full.Index() != index || full.Chain() != chain) {
				t.Fatalf("%v, %v moved the history", o, err)
			}
			if err == nil && o != Accepted && o != Reign && full.Next() != next {
				t.Fatalf("%v moved the next index", o)
			}
			if late != nil {
				lo, lerr := late.Step(r)
				if lo != o || (lerr == nil) != (err == nil) || late.Index() != full.Index() || late.Chain() != full.Chain() {
					t.Fatalf("a reader from a checkpoint: %v, %v; from the start: %v, %v", lo, lerr, o, err)
				}
			}
			if err != nil {
				return
			}
		}
	})
}
