package millrace_test

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/millrace-db/millrace"
)

func indexCodec(t testing.TB, s *millrace.Schema) *millrace.IndexCodec {
	t.Helper()
	names := make([]string, len(s.Columns))
	for i := range s.Columns {
		names[i] = s.Columns[i].Name
	}
	k, err := millrace.NewIndexCodec(s, names)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// indexDatum is a value of an index column: NULL now and then.
func indexDatum(t *rapid.T, oid uint32, label string) (millrace.Datum, *keyValue) {
	if rapid.IntRange(0, 3).Draw(t, label+" is null") == 0 {
		return millrace.Datum{State: millrace.ColumnNull}, nil
	}
	v := keyGenerators[oid].Draw(t, label)
	return millrace.Datum{Text: []byte(v.text)}, &v
}

func compareIndexed(a, b *keyValue) int {
	switch {
	case a == nil && b == nil:
		return 0
	case a == nil:
		return 1
	case b == nil:
		return -1
	}
	return a.compare(*b)
}

// TestIndexKeys: index keys compare as the values do with NULL last, and whatever
// stands behind them; leading columns are a prefix; what was encoded is decoded.
func TestIndexKeys(t *testing.T) {
	types := make([]uint32, 0, len(keyGenerators))
	for oid := range keyGenerators {
		types = append(types, oid)
	}
	slices.Sort(types)
	rapid.Check(t, func(t *rapid.T) {
		schema := rapid.SliceOfN(rapid.SampledFrom(types), 1, 4).Draw(t, "types")
		s := keySchema(schema...)
		names := make([]string, len(s.Columns))
		for i := range s.Columns {
			names[i] = s.Columns[i].Name
		}
		k, err := millrace.NewIndexCodec(s, names)
		if err != nil {
			t.Fatal(err)
		}
		a, b := make([]millrace.Datum, len(schema)), make([]millrace.Datum, len(schema))
		want, leading := 0, 0
		for i, oid := range schema {
			var x, y *keyValue
			a[i], x = indexDatum(t, oid, "a")
			b[i], y = a[i], x
			if rapid.Bool().Draw(t, "differs") {
				b[i], y = indexDatum(t, oid, "b")
			}
			if want == 0 {
				want = compareIndexed(x, y)
			}
			if want == 0 {
				leading++
			}
		}
		tail := rapid.SliceOfN(rapid.Byte(), 1, 8)
		keyA, err := k.Append(nil, a)
		if err != nil {
			t.Fatal(err)
		}
		keyB, err := k.Append(nil, b)
		if err != nil {
			t.Fatal(err)
		}
		pk := tail.Draw(t, "row key")
		if got := bytes.Compare(append(bytes.Clone(keyA), pk...), append(bytes.Clone(keyB), tail.Draw(t, "other row key")...)); want != 0 && got != want {
			t.Fatalf("%q and %q: keys %x and %x compare %d, want %d", a, b, keyA, keyB, got, want)
		}
		if want == 0 != bytes.Equal(keyA, keyB) {
			t.Fatalf("%q and %q: keys %x and %x, compare should give %d", a, b, keyA, keyB, want)
		}
		values, rest, err := k.Decode(append(bytes.Clone(keyA), pk...), nil)
		if err != nil || !bytes.Equal(rest, pk) {
			t.Fatalf("%x decodes to %q with %x behind it, %v", keyA, values, rest, err)
		}
		if again, err := k.Append(nil, values); err != nil || !bytes.Equal(again, keyA) {
			t.Fatalf("%q decodes to %q, which encodes to %x, %v, want %x", a, values, again, err, keyA)
		}
		n := rapid.IntRange(0, len(schema)).Draw(t, "leading columns")
		prefix, err := k.Append(nil, b[:n])
		if err != nil {
			t.Fatal(err)
		}
		if got := bytes.HasPrefix(keyA, prefix); got != (n <= leading) {
			t.Fatalf("%q: begins with the %d columns of %q: %t", a, n, b, got)
		}
	})
}

func TestIndexPartial(t *testing.T) {
	k := indexCodec(t, keySchema(oidInt4, oidText))
	value := func(s string) millrace.Datum { return millrace.Datum{Text: []byte(s)} }
	prefix, err := k.AppendPartial(nil, []millrace.Datum{value("7")}, []byte("ab"))
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]bool{"ab": true, "abc": true, "aab": false, "b": false} {
		key, err := k.Append(nil, []millrace.Datum{value("7"), value(text)})
		if err != nil || bytes.HasPrefix(key, prefix) != want {
			t.Errorf("%q begins with the prefix: %t, %v, want %t", text, !want, err, want)
		}
	}
	if _, err := k.AppendPartial(nil, nil, []byte("1")); !errors.Is(err, millrace.ErrMalformed) || !strings.Contains(err.Error(), "only a text") {
		t.Errorf("start of a number: %v", err)
	}
	if _, err := k.AppendPartial(nil, []millrace.Datum{value("1"), value("x")}, []byte("y")); !errors.Is(err, millrace.ErrMalformed) {
		t.Errorf("start behind the last column: %v", err)
	}
}

// Columns that an index cannot have are refused by name, and do not stop a
// stream.
func TestIndexRefuses(t *testing.T) {
	s := keySchema(oidInt4, oidJSONB, oidText)
	for _, c := range []struct {
		columns []string
		says    string
	}{
		{nil, "at least one"},
		{[]string{"a", "nothing"}, "column nothing: the table has no such column"},
		{[]string{"a", "c", "a"}, "column a: it is named twice"},
		{[]string{"b"}, "jsonb"},
	} {
		_, err := millrace.NewIndexCodec(s, c.columns)
		var bad *millrace.IndexColumnError
		if !errors.As(err, &bad) || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), "mend:") || millrace.NeedsOperator(err) {
			t.Errorf("%v: %v, want one that says %q", c.columns, err, c.says)
		}
	}
	k, err := millrace.NewIndexCodec(s, []string{"c", "a"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.Append(nil, []millrace.Datum{{Text: []byte("x")}, {Text: []byte("seven")}}); !errors.Is(err, millrace.ErrMalformed) || !strings.Contains(err.Error(), "index column a") {
		t.Errorf("a text that is no number: %v", err)
	}
	row := []millrace.Datum{{Text: []byte("7")}, {State: millrace.ColumnNull}, {State: millrace.ColumnMissing}}
	if key, complete, err := k.AppendRow([]byte("x"), nil, row); complete || err != nil || string(key) != "x" {
		t.Errorf("row that lacks a column: %q, %t, %v", key, complete, err)
	}
	row[2] = millrace.Datum{Text: []byte("t")}
	got, complete, err := k.AppendRow(nil, []int{-1, 0}, row)
	want, err2 := k.Append(nil, []millrace.Datum{{State: millrace.ColumnNull}, row[0]})
	if err := errors.Join(err, err2); err != nil || !complete || !bytes.Equal(got, want) {
		t.Errorf("row of a schema without a column: %x, %v, want %x", got, err, want)
	}
}

// FuzzIndexKeyDecode: what Decode accepts is exactly what Append writes.
func FuzzIndexKeyDecode(f *testing.F) {
	var codecs []*millrace.IndexCodec
	for i, types := range fuzzKeySchemas {
		k := indexCodec(f, keySchema(types...))
		codecs = append(codecs, k)
		for at := range 6 {
			values := make([]millrace.Datum, len(types))
			for j, oid := range types {
				all := keyOrders[oid]
				values[j].Text = []byte(all[at%len(all)])
				if (at+j)%4 == 3 {
					values[j] = millrace.Datum{State: millrace.ColumnNull}
				}
			}
			key, err := k.Append(nil, values)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(byte(i), key)
		}
	}
	f.Fuzz(func(t *testing.T, schema byte, key []byte) {
		k := codecs[int(schema)%len(codecs)]
		values, rest, err := k.Decode(key, nil)
		if err != nil {
			return
		}
		again, err := k.Append(nil, values)
		if err != nil || !bytes.Equal(append(again, rest...), key) {
			t.Fatalf("%x decodes to %q and %x, which encodes to %x, %v", key, values, rest, again, err)
		}
	})
}
