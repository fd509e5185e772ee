package edge

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/millrace-db/millrace"
)

// Contents is all that a snapshot of a store holds but its rows, in a form that
// knows nothing of how they are kept: what an image begins with, and what a store
// is made from again (Home.Restore). Secondary indexes are not part of it, nor is
// what verifying has found.
type Contents struct {
	// Checkpoint is where the snapshot stands. Its Catalog.Schemas is not used.
	Checkpoint *millrace.Checkpoint
	// Header is the signed header (millrace.Record.SignedHeader) of the record that
	// ends at the checkpoint; empty where it is not signed, or not known.
	Header []byte
	// Schemas are all versions of all tables, in the order of table and version:
	// rows name the version that they were written with.
	Schemas []*millrace.Schema
	// Filter is what the store holds; nil for everything. Sets of a partial store are
	// of that.
	Filter *millrace.Filter
	// Diverged are the tables that are not what the source has.
	Diverged []Divergence
	// Sets are the sets of rows, in the order of table and load.
	Sets []RowSet

	// places are the generations of the sets in the catalog that validate made; nil
	// for those that are not held.
	places []*generation
}

// Divergence is a table that is not what the source has, and why.
type Divergence struct {
	Table  millrace.TableID
	Reason string
}

// RowSet is the rows of a table that readers see or, where Load is not 0, those
// of a load that has not ended.
type RowSet struct {
	Table millrace.TableID
	Load  millrace.LoadID
	// Rows is their number.
	Rows uint64
	// Bytes is the size of their keys and rows together; 0 while it is not known.
	Bytes uint64
}

// maxSets bounds the row sets of a store: each is a database, and those cost
// memory.
const maxSets = 1 << 15

// Contents returns what the snapshot holds. It fails for a store to which nothing
// has been applied.
func (v *View) Contents() (*Contents, error) {
	checkpoint, err := v.Checkpoint()
	if err != nil {
		return nil, err
	}
	if checkpoint == nil {
		return nil, fmt.Errorf("read store %s: nothing has been applied to it yet", v.s.dir)
	}
	c := &Contents{Checkpoint: checkpoint, Filter: v.cat.filter}
	if c.Header, err = v.s.readHeader(v.txn, checkpoint.Index); err != nil {
		return nil, err
	}
	for id, t := range v.cat.tables {
		for _, s := range t.schemas {
			c.Schemas = append(c.Schemas, s)
		}
		if t.diverged != "" {
			c.Diverged = append(c.Diverged, Divergence{Table: id, Reason: t.diverged})
		}
		for _, g := range []*generation{t.live, t.shadow} {
			if g == nil {
				continue
			}
			stat, err := v.txn.Stat(g.dbi)
			if err != nil {
				return nil, v.s.fail("count rows of "+t.name(), err)
			}
			c.Sets = append(c.Sets, RowSet{Table: id, Load: g.load, Rows: stat.Entries})
		}
	}
	slices.SortFunc(c.Schemas, func(a, b *millrace.Schema) int {
		return cmp.Or(cmp.Compare(a.Table, b.Table), cmp.Compare(a.Version, b.Version))
	})
	slices.SortFunc(c.Diverged, func(a, b Divergence) int { return cmp.Compare(a.Table, b.Table) })
	slices.SortFunc(c.Sets, func(a, b RowSet) int {
		return cmp.Or(cmp.Compare(a.Table, b.Table), cmp.Compare(a.Load, b.Load))
	})
	return c, nil
}

// EachRow calls fn with the encoded key and the encoded row of all rows of a set
// that Contents gave, in the order of their store keys (millrace.StoreKey), each
// checked against its CRC. Both are valid until fn returns. It reads whatever
// MaxViewAge says, so it belongs into a Snapshot.
func (v *View) EachRow(ctx context.Context, set RowSet, fn func(key, row []byte) error) error {
	t := v.cat.tables[set.Table]
	var g *generation
	if t != nil {
		if g = t.live; set.Load != 0 {
			g = t.shadow
		}
	}
	if g == nil || g.load != set.Load {
		return fmt.Errorf("read rows of table %v, load %v: the snapshot has none", set.Table, set.Load)
	}
	var w walk
	more, err := v.seek(&w, g.name, t.seed, nil)
	var buf []byte
	var n uint64
	for ; more && err == nil; more, err = w.next() {
		if n%1024 == 0 && ctx.Err() != nil {
			return fmt.Errorf("read rows of %s: %w", t.name(), ctx.Err())
		}
		key, row, err := v.open(t.seed, w.item.key, w.item.value, &buf)
		if err != nil {
			return v.s.corruptRow(t, w.item.key, err)
		}
		if err := fn(key, row); err != nil {
			return err
		}
		n++
	}
	if err != nil {
		return v.s.corruptRow(t, w.item.key, err)
	}
	if n != set.Rows {
		return v.s.corrupt("table %s has %d rows, and says %d", t.name(), n, set.Rows)
	}
	return nil
}

// ErrContents occurs where Contents, or rows that come with them, cannot be those of a
// store. Mend: take them from elsewhere.
var ErrContents = errors.New("these cannot be the contents of a store")

// validate makes the catalog of what is to be a store's contents, of which it is to
// hold what filter says. What comes from elsewhere may be anything.
func (c *Contents) validate(filter *millrace.Filter) (*catalog, error) {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s", ErrContents, fmt.Sprintf(format, args...))
	}
	if c.Checkpoint == nil || c.Checkpoint.Index == 0 {
		return nil, bad("nothing has been applied")
	}
	if err := c.Checkpoint.Validate(); err != nil {
		return nil, bad("%v", err)
	}
	if len(c.Sets) > maxSets {
		return nil, bad("%d sets of rows, at most %d are possible", len(c.Sets), maxSets)
	}
	cat := newCatalog()
	cat.number = 1
	for _, s := range c.Schemas {
		if err := s.Validate(); err != nil {
			return nil, bad("%v", err)
		}
		t := cat.table(s.Table)
		if t.schemas[s.Version] != nil {
			return nil, bad("version %v of the schema of table %v stands twice", s.Version, s.Table)
		}
		if err := t.addSchema(s); err != nil {
			return nil, bad("%v", err)
		}
	}
	if filter != nil {
		cat.filter = filter
	}
	if !c.Filter.Covers(cat.filter) {
		return nil, fmt.Errorf("%w: they are of an edge that holds %v, and this one is to hold %v; mend: take those of an edge that holds as much", ErrWider, c.Filter, cat.filter)
	}
	if err := cat.rescope(); err != nil {
		return nil, err
	}
	for _, d := range c.Diverged {
		if t := cat.table(d.Table); t.schema == nil || !t.scope.None() {
			t.diverged = d.Reason
		}
	}
	c.places = make([]*generation, len(c.Sets))
	for i, set := range c.Sets {
		if t := cat.tables[set.Table]; t != nil && t.schema != nil && t.scope.None() {
			continue
		}
		g := &generation{name: fmt.Sprintf("t%06d", len(cat.generations)+1), usage: live, table: set.Table, load: set.Load}
		if set.Load != 0 {
			g.usage = shadow
		}
		cat.generations[g.name] = g
		if err := cat.place(g); err != nil {
			return nil, bad("%v", err)
		}
		c.places[i] = g
	}
	return cat, nil
}
