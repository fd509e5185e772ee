package millrace

import (
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

var partialRuns = flag.Int("partial.runs", 150, "random histories that partial edges follow")

// partialHistory makes histories of every kind of entry, of units that share batches
// and units that span them, of renames, drops, reigns and states.
type partialHistory struct {
	r       *rand.Rand
	header  Header
	next    Index
	prev    Chain
	fold    *Fold
	schemas map[TableID]*Schema
	version SchemaVersion
	load    LoadID
	loads   map[TableID]LoadID
	records [][]byte
	token   uint64
}

var partialNames = []string{"a", "b", "c", "d", "e"}

func newPartialHistory(seed uint64) *partialHistory {
	id := StreamID{9}
	h := &partialHistory{
		r: rand.New(rand.NewPCG(seed, 31)), next: 1, prev: NewChain(id, 1), fold: NewFold(id, 1),
		header:  Header{Stream: id, Epoch: 1},
		schemas: make(map[TableID]*Schema), loads: make(map[TableID]LoadID),
	}
	h.reign()
	return h
}

func (h *partialHistory) add(hd Header, payload []byte) {
	key := testKey(3)
	b, err := AppendRecord(nil, &hd, payload, key)
	if err != nil {
		panic(err)
	}
	r, err := DecodeRecord(b, nil)
	if err != nil {
		panic(err)
	}
	if _, err := h.fold.Step(r); err != nil {
		panic(fmt.Sprintf("the history itself: %v", err))
	}
	h.records = append(h.records, b)
}

func (h *partialHistory) reign() {
	h.header.Term++
	h.header.Publisher = PublisherID{byte(h.header.Term)}
	hd := h.header
	hd.Kind, hd.Time = RecordTerm, time.UnixMicro(5)
	h.add(hd, nil)
}

func (h *partialHistory) key(n int) []byte {
	return binary.BigEndian.AppendUint64(nil, uint64(n)|1<<63)
}

func (h *partialHistory) schema(table TableID, name string) *Entry {
	h.version++
	s := &Schema{
		Version: h.version, Table: table, Namespace: "public", Name: name,
		Columns: []Column{{Name: "zone", Type: 20, NotNull: true, KeyOrdinal: 1}, {Name: "id", Type: 20, NotNull: true, KeyOrdinal: 2}, {Name: "v", Type: 25}},
		Types:   []TypeDesc{{OID: 20, Kind: TypeBase, Schema: "pg_catalog", Name: "int8"}, {OID: 25, Kind: TypeBase, Schema: "pg_catalog", Name: "text"}},
	}
	h.schemas[table] = s
	return &Entry{Kind: KindSchema, Table: table, Schema: s}
}

// text makes one that does not compress, so that sizes tell something.
func (h *partialHistory) text() string {
	b := make([]byte, h.r.IntN(1800))
	for i := range b {
		b[i] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"[h.r.IntN(64)]
	}
	return string(b)
}

// entries makes those of a unit.
func (h *partialHistory) entries(n int) (all []*Entry) {
	for len(all) < n {
		table := TableID(1 + h.r.IntN(len(partialNames)))
		s := h.schemas[table]
		if s == nil {
			all = append(all, h.schema(table, partialNames[h.r.IntN(len(partialNames))]))
			continue
		}
		zone := h.r.IntN(6)
		key := append(h.key(zone), h.key(h.r.IntN(9))...)
		row := AppendRow(nil, s.Version, []Datum{text(fmt.Sprint(zone)), text("1"), text(h.text())})
		switch h.r.IntN(20) {
		case 0:
			all = append(all, h.schema(table, partialNames[h.r.IntN(len(partialNames))]))
		case 1:
			h.load++
			h.loads[table] = h.load
			all = append(all, &Entry{Kind: KindLoadBegin, Table: table, Load: h.load, LoadInfo: &LoadInfo{Progress: []byte{1}}})
		case 2:
			if l := h.loads[table]; l != 0 {
				all = append(all, &Entry{Kind: KindLoadProgress, Table: table, Load: l, LoadInfo: &LoadInfo{Added: []byte{2}}})
			}
		case 3:
			if l := h.loads[table]; l != 0 {
				delete(h.loads, table)
				all = append(all, &Entry{Kind: KindLoadEnd, Table: table, Load: l, LoadInfo: &LoadInfo{}})
			}
		case 4:
			all = append(all, &Entry{Kind: KindTruncate, Table: table})
		case 5:
			all = append(all, &Entry{Kind: KindHeartbeat})
		case 6:
			all = append(all, &Entry{Kind: KindVerify, Table: table, Verify: &VerifyRange{ID: 1, Low: h.key(zone), High: h.key(zone + 1)}})
		case 7:
			if h.r.IntN(6) == 0 {
				delete(h.schemas, table)
				delete(h.loads, table)
				all = append(all, &Entry{Kind: KindDrop, Table: table})
			}
		case 8:
			all = append(all, &Entry{Kind: KindDelete, Table: table, Key: key})
		case 9:
			all = append(all, &Entry{Kind: KindPut, Table: table, Key: key, From: append(h.key(h.r.IntN(6)), h.key(1)...), Row: row})
		default:
			all = append(all, &Entry{Kind: KindPut, Table: table, Key: key, Row: row})
		}
	}
	return all
}

// batch appends records of one to some units, or of one unit in parts.
func (h *partialHistory) batch() {
	units := 1
	if h.r.IntN(2) == 0 {
		units += h.r.IntN(5)
	}
	var payload []byte
	cut := units == 1 && h.r.IntN(2) == 0
	for range units {
		n := 1 + h.r.IntN(4)
		if cut {
			n += h.r.IntN(20)
		}
		var w UnitWriter
		for _, e := range h.entries(n) {
			if err := w.Append(e); err != nil {
				panic(err)
			}
		}
		h.token++
		p, err := w.Finish(UnitEnd{Token: h.token, Time: time.UnixMicro(int64(h.token)).UTC()})
		if err != nil {
			panic(err)
		}
		payload = append(payload, p...)
	}
	var hash UnitHash
	for len(payload) > 0 {
		hd := h.header
		hd.Kind, hd.First, hd.Prev, hd.Chain = RecordBatch, h.next, h.prev, h.prev
		var (
			run  Run
			head Head
			n    int
			part = -1
		)
		if cut && h.r.IntN(4) > 0 {
			part = 1 + h.r.IntN(8)
		}
		for rest := payload; len(rest) > 0 && part != 0; part-- {
			before := len(rest)
			var err error
			if rest, err = NextHead(rest, &head); err != nil {
				panic(err)
			}
			n += before - len(rest)
			hd.Count++
			run.Extend(&hash, &head)
			if head.Last {
				run.Flush(&hash)
				h.prev = hash.Chain(h.prev)
				hd.Chain = h.prev
				hash.Reset()
				h.header.Time = head.End.Time
				h.header.Position = Position{Mode: ModeWAL, SystemID: 1, Timeline: 1, Slot: "s", LSN: LSN(head.End.Token)}
			}
		}
		if !head.Last {
			run.Flush(&hash)
			hd.Chain = hash.Chain(h.prev)
			hash.Absorb()
		}
		hd.Time, hd.Position = h.header.Time, h.header.Position
		h.next += Index(hd.Count)
		h.add(hd, payload[:n])
		payload = payload[n:]
	}
	switch h.r.IntN(12) {
	case 0:
		hd, payload := h.fold.StateRecord()
		h.add(hd, payload)
	case 1:
		h.reign()
	}
}

func (h *partialHistory) filter() *Filter {
	for {
		var tables []string
		prefixes := make(map[string][][]string)
		for _, name := range partialNames {
			switch h.r.IntN(4) {
			case 0:
				tables = append(tables, "public."+name)
			case 1:
				p := [][]string{{fmt.Sprint(h.r.IntN(6))}}
				if h.r.IntN(2) == 0 {
					p = append(p, []string{fmt.Sprint(h.r.IntN(6)), fmt.Sprint(h.r.IntN(9))})
				}
				prefixes["public."+name] = p
			}
		}
		f, err := NewFilter(tables, prefixes)
		if err != nil {
			panic(err)
		}
		if !f.All() {
			return f
		}
	}
}

// narrower makes a filter that f covers.
func (h *partialHistory) narrower(f *Filter) *Filter {
	n := new(Filter)
	for _, t := range f.Tables {
		if len(f.Tables) > 1 && h.r.IntN(3) == 0 {
			continue
		}
		if len(t.Prefixes) == 0 && h.r.IntN(2) == 0 {
			t.Prefixes = [][]string{{fmt.Sprint(h.r.IntN(6))}}
		}
		n.Tables = append(n.Tables, t)
	}
	if n.All() {
		return f
	}
	return n
}

// stations are what a fold has come to after a record.
type station struct {
	outcome  Outcome
	index    Index
	next     Index
	chain    Chain
	term     Term
	position Position
	time     time.Time
	open     bool
}

func stationOf(f *Fold, o Outcome) station {
	term, _ := f.Term()
	return station{o, f.Index(), f.Next(), f.Chain(), term, f.Position(), f.Time(), f.Open()}
}

// wanted lists what an edge with the filter makes of a batch: every entry that changes
// a row it holds, with its index.
func wantedEntries(f *Filter, schemas map[TableID]*Schema, r *Record, unit Index) ([]string, error) {
	walk, err := r.Entries(unit)
	if err != nil {
		return nil, err
	}
	var all []string
	for {
		var h Head
		at, more, err := walk.Next(&h)
		if err != nil {
			return nil, err
		}
		if !more {
			return all, nil
		}
		var e Entry
		if err := DecodeEntry(h.Body, &e); err != nil {
			return nil, err
		}
		if e.Kind == KindSchema {
			schemas[e.Table] = e.Schema
		}
		wanted := true
		if s := schemas[e.Table]; s != nil {
			scope, err := f.Scope(s)
			if err != nil {
				return nil, err
			}
			switch e.Kind {
			case KindPut, KindDelete:
				wanted = scope.Holds(e.Key) || len(e.From) > 0 && scope.Holds(e.From)
			case KindTruncate, KindVerify:
				wanted = !scope.None()
			case KindLoadProgress:
				wanted = false
			}
		}
		if wanted {
			all = append(all, fmt.Sprintf("%v %x", at, h.Raw))
		}
	}
}

func runPartial(seed uint64) (saved, total int, err error) {
	h := newPartialHistory(seed)
	for range 4 + h.r.IntN(12) {
		h.batch()
	}
	filter := h.filter()
	second := h.narrower(filter)
	direct, relayed := NewRewriter(filter, nil), NewRewriter(second, nil)
	id := h.header.Stream
	full := NewFold(id, 1)
	type edge struct {
		name    string
		filter  *Filter
		fold    *Fold
		schemas map[TableID]*Schema
	}
	edges := []*edge{{name: "near", filter: filter}, {name: "far", filter: second}, {name: "of the topic", filter: filter}}
	for _, e := range edges {
		e.fold, e.schemas = NewFold(id, 1), make(map[TableID]*Schema)
		e.fold.Hold(e.filter)
	}
	truth := make([]map[TableID]*Schema, len(edges))
	for i := range truth {
		truth[i] = make(map[TableID]*Schema)
	}
	keys, err := NewKeyring([]TrustedKey{{Key: testKey(3).Public().(ed25519.PublicKey), From: Place{Epoch: 1, Index: 1}}})
	if err != nil {
		return 0, 0, err
	}
	for n, record := range h.records {
		near, err := direct.Rewrite(record)
		if err != nil {
			return 0, 0, fmt.Errorf("record %d: rewrite: %w", n, err)
		}
		far, err := relayed.Rewrite(near)
		if err != nil {
			return 0, 0, fmt.Errorf("record %d: rewrite again: %w", n, err)
		}
		saved, total = saved+len(record)-len(near), total+len(record)
		r, err := DecodeRecord(record, nil)
		if err != nil {
			return 0, 0, err
		}
		unit := full.Index()
		o, err := full.Step(r)
		if err != nil {
			return 0, 0, err
		}
		want := stationOf(full, o)
		for i, b := range [][]byte{near, far, record} {
			e := edges[i]
			got, err := DecodeRecord(b, nil)
			if err != nil {
				return 0, 0, fmt.Errorf("record %d: %s: %w", n, e.name, err)
			}
			if err := keys.Check(got, e.fold.Next()); err != nil {
				return 0, 0, fmt.Errorf("record %d: %s: %w", n, e.name, err)
			}
			o, err := e.fold.Step(got)
			if err != nil {
				return 0, 0, fmt.Errorf("record %d: %s, filter %v: %w", n, e.name, e.filter, err)
			}
			if s := stationOf(e.fold, o); s.outcome != want.outcome || s.index != want.index || s.chain != want.chain || s.next != want.next ||
				s.term != want.term || s.open != want.open || s.position != want.position || !s.time.Equal(want.time) && r.Kind == RecordBatch {
				return 0, 0, fmt.Errorf("record %d: %s: %+v, want %+v", n, e.name, s, want)
			}
			if r.Kind != RecordBatch {
				continue
			}
			all, err := wantedEntries(e.filter, truth[i], r, unit)
			if err != nil {
				return 0, 0, err
			}
			mine, err := wantedEntries(e.filter, e.schemas, got, unit)
			if err != nil {
				return 0, 0, err
			}
			if !slices.Equal(all, mine) {
				return 0, 0, fmt.Errorf("record %d: %s, filter %v: wanted entries\n%v\nwant\n%v", n, e.name, e.filter, mine, all)
			}
		}
	}
	return saved, total, nil
}

// TestPartialFollows: whatever the history and the filter, an edge that gets hashes in
// the place of what it does not want comes to the same index, chain, term and position
// as one that gets everything, with every entry that it wants; through one relay and
// through two.
func TestPartialFollows(t *testing.T) {
	seed := *modelSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	saved, total := 0, 0
	for i := range *partialRuns {
		s, n, err := runPartial(seed + uint64(i))
		if err != nil {
			t.Fatalf("seed %d: %v", seed+uint64(i), err)
		}
		saved, total = saved+s, total+n
	}
	if saved*5 < total {
		t.Errorf("of %d bytes %d were saved: the histories try little", total, saved)
	}
}

var errNotPartial = errors.New("no partial record")

// samplePartial returns a fold before a partial record, and that record.
func samplePartial(seed uint64, spanning bool) (before func() *Fold, record []byte, err error) {
	h := newPartialHistory(seed)
	for range 14 {
		h.batch()
	}
	filter := h.filter()
	w := NewRewriter(filter, nil)
	var sent [][]byte
	fold := NewFold(h.header.Stream, 1)
	fold.Hold(filter)
	for _, record := range h.records {
		b, err := w.Rewrite(record)
		if err != nil {
			return nil, nil, err
		}
		r, err := DecodeRecord(b, nil)
		if err != nil {
			return nil, nil, err
		}
		if r.Partial && len(sent) > 8 && fold.Open() == spanning {
			return func() *Fold {
				f := NewFold(h.header.Stream, 1)
				f.Hold(filter)
				for _, b := range sent {
					r, err := DecodeRecord(b, nil)
					if err == nil {
						_, err = f.Step(r)
					}
					if err != nil {
						panic(err)
					}
				}
				return f
			}, b, nil
		}
		if _, err := fold.Step(r); err != nil {
			return nil, nil, err
		}
		sent = append(sent, b)
	}
	return nil, nil, errNotPartial
}

// TestPartialAltered: no byte of the payload can be another one, whoever makes the
// checksum right again; nor can an entry be taken out.
func TestPartialAltered(t *testing.T) {
	tried := 0
	for _, spanning := range []bool{false, true} {
		for seed, found := uint64(1), 0; found < 3 && seed < 500; seed++ {
			before, record, err := samplePartial(seed, spanning)
			if errors.Is(err, errNotPartial) {
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			r, err := DecodeRecord(record, nil)
			if err != nil {
				t.Fatal(err)
			}
			if len(r.Payload) > 6000 {
				continue
			}
			found++
			want := before()
			if _, err := want.Step(r); err != nil {
				t.Fatal(err)
			}
			for i := range r.Payload {
				altered := bytes.Clone(r.Payload)
				altered[i] ^= 1 << (i % 8)
				b, err := appendPartial(nil, r, altered)
				if err != nil {
					t.Fatal(err)
				}
				a, err := DecodeRecord(b, nil)
				if err != nil {
					continue
				}
				f := before()
				tried++
				if _, err := f.Step(a); err == nil && !sameClaims(r, a) {
					t.Fatalf("seed %d: byte %d of %d altered, and accepted", seed, i, len(r.Payload))
				} else if err != nil && !errors.Is(err, ErrDiverged) && !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrFilter) {
					t.Fatalf("seed %d: byte %d altered: %v", seed, i, err)
				}
			}
		}
	}
	if tried < 1000 {
		t.Errorf("%d altered records were tried", tried)
	}
}

// sameClaims reports whether two partial batches differ in nothing but what no chain
// covers: how many entries the units of a batch have of which nothing is here. What
// they have together is signed.
func sameClaims(a, b *Record) bool {
	var p, q partialBatch
	if p.decode(a.Payload) != nil || q.decode(b.Payload) != nil || len(p.units) != len(q.units) || !bytes.Equal(p.entries, q.entries) {
		return false
	}
	for i := range p.tables {
		if p.tables[i].id != q.tables[i].id || !bytes.Equal(p.tables[i].hash, q.tables[i].hash) || !bytes.Equal(p.tables[i].state, q.tables[i].state) {
			return false
		}
	}
	return true
}

func TestPartialForged(t *testing.T) {
	filter := mustFilter(t, []string{"public.a"}, nil)
	h := newPartialHistory(1)
	unit := func(entries ...*Entry) []byte {
		var w UnitWriter
		for _, e := range entries {
			if err := w.Append(e); err != nil {
				t.Fatal(err)
			}
		}
		p, err := w.Finish(UnitEnd{Token: 1})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	a, b := h.schema(1, "a"), h.schema(2, "b")
	row := AppendRow(nil, 1, []Datum{text("1"), text("1"), text(strings.Repeat("x", 100))})
	put := func(table TableID) *Entry { return &Entry{Kind: KindPut, Table: table, Key: h.key(1), Row: row} }
	send := func(payload []byte, count int) []byte {
		hd := h.header
		hd.Kind, hd.First, hd.Count, hd.Prev, hd.Chain = RecordBatch, h.next, uint32(count), h.prev, h.prev
		var hash UnitHash
		var head Head
		for rest := payload; len(rest) > 0; {
			var err error
			if rest, err = NextHead(rest, &head); err != nil {
				t.Fatal(err)
			}
			hash.Add(head.Table, head.Raw)
			if head.Last {
				h.prev = hash.Chain(h.prev)
				hd.Chain = h.prev
				hash.Reset()
			}
		}
		h.next += Index(count)
		h.add(hd, payload)
		return h.records[len(h.records)-1]
	}
	send(unit(a, b), 2)
	before := func(filter *Filter) *Fold {
		f := NewFold(h.header.Stream, 1)
		f.Hold(filter)
		for _, b := range h.records[:2] {
			r, err := DecodeRecord(b, nil)
			if err == nil {
				_, err = f.Step(r)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		return f
	}
	record := send(append(unit(put(2), put(1), put(2)), unit(put(2))...), 4)
	good, err := NewRewriter(filter, []*Schema{a.Schema, b.Schema}).Rewrite(record)
	if err != nil {
		t.Fatal(err)
	}
	r, err := DecodeRecord(good, nil)
	if err != nil || !r.Partial {
		t.Fatalf("partial %v, %v", r.Partial, err)
	}
	if _, err := before(filter).Step(r); err != nil {
		t.Fatal(err)
	}
	if _, err := before(nil).Step(r); !errors.Is(err, ErrFilter) || !strings.Contains(err.Error(), "everything is held here") {
		t.Errorf("an edge that holds everything: %v", err)
	}
	if _, err := before(mustFilter(t, []string{"public.a", "public.b"}, nil)).Step(r); !errors.Is(err, ErrFilter) || !strings.Contains(err.Error(), "public.b") {
		t.Errorf("an edge that holds what was left out: %v", err)
	}
	if _, err := NewRewriter(mustFilter(t, []string{"public.b"}, nil), []*Schema{b.Schema}).Rewrite(good); !errors.Is(err, ErrFilter) {
		t.Errorf("a relay that does not have what its child wants: %v", err)
	}
	for name, c := range map[string]struct {
		forge func(*partialBatch)
		want  error
	}{
		"another hash":       {func(p *partialBatch) { p.tables[0].hash = bytes.Repeat([]byte{7}, 32) }, ErrDiverged},
		"another table":      {func(p *partialBatch) { p.tables[0].id = 3 }, ErrFilter},
		"other order":        {func(p *partialBatch) { p.tables[0], p.tables[1] = p.tables[1], p.tables[0] }, ErrDiverged},
		"twice":              {func(p *partialBatch) { p.tables[1].id = 2 }, ErrMalformed},
		"a wanted hash":      {func(p *partialBatch) { p.tables[1].hash = p.tables[0].hash }, ErrFilter},
		"no entry":           {func(p *partialBatch) { p.entries, p.units[0].kept = nil, 0 }, ErrMalformed},
		"more entries":       {func(p *partialBatch) { p.units[0].entries++ }, ErrMalformed},
		"one unit less":      {func(p *partialBatch) { p.units = p.units[:1] }, ErrMalformed},
		"state from nowhere": {func(p *partialBatch) { p.tables[1].state = new(midstate).append([]byte(nil)); p.tables[1].state[7] = 0 }, ErrMalformed},
		"an open unit":       {func(p *partialBatch) { p.units[1].open = true }, ErrMalformed},
	} {
		var p partialBatch
		if err := p.decode(r.Payload); err != nil {
			t.Fatal(err)
		}
		c.forge(&p)
		b, err := appendPartial(nil, r, p.append(nil))
		if err != nil {
			t.Fatal(err)
		}
		forged, err := DecodeRecord(b, nil)
		if err == nil {
			_, err = before(filter).Step(forged)
		}
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

// FuzzPartial: what the decoder takes has one form, and no payload makes the fold, the
// rewriter or the walk do anything but refuse it.
func FuzzPartial(f *testing.F) {
	filter := mustFilter(f, []string{"public.a"}, map[string][][]string{"public.b": {{"3"}}})
	for seed := range uint64(40) {
		if _, record, err := samplePartial(seed, seed%2 == 0); err == nil {
			r, err := DecodeRecord(record, nil)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(r.Payload)
		}
	}
	hd := Header{Kind: RecordBatch, Stream: StreamID{9}, Epoch: 1, Term: 1, Publisher: PublisherID{1}, First: 1, Count: 3, Prev: NewChain(StreamID{9}, 1)}
	whole, err := AppendRecord(nil, &hd, nil, nil)
	if err != nil {
		f.Fatal(err)
	}
	r, err := DecodeRecord(whole, nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		var p, q partialBatch
		if err := p.decode(payload); err != nil {
			if !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrTooLarge) {
				t.Fatalf("refused with %v", err)
			}
		} else if b := p.append(nil); q.decode(b) != nil || !bytes.Equal(q.append(nil), b) {
			t.Fatalf("%x becomes %x", payload, b)
		}
		record, err := appendPartial(nil, r, payload)
		if err != nil {
			return
		}
		a, err := DecodeRecord(record, nil)
		if err != nil {
			t.Fatal(err)
		}
		fold := NewFold(StreamID{9}, 1)
		fold.Hold(filter)
		fold.term, fold.publisher = 1, PublisherID{1}
		_, _ = fold.Step(a)
		if _, err := NewRewriter(filter, nil).Rewrite(record); err != nil && !NeedsOperator(err) {
			t.Fatalf("rewrite: %v", err)
		}
		walk, err := a.Entries(0)
		for more := err == nil; more && err == nil; {
			var h Head
			_, more, err = walk.Next(&h)
		}
	})
}

// partsOf makes a history of two tables, a and b, and one unit in parts, and what a
// rewriter makes of the parts.
func partsOf(t *testing.T, filter *Filter, parts ...[]*Entry) (before func() *Fold, records []*Record) {
	t.Helper()
	h := newPartialHistory(1)
	send := func(last bool, first uint64, entries []*Entry, hash *UnitHash) []byte {
		var payload []byte
		for i, e := range entries {
			c := *e
			c.Ordinal, c.Last = first+uint64(i), last && i == len(entries)-1
			one := AppendEntry(nil, &c)
			at := len(payload)
			payload = prefixLength(append(append(payload, payloadTag), one...), at+1)
			hash.Add(c.Table, bytes.Clone(payload[at:]))
		}
		hd := h.header
		hd.Kind, hd.First, hd.Count, hd.Prev, hd.Chain = RecordBatch, h.next, uint32(len(entries)), h.prev, hash.Chain(h.prev)
		if last {
			h.prev = hd.Chain
			hash.Reset()
		}
		h.next += Index(len(entries))
		h.add(hd, payload)
		return h.records[len(h.records)-1]
	}
	var hash UnitHash
	send(true, 0, []*Entry{h.schema(1, "a"), h.schema(2, "b")}, &hash)
	w := NewRewriter(filter, nil)
	for _, b := range h.records {
		if _, err := w.Rewrite(b); err != nil {
			t.Fatal(err)
		}
	}
	before = func() *Fold {
		f := NewFold(h.header.Stream, 1)
		f.Hold(filter)
		for _, b := range h.records[:2] {
			r, err := DecodeRecord(b, nil)
			if err == nil {
				_, err = f.Step(r)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		return f
	}
	first := uint64(0)
	for i, entries := range parts {
		b, err := w.Rewrite(send(i == len(parts)-1, first, entries, &hash))
		if err != nil {
			t.Fatal(err)
		}
		r, err := DecodeRecord(b, nil)
		if err != nil {
			t.Fatal(err)
		}
		records = append(records, r)
		first += uint64(len(entries))
	}
	f := before()
	for i, r := range records {
		if _, err := f.Step(r); err != nil {
			t.Fatalf("part %d: %v", i+1, err)
		}
	}
	return before, records
}

// TestPartialParts: the borders of a unit that spans batches, forged.
func TestPartialParts(t *testing.T) {
	h := newPartialHistory(1)
	put := func(table TableID, zone int) *Entry {
		row := AppendRow(nil, 1, []Datum{text("1"), text("1"), text(strings.Repeat("x", 100))})
		return &Entry{Kind: KindPut, Table: table, Key: append(h.key(zone), h.key(1)...), Row: row}
	}
	forge := func(r *Record, change func(*partialBatch)) *Record {
		var p partialBatch
		if err := p.decode(r.Payload); err != nil {
			t.Fatal(err)
		}
		change(&p)
		b, err := appendPartial(nil, r, p.append(nil))
		if err == nil {
			r, err = DecodeRecord(b, nil)
		}
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	filter := mustFilter(t, []string{"public.a"}, map[string][][]string{"public.b": {{"3"}}})

	// An upstream says that a unit has ended where a batch cut it.
	before, parts := partsOf(t, filter, []*Entry{put(1, 1), put(2, 1), put(2, 2)}, []*Entry{put(1, 1)})
	if !parts[0].Partial {
		t.Fatal("the first part is whole")
	}
	if _, err := before().Step(forge(parts[0], func(p *partialBatch) { p.units[0].open = false })); !errors.Is(err, ErrMalformed) {
		t.Errorf("an end that is none: %v", err)
	}

	// It hides the first of the wanted entries in the state that stands before them.
	before, parts = partsOf(t, filter, []*Entry{put(2, 1), put(2, 1)}, []*Entry{put(2, 3), put(2, 3), put(2, 3)})
	f := before()
	if _, err := f.Step(parts[0]); err != nil {
		t.Fatal(err)
	}
	hidden := forge(parts[1], func(p *partialBatch) {
		var m midstate
		if err := m.decode(p.tables[0].state); err != nil {
			t.Fatal(err)
		}
		n, err := entrySize(p.entries)
		if err != nil {
			t.Fatal(err)
		}
		m.write(p.entries[:n])
		p.entries, p.units[0].kept, p.tables[0].state = p.entries[n:], p.units[0].kept-1, m.append(nil)
	})
	if _, err := f.Step(hidden); !errors.Is(err, ErrDiverged) || !strings.Contains(err.Error(), "state") {
		t.Errorf("an entry hidden in a state: %v", err)
	}

	// A part that goes out whole is something that the end has to be shown of.
	small := put(2, 1)
	small.Row = AppendRow(nil, 1, []Datum{text("1"), text("1"), text("")})
	_, parts = partsOf(t, filter, []*Entry{small}, []*Entry{put(2, 1), put(2, 1)})
	if parts[0].Partial {
		t.Fatal("the first part is partial")
	}
	// A batch that would grow is partial all the same where the state is needed.
	_, parts = partsOf(t, filter, []*Entry{put(2, 1), put(2, 1)}, []*Entry{put(2, 3)})
	if !parts[1].Partial {
		t.Error("the second part is whole, without the state before it")
	}
}

// TestPartialHiddenSchema: a relay that leaves out that a table has come to be called
// what an edge holds is found out at the next State record.
func TestPartialHiddenSchema(t *testing.T) {
	h := newPartialHistory(5)
	filter := mustFilter(t, []string{"public.a"}, nil)
	unit := func(e *Entry) {
		var w UnitWriter
		if err := w.Append(e); err != nil {
			t.Fatal(err)
		}
		payload, err := w.Finish(UnitEnd{Token: 1})
		if err != nil {
			t.Fatal(err)
		}
		hd := h.header
		hd.Kind, hd.First, hd.Count, hd.Prev = RecordBatch, h.next, 1, h.prev
		var hash UnitHash
		hash.Add(e.Table, payload)
		h.prev = hash.Chain(h.prev)
		hd.Chain = h.prev
		h.next++
		h.add(hd, payload)
	}
	unit(h.schema(1, "b"))
	unit(h.schema(1, "a"))
	hd, payload := h.fold.StateRecord()
	h.add(hd, payload)
	for _, hidden := range []bool{false, true} {
		f := NewFold(h.header.Stream, 1)
		f.Hold(filter)
		var err error
		for i, b := range h.records {
			r, derr := DecodeRecord(b, nil)
			if derr != nil {
				t.Fatal(derr)
			}
			if hidden && i == 2 {
				var u UnitHash
				u.Add(1, r.Payload)
				p := partialBatch{units: []partialUnit{{entries: 1, to: 1}}, tables: []partialTable{{id: 1, hash: u.tables[0].appendSum(nil)}}}
				if b, err = appendPartial(nil, r, p.append(nil)); err == nil {
					r, err = DecodeRecord(b, nil)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			if _, err = f.Step(r); err != nil {
				if i != 3 {
					t.Fatalf("record %d: %v", i, err)
				}
				break
			}
		}
		if hidden != errors.Is(err, ErrDiverged) {
			t.Errorf("hidden %v: %v", hidden, err)
		}
	}
}
