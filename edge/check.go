package edge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/bmatsuo/lmdb-go/lmdb"

	"github.com/millrace-db/millrace"
)

// Check walks everything that is stored and returns an ErrCorrupt that names
// the first thing that is not as it must be: the pages of the file, checkpoint
// and catalog, every value's CRC, key and row, and the counts. It reads from one
// snapshot, which it holds however long it takes, so the file grows when the
// store is written at the same time.
func (s *Store) Check(ctx context.Context) error {
	for {
		err := s.View(ctx, func(v *View) error {
			if err := s.checkPages(ctx, v.txn); err != nil {
				return err
			}
			// The walk reads through LMDB directly, so the age limit on views
			// does not end it.
			c := &checker{ctx: ctx, s: s, v: v}
			for _, step := range []func() error{c.records, c.databases, c.place, c.rows} {
				if err := step(); err != nil {
					return err
				}
			}
			return nil
		})
		// The writer may be faster than the first read of a snapshot.
		if !errors.Is(err, errMetaMoved) {
			return err
		}
	}
}

type checker struct {
	ctx context.Context
	s   *Store
	v   *View
	cat *catalog
	// missing counts the rows listed as lacking columns, by database.
	missing map[string]uint64
	// pieces tells that there is a database of pieces, inUse sums up those that
	// values name.
	pieces bool
	inUse  pieceSum
	// entries counts the rows that an index has to have, by its database.
	entries map[string]uint64
	places  places
}

// records reads the catalog anew and counts what readCatalog passes over.
func (c *checker) records() error {
	cat, unknown, err := c.s.readCatalog(c.v.txn, c.v.head.catalog, c.s.handle)
	if err != nil {
		return err
	}
	if len(unknown) > 0 {
		return c.s.corrupt("databases %v are in use and do not exist", unknown)
	}
	if err := c.s.eachDifferences(c.v.txn, func(millrace.TableID, []difference) {}); err != nil {
		return err
	}
	c.cat = cat
	c.missing = make(map[string]uint64)
	return c.walk(c.s.meta, metaName, func(k, v []byte) error {
		if len(k) < 2 || k[1] != 0 {
			if !slices.ContainsFunc([][]byte{keyFormat, keyStream, keyHead, keyCheckpoint, keyHeader, keyUnproven, keyFilter, keyNarrowing}, func(known []byte) bool { return bytes.Equal(known, k) }) {
				return c.s.corrupt("meta record %q is of an unknown kind", k)
			}
			return nil
		}
		if k[0] != prefixMissing {
			return nil
		}
		name, _, ok := bytes.Cut(k[2:], []byte{0})
		g := cat.generations[string(name)]
		if !ok || g == nil || g.usage != shadow && g.usage != garbage {
			return c.s.corrupt("meta record %q lists a row that lacks columns, and is not of a shadow generation", k)
		}
		c.missing[g.name]++
		return nil
	})
}

// databases compares the named databases with the records of their use.
func (c *checker) databases() error {
	found := make(map[string]bool)
	err := c.walk(c.s.root, "of databases", func(k, _ []byte) error {
		found[string(k)] = true
		return nil
	})
	if err != nil {
		return err
	}
	if !found[metaName] {
		return c.s.corrupt("database %q is missing", metaName)
	}
	delete(found, metaName)
	c.pieces = found[piecesName]
	delete(found, piecesName)
	for name, g := range c.cat.generations {
		if !found[name] {
			return c.s.corrupt("database %s is recorded as %v and does not exist", name, g.usage)
		}
		delete(found, name)
		if g.missing != c.missing[name] {
			return c.s.corrupt("database %s counts %d rows that lack columns, %d are listed", name, g.missing, c.missing[name])
		}
	}
	for name := range found {
		return c.s.corrupt("database %s exists and nothing is recorded of its use", name)
	}
	return nil
}

// place compares head, checkpoint and catalog.
func (c *checker) place() error {
	p, err := c.s.readCheckpoint(c.v.txn, c.cat)
	if err != nil {
		return err
	}
	h := &c.v.head
	if p == nil {
		if h.index != 0 || len(c.cat.generations) != 0 {
			return c.s.corrupt("there are rows, as of index %v, but no checkpoint", h.index)
		}
		return nil
	}
	if p.Stream != c.s.Stream() || p.Index != h.index || p.Chain != h.chain || p.Epoch != h.epoch || p.Term != h.term || !p.Time.Equal(h.time) {
		return c.s.corrupt("checkpoint at index %v and head at index %v do not agree", p.Index, h.index)
	}
	header, err := c.s.readHeader(c.v.txn, p.Index)
	if err != nil {
		return err
	}
	if len(header) > 0 {
		r, err := millrace.DecodeSignedHeader(header)
		if err == nil {
			err = r.Proves(p)
		}
		if err != nil {
			return c.s.corrupt("signed header of index %v: %v", p.Index, err)
		}
	}
	if _, err := c.s.readUnproven(c.v.txn); err != nil {
		return err
	}
	loads := make(map[millrace.TableID]millrace.LoadID)
	for _, l := range p.Catalog.Loads {
		loads[l.Table] = l.ID
	}
	for id, t := range c.cat.tables {
		var load millrace.LoadID
		if t.shadow != nil {
			load = t.shadow.load
		}
		// What is under way of a table that was not held when it began is not here.
		if load != loads[id] && (load != 0 || !c.cat.partial()) {
			return c.s.corrupt("table %s has a shadow of load %v, the checkpoint has load %v under way", t.name(), load, loads[id])
		}
		delete(loads, id)
	}
	for id, load := range loads {
		if c.cat.partial() && c.cat.tables[id] != nil {
			continue
		}
		return c.s.corrupt("the checkpoint has load %v of table %v under way, which is not here", load, id)
	}
	return nil
}

// rows walks all generations.
func (c *checker) rows() error {
	for _, u := range []usage{live, shadow, free, garbage} {
		for _, g := range c.cat.withUsage(u) {
			if err := c.generation(g); err != nil {
				return err
			}
		}
	}
	if err := c.indexes(); err != nil {
		return err
	}
	return c.checkPieces()
}

func (c *checker) generation(g *generation) error {
	if g.usage == free {
		return c.walk(g.dbi, g.name, func(k, _ []byte) error {
			return c.s.corrupt("database %s is recorded as free and holds key %x", g.name, k)
		})
	}
	if g.usage == garbage {
		return c.walk(g.dbi, g.name, func(stored, value []byte) error { return c.usePieces(g, stored, value) })
	}
	t := c.cat.tables[g.table]
	var (
		row      Row
		key, buf []byte
		lacking  uint64
	)
	err := c.walk(g.dbi, g.name, func(stored, value []byte) error {
		full, body, err := openIn(c.v.txn, c.cat.pieces, t.seed, stored, value, &row.joined)
		if err != nil {
			return c.s.corruptRow(t, stored, err)
		}
		if err := c.usePieces(g, stored, value); err != nil {
			return err
		}
		lacks, err := t.checkRow(body, g.usage == shadow || t.some(), &row)
		if err != nil {
			return c.s.corruptRow(t, full, err)
		}
		if c.cat.narrowing == nil && !t.scope.Holds(full) {
			return c.s.corruptRow(t, full, errors.New("the row is of a key that is not held"))
		}
		if lacks && g.usage == shadow {
			lacking++
			if _, err := c.v.txn.Get(c.s.meta, missingKey(g, stored)); err != nil {
				return c.s.corruptRow(t, full, fmt.Errorf("row lacks columns and is not listed: %w", err))
			}
		}
		if err := c.entriesOf(t, g, stored, full, &row); err != nil {
			return err
		}
		if key, err = t.codecs[row.Version].AppendRowKey(key[:0], row.Columns); err != nil {
			return c.s.corruptRow(t, full, err)
		}
		if !bytes.Equal(key, full) {
			return c.s.corruptRow(t, full, fmt.Errorf("the row's own key is %s", t.describe(key)))
		}
		if buf = millrace.StoreKey(buf[:0], key); !bytes.Equal(buf, stored) {
			return c.s.corruptRow(t, full, errOtherKey)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if lacking != g.missing {
		return c.s.corrupt("database %s counts %d rows that lack columns, it has %d", g.name, g.missing, lacking)
	}
	return nil
}

// checkRow decodes a row. Rows of a shadow may lack columns.
func (t *table) checkRow(body []byte, ofShadow bool, row *Row) (lacks bool, err error) {
	if !ofShadow {
		return false, t.decode(body, row)
	}
	if err := millrace.DecodeRow(body, &row.Row); err != nil {
		return false, err
	}
	if row.Schema = t.schemas[row.Version]; row.Schema == nil {
		return false, fmt.Errorf("%w: %v", errUnknownVersion, row.Version)
	}
	if len(row.Schema.Columns) != len(row.Columns) {
		return false, fmt.Errorf("row has %d columns, its schema version %v has %d", len(row.Columns), row.Version, len(row.Schema.Columns))
	}
	for i := range row.Columns {
		switch row.Columns[i].State {
		case millrace.ColumnMissing:
			lacks = true
		case millrace.ColumnUnchanged:
			return false, fmt.Errorf("column %s is marked as unchanged", row.Schema.Columns[i].Name)
		}
	}
	return lacks, nil
}

// walk calls fn with every item of a database, and checks that their keys
// ascend and that their number is the one the database has noted.
func (c *checker) walk(dbi lmdb.DBI, name string, fn func(key, value []byte) error) error {
	cur, err := c.v.txn.OpenCursor(dbi)
	if err != nil {
		return c.s.fail("walk database "+name, err)
	}
	defer cur.Close()
	var last []byte
	var n uint64
	for ; ; n++ {
		if n%1024 == 0 && c.ctx.Err() != nil {
			return fmt.Errorf("check store: %w", c.ctx.Err())
		}
		k, v, err := cur.Get(nil, nil, lmdb.Next)
		if lmdb.IsNotFound(err) {
			break
		}
		if err != nil {
			return c.s.fail("walk database "+name, err)
		}
		if n > 0 && bytes.Compare(last, k) >= 0 {
			return c.s.corrupt("database %s: key %x comes after key %x", name, k, last)
		}
		last = append(last[:0], k...)
		if err := fn(k, v); err != nil {
			return err
		}
	}
	stat, err := c.v.txn.Stat(dbi)
	if err != nil {
		return c.s.fail("count items of database "+name, err)
	}
	if stat.Entries != n {
		return c.s.corrupt("database %s has %d items and says %d", name, n, stat.Entries)
	}
	return nil
}
