package table

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
)

// Schema returns the schema that the table has in a stream which is captured in a
// mode, without a version. Errors: capture.ErrTable, capture.ErrTableChanged.
func (t *Info) Schema(mode millrace.Mode) (*millrace.Schema, error) {
	key, problem, mend := t.Key(mode)
	if problem != "" {
		return nil, fmt.Errorf("%w: %v: %s; mend: %s", capture.ErrTable, t.Name, problem, mend)
	}
	s := &millrace.Schema{Table: t.ID, Namespace: t.Name.Schema, Name: t.Name.Name}
	for i := range t.Columns {
		c := &t.Columns[i]
		if c.Generated || !t.Choice.Chooses(c.Name) {
			if slices.Contains(key, c.Number) {
				return nil, fmt.Errorf("%w: %v: source.columns leaves out column %s of its key; mend: add it there", capture.ErrTable, t.Name, c.Name)
			}
			continue
		}
		s.Columns = append(s.Columns, millrace.Column{
			Name: c.Name, Type: c.Type, Typmod: c.Typmod, Collation: c.Collation, Nondeterministic: c.Nondeterministic, NotNull: c.NotNull,
			KeyOrdinal: uint32(slices.Index(key, c.Number) + 1), Number: uint32(c.Number),
		})
	}
	return s, t.Describe(s, nil)
}

// Describe puts the descriptors of the types that s uses into it, and refuses
// types that are not carried. Types that were dropped since are described as
// they were in the schema before, which may be nil.
func (t *Info) Describe(s, before *millrace.Schema) error {
	all := millrace.Schema{Types: t.Types}
	if before != nil {
		all.Types = slices.Clone(t.Types)
		for i := range before.Types {
			if (&millrace.Schema{Types: t.Types}).Type(before.Types[i].OID) == nil {
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
				capture.ErrTableChanged, t.Name, oid, column, capture.CopyAgain)
		}
		if why := refusedType(d); why != "" {
			return fmt.Errorf("%w: %v: column %s has type %s: %s; mend: ALTER TABLE %s ALTER COLUMN %s TYPE text",
				capture.ErrTable, t.Name, column, d.Name, why, t.Name.Quoted(), Quote(column))
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
