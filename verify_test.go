package millrace

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"testing"

	"github.com/zeebo/xxh3"
	"pgregory.net/rapid"
)

// verifySchema has the named text columns; the first is the key.
func verifySchema(names ...string) *Schema {
	s := &Schema{Version: 1, Table: 1, Namespace: "public", Name: "t", Types: []TypeDesc{{OID: 25, Kind: TypeBase, Name: "text"}}}
	for i, n := range names {
		c := Column{Name: n, Type: 25, Typmod: -1}
		if i == 0 {
			c.KeyOrdinal = 1
		}
		s.Columns = append(s.Columns, c)
	}
	return s
}

// The hash is part of the format: both sides of a stream compute it, at
// different times and in different versions. These values stand for ever; another
// implementation of XXH3 gave the same.
func TestVerifyGolden(t *testing.T) {
	one := verifySchema("id", "note", "b")
	for _, test := range []struct {
		name    string
		schema  *Schema
		key     string // hex
		columns []Datum
		hashed  string // hex
		sum     string // hex
	}{
		{
			"int8 key, null left out, in order of names", one, "8000000000000007",
			[]Datum{text("7"), null, text("x")},
			"08" + "8000000000000007" + "01620178" + "0269640137", "1f3187d5db33e8f074526c43190b9961",
		},
		{
			"empty text is not NULL", one, "8000000000000007",
			[]Datum{text("7"), text(""), text("x")},
			"08" + "8000000000000007" + "01620178" + "0269640137" + "046e6f746500", "3724e7b39749a3bb5a39867ffbaeacca",
		},
		{
			"names in order of bytes, not of letters", verifySchema("é", "a", "B"), "c3a90001",
			[]Datum{text("é"), text("1"), text("2")},
			"04" + "c3a90001" + "01420132" + "01610131" + "02c3a902c3a9", "9de3c9789aac4ea96b13650fc6b45d33",
		},
	} {
		var sum VerifySum
		key, _ := hex.DecodeString(test.key)
		p := NewVerifyPlan(test.schema)
		row, err := p.AppendRow(nil, test.columns)
		if err != nil {
			t.Fatalf("%s: %v", test.name, err)
		}
		hashed := append(append([]byte{byte(len(key))}, key...), row...)
		if got := hex.EncodeToString(hashed); got != test.hashed {
			t.Errorf("%s: hashed bytes\n got %s\nwant %s", test.name, got, test.hashed)
		}
		if err := sum.Add(p, key, test.columns); err != nil {
			t.Fatalf("%s: %v", test.name, err)
		}
		if got := fmt.Sprintf("%x", sum.Sum()); got != test.sum || sum.Rows != 1 {
			t.Errorf("%s: sum %s of %d rows, want %s of 1", test.name, got, sum.Rows, test.sum)
		}
	}
	for key, want := range map[string]uint32{"": 138, "a": 719, "8000000000000007": 574} {
		if got := VerifyBucket([]byte(key), 1000); got != want {
			t.Errorf("bucket of %q: %d, want %d", key, got, want)
		}
	}
}

// A row that is not whole has no hash: at the edge it is damage, at the source
// a mistake of ours.
func TestVerifyRefusesRowsThatAreNotWhole(t *testing.T) {
	p := NewVerifyPlan(verifySchema("id", "note"))
	var sum VerifySum
	if err := sum.Add(p, []byte("k"), []Datum{text("1"), text("2")}); err != nil {
		t.Fatal(err)
	}
	want := sum.Sum()
	for _, columns := range [][]Datum{
		nil, {text("1")}, {text("1"), text("2"), text("3")}, {text("1"), unchanged}, {text("1"), missing},
	} {
		if err := sum.Add(p, []byte("k"), columns); !errors.Is(err, ErrMalformed) {
			t.Errorf("%v: error %v, want ErrMalformed", columns, err)
		}
	}
	if sum.Rows != 1 || sum.Sum() != want {
		t.Errorf("sum changed by rows that were refused: %d rows, %x", sum.Rows, sum.Sum())
	}
}

// verifyRow is a generated row by name of column.
type verifyRow struct {
	key    []byte
	values map[string]string
}

func drawVerifyRows(t *rapid.T) []verifyRow {
	name := rapid.StringMatching(`[ab]{1,2}`)
	rows := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) verifyRow {
		return verifyRow{
			key:    rapid.SliceOfN(rapid.Byte(), 1, 4).Draw(t, "key"),
			values: rapid.MapOfN(name, rapid.StringMatching(`[ab]{0,3}`), 0, 4).Draw(t, "values"),
		}
	}), 0, 8).Draw(t, "rows")
	return rows
}

// under writes the row with a schema that has its columns and more, in any
// order.
func (r *verifyRow) under(t *rapid.T) (*Schema, []Datum) {
	names := []string{"a", "b", "aa", "ab", "ba", "bb"}
	names = slices.DeleteFunc(names, func(n string) bool {
		_, needed := r.values[n]
		return !needed && rapid.Bool().Draw(t, "drop")
	})
	names = rapid.Permutation(names).Draw(t, "order")
	columns := make([]Datum, len(names))
	for i, n := range names {
		columns[i] = null
		if v, ok := r.values[n]; ok {
			columns[i] = text(v)
		}
	}
	return verifySchema(names...), columns
}

func (r *verifyRow) equal(o *verifyRow) bool {
	if !bytes.Equal(r.key, o.key) || len(r.values) != len(o.values) {
		return false
	}
	for n, v := range r.values {
		if w, ok := o.values[n]; !ok || w != v {
			return false
		}
	}
	return true
}

// The sum is that of the definition, whatever the schema, the order of rows, or
// the parts it is added from; and one row more, less or other gives another sum.
func TestVerifySumProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rows := drawVerifyRows(t)
		sumOf := func(rows []verifyRow) (sum VerifySum) {
			for i := range rows {
				s, columns := rows[i].under(t)
				if err := sum.Add(NewVerifyPlan(s), rows[i].key, columns); err != nil {
					t.Fatal(err)
				}
			}
			return sum
		}
		sum := sumOf(rows)

		want := new(big.Int)
		for i := range rows {
			var names []string
			for n := range rows[i].values {
				names = append(names, n)
			}
			slices.Sort(names)
			hashed := append([]byte{byte(len(rows[i].key))}, rows[i].key...)
			for _, n := range names {
				v := rows[i].values[n]
				hashed = append(append(hashed, byte(len(n))), n...)
				hashed = append(append(hashed, byte(len(v))), v...)
			}
			h := xxh3.Hash128(hashed).Bytes()
			want.Add(want, new(big.Int).SetBytes(h[:]))
		}
		want.And(want, new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 128), big.NewInt(1)))
		got := sum.Sum()
		if new(big.Int).SetBytes(got[:]).Cmp(want) != 0 || sum.Rows != uint64(len(rows)) {
			t.Fatalf("sum %x of %d rows, want %x of %d", got, sum.Rows, want, len(rows))
		}

		again := sumOf(rapid.Permutation(rows).Draw(t, "other order"))
		if again.Sum() != sum.Sum() {
			t.Fatalf("another order and other schemas: sum %x, want %x", again.Sum(), sum.Sum())
		}
		cut := rapid.IntRange(0, len(rows)).Draw(t, "cut")
		parts, rest := sumOf(rows[:cut]), sumOf(rows[cut:])
		parts.AddSum(&rest)
		if parts.Sum() != sum.Sum() || parts.Rows != sum.Rows {
			t.Fatalf("from parts: sum %x of %d, want %x of %d", parts.Sum(), parts.Rows, sum.Sum(), sum.Rows)
		}

		if len(rows) == 0 {
			return
		}
		i := rapid.IntRange(0, len(rows)-1).Draw(t, "which")
		other := rapid.SampledFrom(append(drawVerifyRows(t), verifyRow{key: []byte("k")})).Draw(t, "instead")
		changed := slices.Clone(rows)
		changed[i] = other
		altered := sumOf(changed)
		if same := rows[i].equal(&other); (altered.Sum() == sum.Sum()) != same {
			t.Fatalf("%v in place of %v: sums are equal: %v, want %v", other, rows[i], !same, same)
		}
		less, more := sumOf(slices.Delete(slices.Clone(rows), i, i+1)), sumOf(append(slices.Clone(rows), rows[i]))
		if less.Sum() == sum.Sum() || more.Sum() == sum.Sum() {
			t.Fatal("one row less or more gives the same sum")
		}
	})
}

func TestVerifyRangeHolds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		key := rapid.SliceOfN(rapid.ByteRange('a', 'c'), 1, 3).Draw(t, "key")
		bound := rapid.SliceOfN(rapid.ByteRange('a', 'c'), 0, 3)
		v := VerifyRange{Low: bound.Draw(t, "low"), High: bound.Draw(t, "high"), Buckets: rapid.Uint32Range(0, 3).Draw(t, "buckets")}
		within := string(key) >= string(v.Low) && (len(v.High) == 0 || string(key) < string(v.High))
		held := 0
		for v.Bucket = range max(v.Buckets, 1) {
			if v.Holds(key) {
				held++
			}
		}
		if want := map[bool]int{true: 1}[within]; held != want {
			t.Fatalf("%q in [%q, %q) of %d buckets: held by %d of them, want %d", key, v.Low, v.High, v.Buckets, held, want)
		}
	})
}

func TestVerifySumAllocatesNothing(t *testing.T) {
	p := NewVerifyPlan(verifySchema("id", "note", "b"))
	columns := []Datum{text("7"), null, text("xxxxxxxxxxxxxxxxxxxxxxx")}
	key := []byte("key")
	v := VerifyRange{Buckets: 7, High: []byte("l")}
	var sum VerifySum
	if n := testing.AllocsPerRun(100, func() {
		if err := sum.Add(p, key, columns); err != nil {
			t.Fatal(err)
		}
		v.Holds(key)
	}); n > 0 {
		t.Errorf("%v allocations a row, want none", n)
	}
}

// Whatever row is decoded, it is hashed or refused, and the canonical form says
// which row it was.
func FuzzVerifyRow(f *testing.F) {
	seed(f, ".row", whole)
	f.Add(AppendRow(nil, 1, []Datum{text("7"), null, text("x")}))
	f.Fuzz(func(t *testing.T, b []byte) {
		var r Row
		if DecodeRow(b, &r) != nil {
			return
		}
		names := make([]string, len(r.Columns))
		whole := true
		for i := range names {
			names[i] = fmt.Sprintf("c%d", len(names)-i)
			whole = whole && (r.Columns[i].State == ColumnValue || r.Columns[i].State == ColumnNull)
		}
		canonical, err := NewVerifyPlan(verifySchema(names...)).AppendRow(nil, r.Columns)
		if (err == nil) != whole {
			t.Fatalf("row that is whole: %v, error %v", whole, err)
		}
		if err != nil {
			return
		}
		values := map[string]string{}
		for rest := canonical; len(rest) > 0; {
			var part [2]string
			for i := range part {
				var text []byte
				if text, rest, err = cutText(rest); err != nil {
					t.Fatal(err)
				}
				part[i] = string(text)
			}
			values[part[0]] = part[1]
		}
		for i, n := range names {
			v, ok := values[n]
			if ok != (r.Columns[i].State == ColumnValue) || v != string(r.Columns[i].Text) {
				t.Fatalf("column %s: canonical %q (present: %v), want %v %q", n, v, ok, r.Columns[i].State, r.Columns[i].Text)
			}
		}
	})
}

func cutText(b []byte) (text, rest []byte, err error) {
	n, size := binary.Uvarint(b)
	if size <= 0 || n > uint64(len(b)-size) {
		return nil, nil, errors.New("canonical row is cut off")
	}
	return b[size : size+int(n)], b[size+int(n):], nil
}

func BenchmarkVerifySum(b *testing.B) {
	p := NewVerifyPlan(verifySchema("id", "owner", "balance", "note"))
	columns := []Datum{text("12345678"), text("someone"), text("1234.56"), text("a note of some length that people write")}
	key := []byte("\x80\x00\x00\x00\x00\xbc\x61\x4e")
	var sum VerifySum
	b.ReportAllocs()
	for range b.N {
		if err := sum.Add(p, key, columns); err != nil {
			b.Fatal(err)
		}
	}
}
