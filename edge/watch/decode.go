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

// decode takes a batch apart. unit is the end of the unit before it, and from are the
// tables there; unitEnd says where the unit ends that the batch is in the middle of, and
// when that was committed. The record's bytes are not kept.
func (f *forms) decode(r *edgelog.Record, unit millrace.Index, from tables, unitEnd func() (millrace.Index, time.Time, error)) (*block, error) {
	record, err := millrace.DecodeRecord(r.Value, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: batch from index %v on: %w", errRecord, r.Header.First, err)
	}
	if n := len(record.Payload); n > 0 && n <= len(r.Value) && &record.Payload[0] == &r.Value[len(r.Value)-n] {
		record.Payload = bytes.Clone(record.Payload)
	}
	d := decoder{forms: f, epoch: record.Epoch, tables: from}
	d.b = &block{before: record.First - 1, last: record.Last(), from: from, weight: int64(len(record.Payload))}
	open, err := d.entries(record, unit)
	if err != nil {
		return nil, err
	}
	if d.ended < len(d.b.items) {
		end, at := record.Last(), record.Time
		if open {
			if end, at, err = unitEnd(); err != nil {
				return nil, err
			}
			if end <= record.Last() {
				return nil, fmt.Errorf("%w: the unit of index %v does not end", errRecord, record.Last())
			}
		}
		d.end(end, at)
	}
	d.b.to = d.tables
	return d.b, nil
}

// entries takes the entries of a batch. open tells that the unit of the last one goes on.
func (d *decoder) entries(record *millrace.Record, unit millrace.Index) (open bool, err error) {
	all, err := record.Entries(unit)
	if err != nil {
		return false, fmt.Errorf("%w: batch from index %v on: %w", errRecord, record.First, err)
	}
	// part is the end of a partial batch's unit, whose own last entry may not be here.
	var part millrace.Index
	for {
		var h millrace.Head
		i, more, err := all.Next(&h)
		if err != nil {
			return false, fmt.Errorf("%w: batch from index %v on: %w", errRecord, record.First, err)
		}
		if !more {
			return open, nil
		}
		end, goesOn := all.UnitEnd()
		if end != part {
			d.end(part, time.Time{})
			part = end
		}
		if err := d.entry(&h, i); err != nil {
			return false, fmt.Errorf("%w: index %v: %w", errRecord, i, err)
		}
		open = goesOn || end == 0 && !h.Last
		if h.Last {
			d.end(i, h.End.Time)
		}
	}
}

type decoder struct {
	forms  *forms
	epoch  millrace.Epoch
	tables tables
	b      *block
	// ended is how many items have the end of their unit.
	ended int
}

// end gives the items that have none the end of their unit.
func (d *decoder) end(end millrace.Index, at time.Time) {
	for ; d.ended < len(d.b.items); d.ended++ {
		item := &d.b.items[d.ended]
		item.unitEnd, item.at = end, at
		d.b.weight += int64(item.Size())
	}
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

// changes brings what a batch has of schemas and dropped tables into the tables.
func (f *forms) changes(batch *millrace.Record, unit millrace.Index, t tables) (tables, error) {
	all, err := batch.Entries(unit)
	if err != nil {
		return nil, err
	}
	for {
		var h millrace.Head
		_, more, err := all.Next(&h)
		if err != nil || !more {
			return t, err
		}
		if h.Kind != millrace.KindSchema && h.Kind != millrace.KindDrop {
			continue
		}
		var e millrace.Entry
		if err := millrace.DecodeEntry(h.Body, &e); err != nil {
			return nil, err
		}
		if e.Kind == millrace.KindDrop {
			t = t.without(e.Table)
			continue
		}
		one, err := f.get(batch.Epoch, e.Schema)
		if err != nil {
			return nil, err
		}
		t = t.with(one)
	}
}
