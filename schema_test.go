package millrace

import (
	"errors"
	"strings"
	"testing"
)

func sampleSchema() *Schema {
	return &Schema{
		Version: 1, Table: 16385, Namespace: "public", Name: "accounts",
		Columns: []Column{
			{Name: "branch", Type: 23, Typmod: -1, NotNull: true, KeyOrdinal: 2},
			{Name: "id", Type: 20, Typmod: -1, NotNull: true, KeyOrdinal: 1},
			{Name: "tags", Type: 1009, Typmod: -1, Collation: "default"},
		},
		Types: []TypeDesc{
			{OID: 20, Kind: TypeBase, Schema: "pg_catalog", Name: "int8"},
			{OID: 23, Kind: TypeBase, Schema: "pg_catalog", Name: "int4"},
			{OID: 25, Kind: TypeBase, Schema: "pg_catalog", Name: "text"},
			{OID: 1009, Kind: TypeArray, Schema: "pg_catalog", Name: "_text", Elem: 25},
		},
	}
}

func TestSchemaRefuses(t *testing.T) {
	tests := []struct {
		name  string
		alter func(*Schema)
		want  string
	}{
		{"no version", func(s *Schema) { s.Version = 0 }, "must be set"},
		{"no table", func(s *Schema) { s.Table = 0 }, "must be set"},
		{"no name", func(s *Schema) { s.Name = "" }, "must be set"},
		{"name that is no text", func(s *Schema) { s.Name = "\xff" }, "not UTF-8"},
		{"column without name", func(s *Schema) { s.Columns[0].Name = "" }, "empty or not unique"},
		{"column name twice", func(s *Schema) { s.Columns[0].Name = "id" }, "empty or not unique"},
		{"column name that is no text", func(s *Schema) { s.Columns[0].Name = "\xff" }, "not UTF-8"},
		{"column without descriptor", func(s *Schema) { s.Columns[0].Type = 99 }, "type 99 has no descriptor"},
		{"no key", func(s *Schema) { s.Columns[0].KeyOrdinal, s.Columns[1].KeyOrdinal = 0, 0 }, "no key"},
		{"hole in the key", func(s *Schema) { s.Columns[0].KeyOrdinal = 3 }, "not 1 to 2"},
		{"key place twice", func(s *Schema) { s.Columns[0].KeyOrdinal = 1 }, "not 1 to 2"},
		{"key place beyond 31 bits", func(s *Schema) { s.Columns[0].KeyOrdinal = 1<<32 - 1 }, "not 1 to 2"},
		{"many columns", func(s *Schema) { s.Columns = make([]Column, MaxColumns+1) }, "the limit is 1664"},
		{"types out of order", func(s *Schema) { s.Types[0].OID = 24 }, "no descriptor"},
		{"type twice", func(s *Schema) { s.Types[2].OID = 23 }, "ascending order"},
		{"type without OID", func(s *Schema) { s.Types = append([]TypeDesc{{Kind: TypeBase}}, s.Types...) }, "ascending order"},
		{"type without kind", func(s *Schema) { s.Types[2].Kind = 0 }, "unknown kind 0"},
		{"later kind of type", func(s *Schema) { s.Types[2].Kind = 8 }, "unknown kind 8"},
		{"array of nothing", func(s *Schema) { s.Types[3].Elem = 0 }, "no element type"},
		{"array of an unknown type", func(s *Schema) { s.Types[3].Elem = 26 }, "element type 26"},
		{"attribute of an unknown type", func(s *Schema) {
			s.Types[3] = TypeDesc{OID: 1009, Kind: TypeComposite, Attributes: []Attribute{{Name: "a", Type: 26}}}
		}, "attribute type 26"},
		{"label that is no text", func(s *Schema) { s.Types[3] = TypeDesc{OID: 1009, Kind: TypeEnum, Labels: []string{"\xff"}} }, "not UTF-8"},
		{"array of itself", func(s *Schema) { s.Types[3].Elem = 1009 }, "built of itself"},
		{"domain over an array of it", func(s *Schema) {
			s.Types[2] = TypeDesc{OID: 25, Kind: TypeDomain, Elem: 1009}
		}, "built of itself"},
		{"composite with an array of it", func(s *Schema) {
			s.Types[2] = TypeDesc{OID: 25, Kind: TypeComposite, Attributes: []Attribute{{"a", 20}, {"b", 1009}, {"c", 1009}}}
		}, "built of itself"},
		{"nested too deep", func(s *Schema) { nest(s, MaxTypeNesting) }, "more than 64 deep"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := sampleSchema()
			tt.alter(s)
			err := s.Validate()
			if !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got error %v, want ErrMalformed with %q", err, tt.want)
			}
			if _, err := DecodeSchema(AppendSchema(nil, s)); !errors.Is(err, ErrMalformed) {
				t.Errorf("decoded: got error %v, want ErrMalformed", err)
			}
		})
	}
	s := sampleSchema()
	nest(s, MaxTypeNesting-1)
	if err := s.Validate(); err != nil {
		t.Errorf("deepest nesting: %v", err)
	}
}

// nest gives s arrays of arrays, n over the text.
func nest(s *Schema, n int) {
	s.Types = s.Types[:3]
	for i := range n {
		elem := uint32(1000 + i)
		if i == 0 {
			elem = 25
		}
		s.Types = append(s.Types, TypeDesc{OID: uint32(1001 + i), Kind: TypeArray, Elem: elem})
	}
	s.Columns[2].Type = uint32(1000 + n)
}

// TestSchemaOfManyCrossedTypes: the check must not walk every path of types
// that use each other many times over.
func TestSchemaOfManyCrossedTypes(t *testing.T) {
	s := sampleSchema()
	s.Types = s.Types[:3]
	for i := range 60 {
		d := TypeDesc{OID: uint32(1001 + i), Kind: TypeComposite}
		for _, below := range s.Types {
			d.Attributes = append(d.Attributes, Attribute{"a", below.OID}, Attribute{"b", below.OID})
		}
		s.Types = append(s.Types, d)
	}
	s.Columns[2].Type = 1060
	if err := s.Validate(); err != nil {
		t.Error(err)
	}
	// The same, and all of them built of the last one.
	for i := 3; i < len(s.Types); i++ {
		s.Types[i].Attributes = append(s.Types[i].Attributes, Attribute{"c", 1060})
	}
	if err := s.Validate(); !errors.Is(err, ErrMalformed) {
		t.Errorf("got error %v, want ErrMalformed", err)
	}
}

func TestSchemaKeyColumns(t *testing.T) {
	s := sampleSchema()
	if got := s.KeyColumns(); len(got) != 2 || got[0] != 1 || got[1] != 0 {
		t.Errorf("got key columns %v, want [1 0]", got)
	}
	if s.ColumnIndex("tags") != 2 || s.ColumnIndex("nothing") != -1 {
		t.Error("columns are not found by name")
	}
	if s.Type(1009).Name != "_text" || s.Type(24) != nil {
		t.Error("types are not found by OID")
	}
}

func TestSchemaCounterpart(t *testing.T) {
	s := &Schema{Columns: []Column{{Name: "id", Number: 1}, {Name: "b", Number: 3}, {Name: "old"}}}
	for _, c := range []struct {
		name   string
		column Column
		want   int
	}{
		{"the same", Column{Name: "id", Number: 1}, 0},
		{"renamed", Column{Name: "was_b", Number: 3}, 1},
		{"made again under the name", Column{Name: "b", Number: 4}, -1},
		{"renamed to the name of another", Column{Name: "id", Number: 3}, 1},
		{"number not known here", Column{Name: "b"}, 1},
		{"number not known there", Column{Name: "old", Number: 7}, 2},
		{"other", Column{Name: "x"}, -1},
	} {
		if got := s.Counterpart(&c.column); got != c.want {
			t.Errorf("%s: got %d, want %d", c.name, got, c.want)
		}
	}
}

func TestSchemaSameAs(t *testing.T) {
	s := sampleSchema()
	later := sampleSchema()
	later.Version = 9
	if !s.SameAs(later) {
		t.Error("another version alone makes another schema")
	}
	for name, alter := range map[string]func(*Schema){
		"name":   func(s *Schema) { s.Name = "other" },
		"typmod": func(s *Schema) { s.Columns[0].Typmod = 4 },
		"label":  func(s *Schema) { s.Types[2].Labels = []string{"a"} },
		"delim":  func(s *Schema) { s.Types[2].Delim = ';' },
	} {
		o := sampleSchema()
		alter(o)
		if s.SameAs(o) {
			t.Errorf("a schema of another %s is said to be the same", name)
		}
	}
}

func TestStateRefuses(t *testing.T) {
	second := sampleSchema()
	second.Table, second.Version = 16386, 2
	tests := []struct {
		name  string
		state State
		want  string
	}{
		{"tables out of order", State{Catalog: Catalog{Schemas: []*Schema{second, sampleSchema()}, LastVersion: 2}}, "ascending order of table"},
		{"table twice", State{Catalog: Catalog{Schemas: []*Schema{second, second}, LastVersion: 2}}, "ascending order of table"},
		{"version after the last", State{Catalog: Catalog{Schemas: []*Schema{second}, LastVersion: 1}}, "version after the last"},
		{"loads out of order", State{Catalog: Catalog{Loads: []Load{{ID: 2, Table: 1}, {ID: 1, Table: 2}}, LastLoad: 2}}, "loads are not"},
		{"load of no table", State{Catalog: Catalog{Loads: []Load{{ID: 2}}, LastLoad: 2}}, "loads are not"},
		{"load after the last", State{Catalog: Catalog{Loads: []Load{{ID: 2, Table: 1}}, LastLoad: 1}}, "ID after the last"},
		{"batch without index", State{Recent: []Recent{{}}}, "bad index range"},
		{"batch that ends before it begins", State{Recent: []Recent{{First: 2, Last: 1}}}, "bad index range"},
		{"many batches", State{Recent: make([]Recent, KeepRecent+1)}, "too many"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := DecodeState(AppendState(nil, &tt.state))
			if !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got error %v, want ErrMalformed with %q", err, tt.want)
			}
		})
	}
}

func TestCheckpointRefuses(t *testing.T) {
	whole := Checkpoint{Stream: StreamID{1}, Epoch: 1, Chain: Chain{1}, Offset: NoOffset}
	if c, err := DecodeCheckpoint(AppendCheckpoint(nil, &whole)); err != nil || c.Offset != NoOffset {
		t.Fatalf("smallest checkpoint: %v, %v", c, err)
	}
	for name, alter := range map[string]func(*Checkpoint){
		"stream":   func(c *Checkpoint) { c.Stream = StreamID{} },
		"epoch":    func(c *Checkpoint) { c.Epoch = 0 },
		"chain":    func(c *Checkpoint) { c.Chain = Chain{} },
		"offset":   func(c *Checkpoint) { c.Offset = -5 },
		"position": func(c *Checkpoint) { c.Position.Slot = "half" },
		"state":    func(c *Checkpoint) { c.Recent = []Recent{{}} },
	} {
		c := whole
		alter(&c)
		if got, err := DecodeCheckpoint(AppendCheckpoint(nil, &c)); !errors.Is(err, ErrMalformed) || got != nil {
			t.Errorf("%s: got %v, error %v, want ErrMalformed", name, got, err)
		}
	}
}

func TestPositionRefuses(t *testing.T) {
	for _, p := range []Position{
		{LSN: 1},
		{Mode: ModeWAL, SystemID: 1, Timeline: 1},
		{Mode: ModeWAL, SystemID: 1, Slot: "s"},
		{Mode: ModeWAL, Timeline: 1, Slot: "s"},
		{Mode: ModeWAL, SystemID: 1, Timeline: 1, Slot: "s", Tick: 1},
		{Mode: ModeTrigger},
		{Mode: ModeTrigger, SystemID: 1, LSN: 1},
		{Mode: 3, SystemID: 1},
	} {
		if got, err := DecodePosition(AppendPosition(nil, p)); !errors.Is(err, ErrMalformed) {
			t.Errorf("%+v: got %+v, error %v, want ErrMalformed", p, got, err)
		}
	}
}
