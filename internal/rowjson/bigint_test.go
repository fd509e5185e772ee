package rowjson_test

import (
	"testing"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/rowjson"
)

// bigint is a string wherever it stands, and other numbers are not.
func TestBigIntText(t *testing.T) {
	s := &millrace.Schema{
		Version: 1, Table: 1, Namespace: "public", Name: "t",
		Types: []millrace.TypeDesc{
			{OID: 20, Kind: millrace.TypeBase, Schema: "pg_catalog", Name: "int8"},
			{OID: 23, Kind: millrace.TypeBase, Schema: "pg_catalog", Name: "int4"},
			{OID: 1016, Kind: millrace.TypeArray, Schema: "pg_catalog", Name: "_int8", Elem: 20},
			{OID: 1700, Kind: millrace.TypeBase, Schema: "pg_catalog", Name: "numeric"},
			{OID: 70000, Kind: millrace.TypeDomain, Schema: "public", Name: "big", Elem: 20},
			{OID: 70001, Kind: millrace.TypeComposite, Schema: "public", Name: "pair", Attributes: []millrace.Attribute{{Name: "x", Type: 70000}, {Name: "y", Type: 23}}},
		},
		Columns: []millrace.Column{
			{Name: "a", Type: 20, KeyOrdinal: 1},
			{Name: "b", Type: 23},
			{Name: "c", Type: 1016},
			{Name: "d", Type: 1700},
			{Name: "e", Type: 70001},
			{Name: "f", Type: 20},
		},
	}
	row := &millrace.Row{Version: 1, Columns: []millrace.Datum{
		value("9007199254740993"), value("7"), value("{1,NULL,-9223372036854775808}"), value("9007199254740993"), value("(3,4)"), {State: millrace.ColumnNull},
	}}
	for _, tt := range []struct {
		name string
		make func(row, as *millrace.Schema) (*rowjson.Encoder, error)
		want string
	}{
		{"numbers", rowjson.NewAs, `{"a":9007199254740993,"b":7,"c":[1,null,-9223372036854775808],"d":9007199254740993,"e":{"x":3,"y":4},"f":null}`},
		{"texts", rowjson.NewBigIntText, `{"a":"9007199254740993","b":7,"c":["1",null,"-9223372036854775808"],"d":9007199254740993,"e":{"x":"3","y":4},"f":null}`},
	} {
		e, err := tt.make(s, s)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := e.AppendRow(nil, row); err != nil || string(got) != tt.want {
			t.Errorf("%s: got %s, %v, want %s", tt.name, got, err, tt.want)
		}
	}
}
