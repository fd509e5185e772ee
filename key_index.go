package millrace

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// IndexCodec turns the values of the columns of a secondary index into one byte
// string and back. Index keys compare column by column as the values do, with
// the same encodings and the same limits on types as a KeyCodec's; a column may
// be NULL, which comes after all values, as in Postgres. Rows may share an index
// key; a store appends the key of the row.
//
// Each column is the byte 01 and its encoded value, or the byte 02 for NULL.
//
// An IndexCodec is not changed after it was made; any number of goroutines may
// use it at once.
type IndexCodec struct {
	columns []int
	names   []string
	parts   []keyPart
}

const (
	indexValue = 0x01
	indexNull  = 0x02
)

// IndexColumnError occurs when a column cannot be part of an index.
type IndexColumnError struct {
	// Table is the qualified name of the table, Column the name of the column.
	Table, Column string
	// Reason says why the column cannot be part of an index.
	Reason string
}

// Error names table, column, reason and mend.
func (e *IndexColumnError) Error() string {
	return fmt.Sprintf("index of table %s: column %s: %s; mend: correct edge.indexes, or leave the column out of it", e.Table, e.Column, e.Reason)
}

// NewIndexCodec returns the codec for an index over columns of s, named in the
// order of the index. Where a column is not there, named twice, or of a type that
// cannot be indexed, the error is an *IndexColumnError.
func NewIndexCodec(s *Schema, columns []string) (*IndexCodec, error) {
	refuse := func(column, reason string) (*IndexCodec, error) {
		return nil, &IndexColumnError{Table: s.QualifiedName(), Column: column, Reason: reason}
	}
	if len(columns) == 0 {
		return refuse("", "an index needs at least one")
	}
	k := &IndexCodec{names: slices.Clone(columns)}
	for i, name := range columns {
		at := s.ColumnIndex(name)
		if at < 0 {
			return refuse(name, "the table has no such column")
		}
		if slices.Contains(columns[:i], name) {
			return refuse(name, "it is named twice")
		}
		c := &s.Columns[at]
		kind, typ, err := keyKindOf(s, c)
		var bad *KeyTypeError
		if errors.As(err, &bad) {
			return refuse(name, fmt.Sprintf("its type %s cannot be part of an index: %s", bad.Type, bad.Reason))
		}
		if err != nil {
			return nil, err
		}
		k.columns = append(k.columns, at)
		k.parts = append(k.parts, keyPart{kind: kind, column: at, name: c.Name, typ: typ, enum: s.isEnum(c.Type)})
	}
	return k, nil
}

// Names returns the names of the index's columns. The caller must not change it.
func (k *IndexCodec) Names() []string { return k.names }

// Columns returns the places of the index's columns in Schema.Columns, in the
// order of the index. The caller must not change it.
func (k *IndexCodec) Columns() []int { return k.columns }

// SameKeys reports whether o gives equal rows the same index keys, column by
// column.
func (k *IndexCodec) SameKeys(o *IndexCodec) bool {
	return slices.Equal(k.names, o.names) && slices.EqualFunc(k.parts, o.parts, func(a, b keyPart) bool { return a.kind == b.kind })
}

// Append appends the index key of the given values, of all columns or of the
// leading ones: then it is what the keys of all rows begin with that have these
// values. Values are ColumnValue, with the text as Postgres prints it, or
// ColumnNull. It does not keep the texts.
func (k *IndexCodec) Append(dst []byte, values []Datum) ([]byte, error) {
	if len(values) > len(k.parts) {
		return dst, fmt.Errorf("%w: index has %d columns (%s), got %d values", ErrMalformed, len(k.parts), strings.Join(k.names, ", "), len(values))
	}
	start := len(dst)
	for i := range values {
		var err error
		if dst, err = k.append(dst, i, &values[i]); err != nil {
			return dst[:start], err
		}
	}
	return dst, nil
}

// AppendPartial appends what the index keys of all rows begin with that have the
// given values in their leading columns and, in the next one, a text that begins
// with partial: of a type of which KeyCodec.AppendPrefix takes the start.
func (k *IndexCodec) AppendPartial(dst []byte, values []Datum, partial []byte) ([]byte, error) {
	start := len(dst)
	dst, err := k.Append(dst, values)
	if err != nil {
		return dst, err
	}
	if len(values) == len(k.parts) {
		return dst[:start], fmt.Errorf("%w: index has %d columns (%s), got %d values and the start of another", ErrMalformed, len(k.parts), strings.Join(k.names, ", "), len(values))
	}
	p := &k.parts[len(values)]
	if !p.kind.isText() {
		return dst[:start], fmt.Errorf("%w: index column %s is of type %s: only a text can be given by its start", ErrMalformed, p.name, p.typ)
	}
	dst, ok := p.appendPartial(append(dst, indexValue), partial)
	if !ok {
		return dst[:start], k.bad(p, partial)
	}
	return dst, nil
}

// AppendRow appends the index key of a row. places are the places in the row of
// the index's columns, −1 for one that the row's schema does not have, which is
// NULL; nil stands for Columns. complete is false, and nothing is appended,
// where the row does not have the value of a column yet.
func (k *IndexCodec) AppendRow(dst []byte, places []int, row []Datum) (key []byte, complete bool, err error) {
	if places == nil {
		places = k.columns
	}
	start := len(dst)
	null := Datum{State: ColumnNull}
	for i, at := range places {
		d := &null
		if at >= len(row) {
			return dst[:start], false, fmt.Errorf("%w: row has %d columns, index column %s is number %d", ErrMalformed, len(row), k.names[i], at+1)
		}
		if at >= 0 {
			d = &row[at]
		}
		if d.State == ColumnMissing || d.State == ColumnUnchanged {
			return dst[:start], false, nil
		}
		if dst, err = k.append(dst, i, d); err != nil {
			return dst[:start], false, err
		}
	}
	return dst, true, nil
}

func (k *IndexCodec) append(dst []byte, i int, d *Datum) ([]byte, error) {
	p := &k.parts[i]
	switch d.State {
	case ColumnNull:
		return append(dst, indexNull), nil
	case ColumnValue:
	case ColumnUnchanged, ColumnMissing:
		return dst, fmt.Errorf("%w: index column %s is %v, want a value or null", ErrMalformed, p.name, d.State)
	}
	dst, ok := p.append(append(dst, indexValue), d.Text)
	if !ok {
		return dst, k.bad(p, d.Text)
	}
	return dst, nil
}

func (k *IndexCodec) bad(p *keyPart, text []byte) error {
	const most = 64
	more := ""
	if len(text) > most {
		text, more = text[:most], "…"
	}
	return fmt.Errorf("%w: index column %s: %q%s is not %s", ErrMalformed, p.name, text, more, p.kind.want())
}

// Decode returns the values at the start of an index key, as KeyCodec.Decode
// gives texts, and what follows them: in a store the key of the row. It reuses
// dst and the capacity of its texts.
func (k *IndexCodec) Decode(key []byte, dst []Datum) (values []Datum, rest []byte, err error) {
	dst = slices.Grow(dst[:0], len(k.parts))[:len(k.parts)]
	for i := range k.parts {
		p := &k.parts[i]
		if len(key) == 0 || key[0] != indexValue && key[0] != indexNull {
			return nil, nil, fmt.Errorf("%w: index column %s is not encoded", ErrMalformed, p.name)
		}
		mark := key[0]
		key = key[1:]
		if mark == indexNull {
			dst[i] = Datum{State: ColumnNull, Text: dst[i].Text[:0]}
			continue
		}
		var ok bool
		dst[i].State = ColumnValue
		if dst[i].Text, key, ok = p.decode(dst[i].Text[:0], key); !ok {
			return nil, nil, fmt.Errorf("%w: index column %s: not an encoded %s", ErrMalformed, p.name, p.typ)
		}
	}
	return dst, key, nil
}
