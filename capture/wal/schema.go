package wal

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/millrace-db/millrace"
)

// key returns the numbers of the key's columns in key order: those of the
// replica identity, or of the primary key under REPLICA IDENTITY FULL. Where
// there is none that every UPDATE and DELETE carries, it says what is wrong and
// the statement that mends it.
func (t *tableInfo) key() (columns []int16, problem, mend string) {
	usable := func(i *indexInfo) bool {
		if !i.unique || !i.immediate || !i.valid || i.partial || i.hasExpression {
			return false
		}
		for _, n := range i.columns {
			if c := t.column(n); c == nil || !c.notNull || c.generated {
				return false
			}
		}
		return true
	}
	var primary, identity, other *indexInfo
	for i := range t.indexes {
		x := &t.indexes[i]
		switch {
		case x.primary:
			primary = x
		case other == nil && usable(x):
			other = x
		}
		if x.identity {
			identity = x
		}
	}
	alter := "ALTER TABLE " + t.name.quoted()
	switch {
	case t.identity == "n" && primary != nil && usable(primary):
		return nil, "it has REPLICA IDENTITY NOTHING, so its updates and deletes carry no key", alter + " REPLICA IDENTITY DEFAULT"
	case t.identity == "i" && identity != nil && usable(identity):
		return identity.columns, "", ""
	case (t.identity == "d" || t.identity == "f") && primary != nil && usable(primary):
		return primary.columns, "", ""
	}
	switch {
	case other != nil:
		mend = alter + " REPLICA IDENTITY USING INDEX " + quote(other.name)
	case primary == nil:
		mend = alter + " ADD PRIMARY KEY (…), or where no columns are unique: " +
			alter + " ADD COLUMN millrace_key bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY"
	case !primary.immediate:
		mend = alter + " DROP CONSTRAINT " + quote(primary.name) + ", ADD PRIMARY KEY (" + t.columnNames(primary.columns) + ")"
	default:
		mend = alter + " REPLICA IDENTITY USING INDEX …, with a unique index over NOT NULL columns that are not generated"
	}
	switch {
	case t.identity == "i":
		problem = "the index of its REPLICA IDENTITY is missing or not valid"
	case primary == nil:
		problem = "it has no primary key"
	case !primary.immediate:
		problem = "its primary key is DEFERRABLE, so its updates and deletes carry no key"
	case !primary.valid:
		problem = "its primary key is not valid"
	default:
		problem = "its primary key has a generated column, which logical decoding leaves out"
	}
	return nil, problem, mend
}

func (t *tableInfo) column(number int16) *columnInfo {
	for i := range t.columns {
		if t.columns[i].number == number {
			return &t.columns[i]
		}
	}
	return nil
}

func (t *tableInfo) columnNames(numbers []int16) string {
	var names []string
	for _, n := range numbers {
		if c := t.column(n); c != nil {
			names = append(names, quote(c.name))
		}
	}
	return strings.Join(names, ", ")
}

// schema returns the table's schema without a version.
func (t *tableInfo) schema() (*millrace.Schema, error) {
	key, problem, mend := t.key()
	if problem != "" {
		return nil, fmt.Errorf("%w: %v: %s; mend: %s", ErrTable, t.name, problem, mend)
	}
	s := &millrace.Schema{Table: t.id, Namespace: t.name.schema, Name: t.name.name}
	for i := range t.columns {
		c := &t.columns[i]
		if c.generated {
			continue
		}
		s.Columns = append(s.Columns, millrace.Column{
			Name: c.name, Type: c.typ, Typmod: c.typmod, Collation: c.collation, Nondeterministic: c.loose, NotNull: c.notNull,
			KeyOrdinal: uint32(slices.Index(key, c.number) + 1), Number: uint32(c.number),
		})
	}
	return s, t.describe(s)
}

// describe puts the descriptors of the types that s uses into it, and refuses
// types that are not carried.
func (t *tableInfo) describe(s *millrace.Schema) error {
	all := millrace.Schema{Types: t.types}
	used := make(map[uint32]bool)
	var use func(oid uint32, column string) error
	use = func(oid uint32, column string) error {
		if used[oid] {
			return nil
		}
		used[oid] = true
		d := all.Type(oid)
		if d == nil {
			return fmt.Errorf("%w: %v: type %d of column %s is not in the catalog any more, so its values cannot be described; mend: begin a new epoch",
				ErrTableChanged, t.name, oid, column)
		}
		if why := refusedType(d); why != "" {
			return fmt.Errorf("%w: %v: column %s has type %s: %s; mend: ALTER TABLE %s ALTER COLUMN %s TYPE text",
				ErrTable, t.name, column, d.Name, why, t.name.quoted(), quote(column))
		}
		if d.Elem != 0 {
			if err := use(d.Elem, column); err != nil {
				return err
			}
		}
		for _, a := range d.Attributes {
			if err := use(a.Type, column); err != nil {
				return err
			}
		}
		return nil
	}
	for i := range s.Columns {
		if err := use(s.Columns[i].Type, s.Columns[i].Name); err != nil {
			return err
		}
	}
	s.Types = nil
	for i := range t.types {
		if used[t.types[i].OID] {
			s.Types = append(s.Types, t.types[i])
		}
	}
	return nil
}

// refusedType says why values of a type are not carried, or "".
func refusedType(d *millrace.TypeDesc) string {
	if d.Schema != "pg_catalog" || d.Kind != millrace.TypeBase && d.Kind != millrace.TypeArray {
		return ""
	}
	switch {
	case strings.HasPrefix(d.Name, "reg"):
		return "its text changes when the object it names is renamed"
	case d.Name == "int2vector" || d.Name == "oidvector":
		return "it is made for system catalogs only"
	}
	return ""
}

// relationColumn is a column as a Relation message describes it.
type relationColumn struct {
	name   string
	typ    uint32
	typmod int32
	key    bool // part of the replica identity
}

// relationMessage describes a table as of the change that follows it.
type relationMessage struct {
	id       millrace.TableID
	name     tableName
	identity byte
	columns  []relationColumn
}

// typeOIDs returns the OIDs of the columns' types.
func (m *relationMessage) typeOIDs() []uint32 {
	oids := make([]uint32, len(m.columns))
	for i := range m.columns {
		oids[i] = m.columns[i].typ
	}
	return oids
}

// describes reports whether s has the message's columns, in its order, under its
// name, with its key.
func (m *relationMessage) describes(s *millrace.Schema) bool {
	if s.Namespace != m.name.schema || s.Name != m.name.name || len(s.Columns) != len(m.columns) {
		return false
	}
	for i := range m.columns {
		c, d := &s.Columns[i], &m.columns[i]
		if c.Name != d.name || c.Type != d.typ || c.Typmod != d.typmod {
			return false
		}
		if m.identity != 'f' && (c.KeyOrdinal != 0) != d.key {
			return false
		}
	}
	return true
}

// schemaOf returns the schema for the changes that follow m, without a version.
// info is the catalog's, which may be newer than m, or nil if the table is gone
// from it; before is the newest schema that the stream has, or nil.
func schemaOf(m *relationMessage, info *tableInfo, before *millrace.Schema) (*millrace.Schema, error) {
	if info == nil {
		if before != nil && m.describes(before) {
			return before, nil
		}
		return nil, fmt.Errorf("%w: %v was dropped at the source before its last changes could be described; mend: begin a new epoch", ErrTableChanged, m.name)
	}
	s, err := info.schema()
	if err == nil && m.describes(s) {
		return s, nil
	}
	if errors.Is(err, ErrTable) && before == nil {
		return nil, err
	}
	return fromMessage(m, info, before)
}

// fromMessage builds a schema from m where the catalog has gone on: names, types
// and key are the message's, the rest is the catalog's so far as it still knows
// the columns.
func fromMessage(m *relationMessage, info *tableInfo, before *millrace.Schema) (*millrace.Schema, error) {
	if m.identity == 'n' {
		return nil, fmt.Errorf("%w: %v: it has REPLICA IDENTITY NOTHING; mend: ALTER TABLE %s REPLICA IDENTITY DEFAULT, then begin a new epoch", ErrTable, m.name, m.name.quoted())
	}
	s := &millrace.Schema{Table: m.id, Namespace: m.name.schema, Name: m.name.name}
	for _, d := range m.columns {
		c := millrace.Column{Name: d.name, Type: d.typ, Typmod: d.typmod}
		for _, now := range info.columns {
			if now.name == d.name && now.typ == d.typ {
				c.Collation, c.Nondeterministic, c.NotNull, c.Number = now.collation, now.loose, now.notNull, uint32(now.number)
			}
		}
		s.Columns = append(s.Columns, c)
	}
	if err := m.setKey(s, info, before); err != nil {
		return nil, err
	}
	return s, info.describe(s)
}

// setKey numbers the key columns of s. The message tells which they are, but
// not in which order: that comes from the catalog or the schema before, if they
// have the same ones, and is that of the columns otherwise.
func (m *relationMessage) setKey(s *millrace.Schema, info *tableInfo, before *millrace.Schema) error {
	var flagged []string
	for _, d := range m.columns {
		if d.key {
			flagged = append(flagged, d.name)
		}
	}
	var orders [][]string
	if numbers, problem, _ := info.key(); problem == "" {
		var names []string
		for _, n := range numbers {
			names = append(names, info.column(n).name)
		}
		orders = append(orders, names)
	}
	if before != nil {
		var names []string
		for _, i := range before.KeyColumns() {
			names = append(names, before.Columns[i].Name)
		}
		orders = append(orders, names)
	}
	if m.identity != 'f' {
		orders = append(orders, flagged)
	}
	for _, order := range orders {
		if len(order) == 0 || m.identity != 'f' && !sameNames(order, flagged) {
			continue
		}
		found := true
		for _, name := range order {
			found = found && s.ColumnIndex(name) >= 0
		}
		if !found {
			continue
		}
		for i, name := range order {
			s.Columns[s.ColumnIndex(name)].KeyOrdinal = uint32(i + 1)
			s.Columns[s.ColumnIndex(name)].NotNull = true
		}
		return nil
	}
	return fmt.Errorf("%w: %v: its changes carry no key any more; mend: give it a primary key, then begin a new epoch", ErrTable, m.name)
}

func sameNames(a, b []string) bool {
	a, b = slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b))
	return slices.Equal(a, b)
}

// reshaped says in which way the step from one schema of a table to the next
// leaves stored rows other than the source has them, without any change that
// tells; or "". missing names the columns for which old rows have a value that
// was never sent, or is nil if that is not known.
func reshaped(before, after *millrace.Schema, missing func(column string) bool) string {
	var gone, came []string
	for i := range before.Columns {
		b := &before.Columns[i]
		j := after.ColumnIndex(b.Name)
		if j < 0 {
			gone = append(gone, b.Name)
			continue
		}
		a := &after.Columns[j]
		switch {
		case a.KeyOrdinal != b.KeyOrdinal:
			return fmt.Sprintf("its key changed at column %s", b.Name)
		case !sameTexts(b, a):
			return fmt.Sprintf("the type of column %s changed", b.Name)
		case b.KeyOrdinal != 0 && a.Nondeterministic != b.Nondeterministic:
			return fmt.Sprintf("the collation of key column %s changed", b.Name)
		}
	}
	for i := range after.Columns {
		a := &after.Columns[i]
		if before.ColumnIndex(a.Name) >= 0 {
			continue
		}
		came = append(came, a.Name)
		switch {
		case a.KeyOrdinal != 0:
			return fmt.Sprintf("its key changed at column %s", a.Name)
		case a.NotNull || missing == nil || missing(a.Name):
			return fmt.Sprintf("column %s came with a value for the rows that were there before", a.Name)
		}
	}
	if len(gone) > 0 && len(came) > 0 {
		return fmt.Sprintf("column %s may have become %s", strings.Join(gone, ", "), strings.Join(came, ", "))
	}
	for i := range before.Types {
		b := &before.Types[i]
		a := after.Type(b.OID)
		if a == nil {
			continue
		}
		for _, label := range b.Labels {
			if !slices.Contains(a.Labels, label) {
				return fmt.Sprintf("label %s of enum %s was renamed", label, b.Name)
			}
		}
		if a.Kind != b.Kind || a.Elem != b.Elem || !slices.Equal(a.Attributes, b.Attributes) {
			return fmt.Sprintf("type %s was altered", b.Name)
		}
	}
	return ""
}

// OIDs of the types between which the text of a value stays the same.
const (
	textOID    = 25
	varcharOID = 1043
)

// sameTexts reports whether values stored under column b print the same under a.
func sameTexts(b, a *millrace.Column) bool {
	if b.Type == a.Type && b.Typmod == a.Typmod {
		return true
	}
	text := func(c *millrace.Column) bool { return c.Type == textOID || c.Type == varcharOID }
	if !text(a) || !text(b) {
		return false
	}
	// varchar(10) → varchar(20) or text keeps every value; the other way may cut.
	return a.Typmod < 0 || b.Typmod >= 0 && a.Typmod >= b.Typmod
}
