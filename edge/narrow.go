package edge

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"

	"github.com/bmatsuo/lmdb-go/lmdb"
)

// Where a store comes to hold less than it did, the rows of tables that are not held
// any more are garbage at once, and rows of other keys are removed in slices. Readers
// are refused what the filter leaves out from the first moment on, so nobody sees how
// far that is.

// keyNarrowing is the record of meta that is there while rows are removed: the
// database and, behind a zero byte, the store key to go on behind.
var keyNarrowing = []byte("narrowing")

// narrow begins with what follows from a filter that holds less.
func (w *Writer) narrow() error {
	some := false
	for _, t := range w.cat.tables {
		if t.schema == nil {
			continue
		}
		if t.scope.None() {
			if err := w.letGo(t); err != nil {
				return err
			}
		}
		some = some || t.some()
	}
	if !some {
		return nil
	}
	return w.beginNarrowing()
}

func (w *Writer) beginNarrowing() error {
	return w.noteNarrowing("", nil)
}

func (w *Writer) noteNarrowing(name string, stored []byte) error {
	c := w.catalog()
	c.narrowing = append(append([]byte(name), 0), stored...)
	return w.s.fail("write how far rows are removed", w.txn.Put(w.s.meta, keyNarrowing, seal(keyNarrowing, bytes.Clone(c.narrowing)), 0))
}

func (w *Writer) endNarrowing() error {
	w.catalog().narrowing = nil
	return w.s.fail("end removing rows", w.txn.Del(w.s.meta, keyNarrowing, nil))
}

// readNarrowing reads the record as txn sees it, nil if there is none.
func (s *Store) readNarrowing(txn *lmdb.Txn) ([]byte, error) {
	sealed, err := txn.Get(s.meta, keyNarrowing)
	if lmdb.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, s.fail("read how far rows are removed", err)
	}
	b, err := unseal(keyNarrowing, sealed)
	if err == nil && !bytes.Contains(b, []byte{0}) {
		err = fmt.Errorf("meta record %q is malformed", keyNarrowing)
	}
	if err != nil {
		return nil, s.corrupt("%v", err)
	}
	return bytes.Clone(b), nil
}

// narrowSlice removes a slice of the rows that are not held any more.
func (w *Writer) narrowSlice() error {
	if err := w.Begin(); err != nil {
		return err
	}
	err := w.narrowRows(cmp.Or(w.s.opts.slice, sweepRows))
	if err == nil {
		err = w.Flush()
	}
	if err == nil {
		h := *w.s.place.Load()
		h.catalog = w.cat.number
		if err = w.s.writeHead(w.txn, &h); err == nil {
			return w.finish(&h)
		}
	}
	w.Abort()
	return err
}

// narrowRows gathers deletions of rows that are not held, and notes how far it came.
func (w *Writer) narrowRows(room int) error {
	name, after, _ := bytes.Cut(w.cat.narrowing, []byte{0})
	g := w.narrowNext(string(name))
	if g == nil {
		return w.endNarrowing()
	}
	if g.name != string(name) {
		after = nil
	}
	t := w.cat.tables[g.table]
	cur, err := w.txn.OpenCursor(g.dbi)
	if err != nil {
		return w.s.fail("remove rows of "+t.name(), err)
	}
	defer cur.Close()
	op, last := uint(lmdb.First), after
	if len(after) > 0 {
		op = lmdb.SetRange
		room++ // it comes once more
	}
	for ; room > 0; room-- {
		stored, value, err := cur.Get(after, nil, op)
		if lmdb.IsNotFound(err) {
			return w.noteNarrowing(g.name+"\x01", nil) // what comes behind it
		}
		if err != nil {
			return w.s.fail("remove rows of "+t.name(), err)
		}
		after, op = nil, lmdb.Next
		key, _, err := openIn(w.txn, w.cat.pieces, t.seed, stored, value, &w.joined)
		if err != nil {
			return w.s.corruptRow(t, stored, err)
		}
		last = stored
		if !t.scope.Holds(key) {
			w.add(t, g, change{key: w.arena.hold(key), tolerant: true})
		}
	}
	return w.noteNarrowing(g.name, last)
}

// narrowNext returns the first generation from a name on that may have rows which are
// not held.
func (w *Writer) narrowNext(name string) *generation {
	all := append(w.cat.withUsage(live), w.cat.withUsage(shadow)...)
	slices.SortFunc(all, func(a, b *generation) int { return cmp.Compare(a.name, b.name) })
	for _, g := range all {
		if g.name >= name && w.cat.tables[g.table].some() {
			return g
		}
	}
	return nil
}
