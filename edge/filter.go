package edge

import (
	"bytes"
	"errors"
	"fmt"
	"runtime"

	"github.com/bmatsuo/lmdb-go/lmdb"

	"github.com/millrace-db/millrace"
)

// A partial store holds some tables, or of some tables the keys under some prefixes
// (millrace.Filter). It keeps the catalog of all tables. What the filter leaves out is
// never answered with "there is none": it is not held here, which is an error of its
// own. A table that comes to be called what the filter holds has no rows here that
// came before; it is held from its next load on.

// keyFilter is the record of meta with the encoded filter. A store without one holds
// everything.
var keyFilter = []byte("filter")

// Filter returns what the store holds. The caller must not change it.
func (s *Store) Filter() *millrace.Filter { return s.catalog.Load().filter }

// Filter returns what the store holds as of the snapshot. The caller must not change it.
func (v *View) Filter() *millrace.Filter { return v.cat.filter }

// Filter is that of the store that readers use.
func (h *Home) Filter() *millrace.Filter { return h.Store().Filter() }

// readFilter reads the filter as txn sees it.
func (s *Store) readFilter(txn *lmdb.Txn) (*millrace.Filter, error) {
	sealed, err := txn.Get(s.meta, keyFilter)
	if lmdb.IsNotFound(err) {
		return new(millrace.Filter), nil
	}
	if err != nil {
		return nil, s.fail("read filter", err)
	}
	b, err := unseal(keyFilter, sealed)
	if err != nil {
		return nil, s.corrupt("%v", err)
	}
	f, err := millrace.DecodeFilter(b)
	if err != nil {
		return nil, s.corrupt("%v", err)
	}
	return f, nil
}

func (s *Store) writeFilter(txn *lmdb.Txn, f *millrace.Filter) error {
	if f.All() {
		return nil
	}
	if err := txn.Put(s.meta, keyFilter, seal(keyFilter, millrace.AppendFilter(nil, f)), 0); err != nil {
		return s.fail("write filter", err)
	}
	// A program that knows of no filters would take what is not held for absent.
	return s.fail("write filter", txn.Put(s.meta, keyFormat, seal(keyFormat, []byte{formatPartial}), 0))
}

// refiltered returns the catalog of the store with another filter, nil if it has that, or
// says why it cannot have it.
func (s *Store) refiltered(want *millrace.Filter) (*catalog, error) {
	cat := s.catalog.Load()
	if want == nil || want.Equal(cat.filter) {
		return nil, nil //nolint:nilnil // nothing is to be done
	}
	if s.Index() > 0 && !cat.filter.Covers(want) {
		return nil, fmt.Errorf("open store %s: %w: it holds %v, wanted is %v; mend: move the directory away and start the edge again, it fills a new one; or take edge.tables back to what the store holds",
			s.dir, ErrWider, cat.filter, want)
	}
	next := cat.clone()
	next.filter = want
	// Only prefixes that fit the tables' keys are of use.
	if err := next.rescope(); err != nil {
		return nil, fmt.Errorf("open store %s: %w", s.dir, err)
	}
	return next, nil
}

// refilter makes the filter that the store was opened with its own, if it has another.
func (s *Store) refilter() error {
	if s.opts.ReadOnly {
		return nil
	}
	want, was := s.opts.Filter, s.Filter()
	next, err := s.refiltered(want)
	if next == nil || err != nil {
		return err
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	txn, err := s.env.BeginTxn(nil, 0)
	if err != nil {
		return s.fail("begin transaction", err)
	}
	defer txn.Abort()
	txn.RawRead = true
	if err := txn.Del(s.meta, keyFilter, nil); err != nil && !lmdb.IsNotFound(err) {
		return s.fail("write filter", err)
	}
	if err := s.writeFilter(txn, want); err != nil {
		return err
	}
	w := &Writer{s: s, txn: txn, cat: next, own: true}
	next.number++
	if err := w.narrow(); err != nil {
		return err
	}
	h := *s.place.Load()
	h.catalog = next.number
	if err := s.writeHead(txn, &h); err != nil {
		return err
	}
	if err := txn.Commit(); err != nil {
		return s.fail("write filter", err)
	}
	s.log.Info("what the store holds has changed", "dir", s.dir, "was", was.String(), "is", want.String())
	next.index()
	s.catalog.Store(next)
	s.place.Store(&h)
	s.verifier.loadedAt(w.loaded, h.index)
	s.verifier.renew(w.renewed)
	return s.extend()
}

// rescope makes out anew what is held of each table.
func (c *catalog) rescope() error {
	for _, t := range c.tables {
		if err := c.rescopeTable(t); err != nil {
			return err
		}
	}
	return nil
}

func (c *catalog) rescopeTable(t *table) (err error) {
	if t.schema == nil {
		return nil
	}
	t.scope, err = c.filter.Scope(t.schema)
	return err
}

// partial reports whether the store holds less than everything.
func (c *catalog) partial() bool { return !c.filter.All() }

// some reports whether only keys under some prefixes of the table are held.
func (t *table) some() bool { return !t.scope.All() && !t.scope.None() }

// passes reports whether an entry of a partial store changes nothing here. Errors that
// a store that holds everything finds in such an entry are not looked for: what it
// would be compared with is not here.
func (w *Writer) passes(e *millrace.Entry) bool {
	t := w.cat.tables[e.Table]
	if t == nil || t.schema == nil {
		return false
	}
	none := t.scope.None()
	switch e.Kind {
	case millrace.KindPut:
		if e.Load != 0 && t.shadow == nil {
			return true // it began before the table was held
		}
		return none || t.live == nil && t.shadow == nil || !t.scope.Holds(e.Key)
	case millrace.KindDelete:
		return none || t.live == nil && t.shadow == nil || !t.scope.Holds(e.Key)
	case millrace.KindTruncate:
		return none || t.live == nil && t.shadow == nil
	case millrace.KindLoadBegin:
		return none
	case millrace.KindLoadEnd:
		return none || t.shadow == nil
	case millrace.KindQuarantine:
		return none || len(e.Key) > 0 && !t.scope.Holds(e.Key)
	case millrace.KindVerify:
		return none || t.live == nil
	}
	return false
}

// comparable reports whether the rows of a range are all held.
func (t *table) comparable(v *millrace.VerifyRange) bool {
	return t.scope.All() || v.Buckets == 0 && t.scope.HoldsRange(v.Low, v.High)
}

// renamed takes what is held of a table to what is held of it under another name.
func (w *Writer) renamed(t *table, was millrace.FilterTable, held bool) error {
	is, holds := w.cat.filter.Table(t.name())
	if !held || t.live == nil && t.shadow == nil {
		return nil
	}
	before := millrace.Filter{Tables: []millrace.FilterTable{{Name: "a.table", Prefixes: was.Prefixes}}}
	after := millrace.Filter{Tables: []millrace.FilterTable{{Name: "a.table", Prefixes: is.Prefixes}}}
	switch {
	case holds && before.Equal(&after):
		return nil
	case holds && before.Covers(&after):
		return w.beginNarrowing()
	}
	w.s.log.Warn("a table has come to be called what the edge holds other keys of; they are held from its next load on", "table", t.name(), "was", was.Name)
	return w.letGo(t)
}

// letGo removes the rows of a table.
func (w *Writer) letGo(t *table) error {
	for _, at := range []**generation{&t.live, &t.shadow} {
		old := *at
		*at = nil
		if err := w.discard(old); err != nil {
			return err
		}
	}
	if t.diverged != "" {
		t.diverged = ""
		if err := w.txn.Del(w.s.meta, divergedKey(t.id), nil); err != nil {
			return w.s.fail("clear mark of "+t.name(), err)
		}
	}
	if err := w.txn.Del(w.s.meta, verifyKey(t.id), nil); err != nil && !lmdb.IsNotFound(err) {
		return w.s.fail("remove record of differences", err)
	}
	w.loaded, w.renewed = append(w.loaded, t.id), append(w.renewed, t.id)
	return nil
}

// incomplete puts a row into a table that is held by prefixes whose unchanged columns
// come from a key that is not: they are missing until the table is loaded. The row is
// there, and reading it says so.
func (w *Writer) incomplete(t *table, key, from []byte) error {
	if t.diverged != "" {
		return nil
	}
	// Whatever else is to be told of the table, this is.
	t = w.catalog().tables[t.id]
	t.diverged = fmt.Sprintf("row %s came from key %s, which is not held here, and columns of it did not come with it", t.describe(key), t.describe(from))
	k := divergedKey(t.id)
	w.s.log.Warn("a row came from a key that is not held here, without all of its columns; reading it is an error until its table is loaded",
		"table", t.name(), "key", t.describe(key), "from", t.describe(from), "mend", "millrace load "+t.name())
	return w.s.fail("mark table "+t.name(), w.txn.Put(w.s.meta, k, seal(k, []byte(t.diverged)), 0))
}

// endLacking lets a load end of which rows lack columns: they came from keys that are
// not held, and the source sends no more of them.
func (w *Writer) endLacking(t *table) error {
	n := t.shadow.missing
	if _, err := w.sweepNotes(t.shadow, int(n)+1); err != nil {
		return err
	}
	t.diverged = fmt.Sprintf("%d rows came from keys that are not held here while the table was loaded, and columns of them did not come with them", n)
	key := divergedKey(t.id)
	return w.s.fail("mark table "+t.name(), w.txn.Put(w.s.meta, key, seal(key, []byte(t.diverged)), 0))
}

// errLacks tells that a row of a live generation lacks a column.
var errLacks = errors.New("the row came from a key that is not held here, without all of its columns")

// notHeld says that something is not held.
func (v *View) notHeld(what string) error {
	return fmt.Errorf("%w: %s; this edge holds %v", ErrNotHeld, what, v.cat.filter)
}

// holdsTable says why nothing can be said of the rows of a table with a name, if so.
func (v *View) holdsTable(name string) error {
	if _, held := v.cat.filter.Table(name); !held {
		return v.notHeld("table " + name)
	}
	return nil
}

// holdsKeys says why nothing can be said of the keys that begin with prefix, if so.
func (t *Table) holdsKeys(prefix []byte) error {
	if t.t.scope.All() || t.t.scope.HoldsAll(prefix) {
		return nil
	}
	if len(prefix) == 0 {
		return t.v.notHeld("table " + t.Name() + " as a whole")
	}
	return t.v.notHeld(fmt.Sprintf("table %s, keys under %s", t.Name(), t.t.describePrefix(prefix)))
}

// Holds says why nothing can be said of what becomes of some tables, by their qualified
// names, if so: all of the stream where there are none. values are those of the leading
// columns of the keys that matter; without any, all do. The error is an ErrNotHeld.
func (v *View) Holds(tables, values []string) error {
	f := v.cat.filter
	if len(tables) == 0 && !f.All() {
		return v.notHeld("the stream as a whole")
	}
	for _, name := range tables {
		if f.Holds(name, values) {
			continue
		}
		what := "table " + name
		if len(values) > 0 {
			what += ", keys under " + millrace.FormatKeyPath(values)
		} else if _, held := f.Table(name); held {
			what += " as a whole"
		}
		return v.notHeld(what)
	}
	return nil
}

// Held returns the prefixes of the encoded keys that are held, nil where all keys are.
// Scan and ScanRange read what is under one of them. The caller must not change them.
func (t *Table) Held() [][]byte { return t.t.scope.Prefixes() }

func (v *View) prefixes(name string) (all []string) {
	t, _ := v.cat.filter.Table(name)
	for _, p := range t.Prefixes {
		all = append(all, millrace.FormatKeyPath(p))
	}
	return all
}

// describePrefix gives the beginning of a key a form for people.
func (t *table) describePrefix(prefix []byte) string {
	if f, ok := t.codec.DecodePrefix(prefix); ok {
		return millrace.FormatKeyPath(f)
	}
	return fmt.Sprintf("0x%x", prefix)
}

// holdsRange says why nothing can be said of a range of keys, if so.
func (t *Table) holdsRange(r *Range) error {
	if t.t.scope.All() {
		return nil
	}
	low, high := r.low(), PrefixEnd(r.Prefix)
	if len(r.To) > 0 && (high == nil || bytes.Compare(r.To, high) < 0) {
		high = r.To
	}
	if t.t.scope.HoldsRange(low, high) {
		return nil
	}
	return t.holdsKeys(r.Prefix[:0])
}

// holds says why an index of the table lacks rows of a range, if so: one whose
// first columns are those of the key may be read where they are given as a prefix that
// is held has them.
func (ix *Index) holds(r *Range) error {
	t := ix.t
	if t.t.scope.All() {
		return nil
	}
	if t.t.diverged != "" {
		return t.v.notHeld(fmt.Sprintf("table %s by an index: %s", t.Name(), t.t.diverged))
	}
	codec := ix.ix.index.codec
	is, _ := t.v.cat.filter.Table(t.Name())
	for _, p := range is.Prefixes {
		values := make([]millrace.Datum, len(p))
		fits := len(p) <= len(codec.Columns())
		for i := range p {
			if fits = fits && codec.Columns()[i] == t.t.codec.Columns()[i]; fits {
				values[i] = millrace.Datum{Text: []byte(p[i])}
			}
		}
		if !fits {
			continue
		}
		if b, err := codec.Append(nil, values); err == nil && bytes.HasPrefix(r.Prefix, b) {
			return nil
		}
	}
	return t.v.notHeld(fmt.Sprintf("table %s by its index over %v, unless it begins with the columns of the key and they are given as they are held", t.Name(), ix.Columns()))
}
