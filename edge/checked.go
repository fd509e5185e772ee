package edge

import (
	"sync"
	"sync/atomic"

	"github.com/zeebo/xxh3"
)

// checkedPages remembers pages whose items were looked at and found in order, by a hash of
// all their bytes: a page that is altered in any way is looked at again. To hash a page
// costs a tenth of that, and what is read to find that a row is absent are the same few
// pages again and again. An entry that another page has taken costs its page a look.
type checkedPages struct {
	make  sync.Once
	pages atomic.Pointer[[checkedSize]atomic.Uint64]
}

// checkedSize is how many pages are remembered, at 8 bytes each: a power of two.
const checkedSize = 1 << 15

// entry returns where a page is remembered, and the hash of its bytes, which begin with
// its number.
func (c *checkedPages) entry(page uint64, b []byte) (*atomic.Uint64, uint64) {
	pages := c.pages.Load()
	if pages == nil {
		// Stores whose rows are all there need none of it.
		c.make.Do(func() { c.pages.Store(new([checkedSize]atomic.Uint64)) })
		pages = c.pages.Load()
	}
	return &pages[page&(checkedSize-1)], xxh3.Hash(b) | 1 // never 0, which is none
}

// treeAt is the record of a database in one snapshot.
type treeAt struct {
	txn  uintptr // 0 for none
	name string
	tree tree
}
