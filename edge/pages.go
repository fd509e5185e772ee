package edge

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/bmatsuo/lmdb-go/lmdb"
)

// LMDB trusts its pages: a damaged one can make it read wild memory, or end the
// process by an assertion. So before Check walks the databases through LMDB,
// the pages of the snapshot are read from the file and looked at here: that
// they are of the kind they must be, that every item lies within its page, and
// that keys, depths and counts are those of a tree.
//
// The layout is that of LMDB 0.9 on 64-bit machines, in their own byte order.
const (
	pageHeader = 16
	nodeHeader = 8
	metaMagic  = 0xBEEFC0DE
	treeSize   = 48 // of a database's record
	noPage     = ^uint64(0)

	pageBranch   = 0x01
	pageLeaf     = 0x02
	pageOverflow = 0x04
	pageKinds    = 0x2F

	nodeBig  = 0x01
	nodeTree = 0x02

	// maxDepth is that of LMDB's cursors.
	maxDepth = 32
)

var order = binary.NativeEndian

// tree is the record of one database.
type tree struct {
	depth                                    uint16
	branches, leaves, overflow, items, start uint64
}

func (t *tree) decode(b []byte) {
	t.depth = order.Uint16(b[6:])
	t.branches, t.leaves, t.overflow = order.Uint64(b[8:]), order.Uint64(b[16:]), order.Uint64(b[24:])
	t.items, t.start = order.Uint64(b[32:]), order.Uint64(b[40:])
}

// pageChecker reads the pages of one snapshot.
type pageChecker struct {
	ctx   context.Context
	file  *os.File
	size  int
	last  uint64 // page in use
	seen  []uint64
	pages int
	// free tells that the tree under way is the one of free pages, whose keys
	// are numbers.
	free bool
	// inTree counts what the tree under way has.
	inTree tree
	named  []namedTree
}

type namedTree struct {
	name string
	tree tree
}

type pageError struct {
	page uint64
	text string
}

func (e *pageError) Error() string { return fmt.Sprintf("page %d of data.mdb %s", e.page, e.text) }

func badPage(page uint64, format string, args ...any) error {
	return &pageError{page, fmt.Sprintf(format, args...)}
}

// checkPages looks at all pages that txn can reach.
func (s *Store) checkPages(ctx context.Context, txn *lmdb.Txn) error {
	f, err := os.Open(filepath.Join(s.dir, "data.mdb"))
	if err != nil {
		return fmt.Errorf("check pages: %w", err)
	}
	defer func() { _ = f.Close() }()
	_, size, err := s.fullSize()
	if err != nil {
		return err
	}
	c := &pageChecker{ctx: ctx, file: f, size: int(size)}
	err = c.check(uint64(txn.ID()))
	if err == nil || errors.Is(err, errMetaMoved) || ctx.Err() != nil {
		return err
	}
	return s.corrupt("%v", err)
}

// check looks at the trees of the transaction with the given number.
func (c *pageChecker) check(id uint64) error {
	free, main, err := c.meta(id)
	if err != nil {
		return err
	}
	c.seen = make([]uint64, c.last/64+1)
	c.free = true
	if err := c.tree("of free pages", free); err != nil {
		return err
	}
	c.free = false
	if err := c.tree("of databases", main); err != nil {
		return err
	}
	named := c.named
	for _, n := range named {
		if err := c.tree(n.name, n.tree); err != nil {
			return err
		}
	}
	if len(c.named) != len(named) {
		return errors.New("a database lies within another one")
	}
	return nil
}

// meta finds the meta page of a transaction. The two take turns.
func (c *pageChecker) meta(id uint64) (free, main tree, err error) {
	b, err := c.read(id&1, 1)
	if err != nil {
		return free, main, err
	}
	m := b[pageHeader:]
	if order.Uint32(m) != metaMagic {
		return free, main, badPage(id&1, "is not a meta page")
	}
	dbs := m[24:]
	free.decode(dbs)
	main.decode(dbs[treeSize:])
	c.last = order.Uint64(dbs[2*treeSize:])
	if got := order.Uint64(dbs[2*treeSize+8:]); got != id {
		return free, main, errMetaMoved
	}
	return free, main, nil
}

// errMetaMoved tells that the writer has used the snapshot's meta page again
// since; the snapshot itself is whole.
var errMetaMoved = errors.New("meta page of the snapshot is gone")

func (c *pageChecker) read(page uint64, n int) ([]byte, error) {
	b := make([]byte, n*c.size)
	if got, err := c.file.ReadAt(b, int64(page)*int64(c.size)); got < len(b) {
		return nil, badPage(page, "cannot be read: %v", err)
	}
	return b, nil
}

// use notes that pages are in use, and refuses those that are so already.
func (c *pageChecker) use(page, n uint64) error {
	if page < 2 || n == 0 || n > c.last || page > c.last-n+1 {
		return badPage(page, "is referred to, with %d pages, behind the last page %d", n, c.last)
	}
	for p := page; p < page+n; p++ {
		if c.seen[p/64]&(1<<(p%64)) != 0 {
			return badPage(p, "is in use twice")
		}
		c.seen[p/64] |= 1 << (p % 64)
	}
	return nil
}

// tree walks one database.
func (c *pageChecker) tree(name string, want tree) error {
	c.inTree = tree{}
	if want.start == noPage {
		if want.items != 0 || want.depth != 0 {
			return fmt.Errorf("database %s has no pages and %d items", name, want.items)
		}
		return nil
	}
	if want.depth == 0 || want.depth > maxDepth {
		return fmt.Errorf("database %s has depth %d", name, want.depth)
	}
	if err := c.node(want.start, int(want.depth), nil, nil); err != nil {
		return fmt.Errorf("database %s: %w", name, err)
	}
	c.inTree.depth, c.inTree.start = want.depth, want.start
	if c.inTree != want {
		return fmt.Errorf("database %s: it has %+v, its record says %+v", name, c.inTree, want)
	}
	return nil
}

// node looks at one page of a tree and what is below it. Its keys must be from
// low to before high, where those are not nil.
func (c *pageChecker) node(page uint64, depth int, low, high []byte) error {
	if err := c.use(page, 1); err != nil {
		return err
	}
	if c.pages++; c.pages%1024 == 0 && c.ctx.Err() != nil {
		return fmt.Errorf("check store: %w", c.ctx.Err())
	}
	b, err := c.read(page, 1)
	if err != nil {
		return err
	}
	want := uint16(pageBranch)
	if depth == 1 {
		want = pageLeaf
	}
	if got := order.Uint64(b); got != page {
		return badPage(page, "says that it is page %d", got)
	}
	n, err := checkItems(b, want, c.compare)
	if err != nil {
		return badPage(page, "%v", err)
	}
	items := make([]item, n)
	for i := range items {
		it := &items[i]
		it.at(b, i)
		if want == pageBranch && i == 0 {
			it.key = nil // not used
		} else if low != nil && c.compare(it.key, low) < 0 || high != nil && c.compare(it.key, high) >= 0 {
			return badPage(page, "item %d has a key of another page", i)
		}
	}
	if want == pageLeaf {
		c.inTree.leaves++
		return c.leaf(page, items)
	}
	c.inTree.branches++
	for i := range items {
		from, to := low, high
		if i > 0 {
			from = items[i].key
		}
		if i+1 < len(items) {
			to = items[i+1].key
		}
		if err := c.node(items[i].child, depth-1, from, to); err != nil {
			return err
		}
	}
	return nil
}

// leaf looks at the values of a leaf page.
func (c *pageChecker) leaf(page uint64, items []item) error {
	for i := range items {
		it := &items[i]
		c.inTree.items++
		if it.flags&nodeTree != 0 {
			if len(it.value) != treeSize || it.flags&nodeBig != 0 {
				return badPage(page, "item %d is a malformed record of a database", i)
			}
			n := namedTree{name: string(it.key)}
			n.tree.decode(it.value)
			c.named = append(c.named, n)
			continue
		}
		value := it.value
		if it.flags&nodeBig != 0 {
			var err error
			if value, err = c.big(it); err != nil {
				return err
			}
		}
		if c.free {
			if err := c.freeList(page, value); err != nil {
				return err
			}
		}
	}
	return nil
}

// big looks at the pages of a value that has its own. A value that became
// smaller keeps those it had.
func (c *pageChecker) big(it *item) ([]byte, error) {
	first := order.Uint64(it.value)
	if err := c.use(first, 1); err != nil {
		return nil, err
	}
	b, err := c.read(first, 1)
	if err != nil {
		return nil, err
	}
	need := (uint64(it.size)+pageHeader-1)/uint64(c.size) + 1
	have := uint64(order.Uint32(b[12:]))
	if order.Uint64(b) != first || order.Uint16(b[10:])&pageKinds != pageOverflow || have < need {
		return nil, badPage(first, "does not begin a value of %d pages", need)
	}
	if have > 1 {
		if err := c.use(first+1, have-1); err != nil {
			return nil, err
		}
	}
	c.inTree.overflow += have
	if !c.free {
		return nil, nil
	}
	if b, err = c.read(first, int(need)); err != nil {
		return nil, err
	}
	return b[pageHeader : pageHeader+int(it.size)], nil
}

// freeList looks at a list of free pages: none of them may be in use. Free pages
// count as used by the list.
func (c *pageChecker) freeList(page uint64, b []byte) error {
	if len(b) < 8 || len(b)%8 != 0 || order.Uint64(b) > uint64(len(b)/8-1) {
		return badPage(page, "has a malformed list of free pages")
	}
	for i := range order.Uint64(b) {
		if err := c.use(order.Uint64(b[8+8*i:]), 1); err != nil {
			return err
		}
	}
	return nil
}

// compare orders keys as the tree under way does.
func (c *pageChecker) compare(a, b []byte) int {
	if c.free && len(a) == 8 && len(b) == 8 {
		return cmp.Compare(order.Uint64(a), order.Uint64(b))
	}
	return bytes.Compare(a, b)
}

// checkItems looks at a branch or leaf page: that its items lie within it, ascend
// and fill the room that it has given away. The last is what shows that one is
// missing: items lie close together, so none is left out of their sum. The key
// of a branch page's first item is not used.
func checkItems(b []byte, want uint16, compare func(a, b []byte) int) (n int, err error) {
	kind := order.Uint16(b[10:]) & pageKinds
	lower, upper := int(order.Uint16(b[12:])), int(order.Uint16(b[14:]))
	n = (lower - pageHeader) / 2
	switch {
	case kind != want:
		return 0, fmt.Errorf("is of kind %#x, want %#x", kind, want)
	case lower < pageHeader || upper < lower || upper > len(b) || lower%2 != 0:
		return 0, fmt.Errorf("has room from %d to %d", lower, upper)
	case n == 0 || kind == pageBranch && n < 2:
		return 0, fmt.Errorf("has %d items", n)
	}
	var it item
	var last []byte
	room := len(b) - upper
	for i := range n {
		if err := it.decode(b, i, upper, len(b), kind == pageLeaf); err != nil {
			return 0, fmt.Errorf("item %d %w", i, err)
		}
		first := i == 0 || kind == pageBranch && i == 1
		if !first && compare(last, it.key) >= 0 {
			return 0, fmt.Errorf("item %d is out of order", i)
		}
		room -= (nodeHeader + len(it.key) + len(it.value) + 1) &^ 1
		last = it.key
	}
	if room != 0 {
		return 0, fmt.Errorf("has %d bytes that its %d items do not use", room, n)
	}
	return n, nil
}

// item is one entry of a page.
type item struct {
	key   []byte
	flags uint16
	// child is the page below (branch). size is that of the value, value its
	// bytes or, if it has pages of its own, the first one's number (leaf).
	child uint64
	size  uint32
	value []byte
}

func (it *item) decode(page []byte, i, upper, size int, leaf bool) error {
	at := int(order.Uint16(page[pageHeader+2*i:]))
	if at < upper || at+nodeHeader > size {
		return fmt.Errorf("lies at %d", at)
	}
	b := page[at:size]
	lo, hi, flags := uint64(order.Uint16(b)), uint64(order.Uint16(b[2:])), order.Uint16(b[4:])
	n := int(order.Uint16(b[6:]))
	b = b[nodeHeader:]
	if n > len(b) {
		return fmt.Errorf("has a key of %d bytes", n)
	}
	it.key = b[:n]
	it.value, it.flags, it.size = nil, 0, 0
	if !leaf {
		it.child = lo | hi<<16 | uint64(flags)<<32
		return nil
	}
	it.flags = flags
	it.size = uint32(lo | hi<<16)
	have := uint64(it.size)
	switch {
	case flags&^(nodeBig|nodeTree) != 0:
		return fmt.Errorf("has flags %#x", flags)
	case flags&nodeBig != 0:
		have = 8
	}
	if n == 0 || have > uint64(len(b)-n) {
		return fmt.Errorf("has a key of %d bytes and a value of %d", n, it.size)
	}
	it.value = b[n : n+int(have)]
	return nil
}

// at reads an item of a page that checkItems has looked at.
func (it *item) at(page []byte, i int) {
	leaf := order.Uint16(page[10:])&pageLeaf != 0
	_ = it.decode(page, i, int(order.Uint16(page[14:])), len(page), leaf)
}
