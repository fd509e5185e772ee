package wal

import (
	"errors"
	"fmt"
	"slices"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/capture/table"
)

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
	name     table.Name
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
	if s.Namespace != m.name.Schema || s.Name != m.name.Name || len(s.Columns) != len(m.columns) {
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
func schemaOf(m *relationMessage, info *table.Info, before *millrace.Schema) (*millrace.Schema, error) {
	if info == nil {
		if before != nil && m.describes(before) {
			return before, nil
		}
		return nil, fmt.Errorf("%w: %v was dropped at the source before its last changes could be described; mend: %s, or begin a new epoch", capture.ErrTableChanged, m.name, capture.CopyAgain)
	}
	s, err := info.Schema(millrace.ModeWAL)
	if err == nil && m.describes(s) {
		return s, nil
	}
	if errors.Is(err, capture.ErrTable) && before == nil {
		return nil, err
	}
	return fromMessage(m, info, before)
}

// fromMessage builds a schema from m where the catalog has gone on: names, types
// and key are the message's, the rest is the catalog's so far as it still knows
// the columns.
func fromMessage(m *relationMessage, info *table.Info, before *millrace.Schema) (*millrace.Schema, error) {
	if m.identity == 'n' {
		return nil, fmt.Errorf("%w: %v: it has REPLICA IDENTITY NOTHING; mend: ALTER TABLE %s REPLICA IDENTITY DEFAULT, then %s; or begin a new epoch", capture.ErrTable, m.name, m.name.Quoted(), capture.CopyAgain)
	}
	s := &millrace.Schema{Table: m.id, Namespace: m.name.Schema, Name: m.name.Name}
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
		for _, now := range info.Columns {
			if now.Name == d.name && now.Type == d.typ {
				c.Collation, c.Nondeterministic, c.NotNull, c.Number = now.Collation, now.Nondeterministic, now.NotNull, uint32(now.Number)
			}
		}
		s.Columns = append(s.Columns, c)
	}
	if err := m.setKey(s, info, before); err != nil {
		return nil, err
	}
	return s, info.Describe(s, before)
}

// setKey numbers the key columns of s. The message tells which they are, but
// not in which order: that comes from the catalog or the schema before, if they
// have the same ones, and is that of the columns otherwise.
func (m *relationMessage) setKey(s *millrace.Schema, info *table.Info, before *millrace.Schema) error {
	var flagged []string
	for _, d := range m.columns {
		if d.key {
			flagged = append(flagged, d.name)
		}
	}
	var orders [][]string
	if numbers, problem, mend := info.Key(millrace.ModeWAL); problem == "" {
		var names []string
		for _, n := range numbers {
			names = append(names, info.Column(n).Name)
		}
		orders = append(orders, names)
	} else if m.identity == 'f' {
		// Such a message does not tell whether any columns are unique.
		return fmt.Errorf("%w: %v: %s; mend: %s, then %s; or begin a new epoch", capture.ErrKeyChanged, m.name, problem, mend, capture.CopyAgain)
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
	return fmt.Errorf("%w: %v: its changes carry no key any more; mend: give it a primary key, then %s; or begin a new epoch", capture.ErrKeyChanged, m.name, capture.CopyAgain)
}

func sameNames(a, b []string) bool {
	a, b = slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b))
	return slices.Equal(a, b)
}
