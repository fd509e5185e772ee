package watch

import (
	"sort"

	"github.com/millrace-db/millrace"
)

// ring is the newest part of the log, decoded: blocks that follow each other.
type ring struct {
	blocks []*block
	// first is the index before the oldest block, at the last index of the newest, and
	// tables what is there at that.
	first, at millrace.Index
	tables    tables
	weight    int64
}

// push appends the block that comes next, and drops old ones over the limit.
func (r *ring) push(b *block, most int64) {
	r.blocks = append(r.blocks, b)
	r.at, r.tables = b.last, b.to
	r.weight += b.weight
	drop := 0
	for ; r.weight > most && drop < len(r.blocks)-1; drop++ {
		r.weight -= r.blocks[drop].weight
		r.first = r.blocks[drop].last
	}
	if drop > 0 {
		// What was dropped must not be kept by the array.
		clear(r.blocks[:drop])
		r.blocks = r.blocks[drop:]
	}
}

// after returns the block in which what comes after an index begins. The index must be
// from first to before at.
func (r *ring) after(index millrace.Index) *block {
	i := sort.Search(len(r.blocks), func(i int) bool { return r.blocks[i].last > index })
	return r.blocks[i]
}

// cache holds blocks from behind the ring, for watchers that are about at the same place.
type cache struct {
	blocks []*block
	weight int64
}

// after returns the block in which what comes after an index begins, nil if it is not
// here.
func (c *cache) after(index millrace.Index) *block {
	for i := len(c.blocks) - 1; i >= 0; i-- {
		if b := c.blocks[i]; b.before <= index && index < b.last {
			return b
		}
	}
	return nil
}

// push keeps a block, and drops those that were kept for longest over the limit.
func (c *cache) push(b *block, most int64) {
	c.blocks = append(c.blocks, b)
	c.weight += b.weight
	drop := 0
	for ; c.weight > most && drop < len(c.blocks)-1; drop++ {
		c.weight -= c.blocks[drop].weight
	}
	if drop > 0 {
		clear(c.blocks[:drop])
		c.blocks = c.blocks[drop:]
	}
}
