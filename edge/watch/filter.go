package watch

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge/event"
)

// filter says which events a watcher is told. It is used by one goroutine.
type filter struct {
	names   []string
	prefix  []string
	partial bool
	// holds is what the edge has of the stream.
	holds *millrace.Filter
	// known are tables that were looked at.
	known map[*table]match
}

// match is what a filter makes of a table.
type match struct {
	named  bool
	prefix []byte
	err    error
}

func newFilter(o *Options, holds *millrace.Filter) (*filter, error) {
	f := &filter{names: o.Tables, holds: holds, known: make(map[*table]match)}
	if len(o.Tables) == 0 && !holds.All() {
		return nil, fmt.Errorf("%w: this edge holds %v, and not all of the stream; name tables that it holds", ErrNotHeld, holds)
	}
	var err error
	if f.prefix, f.partial, err = millrace.ParseKeyPrefix(o.Prefix); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrPrefix, err)
	}
	if o.Prefix != "" && len(o.Tables) != 1 {
		return nil, fmt.Errorf("%w: a prefix is of one table, %d are named", ErrPrefix, len(o.Tables))
	}
	return f, nil
}

// of looks at a table.
func (f *filter) of(t *table) match {
	m, ok := f.known[t]
	if ok {
		return m
	}
	if m.named = len(f.names) == 0 || slices.Contains(f.names, t.name); m.named && (len(f.prefix) > 0 || f.partial) {
		texts := make([][]byte, len(f.prefix))
		for i, v := range f.prefix {
			texts[i] = []byte(v)
		}
		if m.prefix, m.err = t.codec.AppendPrefix(nil, texts, f.partial); m.err != nil {
			m.err = fmt.Errorf("%w: table %s: %w", ErrPrefix, t.name, m.err)
		}
	}
	if m.named && m.err == nil && !f.holds.All() {
		m.err = f.held(t, m.prefix)
	}
	if len(f.known) >= maxForms {
		clear(f.known)
	}
	f.known[t] = m
	return m
}

// held says why not all changes of a table's keys under a prefix come to this edge.
func (f *filter) held(t *table, prefix []byte) error {
	scope, err := f.holds.Scope(t.schema)
	if err != nil || !scope.HoldsAll(prefix) {
		return fmt.Errorf("%w: table %s, as far as it is to be watched; this edge holds %v", ErrNotHeld, t.name, f.holds)
	}
	return nil
}

// lets reports whether a watcher is to be told.
func (f *filter) lets(i *Item) (bool, error) {
	if i.table == nil {
		return len(f.names) == 0, nil
	}
	m := f.of(i.table)
	if !m.named {
		return i.was != "" && slices.Contains(f.names, i.was), nil
	}
	if m.err != nil {
		return false, m.err
	}
	switch i.op {
	case event.Put, event.Delete, event.Quarantine:
		return len(i.key) == 0 || bytes.HasPrefix(i.key, m.prefix), nil
	}
	return true, nil // it is of all rows
}
