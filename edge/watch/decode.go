package watch

import (
	"bytes"
	"fmt"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge/event"
	edgelog "github.com/millrace-db/millrace/edge/log"
)

// block is what one batch of the log tells: everything after the index before, up to
// last. It is shared and not changed.
type block struct {
	before, last millrace.Index
	items        []Item
	// from are the tables at before, to those at last.
	from, to tables
	// weight is about how many bytes of memory it comes to hold.
	weight int64
}

// decode takes a batch apart. from are the tables before it; unitEnd says where the unit
// ends that the batch is in the middle of, and when that was committed. The record's
// bytes are not kept.
func (f *forms) decode(r *edgelog.Record, from tables, unitEnd func() (millrace.Index, time.Time, error)) (*block, error) {
	record, err := millrace.DecodeRecord(r.Value, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: batch from index %v on: %w", errRecord, r.Header.First, err)
	}
	if n := len(record.Payload); n > 0 && n <= len(r.Value) && &record.Payload[0] == &r.Value[len(r.Value)-n] {
		record.Payload = bytes.Clone(record.Payload)
	}
	d := decoder{forms: f, epoch: record.Epoch, tables: from}
	d.b = &block{before: record.First - 1, last: record.Last(), from: from, weight: int64(len(record.Payload))}
	payload, open := record.Payload, 0 // items before it have their unit's end
	var h millrace.Head
	for i := record.First; i <= record.Last(); i++ {
		if payload, err = millrace.NextHead(payload, &h); err == nil {
			err = d.entry(&h, i)
		}
		if err != nil {
			return nil, fmt.Errorf("%w: index %v: %w", errRecord, i, err)
		}
		if h.Last {
			open = d.end(open, i, h.End.Time)
		}
	}
	if !h.Last {
		end, at, err := unitEnd()
		if err != nil {
			return nil, err
		}
		if end <= record.Last() {
			return nil, fmt.Errorf("%w: the unit of index %v does not end", errRecord, record.Last())
		}
		d.end(open, end, at)
	}
	d.b.to = d.tables
	return d.b, nil
}

type decoder struct {
	forms  *forms
	epoch  millrace.Epoch
	tables tables
	b      *block
}

// end gives the items from open on the end of their unit.
func (d *decoder) end(open int, end millrace.Index, at time.Time) int {
	for i := open; i < len(d.b.items); i++ {
		d.b.items[i].unitEnd, d.b.items[i].at = end, at
		d.b.weight += int64(d.b.items[i].size())
	}
	return len(d.b.items)
}

// ops are the kinds of entries that watchers are told of.
var ops = [millrace.NumKinds]event.Op{
	millrace.KindPut: event.Put, millrace.KindDelete: event.Delete, millrace.KindTruncate: event.Truncate,
	millrace.KindSchema: event.Schema, millrace.KindLoadEnd: event.Reload, millrace.KindDrop: event.Drop,
	millrace.KindQuarantine: event.Quarantine,
}

func (d *decoder) entry(h *millrace.Head, index millrace.Index) error {
	op := ops[h.Kind]
	if op == "" {
		return nil
	}
	var e millrace.Entry
	if err := millrace.DecodeEntry(h.Body, &e); err != nil {
		return err
	}
	if e.Kind == millrace.KindPut && e.Load != 0 {
		return nil // nobody sees rows of a load before its end
	}
	var was string
	t := d.tables[e.Table]
	switch e.Kind {
	case millrace.KindSchema:
		now, err := d.forms.get(d.epoch, e.Schema)
		if err != nil {
			return err
		}
		if t != nil && t.name != now.name {
			was = t.name
		}
		t, d.tables = now, d.tables.with(now)
	case millrace.KindDrop:
		d.tables = d.tables.without(e.Table)
	}
	if t == nil && e.Kind != millrace.KindQuarantine {
		return fmt.Errorf("%v entry of table %v, of which there is no schema", e.Kind, e.Table)
	}
	d.b.items = append(d.b.items, Item{
		op: op, epoch: d.epoch, index: index, table: t, key: e.Key, row: e.Row, was: was, forms: d.forms,
	})
	item := &d.b.items[len(d.b.items)-1]
	switch {
	case e.Quarantine != nil:
		item.reason = e.Quarantine.Reason
		if t == nil {
			item.key = nil // nobody can say what its columns are
		}
	case len(e.From) > 0 && !bytes.Equal(e.From, e.Key):
		item.from = e.From
	}
	return nil
}

// change brings a schema or drop entry into the tables.
func (f *forms) change(epoch millrace.Epoch, t tables, h *millrace.Head) (tables, error) {
	if h.Kind != millrace.KindSchema && h.Kind != millrace.KindDrop {
		return t, nil
	}
	var e millrace.Entry
	if err := millrace.DecodeEntry(h.Body, &e); err != nil {
		return nil, err
	}
	if e.Kind == millrace.KindDrop {
		return t.without(e.Table), nil
	}
	one, err := f.get(epoch, e.Schema)
	if err != nil {
		return nil, err
	}
	return t.with(one), nil
}
