package table

import (
	"fmt"
	"slices"
	"strings"

	"github.com/millrace-db/millrace"
)

// Step is what the step from one schema of a table to the next does beside
// describing it.
type Step struct {
	// Key says how the key changed, or is empty. The stream cannot go on then.
	Key string
	// Rows says why rows that are stored differ from the source's by now without
	// any change that tells, or is empty. The table is to be loaded then.
	Rows string
}

// Compare judges the step from one schema of a table to the next. missing tells
// of which columns old rows have a value that was never sent (see Info.Missing),
// or is nil if that is not known.
func Compare(before, after *millrace.Schema, missing func(*millrace.Column) bool) Step {
	var st Step
	var gone, came []string
	rows := func(format string, args ...any) {
		if st.Rows == "" {
			st.Rows = fmt.Sprintf(format, args...)
		}
	}
	for i := range before.Columns {
		b := &before.Columns[i]
		j := after.Counterpart(b)
		if j < 0 {
			gone = append(gone, b.Name)
			if b.KeyOrdinal != 0 {
				return Step{Key: fmt.Sprintf("column %s of its key is gone", b.Name)}
			}
			continue
		}
		a := &after.Columns[j]
		same := sameTexts(b, a)
		switch {
		case a.KeyOrdinal != b.KeyOrdinal:
			return Step{Key: fmt.Sprintf("column %s was number %d of its key and is number %d (0 stands for none)", a.Name, b.KeyOrdinal, a.KeyOrdinal)}
		case b.KeyOrdinal != 0 && !same:
			return Step{Key: fmt.Sprintf("column %s of its key has another type", a.Name)}
		case b.KeyOrdinal != 0 && relabelled(before, after, a.Type):
			return Step{Key: fmt.Sprintf("a label of the enum of column %s of its key was renamed", a.Name)}
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
			return Step{Key: fmt.Sprintf("column %s is new in its key", a.Name)}
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

// Missing tells of a column whether the rows that were there before it may have
// a value for it; nil if that is not known of any. A column that is gone again
// may have had anything.
func (t *Info) Missing() func(*millrace.Column) bool {
	if t == nil {
		return nil
	}
	return func(column *millrace.Column) bool {
		if t.Choice.Columns != nil {
			return true // it may have been there all the time, and not been chosen
		}
		for _, c := range t.Columns {
			if c.Name == column.Name && (column.Number == 0 || uint32(c.Number) == column.Number) {
				return c.HasMissing
			}
		}
		return true
	}
}
