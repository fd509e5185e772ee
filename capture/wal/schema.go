package wal

import (
	"cmp"
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
		if c.generated || !t.choice.chooses(c.name) {
			if slices.Contains(key, c.number) {
				return nil, fmt.Errorf("%w: %v: source.columns leaves out column %s of its key; mend: add it there", ErrTable, t.name, c.name)
			}
			continue
		}
		s.Columns = append(s.Columns, millrace.Column{
			Name: c.name, Type: c.typ, Typmod: c.typmod, Collation: c.collation, Nondeterministic: c.loose, NotNull: c.notNull,
			KeyOrdinal: uint32(slices.Index(key, c.number) + 1), Number: uint32(c.number),
		})
	}
	return s, t.describe(s, nil)
}

// describe puts the descriptors of the types that s uses into it, and refuses
// types that are not carried. Types that were dropped since are described as
// they were in the schema before, which may be nil.
func (t *tableInfo) describe(s, before *millrace.Schema) error {
	all := millrace.Schema{Types: t.types}
	if before != nil {
		all.Types = slices.Clone(t.types)
		for i := range before.Types {
			if (&millrace.Schema{Types: t.types}).Type(before.Types[i].OID) == nil {
				all.Types = append(all.Types, before.Types[i])
			}
		}
		slices.SortFunc(all.Types, func(a, b millrace.TypeDesc) int { return cmp.Compare(a.OID, b.OID) })
	}
	used := make(map[uint32]bool)
	var use func(oid uint32, column string) error
	use = func(oid uint32, column string) error {
		if used[oid] {
			return nil
		}
		used[oid] = true
		d := all.Type(oid)
		if d == nil {
			return fmt.Errorf("%w: %v: type %d of column %s is not in the catalog any more, so its values cannot be described; mend: %s, or begin a new epoch",
				ErrTableChanged, t.name, oid, column, copyAgain)
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
	for i := range all.Types {
		if used[all.Types[i].OID] {
			s.Types = append(s.Types, all.Types[i])
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
		return nil, fmt.Errorf("%w: %v was dropped at the source before its last changes could be described; mend: %s, or begin a new epoch", ErrTableChanged, m.name, copyAgain)
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
		return nil, fmt.Errorf("%w: %v: it has REPLICA IDENTITY NOTHING; mend: ALTER TABLE %s REPLICA IDENTITY DEFAULT, then %s; or begin a new epoch", ErrTable, m.name, m.name.quoted(), copyAgain)
	}
	s := &millrace.Schema{Table: m.id, Namespace: m.name.schema, Name: m.name.name}
	for _, d := range m.columns {
		c := millrace.Column{Name: d.name, Type: d.typ, Typmod: d.typmod}
		// A column that the stream has under the same name and type, and the
		// catalog under none or another name, is most likely still that one.
		if before != nil {
			if i := before.ColumnIndex(d.name); i >= 0 && before.Columns[i].Type == d.typ {
				was := before.Columns[i]
				c.Collation, c.Nondeterministic, c.NotNull, c.Number = was.Collation, was.Nondeterministic, was.NotNull, was.Number
			}
		}
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
	return s, info.describe(s, before)
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
	if numbers, problem, mend := info.key(); problem == "" {
		var names []string
		for _, n := range numbers {
			names = append(names, info.column(n).name)
		}
		orders = append(orders, names)
	} else if m.identity == 'f' {
		// Such a message does not tell whether any columns are unique.
		return fmt.Errorf("%w: %v: %s; mend: %s, then %s; or begin a new epoch", ErrKeyChanged, m.name, problem, mend, copyAgain)
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
	return fmt.Errorf("%w: %v: its changes carry no key any more; mend: give it a primary key, then %s; or begin a new epoch", ErrKeyChanged, m.name, copyAgain)
}

func sameNames(a, b []string) bool {
	a, b = slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b))
	return slices.Equal(a, b)
}

// step is what the step from one schema of a table to the next does beside
// describing it.
type step struct {
	// key says how the key changed, or is empty.
	key string
	// rows says why rows that are stored differ from the source's by now without
	// any change that tells, or is empty.
	rows string
}

// reshaped judges the step from one schema of a table to the next. missing tells
// of which columns old rows have a value that was never sent, or is nil if that
// is not known.
func reshaped(before, after *millrace.Schema, missing func(*millrace.Column) bool) step {
	var st step
	var gone, came []string
	rows := func(format string, args ...any) {
		if st.rows == "" {
			st.rows = fmt.Sprintf(format, args...)
		}
	}
	for i := range before.Columns {
		b := &before.Columns[i]
		j := after.Counterpart(b)
		if j < 0 {
			gone = append(gone, b.Name)
			if b.KeyOrdinal != 0 {
				return step{key: fmt.Sprintf("column %s of its key is gone", b.Name)}
			}
			continue
		}
		a := &after.Columns[j]
		same := sameTexts(b, a)
		switch {
		case a.KeyOrdinal != b.KeyOrdinal:
			return step{key: fmt.Sprintf("column %s was number %d of its key and is number %d (0 stands for none)", a.Name, b.KeyOrdinal, a.KeyOrdinal)}
		case b.KeyOrdinal != 0 && !same:
			return step{key: fmt.Sprintf("column %s of its key has another type", a.Name)}
		case b.KeyOrdinal != 0 && relabelled(before, after, a.Type):
			return step{key: fmt.Sprintf("a label of the enum of column %s of its key was renamed", a.Name)}
		case !same:
			rows("column %s has another type", a.Name)
		case a.Name != b.Name:
			rows("column %s was renamed to %s", b.Name, a.Name)
		case b.KeyOrdinal != 0 && (a.Nondeterministic != b.Nondeterministic || a.Collation != b.Collation):
			rows("key column %s has another collation", a.Name)
		}
	}
	for i := range after.Columns {
		a := &after.Columns[i]
		if before.Counterpart(a) >= 0 {
			continue
		}
		came = append(came, a.Name)
		switch {
		case a.KeyOrdinal != 0:
			return step{key: fmt.Sprintf("column %s is new in its key", a.Name)}
		case slices.Contains(gone, a.Name):
			rows("column %s was dropped and made again", a.Name)
		case a.NotNull || missing == nil || missing(a):
			rows("column %s came with a value for the rows that were there before", a.Name)
		}
	}
	switch {
	case len(gone) > 0 && len(came) > 0:
		rows("column %s was dropped, or became %s", strings.Join(gone, ", "), strings.Join(came, ", "))
	case len(gone) > 0:
		rows("column %s was dropped", strings.Join(gone, ", "))
	}
	for i := range before.Types {
		b := &before.Types[i]
		a := after.Type(b.OID)
		if a == nil {
			continue
		}
		if relabelled(before, after, b.OID) {
			rows("a label of enum %s was renamed", b.Name)
		}
		if a.Kind != b.Kind || a.Elem != b.Elem || a.Delim != b.Delim || !slices.Equal(a.Attributes, b.Attributes) {
			rows("type %s was altered", b.Name)
		}
	}
	return st
}

// relabelled reports whether an enum, which may be that of a domain, has lost
// labels.
func relabelled(before, after *millrace.Schema, oid uint32) bool {
	for range millrace.MaxTypeNesting {
		b, a := before.Type(oid), after.Type(oid)
		if b == nil || a == nil {
			return false
		}
		if b.Kind == millrace.TypeDomain {
			oid = b.Elem
			continue
		}
		return slices.ContainsFunc(b.Labels, func(label string) bool { return !slices.Contains(a.Labels, label) })
	}
	return false
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
