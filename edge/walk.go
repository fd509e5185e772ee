package edge

import (
	"bytes"
	"errors"
	"fmt"
	"unsafe"

	"github.com/bmatsuo/lmdb-go/lmdb"
)

// LMDB finds a row by what its pages say, and no checksum is on those: where a
// pointer is damaged a search comes out at the wrong place, and the rows there
// may be whole and in order all the same. A row that is found has a checksum
// over its key. But that there is no row, or which one comes next, only the
// pages tell. So these two are answered here, from the pages in the memory map,
// each looked at before it is believed: that it is the page that it says it is,
// of the kind that it must be, whole, and within the keys that the page above
// gives it.

// memoryMap is where the data file lies in memory.
type memoryMap struct {
	base unsafe.Pointer
	// page is the size of a page, size that of the map, in bytes.
	page, size int
}

// findMap finds the map from an item in it: the page under it knows its number,
// and the file begins with two meta pages.
func (s *Store) findMap(txn *lmdb.Txn) error {
	_, page, err := s.fullSize()
	if err != nil {
		return err
	}
	cur, err := txn.OpenCursor(s.root)
	if err != nil {
		return s.fail("read databases", err)
	}
	defer cur.Close()
	key, _, err := cur.Get(nil, nil, lmdb.First)
	if err != nil || len(key) == 0 {
		return s.corrupt("its databases cannot be listed: %v", err)
	}
	m := memoryMap{page: int(page), size: int(s.mapSize())}
	at := unsafe.Pointer(unsafe.SliceData(key))
	under := unsafe.Add(at, -int(uintptr(at)%uintptr(m.page)))
	number := order.Uint64(unsafe.Slice((*byte)(under), 8))
	if number >= uint64(m.size/m.page) {
		return s.corrupt("the page of its databases says that it is page %d", number)
	}
	m.base = unsafe.Add(under, -int(number)*m.page)
	for i := range uint64(2) {
		b, err := m.read(i, 1)
		if err != nil {
			return s.corrupt("%v", err)
		}
		if order.Uint32(b[pageHeader:]) != metaMagic {
			return s.corrupt("the page of its databases says that it is page %d", number)
		}
	}
	s.pages = m
	return nil
}

// read returns n pages of the map.
func (m *memoryMap) read(page uint64, n int) ([]byte, error) {
	if last := uint64(m.size / m.page); page > last || uint64(n) > last-page {
		return nil, badPage(page, "is referred to and lies behind the end")
	}
	return unsafe.Slice((*byte)(unsafe.Add(m.base, int(page)*m.page)), n*m.page), nil
}

// treeNamed returns the record of a database as the snapshot has it.
func (v *View) treeNamed(database string) (tree, error) {
	if t := v.seen.tree(database); t != nil {
		return *t, nil
	}
	known, txn := &v.r.tree, v.txn.ID()
	if known.txn == txn && known.name == database {
		v.note(database, known.tree)
		return known.tree, nil
	}
	t, err := v.s.readTree(v.txn, database)
	if err == nil {
		*known = treeAt{txn, database, t}
		v.note(database, t)
	}
	return t, err
}

// readTree reads the record of a database as txn sees it.
func (s *Store) readTree(txn *lmdb.Txn, database string) (t tree, err error) {
	record, err := txn.Get(s.root, []byte(database))
	if err != nil {
		return t, s.fail("read database "+database, err)
	}
	if len(record) != treeSize {
		return t, s.corrupt("database %s has a record of %d bytes", database, len(record))
	}
	t.decode(record)
	if (t.start == noPage) != (t.items == 0) || (t.start == noPage) != (t.depth == 0) || t.depth > maxDepth {
		return t, s.corrupt("database %s: its record says %+v", database, t)
	}
	return t, nil
}

// walk goes through the items of one database in the order of their keys. What
// it gives lies in the map and is valid as long as the view. Its errors tell of
// damage.
type walk struct {
	pages   *memoryMap
	checked *checkedPages
	path    [maxDepth]step
	depth   int // of the tree; 0 if it is empty
	root    uint64
	item    item
}

// step is a page on the way from the root to the item.
type step struct {
	b         []byte
	i, n      int
	low, high []byte // keys of the page: from low to before high; nil for no bound
}

func (s *Store) newWalk(t tree) walk {
	return walk{pages: &s.pages, checked: &s.checked, depth: int(t.depth), root: t.start}
}

// begin makes w a walk that may have been another one before.
func (w *walk) begin(s *Store, t tree) {
	w.pages, w.checked, w.depth, w.root, w.item = &s.pages, &s.checked, int(t.depth), t.start, item{}
}

// behind reads the item before the one that the walk stands at, or returns false if there
// is none. The walk stays where it is.
func (w *walk) behind() (bool, error) {
	if w.depth == 0 {
		return false, nil
	}
	if leaf := &w.path[w.depth-1]; leaf.i > 0 {
		w.item.at(leaf.b, leaf.i-1)
		if w.item.flags&nodeTree != 0 {
			return false, fmt.Errorf("key %x holds a database", w.item.key)
		}
		return true, w.value()
	}
	before := *w
	ok, err := before.previous()
	w.item = before.item
	return ok, err
}

var errPlace = errors.New("has keys of another page")

// enter puts a page at the given place of the path.
func (w *walk) enter(at int, page uint64, low, high []byte) error {
	b, err := w.pages.read(page, 1)
	if err != nil {
		return err
	}
	if got := order.Uint64(b); got != page {
		return badPage(page, "says that it is page %d", got)
	}
	want, first := uint16(pageLeaf), 0
	if at < w.depth-1 {
		want, first = pageBranch, 1
	}
	n, err := w.items(page, b, want)
	if err != nil {
		return badPage(page, "%v", err)
	}
	s := &w.path[at]
	*s = step{b: b, n: n, low: low, high: high}
	if w.item.at(b, first); low != nil && bytes.Compare(w.item.key, low) < 0 {
		return badPage(page, "%v", errPlace)
	}
	if w.item.at(b, n-1); high != nil && bytes.Compare(w.item.key, high) >= 0 {
		return badPage(page, "%v", errPlace)
	}
	return nil
}

// items is checkItems, or what it has found before in a page of the same bytes.
func (w *walk) items(page uint64, b []byte, want uint16) (int, error) {
	entry, hash := w.checked.entry(page, b)
	if entry.Load() == hash && order.Uint16(b[10:])&pageKinds == want {
		return (int(order.Uint16(b[12:])) - pageHeader) / 2, nil
	}
	n, err := checkItems(b, want, bytes.Compare)
	if err == nil {
		entry.Store(hash)
	}
	return n, err
}

// down enters the page under the item that the path's branch page stands at.
func (w *walk) down(at int) error {
	s := &w.path[at]
	low, high := s.low, s.high
	if s.i+1 < s.n {
		w.item.at(s.b, s.i+1)
		high = w.item.key
	}
	w.item.at(s.b, s.i)
	if s.i > 0 {
		low = w.item.key
	}
	return w.enter(at+1, w.item.child, low, high)
}

// seek goes to the first item whose key is key or comes after it. It returns
// false if there is none. An empty key is before all.
func (w *walk) seek(key []byte) (bool, error) {
	if w.depth == 0 {
		return false, nil
	}
	if err := w.enter(0, w.root, nil, nil); err != nil {
		return false, err
	}
	for at := range w.depth - 1 {
		s := &w.path[at]
		s.i = w.search(s, 1, key, true) - 1
		if err := w.down(at); err != nil {
			return false, err
		}
	}
	s := &w.path[w.depth-1]
	s.i = w.search(s, 0, key, false)
	return w.settle()
}

// seekEnd goes behind the last item.
func (w *walk) seekEnd() error {
	if w.depth == 0 {
		return nil
	}
	if err := w.enter(0, w.root, nil, nil); err != nil {
		return err
	}
	for at := range w.depth - 1 {
		w.path[at].i = w.path[at].n - 1
		if err := w.down(at); err != nil {
			return err
		}
	}
	w.path[w.depth-1].i = w.path[w.depth-1].n
	return nil
}

// search returns the first place from from on whose key is behind key, or with
// equal false not before it.
func (w *walk) search(s *step, from int, key []byte, equal bool) int {
	lo, hi := from, s.n
	for lo < hi {
		mid := (lo + hi) / 2
		w.item.at(s.b, mid)
		if c := bytes.Compare(w.item.key, key); c < 0 || equal && c == 0 {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo
}

// next goes on to the next item, or returns false.
func (w *walk) next() (bool, error) {
	w.path[w.depth-1].i++
	return w.settle()
}

// settle goes to the following leaf where the path stands behind the end of one,
// and reads the item.
func (w *walk) settle() (bool, error) {
	leaf := w.depth - 1
	if s := &w.path[leaf]; s.i >= s.n {
		at := leaf - 1
		for ; at >= 0 && w.path[at].i+1 >= w.path[at].n; at-- {
		}
		if at < 0 {
			return false, nil
		}
		w.path[at].i++
		for ; at < leaf; at++ {
			if err := w.down(at); err != nil {
				return false, err
			}
		}
	}
	w.item.at(w.path[leaf].b, w.path[leaf].i)
	if w.item.flags&nodeTree != 0 {
		return false, fmt.Errorf("key %x holds a database", w.item.key)
	}
	return true, w.value()
}

// previous goes back to the item before, or returns false if there is none.
func (w *walk) previous() (bool, error) {
	if w.depth == 0 {
		return false, nil
	}
	leaf := w.depth - 1
	at := leaf
	for ; at >= 0 && w.path[at].i == 0; at-- {
	}
	if at < 0 {
		return false, nil
	}
	w.path[at].i--
	for ; at < leaf; at++ {
		if err := w.down(at); err != nil {
			return false, err
		}
		w.path[at+1].i = w.path[at+1].n - 1
	}
	return w.settle()
}

// value finds a value that has pages of its own.
func (w *walk) value() error {
	it := &w.item
	if it.flags&nodeBig == 0 {
		return nil
	}
	first := order.Uint64(it.value)
	n := (int(it.size)+pageHeader-1)/w.pages.page + 1
	b, err := w.pages.read(first, n)
	if err != nil {
		return err
	}
	if order.Uint64(b) != first || order.Uint16(b[10:])&pageKinds != pageOverflow || int(order.Uint32(b[12:])) < n {
		return badPage(first, "does not begin a value of %d pages", n)
	}
	it.value = b[pageHeader : pageHeader+int(it.size)]
	return nil
}
