package edge

import (
	"cmp"
	"context"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/bmatsuo/lmdb-go/lmdb"

	"github.com/millrace-db/millrace"
)

// View is one snapshot of a store, at the end of a unit. It and what comes from
// it are valid only within the function that View was given, and are used by
// one goroutine.
type View struct {
	s    *Store
	r    *reader
	txn  *lmdb.Txn
	head head
	// seen is what is known of the snapshot, nil for nothing.
	seen *seen
	cat  *catalog
	// first is the first Table that the view has given.
	first Table
}

// View calls fn with the newest snapshot. It returns fn's error, or why no
// snapshot could be had; where the snapshot turns out to be damaged, an
// ErrCorrupt.
//
// fn must not hold the snapshot for long (Options.MaxViewAge), so it does not
// write to the network, and must not call View.
func (s *Store) View(ctx context.Context, fn func(*View) error) error {
	r, err := s.readers.acquire(ctx)
	if err != nil {
		return err
	}
	defer s.readers.put(r)
	v := &r.view
	*v = View{s: s, r: r, txn: r.txn}
	if err := v.begin(); err != nil {
		return err
	}
	return v.run(fn)
}

// Snapshot is View for who reads everything, as an image or a copy does: the
// snapshot is held for as long as fn takes, whatever MaxViewAge says, so the file
// grows while the store is written meanwhile. It counts as one of MaxViews, and
// Close waits for it.
func (s *Store) Snapshot(ctx context.Context, fn func(*View) error) error {
	r, err := s.readers.apart(ctx)
	if err != nil {
		return err
	}
	defer s.readers.end(r)
	v := &View{s: s, r: r, txn: r.txn}
	if err := v.begin(); err != nil {
		return err
	}
	return v.run(fn)
}

// run calls fn. A value whose length was damaged may reach behind the end of
// the file; touching it is an error of this view, not the end of the process.
func (v *View) run(fn func(*View) error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		r := recover()
		if r == nil {
			return
		}
		if fault, ok := r.(interface{ Addr() uintptr }); ok {
			err = v.s.corrupt("a read went behind the end of the file, at address %x", fault.Addr())
			return
		}
		panic(r)
	}()
	return fn(v)
}

// begin reads where the snapshot stands and finds its catalog.
func (v *View) begin() error {
	for {
		if err := v.look(); err != nil {
			return err
		}
		if v.head.superseded {
			return fmt.Errorf("%w: store %s holds epoch %v; mend: close it and open its directory again", ErrSuperseded, v.s.dir, v.head.epoch)
		}
		if v.cat = v.s.catalog.Load(); v.cat.number == v.head.catalog {
			break
		}
		cat, unknown, err := v.s.readCatalog(v.txn, v.head.catalog, v.s.handle)
		if err != nil {
			return err
		}
		if len(unknown) == 0 {
			v.cat = cat
			if old := v.s.catalog.Load(); v.s.opts.ReadOnly && old.number < cat.number {
				v.s.catalog.CompareAndSwap(old, cat)
			}
			break
		}
		// Another process has made databases. The transaction learns of their
		// handles when it is renewed.
		if err := v.s.openHandles(unknown); err != nil {
			return err
		}
		v.txn.Reset()
		if err := v.s.readers.renew(v.r); err != nil {
			return v.s.fail("begin view", err)
		}
	}
	if v.s.opts.ReadOnly {
		if p := v.s.place.Load(); p.index < v.head.index || p.catalog < v.head.catalog {
			h := v.head
			v.s.publish(&h)
		}
	}
	return nil
}

// Index returns the index of the newest unit that the snapshot holds.
func (v *View) Index() millrace.Index { return v.head.index }

// Place returns where the snapshot stands.
func (v *View) Place() Place { return v.head.place() }

// Time returns when the newest unit in the snapshot was committed at the
// source; zero if none has been applied.
func (v *View) Time() time.Time { return v.head.time }

// Checkpoint returns what has been applied, or nil if nothing has.
func (v *View) Checkpoint() (*millrace.Checkpoint, error) {
	return v.s.readCheckpoint(v.txn, v.cat)
}

// TableInfo describes a table for people.
type TableInfo struct {
	// Name is the qualified name.
	Name string
	ID   millrace.TableID
	Rows uint64
	// Loading tells that a load is under way.
	Loading bool
	// Diverged says why the rows are not what the source has; empty if they
	// are.
	Diverged string
	// Prefixes are the leading values of the keys that are held, in the form of keys
	// in URLs, and Rows those of these; empty where all keys are.
	Prefixes []string
	// Indexes are those of the table that are there or declared.
	Indexes []IndexInfo
}

// Tables returns the tables that readers can see, in the order of their names.
func (v *View) Tables() ([]TableInfo, error) {
	all := make([]TableInfo, 0, len(v.cat.visible))
	for name, t := range v.cat.visible {
		rows, err := v.rows(t)
		if err != nil {
			return nil, err
		}
		all = append(all, TableInfo{Name: name, ID: t.id, Rows: rows, Loading: t.shadow != nil, Diverged: t.diverged, Prefixes: v.prefixes(name), Indexes: v.indexesOf(name, t)})
	}
	slices.SortFunc(all, func(a, b TableInfo) int { return cmp.Compare(a.Name, b.Name) })
	return all, nil
}

func (v *View) rows(t *table) (uint64, error) {
	stat, err := v.txn.Stat(t.live.dbi)
	if err != nil {
		return 0, v.s.fail("count rows of "+t.name(), err)
	}
	return stat.Entries, nil
}

// Table returns the table with the qualified name, or ErrNoTable, or ErrNotHeld where
// the store is partial and does not hold it.
func (v *View) Table(name string) (*Table, error) {
	if err := v.holdsTable(name); err != nil {
		return nil, err
	}
	t := v.cat.visible[name]
	if t == nil {
		return nil, v.noTable(name)
	}
	if v.first.v == nil { // most views look at one table, and need no memory for it
		v.first = Table{v: v, t: t}
		return &v.first, nil
	}
	return &Table{v: v, t: t}, nil
}

func (v *View) noTable(name string) error {
	for _, t := range v.cat.tables {
		if t.schema != nil && t.name() == name {
			if v.cat.partial() && t.shadow == nil {
				return fmt.Errorf("%w: table %s came to be called so without its rows; mend: millrace load %s", ErrNotHeld, name, name)
			}
			return fmt.Errorf("%w: %s: its first load has not ended", ErrNoTable, name)
		}
	}
	names := make([]string, 0, len(v.cat.visible))
	for n := range v.cat.visible {
		names = append(names, n)
	}
	if len(names) == 0 {
		return fmt.Errorf("%w: %s: the store has no tables yet", ErrNoTable, name)
	}
	const most = 20
	slices.Sort(names)
	more := ""
	if len(names) > most {
		names, more = names[:most], ", …"
	}
	return fmt.Errorf("%w: %s: there are %s%s", ErrNoTable, name, strings.Join(names, ", "), more)
}

func (v *View) usable() error {
	if v.r.isExpired() {
		return fmt.Errorf("%w: the limit is %v", ErrExpired, v.s.opts.MaxViewAge)
	}
	return nil
}

// seek begins a walk of a database whose values have checksums of a seed.
func (v *View) seek(w *walk, database string, seed uint32, stored []byte) (bool, error) {
	record, err := v.treeNamed(database)
	if err != nil {
		return false, err
	}
	w.begin(v.s, record)
	found, err := w.seek(stored)
	if err != nil {
		return false, err
	}
	if found {
		if _, err := checkValue(seed, w.item.key, w.item.value); err != nil {
			return false, fmt.Errorf("the row at its place: %w", err)
		}
	}
	// Where the place is the first of its page, a damaged key above may have led
	// past the end of the page before.
	here := w.item
	ok, err := w.behind()
	if err != nil {
		return false, err
	}
	if ok {
		if _, err := checkValue(seed, w.item.key, w.item.value); err != nil {
			return false, fmt.Errorf("the row next to it: %w", err)
		}
	}
	w.item = here
	return found, nil
}

// seekEnd begins a walk behind the last item of a database.
func (v *View) seekEnd(w *walk, database string) error {
	record, err := v.treeNamed(database)
	if err != nil {
		return err
	}
	*w = v.s.newWalk(record)
	return w.seekEnd()
}
