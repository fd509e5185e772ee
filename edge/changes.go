package edge

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"

	"github.com/bmatsuo/lmdb-go/lmdb"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/failpoint"
)

// change is one row event on its way into a generation.
type change struct {
	// stored is the store form of key.
	stored, key []byte
	// row is the encoded row, nil for a deletion.
	row []byte
	seq int32
	// unchanged tells that columns are to be completed from the row before.
	unchanged bool
	// lacks tells that the row has missing columns.
	lacks bool
	// tolerant tells that the row before may not be here, or not have all
	// columns: a deletion may find nothing, a row whose unchanged columns have
	// nothing to come from is left out.
	tolerant bool
}

// changes are those of one generation, in the order in which they came.
type changes struct {
	t    *table
	g    *generation
	list []change
}

// arena holds bytes made while changes are gathered, until they are flushed.
type arena struct{ chunk []byte }

const arenaChunk = 64 << 10

// hold copies b into the arena.
func (a *arena) hold(b []byte) []byte {
	if len(b) > cap(a.chunk)-len(a.chunk) {
		a.chunk = make([]byte, 0, max(arenaChunk, len(b)))
	}
	n := len(a.chunk)
	a.chunk = append(a.chunk, b...)
	return a.chunk[n:len(a.chunk):len(a.chunk)]
}

// gathered returns the changes of a generation for appending.
func (w *Writer) gathered(t *table, g *generation) *changes {
	c := w.changes[g]
	if c == nil {
		if n := len(w.spare); n > 0 {
			c, w.spare = w.spare[n-1], w.spare[:n-1]
		} else {
			c = new(changes)
		}
		c.g = g
		w.changes[g] = c
		w.touched = append(w.touched, c)
	}
	c.t = t
	return c
}

func (w *Writer) add(t *table, g *generation, ch change) {
	c := w.gathered(t, g)
	ch.seq = int32(len(c.list))
	ch.stored = ch.key
	if len(ch.key) > maxWholeKey {
		w.buf = millrace.StoreKey(w.buf[:0], ch.key)
		ch.stored = w.arena.hold(w.buf)
	}
	c.list = append(c.list, ch)
	w.ops++
	w.bytes += len(ch.key) + len(ch.row)
}

// drop forgets the changes of one generation.
func (w *Writer) drop(c *changes) {
	w.ops -= len(c.list)
	clear(c.list)
	c.list = c.list[:0]
}

// forget forgets all changes that were not flushed.
func (w *Writer) forget() {
	for _, c := range w.touched {
		delete(w.changes, c.g)
		clear(c.list)
		c.list = c.list[:0]
		c.t, c.g = nil, nil
		w.spare = append(w.spare, c)
	}
	w.touched = w.touched[:0]
	w.arena = arena{chunk: w.arena.chunk[:0]}
	w.ops, w.bytes = 0, 0
}

// Flush brings the gathered changes into the open transaction. After it the
// bytes of the entries that were applied are no longer needed. After an error
// the transaction must be aborted.
func (w *Writer) Flush() error {
	for _, c := range w.touched {
		if err := w.flush(c); err != nil {
			return err
		}
	}
	w.forget()
	return nil
}

// flushTable brings the changes of both generations of a table in.
func (w *Writer) flushTable(t *table) error {
	for _, c := range w.touched {
		if c.t.id != t.id {
			continue
		}
		if err := w.flush(c); err != nil {
			return err
		}
		w.drop(c)
	}
	return nil
}

// flush sorts the changes of one generation by key, in order of arrival where
// the key is the same, and brings the outcome for each key in. Random changes
// cost many times what sorted ones do.
func (w *Writer) flush(c *changes) error {
	if len(c.list) == 0 {
		return nil
	}
	failpoint.Hit("edge_before_put")
	order := func(a, b change) int {
		if n := bytes.Compare(a.stored, b.stored); n != 0 {
			return n
		}
		return cmp.Compare(a.seq, b.seq)
	}
	if !slices.IsSortedFunc(c.list, order) {
		slices.SortFunc(c.list, order)
	}
	cur, err := w.txn.OpenCursor(c.g.dbi)
	if err != nil {
		return w.s.fail("write rows of "+c.t.name(), err)
	}
	defer cur.Close()
	for rest := c.list; len(rest) > 0; {
		n := 1
		for n < len(rest) && bytes.Equal(rest[n].stored, rest[0].stored) {
			n++
		}
		if err := w.settle(c, cur, rest[:n]); err != nil {
			return err
		}
		rest = rest[n:]
	}
	return w.flushIndexes()
}

// settle brings the changes of one key in, as if one came after the other.
func (w *Writer) settle(c *changes, cur *lmdb.Cursor, list []change) error {
	const (
		asStored = iota // what the transaction holds
		present
		absent
	)
	state := asStored
	var row []byte
	lacks, mustExist := false, false
	for i := range list {
		ch := &list[i]
		if ch.row == nil {
			strict := c.g.usage == live && !ch.tolerant
			if strict && state == absent {
				return w.absent(c.t, ch.key, "a change deletes it a second time")
			}
			mustExist = mustExist || strict && state == asStored
			state, row = absent, nil
			continue
		}
		lacks = ch.lacks
		if ch.unchanged {
			base := row
			if state == asStored {
				var err error
				if base, err = w.stored(c, ch.stored, ch.key); err != nil {
					return err
				}
			}
			var err error
			if ch.row, lacks, err = w.completeRow(c.t, c.g, ch, ch.key, base); err != nil {
				return err
			}
			if ch.row == nil {
				continue // it stays away, as it was
			}
		}
		state, row = present, ch.row
	}
	if state == asStored {
		return nil
	}
	last := &list[len(list)-1]
	if c.g.usage == shadow && (c.g.missing > 0 || lacks) {
		if err := w.noteMissing(c.g, last.stored, state == present && lacks); err != nil {
			return err
		}
	}
	old, err := w.held(c, last.stored)
	if err != nil {
		return err
	}
	if len(c.g.indexes) > 0 {
		before, err := w.stored(c, last.stored, last.key)
		if err != nil {
			return err
		}
		if err := w.indexChange(c, last, before, row); err != nil {
			return err
		}
	}
	if state == absent {
		if err := w.deletePieces(old, 0); err != nil {
			return err
		}
		err := w.txn.Del(c.g.dbi, last.stored, nil)
		if lmdb.IsNotFound(err) {
			if mustExist {
				return w.absent(c.t, last.key, "a change deletes it")
			}
			return nil
		}
		return w.s.fail("delete row of "+c.t.name(), err)
	}
	if mustExist {
		base, err := w.stored(c, last.stored, last.key)
		if err != nil {
			return err
		}
		if base == nil {
			return w.absent(c.t, last.key, "a change deletes it")
		}
	}
	return w.putRow(c, cur, last, row, old)
}

func (w *Writer) absent(t *table, key []byte, why string) error {
	return fmt.Errorf("%w: %s, table %s has no row of key %s, and %s; mend: the rows differ from the source's: move the directory away and start the edge again, and report it",
		ErrInconsistent, w.s.dir, t.name(), t.describe(key), why)
}

// stored returns the encoded row that the transaction holds under a key, or nil
// if it holds none. It is valid until the next write or call.
func (w *Writer) stored(c *changes, stored, key []byte) ([]byte, error) {
	value, err := w.txn.Get(c.g.dbi, stored)
	if lmdb.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, w.s.fail("read row of "+c.t.name(), err)
	}
	_, row, err := openIn(w.txn, w.cat.pieces, c.t.seed, stored, value, &w.joined)
	if err != nil {
		return nil, w.s.corruptRow(c.t, key, err)
	}
	return row, nil
}
