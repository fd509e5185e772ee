package wal

import (
	"errors"
	"fmt"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/capture/table"
)

// relation is a table as the changes to come have it.
type relation struct {
	*relationMessage
	// place is that of the message among those of the connection.
	place uint64
	// schema is nil until the first change. It was the newest that the stream
	// had of the table, and told was the number of what was told of the table,
	// when the decoder's turn was checked.
	// filtered tells that not all rows are captured.
	filtered bool
	schema   *millrace.Schema
	told     uint64
	checked  uint64
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
	return d.meet(m.id)
}

// meet looks at a table that is not the stream's and is described nevertheless:
// it is a partition, whose rows come under its root's name. One that nobody has
// told of may have come with rows, and the changes to follow may be of those.
func (d *decoder) meet(id millrace.TableID) error {
	if d.strange == nil || d.schemas[id] != nil || d.met[id] || !d.begun {
		return nil
	}
	d.met[id] = true
	root, err := d.strange(id)
	if err != nil || d.schemas[root] == nil || d.plan.leaves(root) {
		return err
	}
	return d.load(root, cause{text: fmt.Sprintf("a partition came, with OID %v", id)})
}

// use returns the relation of a change, after the stream has its schema; nil for
// a table that the stream does not have. The publication has had it, and has it no
// more (its watch and the next Open see to that), or it has not joined yet.
func (d *decoder) use(id millrace.TableID) (*relation, error) {
	if !d.begun {
		return nil, fmt.Errorf("%w: a change of table %v stands outside a transaction", ErrProtocol, id)
	}
	r := d.relations[id]
	if r == nil {
		return nil, fmt.Errorf("%w: a change of table %v, which was not described", ErrProtocol, id)
	}
	if r.checked == d.turn && r.schema != nil {
		return r, nil
	}
	if d.schemas[id] == nil || d.plan.leaves(id) {
		return nil, nil
	}
	// The stream has got a schema since, or was told of an altered table; is it
	// this one?
	if r.schema == nil || r.schema != d.schemas[id] || r.told != d.told[id] {
		if err := d.describe(r); err != nil {
			return nil, err
		}
	}
	r.checked, r.told = d.turn, d.told[id]
	return r, nil
}

// describe finds the schema of r's changes and puts it into the stream if it is
// another one than before.
func (d *decoder) describe(r *relation) error {
	info, err := d.lookUp(r.id, r.typeOIDs())
	if err != nil {
		return err
	}
	before := d.schemas[r.id]
	s, err := schemaOf(r.relationMessage, info, before)
	if err != nil {
		return err
	}
	if s, err = d.adopt(before, s, info, cause{}); err != nil {
		return err
	}
	if r.codec, err = millrace.NewKeyCodec(s); err != nil {
		return fmt.Errorf("%w: %v: %w", capture.ErrTable, r.name, err)
	}
	if err := d.see(s, d.under); err != nil {
		return err
	}
	r.schema, r.filtered = s, info != nil && info.Choice.Where != ""
	r.new = make([]millrace.Datum, len(s.Columns))
	r.old = make([]millrace.Datum, len(s.Columns))
	return nil
}

// adopt makes s the newest schema of a table that the stream has, and begins a
// load where rows that are stored have changed on the way without being sent. It
// returns the schema before if that is the same. info is what the catalogs say,
// or nil; c is another reason for a load, or none: one load does for both.
func (d *decoder) adopt(before, s *millrace.Schema, info *table.Info, c cause) (*millrace.Schema, error) {
	if before.SameAs(withVersion(s, before.Version)) {
		return before, d.loadFor(before.Table, c.described())
	}
	step := table.Compare(before, s, info.Missing())
	if step.Key != "" {
		return nil, fmt.Errorf("%w: %s: %s; mend: %s, or begin a new epoch", capture.ErrKeyChanged, s.QualifiedName(), step.Key, capture.CopyAgain)
	}
	s, err := d.introduce(s)
	if err != nil {
		return s, err
	}
	if step.Rows != "" {
		c.text = step.Rows // it says more
	}
	return s, d.loadFor(s.Table, c)
}

// described is c where nothing is left to be described.
func (c cause) described() cause {
	if c.text == "" {
		c.text = c.ahead
	}
	return c
}

// loadFor begins a load if there is a cause.
func (d *decoder) loadFor(id millrace.TableID, c cause) error {
	if c.text == "" {
		return nil
	}
	return d.load(id, c)
}

// load begins a load of a table where the unit under way stands, because rows
// have changed at the source without being sent. A unit begins one load of a
// table, since none of its rows can be loaded before the unit has ended; but where
// rows have gone, those that the unit itself has put since are among them.
func (d *decoder) load(id millrace.TableID, c cause) error {
	if d.loaded[id] && !c.gone {
		return nil
	}
	d.log.Info("load begins", "table", d.schemas[id].QualifiedName(), "reason", c.text)
	return d.beginLoad(id, c, false)
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
	d.loads.described(s)
	d.turn++
	return s, nil
}

func withVersion(s *millrace.Schema, v millrace.SchemaVersion) *millrace.Schema {
	c := *s
	c.Version = v
	return &c
}

// wrap says which table an error is of.
func (r *relation) wrap(err error) error {
	if errors.Is(err, millrace.ErrTooLarge) {
		return fmt.Errorf("table %v: %w; mend: remove the value at the source, then begin a new epoch", r.name, err)
	}
	return fmt.Errorf("table %v: %w", r.name, err)
}
