package millrace

import (
	"encoding/binary"
	"fmt"
)

// ColumnState says what a row holds for a column. The numbers are part of the
// format: two bits a column.
type ColumnState uint8

// The states of a column.
const (
	// ColumnValue: the column's text follows.
	ColumnValue ColumnState = 0
	// ColumnNull: the column is NULL.
	ColumnNull ColumnState = 1
	// ColumnUnchanged: the source did not send the value, because a stored
	// out-of-line value did not change. It is completed from the row that the
	// edge has.
	ColumnUnchanged ColumnState = 2
	// ColumnMissing: the value is not known here yet. It stands only in rows of
	// a shadow generation, until the load brings the row.
	ColumnMissing ColumnState = 3
)

// String returns the name of the state in lower case.
func (s ColumnState) String() string {
	return [...]string{"value", "null", "unchanged", "missing"}[s&3]
}

// Datum is the content of one column: its state and, for ColumnValue, the text
// that Postgres prints for it.
type Datum struct {
	State ColumnState
	Text  []byte
}

// Row is a decoded row. Its texts alias the bytes it was decoded from.
type Row struct {
	Version SchemaVersion
	Columns []Datum
}

// MaxColumns is the largest number of columns a row may have; Postgres allows
// 1,600.
const MaxColumns = 1664

// AppendRow appends the encoded form of a row: the schema version and the
// number of columns as varints, two bits a column (the first column in the
// lowest bits), then for each ColumnValue the length of its text as a varint
// and the text.
func AppendRow(dst []byte, version SchemaVersion, columns []Datum) []byte {
	dst = binary.AppendUvarint(dst, uint64(version))
	dst = binary.AppendUvarint(dst, uint64(len(columns)))
	var bits byte
	for i := range columns {
		bits |= byte(columns[i].State&3) << (2 * (i % 4))
		if i%4 == 3 || i == len(columns)-1 {
			dst = append(dst, bits)
			bits = 0
		}
	}
	for i := range columns {
		if columns[i].State == ColumnValue {
			dst = binary.AppendUvarint(dst, uint64(len(columns[i].Text)))
			dst = append(dst, columns[i].Text...)
		}
	}
	return dst
}

// DecodeRow reads an encoded row into r, reusing its Columns. The texts alias b.
func DecodeRow(b []byte, r *Row) error {
	bad := func(what string) error { return fmt.Errorf("%w: row: %s", ErrMalformed, what) }
	version, n := binary.Uvarint(b)
	if n <= 0 || version == 0 {
		return bad("bad schema version")
	}
	b = b[n:]
	count, n := binary.Uvarint(b)
	if n <= 0 || count > MaxColumns {
		return bad("bad number of columns")
	}
	b = b[n:]
	states := b
	size := int(count+3) / 4
	if len(b) < size {
		return bad("column states are cut off")
	}
	b = b[size:]
	if rem := count % 4; rem != 0 && states[size-1]>>(2*rem) != 0 {
		return bad("bits are set after the last column")
	}
	r.Version = SchemaVersion(version)
	r.Columns = r.Columns[:0]
	for i := range int(count) {
		d := Datum{State: ColumnState(states[i/4] >> (2 * (i % 4)) & 3)}
		if d.State == ColumnValue {
			length, n := binary.Uvarint(b)
			if n <= 0 || length > uint64(len(b)-n) {
				return bad("a text is cut off")
			}
			d.Text = b[n : n+int(length) : n+int(length)]
			b = b[n+int(length):]
		}
		r.Columns = append(r.Columns, d)
	}
	if len(b) != 0 {
		return bad("bytes follow the last column")
	}
	return nil
}

// HasUnchanged reports whether any column must be completed from another row.
func (r *Row) HasUnchanged() bool {
	for i := range r.Columns {
		if r.Columns[i].State == ColumnUnchanged {
			return true
		}
	}
	return false
}
