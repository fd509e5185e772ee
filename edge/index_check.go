package edge

import (
	"bytes"
	"fmt"

	"github.com/bmatsuo/lmdb-go/lmdb"

	"github.com/millrace-db/millrace"
)

// entriesOf looks for a row's entries in the indexes of its generation.
func (c *checker) entriesOf(t *table, g *generation, stored, key []byte, row *Row) error {
	if c.places == nil {
		c.places, c.entries = make(places), make(map[string]uint64)
	}
	for _, ix := range g.indexes {
		x := ix.index
		if !x.covers(stored) {
			continue
		}
		bad := func(err error) error {
			return c.s.corruptRow(t, key, fmt.Errorf("index %s: %w", x.name(), err))
		}
		full, complete, err := x.appendKey(nil, c.places.of(t, x, row.Version), row.Columns, key)
		if err != nil {
			return bad(err)
		}
		if !complete {
			continue
		}
		entry := millrace.StoreKey(nil, full)
		value, err := c.v.txn.Get(ix.dbi, entry)
		if lmdb.IsNotFound(err) {
			return bad(errNoEntry)
		}
		if err != nil {
			return c.s.fail("read index "+x.name(), err)
		}
		if want := x.appendEntry(nil, entry, stored); !bytes.Equal(value, want) {
			return bad(fmt.Errorf("its entry is %x, want %x", value, want))
		}
		c.entries[ix.name]++
	}
	return nil
}

// indexes walks the indexes: that they have no entries besides those of rows.
func (c *checker) indexes() error {
	for _, ix := range c.cat.withUsage(indexed) {
		t := c.cat.tables[ix.table]
		var n uint64
		var buf entryBuffer
		err := c.walk(ix.dbi, ix.name, func(stored, value []byte) error {
			n++
			if _, err := ix.index.openEntry(stored, value, &buf); err != nil {
				return c.s.corrupt("table %s, index %s, entry %x: %v", t.name(), ix.index.name(), stored, err)
			}
			return nil
		})
		if err != nil {
			return err
		}
		if n != c.entries[ix.name] {
			return c.s.corrupt("table %s, index %s has %d entries of %d rows", t.name(), ix.index.name(), n, c.entries[ix.name])
		}
	}
	return nil
}
