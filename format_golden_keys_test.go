package millrace

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// goldenKeyCase is a key of columns of the given base types, by OID, and the
// texts that it is made of.
type goldenKeyCase struct {
	oids  []uint32
	texts []string
}

func one(oid uint32, texts ...string) []goldenKeyCase {
	var cases []goldenKeyCase
	for _, t := range texts {
		cases = append(cases, goldenKeyCase{[]uint32{oid}, []string{t}})
	}
	return cases
}

// goldenKeyCases has every type that can be a key. Within a type the values
// stand in ascending order.
func goldenKeyCases() []goldenKeyCase {
	var cases []goldenKeyCase
	for _, c := range [][]goldenKeyCase{
		one(21, "-32768", "-1", "0", "32767"),
		one(23, "-2147483648", "-1", "0", "1", "2147483647"),
		one(20, "-9223372036854775808", "-1", "0", "1", "9223372036854775807"),
		one(26, "0", "16385", "4294967295"),
		one(16, "f", "t"),
		one(18, "", "a", `\351`),
		one(2950, "00000000-0000-0000-0000-000000000000", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
		one(1082, "-infinity", "4714-11-24 BC", "0001-12-31 BC", "0001-01-01", "1999-12-31", "2000-01-01", "2024-02-29", "5874897-12-31", "infinity"),
		one(1083, "00:00:00", "12:34:56.7", "24:00:00"),
		one(1114, "-infinity", "4714-11-24 00:00:00 BC", "1999-12-31 23:59:59.999999", "2026-01-02 03:04:05", "294276-12-31 23:59:59.999999", "infinity"),
		one(1184, "-infinity", "1970-01-01 00:00:00+00", "2026-01-02 03:04:05.678901+00", "infinity"),
		one(1700, "-Infinity", "-12345.67", "-100", "-99.9", "-1", "-0.001", "0", "0.00001", "0.1", "1", "1.000000000000000000001", "1.5", "9", "10", "100", "12345678901234567890.5", "Infinity", "NaN"),
		one(700, "-Infinity", "-1.5", "-1e-30", "0", "0.1", "1", "123456", "1e+06", "3.4028235e+38", "Infinity", "NaN"),
		one(701, "-Infinity", "-1e+300", "-1.5", "-5e-324", "0", "1e-05", "0.0001", "0.1", "1", "123456.789", "1e+15", "Infinity", "NaN"),
		one(25, "", "a", "a\x00", "a\x00b", "ab", "b", "é", "日本"),
		one(1042, "", "a", "a b"),
		one(17, `\x`, `\x00`, `\x0000`, `\x00ff`, `\x01`, `\xff`, `\xff00`),
		one(869, "10.0.0.1", "10.0.0.1/8", "2001:db8::1/64"),
		one(650, "10.0.0.0/8", "2001:db8::/32"),
		one(829, "08:00:2b:01:02:03"),
		one(774, "08:00:2b:01:02:03:04:05"),
		one(1560, "0", "01", "10"),
		{
			{[]uint32{25, 23}, []string{"a", "-1"}},
			{[]uint32{25, 23}, []string{"a", "1"}},
			{[]uint32{25, 23}, []string{"a\x00", "0"}},
			{[]uint32{25, 23}, []string{"ab", "0"}},
			{[]uint32{1700, 17, 16}, []string{"-1.5", `\x0001`, "t"}},
		},
		// With the two bytes of its end, the longest key that a store keeps as it
		// is, and the shortest that it does not.
		one(25, strings.Repeat("k", maxWholeKey-2), strings.Repeat("k", maxWholeKey-1)),
	} {
		cases = append(cases, c...)
	}
	return cases
}

// goldenKeys returns a file with a line a key (the types' OIDs and the key in
// hexadecimal), and what is in it.
func goldenKeys(t testing.TB) golden {
	var lines strings.Builder
	content := []any{}
	for _, c := range goldenKeyCases() {
		s := &Schema{Version: 1, Table: 1, Namespace: "public", Name: "golden"}
		var texts [][]byte
		list := []any{}
		for i, oid := range c.oids {
			s.Columns = append(s.Columns, Column{Name: fmt.Sprint("c", i), Type: oid, KeyOrdinal: uint32(i + 1)})
			s.Types = append(s.Types, TypeDesc{OID: oid, Kind: TypeBase, Name: fmt.Sprint("type ", oid)})
			texts = append(texts, []byte(c.texts[i]))
			list = append(list, c.texts[i])
			fmt.Fprintf(&lines, "%d ", oid)
		}
		slices.SortFunc(s.Types, func(a, b TypeDesc) int { return cmp.Compare(a.OID, b.OID) })
		k, err := NewKeyCodec(s)
		if err != nil {
			t.Fatal(err)
		}
		key, err := k.Append(nil, texts)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&lines, "%x\n", key)
		content = append(content, map[string]any{"texts": list, "store_key": hex.EncodeToString(StoreKey(nil, key))})
	}
	return golden{"keys.keys", []byte(lines.String()), content}
}

// TestGoldenKeysAscend: the cases of a type stand in ascending order, and so
// must their keys, in the form in which a store holds them too.
func TestGoldenKeysAscend(t *testing.T) {
	content := goldenKeys(t).content.([]any)
	cases := goldenKeyCases()
	for i := 1; i < len(cases); i++ {
		if !slices.Equal(cases[i].oids, cases[i-1].oids) {
			continue
		}
		before, after := content[i-1].(map[string]any)["store_key"].(string), content[i].(map[string]any)["store_key"].(string)
		if before >= after {
			t.Errorf("types %v: key of %q is not before that of %q: %s, %s", cases[i].oids, cases[i-1].texts, cases[i].texts, before, after)
		}
	}
}
