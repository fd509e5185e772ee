package millrace

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"math/bits"
	"slices"

	"github.com/zeebo/xxh3"
)

// VerifyPlan is how rows of one schema are brought into the form that is hashed
// for a Verify entry. It is not changed after it was made; any number of
// goroutines may use it at once.
//
// The canonical row is, for each column that is not NULL, in ascending order of
// the bytes of the columns' names: the name's length as a varint, the name, the
// text's length as a varint, the text. Neither the order of columns nor NULLs
// are in it, so a row that was written before a nullable column was added equals
// the same row written after.
type VerifyPlan struct {
	table   string
	columns []verifyColumn
}

type verifyColumn struct {
	// place is that of the column in the row.
	place int
	// name is the length of the column's name and the name, as they are hashed.
	name []byte
}

// NewVerifyPlan returns the plan for rows written under s.
func NewVerifyPlan(s *Schema) *VerifyPlan {
	order := make([]int, len(s.Columns))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(s.Columns[a].Name, s.Columns[b].Name) })
	p := &VerifyPlan{table: s.QualifiedName(), columns: make([]verifyColumn, len(order))}
	for i, place := range order {
		name := binary.AppendUvarint(nil, uint64(len(s.Columns[place].Name)))
		p.columns[i] = verifyColumn{place: place, name: append(name, s.Columns[place].Name...)}
	}
	return p
}

// AppendRow appends the canonical form of a row, given all columns of the plan's
// schema. The error, for a row of another number of columns or with a column
// that is neither a value nor NULL, is ErrMalformed.
func (p *VerifyPlan) AppendRow(dst []byte, columns []Datum) ([]byte, error) {
	if err := p.check(columns); err != nil {
		return dst, err
	}
	for i := range p.columns {
		c := &p.columns[i]
		if d := &columns[c.place]; d.State == ColumnValue {
			dst = append(dst, c.name...)
			dst = binary.AppendUvarint(dst, uint64(len(d.Text)))
			dst = append(dst, d.Text...)
		}
	}
	return dst, nil
}

func (p *VerifyPlan) check(columns []Datum) error {
	if len(columns) != len(p.columns) {
		return fmt.Errorf("%w: row of %s has %d columns, its schema %d", ErrMalformed, p.table, len(columns), len(p.columns))
	}
	for i := range p.columns {
		c := &p.columns[i]
		if s := columns[c.place].State; s != ColumnValue && s != ColumnNull {
			_, n := binary.Uvarint(c.name)
			return fmt.Errorf("%w: row of %s: column %s is %v, want a value", ErrMalformed, p.table, c.name[n:], s)
		}
	}
	return nil
}

// VerifySum is the hash over a set of rows that a Verify entry carries: the sum,
// modulo 2^128, of the XXH3-128 of each row's key (its length as a varint, then
// its bytes) followed by the canonical row. Being a sum it does not depend on the
// order in which rows come, and sums of parts can be added. It finds rows that
// are lost, added or altered; it does not withstand someone who chooses rows so
// that it finds nothing. A row that counts twice is found by Rows.
//
// The zero value is the sum over no rows. It is used by one goroutine at a time.
type VerifySum struct {
	// Rows is the number of rows added.
	Rows   uint64
	hi, lo uint64
	// row is what is hashed; kept so that adding allocates nothing once it is
	// as long as the longest row.
	row []byte
}

// Add adds a row: its encoded key and all columns of the plan's schema. The
// error is that of VerifyPlan.AppendRow; the sum is then as it was. It does not
// keep key or texts.
func (v *VerifySum) Add(p *VerifyPlan, key []byte, columns []Datum) error {
	h, err := v.Hash(p, key, columns)
	if err == nil {
		v.AddHash(h)
	}
	return err
}

// RowHash is the hash of one row.
type RowHash struct{ Hi, Lo uint64 }

// Hash returns what Add adds, for rows of which it shows later whether they count.
func (v *VerifySum) Hash(p *VerifyPlan, key []byte, columns []Datum) (RowHash, error) {
	v.row = binary.AppendUvarint(v.row[:0], uint64(len(key)))
	v.row = append(v.row, key...)
	var err error
	if v.row, err = p.AppendRow(v.row, columns); err != nil {
		return RowHash{}, err
	}
	h := xxh3.Hash128(v.row)
	return RowHash{Hi: h.Hi, Lo: h.Lo}, nil
}

// AddHash adds a row by its hash.
func (v *VerifySum) AddHash(h RowHash) {
	v.Rows++
	v.add(h.Hi, h.Lo)
}

// AddSum adds the rows that o was made of.
func (v *VerifySum) AddSum(o *VerifySum) {
	v.Rows += o.Rows
	v.add(o.hi, o.lo)
}

func (v *VerifySum) add(hi, lo uint64) {
	var carry uint64
	v.lo, carry = bits.Add64(v.lo, lo, 0)
	v.hi, _ = bits.Add64(v.hi, hi, carry)
}

// Reset makes v the sum over no rows.
func (v *VerifySum) Reset() { v.Rows, v.hi, v.lo = 0, 0, 0 }

// Sum returns the hash as VerifyRange carries it, the highest byte first.
func (v *VerifySum) Sum() (hash [16]byte) {
	binary.BigEndian.PutUint64(hash[:8], v.hi)
	binary.BigEndian.PutUint64(hash[8:], v.lo)
	return hash
}

// VerifyBucket returns the bucket of an encoded key where a table is verified in
// that many buckets: its XXH3-64 modulo their number. Without buckets all keys
// are in bucket 0.
func VerifyBucket(key []byte, buckets uint32) uint32 {
	if buckets == 0 {
		return 0
	}
	return uint32(xxh3.Hash(key) % uint64(buckets))
}

// Holds reports whether an encoded key is one of those that v speaks of: within
// its bounds and in its bucket. Keys left out are held too.
func (v *VerifyRange) Holds(key []byte) bool {
	return bytes.Compare(key, v.Low) >= 0 &&
		(len(v.High) == 0 || bytes.Compare(key, v.High) < 0) &&
		(v.Buckets == 0 || VerifyBucket(key, v.Buckets) == v.Bucket)
}
