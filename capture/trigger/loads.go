package trigger

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
)

// loads are the loads under way. Windows carry them: a chunk is read in the
// transaction of a window whose own rows have been read, and goes out as a unit
// behind it, at its Position. What its snapshot sees is what the stream has brought
// by then, so nothing of it is left out.
//
// The methods that the Source's goroutine calls hold the Source's turn.
type loads struct {
	c    *Capture
	wake func()

	mu       sync.Mutex
	tables   map[millrace.TableID]*captured
	names    map[millrace.TableID]string
	requests map[millrace.TableID]string
	under    map[millrace.TableID]millrace.LoadID
	last     millrace.LoadID
}

// resumeLoads takes up the loads of a catalog.
func (c *Capture) resumeLoads(catalog *millrace.Catalog, wake func()) (*loads, error) {
	l := &loads{
		c: c, wake: wake, last: catalog.LastLoad, requests: make(map[millrace.TableID]string),
		tables: make(map[millrace.TableID]*captured), names: make(map[millrace.TableID]string), under: make(map[millrace.TableID]millrace.LoadID),
	}
	for i := range catalog.Loads {
		l.under[catalog.Loads[i].Table] = catalog.Loads[i].ID
	}
	return l, nil
}

// begin writes the begin of a load into the unit under way. Where one of the table
// is under way already, the new one takes its place. initial loads end together.
func (l *loads) begin(w *millrace.UnitWriter, t *captured, reason string, initial bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last++
	l.under[t.id] = l.last
	l.c.metrics.loads.Inc()
	if err := w.Append(&millrace.Entry{Kind: millrace.KindLoadBegin, Table: t.id, Load: l.last, LoadInfo: &millrace.LoadInfo{Reason: reason}}); err != nil {
		return fmt.Errorf("load of %s: %w", t.schema.QualifiedName(), err)
	}
	return nil
}

// described tells that a table of the stream has another schema, or its first.
func (l *loads) described(t *captured) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tables[t.id], l.names[t.id] = t, t.schema.QualifiedName()
}

// dropped tells that a table has left the stream.
func (l *loads) dropped(id millrace.TableID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.tables, id)
	delete(l.names, id)
	delete(l.under, id)
}

// due says when a window is wanted so that something can be read in it, if any is.
func (l *loads) due() (at time.Time, wanted bool) { return time.Time{}, false }

// read reads in the transaction of a window, after its rows. It returns the units
// that follow the window's, at its Position; each fits into memory. It is called
// only for windows for which due said so when they were begun, and not for those
// with many rows.
func (l *loads) read(ctx context.Context, w *window) ([]*millrace.Unit, error) { return nil, nil }

// asked returns the tables that are to be loaded because somebody asked for it, with
// the reasons, and forgets them.
func (l *loads) asked() map[millrace.TableID]string {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := l.requests
	l.requests = make(map[millrace.TableID]string)
	return all
}

// RequestLoad asks for a load of a table of the stream. It begins with the next
// window. Errors: capture.ErrNoTable, capture.ErrLoading.
func (s *Source) RequestLoad(_ context.Context, table, reason string) error {
	l := s.loads
	l.mu.Lock()
	defer l.mu.Unlock()
	var names []string
	for id, name := range l.names {
		if name != table {
			names = append(names, name)
			continue
		}
		if l.under[id] != 0 || l.requests[id] != "" {
			return fmt.Errorf("%w: %s", capture.ErrLoading, table)
		}
		if reason == "" {
			reason = "somebody asked for it"
		}
		l.requests[id] = reason
		l.wake()
		return nil
	}
	slices.Sort(names)
	return fmt.Errorf("%w: %s; it has %s", capture.ErrNoTable, table, strings.Join(names, ", "))
}
