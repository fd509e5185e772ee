package table

import (
	"strings"
	"testing"

	"github.com/millrace-db/millrace"
)

func TestCompare(t *testing.T) {
	base := func() *millrace.Schema {
		return &millrace.Schema{
			Version: 1, Table: 1, Namespace: "public", Name: "t",
			Columns: []millrace.Column{
				{Name: "id", Type: 23, Typmod: -1, NotNull: true, KeyOrdinal: 1},
				{Name: "v", Type: varcharOID, Typmod: 14},
				{Name: "m", Type: 5000, Typmod: -1},
			},
			Types: []millrace.TypeDesc{
				{OID: 23, Kind: millrace.TypeBase, Schema: "pg_catalog", Name: "int4"},
				{OID: 25, Kind: millrace.TypeBase, Schema: "pg_catalog", Name: "text"},
				{OID: varcharOID, Kind: millrace.TypeBase, Schema: "pg_catalog", Name: "varchar"},
				{OID: 5000, Kind: millrace.TypeEnum, Schema: "public", Name: "mood", Labels: []string{"a", "b"}},
			},
		}
	}
	numbered := func() *millrace.Schema {
		s := base()
		for i := range s.Columns {
			s.Columns[i].Number = uint32(i + 1)
		}
		return s
	}
	add := func(c millrace.Column) func(*millrace.Schema) {
		return func(s *millrace.Schema) { s.Columns = append(s.Columns, c) }
	}
	for name, c := range map[string]struct {
		change    func(*millrace.Schema)
		rows, key string // parts of the answer
	}{
		"nothing":             {func(*millrace.Schema) {}, "", ""},
		"other name":          {func(s *millrace.Schema) { s.Name = "u" }, "", ""},
		"nullable column":     {add(millrace.Column{Name: "w", Type: 25, Number: 4}), "", ""},
		"not null column":     {add(millrace.Column{Name: "w", Type: 25, Number: 4, NotNull: true}), "came with a value", ""},
		"column with default": {add(millrace.Column{Name: "filled", Type: 25, Number: 4}), "came with a value", ""},
		"key column":          {add(millrace.Column{Name: "w", Type: 25, Number: 4, KeyOrdinal: 2}), "", "new in its key"},
		"dropped":             {func(s *millrace.Schema) { s.Columns = s.Columns[:2] }, "m was dropped", ""},
		"key column dropped":  {func(s *millrace.Schema) { s.Columns = s.Columns[1:]; s.Columns[0].KeyOrdinal = 1 }, "", "id of its key is gone"},
		"renamed":             {func(s *millrace.Schema) { s.Columns[1].Name = "w" }, "v was renamed to w", ""},
		"key renamed":         {func(s *millrace.Schema) { s.Columns[0].Name = "w" }, "id was renamed to w", ""},
		"dropped and added":   {func(s *millrace.Schema) { s.Columns[1].Name, s.Columns[1].Number = "w", 9 }, "v was dropped, or became w", ""},
		"made again":          {func(s *millrace.Schema) { s.Columns[1].Number = 9 }, "dropped and made again", ""},
		"order":               {func(s *millrace.Schema) { s.Columns[1], s.Columns[2] = s.Columns[2], s.Columns[1] }, "", ""},
		"wider":               {func(s *millrace.Schema) { s.Columns[1].Typmod = 24 }, "", ""},
		"narrower":            {func(s *millrace.Schema) { s.Columns[1].Typmod = 10 }, "v has another type", ""},
		"text":                {func(s *millrace.Schema) { s.Columns[1].Type, s.Columns[1].Typmod = textOID, -1 }, "", ""},
		"other type":          {func(s *millrace.Schema) { s.Columns[1].Type = 23 }, "v has another type", ""},
		"other type of key":   {func(s *millrace.Schema) { s.Columns[0].Type = 20 }, "", "another type"},
		"collation of key":    {func(s *millrace.Schema) { s.Columns[0].Collation = "C" }, "another collation", ""},
		"other collation":     {func(s *millrace.Schema) { s.Columns[1].Collation = "C" }, "", ""},
		"label added":         {func(s *millrace.Schema) { s.Types[3].Labels = []string{"a", "x", "b"} }, "", ""},
		"label renamed":       {func(s *millrace.Schema) { s.Types[3].Labels = []string{"a", "c"} }, "enum mood was renamed", ""},
		"type renamed":        {func(s *millrace.Schema) { s.Types[3].Name = "x" }, "", ""},
		"type altered":        {func(s *millrace.Schema) { s.Types[3].Kind = millrace.TypeDomain }, "was altered", ""},
		"key order":           {func(s *millrace.Schema) { s.Columns[0].KeyOrdinal = 2; s.Columns[1].KeyOrdinal = 1 }, "", "number 1 of its key and is number 2"},
	} {
		after := numbered()
		c.change(after)
		got := Compare(numbered(), after, func(c *millrace.Column) bool { return c.Name == "filled" })
		if (got.Rows == "") != (c.rows == "") || !strings.Contains(got.Rows, c.rows) || (got.Key == "") != (c.key == "") || !strings.Contains(got.Key, c.key) {
			t.Errorf("%s: got %+v, want rows %q, key %q", name, got, c.rows, c.key)
		}
	}
	// A label that is part of keys.
	of := func(labels ...string) *millrace.Schema {
		s := numbered()
		s.Columns[2].KeyOrdinal, s.Types[3].Labels = 2, labels
		return s
	}
	if got := Compare(of("a", "b"), of("a", "c"), nil); !strings.Contains(got.Key, "label") {
		t.Errorf("label of a key column renamed: %+v", got)
	}
	// Columns whose numbers are not known go by name.
	renamed := base()
	renamed.Columns[1].Name = "w"
	if got := Compare(base(), renamed, func(*millrace.Column) bool { return false }); !strings.Contains(got.Rows, "became w") {
		t.Errorf("renamed without numbers: %+v", got)
	}
	after := base()
	add(millrace.Column{Name: "w", Type: 25})(after)
	if Compare(base(), after, nil).Rows == "" {
		t.Error("a column of which nothing is known is taken")
	}
}
