package edge

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"strings"

	"github.com/millrace-db/millrace"
)

// A secondary index is a named database over one generation of a table, kept in
// the same transactions as its rows: so it goes with the generation when a load
// ends or a table is truncated. Its keys are the encoded columns followed by the
// encoded key of the row, shortened as those of rows are. A value is
//
//	CRC-32C, big-endian, over table ID, names of the columns, store key and what
//	follows
//	the store key of the row: where the key was shortened only
//
// One that is made for rows that are there already is filled in slices, in the
// order of the rows, beside the changes: what a change does to a row that the
// slices have not come to is left to them. Until it is whole nobody reads it.

// rowIndex says what an index database is.
type rowIndex struct {
	// of names the database of the rows.
	of      string
	columns []string
	// version is that of the schema whose types the keys have.
	version millrace.SchemaVersion
	// whole tells that all rows are in it; otherwise those up to the store key
	// upTo are, none if it is empty.
	whole bool
	upTo  []byte

	codec *millrace.IndexCodec
	seed  uint32
}

func (x *rowIndex) append(dst []byte) []byte {
	text := func(s string) {
		dst = binary.AppendUvarint(dst, uint64(len(s)))
		dst = append(dst, s...)
	}
	text(x.of)
	dst = binary.AppendUvarint(dst, uint64(x.version))
	var whole byte
	if x.whole {
		whole = 1
	}
	dst = append(dst, whole)
	text(string(x.upTo))
	dst = binary.AppendUvarint(dst, uint64(len(x.columns)))
	for _, name := range x.columns {
		text(name)
	}
	return dst
}

var errIndexRecord = errors.New("what it indexes is malformed")

func (x *rowIndex) decode(b []byte) error {
	good := true
	number := func() uint64 {
		v, n := binary.Uvarint(b)
		if n <= 0 {
			good = false
			return 0
		}
		b = b[n:]
		return v
	}
	text := func() string {
		n := number()
		if !good || n > uint64(len(b)) {
			good = false
			return ""
		}
		s := string(b[:n])
		b = b[n:]
		return s
	}
	x.of = text()
	x.version = millrace.SchemaVersion(number())
	if !good || len(b) == 0 || b[0] > 1 {
		return errIndexRecord
	}
	x.whole, b = b[0] == 1, b[1:]
	x.upTo = []byte(text())
	n := number()
	for ; good && n > 0; n-- {
		x.columns = append(x.columns, text())
	}
	if !good || len(b) > 0 {
		return errIndexRecord
	}
	return nil
}

// covers reports whether a row is in the index, or is to be.
func (x *rowIndex) covers(stored []byte) bool {
	return x.whole || len(x.upTo) > 0 && bytes.Compare(stored, x.upTo) <= 0
}

func (x *rowIndex) name() string { return "(" + strings.Join(x.columns, ", ") + ")" }

// complete sets what follows from the table.
func (x *rowIndex) complete(t *table) (err error) {
	schema := t.schemas[x.version]
	if schema == nil {
		return fmt.Errorf("%w: %v", errUnknownVersion, x.version)
	}
	x.codec, err = millrace.NewIndexCodec(schema, x.columns)
	x.seed = crc32.Update(t.seed, castagnoli, []byte(strings.Join(x.columns, "\x00")))
	return err
}

// placeIndex enters an index at the generation that it is over.
func (c *catalog) placeIndex(ix *generation) error {
	g, t := c.generations[ix.index.of], c.tables[ix.table]
	if g == nil || t == nil || g.usage != live && g.usage != shadow || g.table != ix.table {
		return fmt.Errorf("database %s is an index over database %s of table %v, which is none of its generations", ix.name, ix.index.of, ix.table)
	}
	if err := ix.index.complete(t); err != nil {
		return fmt.Errorf("database %s, index %s of table %s: %w", ix.name, ix.index.name(), t.name(), err)
	}
	g.indexes = append(g.indexes, ix)
	return nil
}

// over returns the index of a generation over columns, or nil.
func (g *generation) over(columns []string) *generation {
	for _, ix := range g.indexes {
		if slices.Equal(ix.index.columns, columns) {
			return ix
		}
	}
	return nil
}

// places remembers where rows of each schema version have an index's columns.
type places map[placesOf][]int

type placesOf struct {
	codec   *millrace.IndexCodec
	version millrace.SchemaVersion
}

func (p places) of(t *table, x *rowIndex, version millrace.SchemaVersion) []int {
	key := placesOf{x.codec, version}
	if at, ok := p[key]; ok {
		return at
	}
	at := slices.Clone(x.codec.Columns())
	if version != x.version {
		for i, column := range x.codec.Columns() {
			at[i] = t.schemas[version].Counterpart(&t.schemas[x.version].Columns[column])
		}
	}
	p[key] = at
	return at
}

// appendKey appends the key of a row's entry, or nothing where the row lacks a
// column. key is the encoded key of the row.
func (x *rowIndex) appendKey(dst []byte, at []int, row []millrace.Datum, key []byte) ([]byte, bool, error) {
	dst, complete, err := x.codec.AppendRow(dst, at, row)
	if err != nil || !complete {
		return dst, false, err
	}
	return append(dst, key...), true, nil
}

// appendEntry appends the value of an entry. stored is its store key, row that of
// the row.
func (x *rowIndex) appendEntry(dst, stored, row []byte) []byte {
	start := len(dst)
	dst = append(dst, 0, 0, 0, 0)
	if millrace.IsLongKey(stored) {
		dst = append(dst, row...)
	}
	sealValue(dst[start:], x.seed, stored)
	return dst
}

// openEntry checks an entry and returns the store key of its row, written into
// buf where need be.
func (x *rowIndex) openEntry(stored, value []byte, buf *entryBuffer) ([]byte, error) {
	rest, err := checkValue(x.seed, stored, value)
	if err != nil {
		return nil, err
	}
	if millrace.IsLongKey(stored) {
		return rest, nil
	}
	if len(rest) > 0 {
		return nil, errors.New("bytes follow the checksum of an entry")
	}
	values, key, err := x.codec.Decode(stored, buf.values)
	if err != nil {
		return nil, err
	}
	buf.values = values
	return key, nil
}

// entryBuffer is memory for taking entries apart.
type entryBuffer struct{ values []millrace.Datum }
