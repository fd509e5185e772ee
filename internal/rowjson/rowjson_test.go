package rowjson_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/rowjson"
)

// testTypes are the descriptors that the tests without a server use. A box is
// an element with a delimiter of its own, and knot is built of itself.
var testTypes = []millrace.TypeDesc{
	{OID: 16, Kind: millrace.TypeBase, Schema: "pg_catalog", Name: "bool"},
	{OID: 22, Kind: millrace.TypeBase, Schema: "pg_catalog", Name: "int2vector"},
	{OID: 23, Kind: millrace.TypeBase, Schema: "pg_catalog", Name: "int4"},
	{OID: 25, Kind: millrace.TypeBase, Schema: "pg_catalog", Name: "text"},
	{OID: 114, Kind: millrace.TypeBase, Schema: "pg_catalog", Name: "json"},
	{OID: 603, Kind: millrace.TypeBase, Schema: "pg_catalog", Name: "box", Delim: ';'},
	{OID: 1007, Kind: millrace.TypeArray, Schema: "pg_catalog", Name: "_int4", Elem: 23},
	{OID: 1009, Kind: millrace.TypeArray, Schema: "pg_catalog", Name: "_text", Elem: 25},
	{OID: 1020, Kind: millrace.TypeArray, Schema: "pg_catalog", Name: "_box", Elem: 603, Delim: ';'},
	{OID: 1114, Kind: millrace.TypeBase, Schema: "pg_catalog", Name: "timestamp"},
	{OID: 1184, Kind: millrace.TypeBase, Schema: "pg_catalog", Name: "timestamptz"},
	{OID: 1700, Kind: millrace.TypeBase, Schema: "pg_catalog", Name: "numeric"},
	{OID: 70000, Kind: millrace.TypeComposite, Schema: "public", Name: "pair", Attributes: []millrace.Attribute{{Name: "a", Type: 23}, {Name: "b", Type: 25}}},
	{OID: 70001, Kind: millrace.TypeArray, Schema: "public", Name: "_pair", Elem: 70000},
	{OID: 70002, Kind: millrace.TypeComposite, Schema: "public", Name: "nest", Attributes: []millrace.Attribute{{Name: "ps", Type: 70001}, {Name: "p", Type: 70000}}},
	{OID: 70003, Kind: millrace.TypeDomain, Schema: "public", Name: "ints", Elem: 1007},
	{OID: 70004, Kind: millrace.TypeBase, Schema: "public", Name: "hstore"},
}

func testSchema(types ...uint32) *millrace.Schema {
	s := &millrace.Schema{Version: 1, Table: 1, Namespace: "public", Name: "t", Types: testTypes}
	for i, oid := range types {
		s.Columns = append(s.Columns, millrace.Column{Name: string(rune('a' + i)), Type: oid, Typmod: -1})
	}
	s.Columns[0].KeyOrdinal = 1
	return s
}

func newEncoder(t testing.TB, types ...uint32) *rowjson.Encoder {
	t.Helper()
	e, err := rowjson.New(testSchema(types...))
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func value(text string) millrace.Datum { return millrace.Datum{Text: []byte(text)} }

func TestAppendDatum(t *testing.T) {
	for _, tt := range []struct {
		oid        uint32
		text, want string
	}{
		{16, "t", "true"},
		{23, "-5", "-5"},
		{1700, "1.50", "1.50"},
		{1700, "NaN", `"NaN"`},
		{1700, "-0", "0"},
		{25, "a\"\\\n\x01é", `"a\"\\\n\u0001é"`},
		{114, `{"a": 1}`, `{"a": 1}`},
		{1114, "2024-01-02 03:04:05.6", `"2024-01-02T03:04:05.6"`},
		{1184, "0044-01-02 03:04:05+00 BC", `"0044-01-02T03:04:05+00:00 BC"`},
		{1184, "2024-01-02 03:04:05+05:30", `"2024-01-02T03:04:05+05:30"`},
		{1184, "-infinity", `"-infinity"`},
		{1007, "{}", "[]"},
		{1007, "[2:3]={1,NULL}", "[1,null]"},
		{1007, "{{1,2},{3,4}}", "[[1,2],[3,4]]"},
		{1009, `{a,"b c","NULL",NULL,"\"\\",""}`, `["a","b c","NULL",null,"\"\\",""]`},
		{1020, "{(1,1),(0,0);(3,3),(2,2)}", `["(1,1),(0,0)","(3,3),(2,2)"]`},
		{22, "1 2", "[1,2]"},
		{22, "", "[]"},
		{70000, `(,"")`, `{"a":null,"b":""}`},
		{70000, `(1,"a ""b"" \\ c")`, `{"a":1,"b":"a \"b\" \\ c"}`},
		{70001, `{"(1,\"a \"\"b\"\"\")",NULL}`, `[{"a":1,"b":"a \"b\""},null]`},
		{70002, `("{""(1,\\""x y\\"")"",""(2,)""}","(3,z)")`, `{"ps":[{"a":1,"b":"x y"},{"a":2,"b":null}],"p":{"a":3,"b":"z"}}`},
		{70003, "{1}", "[1]"},
		{70004, "", "{}"},
		{70004, `"a"=>"1", "b \" =>"=>NULL, ""=>"\\"`, `{"a":"1","b \" =>":null,"":"\\"}`},
	} {
		e := newEncoder(t, tt.oid)
		got, err := e.AppendDatum([]byte("x"), 0, value(tt.text))
		if err != nil || string(got) != "x"+tt.want {
			t.Errorf("type %d, %q: got %s, %v, want x%s", tt.oid, tt.text, got, err, tt.want)
		}
	}
}

func TestRefusesTextsThatPostgresDoesNotPrint(t *testing.T) {
	for _, tt := range []struct {
		oid  uint32
		text string
	}{
		{16, "true"},
		{23, ""},
		{23, "1x"},
		{23, "01"},
		{1700, "1."},
		{1700, "+1"},
		{1700, "1e"},
		{1700, "nan"},
		{25, "\xff"},
		{1114, "yesterday"},
		{1114, `2024-01-02 "`},
		{1007, ""},
		{1007, "{1"},
		{1007, "{1,}"},
		{1007, "{1}2"},
		{1007, "[1:2{1}"},
		{1007, "{{{{{{{1}}}}}}}"},
		{1009, `{"a}`},
		{1009, `{"a\`},
		{1009, `{a"b}`},
		{1009, `{"a"b}`},
		{70000, "(1)"},
		{70000, "(1,2,3)"},
		{70000, "1,2"},
		{70000, `(1,"a)`},
		{70000, `(1,"a"b)`},
		{70000, "(1,a"},
		{70004, `"a"`},
		{70004, `"a"=>`},
		{70004, `"a"=>1`},
		{70004, `"a"=>"1`},
		{70004, `"a"=>NULL,`},
		{70004, `"a"=>"1""b"=>"2"`},
	} {
		got, err := newEncoder(t, tt.oid).AppendDatum([]byte("x"), 0, value(tt.text))
		if err == nil || string(got) != "x" {
			t.Errorf("type %d, %q: got %s, %v, want an error and no output", tt.oid, tt.text, got, err)
		}
	}
}

func TestAppendRow(t *testing.T) {
	e := newEncoder(t, 23, 25)
	row := millrace.Row{Version: 1, Columns: []millrace.Datum{value("1"), {State: millrace.ColumnNull}}}
	got, err := e.AppendRow(nil, &row)
	if want := `{"a":1,"b":null}`; err != nil || string(got) != want {
		t.Errorf("got %s, %v, want %s", got, err, want)
	}
	for _, tt := range []struct {
		change func(*millrace.Row)
		want   string
	}{
		{func(r *millrace.Row) { r.Columns[1].State = millrace.ColumnMissing }, "column b is missing"},
		{func(r *millrace.Row) { r.Columns[1].State = millrace.ColumnUnchanged }, "column b is unchanged"},
		{func(r *millrace.Row) { r.Version = 2 }, "version 2"},
		{func(r *millrace.Row) { r.Columns = r.Columns[:1] }, "1 columns"},
	} {
		row := millrace.Row{Version: 1, Columns: []millrace.Datum{value("1"), value("x")}}
		tt.change(&row)
		if got, err := e.AppendRow([]byte("x"), &row); err == nil || !strings.Contains(err.Error(), tt.want) || string(got) != "x" {
			t.Errorf("got %s, %v, want %q in the error", got, err, tt.want)
		}
	}
}

// A row that was written before columns were added, dropped and moved.
func TestNewAs(t *testing.T) {
	row, as := testSchema(23, 25, 16), testSchema(23, 25, 23)
	as.Version = 2
	as.Columns[1].Name, as.Columns[2].Name = "new", "b"
	e, err := rowjson.NewAs(row, as)
	if err != nil {
		t.Fatal(err)
	}
	got, err := e.AppendRow(nil, &millrace.Row{Version: 1, Columns: []millrace.Datum{value("1"), value("x"), value("t")}})
	if want := `{"a":1,"new":null,"b":"x"}`; err != nil || string(got) != want {
		t.Errorf("got %s, %v, want %s", got, err, want)
	}
}

// A column is itself under another name, and another one under its name.
func TestNewAsGoesByNumber(t *testing.T) {
	row, as := testSchema(23, 25, 16), testSchema(23, 16, 25)
	as.Version = 2
	for i, n := range []uint32{1, 2, 3} {
		row.Columns[i].Number = n
	}
	for i, n := range []uint32{1, 3, 4} {
		as.Columns[i].Number = n
	}
	e, err := rowjson.NewAs(row, as)
	if err != nil {
		t.Fatal(err)
	}
	got, err := e.AppendRow(nil, &millrace.Row{Version: 1, Columns: []millrace.Datum{value("1"), value("x"), value("t")}})
	if want := `{"a":1,"b":true,"c":null}`; err != nil || string(got) != want {
		t.Errorf("got %s, %v, want %s", got, err, want)
	}
}

func TestRefusesTypesBuiltOfThemselves(t *testing.T) {
	s := testSchema(70000)
	s.Types = []millrace.TypeDesc{{OID: 70000, Kind: millrace.TypeDomain, Name: "knot", Elem: 70000}}
	if _, err := rowjson.New(s); err == nil || !strings.Contains(err.Error(), "built of itself") {
		t.Errorf("got %v", err)
	}
	s.Types[0].Elem = 70001
	if _, err := rowjson.New(s); err == nil || !strings.Contains(err.Error(), "no descriptor") {
		t.Errorf("got %v", err)
	}
}

// FuzzAppendDatum: whatever the text, the result is JSON or an error.
func FuzzAppendDatum(f *testing.F) {
	oids := []uint32{16, 22, 23, 25, 1007, 1009, 1020, 1114, 1184, 1700, 70000, 70001, 70002, 70003, 70004}
	for i := range oids {
		for _, text := range []string{"t", "1 2", "-1.5e+10", `a"\b`, "[2:3]={1,NULL}", `{"a\"b",c}`, "{{1},{2}}", `("{""(1,\\""x y\\"")"",""(2,)""}","(3,z)")`, "2024-01-02 03:04:05+00 BC"} {
			f.Add(byte(i), []byte(text))
		}
	}
	e := newEncoder(f, oids...)
	f.Fuzz(func(t *testing.T, column byte, text []byte) {
		i := int(column) % len(oids)
		got, err := e.AppendDatum(nil, i, millrace.Datum{Text: text})
		if err != nil {
			return
		}
		if !json.Valid(got) {
			t.Fatalf("type %d, text %q: %s is not JSON", oids[i], text, got)
		}
	})
}

func BenchmarkAppendRow(b *testing.B) {
	for _, bb := range []struct {
		name    string
		types   []uint32
		columns []string
	}{
		{"pgbench", []uint32{23, 23, 23, 25}, []string{"123456", "2", "-4711", strings.Repeat(" ", 84)}},
		{"nested", []uint32{23, 1009, 70002}, []string{"1", `{a,"b c",NULL}`, `("{""(1,\\""x y\\"")"",""(2,)""}","(3,z)")`}},
	} {
		b.Run(bb.name, func(b *testing.B) {
			e := newEncoder(b, bb.types...)
			row := millrace.Row{Version: 1}
			for _, c := range bb.columns {
				row.Columns = append(row.Columns, value(c))
			}
			dst := make([]byte, 0, 4096)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := e.AppendRow(dst, &row); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func TestAppendRowDoesNotAllocate(t *testing.T) {
	e := newEncoder(t, 23, 70001, 1184)
	row := millrace.Row{Version: 1, Columns: []millrace.Datum{value("1"), value(`{"(1,\"a b\")"}`), value("2024-01-02 03:04:05+00")}}
	dst := bytes.Repeat([]byte{0}, 4096)
	// Less than one, because the collector may empty the pool in between.
	if got := testing.AllocsPerRun(1000, func() {
		if _, err := e.AppendRow(dst[:0], &row); err != nil {
			t.Fatal(err)
		}
	}); got >= 1 {
		t.Errorf("%v allocations a row, want none", got)
	}
}
