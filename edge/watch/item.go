package watch

import (
	"encoding/json"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge/event"
	"github.com/millrace-db/millrace/internal/rowjson"
)

// Item is an event, shared by all watchers that are told of it.
type Item struct {
	op             event.Op
	epoch          millrace.Epoch
	index, unitEnd millrace.Index
	at             time.Time
	table          *table // nil for events of no table
	key, from, row []byte
	was, reason    string

	forms *forms
	text  atomic.Pointer[[]byte]
}

// Op says what the event tells of.
func (i *Item) Op() event.Op { return i.op }

// ID is the event's place.
func (i *Item) ID() event.ID { return event.ID{Epoch: i.epoch, Index: i.index} }

// UnitEnd is the index at which the event's unit ends.
func (i *Item) UnitEnd() millrace.Index { return i.unitEnd }

// Size is about how many bytes the event has as JSON.
func (i *Item) Size() int {
	n := 200 + len(i.reason) + len(i.was)
	if i.table != nil {
		n = i.table.around
	}
	return n + 2*len(i.key) + 2*len(i.from) + len(i.row) + len(i.row)/4
}

// JSON returns the event as one JSON object on one line (event.Event). The bytes are
// shared and must not be changed. It may be called by anyone at any time.
func (i *Item) JSON() ([]byte, error) {
	if text := i.text.Load(); text != nil {
		return *text, nil
	}
	text, err := i.append(make([]byte, 0, i.Size()))
	if err != nil {
		return nil, fmt.Errorf("event at index %v: %w", i.index, err)
	}
	i.text.CompareAndSwap(nil, &text)
	return text, nil
}

// Event returns the event. It shares nothing.
func (i *Item) Event() (*event.Event, error) {
	text, err := i.JSON()
	if err != nil {
		return nil, err
	}
	e := new(event.Event)
	if err := json.Unmarshal(text, e); err != nil {
		return nil, fmt.Errorf("event at index %v: %w", i.index, err)
	}
	return e, nil
}

func (i *Item) append(dst []byte) (_ []byte, err error) {
	dst = append(dst, `{"op":"`...)
	dst = append(dst, i.op...)
	dst = append(dst, `","epoch":`...)
	dst = strconv.AppendUint(dst, uint64(i.epoch), 10)
	dst = append(dst, `,"index":`...)
	dst = strconv.AppendUint(dst, uint64(i.index), 10)
	dst = append(dst, `,"unit_end":`...)
	dst = strconv.AppendUint(dst, uint64(i.unitEnd), 10)
	if !i.at.IsZero() {
		dst = append(dst, `,"time":"`...)
		dst = i.at.UTC().AppendFormat(dst, time.RFC3339Nano)
		dst = append(dst, '"')
	}
	if i.table != nil {
		if dst, err = appendMember(dst, "table", i.table.name); err != nil {
			return dst, err
		}
		if dst, err = i.appendRow(dst); err != nil {
			return dst, err
		}
	}
	if i.was != "" {
		if dst, err = appendMember(dst, "was", i.was); err != nil {
			return dst, err
		}
	}
	if i.reason != "" {
		if dst, err = appendMember(dst, "reason", i.reason); err != nil {
			return dst, err
		}
	}
	return append(dst, '}'), nil
}

// appendRow appends what an event of one row has.
func (i *Item) appendRow(dst []byte) (_ []byte, err error) {
	if dst, err = i.appendKey(dst, "key", i.key); err != nil {
		return dst, err
	}
	if dst, err = i.appendKey(dst, "old_key", i.from); err != nil || len(i.row) == 0 {
		return dst, err
	}
	var row millrace.Row
	if err := millrace.DecodeRow(i.row, &row); err != nil {
		return dst, err
	}
	rows := i.table.rows
	if row.Version != i.table.schema.Version {
		if rows, err = i.forms.older(i.epoch, row.Version, i.table); err != nil {
			return dst, err
		}
	}
	dst = append(dst, `,"row":`...)
	start := len(dst)
	var unchanged []string
	if dst, unchanged, err = rows.AppendKnown(dst, nil, &row); err != nil {
		return dst, err
	}
	oneLine(dst[start:])
	if len(unchanged) == 0 {
		return dst, nil
	}
	dst = append(dst, `,"unchanged":`...)
	return appendList(dst, unchanged)
}

func (i *Item) appendKey(dst []byte, name string, key []byte) ([]byte, error) {
	if len(key) == 0 {
		return dst, nil
	}
	texts, err := i.table.codec.Decode(key, nil)
	if err != nil {
		return dst, err
	}
	dst = append(dst, `,"`...)
	dst = append(dst, name...)
	dst = append(dst, `":`...)
	return appendList(dst, texts)
}

func appendMember(dst []byte, name, value string) ([]byte, error) {
	dst = append(dst, `,"`...)
	dst = append(dst, name...)
	dst = append(dst, `":`...)
	return rowjson.AppendString(dst, []byte(value))
}

func appendList[T ~string | ~[]byte](dst []byte, list []T) (_ []byte, err error) {
	dst = append(dst, '[')
	for i, v := range list {
		if i > 0 {
			dst = append(dst, ',')
		}
		if dst, err = rowjson.AppendString(dst, []byte(v)); err != nil {
			return dst, err
		}
	}
	return append(dst, ']'), nil
}

// oneLine takes line ends out of JSON. In texts they are escaped; what is left stands
// between values, in json that is given as it was written.
func oneLine(text []byte) {
	for i, c := range text {
		if c == '\n' || c == '\r' {
			text[i] = ' '
		}
	}
}
