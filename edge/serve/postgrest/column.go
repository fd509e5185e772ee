package postgrest

import (
	"errors"
	"slices"

	"github.com/millrace-db/millrace"
)

// Table is what is known of a table for compiling queries. It is not changed after
// it was made; any number of goroutines may use it at once.
type Table struct {
	schema  *millrace.Schema
	columns []column
	// key are the places of the key's columns, in its order, and codec encodes them.
	key   []int
	codec *millrace.KeyCodec
}

// column says how the values of a column are read, compared and ordered.
type column struct {
	at   int
	name string
	kind kind
	// typ is how Postgres names the type in messages.
	typ string
	// codec encodes values of this column alone: equal bytes are equal values. It is
	// nil where they cannot be compared; why says the reason.
	codec *millrace.IndexCodec
	why   string
	// unordered says why the order of encoded values is not that of Postgres; empty
	// where it is. Labels of an enum order by their place among labels.
	unordered string
	labels    []string
	notNull   bool
}

// kind says how literals of a type are read.
type kind uint8

const (
	kindOther kind = iota
	kindInt2
	kindInt4
	kindInt8
	kindOID
	kindNumeric
	kindFloat4
	kindFloat8
	kindBool
	kindText
	kindName
	kindBpchar
	kindChar
	kindBytea
	kindUUID
	kindDate
	kindTime
	kindTimestamp
	kindTimestamptz
	kindInet
	kindCIDR
	kindMAC
	kindBits
	kindEnum
)

// builtin are the types that literals can be of, under their OIDs, which never
// change.
var builtin = map[uint32]struct {
	kind kind
	typ  string
}{
	16: {kindBool, "boolean"}, 17: {kindBytea, "bytea"}, 18: {kindChar, `"char"`}, 19: {kindName, "name"},
	20: {kindInt8, "bigint"}, 21: {kindInt2, "smallint"}, 23: {kindInt4, "integer"}, 25: {kindText, "text"}, 26: {kindOID, "oid"},
	650: {kindCIDR, "cidr"}, 700: {kindFloat4, "real"}, 701: {kindFloat8, "double precision"}, 774: {kindMAC, "macaddr8"},
	829: {kindMAC, "macaddr"}, 869: {kindInet, "inet"}, 1042: {kindBpchar, "character"}, 1043: {kindText, "character varying"},
	1082: {kindDate, "date"}, 1083: {kindTime, "time without time zone"}, 1114: {kindTimestamp, "timestamp without time zone"},
	1184: {kindTimestamptz, "timestamp with time zone"}, 1560: {kindBits, "bit"}, 1562: {kindBits, "bit varying"},
	1700: {kindNumeric, "numeric"}, 2950: {kindUUID, "uuid"},
}

// NewTable describes the table of a schema. An error means that it has no key that can
// be read by, which no table of a store is without.
func NewTable(s *millrace.Schema) (*Table, error) {
	codec, err := millrace.NewKeyCodec(s)
	if err != nil {
		return nil, err
	}
	t := &Table{schema: s, columns: make([]column, len(s.Columns)), key: codec.Columns(), codec: codec}
	for i := range s.Columns {
		t.columns[i] = newColumn(s, i)
	}
	return t, nil
}

// Name returns the name without the schema's.
func (t *Table) Name() string { return t.schema.Name }

// Schema returns what the table was made of.
func (t *Table) Schema() *millrace.Schema { return t.schema }

func newColumn(s *millrace.Schema, at int) column {
	sc := &s.Columns[at]
	c := column{at: at, name: sc.Name, notNull: sc.NotNull || sc.KeyOrdinal > 0}
	base := baseType(s, sc.Type)
	if b, ok := builtin[base.OID]; ok {
		c.kind, c.typ = b.kind, b.typ
	} else if base.Kind == millrace.TypeEnum {
		c.kind, c.typ, c.labels = kindEnum, base.Name, base.Labels
	} else {
		c.typ = base.Name
	}
	var err error
	var bad *millrace.IndexColumnError
	switch c.codec, err = millrace.NewIndexCodec(s, []string{sc.Name}); {
	case errors.As(err, &bad):
		c.why, c.codec = bad.Reason, nil
	case err != nil:
		c.why, c.codec = err.Error(), nil
	case c.kind == kindOther:
		c.why, c.codec = "values of type "+c.typ+" are not compared", nil
	}
	switch c.kind {
	case kindText, kindBpchar:
		if !bytewise(sc.Collation) {
			c.unordered = "its collation " + collationName(sc.Collation) + ` may order texts otherwise than by their bytes (declare it COLLATE "C" at the source)`
		}
	case kindInet, kindCIDR:
		c.unordered = "values of type " + c.typ + " are not kept in their order"
	}
	return c
}

func collationName(name string) string {
	if name == "" {
		return "is not known and"
	}
	return `"` + name + `"`
}

// bytewise tells the collations that order texts by their bytes. What "default" is
// depends on the database.
func bytewise(collation string) bool {
	return slices.Contains([]string{"C", "POSIX", "ucs_basic", "pg_c_utf8"}, collation)
}

// baseType resolves domains.
func baseType(s *millrace.Schema, oid uint32) *millrace.TypeDesc {
	t := s.Type(oid)
	for range millrace.MaxTypeNesting {
		if t == nil || t.Kind != millrace.TypeDomain {
			break
		}
		t = s.Type(t.Elem)
	}
	if t == nil {
		return &millrace.TypeDesc{Name: "unknown"}
	}
	return t
}

// column returns the named column, or Postgres's error.
func (t *Table) column(name string) (*column, error) {
	for i := range t.columns {
		if t.columns[i].name == name {
			return &t.columns[i], nil
		}
	}
	return nil, noColumn(t.schema.Name, name)
}

// comparable refuses columns of which values cannot be compared.
func (c *column) comparable(what string) error {
	if c.codec == nil {
		return refused("", "column %s: %s is not served: %s", c.name, what, c.why)
	}
	return nil
}

// ordered refuses columns of which values cannot be ordered.
func (c *column) ordered(what string) error {
	if err := c.comparable(what); err != nil {
		return err
	}
	if c.unordered != "" {
		return refused("", "column %s: %s is not served: %s", c.name, what, c.unordered)
	}
	return nil
}

// appendSort appends what orders a value among others of the column: encoded values,
// or their rank, behind null or before it.
func (c *column) appendSort(dst []byte, d *millrace.Datum) ([]byte, error) {
	if c.kind != kindEnum || d.State != millrace.ColumnValue {
		return c.codec.Append(dst, []millrace.Datum{*d})
	}
	i := slices.IndexFunc(c.labels, func(l string) bool { return l == string(d.Text) })
	if i < 0 {
		return dst, sqlError(500, "XX000", "column %s: enum %s has no label %q", c.name, c.typ, d.Text)
	}
	return append(dst, 1, byte(i>>8), byte(i)), nil
}
