package millrace

import (
	"cmp"
	"fmt"
	"slices"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
)

// TypeKind says how the values of a type are built.
type TypeKind uint8

// The kinds of types.
const (
	// TypeBase is a type with a text form of its own.
	TypeBase TypeKind = 1
	// TypeArray is an array of Elem.
	TypeArray TypeKind = 2
	// TypeDomain is Elem under constraints.
	TypeDomain TypeKind = 3
	// TypeEnum is one of Labels.
	TypeEnum TypeKind = 4
	// TypeComposite is a row of Attributes.
	TypeComposite TypeKind = 5
	// TypeRange is a range of Elem.
	TypeRange TypeKind = 6
	// TypeMultirange is a set of ranges; Elem is the range type.
	TypeMultirange TypeKind = 7
)

// TypeDesc describes one Postgres type, so far as a reader needs it to give a
// value the form that to_jsonb gives it.
type TypeDesc struct {
	OID  uint32
	Kind TypeKind
	// Schema and Name are those of pg_type. Types of pg_catalog have stable
	// names and OIDs.
	Schema, Name string
	// Elem is the element of an array, the base of a domain, the subtype of a
	// range or the range of a multirange.
	Elem uint32
	// Labels are those of an enum, in its order.
	Labels []string
	// Attributes are those of a composite, without dropped ones.
	Attributes []Attribute
	// Delim separates the elements of arrays of this type's kind; 0 stands for
	// a comma.
	Delim byte
}

// Attribute is one field of a composite type.
type Attribute struct {
	Name string
	Type uint32
}

// Column describes one captured column.
type Column struct {
	Name string
	// Type is the OID of the column's type, described in Schema.Types.
	Type uint32
	// Typmod is the type modifier, or -1.
	Typmod int32
	// Collation is the name of the collation, or empty for types without one.
	Collation string
	// Nondeterministic tells that the collation takes different texts for
	// equal.
	Nondeterministic bool
	NotNull          bool
	// KeyOrdinal is the 1-based place of the column in the key, or 0.
	KeyOrdinal uint32
	// Number is the one that the source's catalog gave the column. It stays with
	// the column when that is renamed, and one that is dropped and made again
	// under its name has another. 0 where it is not known.
	Number uint32
}

// Schema describes one table from a point of the stream on. It is not changed
// after it has been made; readers share it.
type Schema struct {
	Version SchemaVersion
	Table   TableID
	// Namespace and Name are the table's names at the source.
	Namespace, Name string
	Columns         []Column
	// Types describes every type that the columns use, directly or within
	// other types, in ascending order of OID.
	Types []TypeDesc
}

// QualifiedName returns namespace.name, the name by which readers ask for the
// table.
func (s *Schema) QualifiedName() string { return s.Namespace + "." + s.Name }

// KeyColumns returns the places in Columns of the key's columns, in key order.
func (s *Schema) KeyColumns() []int {
	var key []int
	for i := range s.Columns {
		if s.Columns[i].KeyOrdinal != 0 {
			key = append(key, i)
		}
	}
	slices.SortFunc(key, func(a, b int) int {
		return cmp.Compare(s.Columns[a].KeyOrdinal, s.Columns[b].KeyOrdinal)
	})
	return key
}

// ColumnIndex returns the place of the named column, or -1.
func (s *Schema) ColumnIndex(name string) int {
	return slices.IndexFunc(s.Columns, func(c Column) bool { return c.Name == name })
}

// Counterpart returns the place of the column that c, of another version of the
// table, is by now or was before, or -1. A column is known by its number, or by
// its name where one of the two has none: a rename keeps the number, and a column
// that was made again under the name of one that was dropped has another.
func (s *Schema) Counterpart(c *Column) int {
	return slices.IndexFunc(s.Columns, func(o Column) bool {
		if c.Number != 0 && o.Number != 0 {
			return c.Number == o.Number
		}
		return c.Name == o.Name
	})
}

// Type returns the descriptor with the OID, or nil.
func (s *Schema) Type(oid uint32) *TypeDesc {
	i, ok := slices.BinarySearchFunc(s.Types, oid, func(t TypeDesc, oid uint32) int { return cmp.Compare(t.OID, oid) })
	if !ok {
		return nil
	}
	return &s.Types[i]
}

// SameAs reports whether two schemas describe the same table in the same way,
// whatever their versions.
func (s *Schema) SameAs(o *Schema) bool {
	return s.Table == o.Table && s.Namespace == o.Namespace && s.Name == o.Name &&
		slices.Equal(s.Columns, o.Columns) &&
		slices.EqualFunc(s.Types, o.Types, func(a, b TypeDesc) bool {
			return a.OID == b.OID && a.Kind == b.Kind && a.Schema == b.Schema && a.Name == b.Name &&
				a.Elem == b.Elem && a.Delim == b.Delim &&
				slices.Equal(a.Labels, b.Labels) && slices.Equal(a.Attributes, b.Attributes)
		})
}

// MaxTypeNesting bounds how deep types may be built of one another, so that
// code which follows them needs no bound of its own.
const MaxTypeNesting = 64

// Validate says what makes s unusable: a missing name, no key, key ordinals
// with holes, types out of order, missing, or built of themselves.
func (s *Schema) Validate() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: schema of %s: %s", ErrMalformed, s.QualifiedName(), fmt.Sprintf(format, args...))
	}
	if s.Version == 0 || s.Table == 0 || s.Namespace == "" || s.Name == "" {
		return bad("version, table ID and names must be set")
	}
	if len(s.Columns) > MaxColumns {
		return bad("%d columns; the limit is %d", len(s.Columns), MaxColumns)
	}
	if !utf8.ValidString(s.Namespace) || !utf8.ValidString(s.Name) {
		return bad("a name is not UTF-8")
	}
	names := make(map[string]bool, len(s.Columns))
	for i := range s.Columns {
		c := &s.Columns[i]
		if c.Name == "" || names[c.Name] {
			return bad("column %d: name %q is empty or not unique", i+1, c.Name)
		}
		names[c.Name] = true
		if s.Type(c.Type) == nil {
			return bad("column %s: type %d has no descriptor", c.Name, c.Type)
		}
		if !utf8.ValidString(c.Name) || !utf8.ValidString(c.Collation) {
			return bad("column %d: a name is not UTF-8", i+1)
		}
	}
	key := s.KeyColumns()
	if len(key) == 0 {
		return bad("no key")
	}
	for i, c := range key {
		if s.Columns[c].KeyOrdinal != uint32(i+1) {
			return bad("key ordinals are not 1 to %d", len(key))
		}
	}
	if what := s.checkTypes(); what != "" {
		return bad("%s", what)
	}
	return nil
}

// checkTypes says what is wrong with the types, or nothing.
func (s *Schema) checkTypes() string {
	for i := range s.Types {
		t := &s.Types[i]
		if t.OID == 0 || i > 0 && s.Types[i-1].OID >= t.OID {
			return "types are not in ascending order of OID"
		}
		if what := s.checkType(t); what != "" {
			return fmt.Sprintf("type %d (%s): %s", t.OID, t.Name, what)
		}
	}
	depths := make([]int, len(s.Types))
	for i := range s.Types {
		if s.typeDepth(i, depths, 1) > MaxTypeNesting {
			return fmt.Sprintf("type %d (%s): built of itself, or nested more than %d deep", s.Types[i].OID, s.Types[i].Name, MaxTypeNesting)
		}
	}
	return ""
}

func (s *Schema) checkType(t *TypeDesc) string {
	if !utf8.ValidString(t.Schema) || !utf8.ValidString(t.Name) {
		return "its name is not UTF-8"
	}
	switch t.Kind {
	case TypeArray, TypeDomain, TypeRange, TypeMultirange:
		if t.Elem == 0 {
			return "no element type"
		}
	case TypeBase, TypeEnum, TypeComposite:
	default:
		return fmt.Sprintf("unknown kind %d", t.Kind)
	}
	if t.Elem != 0 && s.Type(t.Elem) == nil {
		return fmt.Sprintf("element type %d has no descriptor", t.Elem)
	}
	for _, l := range t.Labels {
		if !utf8.ValidString(l) {
			return "a label is not UTF-8"
		}
	}
	for _, a := range t.Attributes {
		if !utf8.ValidString(a.Name) {
			return "an attribute's name is not UTF-8"
		}
		if s.Type(a.Type) == nil {
			return fmt.Sprintf("attribute type %d has no descriptor", a.Type)
		}
	}
	return ""
}

// typeDepth returns how deep type i is built of others, 1 for one that is built
// of none. depths holds what is known already, 0 for the rest. It goes no
// deeper than the limit, at which a type that is built of itself arrives too.
func (s *Schema) typeDepth(i int, depths []int, above int) int {
	if depths[i] != 0 {
		return depths[i]
	}
	depth := 1
	if above > MaxTypeNesting {
		return depth
	}
	under := func(oid uint32) {
		j, ok := slices.BinarySearchFunc(s.Types, oid, func(t TypeDesc, oid uint32) int { return cmp.Compare(t.OID, oid) })
		if ok && depth <= MaxTypeNesting {
			depth = max(depth, 1+s.typeDepth(j, depths, above+1))
		}
	}
	t := &s.Types[i]
	if t.Elem != 0 {
		under(t.Elem)
	}
	for _, a := range t.Attributes {
		under(a.Type)
	}
	// Where the limit cut the walk short depth is too small, but then the walk
	// began at a type that is over it.
	depths[i] = depth
	return depth
}

const (
	schemaVersion   protowire.Number = 1
	schemaTable     protowire.Number = 2
	schemaNamespace protowire.Number = 3
	schemaName      protowire.Number = 4
	schemaColumns   protowire.Number = 5
	schemaTypes     protowire.Number = 6

	columnName             protowire.Number = 1
	columnType             protowire.Number = 2
	columnTypmod           protowire.Number = 3
	columnCollation        protowire.Number = 4
	columnNondeterministic protowire.Number = 5
	columnNotNull          protowire.Number = 6
	columnKeyOrdinal       protowire.Number = 7
	columnNumber           protowire.Number = 8

	typeOID        protowire.Number = 1
	typeKind       protowire.Number = 2
	typeSchema     protowire.Number = 3
	typeName       protowire.Number = 4
	typeElem       protowire.Number = 5
	typeLabels     protowire.Number = 6
	typeAttributes protowire.Number = 7
	typeDelim      protowire.Number = 8

	attributeName protowire.Number = 1
	attributeType protowire.Number = 2
)

// AppendSchema appends the encoded form of s.
func AppendSchema(dst []byte, s *Schema) []byte {
	dst = appendVarintField(dst, schemaVersion, uint64(s.Version))
	dst = appendVarintField(dst, schemaTable, uint64(s.Table))
	dst = appendStringField(dst, schemaNamespace, s.Namespace)
	dst = appendStringField(dst, schemaName, s.Name)
	for i := range s.Columns {
		c := &s.Columns[i]
		dst = appendMessageField(dst, schemaColumns, func(dst []byte) []byte {
			dst = appendStringField(dst, columnName, c.Name)
			dst = appendVarintField(dst, columnType, uint64(c.Type))
			dst = appendVarintField(dst, columnTypmod, uint64(int64(c.Typmod)))
			dst = appendStringField(dst, columnCollation, c.Collation)
			dst = appendBoolField(dst, columnNondeterministic, c.Nondeterministic)
			dst = appendBoolField(dst, columnNotNull, c.NotNull)
			dst = appendVarintField(dst, columnKeyOrdinal, uint64(c.KeyOrdinal))
			return appendVarintField(dst, columnNumber, uint64(c.Number))
		})
	}
	for i := range s.Types {
		t := &s.Types[i]
		dst = appendMessageField(dst, schemaTypes, func(dst []byte) []byte { return appendType(dst, t) })
	}
	return dst
}

func appendType(dst []byte, t *TypeDesc) []byte {
	dst = appendVarintField(dst, typeOID, uint64(t.OID))
	dst = appendVarintField(dst, typeKind, uint64(t.Kind))
	dst = appendStringField(dst, typeSchema, t.Schema)
	dst = appendStringField(dst, typeName, t.Name)
	dst = appendVarintField(dst, typeElem, uint64(t.Elem))
	for _, l := range t.Labels {
		dst = protowire.AppendTag(dst, typeLabels, protowire.BytesType)
		dst = protowire.AppendString(dst, l)
	}
	for _, a := range t.Attributes {
		dst = appendMessageField(dst, typeAttributes, func(dst []byte) []byte {
			dst = appendStringField(dst, attributeName, a.Name)
			return appendVarintField(dst, attributeType, uint64(a.Type))
		})
	}
	return appendVarintField(dst, typeDelim, uint64(t.Delim))
}

// DecodeSchema reads what AppendSchema wrote and validates it. The result does
// not alias b.
func DecodeSchema(b []byte) (*Schema, error) {
	s := new(Schema)
	err := eachField(b, "schema", func(f *field) error {
		switch f.num {
		case schemaVersion:
			return f.varint((*uint64)(&s.Version))
		case schemaTable:
			return f.uint32((*uint32)(&s.Table))
		case schemaNamespace:
			return f.string(&s.Namespace)
		case schemaName:
			return f.string(&s.Name)
		case schemaColumns:
			c, err := decodeColumn(f)
			s.Columns = append(s.Columns, c)
			return err
		case schemaTypes:
			t, err := decodeType(f)
			s.Types = append(s.Types, t)
			return err
		}
		return f.unknown()
	})
	if err != nil {
		return nil, err
	}
	if err := s.Validate(); err != nil {
		return nil, err
	}
	return s, nil
}

func decodeColumn(f *field) (c Column, err error) {
	var b []byte
	if err := f.element(&b); err != nil {
		return c, err
	}
	err = eachField(b, "column", func(f *field) error {
		switch f.num {
		case columnName:
			return f.string(&c.Name)
		case columnType:
			return f.uint32(&c.Type)
		case columnTypmod:
			return f.int32(&c.Typmod)
		case columnCollation:
			return f.string(&c.Collation)
		case columnNondeterministic:
			return f.bool(&c.Nondeterministic)
		case columnNotNull:
			return f.bool(&c.NotNull)
		case columnKeyOrdinal:
			return f.uint32(&c.KeyOrdinal)
		case columnNumber:
			return f.uint32(&c.Number)
		}
		return f.unknown()
	})
	return c, err
}

func decodeType(f *field) (t TypeDesc, err error) {
	var b []byte
	if err := f.element(&b); err != nil {
		return t, err
	}
	err = eachField(b, "type", func(f *field) error {
		switch f.num {
		case typeOID:
			return f.uint32(&t.OID)
		case typeKind:
			return decodeSmall(f, &t.Kind)
		case typeSchema:
			return f.string(&t.Schema)
		case typeName:
			return f.string(&t.Name)
		case typeElem:
			return f.uint32(&t.Elem)
		case typeLabels:
			var l string
			err := f.textElement(&l)
			t.Labels = append(t.Labels, l)
			return err
		case typeAttributes:
			var b []byte
			if err := f.element(&b); err != nil {
				return err
			}
			var a Attribute
			err := eachField(b, "attribute", func(f *field) error {
				switch f.num {
				case attributeName:
					return f.string(&a.Name)
				case attributeType:
					return f.uint32(&a.Type)
				}
				return f.unknown()
			})
			t.Attributes = append(t.Attributes, a)
			return err
		case typeDelim:
			return decodeSmall(f, &t.Delim)
		}
		return f.unknown()
	})
	return t, err
}
