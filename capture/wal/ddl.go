package wal

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/capture/chunk"
	"github.com/millrace-db/millrace/capture/table"
)

// ddlPrefix is that of the messages that the event triggers of the control
// schema write in the transaction of a DDL command, and that the attendant writes
// where it finds that rows came or went without being sent.
//
// Whoever may run SQL may write such messages. So they are taken as hints: tables
// are looked up in the catalogs and described as those say, and at worst a table
// is loaded that did not need it. One that cannot be read is left out.
const ddlPrefix = reservedPrefix + "ddl"

// ddlMessage is the content of such a message, in JSON. Tables are named by OID,
// partitions by their root; tables of other streams may be among them.
type ddlMessage struct {
	Tag string `json:"tag"`
	// Tables were altered. Types were; which tables have them the schemas tell.
	Tables []millrace.TableID `json:"tables"`
	Types  []uint32           `json:"types"`
	// Rewritten tables have rows other than before, Partitions others.
	Rewritten  []millrace.TableID `json:"rewritten"`
	Partitions []millrace.TableID `json:"partitions"`
	// Doubt says that the trigger failed: anything may have happened.
	Doubt bool `json:"doubt"`

	// Stream, Load and Reason are the attendant's: tables of the stream that it
	// wants to be loaded.
	Stream string             `json:"stream"`
	Load   []millrace.TableID `json:"load"`
	Reason string             `json:"reason"`
}

// altered are the tables that a message is about, each with the cause to load
// it, or none if it is only to be described anew. schemas are the
// stream's.
func (m *ddlMessage) altered(stream string, schemas map[millrace.TableID]*millrace.Schema) map[millrace.TableID]cause {
	all := make(map[millrace.TableID]cause)
	add := func(c cause, ids ...millrace.TableID) {
		for _, id := range ids {
			if schemas[id] != nil && all[id].text == "" {
				all[id] = c
			}
		}
	}
	tag := capture.Text(m.Tag)
	add(cause{text: fmt.Sprintf("a partition came or went (%s)", tag), gone: true}, m.Partitions...)
	if m.Stream == stream {
		add(cause{text: cmp.Or(capture.Text(m.Reason), "somebody asked for it"), gone: true}, m.Load...)
	}
	if m.Doubt {
		add(cause{text: fmt.Sprintf("what %s did to it is not known", tag), gone: true}, slices.Collect(maps.Keys(schemas))...)
	}
	add(cause{text: fmt.Sprintf("it was rewritten (%s)", tag)}, m.Rewritten...)
	add(cause{}, m.Tables...)
	for id, s := range schemas {
		for _, oid := range m.Types {
			t := s.Type(oid)
			if t == nil {
				continue
			}
			c := all[id]
			if alterable(t) {
				c.ahead = fmt.Sprintf("type %s was altered", t.Name)
			}
			add(c, id)
		}
	}
	return all
}

// cause is why a table is loaded again.
type cause struct {
	// text says it to people; it is empty where there is no cause.
	text string
	// gone tells that rows may have gone without being sent, beside those that
	// came or changed.
	gone bool
	// ahead is the text where the catalogs may have had it before the stream came to it:
	// rows may have been sent since as they were, and nothing be left to be described.
	ahead string
}

// alterable reports whether commands change what values of a type look like.
func alterable(t *millrace.TypeDesc) bool {
	return t.Kind == millrace.TypeEnum || t.Kind == millrace.TypeComposite
}

// see takes a snapshot of the source for a table whose types may be altered.
func (d *decoder) see(s *millrace.Schema, into map[millrace.TableID]chunk.Snapshot) (err error) {
	if slices.ContainsFunc(s.Types, func(t millrace.TypeDesc) bool { return alterable(&t) }) {
		into[s.Table], err = d.snapshot()
	}
	return err
}

// doubt decides on what was ahead by the transaction under way. Changes that were sent under
// a description which saw it were described as what they were not yet, unless a load that
// saw it has begun since. Who described them before us is not known: then there is a
// cause only where nothing is left to be described.
func (d *decoder) doubt(id millrace.TableID, c cause) cause {
	if c.text != "" || c.ahead == "" {
		return c
	}
	sees := func(s chunk.Snapshot) bool { return s.Sees(chunk.Widen(d.begin.xid, s.Xmax)) }
	under, known := d.under[id]
	if !known {
		under = d.loads.first
	}
	switch {
	case d.asSent || !sees(under) || sees(d.read[id]):
		c.ahead = ""
	case known:
		c.text = c.ahead
	}
	return c
}

// ddl takes a message about DDL.
func (d *decoder) ddl(content []byte) error {
	var m ddlMessage
	if json.Unmarshal(content, &m) != nil {
		return nil //nolint:nilerr // anybody may write such a message; one that cannot be read says nothing
	}
	all := m.altered(d.stream, d.schemas)
	if len(all) == 0 {
		return nil
	}
	if err := d.settled(d.begin.xid); err != nil {
		return err
	}
	for _, id := range slices.Sorted(maps.Keys(all)) {
		if err := d.alter(id, all[id]); err != nil {
			return err
		}
	}
	return nil
}

// alter describes a table as the catalogs have it by now, and loads it if there
// is a reason to, or if the description gives one. Otherwise what is stored of a
// table that nobody writes to would stay as it was.
//
// The catalogs may be ahead of the stream. What they say is good enough for the
// rows of a load, and changes that follow are described by themselves. What
// cannot be followed is left to them too: a key may be gone in between two
// commands.
func (d *decoder) alter(id millrace.TableID, c cause) error {
	d.told[id]++
	d.turn++
	c = d.doubt(id, c)
	info, err := d.lookUp(id, nil)
	if err != nil {
		return err
	}
	before := d.schemas[id]
	if info != nil {
		if s, err := info.Schema(millrace.ModeWAL); err == nil {
			step := table.Compare(before, s, info.Missing())
			if d.asSent && step == (table.Step{}) {
				return d.loadFor(id, c) // whoever has other rows to send describes it
			}
			if step.Key == "" {
				_, err := d.adopt(before, s, info, c)
				return err
			}
		}
	}
	return d.loadFor(id, c.described())
}
