package edge

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/bmatsuo/lmdb-go/lmdb"

	"github.com/millrace-db/millrace"
)

// Table is a table in a View.
type Table struct {
	v   *View
	t   *table
	buf []byte // for the store form of a long key
}

// Row is a row and the schema it was written with. Its texts lie in the store's
// memory map or, of a large row, in memory of the Row's own: they are read-only
// and valid only within the View, and until the Row is read into again.
type Row struct {
	Schema *millrace.Schema
	millrace.Row
	// Most is how many bytes a row may have for Get, as the store keeps it: of a larger
	// one ErrLarge is returned before it is read. 0 is any number.
	Most int
	// joined holds a row that the store keeps in pieces.
	joined []byte
}

// Name returns the qualified name.
func (t *Table) Name() string { return t.t.name() }

// ID returns the table's ID.
func (t *Table) ID() millrace.TableID { return t.t.id }

// Schema returns the newest schema. Rows may have been written with older ones.
func (t *Table) Schema() *millrace.Schema { return t.t.schema }

// Codec returns the codec of the table's keys.
func (t *Table) Codec() *millrace.KeyCodec { return t.t.codec }

// Rows returns the number of rows.
func (t *Table) Rows() (uint64, error) { return t.v.rows(t.t) }

// Diverged says why the rows are not what the source has; empty if they are.
func (t *Table) Diverged() string { return t.t.diverged }

// Get reads the row with the encoded key into row, reusing its Columns. It
// returns ErrNotFound where there is none, ErrNotHeld for a key that a partial store
// does not hold, ErrLarge for a row beyond row.Most, and an ErrCorrupt that names table
// and key where the row is damaged. It does not keep key.
func (t *Table) Get(key []byte, row *Row) error {
	if err := t.v.usable(); err != nil {
		return err
	}
	if len(key) == 0 {
		return ErrNotFound
	}
	if err := t.holdsKeys(key); err != nil {
		return err
	}
	stored := key
	if len(key) > maxWholeKey {
		t.buf = millrace.StoreKey(t.buf[:0], key)
		stored = t.buf
	}
	// What is wrong with a row that is found at once shows in the other way as well.
	if at := t.v.seen.tree(t.t.live.name); at != nil && !t.v.r.missed {
		if value, ok := t.v.s.pages.find(at, stored); ok && t.read(stored, key, value, row) == nil {
			return nil
		}
	}
	value, err := t.find(stored, key)
	if err != nil {
		return err
	}
	err = t.read(stored, key, value, row)
	if err != nil && !errors.Is(err, ErrLarge) {
		return t.v.s.corruptRow(t.t, key, err)
	}
	return err
}

var errDisorder = errors.New("the rows next to it are out of order")

// read reads the row of a key from its value.
func (t *Table) read(stored, key, value []byte, row *Row) error {
	if row.Most > 0 && contentSize(value) > row.Most {
		return ErrLarge // or its stub is damaged, which shows when it is read
	}
	found, body, err := t.v.open(t.t.seed, stored, value, &row.joined)
	if err != nil {
		return err
	}
	if len(stored) != len(key) && !bytes.Equal(found, key) {
		return errOtherKey
	}
	return t.t.decode(body, row)
}

// find returns the value under a store key, or ErrNotFound. That there is none is only
// believed of the pages, which also find what there is, so where the look-up before this
// one has found nothing, or it is known where they begin, they are asked at once. What is
// wrong with them is told of where LMDB does not find the row either.
func (t *Table) find(stored, key []byte) ([]byte, error) {
	r := t.v.r
	if r.missed || t.v.seen.tree(t.t.live.name) != nil {
		found, err := t.seek(&r.walk, stored)
		if err == nil && found && bytes.Equal(r.walk.item.key, stored) {
			r.missed = false
			return r.walk.item.value, nil
		}
		if err == nil {
			r.missed = true
			return nil, ErrNotFound
		}
	}
	value, err := t.v.txn.Get(t.t.live.dbi, stored)
	if err == nil {
		r.missed = false
		t.remember()
		return value, nil
	}
	if !lmdb.IsNotFound(err) {
		return nil, t.v.s.fail("get row of "+t.t.name(), err)
	}
	r.missed = true
	found, err := t.seek(&r.walk, stored)
	if err == nil && found && bytes.Equal(r.walk.item.key, stored) {
		err = errDisorder
	}
	if err != nil {
		return nil, t.v.s.corruptRow(t.t, key, err)
	}
	return nil, ErrNotFound
}

// remember looks up where the table's pages begin, for the views that come, when a reader
// has asked LMDB in the same snapshot before: for one look-up alone that costs more.
func (t *Table) remember() {
	v := t.v
	switch {
	case v.seen == nil || len(v.seen.trees) == maxSeenTrees:
	case v.r.asked != v.seen.id:
		v.r.asked = v.seen.id
	default:
		_, _ = v.treeNamed(t.t.live.name) // where that fails LMDB is asked again
	}
}

// seek begins a walk at a store key. The rows on either side must be whole: they
// show that the pages are those of this table.
func (t *Table) seek(w *walk, stored []byte) (bool, error) {
	return t.v.seek(w, t.t.live.name, t.t.seed, stored)
}

// Scan calls fn with the rows whose encoded key begins with prefix, in the order
// of the keys, starting behind the key after where that is not empty, until
// limit rows have been given (no limit if it is 0 or less) or fn returns an
// error, which Scan returns. key and row are valid until fn returns.
//
// Keys of more than 472 bytes that are equal in their first 440 come in a fixed
// order, but not in theirs.
func (t *Table) Scan(prefix, after []byte, limit int, fn func(key []byte, row *Row) error) error {
	if err := t.v.usable(); err != nil {
		return err
	}
	if err := t.holdsKeys(prefix); err != nil {
		return err
	}
	start := scanStart(prefix, after)
	var w walk
	more, err := t.seek(&w, start)
	if err != nil {
		return t.v.s.corruptRow(t.t, start, err)
	}
	var row Row
	for n := 0; more && (limit <= 0 || n < limit); more, err = w.next() {
		if err := t.v.usable(); err != nil {
			return err
		}
		stored := w.item.key
		if len(after) > 0 && bytes.Equal(stored, start) {
			continue
		}
		if passed(stored, prefix) {
			if _, err := checkValue(t.t.seed, stored, w.item.value); err != nil {
				return t.v.s.corruptRow(t.t, stored, err)
			}
			return nil
		}
		key, body, err := t.v.open(t.t.seed, stored, w.item.value, &row.joined)
		if err != nil {
			return t.v.s.corruptRow(t.t, stored, err)
		}
		if !bytes.HasPrefix(key, prefix) {
			continue // a long key of the same start
		}
		if err := t.t.decode(body, &row); err != nil {
			return t.v.s.corruptRow(t.t, key, err)
		}
		if err := fn(key, &row); err != nil {
			return err
		}
		n++
	}
	if err != nil {
		return t.v.s.corruptRow(t.t, w.item.key, err)
	}
	return nil
}

// storedHead is how much of a long key stands in its store form.
const storedHead = 440

// scanStart returns the first store key that a scan looks at.
func scanStart(prefix, after []byte) []byte {
	start := prefix
	if len(start) > storedHead {
		start = start[:storedHead]
	}
	if len(after) == 0 {
		return start
	}
	if stored := storeKey(nil, after); bytes.Compare(stored, start) >= 0 {
		return stored
	}
	return start
}

// passed reports whether no key behind stored can begin with prefix.
func passed(stored, prefix []byte) bool {
	if len(prefix) > storedHead {
		prefix = prefix[:storedHead]
	}
	return !bytes.HasPrefix(stored, prefix)
}

var errUnknownVersion = errors.New("row names a schema version that is not here")

// decode reads an encoded row of a live generation.
func (t *table) decode(body []byte, row *Row) error {
	if err := millrace.DecodeRow(body, &row.Row); err != nil {
		return err
	}
	if row.Schema == nil || row.Schema.Version != row.Version || row.Schema.Table != t.id {
		row.Schema = t.schemas[row.Version]
	}
	switch {
	case row.Schema == nil:
		return fmt.Errorf("%w: %v", errUnknownVersion, row.Version)
	case len(row.Schema.Columns) != len(row.Columns):
		return fmt.Errorf("row has %d columns, its schema version %v has %d", len(row.Columns), row.Version, len(row.Schema.Columns))
	}
	for i := range row.Columns {
		if s := row.Columns[i].State; s == millrace.ColumnMissing && t.some() {
			return fmt.Errorf("column %s: %w", row.Schema.Columns[i].Name, errLacks)
		} else if s > millrace.ColumnNull {
			return fmt.Errorf("column %s is marked as %v", row.Schema.Columns[i].Name, s)
		}
	}
	return nil
}

// corruptRow says which row is damaged. key is the encoded key or its store
// form.
func (s *Store) corruptRow(t *table, key []byte, err error) error {
	if errors.Is(err, errLacks) {
		return fmt.Errorf("%w: table %s key %s: %w; mend: millrace load %s", ErrNotHeld, t.name(), t.describe(key), err, t.name())
	}
	return &CorruptError{Dir: s.dir, Table: t.name(), Key: t.describe(key), Text: err.Error()}
}

// describe gives a key a form for people.
func (t *table) describe(key []byte) string {
	if t.codec != nil {
		if texts, err := t.codec.Decode(key, nil); err == nil {
			values := make([]string, len(texts))
			for i := range texts {
				values[i] = string(texts[i])
			}
			return millrace.FormatKeyPath(values)
		}
	}
	return "0x" + hex.EncodeToString(key)
}
