package millrace

import (
	"fmt"
	"slices"
	"time"
)

// Hold makes f the fold of an edge that holds what filter says: it takes partial
// batches, in which hashes stand in the place of entries that the filter does not ask
// for, and the catalog's loads have no notes of progress. A fold without a filter, or
// with one that holds everything, refuses partial batches. It is called before the
// first Step, and does not copy filter.
//
// What such a fold can tell is that the history is the stream's own, as any fold, and
// that no entry of a table that is held wholly, and no schema, was left out. Of a table
// that is held by prefixes an upstream may leave out entries that it must not, and only
// a Verify entry shows that.
func (f *Fold) Hold(filter *Filter) {
	if filter.All() {
		filter = nil
	}
	f.filter = filter
	f.scopes = nil
	if filter == nil {
		return
	}
	f.catalog = f.catalog.Clone()
	for i := range f.catalog.Loads {
		f.catalog.Loads[i].Progress = nil
	}
}

// partial is entries for a partial batch.
func (f *Fold) partial(r *Record) error {
	fail := func(err error) error { return fmt.Errorf("partial batch %v to %v: %w", r.First, r.Last(), err) }
	if f.filter == nil {
		return fail(fmt.Errorf("%w: hashes stand in the place of entries, and everything is held here; mend: follow an upstream that holds everything", ErrFilter))
	}
	p := &f.parts
	if err := p.decode(r.Payload); err != nil {
		return fail(err)
	}
	var total uint64
	for i := range p.units {
		total += uint64(p.units[i].entries)
	}
	first, last := &p.units[0], &p.units[len(p.units)-1]
	switch {
	case total != uint64(r.Count):
		return fail(fmt.Errorf("%w: its units have %d entries, it has %d", ErrMalformed, total, r.Count))
	case f.Open() && first != last:
		return fail(fmt.Errorf("%w: part of a unit stands in a batch with other units", ErrMalformed))
	}
	w := partialWalk{f: f, p: p, rest: p.entries, index: f.index, next: r.First, chain: f.chain, at: f.time}
	for i := range p.units {
		if err := w.unit(&p.units[i]); err != nil {
			return fail(err)
		}
	}
	switch {
	case len(w.rest) != 0:
		return fail(fmt.Errorf("%w: entries follow the last unit", ErrMalformed))
	case !last.open && !w.ended:
		w.at = r.Time
		if first == last && f.kept {
			// Whether the unit ends here is said by its last entry alone.
			return fail(fmt.Errorf("%w: the unit's last entry is not among those that are here", ErrMalformed))
		}
	}
	after := w.chain
	if last.open {
		after = f.unit.Chain(w.chain)
		f.unit.Absorb()
	}
	if after != r.Chain {
		return fail(fmt.Errorf("%w: it says chain %v, its entries and hashes give %v", ErrDiverged, r.Chain.Short(), after.Short()))
	}
	if err := f.settle(w.settled); err != nil {
		return fail(err)
	}
	f.index, f.chain, f.next, f.time = w.index, w.chain, r.Last()+1, w.at
	if !last.open {
		f.position, f.kept = r.Position, false
	}
	return nil
}

// partialWalk goes through the units of a partial batch.
type partialWalk struct {
	f    *Fold
	p    *partialBatch
	rest []byte
	// index, chain and at are of the newest complete unit, next is the index of the
	// next entry that is or is not here.
	index, next Index
	chain       Chain
	at          time.Time
	// settled is how many pending entries are of complete units; ended tells that the
	// newest unit's last entry is here.
	settled int
	ended   bool
}

func (w *partialWalk) unit(u *partialUnit) error {
	f := w.f
	tables := w.p.tables[u.from:u.to]
	// What a table was called is decided by what comes before the unit's part: a
	// schema in it is among the entries that are here.
	if f.places.use(tables) {
		return fmt.Errorf("%w: a table stands twice in a unit", ErrMalformed)
	}
	for i := range tables {
		if err := w.table(&tables[i]); err != nil {
			return err
		}
	}
	if u.kept > 0 {
		f.kept = true
	}
	if err := w.entries(u, tables); err != nil {
		return err
	}
	w.next += Index(u.entries)
	if u.open {
		return nil
	}
	w.chain = f.unit.Chain(w.chain)
	f.unit.Reset()
	w.index, w.settled = w.next-1, len(f.pending)
	return nil
}

// table takes in what stands in the place of a table's entries.
func (w *partialWalk) table(t *partialTable) error {
	f := w.f
	f.unit.table(t.id) // in the order of first touch
	switch {
	case len(t.hash) > 0:
		if err := f.mayLack(t.id); err != nil {
			return err
		}
		f.unit.give(t.id, [32]byte(t.hash))
	case len(t.state) > 0:
		from := new(midstate)
		if err := from.decode(t.state); err != nil {
			return err
		}
		if !f.unit.resume(t.id, from) {
			return fmt.Errorf("%w: the state for table %v is not that of the entries that were left out before", ErrDiverged, t.id)
		}
	case f.unit.given(t.id):
		return fmt.Errorf("%w: entries of table %v follow others that were left out, without a state", ErrMalformed, t.id)
	}
	return nil
}

// entries takes in the entries of a unit's part that are here.
func (w *partialWalk) entries(u *partialUnit, tables []partialTable) error {
	var (
		f     = w.f
		run   Run
		h     Head
		err   error
		first = uint64(w.next - w.index - 1) // ordinal of the part's first entry
		least = first                        // of the next entry
		end   = first + uint64(u.entries)
	)
	// here tells which of the tables have entries here.
	f.here = append(f.here[:0], make([]bool, len(tables))...)
	w.ended = false
	for range u.kept {
		if w.rest, err = NextHead(w.rest, &h); err != nil {
			return err
		}
		at := w.next + Index(h.Ordinal-first)
		if h.Ordinal < least || h.Ordinal >= end || h.Last != (!u.open && h.Ordinal == end-1) {
			return fmt.Errorf("%w: entry with ordinal %d of a unit whose part is %d to %d", ErrMalformed, h.Ordinal, first, end-1)
		}
		least = h.Ordinal + 1
		i := f.places.find(h.Table)
		if i < 0 || len(tables[i].hash) > 0 {
			return fmt.Errorf("%w: entry %v is of table %v, which is not among those whose entries are here", ErrMalformed, at, h.Table)
		}
		f.here[i] = true
		run.Extend(&f.unit, &h)
		if h.Kind.changesCatalog() {
			if err := f.pend(&h); err != nil {
				return fmt.Errorf("entry %v: %w", at, err)
			}
		}
		if h.Last {
			w.ended, w.at = true, h.End.Time
		}
	}
	run.Flush(&f.unit)
	for i := range tables {
		if !f.here[i] && len(tables[i].hash) == 0 {
			return fmt.Errorf("%w: table %v is said to have entries here and has none", ErrMalformed, tables[i].id)
		}
	}
	return nil
}

// mayLack says why entries of a table must not be left out, if so.
func (f *Fold) mayLack(id TableID) error {
	s := f.described(id)
	if s == nil {
		return fmt.Errorf("%w: hashes stand in the place of entries of table %v, of which no schema has come", ErrFilter, id)
	}
	scope, err := f.scope(s)
	if err != nil {
		return err
	}
	if scope.All() {
		return fmt.Errorf("%w: hashes stand in the place of entries of table %s, which is held here; mend: follow an upstream that holds it", ErrFilter, s.QualifiedName())
	}
	return nil
}

// described returns the newest schema of a table, that of an open unit included.
func (f *Fold) described(id TableID) *Schema {
	for i := len(f.pending) - 1; i >= 0; i-- {
		switch e := &f.pending[i]; {
		case e.Table != id:
		case e.Kind == KindSchema:
			return e.Schema
		case e.Kind == KindDrop:
			return nil
		}
	}
	return f.catalog.Schema(id)
}

func (f *Fold) scope(s *Schema) (*Scope, error) {
	if known := f.scopes[s.Table]; known != nil && known.schema == s {
		return &known.Scope, nil
	}
	scope, err := f.filter.Scope(s)
	if err != nil {
		return nil, err
	}
	if f.scopes == nil {
		f.scopes = make(map[TableID]*foldScope)
	}
	f.scopes[s.Table] = &foldScope{scope, s}
	return &f.scopes[s.Table].Scope, nil
}

// foldScope is what is held of a table under a schema.
type foldScope struct {
	Scope
	schema *Schema
}

// agrees compares the catalog with that of a state record at the same place: a schema
// that an upstream left out shows there at the latest.
func (f *Fold) agrees(r *Record) error {
	s, err := DecodeState(r.Payload)
	if err != nil {
		return err
	}
	same := slices.EqualFunc(s.Catalog.Schemas, f.catalog.Schemas, func(a, b *Schema) bool {
		return a.Table == b.Table && a.Version == b.Version && a.QualifiedName() == b.QualifiedName()
	}) && slices.EqualFunc(s.Catalog.Loads, f.catalog.Loads, func(a, b Load) bool { return a.ID == b.ID && a.Table == b.Table })
	if !same {
		return fmt.Errorf("%w: state record at index %v has other schemas or loads than the history: entries were left out that must not be", ErrDiverged, r.First-1)
	}
	return nil
}
