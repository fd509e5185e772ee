package edge

import (
	"bytes"
)

// ScanRange is Scan over a Range of encoded keys, in either direction: calls fn
// with the rows in it, in the order of their keys or in the reverse, until limit
// rows have been given (no limit if it is 0 or less) or fn returns an error, which
// ScanRange returns. key and row are valid until fn returns.
func (t *Table) ScanRange(r Range, limit int, fn func(key []byte, row *Row) error) error {
	if err := t.v.usable(); err != nil {
		return err
	}
	if err := t.holdsRange(&r); err != nil {
		return err
	}
	after := storeKey(nil, r.After)
	var w walk
	var row Row
	more, step, err := t.v.beginRange(&w, &r, t.t.live.name, t.t.seed)
	for n := 0; err == nil && more && (limit <= 0 || n < limit); more, err = step() {
		if err := t.v.usable(); err != nil {
			return err
		}
		stored := w.item.key
		key, body, err := t.v.open(t.t.seed, stored, w.item.value, &row.joined)
		if err != nil {
			return t.v.s.corruptRow(t.t, stored, err)
		}
		if r.passed(stored) {
			return nil
		}
		if len(after) > 0 && bytes.Equal(stored, after) || !r.holds(key) {
			continue
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

// beginRange goes to the first item of a database that a scan of a range looks at,
// and returns how to go on.
func (v *View) beginRange(w *walk, r *Range, database string, seed uint32) (more bool, step func() (bool, error), err error) {
	if !r.Descending {
		more, err = v.seek(w, database, seed, scanStart(r.low(), r.After))
		return more, w.next, err
	}
	if end := r.end(); end != nil {
		_, err = v.seek(w, database, seed, end)
	} else {
		err = v.seekEnd(w, database)
	}
	if err == nil {
		more, err = w.previous()
	}
	return more, w.previous, err
}

// Generation names the rows of the table as a whole. A load that ends and a
// truncation put others in their place, under another name; names come back.
func (t *Table) Generation() string { return t.t.live.name }
