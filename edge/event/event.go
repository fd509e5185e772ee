// Package event holds what watchers of a stream are told, as the edge writes it and as
// clients read it. It does no I/O and needs no C compiler.
package event

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/millrace-db/millrace"
)

// Op says what an Event tells of.
type Op string

// What events tell of. Those up to Quarantine are of one table and have an index of
// their own.
const (
	// Put: the row of Key is Row from here on.
	Put Op = "put"
	// Delete: there is no row of Key from here on.
	Delete Op = "delete"
	// Truncate: the table is empty from here on.
	Truncate Op = "truncate"
	// Reload: a load of the table has ended, and all of its rows were exchanged at
	// once. Rows that were known of it are to be read again.
	Reload Op = "reload"
	// Schema: the table has other columns, or another name (Was), from here on.
	Schema Op = "schema"
	// Drop: the table has left the stream, with its rows.
	Drop Op = "drop"
	// Quarantine: a change was kept back (Reason), so the table is not what the
	// source has until it is loaded.
	Quarantine Op = "quarantine"
	// Epoch: the stream was begun anew, with all its rows. Everything that was known
	// of it is to be read again; changes come from Index on, of the epoch Epoch.
	Epoch Op = "epoch"
	// Progress: everything up to Index has been told of.
	Progress Op = "progress"
	// Gone: the edge no longer has what comes next, and the watch ends. Index is the
	// oldest place that it could begin behind. What was known is to be read again.
	Gone Op = "gone"
	// End: the watch ends for a Reason that asking again does not mend.
	End Op = "end"
)

// Event is one thing that watchers are told. In JSON it is one object, with the names
// of the fields in lower case.
type Event struct {
	Op    Op             `json:"op"`
	Epoch millrace.Epoch `json:"epoch"`
	// Index is the event's place in the stream's epoch: no other event has it.
	Index millrace.Index `json:"index"`
	// UnitEnd is the index of the last entry of the unit that the event belongs to:
	// what is of one unit became visible at once. A watcher has been told all of a
	// unit when an event or a Progress has come whose Index is at or after it.
	UnitEnd millrace.Index `json:"unit_end"`
	// Time is when the unit was committed at the source.
	Time time.Time `json:"time,omitzero"`
	// Table is the qualified name, as of this event.
	Table string `json:"table,omitempty"`
	// Key are the texts of the key's columns, in key order, in the form that all equal
	// values share. OldKey is set in a Put of a row that had that key before; a Delete
	// of the old key follows in the same unit.
	Key    []string `json:"key,omitempty"`
	OldKey []string `json:"old_key,omitempty"`
	// Row is the row as reads show it, without the columns that Unchanged names: their
	// values did not change and were not sent again.
	Row       json.RawMessage `json:"row,omitempty"`
	Unchanged []string        `json:"unchanged,omitempty"`
	// Was is the table's name before a Schema that renamed it.
	Was string `json:"was,omitempty"`
	// Reason says why a Quarantine was.
	Reason string `json:"reason,omitempty"`
}

// ID is the event's place, to resume behind.
func (e *Event) ID() ID { return ID{e.Epoch, e.Index} }

// ID is a place in a stream. The zero ID stands for none.
type ID struct {
	Epoch millrace.Epoch
	Index millrace.Index
}

// String returns epoch and index with a dash between them, as in 1-4711.
func (id ID) String() string { return string(id.Append(nil)) }

// Append appends what String returns.
func (id ID) Append(dst []byte) []byte {
	dst = strconv.AppendUint(dst, uint64(id.Epoch), 10)
	return strconv.AppendUint(append(dst, '-'), uint64(id.Index), 10)
}

// IsZero reports whether id is none.
func (id ID) IsZero() bool { return id == ID{} }

// ParseID reads what String writes, and an index alone: its Epoch is 0, which stands for
// the one that is served.
func ParseID(s string) (ID, error) {
	epoch, index, both := strings.Cut(s, "-")
	if !both {
		epoch, index = "", s
	}
	i, err := strconv.ParseUint(index, 10, 64)
	if err != nil {
		return ID{}, fmt.Errorf("place %q: want an index, or epoch and index as in 1-4711", s)
	}
	id := ID{Index: millrace.Index(i)}
	if both {
		e, err := strconv.ParseUint(epoch, 10, 64)
		if err != nil || e == 0 {
			return ID{}, fmt.Errorf("place %q: want an index, or epoch and index as in 1-4711", s)
		}
		id.Epoch = millrace.Epoch(e)
	}
	return id, nil
}
