package edge

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/bmatsuo/lmdb-go/lmdb"

	"github.com/millrace-db/millrace"
)

// IndexInfo describes an index for people, and for who looks for one to use.
type IndexInfo struct {
	// Table is the qualified name, Columns the names in the order of the index.
	Table   string
	Columns []string
	// Whole tells that the index can be read, Building that it is being built.
	// Covered is how far: the key up to which its rows are entered, in the form
	// for people.
	Whole    bool
	Building bool
	Covered  string
	// Refused says why an index that is declared is not kept, or not built any
	// further; empty if it is.
	// Only the process that writes the store knows.
	Refused string
}

// refusedIndexes are the declared indexes that are not kept, and why.
type refusedIndexes struct {
	mu  sync.Mutex
	why map[millrace.TableID]map[string]string
}

func (r *refusedIndexes) set(table millrace.TableID, columns []string, why string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.why == nil {
		r.why = make(map[millrace.TableID]map[string]string)
	}
	if r.why[table] == nil {
		r.why[table] = make(map[string]string)
	}
	r.why[table][fmt.Sprintf("%q", columns)] = why
}

func (r *refusedIndexes) clear(table millrace.TableID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.why, table)
}

func (r *refusedIndexes) of(table millrace.TableID, columns []string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.why[table][fmt.Sprintf("%q", columns)]
}

func checkIndexes(dir string, all map[string][][]string) error {
	for table, indexes := range all {
		for i, columns := range indexes {
			same := func(o []string) bool { return slices.Equal(o, columns) }
			if len(columns) == 0 || slices.Contains(columns, "") || slices.ContainsFunc(indexes[:i], same) {
				return fmt.Errorf("open store %s: index %q of table %s has no columns, one without a name, or is declared twice", dir, columns, table)
			}
		}
	}
	return nil
}

// DeclareIndexes says which indexes the store is to have from now on, as
// Options.Indexes does. The writer makes and drops them in the background. The
// caller must not change all afterwards.
func (s *Store) DeclareIndexes(all map[string][][]string) error {
	if err := checkIndexes(s.dir, all); err != nil {
		return err
	}
	s.declared.Store(&all)
	return nil
}

// declaredFor returns the indexes that a table is to have.
func (s *Store) declaredFor(table string) [][]string { return (*s.declared.Load())[table] }

// Indexes returns the indexes of all tables that readers can see, those that are
// declared and cannot be read included, in the order of tables and columns.
func (v *View) Indexes() []IndexInfo {
	var all []IndexInfo
	for name, t := range v.cat.visible {
		all = append(all, v.indexesOf(name, t)...)
	}
	slices.SortFunc(all, func(a, b IndexInfo) int {
		return cmp.Or(cmp.Compare(a.Table, b.Table), slices.Compare(a.Columns, b.Columns))
	})
	return all
}

func (v *View) indexesOf(name string, t *table) []IndexInfo {
	var all []IndexInfo
	for _, ix := range t.live.indexes {
		info := IndexInfo{Table: name, Columns: ix.index.columns, Whole: ix.index.whole, Building: !ix.index.whole, Refused: v.s.refused.of(t.id, ix.index.columns)}
		if !info.Whole && len(ix.index.upTo) > 0 {
			info.Covered = t.describe(ix.index.upTo)
		}
		all = append(all, info)
	}
	for _, columns := range v.s.declaredFor(name) {
		if t.live.over(columns) == nil {
			all = append(all, IndexInfo{Table: name, Columns: columns, Refused: v.s.refused.of(t.id, columns)})
		}
	}
	return all
}

// Indexes is View.Indexes of one table.
func (t *Table) Indexes() []IndexInfo { return t.v.indexesOf(t.Name(), t.t) }

// Index returns the index of the table over columns, named in its order. The
// error is an ErrNoIndex where there is none that is whole: a reader may then
// scan the table instead.
func (t *Table) Index(columns ...string) (*Index, error) {
	ix := t.t.live.over(columns)
	why := "none is declared"
	switch {
	case ix != nil && ix.index.whole:
		return &Index{t: t, ix: ix, places: make(places)}, nil
	case ix != nil:
		why = "it is being built"
	case slices.ContainsFunc(t.v.s.declaredFor(t.Name()), func(c []string) bool { return slices.Equal(c, columns) }):
		if why = t.v.s.refused.of(t.t.id, columns); why == "" {
			why = "it has not been made yet"
		}
	}
	return nil, fmt.Errorf("%w: table %s over (%s): %s", ErrNoIndex, t.Name(), strings.Join(columns, ", "), why)
}

// Index is an index of a table in a View.
type Index struct {
	t      *Table
	ix     *generation
	places places
	entry  entryBuffer
	key    []byte
}

// Codec returns the codec of the index's columns, with which the bounds of a
// Range are made.
func (ix *Index) Codec() *millrace.IndexCodec { return ix.ix.index.codec }

// Columns returns the names of the columns. The caller must not change it.
func (ix *Index) Columns() []string { return ix.ix.index.columns }

// Range says which entries of an index to read, by the bytes of their keys: the
// encoded columns (IndexCodec) and the encoded key of the row behind them. The
// zero Range is the whole index.
type Range struct {
	// Prefix is what the keys begin with.
	Prefix []byte
	// From is the first key, To the one to end before; empty for no bound. Both
	// may be the leading part of keys.
	From, To []byte
	// After is the key of an entry, as Scan gave it, to go on behind.
	After []byte
	// Descending gives the entries from the last one of the range to the first.
	Descending bool
}

// low returns what no key of the range is before.
func (r *Range) low() []byte {
	if bytes.Compare(r.Prefix, r.From) > 0 {
		return r.Prefix
	}
	return r.From
}

// end returns a store key that no entry of the range stands at or behind; nil
// where there is none. The keys of a head that bounds cut through are within.
func (r *Range) end() []byte {
	end := PrefixEnd(r.Prefix[:min(len(r.Prefix), storedHead)])
	to := r.To
	if len(to) > storedHead {
		to = PrefixEnd(to[:storedHead])
	}
	if len(to) > 0 && (end == nil || bytes.Compare(to, end) < 0) {
		end = to
	}
	if after := storeKey(nil, r.After); len(after) > 0 && (end == nil || bytes.Compare(after, end) < 0) {
		end = after
	}
	return end
}

// PrefixEnd returns the first key behind all that begin with prefix, nil if there is none.
func PrefixEnd(prefix []byte) []byte {
	for n := len(prefix); n > 0; n-- {
		if prefix[n-1] < 0xFF {
			next := bytes.Clone(prefix[:n])
			next[n-1]++
			return next
		}
	}
	return nil
}

// passed reports whether no entry from stored on, in the direction of the scan,
// can be in the range.
func (r *Range) passed(stored []byte) bool {
	if !r.Descending {
		return passed(stored, r.Prefix) && bytes.Compare(stored, r.Prefix) > 0 || behind(stored, r.To)
	}
	low := r.low()
	return bytes.Compare(stored, low[:min(len(low), storedHead)]) < 0
}

// holds reports whether a key is in the range.
func (r *Range) holds(key []byte) bool {
	return bytes.HasPrefix(key, r.Prefix) && bytes.Compare(key, r.From) >= 0 && (len(r.To) == 0 || bytes.Compare(key, r.To) < 0)
}

var errNoEntry = errors.New("the row's entry is missing")

// Scan calls fn with the rows of a range, in the order of the index and, where
// that is equal, of their keys, or in the reverse of both, until limit rows have been given (no limit if it
// is 0 or less) or fn returns an error, which Scan returns. key is that of the
// entry; key and row are valid until fn returns. A row that is damaged, or does
// not go with its entry, is an ErrCorrupt.
//
// Keys of more than 472 bytes that are equal in their first 440 come in a fixed
// order, but not in theirs.
func (ix *Index) Scan(r Range, limit int, fn func(key []byte, row *Row) error) error {
	t, v, x := ix.t, ix.t.v, ix.ix.index
	if err := v.usable(); err != nil {
		return err
	}
	bad := func(err error) error {
		return &CorruptError{Dir: v.s.dir, Table: t.Name(), Text: fmt.Sprintf("index %s: %v", x.name(), err)}
	}
	if err := ix.holds(&r); err != nil {
		return err
	}
	after := storeKey(nil, r.After)
	var w walk
	var row Row
	more, step, err := v.beginRange(&w, &r, ix.ix.name, x.seed)
	for n := 0; err == nil && more && (limit <= 0 || n < limit); more, err = step() {
		if err := v.usable(); err != nil {
			return err
		}
		stored := w.item.key
		rowKey, err := x.openEntry(stored, w.item.value, &ix.entry)
		if err != nil {
			return bad(fmt.Errorf("entry %x: %w", stored, err))
		}
		if r.passed(stored) {
			return nil
		}
		if len(after) > 0 && bytes.Equal(stored, after) {
			continue
		}
		key, err := ix.row(stored, rowKey, &row)
		if err != nil {
			return err
		}
		if !r.holds(key) {
			continue // a long key of the same start
		}
		if err := fn(key, &row); err != nil {
			return err
		}
		n++
	}
	if err != nil {
		return bad(err)
	}
	return nil
}

// row reads the row of an entry, which stands under the store key rowKey, and makes the entry's key from it, which must be
// the one that it stands under.
func (ix *Index) row(stored, rowKey []byte, row *Row) (key []byte, err error) {
	t, v, x := ix.t, ix.t.v, ix.ix.index
	bad := func(err error) error {
		return v.s.corruptRow(t.t, rowKey, fmt.Errorf("index %s: %w", x.name(), err))
	}
	value, err := v.txn.Get(t.t.live.dbi, rowKey)
	if lmdb.IsNotFound(err) {
		return nil, bad(errors.New("the row of an entry is missing"))
	}
	if err != nil {
		return nil, v.s.fail("get row of "+t.Name(), err)
	}
	full, body, err := v.open(t.t.seed, rowKey, value, &row.joined)
	if err == nil {
		err = t.t.decode(body, row)
	}
	if err != nil {
		return nil, v.s.corruptRow(t.t, rowKey, err)
	}
	key, _, err = x.appendKey(ix.key[:0], ix.places.of(t.t, x, row.Version), row.Columns, full)
	ix.key = key
	if err != nil {
		return nil, bad(err)
	}
	if !bytes.Equal(storeKey(nil, key), stored) {
		return nil, bad(errors.New("the row does not go with its entry"))
	}
	return key, nil
}

// Indexes returns what View.Indexes does, of the newest snapshot.
func (s *Store) Indexes(ctx context.Context) (all []IndexInfo, err error) {
	err = s.View(ctx, func(v *View) error {
		all = v.Indexes()
		return nil
	})
	return all, err
}
