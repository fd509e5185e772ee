package migrations

import (
	"bytes"
	"fmt"
	"maps"
	"slices"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture/table"
)

// batch is what a run of changes comes to: the last that happened to each key.
type batch struct {
	tables map[millrace.TableID]*tableBatch
	size   int64 // about what is held, in bytes
	row    millrace.Row
}

// tableBatch is the part of one table.
type tableBatch struct {
	m *mapping
	// truncated says that all rows went before those that are here came.
	truncated bool
	rows      map[string]*rowChange
	counts    Counts
}

// Counts are what was captured of a table in a batch, and what became of it. Puts,
// Deletes and Truncates are changes; Keys are those that they came to; Updated,
// Inserted, Deleted are rows at the target, and Missing rows that wait to be read
// from the source.
type Counts struct {
	Puts      int64 `json:"puts,omitempty"`
	Deletes   int64 `json:"deletes,omitempty"`
	Truncates int64 `json:"truncates,omitempty"`
	Keys      int64 `json:"keys,omitempty"`
	Updated   int64 `json:"updated,omitempty"`
	Inserted  int64 `json:"inserted,omitempty"`
	Deleted   int64 `json:"deleted,omitempty"`
	Missing   int64 `json:"missing,omitempty"`
}

// rowChange is the last that happened to a key.
type rowChange struct {
	deleted bool
	// columns is the row. Those that are unchanged have the value of the row that
	// the target has under the key base before the batch; where that is nil, it is
	// known that there is none.
	columns []millrace.Datum
	base    []byte
}

// changeCost is about what a change takes beside its bytes.
const changeCost = 160

func newBatch(all map[millrace.TableID]*mapping) *batch {
	b := &batch{tables: make(map[millrace.TableID]*tableBatch, len(all))}
	shared := make(map[table.Name]*tableBatch)
	for _, id := range slices.Sorted(maps.Keys(all)) {
		m := all[id]
		// Partitions that go into one table have one order of changes there.
		if shared[m.to] == nil {
			shared[m.to] = &tableBatch{m: m, rows: make(map[string]*rowChange)}
		}
		b.tables[id] = shared[m.to]
	}
	return b
}

// clear forgets the changes and keeps the counts.
func (b *batch) clear() {
	b.size = 0
	for _, t := range b.tables {
		t.truncated = false
		clear(t.rows)
	}
}

// reset forgets all.
func (b *batch) reset() {
	b.clear()
	for _, t := range b.tables {
		t.counts = Counts{}
	}
}

// holds reports whether there is anything to apply.
func (b *batch) holds() bool {
	for _, t := range b.tables {
		if t.truncated || len(t.rows) > 0 {
			return true
		}
	}
	return false
}

// add takes one entry. Nothing of it is kept that is not copied.
func (b *batch) add(e *millrace.Entry) error {
	t := b.tables[e.Table]
	if t == nil {
		return fmt.Errorf("%w: a change of table %v, which does not move; mend: millrace migrate abort -f FILE, and begin again", ErrChanged, e.Table)
	}
	switch e.Kind {
	case millrace.KindPut:
		t.counts.Puts++
		if err := millrace.DecodeRow(e.Row, &b.row); err != nil {
			return err
		}
		if len(b.row.Columns) != len(t.m.carried) {
			return fmt.Errorf("%w: a row of %v has %d columns, %d move; mend: millrace migrate abort -f FILE, and begin again", ErrChanged, t.m.from, len(b.row.Columns), len(t.m.carried))
		}
		b.size += int64(len(e.Row)+len(e.Key)) + changeCost
		t.put(e.Key, e.From, b.row.Columns)
	case millrace.KindDelete:
		t.counts.Deletes++
		b.size += int64(len(e.Key)) + changeCost
		t.rows[string(e.Key)] = &rowChange{deleted: true}
	case millrace.KindTruncate:
		t.counts.Truncates++
		if t.m.part != "" {
			return fmt.Errorf("%w: a partition of the table that goes into %v was truncated, which cannot be carried over; mend: use DELETE on that side, or millrace migrate finish -f FILE to give the way back up", ErrChanged, t.m.to)
		}
		t.truncated = true
		clear(t.rows)
	default:
		return fmt.Errorf("%w: %v of table %v: its columns were altered, or rows of it came or went without being sent; mend: millrace migrate abort -f FILE, and begin again", ErrChanged, e.Kind, t.m.from)
	}
	return nil
}

// put takes a row whose columns are valid during the call.
func (t *tableBatch) put(key, from []byte, columns []millrace.Datum) {
	c := &rowChange{columns: copyColumns(columns)}
	t.complete(c, key, from)
	t.rows[string(key)] = c
}

// complete takes unchanged columns from what the batch has of the row that they are
// of, or says where they are.
func (t *tableBatch) complete(c *rowChange, key, from []byte) {
	unchanged := false
	for i := range c.columns {
		unchanged = unchanged || c.columns[i].State == millrace.ColumnUnchanged
	}
	if !unchanged {
		return
	}
	if len(from) == 0 {
		from = key
	}
	before := t.rows[string(from)]
	switch {
	case before == nil && !t.truncated:
		c.base = bytes.Clone(from)
	case before == nil || before.deleted:
		// There is no such row.
	default:
		for i := range c.columns {
			if c.columns[i].State == millrace.ColumnUnchanged {
				c.columns[i] = before.columns[i]
			}
		}
		c.base = before.base
	}
}

func copyColumns(columns []millrace.Datum) []millrace.Datum {
	size := 0
	for i := range columns {
		size += len(columns[i].Text)
	}
	texts := make([]byte, 0, size)
	all := make([]millrace.Datum, len(columns))
	for i := range columns {
		all[i].State = columns[i].State
		if columns[i].State == millrace.ColumnValue {
			start := len(texts)
			texts = append(texts, columns[i].Text...)
			all[i].Text = texts[start:len(texts):len(texts)]
		}
	}
	return all
}

// staged counts what stage has written: unchanged are puts with columns that are.
type staged struct{ puts, deletes, unchanged int64 }

// stage writes the changes in COPY's text form, for the staging table: op, which
// columns are unchanged, the key, the key of the row that has them, all columns.
// exact says that the target is the source; otherwise a row that had another key may
// be one of another time, and its columns are not taken.
func (t *tableBatch) stage(dst []byte, exact bool) (_ []byte, has staged, err error) {
	var texts [][]byte
	for key, c := range t.rows {
		if texts, err = t.m.codec.Decode([]byte(key), texts[:0]); err != nil {
			return nil, has, fmt.Errorf("read a key of %v: %w", t.m.from, err)
		}
		op := byte('p')
		if c.deleted {
			op = 'd'
			has.deletes++
		} else {
			has.puts++
		}
		dst = append(dst, op, '\t')
		var some bool
		if dst, some = appendUnchanged(dst, c.columns); some {
			has.unchanged++
		}
		for _, text := range texts {
			dst = appendField(append(dst, '\t'), text)
		}
		base := c.base
		if !exact && string(base) != key {
			base = nil
		}
		if base != nil {
			if texts, err = t.m.codec.Decode(base, texts[:0]); err != nil {
				return nil, has, fmt.Errorf("read a key of %v: %w", t.m.from, err)
			}
		}
		for i := range t.m.key {
			dst = append(dst, '\t')
			if base == nil {
				dst = append(dst, `\N`...)
			} else {
				dst = appendField(dst, texts[i])
			}
		}
		for i := range t.m.carried {
			dst = append(dst, '\t')
			if c.deleted || c.columns[i].State != millrace.ColumnValue {
				dst = append(dst, `\N`...)
			} else {
				dst = appendField(dst, c.columns[i].Text)
			}
		}
		dst = append(dst, '\n')
	}
	return dst, has, nil
}

// appendUnchanged writes a digit a column, 1 for those that are unchanged, or NULL
// where none is.
func appendUnchanged(dst []byte, columns []millrace.Datum) (_ []byte, some bool) {
	start := len(dst)
	for i := range columns {
		if columns[i].State == millrace.ColumnUnchanged {
			dst, some = append(dst, '1'), true
		} else {
			dst = append(dst, '0')
		}
	}
	if !some {
		return append(dst[:start], `\N`...), false
	}
	return dst, true
}

// appendField writes a text as COPY reads it.
func appendField(dst, text []byte) []byte {
	for _, c := range text {
		switch c {
		case '\\':
			dst = append(dst, '\\', '\\')
		case '\t':
			dst = append(dst, '\\', 't')
		case '\n':
			dst = append(dst, '\\', 'n')
		case '\r':
			dst = append(dst, '\\', 'r')
		default:
			dst = append(dst, c)
		}
	}
	return dst
}
