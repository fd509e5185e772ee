package table

import (
	"slices"
	"strings"

	"github.com/millrace-db/millrace"
)

// Key returns the numbers of the key's columns in key order. Where there is none
// that a capture in the given mode can use, it says what is wrong and the
// statement that mends it.
func (t *Info) Key(mode millrace.Mode) (columns []int16, problem, mend string) {
	if mode == millrace.ModeTrigger {
		return t.readKey()
	}
	return t.sentKey()
}

// identifies reports whether an index tells the rows of the table apart, at least
// at the end of each transaction, by columns that are captured.
func (t *Info) identifies(i *Index) bool {
	if !i.Unique || !i.Valid || i.Partial || i.HasExpression {
		return false
	}
	for _, n := range i.Columns {
		if c := t.Column(n); c == nil || !c.NotNull || c.Generated {
			return false
		}
	}
	return true
}

// readKey is the key for a capture that reads rows as they are in a snapshot.
// One that was chosen is it, where none of its columns may be NULL. While an index
// bears out the key that is logged, that is it, whatever others there are. Otherwise it is that of the replica identity where an index was named
// for it, the primary key, or of the other indexes the oldest.
func (t *Info) readKey() (columns []int16, problem, mend string) {
	if len(t.Choice.Key) > 0 {
		return t.chosenKey()
	}
	var primary, named, other *Index
	for i := range t.Indexes {
		x := &t.Indexes[i]
		if x.Primary {
			primary = x
		}
		if x.Identity {
			named = x
		}
		switch {
		case !t.identifies(x):
		case len(t.Logged) > 0 && slices.Equal(t.names(x.Columns), t.Logged):
			return x.Columns, "", ""
		case other == nil || x.OID < other.OID:
			other = x
		}
	}
	switch {
	case t.Identity == "i" && named != nil && t.identifies(named):
		return named.Columns, "", ""
	case primary != nil && t.identifies(primary):
		return primary.Columns, "", ""
	case other != nil:
		return other.Columns, "", ""
	case primary == nil:
		return nil, "it has no primary key, and no unique index over NOT NULL columns", t.addKey()
	case !primary.Valid:
		problem = "its primary key is not valid"
	default:
		problem = "its primary key has a generated column, which is not captured"
	}
	return nil, problem, "CREATE UNIQUE INDEX ON " + t.Name.Quoted() + " (…), over NOT NULL columns that are not generated"
}

// chosenKey is the key that was chosen.
func (t *Info) chosenKey() (columns []int16, problem, mend string) {
	for _, name := range t.Choice.Key {
		i := slices.IndexFunc(t.Columns, func(c Column) bool { return c.Name == name })
		if i < 0 || t.Columns[i].Generated {
			return nil, "it has no column " + name + " to be told apart by", "begin again"
		}
		if !t.Columns[i].NotNull {
			return nil, "its column " + name + ", by which its rows are told apart, may be NULL", "ALTER TABLE " + t.Name.Quoted() + " ALTER COLUMN " + Quote(name) + " SET NOT NULL"
		}
		columns = append(columns, t.Columns[i].Number)
	}
	return columns, "", ""
}

// addKey is the statement that gives a table a key.
func (t *Info) addKey() string {
	alter := "ALTER TABLE " + t.Name.Quoted()
	return alter + " ADD PRIMARY KEY (…), or where no columns are unique: " +
		alter + " ADD COLUMN millrace_key bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY"
}

// sentKey is the key for a capture to which the source sends the key of each
// UPDATE and DELETE: the columns of the replica identity, or of the primary key
// under REPLICA IDENTITY FULL.
func (t *Info) sentKey() (columns []int16, problem, mend string) {
	usable := func(i *Index) bool { return i.Immediate && t.identifies(i) }
	var primary, identity, other *Index
	for i := range t.Indexes {
		x := &t.Indexes[i]
		switch {
		case x.Primary:
			primary = x
		case other == nil && usable(x):
			other = x
		}
		if x.Identity {
			identity = x
		}
	}
	alter := "ALTER TABLE " + t.Name.Quoted()
	switch {
	case t.Identity == "n" && primary != nil && usable(primary):
		return nil, "it has REPLICA IDENTITY NOTHING, so its updates and deletes carry no key", alter + " REPLICA IDENTITY DEFAULT"
	case t.Identity == "i" && identity != nil && usable(identity):
		return identity.Columns, "", ""
	case (t.Identity == "d" || t.Identity == "f") && primary != nil && usable(primary):
		return primary.Columns, "", ""
	}
	switch {
	case other != nil:
		mend = alter + " REPLICA IDENTITY USING INDEX " + Quote(other.Name)
	case primary == nil:
		mend = t.addKey()
	case !primary.Immediate:
		mend = alter + " DROP CONSTRAINT " + Quote(primary.Name) + ", ADD PRIMARY KEY (" + t.columnNames(primary.Columns) + ")"
	default:
		mend = alter + " REPLICA IDENTITY USING INDEX …, with a unique index over NOT NULL columns that are not generated"
	}
	switch {
	case t.Identity == "i":
		problem = "the index of its REPLICA IDENTITY is missing or not valid"
	case primary == nil:
		problem = "it has no primary key"
	case !primary.Immediate:
		problem = "its primary key is DEFERRABLE, so its updates and deletes carry no key"
	case !primary.Valid:
		problem = "its primary key is not valid"
	default:
		problem = "its primary key has a generated column, which logical decoding leaves out"
	}
	return nil, problem, mend
}

// Column returns a column by its number, or nil.
func (t *Info) Column(number int16) *Column {
	for i := range t.Columns {
		if t.Columns[i].Number == number {
			return &t.Columns[i]
		}
	}
	return nil
}

func (t *Info) names(numbers []int16) []string {
	var names []string
	for _, n := range numbers {
		if c := t.Column(n); c != nil {
			names = append(names, c.Name)
		}
	}
	return names
}

func (t *Info) columnNames(numbers []int16) string {
	names := t.names(numbers)
	for i := range names {
		names[i] = Quote(names[i])
	}
	return strings.Join(names, ", ")
}
