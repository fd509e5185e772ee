// Package rowjson writes rows as JSON objects that are equal in value to what
// Postgres's to_jsonb gives for the same row, under TimeZone UTC and DateStyle
// ISO.
//
// It goes by the texts of the columns and the descriptors in the row's schema
// alone, and asks no server. Numbers, json and jsonb are copied as they are
// printed, so 1.50 stays 1.50; equal in value means equal to a reader who
// compares numbers as numbers and takes the last of a repeated name.
//
// Types of extensions for which a cast to json was created there (hstore,
// PostGIS's geometry) are given as their text, because a cast is code that only
// the server has.
package rowjson

import (
	"fmt"
	"sync"

	"github.com/millrace-db/millrace"
)

// Encoder writes the rows of one schema version. It is not changed after it was
// made; any number of goroutines may use it at once.
type Encoder struct {
	row     *millrace.Schema
	columns []column
	pool    sync.Pool // of *scratch
}

// column is one member of the JSON object.
type column struct {
	// lead is the comma or brace before the name, the quoted name and the colon.
	lead string
	// at is the place in the row's columns, or -1 for a column that the row's
	// schema does not have.
	at   int
	name string
	enc  *encoder
}

// New returns the encoder for rows of the schema.
func New(s *millrace.Schema) (*Encoder, error) { return NewAs(s, s) }

// NewAs returns an encoder for rows that were written under the schema row, to
// be shown as rows of the later schema as of the same table: with the columns of
// as, in their order. A column that was renamed is found under its new name; one
// that the row does not have is null, as it is at the source after ALTER TABLE …
// ADD COLUMN without a default.
func NewAs(row, as *millrace.Schema) (*Encoder, error) {
	return newAs(row, as, builder{schema: row, done: make(map[uint32]*encoder)})
}

// NewBigIntText is NewAs with every bigint as a string, also within arrays and
// composites, for readers whose numbers end at 2^53.
func NewBigIntText(row, as *millrace.Schema) (*Encoder, error) {
	return newAs(row, as, builder{schema: row, done: make(map[uint32]*encoder), bigIntText: true})
}

func newAs(row, as *millrace.Schema, types builder) (*Encoder, error) {
	e := &Encoder{row: row, columns: make([]column, len(as.Columns))}
	e.pool.New = func() any { return new(scratch) }
	for i := range as.Columns {
		c := &e.columns[i]
		c.name = as.Columns[i].Name
		lead := []byte{','}
		if i == 0 {
			lead[0] = '{'
		}
		lead, err := appendString(lead, []byte(c.name))
		if err != nil {
			return nil, fmt.Errorf("encode name of column %s: %w", c.name, err)
		}
		c.lead = string(append(lead, ':'))
		if c.at = i; row != as {
			c.at = row.Counterpart(&as.Columns[i])
		}
		if c.at < 0 {
			continue
		}
		if c.enc, err = types.encoder(row.Columns[c.at].Type, 0); err != nil {
			return nil, fmt.Errorf("encode %s as JSON: column %s: %w", row.QualifiedName(), c.name, err)
		}
	}
	return e, nil
}

// AppendRow appends the row as a JSON object. The row must be of the encoder's
// schema version and complete. On error it returns dst without the row.
func (e *Encoder) AppendRow(dst []byte, row *millrace.Row) ([]byte, error) {
	if row.Version != e.row.Version || len(row.Columns) != len(e.row.Columns) {
		return dst, fmt.Errorf("encode %s as JSON: row has %d columns of schema version %v, want %d of version %v",
			e.row.QualifiedName(), len(row.Columns), row.Version, len(e.row.Columns), e.row.Version)
	}
	s := e.pool.Get().(*scratch)
	defer e.put(s)
	start := len(dst)
	for i := range e.columns {
		c := &e.columns[i]
		dst = append(dst, c.lead...)
		if c.at < 0 {
			dst = append(dst, "null"...)
			continue
		}
		var err error
		if dst, err = e.append(dst, c, &row.Columns[c.at], s); err != nil {
			return dst[:start], err
		}
	}
	if len(e.columns) == 0 {
		dst = append(dst, '{')
	}
	return append(dst, '}'), nil
}

// AppendDatum appends the value of one column, the i-th of the schema as which
// rows are shown. On error it returns dst without it.
func (e *Encoder) AppendDatum(dst []byte, i int, d millrace.Datum) ([]byte, error) {
	c := &e.columns[i]
	if c.at < 0 {
		return append(dst, "null"...), nil
	}
	s := e.pool.Get().(*scratch)
	defer e.put(s)
	start := len(dst)
	dst, err := e.append(dst, c, &d, s)
	if err != nil {
		return dst[:start], err
	}
	return dst, nil
}

func (e *Encoder) append(dst []byte, c *column, d *millrace.Datum, s *scratch) ([]byte, error) {
	switch d.State {
	case millrace.ColumnValue:
		s.buf = s.buf[:0]
		dst, err := c.enc.append(dst, d.Text, s)
		if err != nil {
			return dst, fmt.Errorf("encode %s as JSON: column %s: %w", e.row.QualifiedName(), c.name, err)
		}
		return dst, nil
	case millrace.ColumnNull:
		return append(dst, "null"...), nil
	}
	return dst, fmt.Errorf("encode %s as JSON: column %s is %v: the row must be completed first", e.row.QualifiedName(), c.name, d.State)
}

// scratch is a stack of unquoted elements: what is inside of an element is
// appended behind it.
type scratch struct{ buf []byte }

func (e *Encoder) put(s *scratch) {
	const most = 1 << 20 // one large value is not kept for ever
	if cap(s.buf) <= most {
		e.pool.Put(s)
	}
}
