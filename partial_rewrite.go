package millrace

import (
	"fmt"
	"slices"
)

// Rewriter turns the records of a stream into those that an edge with a filter gets:
// batches become partial, Term and State records stay as they are. It is given the
// records of a log from the end of a unit on, in their order, each once, as a Fold has
// accepted them; they may be partial themselves, of an edge that holds as much or
// more. What it makes of them depends on them and its tables alone. It is used by one
// goroutine.
//
// In each unit, batch by batch, it keeps all entries of a table
//   - that is none (heartbeats and messages), or that it does not know;
//   - of which the filter holds everything;
//   - of which one entry describes the table, or begins or ends a load: an edge knows
//     all tables, and knows that it does, because no hash may stand in the place of a
//     table's entries before its schema has come;
//   - of which the filter holds some keys, and one entry is a change of such a key, or
//     of all (a Truncate), or speaks of what is held (Verify, Quarantine);
//   - whose entries are no longer than their hash;
//   - that has the last entry of a unit that ends in the batch and is alone there, if
//     anything of that unit is kept: that entry says that the unit has ended.
//
// The entries of all others are left out. Where a batch would not get smaller and
// need not be partial, it is passed on as it is.
type Rewriter struct {
	filter *Filter
	// scopes are what is held of a table under all schemas it is known to have had.
	scopes map[TableID]*Scope
	// tables are those of the open unit, and kept tells that the edge has been sent
	// entries of it.
	tables map[TableID]*rewriteTable
	open   bool
	kept   bool

	in, out partialBatch
	places  partialPlaces
	keep    []bool
	sizes   []int
	heads   []Head
	bytes   []byte
	payload []byte
	hash    UnitHash
	touched UnitHash
}

// rewriteTable is a table of a unit that spans batches.
type rewriteTable struct {
	// mid is the hash of its entries so far; nil where the upstream has left some out.
	mid *midstate
	// running tells that the edge can hash further entries; otherwise it was given
	// the hash of those so far.
	running bool
}

// NewRewriter makes a rewriter for an edge with a filter, given schemas that tables
// have or have had: those that the records name in Schema entries and in State records
// it learns by itself, and a table of which it knows none is sent whole. It keeps
// nothing of schemas.
func NewRewriter(filter *Filter, schemas []*Schema) *Rewriter {
	w := &Rewriter{filter: filter, scopes: make(map[TableID]*Scope)}
	for _, s := range schemas {
		w.describe(s)
	}
	return w
}

// describe takes a schema in. Names come and go, so a table is sent to an edge that
// may hold it under any of them; the edge knows which counts.
func (w *Rewriter) describe(s *Schema) {
	scope, err := w.filter.Scope(s)
	if err != nil {
		// The edge meets the same error, and tells of it.
		scope = Scope{all: true}
	}
	if known := w.scopes[s.Table]; known != nil {
		known.add(&scope)
		return
	}
	w.scopes[s.Table] = &scope
}

// Rewrite returns what the edge gets in the place of a record in its stored form. The
// result is the caller's; it may be record itself. After an error the rewriter is of
// no more use.
func (w *Rewriter) Rewrite(record []byte) ([]byte, error) {
	if w.filter.All() {
		return record, nil
	}
	r, err := DecodeRecord(record, w.bytes)
	if err != nil {
		return nil, fmt.Errorf("rewrite record: %w", err)
	}
	if cap(r.Payload) > cap(w.bytes) {
		w.bytes = r.Payload[:0]
	}
	switch r.Kind {
	case RecordTerm:
		w.end() // of a unit that is void now
		return record, nil
	case RecordState:
		s, err := DecodeState(r.Payload)
		if err != nil {
			return nil, fmt.Errorf("rewrite record: %w", err)
		}
		for _, schema := range s.Catalog.Schemas {
			w.describe(schema)
		}
		return record, nil
	}
	must, err := w.batch(r)
	if err != nil {
		return nil, fmt.Errorf("rewrite batch %v to %v: %w", r.First, r.Last(), err)
	}
	w.payload = w.out.append(w.payload[:0])
	if !must && !r.Partial && len(w.payload) >= len(r.Payload) {
		w.whole()
		return record, nil
	}
	return appendPartial(nil, r, w.payload)
}

// whole tells that the edge gets the batch as it is.
func (w *Rewriter) whole() {
	for i := range w.in.tables {
		if t := w.tables[w.in.tables[i].id]; t != nil {
			t.running = true
		}
	}
	w.kept = w.open
}

// end forgets the open unit.
func (w *Rewriter) end() {
	w.tables, w.open, w.kept = nil, false, false
}

// batch fills out for a batch. must tells that it cannot be passed on whole.
func (w *Rewriter) batch(r *Record) (must bool, err error) {
	if err := w.read(r); err != nil {
		return false, err
	}
	w.out.entries = w.out.entries[:0]
	w.out.units, w.out.tables = w.out.units[:0], w.out.tables[:0]
	heads := w.heads
	for i := range w.in.units {
		u := &w.in.units[i]
		need, err := w.unit(u, heads[:u.kept])
		if err != nil {
			return false, err
		}
		must = must || need
		heads = heads[u.kept:]
	}
	return must, nil
}

// read takes a batch apart. For a whole one it makes the units that a partial one
// says it has.
func (w *Rewriter) read(r *Record) error {
	w.heads = w.heads[:0]
	in := &w.in
	rest := r.Payload
	if r.Partial {
		if err := in.decode(r.Payload); err != nil {
			return err
		}
		rest = in.entries
	} else {
		in.units, in.tables = in.units[:0], in.tables[:0]
	}
	var unit partialUnit
	w.touched.Reset()
	for len(rest) > 0 {
		var h Head
		var err error
		if rest, err = NextHead(rest, &h); err != nil {
			return err
		}
		w.heads = append(w.heads, h)
		if r.Partial {
			continue
		}
		if w.touched.find(h.Table) < 0 {
			w.touched.table(h.Table)
			in.tables = append(in.tables, partialTable{id: h.Table})
		}
		unit.entries++
		unit.kept++
		if h.Last {
			unit.to = len(in.tables)
			in.units = append(in.units, unit)
			unit = partialUnit{from: unit.to}
			w.touched.Reset()
		}
	}
	if unit.entries > 0 {
		unit.to, unit.open = len(in.tables), true
		in.units = append(in.units, unit)
	}
	kept := 0
	for i := range in.units {
		kept += int(in.units[i].kept)
	}
	if kept != len(w.heads) || len(in.units) == 0 {
		return fmt.Errorf("%w: %d entries in units of %d", ErrMalformed, len(w.heads), kept)
	}
	return nil
}

// unit appends a unit, or part of one, to out. heads are its entries that are here.
// must tells that the edge lacks entries of a table that come before it.
func (w *Rewriter) unit(u *partialUnit, heads []Head) (must bool, err error) {
	tables := w.in.tables[u.from:u.to]
	keep, err := w.keeps(tables, heads)
	if err != nil {
		return false, err
	}
	spans := u.open || w.open // the unit has other parts
	out := partialUnit{entries: u.entries, open: u.open, from: len(w.out.tables)}
	for i := range tables {
		t := &tables[i]
		o := partialTable{id: t.id, hash: t.hash}
		if len(t.hash) > 0 {
			if scope := w.scopes[t.id]; scope != nil && scope.all {
				return false, fmt.Errorf("%w: the entries of table %v are not here", ErrFilter, t.id)
			}
		} else if !keep[i] {
			o.hash = hashLeftOut // made below
		}
		w.out.tables = append(w.out.tables, o)
	}
	out.to = len(w.out.tables)
	chosen := w.out.tables[out.from:out.to]
	w.kept = w.kept || slices.ContainsFunc(chosen, func(t partialTable) bool { return len(t.hash) == 0 })
	if n := len(heads); w.kept && !u.open && len(w.in.units) == 1 && n > 0 && heads[n-1].Last {
		chosen[w.places.find(heads[n-1].Table)].hash = nil
	}
	if spans {
		must, err = w.part(tables, chosen, heads)
	} else {
		w.hashes(chosen, heads)
	}
	if err != nil {
		return false, err
	}
	for i := range heads {
		if len(chosen[w.places.find(heads[i].Table)].hash) == 0 {
			w.out.entries = append(w.out.entries, heads[i].Raw...)
			out.kept++
		}
	}
	w.out.units = append(w.out.units, out)
	if w.open = u.open; !u.open {
		w.end()
	}
	return must, nil
}

// hashLeftOut stands for a hash that is not made yet.
var hashLeftOut = make([]byte, hashSize)

const hashSize = 32

// keeps decides about the tables of a unit by their entries. The result is valid until
// the next call.
func (w *Rewriter) keeps(tables []partialTable, heads []Head) ([]bool, error) {
	if w.places.use(tables) {
		return nil, fmt.Errorf("%w: a table stands twice in a unit", ErrMalformed)
	}
	w.keep = append(w.keep[:0], make([]bool, len(tables))...)
	w.sizes = append(w.sizes[:0], make([]int, len(tables))...)
	for i := range tables {
		scope := w.scopes[tables[i].id]
		w.keep[i] = tables[i].id == 0 || scope == nil || scope.all
	}
	var e Entry
	for i := range heads {
		h := &heads[i]
		at := w.places.find(h.Table)
		if at < 0 {
			return nil, fmt.Errorf("%w: an entry is of none of its unit's tables", ErrMalformed)
		}
		w.sizes[at] += len(h.Raw)
		scope := w.scopes[h.Table]
		switch h.Kind {
		case KindSchema:
			if err := DecodeEntry(h.Body, &e); err != nil {
				return nil, err
			}
			w.describe(e.Schema)
			w.keep[at] = true
		case KindDrop, KindLoadBegin, KindLoadEnd:
			w.keep[at] = true
		case KindTruncate, KindVerify, KindQuarantine:
			w.keep[at] = w.keep[at] || !scope.None()
		case KindPut, KindDelete:
			if w.keep[at] || scope.None() {
				continue
			}
			if err := DecodeEntry(h.Body, &e); err != nil {
				return nil, err
			}
			w.keep[at] = scope.Holds(e.Key) || len(e.From) > 0 && scope.Holds(e.From)
		}
	}
	for i := range tables {
		w.keep[i] = w.keep[i] || w.sizes[i] <= hashSize
	}
	return w.keep, nil
}

// hashes makes the hashes of the tables that are left out of a unit that is whole.
func (w *Rewriter) hashes(chosen []partialTable, heads []Head) {
	if !slices.ContainsFunc(chosen, func(t partialTable) bool { return len(t.hash) > 0 }) {
		return
	}
	w.hash.Reset()
	var run Run
	for i := range heads {
		if len(chosen[w.places.find(heads[i].Table)].hash) == 0 {
			// What comes next does not follow it in memory.
			run.Flush(&w.hash)
			continue
		}
		run.Extend(&w.hash, &heads[i])
	}
	run.Flush(&w.hash)
	for i := range w.hash.tables {
		t := &w.hash.tables[i]
		chosen[w.places.find(t.id)].hash = t.appendSum(make([]byte, 0, hashSize))
	}
}

// part is hashes for a unit that spans batches: what is left out now may be followed
// by what is kept later, and the other way round.
func (w *Rewriter) part(in, chosen []partialTable, heads []Head) (must bool, err error) {
	if w.tables == nil {
		w.tables = make(map[TableID]*rewriteTable)
	}
	for i := range chosen {
		c := &chosen[i]
		t := w.tables[c.id]
		if t == nil {
			t = &rewriteTable{mid: new(midstate), running: true}
			w.tables[c.id] = t
		}
		if len(in[i].state) > 0 {
			t.mid = new(midstate)
			if err := t.mid.decode(in[i].state); err != nil {
				return false, err
			}
		}
		must = must || !t.running && len(in[i].hash) == 0
		switch {
		case len(in[i].hash) > 0:
			t.mid, t.running = nil, false
		case t.mid == nil:
			return false, fmt.Errorf("%w: entries of table %v follow others that were left out, without a state", ErrMalformed, c.id)
		case len(c.hash) > 0:
			t.running = false
		case !t.running:
			c.state, t.running = t.mid.append(nil), true
		}
	}
	for i := range heads {
		if t := w.tables[heads[i].Table]; t.mid != nil {
			t.mid.write(heads[i].Raw)
		}
	}
	for i := range chosen {
		if c := &chosen[i]; len(c.hash) > 0 && len(in[i].hash) == 0 {
			sum := w.tables[c.id].mid.sum()
			c.hash = sum[:]
		}
	}
	return must, nil
}
