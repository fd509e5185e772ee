package wal

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
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
			if t := s.Type(oid); t != nil {
				add(cause{ahead: fmt.Sprintf("type %s was altered", t.Name)}, id)
			}
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
	// ahead is the text where nothing is left to be described: the catalogs had it
	// before the stream came to it, and rows may have been sent since as they were.
	ahead string
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
	return d.loadFor(id, d.orAhead(before, c))
}
