package millrace_test

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/millrace-db/millrace"
)

// keySchema returns the schema of a table whose key columns have the given
// built-in types.
func keySchema(oids ...uint32) *millrace.Schema {
	s := &millrace.Schema{Version: 1, Table: 1, Namespace: "public", Name: "t"}
	for i, oid := range oids {
		s.Columns = append(s.Columns, millrace.Column{
			Name: string(rune('a' + i)), Type: oid, Typmod: -1, NotNull: true, KeyOrdinal: uint32(i + 1),
		})
		if s.Type(oid) == nil {
			s.Types = append(s.Types, millrace.TypeDesc{OID: oid, Kind: millrace.TypeBase, Schema: "pg_catalog", Name: keyTypeNames[oid]})
			slices.SortFunc(s.Types, func(a, b millrace.TypeDesc) int { return int(a.OID) - int(b.OID) })
		}
	}
	return s
}

const (
	oidBool, oidBytea, oidChar, oidName, oidInt8, oidInt2, oidInt4         = 16, 17, 18, 19, 20, 21, 23
	oidText, oidOID, oidCIDR, oidFloat4, oidFloat8, oidMacaddr8, oidInet   = 25, 26, 650, 700, 701, 774, 869
	oidMacaddr, oidBpchar, oidVarchar, oidDate, oidTime, oidTimestamp      = 829, 1042, 1043, 1082, 1083, 1114
	oidTimestamptz, oidInterval, oidTimetz, oidBit, oidVarbit, oidNumeric  = 1184, 1186, 1266, 1560, 1562, 1700
	oidUUID, oidJSONB, oidJSON, oidXML, oidMoney, oidRegclass, oidCitext   = 2950, 3802, 114, 142, 790, 2205, 70001
	oidEnum, oidArray, oidComposite, oidRange, oidDomain, oidDomainOfArray = 70002, 1007, 70003, 3904, 70004, 70005
)

var keyTypeNames = map[uint32]string{
	oidBool: "bool", oidBytea: "bytea", oidChar: "char", oidName: "name", oidInt8: "int8", oidInt2: "int2", oidInt4: "int4",
	oidText: "text", oidOID: "oid", oidCIDR: "cidr", oidFloat4: "float4", oidFloat8: "float8", oidMacaddr8: "macaddr8", oidInet: "inet",
	oidMacaddr: "macaddr", oidBpchar: "bpchar", oidVarchar: "varchar", oidDate: "date", oidTime: "time", oidTimestamp: "timestamp",
	oidTimestamptz: "timestamptz", oidInterval: "interval", oidTimetz: "timetz", oidBit: "bit", oidVarbit: "varbit", oidNumeric: "numeric",
	oidUUID: "uuid", oidJSONB: "jsonb", oidJSON: "json", oidXML: "xml", oidMoney: "money", oidRegclass: "regclass", oidCitext: "citext",
}

func newCodec(t testing.TB, s *millrace.Schema) *millrace.KeyCodec {
	t.Helper()
	k, err := millrace.NewKeyCodec(s)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func texts(ss ...string) [][]byte {
	b := make([][]byte, len(ss))
	for i, s := range ss {
		b[i] = []byte(s)
	}
	return b
}

func encode(t testing.TB, k *millrace.KeyCodec, ss ...string) []byte {
	t.Helper()
	key, err := k.Append(nil, texts(ss...))
	if err != nil {
		t.Fatalf("encode %q: %v", ss, err)
	}
	return key
}

// keyOrders has values of every type in ascending order, each in the form that
// Decode gives.
var keyOrders = map[uint32][]string{
	oidBool: {"f", "t"},
	oidInt2: {"-32768", "-1", "0", "1", "32767"},
	oidInt4: {"-2147483648", "-256", "-1", "0", "1", "255", "256", "2147483647"},
	oidInt8: {"-9223372036854775808", "-1", "0", "1", "9223372036854775807"},
	oidOID:  {"0", "1", "2147483648", "4294967295"},
	oidChar: {"", "\x01", "A", "~", `\200`, `\377`},
	oidUUID: {"00000000-0000-0000-0000-000000000000", "00000000-0000-0000-0000-0000000000ff", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "ffffffff-ffff-ffff-ffff-ffffffffffff"},
	oidDate: {
		"-infinity", "4714-11-24 BC", "4713-01-01 BC", "0044-03-15 BC", "0001-12-31 BC", "0001-01-01", "1582-10-15", "1900-02-28", "1900-03-01",
		"1999-12-31", "2000-01-01", "2000-02-29", "2024-02-29", "9999-12-31", "10000-01-01", "5874897-12-31", "infinity",
	},
	oidTime: {"00:00:00", "00:00:00.000001", "00:00:00.1", "12:34:56", "23:59:59.999999", "24:00:00"},
	oidTimestamp: {
		"-infinity", "4714-11-24 00:00:00 BC", "0044-03-15 12:00:00 BC", "0001-12-31 23:59:59.999999 BC", "0001-01-01 00:00:00",
		"1999-12-31 23:59:59.999999", "2000-01-01 00:00:00", "2000-01-01 00:00:00.000001", "2024-02-29 10:00:00.5", "10000-01-01 00:00:00", "294276-12-31 23:59:59.999999", "infinity",
	},
	oidTimestamptz: {
		"-infinity", "4714-11-24 00:00:00+00 BC", "0001-12-31 23:59:59+00 BC", "1999-12-31 23:59:59.999999+00", "2024-02-29 10:00:00+00", "294276-12-31 23:59:59.999999+00", "infinity",
	},
	oidNumeric: {
		"-Infinity", "-1" + strings.Repeat("0", 131071), "-100", "-99.5", "-10.01", "-10", "-9", "-1.1", "-1", "-0.5", "-0.05", "-0." + strings.Repeat("0", 16382) + "1",
		"0", "0." + strings.Repeat("0", 16382) + "1", "0.001", "0.01", "0.0101", "0.011", "0.1", "0.9", "1", "1.0001", "1.01", "1.1", "1.11", "9", "10", "11", "99", "100", "100.5", "101", "12345678901234567890.5",
		"1" + strings.Repeat("0", 131071), "Infinity", "NaN",
	},
	oidFloat8: {"-Infinity", "-1.7976931348623157e+308", "-1", "-5e-324", "0", "5e-324", "0.0001", "0.1", "1", "1e+15", "1.7976931348623157e+308", "Infinity", "NaN"},
	oidFloat4: {"-Infinity", "-3.4028235e+38", "-1", "-1e-45", "0", "1e-45", "0.1", "1.1", "1e+06", "3.4028235e+38", "Infinity", "NaN"},
	oidText:   {"", "\x01", " ", "A", "Z", "a", "a\x01", "a ", "ab", "b", "é", "日本", "𝄞"},
	oidBpchar: {"", "a", "a b", "b"},
	oidBytea:  {`\x`, `\x00`, `\x0000`, `\x0001`, `\x00ff`, `\x01`, `\x61`, `\x6100`, `\x610001`, `\x6101`, `\xff`, `\xff00`, `\xffff`},
	oidInet:   {"10.0.0.1", "10.0.0.1/8", "192.168.0.1", "2001:db8::1", "::1.2.3.4", "::ffff:1.2.3.4"},
	oidCIDR:   {"10.0.0.0/8", "10.0.0.1/32", "2001:db8::/32", "::/0"},
	oidMacaddr: {
		"00:00:00:00:00:00", "08:00:2b:01:02:03", "ff:ff:ff:ff:ff:ff",
	},
	oidMacaddr8: {"00:00:00:00:00:00:00:00", "08:00:2b:01:02:03:04:05"},
	oidVarbit:   {"", "0", "00", "01", "1", "10", "11"},
}

func TestKeyOrderAndRoundTrip(t *testing.T) {
	for oid, values := range keyOrders {
		t.Run(keyTypeNames[oid], func(t *testing.T) {
			k := newCodec(t, keySchema(oid))
			var keys [][]byte
			for _, v := range values {
				key := encode(t, k, v)
				got, err := k.Decode(key, nil)
				if err != nil {
					t.Fatalf("decode %x of %q: %v", key, v, err)
				}
				if string(got[0]) != v {
					t.Errorf("decode %x: got %.80q, want %.80q", key, got[0], v)
				}
				keys = append(keys, key)
			}
			for i := range keys {
				for j := range keys {
					if got, want := bytes.Compare(keys[i], keys[j]), i-j; got < 0 != (want < 0) || got > 0 != (want > 0) {
						t.Errorf("%.80q and %.80q compare %d, want the sign of %d", values[i], values[j], got, want)
					}
					if i != j && bytes.HasPrefix(keys[i], keys[j]) {
						t.Errorf("key of %.80q begins with that of %.80q", values[i], values[j])
					}
				}
			}
		})
	}
}

func TestKeyEqualValuesHaveOneKey(t *testing.T) {
	tests := []struct {
		oid   uint32
		want  string
		other []string
	}{
		{oidInt4, "7", []string{"+7", "007"}},
		{oidInt4, "0", []string{"-0"}},
		{oidBool, "t", []string{"true"}},
		{oidBool, "f", []string{"false"}},
		{oidNumeric, "1", []string{"1.0", "1.00", "01", "+1", "1e0", "0.1e1", "10E-1", "1."}},
		{oidNumeric, "0", []string{"0.00", "-0", "-0.0", "0e10", ".0"}},
		{oidNumeric, "-120.5", []string{"-120.50", "-00120.500", "-1.205e+2"}},
		{oidFloat8, "0", []string{"-0", "0.0", "-0e5"}},
		{oidFloat4, "0.1", []string{"0.1", "0.10000000149011612", "1e-1"}},
		{oidBpchar, "a", []string{"a  ", "a "}},
		{oidBytea, `\x0aff`, []string{`\x0AFF`}},
		{oidUUID, "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", []string{"A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", "a0eebc999c0b4ef8bb6d6bb9bd380a11"}},
		{oidTimestamptz, "2024-01-02 03:04:05+00", []string{"2024-01-02T03:04:05Z", "2024-01-02T03:04:05.000000+00:00", "2024-01-02 08:34:05+05:30", "2024-01-01 22:04:05-05"}},
		{oidTimestamp, "2024-01-02 03:04:05", []string{"2024-01-02T03:04:05.0"}},
		{oidInet, "10.0.0.1", []string{"10.0.0.1/32"}},
		{oidInet, "2001:db8::1", []string{"2001:DB8:0:0::1", "2001:db8::1/128"}},
		{oidCIDR, "10.0.0.1/32", []string{"10.0.0.1"}},
		{oidMacaddr, "08:00:2b:01:02:03", []string{"08-00-2B-01-02-03"}},
	}
	for _, tt := range tests {
		k := newCodec(t, keySchema(tt.oid))
		want := encode(t, k, tt.want)
		for _, other := range tt.other {
			if got := encode(t, k, other); !bytes.Equal(got, want) {
				t.Errorf("%s %q: got %x, want %x as of %q", keyTypeNames[tt.oid], other, got, want, tt.want)
			}
		}
	}
}

func TestKeyRefusesValues(t *testing.T) {
	tests := map[uint32][]string{
		oidBool:        {"", "x", "1"},
		oidInt2:        {"", "-", "32768", "-32769", "1.0", "0x1", " 1"},
		oidInt4:        {"2147483648", "-2147483649", "99999999999999999999999"},
		oidInt8:        {"9223372036854775808", "-9223372036854775809", "18446744073709551617"},
		oidOID:         {"-1", "4294967296"},
		oidChar:        {"ab", `\400`, `\100`, `\2x0`},
		oidUUID:        {"", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a1", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a1g", "a0eebc9909c0b-4ef8-bb6d-6bb9bd380a11"},
		oidDate:        {"", "2024-13-01", "2023-02-29", "1900-02-29", "0000-01-01", "24-01-01", "2024-1-1", "4714-11-23 BC", "5874898-01-01", "2024-01-01 00:00:00", "2024-01-01BC"},
		oidTime:        {"24:00:01", "12:60:00", "12:00:60", "12:00", "12:00:00.1234567", "12:00:00.", "12:00:00+00"},
		oidTimestamp:   {"2024-01-01", "2024-01-01 00:00:00+00", "294277-01-01 00:00:00", "5874897-12-31 00:00:00", "4714-11-23 23:59:59 BC"},
		oidTimestamptz: {"2024-01-01 00:00:00", "2024-01-01 00:00:00+0", "2024-01-01 00:00:00 UTC"},
		oidNumeric:     {"", ".", "-", "1..2", "1.2.3", "1e", "e5", "1e200000", "1e-17000", "1e99999999999", "0x10", "inf", "1" + strings.Repeat("0", 131072)},
		oidFloat8:      {"", "x", "0x1p4", "1_0", "1e400", "inf"},
		oidFloat4:      {"1e39"},
		oidBytea:       {"", "abc", `\x0`, `\x0g`, `\X00`},
		oidInet:        {"", "10.0.0", "10.0.0.1/33", "10.0.0.1/", "fe80::1%eth0", "10.0.0.1/8/8"},
		oidCIDR:        {"10.0.0.1/8"},
		oidMacaddr:     {"08:00:2b:01:02", "08:00:2b:01:02:0g", "08:00:2b:01:02:03:04", "08.00:2b:01:02:03"},
		oidVarbit:      {"012"},
	}
	for oid, values := range tests {
		k := newCodec(t, keySchema(oid))
		for _, v := range values {
			key, err := k.Append([]byte("x"), texts(v))
			if !errors.Is(err, millrace.ErrMalformed) {
				t.Errorf("%s %.80q: got key %x, error %v, want ErrMalformed", keyTypeNames[oid], v, key, err)
			}
			if string(key) != "x" {
				t.Errorf("%s %.80q: the failed key leaves %x behind", keyTypeNames[oid], v, key)
			}
		}
	}
	k := newCodec(t, keySchema(oidInt4, oidText))
	_, err := k.Append(nil, texts("1"))
	if want := "key has 2 columns (a, b), got 1 values"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("one value of two: got %v, want %q in it", err, want)
	}
	_, err = k.Append(nil, texts("one", "x"))
	if want := `key column a: "one" is not a whole number from`; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("text for a number: got %v, want %q in it", err, want)
	}
}

func TestKeyRefusesTypes(t *testing.T) {
	types := []millrace.TypeDesc{
		{OID: oidInt4, Kind: millrace.TypeBase, Name: "int4"},
		{OID: oidArray, Kind: millrace.TypeArray, Name: "_int4", Elem: oidInt4},
		{OID: oidRange, Kind: millrace.TypeRange, Name: "int4range", Elem: oidInt4},
		{OID: oidCitext, Kind: millrace.TypeBase, Schema: "public", Name: "citext"},
		{OID: oidEnum, Kind: millrace.TypeEnum, Schema: "public", Name: "mood", Labels: []string{"sad", "ok"}},
		{OID: oidComposite, Kind: millrace.TypeComposite, Schema: "public", Name: "pair"},
		{OID: oidDomain, Kind: millrace.TypeDomain, Schema: "public", Name: "positive", Elem: oidInt4},
		{OID: oidDomainOfArray, Kind: millrace.TypeDomain, Schema: "public", Name: "ints", Elem: oidArray},
	}
	for _, oid := range []uint32{oidJSON, oidXML, oidMoney, oidInterval, oidTimetz, oidRegclass, oidJSONB, oidText} {
		types = append(types, millrace.TypeDesc{OID: oid, Kind: millrace.TypeBase, Name: keyTypeNames[oid]})
	}
	slices.SortFunc(types, func(a, b millrace.TypeDesc) int { return int(a.OID) - int(b.OID) })
	schema := func(c millrace.Column) *millrace.Schema {
		c.Name, c.KeyOrdinal = "k", 1
		return &millrace.Schema{Version: 1, Table: 1, Namespace: "public", Name: "t", Columns: []millrace.Column{c}, Types: types}
	}
	for _, oid := range []uint32{oidInt4, oidEnum, oidDomain} {
		if _, err := millrace.NewKeyCodec(schema(millrace.Column{Type: oid})); err != nil {
			t.Errorf("type %d: %v", oid, err)
		}
	}
	for oid, typ := range map[uint32]string{
		oidArray: "_int4", oidRange: "int4range", oidCitext: "citext", oidComposite: "pair", oidDomainOfArray: "ints (_int4)",
		oidJSON: "json", oidXML: "xml", oidMoney: "money", oidInterval: "interval", oidTimetz: "timetz", oidRegclass: "regclass", oidJSONB: "jsonb",
	} {
		_, err := millrace.NewKeyCodec(schema(millrace.Column{Type: oid}))
		var refused *millrace.KeyTypeError
		if !errors.As(err, &refused) {
			t.Errorf("%s: got %v, want a KeyTypeError", typ, err)
			continue
		}
		if refused.Type != typ || refused.Column != "k" || refused.Table != "public.t" || refused.Reason == "" {
			t.Errorf("%s: got %+v", typ, refused)
		}
		if !millrace.NeedsOperator(err) || !strings.Contains(err.Error(), "REPLICA IDENTITY USING INDEX") {
			t.Errorf("%s: error %q does not stop the stream, or lacks the mend", typ, err)
		}
	}
	_, err := millrace.NewKeyCodec(schema(millrace.Column{Type: oidText, Collation: "ci", Nondeterministic: true}))
	if err == nil || !strings.Contains(err.Error(), "collation ci") {
		t.Errorf("nondeterministic collation: got %v", err)
	}
}

func TestKeyPrefix(t *testing.T) {
	k := newCodec(t, keySchema(oidInt4, oidText, oidBytea))
	key := encode(t, k, "7", "zone.example", `\x0001`)
	tests := []struct {
		values  []string
		partial bool
		want    bool
	}{
		{nil, false, true},
		{[]string{"7"}, false, true},
		{[]string{"8"}, false, false},
		{[]string{""}, true, true},
		{[]string{"7", ""}, true, true},
		{[]string{"7", ""}, false, false},
		{[]string{"7", "zone"}, true, true},
		{[]string{"7", "zone"}, false, false},
		{[]string{"7", "zone.example"}, false, true},
		{[]string{"7", "zone.examples"}, true, false},
		{[]string{"7", "zone.example", `\x00`}, true, true},
		{[]string{"7", "zone.example", `\x00`}, false, false},
		{[]string{"7", "zone.example", `\x0001`}, false, true},
	}
	for _, tt := range tests {
		prefix, err := k.AppendPrefix(nil, texts(tt.values...), tt.partial)
		if err != nil {
			t.Errorf("%q: %v", tt.values, err)
		}
		if got := bytes.HasPrefix(key, prefix); got != tt.want {
			t.Errorf("%q partial %t: prefix %x of %x: got %t, want %t", tt.values, tt.partial, prefix, key, got, tt.want)
		}
	}
	for _, bad := range [][]string{{"7", "a", `\x`, "more"}, {"7", "a", "nothex"}, {"x", "a"}} {
		if _, err := k.AppendPrefix(nil, texts(bad...), true); !errors.Is(err, millrace.ErrMalformed) {
			t.Errorf("%q: got %v, want ErrMalformed", bad, err)
		}
	}
	if _, err := k.AppendPrefix(nil, texts("7"), true); err == nil || !strings.Contains(err.Error(), "only a text can be given by its start") {
		t.Errorf("start of a number: got %v", err)
	}
}

func TestKeyOfRow(t *testing.T) {
	s := keySchema(oidInt4, oidText)
	s.Columns = append([]millrace.Column{{Name: "value", Type: oidText, Typmod: -1}}, s.Columns...)
	s.Columns[1].KeyOrdinal, s.Columns[2].KeyOrdinal = 2, 1 // (b, a)
	k := newCodec(t, s)
	if got := k.Columns(); !slices.Equal(got, []int{2, 1}) {
		t.Fatalf("columns: got %v, want [2 1]", got)
	}
	row := []millrace.Datum{{State: millrace.ColumnUnchanged}, {Text: []byte("5")}, {Text: []byte("x")}}
	got, err := k.AppendRowKey(nil, row)
	if err != nil {
		t.Fatal(err)
	}
	if want := encode(t, k, "x", "5"); !bytes.Equal(got, want) {
		t.Errorf("got %x, want %x", got, want)
	}
	row[2] = millrace.Datum{State: millrace.ColumnNull}
	if _, err := k.AppendRowKey(nil, row); err == nil || !strings.Contains(err.Error(), "key column b is null") {
		t.Errorf("null in the key: got %v", err)
	}
	if _, err := k.AppendRowKey(nil, row[:1]); !errors.Is(err, millrace.ErrMalformed) {
		t.Errorf("short row: got %v, want ErrMalformed", err)
	}
}

func TestStoreKey(t *testing.T) {
	for _, n := range []int{0, 1, 472, 473, 10000} {
		key := bytes.Repeat([]byte{0xFF}, n)
		got := millrace.StoreKey([]byte("x"), key)[1:]
		long := n > 472
		if millrace.IsLongKey(got) != long || !long && !bytes.Equal(got, key) || len(got) > 511 {
			t.Errorf("key of %d bytes: store key of %d, long %t", n, len(got), millrace.IsLongKey(got))
		}
		if long && (!bytes.HasPrefix(key, got[:440]) || got[440] != 0xFF || len(got) != 473) {
			t.Errorf("key of %d bytes: store key %x", n, got)
		}
	}
	a := millrace.StoreKey(nil, bytes.Repeat([]byte{1}, 1000))
	if b := millrace.StoreKey(nil, bytes.Repeat([]byte{1}, 1001)); bytes.Equal(a, b) {
		t.Error("two long keys have one store key")
	}
}

func TestKeyPath(t *testing.T) {
	for path, want := range map[string][]string{
		"":              {""},
		"5":             {"5"},
		"7,a%2Cb":       {"7", "a,b"},
		",":             {"", ""},
		"a%20b%2Fc+d":   {"a b/c+d"},
		"caf%C3%A9,%25": {"café", "%"},
	} {
		got, err := millrace.ParseKeyPath(path)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: got %q, %v, want %q", path, got, err, want)
		}
		again, err := millrace.ParseKeyPath(millrace.FormatKeyPath(want))
		if err != nil || !slices.Equal(again, want) {
			t.Errorf("%q: round trip gives %q, %v", want, again, err)
		}
	}
	if _, err := millrace.ParseKeyPath("a%2"); err == nil || !strings.Contains(err.Error(), "%25") {
		t.Errorf("cut-off escape: got %v", err)
	}
	for prefix, want := range map[string]struct {
		values  []string
		partial bool
	}{
		"":        {nil, false},
		"*":       {[]string{""}, true},
		"7":       {[]string{"7"}, false},
		"7,ab*":   {[]string{"7", "ab"}, true},
		"7,ab%2A": {[]string{"7", "ab*"}, false},
		"a**":     {[]string{"a*"}, true},
	} {
		got, partial, err := millrace.ParseKeyPrefix(prefix)
		if err != nil || !slices.Equal(got, want.values) || partial != want.partial {
			t.Errorf("%q: got %q, %t, %v, want %q, %t", prefix, got, partial, err, want.values, want.partial)
		}
	}
}
