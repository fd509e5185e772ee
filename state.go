package millrace

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
)

// KeepRecent is the number of batches a Fold remembers, so that a late repeat
// of one of them is told from a gap.
const KeepRecent = 64

// Recent is one accepted batch, as a Fold remembers it.
type Recent struct {
	First, Last Index
	Chain       Chain
}

// Load is a load of a table that has begun and not ended.
type Load struct {
	ID    LoadID
	Table TableID
	// Progress is capture's own note of how far the load has come, at most
	// MaxProgress bytes. Nobody changes the bytes.
	Progress []byte
}

// Catalog is what a stream's schema and load entries add up to.
type Catalog struct {
	// Schemas holds the newest schema of each table, in ascending order of
	// table ID.
	Schemas []*Schema
	// Loads holds the loads under way, in ascending order of ID.
	Loads []Load
	// LastVersion and LastLoad are the highest that the stream has used.
	LastVersion SchemaVersion
	LastLoad    LoadID
}

// Schema returns the newest schema of a table, or nil.
func (c *Catalog) Schema(table TableID) *Schema {
	i, ok := slices.BinarySearchFunc(c.Schemas, table, func(s *Schema, t TableID) int { return cmp.Compare(s.Table, t) })
	if !ok {
		return nil
	}
	return c.Schemas[i]
}

// Clone returns a copy that shares the schemas and notes of progress, which
// nobody changes.
func (c *Catalog) Clone() Catalog {
	d := *c
	d.Schemas = slices.Clone(c.Schemas)
	d.Loads = slices.Clone(c.Loads)
	return d
}

// changesCatalog reports whether entries of the kind are for Catalog.apply.
func (k Kind) changesCatalog() bool {
	switch k {
	case KindSchema, KindLoadBegin, KindLoadProgress, KindLoadEnd, KindDrop:
		return true
	}
	return false
}

// apply enters an entry that changesCatalog. It keeps nothing of e but its
// schema.
func (c *Catalog) apply(e *Entry) error {
	switch e.Kind {
	case KindSchema:
		return c.addSchema(e.Schema)
	case KindLoadBegin:
		if e.Load <= c.LastLoad {
			return fmt.Errorf("%w: load %v begins after load %v", ErrMalformed, e.Load, c.LastLoad)
		}
		c.LastLoad = e.Load
		// A table has one load at a time: a new one takes the place of one that
		// was cut off.
		c.forgetLoad(e.Table)
		l := Load{ID: e.Load, Table: e.Table}
		if e.LoadInfo != nil {
			l.Progress = bytes.Clone(e.LoadInfo.Progress)
		}
		c.Loads = append(c.Loads, l)
	case KindLoadProgress:
		i, err := c.load(e, "comes on")
		if err != nil {
			return err
		}
		return c.Loads[i].note(e.LoadInfo)
	case KindLoadEnd:
		i, err := c.load(e, "ends")
		if err != nil {
			return err
		}
		c.Loads = slices.Delete(c.Loads, i, i+1)
	case KindDrop:
		return c.drop(e.Table)
	}
	return nil
}

// load finds the load that an entry is of.
func (c *Catalog) load(e *Entry, doing string) (int, error) {
	i := slices.IndexFunc(c.Loads, func(l Load) bool { return l.ID == e.Load && l.Table == e.Table })
	if i < 0 {
		return 0, fmt.Errorf("%w: load %v of table %v %s but was not under way", ErrMalformed, e.Load, e.Table, doing)
	}
	return i, nil
}

func (c *Catalog) forgetLoad(table TableID) {
	c.Loads = slices.DeleteFunc(c.Loads, func(l Load) bool { return l.Table == table })
}

// note takes over what a LoadProgress says. Other catalogs may share the bytes
// before, so they are never appended to in place.
func (l *Load) note(info *LoadInfo) error {
	if len(info.Added) == 0 {
		l.Progress = bytes.Clone(info.Progress)
		return nil
	}
	if n := len(l.Progress) + len(info.Added); n > MaxProgress {
		return fmt.Errorf("%w: note of progress of load %v of table %v would have %d bytes, the limit is %d", ErrMalformed, l.ID, l.Table, n, MaxProgress)
	}
	l.Progress = slices.Concat(l.Progress, info.Added)
	return nil
}

// drop takes a table out. Its versions stay used.
func (c *Catalog) drop(table TableID) error {
	i, ok := slices.BinarySearchFunc(c.Schemas, table, func(s *Schema, t TableID) int { return cmp.Compare(s.Table, t) })
	if !ok {
		return fmt.Errorf("%w: table %v is dropped, which the stream does not have", ErrMalformed, table)
	}
	c.Schemas = slices.Delete(c.Schemas, i, i+1)
	c.forgetLoad(table)
	return nil
}

func (c *Catalog) addSchema(s *Schema) error {
	if s.Version <= c.LastVersion {
		return fmt.Errorf("%w: schema version %v of %s comes after version %v", ErrMalformed, s.Version, s.QualifiedName(), c.LastVersion)
	}
	c.LastVersion = s.Version
	i, ok := slices.BinarySearchFunc(c.Schemas, s.Table, func(s *Schema, t TableID) int { return cmp.Compare(s.Table, t) })
	if ok {
		c.Schemas[i] = s
	} else {
		c.Schemas = slices.Insert(c.Schemas, i, s)
	}
	return nil
}

// State is what the payload of a state record holds beside its header: with
// both, a reader can begin at the record's place.
type State struct {
	Catalog Catalog
	// Recent are the newest accepted batches, oldest first.
	Recent []Recent
}

const (
	stateSchemas protowire.Number = 1
	stateLoads   protowire.Number = 2
	stateRecent  protowire.Number = 3
	stateVersion protowire.Number = 4
	stateLoadID  protowire.Number = 5

	loadID       protowire.Number = 1
	loadTable    protowire.Number = 2
	loadProgress protowire.Number = 3

	recentFirst protowire.Number = 1
	recentLast  protowire.Number = 2
	recentChain protowire.Number = 3
)

// AppendState appends the encoded form of s.
func AppendState(dst []byte, s *State) []byte {
	for _, schema := range s.Catalog.Schemas {
		dst = appendMessageField(dst, stateSchemas, func(dst []byte) []byte { return AppendSchema(dst, schema) })
	}
	for _, l := range s.Catalog.Loads {
		dst = appendMessageField(dst, stateLoads, func(dst []byte) []byte {
			dst = appendVarintField(dst, loadID, uint64(l.ID))
			dst = appendVarintField(dst, loadTable, uint64(l.Table))
			return appendBytesField(dst, loadProgress, l.Progress)
		})
	}
	dst = appendRecent(dst, stateRecent, s.Recent)
	dst = appendVarintField(dst, stateVersion, uint64(s.Catalog.LastVersion))
	return appendVarintField(dst, stateLoadID, uint64(s.Catalog.LastLoad))
}

func appendRecent(dst []byte, num protowire.Number, recent []Recent) []byte {
	for _, r := range recent {
		dst = appendMessageField(dst, num, func(dst []byte) []byte {
			dst = appendVarintField(dst, recentFirst, uint64(r.First))
			dst = appendVarintField(dst, recentLast, uint64(r.Last))
			return appendBytesField(dst, recentChain, r.Chain[:])
		})
	}
	return dst
}

// DecodeState reads what AppendState wrote. The result does not alias b.
func DecodeState(b []byte) (*State, error) {
	s, err := decodeState(b)
	if err == nil {
		err = s.validate()
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

func decodeState(b []byte) (*State, error) {
	s := new(State)
	err := eachField(b, "state", func(f *field) error {
		switch f.num {
		case stateSchemas:
			var b []byte
			if err := f.element(&b); err != nil {
				return err
			}
			schema, err := DecodeSchema(b)
			s.Catalog.Schemas = append(s.Catalog.Schemas, schema)
			return err
		case stateLoads:
			l, err := decodeLoad(f)
			s.Catalog.Loads = append(s.Catalog.Loads, l)
			return err
		case stateRecent:
			r, err := decodeRecent(f)
			s.Recent = append(s.Recent, r)
			return err
		case stateVersion:
			return f.varint((*uint64)(&s.Catalog.LastVersion))
		case stateLoadID:
			return f.varint((*uint64)(&s.Catalog.LastLoad))
		}
		return f.unknown()
	})
	return s, err
}

// validate says what no fold can have come to.
func (s *State) validate() error {
	bad := func(what string) error { return fmt.Errorf("%w: state: %s", ErrMalformed, what) }
	for i, schema := range s.Catalog.Schemas {
		if i > 0 && s.Catalog.Schemas[i-1].Table >= schema.Table {
			return bad("schemas are not in ascending order of table")
		}
		if schema.Version > s.Catalog.LastVersion {
			return bad("a schema has a version after the last")
		}
	}
	for i, l := range s.Catalog.Loads {
		if l.Table == 0 || l.ID == 0 || i > 0 && s.Catalog.Loads[i-1].ID >= l.ID {
			return bad("loads are not in ascending order")
		}
		if l.ID > s.Catalog.LastLoad {
			return bad("a load has an ID after the last")
		}
		if len(l.Progress) > MaxProgress {
			return bad("a load's note of progress is too long")
		}
	}
	if len(s.Recent) > KeepRecent {
		return bad("too many batches")
	}
	for _, r := range s.Recent {
		if r.First == 0 || r.Last < r.First {
			return bad("a batch has a bad index range")
		}
	}
	return nil
}

func decodeLoad(f *field) (l Load, err error) {
	var b []byte
	if err := f.element(&b); err != nil {
		return l, err
	}
	err = eachField(b, "load", func(f *field) error {
		switch f.num {
		case loadID:
			return f.varint((*uint64)(&l.ID))
		case loadTable:
			return f.uint32((*uint32)(&l.Table))
		case loadProgress:
			var p []byte
			err := f.bytes(&p)
			l.Progress = slices.Clone(p)
			return err
		}
		return f.unknown()
	})
	return l, err
}

func decodeRecent(f *field) (r Recent, err error) {
	var b []byte
	if err := f.element(&b); err != nil {
		return r, err
	}
	err = eachField(b, "recent batch", func(f *field) error {
		switch f.num {
		case recentFirst:
			return f.varint((*uint64)(&r.First))
		case recentLast:
			return f.varint((*uint64)(&r.Last))
		case recentChain:
			return f.fixedBytes(r.Chain[:])
		}
		return f.unknown()
	})
	return r, err
}
