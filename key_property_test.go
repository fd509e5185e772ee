package millrace_test

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"math"
	"math/big"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// keyValue is a value of a key column, with a comparison that does not go by
// the encoding.
type keyValue struct {
	text    string
	compare func(other keyValue) int
	value   any
}

func ordered[T cmp.Ordered](v T, text string) keyValue {
	return keyValue{text: text, value: v, compare: func(o keyValue) int { return cmp.Compare(v, o.value.(T)) }}
}

// keyGenerators make values of each type. Small domains are mixed in, so that
// equal values and equal leading columns occur.
var keyGenerators = map[uint32]*rapid.Generator[keyValue]{
	oidInt2: rapid.Map(rapid.Int16(), func(n int16) keyValue { return ordered(n, strconv.Itoa(int(n))) }),
	oidInt4: rapid.Map(rapid.Int32(), func(n int32) keyValue { return ordered(n, strconv.Itoa(int(n))) }),
	oidInt8: rapid.Map(rapid.Int64(), func(n int64) keyValue { return ordered(n, strconv.FormatInt(n, 10)) }),
	oidOID:  rapid.Map(rapid.Uint32(), func(n uint32) keyValue { return ordered(n, strconv.FormatUint(uint64(n), 10)) }),
	oidText: rapid.Map(rapid.OneOf(rapid.String(), rapid.StringMatching(`[ab\x01]{0,3}`)), func(s string) keyValue {
		return ordered(s, s)
	}),
	oidBpchar: rapid.Map(rapid.StringMatching(`[ab ]{0,4}`), func(s string) keyValue {
		return ordered(strings.TrimRight(s, " "), s)
	}),
	oidBytea: rapid.Map(rapid.SliceOf(rapid.SampledFrom([]byte{0, 1, 2, 0xFE, 0xFF})), func(b []byte) keyValue {
		return ordered(string(b), fmt.Sprintf(`\x%x`, b))
	}),
	oidFloat8: rapid.Map(rapid.OneOf(rapid.Float64(), rapid.SampledFrom([]float64{0, math.Copysign(0, -1), math.NaN(), math.Inf(1), math.Inf(-1)})), func(f float64) keyValue {
		v := ordered(f, strings.TrimPrefix(strings.Replace(strconv.FormatFloat(f, 'g', -1, 64), "Inf", "Infinity", 1), "+"))
		compare := v.compare
		v.compare = func(o keyValue) int { // NaN is the greatest, not the least
			switch g := o.value.(float64); {
			case math.IsNaN(f) && math.IsNaN(g):
				return 0
			case math.IsNaN(f):
				return 1
			case math.IsNaN(g):
				return -1
			}
			return compare(o)
		}
		return v
	}),
	oidNumeric: rapid.Map(rapid.OneOf(rapid.StringMatching(`-?[0-9]{1,30}(\.[0-9]{1,30})?`), rapid.StringMatching(`-?[019]{1,3}(\.[019]{1,3})?`)), func(s string) keyValue {
		r, ok := new(big.Rat).SetString(s)
		if !ok {
			panic("not a number: " + s)
		}
		return keyValue{text: s, value: r, compare: func(o keyValue) int { return r.Cmp(o.value.(*big.Rat)) }}
	}),
	oidTimestamp: rapid.Map(rapid.Int64Range(-62135596800_000000, 253402300799_999999), func(us int64) keyValue {
		return ordered(us, time.UnixMicro(us).UTC().Format("2006-01-02 15:04:05.999999"))
	}),
	oidTimestamptz: rapid.Map(rapid.Int64Range(-62135596800_000000, 253402300799_999999), func(us int64) keyValue {
		return ordered(us, time.UnixMicro(us).UTC().Format("2006-01-02 15:04:05.999999-07"))
	}),
	oidDate: rapid.Map(rapid.Int64Range(-719162, 2932896), func(days int64) keyValue {
		return ordered(days, time.Unix(days*86400, 0).UTC().Format("2006-01-02"))
	}),
	oidUUID: rapid.Map(rapid.SliceOfN(rapid.Byte(), 16, 16), func(b []byte) keyValue {
		return ordered(string(b), fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:]))
	}),
	oidBool: rapid.Map(rapid.Bool(), func(b bool) keyValue {
		n := map[bool]int{true: 1}[b]
		return ordered(n, "ft"[n:n+1])
	}),
}

// TestKeyTuples holds the order, the equality and the self-delimiting of whole
// keys against a comparison of their values.
func TestKeyTuples(t *testing.T) {
	types := make([]uint32, 0, len(keyGenerators))
	for oid := range keyGenerators {
		types = append(types, oid)
	}
	slices.Sort(types)
	rapid.Check(t, func(t *rapid.T) {
		schema := rapid.SliceOfN(rapid.SampledFrom(types), 1, 4).Draw(t, "types")
		k, err := millrace.NewKeyCodec(keySchema(schema...))
		if err != nil {
			t.Fatal(err)
		}
		a, b := make([]keyValue, len(schema)), make([]keyValue, len(schema))
		var aTexts, bTexts []string
		want := 0
		for i, oid := range schema {
			a[i] = keyGenerators[oid].Draw(t, "a")
			b[i] = a[i]
			if rapid.Bool().Draw(t, "differs") {
				b[i] = keyGenerators[oid].Draw(t, "b")
			}
			aTexts, bTexts = append(aTexts, a[i].text), append(bTexts, b[i].text)
			if want == 0 {
				want = a[i].compare(b[i])
			}
		}
		keyA, err := k.Append(nil, texts(aTexts...))
		if err != nil {
			t.Fatal(err)
		}
		keyB, err := k.Append(nil, texts(bTexts...))
		if err != nil {
			t.Fatal(err)
		}
		if got := bytes.Compare(keyA, keyB); got != want {
			t.Fatalf("%q and %q: keys %x and %x compare %d, want %d", aTexts, bTexts, keyA, keyB, got, want)
		}
		if want != 0 && (bytes.HasPrefix(keyA, keyB) || bytes.HasPrefix(keyB, keyA)) {
			t.Fatalf("%q and %q: one of the keys %x and %x is the start of the other", aTexts, bTexts, keyA, keyB)
		}
		decoded, err := k.Decode(keyA, nil)
		if err != nil {
			t.Fatal(err)
		}
		again, err := k.Append(nil, decoded)
		if err != nil || !bytes.Equal(again, keyA) {
			t.Fatalf("%q decodes to %q, which encodes to %x, %v, want %x", aTexts, decoded, again, err, keyA)
		}
		n := rapid.IntRange(0, len(schema)).Draw(t, "leading columns")
		prefix, err := k.AppendPrefix(nil, texts(bTexts[:n]...), false)
		if err != nil {
			t.Fatal(err)
		}
		leading := true
		for i := range n {
			leading = leading && a[i].compare(b[i]) == 0
		}
		if got := bytes.HasPrefix(keyA, prefix); got != leading {
			t.Fatalf("%q: begins with prefix %x of %q: %t, want %t", aTexts, prefix, bTexts[:n], got, leading)
		}
	})
}

// TestKeyAgreesWithPostgres has Postgres sort and compare values of every type:
// the keys must come out in the same order, and be equal exactly where Postgres
// says so, and decode to what Postgres prints.
func TestKeyAgreesWithPostgres(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	random := func(n int, f func() string) []string {
		values := make([]string, n)
		for i := range values {
			values[i] = f()
		}
		return values
	}
	pick := func(alphabet string, most int) string {
		runes := []rune(alphabet)
		s := make([]rune, r.IntN(most+1))
		for i := range s {
			s[i] = runes[r.IntN(len(runes))]
		}
		return string(s)
	}
	timestamp := func() string {
		us := r.Int64N(endOfTimestamps-startOfTimestamps) + startOfTimestamps
		if r.IntN(2) == 0 {
			us = r.Int64N(4e15) - 2e15
		}
		return fmt.Sprintf("$%d", us)
	}
	hex := func(n int) string {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return fmt.Sprintf("%x", b)
	}
	const n = 300
	tests := []struct {
		oid    uint32
		typ    string
		input  string // expression over the text v
		sort   string // expression over the value v
		print  string // expression that prints the form of Decode
		values []string
	}{
		{oidInt2, "int2", "", "v", "", random(n, func() string { return strconv.Itoa(int(int16(r.Uint32()))) })},
		{oidInt4, "int4", "", "v", "", random(n, func() string { return strconv.Itoa(int(int32(r.Uint32()))) })},
		{oidInt8, "int8", "", "v", "", random(n, func() string { return strconv.FormatInt(int64(r.Uint64()), 10) })},
		{oidOID, "oid", "", "v", "", random(n, func() string { return strconv.FormatUint(uint64(r.Uint32()), 10) })},
		{oidBool, "bool", "", "v", "", []string{"t", "f", "t"}},
		{oidChar, `"char"`, "", "v", "", random(20, func() string { return string(rune(1 + r.IntN(126))) })},
		{oidName, "name", "", "v", "", random(n, func() string { return pick("abß ", 5) })},
		{oidText, "text", "", `v collate "C"`, "", random(n, func() string { return pick("aAbB \x01é日𝄞", 5) })},
		{oidVarchar, "varchar(9)", "", `v collate "C"`, "", random(n, func() string { return pick("aAbB é日", 5) })},
		{oidBpchar, "char(6)", "", `v collate "C"`, `rtrim(v::text, ' ')`, random(n, func() string { return pick("ab é", 6) })},
		{oidBytea, "bytea", "", "v", "", append(random(n, func() string { return `\x` + hex(r.IntN(4)) }), `\x`, `\x00`, `\x0001`)},
		{oidUUID, "uuid", "", "v", "", random(n, func() string { return hex(16) })},
		{oidDate, "date", "date '2000-01-01' + v::int", "v", "", random(n, func() string { return strconv.Itoa(r.IntN(4451545) - 2451545) })},
		{oidDate, "date", "", "v", "", []string{"infinity", "-infinity", "4714-11-24 BC", "5874897-12-31", "0001-01-01", "0001-12-31 BC"}},
		{oidTime, "time", "time '00:00' + v::interval", "v", "", random(n, func() string { return fmt.Sprintf("%d us", r.Int64N(86400e6)) })},
		{oidTime, "time", "", "v", "", []string{"24:00", "00:00", "23:59:59.999999"}},
		{oidTimestamp, "timestamp", timestampFrom("timestamp '2000-01-01'"), "v", "", random(n, timestamp)},
		{oidTimestamp, "timestamp", "", "v", "", []string{"infinity", "-infinity", "4714-11-24 BC", "294276-12-31 23:59:59.999999"}},
		{oidTimestamptz, "timestamptz", timestampFrom("timestamptz '2000-01-01 00:00+00'"), "v", "", random(n, timestamp)},
		{oidTimestamptz, "timestamptz", "", "v", "", []string{"infinity", "-infinity", "4714-11-24 00:00:00+00 BC"}},
		{oidNumeric, "numeric", "", "v", "trim_scale(v)::text", append(random(2*n, func() string {
			switch r.IntN(3) {
			case 0:
				return strconv.Itoa(r.IntN(2000)-1000) + "." + pick("0019", 4)
			case 1:
				return fmt.Sprintf("%de%d", r.IntN(200)-100, r.IntN(60)-30)
			}
			return strconv.FormatFloat(math.Float64frombits(r.Uint64()&^(0x7FF<<52)|uint64(1023-200+r.IntN(400))<<52), 'g', -1, 64)
		}), "NaN", "Infinity", "-Infinity", "0", "-0.00", "1.0", "1.00", "1e131071", "1e-16383", "-1e131071")},
		{oidFloat4, "float4", "", "v", `case when v = 0 then '0' else v::text end`, append(random(n, func() string {
			return finite(float64(math.Float32frombits(r.Uint32())), 32)
		}), "NaN", "Infinity", "-Infinity", "0", "-0", "1e6", "999999", "1234567", "0.0001", "0.00001", "1e5")},
		{oidFloat8, "float8", "", "v", `case when v = 0 then '0' else v::text end`, append(random(n, func() string {
			return finite(math.Float64frombits(r.Uint64()), 64)
		}), "NaN", "Infinity", "-Infinity", "0", "-0", "1e15", "999999999999999", "1234567890123456", "0.0001", "0.00001", "1e14", "1e22")},
		{oidInet, "inet", "", `textin(inet_out(v)) collate "C"`, "", append(random(n, func() string {
			if r.IntN(2) == 0 {
				return fmt.Sprintf("10.%d.0.%d/%d", r.IntN(256), r.IntN(256), r.IntN(33))
			}
			words := make([]string, 8)
			for i := range words {
				words[i] = []string{"0", "0", "1", "ab", "ffff", "1200"}[r.IntN(6)]
			}
			return strings.Join(words, ":") + fmt.Sprintf("/%d", r.IntN(129))
		}), "::", "::1", "::1.2.3.4", "::ffff:1.2.3.4", "::ffff:0.0.0.1", "0:0:0:0:0:0:1:0", "0:0:0:0:0:1:0:0", "1::", "1:0:0:2:0:0:3:4", "1:0:2:3:4:5:6:7")},
		{oidCIDR, "cidr", "", `textin(cidr_out(v)) collate "C"`, "", []string{"10/8", "192.168.1", "::/0", "2001:db8::/32", "::ffff:1.2.3.4/128", "::1.2.0.0/112", "0/0", "10.0.0.1"}},
		{oidMacaddr, "macaddr", "", "v", "", random(n, func() string { return hex(6) })},
		{oidMacaddr8, "macaddr8", "", "v", "", random(n, func() string { return hex(8) })},
		{oidBit, "bit(5)", "lpad(v, 5, '0')", "v", "", random(n, func() string { return pick("01", 5) })},
		{oidVarbit, "varbit", "", "v", "", random(n, func() string { return pick("01", 9) })},
	}
	db := pgtest.New(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for _, tt := range tests {
		if tt.input == "" {
			tt.input = "v"
		}
		if tt.print == "" {
			tt.print = "v" // as the type's output function prints it: not v::text, which says true for a bool
		}
		// Written out, because a parameter would have to be of one type.
		sql := fmt.Sprintf(`with given as (select (%s)::%s as v from unnest($1::text[]) v)
			select v as printed, %s as canonical, coalesce(v = lag(v) over (order by %s), false) from given order by %s`, tt.input, tt.typ, tt.print, tt.sort, tt.sort)
		k := newCodec(t, keySchema(tt.oid))
		conn, err := pgx.Connect(ctx, db.URL)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Exec(ctx, "set timezone = 'UTC'; set datestyle = 'ISO'; set bytea_output = 'hex'; set extra_float_digits = 1"); err != nil {
			t.Fatal(err)
		}
		rows, err := conn.Query(ctx, sql, pgx.QueryResultFormats{pgx.TextFormatCode}, tt.values)
		if err != nil {
			t.Fatalf("%s: %v", tt.typ, err)
		}
		var before []byte
		count := 0
		for rows.Next() {
			raw := rows.RawValues()
			text, canonical, equal := string(raw[0]), string(raw[1]), string(raw[2]) == "t"
			key := encode(t, k, text)
			switch c := bytes.Compare(before, key); {
			case count > 0 && equal != (c == 0):
				t.Errorf("%s: key %x of %q and the one before, %x: Postgres says equal %t", tt.typ, key, text, before, equal)
			case c > 0:
				t.Errorf("%s: key %x of %q comes before %x, unlike in Postgres", tt.typ, key, text, before)
			}
			decoded, err := k.Decode(key, nil)
			if err != nil {
				t.Fatalf("%s: decode %x of %q: %v", tt.typ, key, text, err)
			}
			if string(decoded[0]) != canonical {
				t.Errorf("%s: key of %.80q decodes to %.80q, want %.80q", tt.typ, text, decoded[0], canonical)
			}
			before = key
			count++
		}
		rows.Close()
		if err := rows.Err(); err != nil {
			t.Fatalf("%s: %v", tt.typ, err)
		}
		if count != len(tt.values) {
			t.Errorf("%s: compared %d values, want %d", tt.typ, count, len(tt.values))
		}
		if err := conn.Close(ctx); err != nil {
			t.Error(err)
		}
	}
}

const (
	startOfTimestamps = -211813488000000000
	endOfTimestamps   = 9223371331200000000 - 211813488000000000
)

// timestampFrom adds microseconds in two steps, because one interval of 64 bits
// goes through a float.
func timestampFrom(epoch string) string {
	return epoch + ` + make_interval(days => (substr(v, 2)::int8 / 86400000000)::int) + (substr(v, 2)::int8 % 86400000000) * interval '1 us'`
}

func finite(f float64, bits int) string {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		f = 1
	}
	return strconv.FormatFloat(f, 'g', -1, bits)
}

// fuzzKeySchemas are the keys that FuzzKeyDecode tries.
var fuzzKeySchemas = [][]uint32{
	{oidInt2, oidInt4, oidInt8, oidOID},
	{oidBool, oidChar, oidUUID},
	{oidDate, oidTime},
	{oidTimestamp},
	{oidTimestamptz},
	{oidNumeric, oidNumeric},
	{oidFloat4, oidFloat8},
	{oidText, oidBpchar, oidBytea},
	{oidInet},
	{oidCIDR},
	{oidMacaddr, oidMacaddr8},
	{oidVarbit},
}

// FuzzKeyDecode: what Decode accepts is exactly what Append writes.
func FuzzKeyDecode(f *testing.F) {
	var codecs []*millrace.KeyCodec
	for i, types := range fuzzKeySchemas {
		k := newCodec(f, keySchema(types...))
		codecs = append(codecs, k)
		for at := range 12 {
			values := make([]string, len(types))
			for j, oid := range types {
				all := keyOrders[oid]
				values[j] = all[at%len(all)]
			}
			f.Add(byte(i), encode(f, k, values...))
		}
	}
	f.Fuzz(func(t *testing.T, schema byte, key []byte) {
		k := codecs[int(schema)%len(codecs)]
		values, err := k.Decode(key, nil)
		if err != nil {
			return
		}
		again, err := k.Append(nil, values)
		if err != nil {
			t.Fatalf("%x decodes to %q, which does not encode: %v", key, values, err)
		}
		if !bytes.Equal(again, key) {
			t.Fatalf("%x decodes to %q, which encodes to %x", key, values, again)
		}
	})
}

func BenchmarkKeyAppend(b *testing.B) {
	for _, bb := range []struct {
		name   string
		types  []uint32
		values []string
	}{
		{"int4", []uint32{oidInt4}, []string{"1234567"}},
		{"int8-text", []uint32{oidInt8, oidText}, []string{"1234567890123", "www.example.com"}},
		{"uuid", []uint32{oidUUID}, []string{"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"}},
		{"timestamptz", []uint32{oidTimestamptz}, []string{"2024-02-29 10:00:00.123456+00"}},
		{"numeric", []uint32{oidNumeric}, []string{"12345.6700"}},
		{"float8", []uint32{oidFloat8}, []string{"0.1"}},
	} {
		b.Run(bb.name, func(b *testing.B) {
			k := newCodec(b, keySchema(bb.types...))
			values := texts(bb.values...)
			dst := make([]byte, 0, 64)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := k.Append(dst, values); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkKeyDecode(b *testing.B) {
	k := newCodec(b, keySchema(oidInt8, oidText))
	key := encode(b, k, "1234567890123", "www.example.com")
	var dst [][]byte
	b.ReportAllocs()
	for b.Loop() {
		var err error
		if dst, err = k.Decode(key, dst); err != nil {
			b.Fatal(err)
		}
	}
}

// TestKeyAppendDoesNotAllocate: it runs for every change.
func TestKeyAppendDoesNotAllocate(t *testing.T) {
	for _, types := range [][]uint32{{oidInt2, oidInt4, oidInt8}, {oidText, oidBpchar}, {oidUUID, oidTimestamptz, oidNumeric, oidFloat8}} {
		k := newCodec(t, keySchema(types...))
		values := make([][]byte, len(types))
		for i, oid := range types {
			values[i] = []byte(keyOrders[oid][3%len(keyOrders[oid])])
		}
		dst := make([]byte, 0, 256<<10)
		if got := testing.AllocsPerRun(100, func() {
			if _, err := k.Append(dst, values); err != nil {
				t.Fatal(err)
			}
		}); got != 0 {
			t.Errorf("types %v: %v allocations a key, want 0", types, got)
		}
	}
}
