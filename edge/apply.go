package edge

import (
	"errors"
	"fmt"

	"github.com/bmatsuo/lmdb-go/lmdb"

	"github.com/millrace-db/millrace"
)

// Apply brings one entry into the open transaction. Entries come in the order of
// their indexes. e's byte strings must stay unchanged until the next Flush,
// Commit or Abort; mode is the capture mode of the entry's unit. After an error
// the transaction must be aborted.
//
// Live changes go into the live generation of the table and, while a load is
// under way, into its shadow as well; rows of a load go into the shadow only.
// LoadProgress, Heartbeat and Message entries change no rows. Verify entries are compared in
// the background with the rows that Commit makes visible, so the commit must end
// with their unit; Verifying tells of them.
func (w *Writer) Apply(e *millrace.Entry, mode millrace.Mode) error {
	if w.txn == nil {
		return errors.New("apply entry: no transaction is open")
	}
	w.s.metrics.entries.Inc()
	w.verify.pass(e)
	if w.cat.partial() && w.passes(e) {
		return nil
	}
	switch e.Kind {
	case millrace.KindPut:
		return w.put(e)
	case millrace.KindDelete:
		return w.delete(e, mode)
	case millrace.KindTruncate:
		return w.truncate(e.Table)
	case millrace.KindSchema:
		return w.schema(e.Schema)
	case millrace.KindLoadBegin:
		return w.loadBegin(e.Table, e.Load)
	case millrace.KindLoadEnd:
		return w.loadEnd(e.Table, e.Load)
	case millrace.KindQuarantine:
		return w.quarantine(e)
	case millrace.KindDrop:
		return w.dropTable(e.Table)
	case millrace.KindVerify:
		w.verify.ranges = append(w.verify.ranges, tableRange{e.Table, e.Verify}.clone())
		return nil
	case millrace.KindLoadProgress, millrace.KindHeartbeat, millrace.KindMessage:
		return nil
	}
	return fmt.Errorf("apply entry: %w: unknown %v; mend: upgrade this edge", millrace.ErrMalformed, e.Kind)
}

func (w *Writer) inconsistent(format string, args ...any) error {
	return fmt.Errorf("%w: %s: %s; mend: move the directory away and start the edge again, and report it",
		ErrInconsistent, w.s.dir, fmt.Sprintf(format, args...))
}

// tableOf returns the table that a change is for, which must have a generation.
func (w *Writer) tableOf(id millrace.TableID, kind millrace.Kind) (*table, error) {
	t := w.cat.tables[id]
	if t == nil || t.schema == nil {
		return nil, w.inconsistent("%v entry of table %v, of which no schema has come", kind, id)
	}
	if t.live == nil && t.shadow == nil {
		return nil, w.inconsistent("%v entry of table %s, of which no load has begun", kind, t.name())
	}
	return t, nil
}

func (w *Writer) put(e *millrace.Entry) error {
	t, err := w.tableOf(e.Table, e.Kind)
	if err != nil {
		return err
	}
	if err := w.decodeRow(t, e.Row, &w.row); err != nil {
		return fmt.Errorf("put into table %s, key %s: %w", t.name(), t.describe(e.Key), err)
	}
	ch := change{key: e.Key, row: e.Row, tolerant: t.inTransition()}
	for i := range w.row.Columns {
		switch w.row.Columns[i].State {
		case millrace.ColumnUnchanged:
			ch.unchanged = true
		case millrace.ColumnMissing:
			return fmt.Errorf("put into table %s, key %s: %w: column %d is marked as missing", t.name(), t.describe(e.Key), millrace.ErrMalformed, i+1)
		}
	}
	if e.Load != 0 {
		if t.shadow == nil || t.shadow.load != e.Load {
			return w.inconsistent("row of load %v of table %s, which is not under way here", e.Load, t.name())
		}
		if ch.unchanged {
			return fmt.Errorf("put into table %s, key %s: %w: a row of a load has unchanged columns", t.name(), t.describe(e.Key), millrace.ErrMalformed)
		}
		w.add(t, t.shadow, ch)
		return nil
	}
	if ch.unchanged && len(e.From) > 0 && string(e.From) != string(e.Key) {
		return w.putMoved(t, e, ch)
	}
	if t.live != nil {
		w.add(t, t.live, ch)
	}
	if t.shadow != nil {
		w.add(t, t.shadow, ch)
	}
	return nil
}

// putMoved puts a row whose unchanged columns come from another key. What was
// gathered is brought in first, so that the other key's row can be looked up.
func (w *Writer) putMoved(t *table, e *millrace.Entry, ch change) error {
	if err := w.flushTable(t); err != nil {
		return err
	}
	t = w.cat.tables[t.id] // flushing may have changed the catalog
	ch.unchanged = false
	from := storeKey(nil, e.From)
	for _, g := range []*generation{t.live, t.shadow} {
		if g == nil {
			continue
		}
		base, err := w.stored(&changes{t: t, g: g}, from, e.From)
		if err != nil {
			return err
		}
		moved := ch
		if moved.row, moved.lacks, err = w.completeRow(t, g, &ch, e.From, base); err != nil {
			return err
		}
		if moved.row != nil {
			w.add(t, g, moved)
		}
	}
	return nil
}

func (w *Writer) delete(e *millrace.Entry, mode millrace.Mode) error {
	t, err := w.tableOf(e.Table, e.Kind)
	if err != nil {
		return err
	}
	// A window of trigger mode deletes a key that was inserted and deleted
	// within it. In WAL mode every row that is deleted was inserted before, so
	// one that is not here has been lost.
	ch := change{key: e.Key, tolerant: mode == millrace.ModeTrigger || t.inTransition()}
	if t.live != nil {
		w.add(t, t.live, ch)
	}
	if t.shadow != nil {
		w.add(t, t.shadow, ch)
	}
	return nil
}

// truncate puts empty generations in the place of those of a table.
func (w *Writer) truncate(id millrace.TableID) error {
	if _, err := w.tableOf(id, millrace.KindTruncate); err != nil {
		return err
	}
	t := w.catalog().tables[id]
	w.renewed = append(w.renewed, id)
	for _, at := range []**generation{&t.live, &t.shadow} {
		old := *at
		if old == nil {
			continue
		}
		g, err := w.take(old.usage, id, old.load)
		if err != nil {
			return err
		}
		*at = g
		for _, ix := range old.indexes {
			if err := w.makeIndex(t, g, ix.index.columns); err != nil {
				return err
			}
		}
		if err := w.discard(old); err != nil {
			return err
		}
	}
	w.cat.index()
	return nil
}

func (w *Writer) schema(schema *millrace.Schema) error {
	if t := w.cat.tables[schema.Table]; t != nil && t.schemas[schema.Version] != nil {
		return w.inconsistent("schema version %v of %s comes a second time", schema.Version, schema.QualifiedName())
	}
	c := w.catalog()
	t := c.table(schema.Table)
	var was millrace.FilterTable
	held := false
	if t.schema != nil {
		was, held = c.filter.Table(t.name())
	}
	if err := t.addSchema(schema); err != nil {
		return fmt.Errorf("apply schema of %s: %w", schema.QualifiedName(), err)
	}
	if c.partial() {
		if err := c.rescopeTable(t); err != nil {
			return fmt.Errorf("apply schema of %s: %w", schema.QualifiedName(), err)
		}
		if err := w.renamed(t, was, held); err != nil {
			return err
		}
	}
	c.index()
	if err := w.refitIndexes(c.tables[schema.Table]); err != nil {
		return err
	}
	key := schemaKey(schema.Table, schema.Version)
	return w.s.fail("write schema of "+schema.QualifiedName(),
		w.txn.Put(w.s.meta, key, seal(key, millrace.AppendSchema(nil, schema)), 0))
}

// dropTable takes a table out of the store. Its databases are emptied later and
// used again, as those of any generation that is gone.
func (w *Writer) dropTable(id millrace.TableID) error {
	if t := w.cat.tables[id]; t == nil || t.schema == nil {
		return w.inconsistent("table %v is dropped, of which no schema has come", id)
	}
	c := w.catalog()
	t := c.tables[id]
	for _, g := range []*generation{t.live, t.shadow} {
		if err := w.discard(g); err != nil {
			return err
		}
	}
	keys := [][]byte{}
	for version := range t.schemas {
		keys = append(keys, schemaKey(id, version))
	}
	if t.diverged != "" {
		keys = append(keys, divergedKey(id))
	}
	for _, key := range keys {
		if err := w.txn.Del(w.s.meta, key, nil); err != nil {
			return w.s.fail("drop table "+t.name(), err)
		}
	}
	delete(c.tables, id)
	c.index()
	w.loaded, w.renewed = append(w.loaded, id), append(w.renewed, id)
	return nil
}

// loadBegin begins a shadow generation, and with it a time in which the live one
// need not be whole: changes keep what held when they came. One that is under way was cut off.
func (w *Writer) loadBegin(id millrace.TableID, load millrace.LoadID) error {
	if t := w.cat.tables[id]; t == nil || t.schema == nil {
		return w.inconsistent("load %v begins for table %v, of which no schema has come", load, id)
	}
	t := w.catalog().tables[id]
	if t.shadow != nil {
		old := t.shadow
		t.shadow = nil
		if err := w.discard(old); err != nil {
			return err
		}
	}
	g, err := w.take(shadow, id, load)
	if err != nil {
		return err
	}
	t.shadow = g
	for _, columns := range w.s.declaredFor(t.name()) {
		if err := w.makeIndex(t, g, columns); err != nil {
			return err
		}
	}
	return nil
}

// loadEnd makes the shadow generation the table.
func (w *Writer) loadEnd(id millrace.TableID, load millrace.LoadID) error {
	t := w.cat.tables[id]
	if t == nil || t.shadow == nil || t.shadow.load != load {
		return w.inconsistent("load %v of table %v ends and is not under way here", load, id)
	}
	if err := w.flushTable(t); err != nil {
		return err
	}
	t = w.catalog().tables[id]
	lacking := t.shadow.missing > 0 && t.some()
	if lacking {
		if err := w.endLacking(t); err != nil {
			return err
		}
	} else if n := t.shadow.missing; n > 0 {
		return w.inconsistent("load %v of table %s ends, and %d of its rows lack columns", load, t.name(), n)
	}
	old := t.live
	t.live, t.shadow = t.shadow, nil
	t.live.usage, t.live.load = live, 0
	if err := w.writeGeneration(t.live); err != nil {
		return err
	}
	if err := w.discard(old); err != nil {
		return err
	}
	if t.diverged != "" && !lacking {
		t.diverged = ""
		if err := w.txn.Del(w.s.meta, divergedKey(id), nil); err != nil {
			return w.s.fail("clear mark of "+t.name(), err)
		}
	}
	w.cat.index()
	w.loaded = append(w.loaded, id)
	if !w.s.verifier.brought(id, load) {
		w.renewed = append(w.renewed, id)
	}
	return nil
}

// quarantine marks the table of an entry that was kept back.
func (w *Writer) quarantine(e *millrace.Entry) error {
	why := fmt.Sprintf("a %v entry was kept back: %s", e.Quarantine.Kind, e.Quarantine.Reason)
	t := w.catalog().table(e.Table)
	if t.diverged != "" {
		return nil // the first reason is the one to look for
	}
	t.diverged = why
	key := divergedKey(e.Table)
	return w.s.fail("mark table "+t.name(), w.txn.Put(w.s.meta, key, seal(key, []byte(why)), 0))
}

// decodeRow decodes a row and checks it against its schema.
func (w *Writer) decodeRow(t *table, b []byte, row *millrace.Row) error {
	if err := millrace.DecodeRow(b, row); err != nil {
		return err
	}
	schema := t.schemas[row.Version]
	if schema == nil {
		return fmt.Errorf("%w: %w: %v", millrace.ErrMalformed, errUnknownVersion, row.Version)
	}
	if len(schema.Columns) != len(row.Columns) {
		return fmt.Errorf("%w: row has %d columns, its schema version %v has %d", millrace.ErrMalformed, len(row.Columns), row.Version, len(schema.Columns))
	}
	return nil
}

// completeRow replaces the unchanged columns of a row by those of base, an
// encoded row or nil, which key is of. What base does not have is marked as
// missing in a shadow, and an error in the live generation. The result lies in
// the arena.
//
// In transition the live generation goes on showing what it showed. A row that it
// does not have stays away: the result is nil. A column that the base does not
// have is null, as readers have seen it since the column came.
func (w *Writer) completeRow(t *table, g *generation, ch *change, key, base []byte) (completed []byte, lacks bool, err error) {
	if err := w.decodeRow(t, ch.row, &w.row); err != nil {
		return nil, false, err
	}
	// Where the other key is not held there is nothing that could be here.
	away := t.some() && !t.scope.Holds(key)
	if base == nil && g.usage == live && (ch.tolerant || !away) {
		if ch.tolerant {
			return nil, false, nil
		}
		return nil, false, w.absent(t, key, "a change leaves columns of it unchanged")
	}
	if base != nil {
		if err := w.decodeRow(t, base, &w.base); err != nil {
			return nil, false, w.s.corruptRow(t, key, err)
		}
	}
	schema := t.schemas[w.row.Version]
	w.cols = append(w.cols[:0], w.row.Columns...)
	for i := range w.cols {
		if w.cols[i].State != millrace.ColumnUnchanged {
			continue
		}
		d := millrace.Datum{State: millrace.ColumnMissing}
		if base != nil {
			at := i
			if w.base.Version != w.row.Version {
				at = t.schemas[w.base.Version].Counterpart(&schema.Columns[i])
			}
			if at >= 0 {
				d = w.base.Columns[at]
			}
		}
		if d.State == millrace.ColumnMissing && g.usage == live && ch.tolerant {
			d.State = millrace.ColumnNull
		}
		if d.State == millrace.ColumnMissing {
			if g.usage == live && !t.some() {
				return nil, false, w.inconsistent("a change of table %s, key %s leaves column %s unchanged, which the row here does not have",
					t.name(), t.describe(key), schema.Columns[i].Name)
			}
			lacks = true
		}
		w.cols[i] = d
	}
	if lacks && g.usage == live {
		if err := w.incomplete(t, ch.key, key); err != nil {
			return nil, false, err
		}
	}
	w.buf = millrace.AppendRow(w.buf[:0], w.row.Version, w.cols)
	return w.arena.hold(w.buf), lacks, nil
}

// missing yields the generations whose count of rows that lack columns the
// transaction may have changed.
func (w *Writer) missing() func(func(*generation) bool) {
	return func(yield func(*generation) bool) {
		if !w.own {
			return
		}
		for _, g := range w.cat.generations {
			if g.usage == shadow && !yield(g) {
				return
			}
		}
	}
}

func missingKey(g *generation, stored []byte) []byte {
	return append(missingPrefix(g.name), stored...)
}

// noteMissing keeps the list of the rows of a shadow that lack columns.
func (w *Writer) noteMissing(g *generation, stored []byte, lacks bool) error {
	key := missingKey(g, stored)
	n := 0
	var err error
	if lacks {
		if err = w.txn.Put(w.s.meta, key, nil, lmdb.NoOverwrite); err == nil {
			n = 1
		} else if lmdb.IsErrno(err, lmdb.KeyExist) {
			err = nil
		}
	} else {
		if err = w.txn.Del(w.s.meta, key, nil); err == nil {
			n = -1
		} else if lmdb.IsNotFound(err) {
			err = nil
		}
	}
	if err != nil {
		return w.s.fail("note row that lacks columns", err)
	}
	if n != 0 {
		h := w.catalog().generations[g.name]
		h.missing = uint64(int64(h.missing) + int64(n))
	}
	return nil
}
