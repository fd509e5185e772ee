package wal

import (
	"errors"
	"fmt"

	"github.com/millrace-db/millrace"
)

// relation is a table as the changes to come have it.
type relation struct {
	*relationMessage
	// place is that of the message among those of the connection.
	place uint64
	// schema is nil until the first change. It was the newest that the stream
	// had of the table when the decoder's version was checked.
	schema   *millrace.Schema
	checked  millrace.SchemaVersion
	codec    *millrace.KeyCodec
	new, old []millrace.Datum
}

// relation takes the description of a table, which pgoutput sends before the
// first change and again whenever it may have changed. What the stream makes of
// it is decided at the next change.
func (d *decoder) relation(b []byte, place uint64) error {
	m, err := parseRelation(b)
	if err != nil {
		return err
	}
	d.relations[m.id] = &relation{relationMessage: m, place: place}
	return nil
}

// use returns the relation of a change, after the stream has its schema.
func (d *decoder) use(id millrace.TableID) (*relation, error) {
	if !d.begun {
		return nil, fmt.Errorf("%w: a change of table %v stands outside a transaction", ErrProtocol, id)
	}
	r := d.relations[id]
	if r == nil {
		return nil, fmt.Errorf("%w: a change of table %v, which was not described", ErrProtocol, id)
	}
	if r.checked == d.version && r.schema != nil {
		return r, nil
	}
	// The stream has got a schema since; of this table?
	if r.schema == nil || r.schema != d.schemas[id] {
		if err := d.describe(r); err != nil {
			return nil, err
		}
	}
	r.checked = d.version
	return r, nil
}

// describe finds the schema of r's changes and puts it into the stream if it is
// another one than before.
func (d *decoder) describe(r *relation) error {
	if !d.wanted[r.id] {
		// Leaves of partitioned tables are described too, beside the root that
		// their rows come under.
		return fmt.Errorf("%w: a change of table %v, which is not configured: the publication was altered; mend: millrace init", ErrPublication, r.name)
	}
	info, err := d.lookUp(r.id, r.typeOIDs())
	if err != nil {
		return err
	}
	before := d.schemas[r.id]
	if name := remade(before, info); name != "" {
		return fmt.Errorf("%w: %v: column %s was dropped and made again, which changes rows at the source without sending them; mend: begin a new epoch", ErrTableChanged, r.name, name)
	}
	s, err := schemaOf(r.relationMessage, info, before)
	if err != nil {
		return err
	}
	switch {
	case before == nil:
		return fmt.Errorf("%w: %v was never copied; mend: begin a new epoch", ErrTables, r.name)
	case before.SameAs(withVersion(s, before.Version)):
		s = before
	default:
		var missing func(string) bool
		if info != nil {
			missing = info.hasMissing
		}
		if what := reshaped(before, s, missing); what != "" {
			return fmt.Errorf("%w: %v: %s, which changes rows at the source without sending them; mend: begin a new epoch", ErrTableChanged, r.name, what)
		}
		if s, err = d.introduce(s); err != nil {
			return err
		}
	}
	if r.codec, err = millrace.NewKeyCodec(s); err != nil {
		return fmt.Errorf("%w: %v: %w", ErrTable, r.name, err)
	}
	r.schema = s
	r.new = make([]millrace.Datum, len(s.Columns))
	r.old = make([]millrace.Datum, len(s.Columns))
	return nil
}

// remade names a column of the schema before that is another one by now although
// it has the same name, or is empty. The messages do not tell the two apart.
func remade(before *millrace.Schema, info *tableInfo) string {
	if before == nil || info == nil {
		return ""
	}
	for i := range before.Columns {
		was := &before.Columns[i]
		for j := range info.columns {
			if now := &info.columns[j]; now.name == was.Name && was.Number != 0 && uint32(now.number) != was.Number {
				return was.Name
			}
		}
	}
	return ""
}

// introduce gives s the next version and puts it into the stream.
func (d *decoder) introduce(s *millrace.Schema) (*millrace.Schema, error) {
	s = withVersion(s, d.version+1)
	if err := s.Validate(); err != nil {
		return nil, err
	}
	if err := d.w.Append(&millrace.Entry{Kind: millrace.KindSchema, Table: s.Table, Schema: s}); err != nil {
		return nil, err
	}
	d.version = s.Version
	d.schemas[s.Table] = s
	return s, nil
}

func withVersion(s *millrace.Schema, v millrace.SchemaVersion) *millrace.Schema {
	c := *s
	c.Version = v
	return &c
}

// hasMissing reports whether the rows that were there before the column may have
// a value for it. A column that is gone again may have had anything.
func (t *tableInfo) hasMissing(column string) bool {
	for _, c := range t.columns {
		if c.name == column {
			return c.hasMissing
		}
	}
	return true
}

// wrap says which table an error is of.
func (r *relation) wrap(err error) error {
	if errors.Is(err, millrace.ErrTooLarge) {
		return fmt.Errorf("table %v: %w; mend: remove the value at the source, then begin a new epoch", r.name, err)
	}
	return fmt.Errorf("table %v: %w", r.name, err)
}
