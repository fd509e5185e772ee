package edge

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/bmatsuo/lmdb-go/lmdb"

	"github.com/millrace-db/millrace"
)

// indexing is what the writer knows of indexes.
type indexing struct {
	places places
	// changes are those of entries, by database, until they are flushed.
	changes map[string][]entryChange
	// failed says why an index over a generation cannot be: by database of the
	// rows and columns. It is not tried again while the process runs.
	failed map[string]string
	before millrace.Row
	after  millrace.Row
	key    []byte
	value  []byte
	// idle tells that nothing is to be done in the background for the indexes
	// idleFor; it holds until the next commit.
	idle    bool
	idleFor *map[string][][]string
	// turn alternates between sweeping and building.
	turn bool
}

// entryChange puts or deletes an entry.
type entryChange struct {
	// stored is the entry's store key, row that of its row; nil for a deletion.
	stored, row []byte
}

func (x *indexing) reset() {
	clear(x.changes)
	x.idle = false
}

func failedKey(of string, columns []string) string { return fmt.Sprintf("%s %q", of, columns) }

// makeIndex makes a whole index over an empty generation, unless the table's
// columns forbid it.
func (w *Writer) makeIndex(t *table, g *generation, columns []string) error {
	_, err := w.addIndex(t, g, columns, true)
	return err
}

// addIndex makes an index; it returns nil where the table's columns forbid it.
func (w *Writer) addIndex(t *table, g *generation, columns []string, whole bool) (*generation, error) {
	x := &rowIndex{of: g.name, columns: slices.Clone(columns), version: t.schema.Version, whole: whole}
	if err := x.complete(t); err != nil {
		w.refuseIndex(g, columns, err)
		return nil, nil //nolint:nilnil // left out
	}
	if !w.roomForDatabase() {
		w.refuseIndex(g, columns, fmt.Errorf("the store has its limit of %d table generations and indexes in use; mend: restart the edge, it then makes room for more", w.s.opts.MaxDBs))
		return nil, nil //nolint:nilnil // left out
	}
	ix, err := w.take(indexed, t.id, 0)
	if err != nil {
		return nil, err
	}
	ix.index = x
	g.indexes = append(g.indexes, ix)
	return ix, w.writeGeneration(ix)
}

func (w *Writer) refuseIndex(g *generation, columns []string, err error) {
	if w.indexing.failed == nil {
		w.indexing.failed = make(map[string]string)
	}
	key := failedKey(g.name, columns)
	if _, known := w.indexing.failed[key]; known {
		return
	}
	w.indexing.failed[key] = err.Error()
	w.s.refused.set(g.table, columns, err.Error())
	w.s.log.Warn("an index cannot be kept", "dir", w.s.dir, "columns", columns, "error", err)
}

// dropIndex gives an index up.
func (w *Writer) dropIndex(g, ix *generation) error {
	c := w.catalog()
	g, ix = c.generations[g.name], c.generations[ix.name]
	g.indexes = slices.DeleteFunc(g.indexes, func(o *generation) bool { return o == ix })
	return w.discard(ix)
}

// refitIndexes drops the indexes of a table whose keys a new schema would give
// another form. They are built anew, if that can be, in the background.
func (w *Writer) refitIndexes(t *table) error {
	for _, g := range []*generation{t.live, t.shadow} {
		if g == nil {
			continue
		}
		for _, ix := range slices.Clone(g.indexes) {
			if ix.index.fits(t) {
				continue
			}
			// What was gathered is brought in first, as it was meant.
			if err := w.flushTable(t); err != nil {
				return err
			}
			if err := w.dropIndex(g, ix); err != nil {
				return err
			}
		}
	}
	// What stood against one may be gone.
	clear(w.indexing.failed)
	w.s.refused.clear(t.id)
	return nil
}

// fits reports whether the newest schema of the table gives rows the same keys.
func (x *rowIndex) fits(t *table) bool {
	codec, err := millrace.NewIndexCodec(t.schema, x.columns)
	if err != nil || !codec.SameKeys(x.codec) {
		return false
	}
	old := t.schemas[x.version]
	for i, at := range x.codec.Columns() {
		if t.schema.Counterpart(&old.Columns[at]) != codec.Columns()[i] {
			return false
		}
	}
	return true
}

// indexChange notes what the change of a row does to the indexes: before and
// after are the encoded rows, nil for none.
func (w *Writer) indexChange(c *changes, ch *change, before, after []byte) error {
	x := &w.indexing
	if before != nil {
		if err := w.decodeRow(c.t, before, &x.before); err != nil {
			return w.s.corruptRow(c.t, ch.key, err)
		}
	}
	if after != nil {
		if err := w.decodeRow(c.t, after, &x.after); err != nil {
			return err
		}
	}
	for _, ix := range slices.Clone(c.g.indexes) {
		if !ix.index.covers(ch.stored) {
			continue
		}
		err := w.entryChange(c.t, ix, ch, before != nil, after != nil)
		if err == nil {
			continue
		}
		// A value that does not fit the index's types: the rows matter more.
		w.refuseIndex(c.g, ix.index.columns, err)
		if err := w.dropIndex(c.g, ix); err != nil {
			return err
		}
	}
	return nil
}

// entryChange notes what becomes of one row's entry.
func (w *Writer) entryChange(t *table, ix *generation, ch *change, was, is bool) error {
	x := &w.indexing
	var old, now []byte
	var err error
	if was {
		if old, err = w.entryKey(t, ix, &x.before, ch.key); err != nil {
			return err
		}
	}
	if is {
		if now, err = w.entryKey(t, ix, &x.after, ch.key); err != nil {
			return err
		}
	}
	if old != nil && bytes.Equal(old, now) {
		return nil
	}
	if old != nil {
		w.noteEntry(ix, entryChange{stored: old})
	}
	if now != nil {
		w.noteEntry(ix, entryChange{stored: now, row: ch.stored})
	}
	return nil
}

func (w *Writer) noteEntry(ix *generation, e entryChange) {
	if w.indexing.changes == nil {
		w.indexing.changes = make(map[string][]entryChange)
	}
	w.indexing.changes[ix.name] = append(w.indexing.changes[ix.name], e)
}

// entryKey returns the store key of a row's entry, in the arena, or nil where the
// row lacks a column.
func (w *Writer) entryKey(t *table, ix *generation, row *millrace.Row, key []byte) ([]byte, error) {
	x := &w.indexing
	if x.places == nil {
		x.places = make(places)
	}
	full, complete, err := ix.index.appendKey(x.key[:0], x.places.of(t, ix.index, row.Version), row.Columns, key)
	x.key = full
	if err != nil || !complete {
		return nil, err
	}
	if len(full) <= maxWholeKey {
		return w.arena.hold(full), nil
	}
	x.value = millrace.StoreKey(x.value[:0], full)
	return w.arena.hold(x.value), nil
}

// flushIndexes brings the changes of entries in, in the order of their keys.
func (w *Writer) flushIndexes() error {
	for name, list := range w.indexing.changes {
		if len(list) == 0 {
			continue
		}
		if err := w.flushEntries(w.cat.generations[name], list); err != nil {
			return err
		}
		clear(list)
		w.indexing.changes[name] = list[:0]
	}
	return nil
}

func (w *Writer) flushEntries(ix *generation, list []entryChange) error {
	slices.SortFunc(list, func(a, b entryChange) int { return bytes.Compare(a.stored, b.stored) })
	cur, err := w.txn.OpenCursor(ix.dbi)
	if err != nil {
		return w.s.fail("write index "+ix.index.name(), err)
	}
	defer cur.Close()
	for i := range list {
		e := &list[i]
		if e.row != nil {
			w.indexing.value = ix.index.appendEntry(w.indexing.value[:0], e.stored, e.row)
			err = cur.Put(e.stored, w.indexing.value, 0)
		} else {
			err = w.txn.Del(ix.dbi, e.stored, nil)
			if lmdb.IsNotFound(err) {
				return w.s.corrupt("index %s, database %s, lacks the entry %x of a row", ix.index.name(), ix.name, e.stored)
			}
		}
		if err != nil {
			return w.s.fail("write index "+ix.index.name(), err)
		}
	}
	return nil
}

// buildRows and buildBytes bound how many rows, of how many bytes, a slice
// indexes.
const (
	buildRows  = 2048
	buildBytes = 4 << 20
)

// indexTask is an index to make or to drop, or one to go on with.
type indexTask struct {
	t *table
	g *generation
	// ix is nil for one that is to be made, over columns.
	ix      *generation
	columns []string
	drop    bool
}

func (w *Writer) indexTask() *indexTask {
	for _, t := range w.cat.tables {
		for _, g := range []*generation{t.live, t.shadow} {
			if g == nil || t.schema == nil {
				continue
			}
			if task := w.indexTaskOf(t, g); task != nil {
				return task
			}
		}
	}
	return nil
}

func (w *Writer) indexTaskOf(t *table, g *generation) *indexTask {
	wanted := w.s.declaredFor(t.name())
	for _, ix := range g.indexes {
		if !slices.ContainsFunc(wanted, func(c []string) bool { return slices.Equal(c, ix.index.columns) }) {
			return &indexTask{t: t, g: g, ix: ix, drop: true}
		}
	}
	failed := func(columns []string) bool {
		_, failed := w.indexing.failed[failedKey(g.name, columns)]
		return failed
	}
	for _, ix := range g.indexes {
		if !ix.index.whole && !failed(ix.index.columns) {
			return &indexTask{t: t, g: g, ix: ix}
		}
	}
	for _, columns := range wanted {
		if !failed(columns) && g.over(columns) == nil {
			return &indexTask{t: t, g: g, columns: columns}
		}
	}
	return nil
}

// doIndexTask does one slice of the work on an index, in a transaction of its
// own.
func (w *Writer) doIndexTask(task *indexTask) error {
	if err := w.Begin(); err != nil {
		return err
	}
	h := *w.s.place.Load()
	err := w.indexSlice(task)
	if err == nil {
		h.catalog = w.cat.number
		err = w.s.writeHead(w.txn, &h)
	}
	if err == nil {
		err = w.finish(&h)
	}
	if err != nil {
		w.Abort()
	}
	if errors.Is(err, ErrFull) {
		// Changes matter more.
		columns := task.columns
		if task.ix != nil {
			columns = task.ix.index.columns
		}
		w.refuseIndex(task.g, columns, err)
		return nil
	}
	return err
}

func (w *Writer) indexSlice(task *indexTask) error {
	c := w.catalog()
	t, g := c.tables[task.t.id], c.generations[task.g.name]
	switch {
	case task.drop:
		return w.dropIndex(g, task.ix)
	case task.ix == nil:
		_, err := w.addIndex(t, g, task.columns, false)
		return err
	}
	ix := w.cat.generations[task.ix.name]
	err := w.buildSlice(t, g, ix)
	var unfit *unfitError
	if !errors.As(err, &unfit) {
		return err
	}
	// A row that is damaged, or does not fit the index, stops nothing else.
	w.refuseIndex(g, ix.index.columns, unfit.err)
	return w.dropIndex(g, ix)
}

// unfitError tells of a row that an index cannot be built over.
type unfitError struct{ err error }

func (e *unfitError) Error() string { return e.err.Error() }
func (e *unfitError) Unwrap() error { return e.err }

// buildSlice enters the next rows into an index.
func (w *Writer) buildSlice(t *table, g, ix *generation) error {
	cur, err := w.txn.OpenCursor(g.dbi)
	if err != nil {
		return w.s.fail("build index "+ix.index.name(), err)
	}
	defer cur.Close()
	next := *ix.index
	rows, size, most := 0, 0, cmp.Or(w.s.opts.slice, buildRows)
	defer w.forget() // what it held in the arena
	op := uint(lmdb.SetRange)
	at := next.upTo
	if len(at) == 0 {
		op, at = lmdb.First, nil
	}
	stored, value, err := cur.Get(at, nil, op)
	if err == nil && len(next.upTo) > 0 && bytes.Equal(stored, next.upTo) {
		stored, value, err = cur.Get(nil, nil, lmdb.Next)
	}
	for ; err == nil && rows < most && size < buildBytes; stored, value, err = cur.Get(nil, nil, lmdb.Next) {
		key, body, err := openIn(w.txn, w.cat.pieces, t.seed, stored, value, &w.joined)
		if err == nil {
			err = w.decodeRow(t, body, &w.indexing.after)
		}
		if err != nil {
			return &unfitError{w.s.corruptRow(t, stored, err)}
		}
		entry, err := w.entryKey(t, ix, &w.indexing.after, key)
		if err != nil {
			return &unfitError{fmt.Errorf("row of key %s: %w", t.describe(key), err)}
		}
		next.upTo = append(next.upTo[:0:0], stored...)
		if entry != nil {
			w.noteEntry(ix, entryChange{stored: entry, row: w.arena.hold(stored)})
		}
		rows++
		size += len(body)
	}
	switch {
	case lmdb.IsNotFound(err):
		next.whole, next.upTo = true, nil
	case err != nil:
		return w.s.fail("build index "+ix.index.name(), err)
	}
	if err := w.flushIndexes(); err != nil {
		return err
	}
	ix.index = &next
	w.s.metrics.indexed.Add(float64(rows))
	return w.writeGeneration(ix)
}
