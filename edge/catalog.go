package edge

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"maps"
	"slices"

	"github.com/bmatsuo/lmdb-go/lmdb"

	"github.com/millrace-db/millrace"
)

// usage says what a named database is used for. The numbers are stored.
type usage uint8

const (
	// free: empty, waiting for a generation.
	free usage = 0
	// live: the rows that readers see.
	live usage = 1
	// shadow: the rows of a load that has not ended.
	shadow usage = 2
	// garbage: rows of a generation that is gone, being removed.
	garbage usage = 3
	// indexed: a secondary index over a generation.
	indexed usage = 4
)

func (u usage) String() string {
	if u > indexed {
		return fmt.Sprintf("usage %d", uint8(u))
	}
	return [...]string{"free", "live", "shadow", "garbage", "index"}[u]
}

// generation is a named database and its use.
type generation struct {
	name  string
	dbi   lmdb.DBI
	usage usage
	// table is set for live, shadow and indexed, load for shadow.
	table millrace.TableID
	load  millrace.LoadID
	// missing counts the rows of a shadow that lack columns.
	missing uint64
	// split tells that values of it are, or were, kept in pieces.
	split bool
	// index is set for indexed. It is not changed, but replaced.
	index *rowIndex
	// indexes are those over the rows of a live or shadow generation.
	indexes []*generation
}

// generationSize is the size of a record of the first format. Later ones have
// flags behind it, and what an index is.
const generationSize = 21

const flagSplit = 1

func (g *generation) append(dst []byte) []byte {
	dst = append(dst, byte(g.usage))
	dst = binary.BigEndian.AppendUint32(dst, uint32(g.table))
	dst = binary.BigEndian.AppendUint64(dst, uint64(g.load))
	dst = binary.BigEndian.AppendUint64(dst, g.missing)
	var flags byte
	if g.split {
		flags |= flagSplit
	}
	dst = append(dst, flags)
	if g.index != nil {
		dst = g.index.append(dst)
	}
	return dst
}

func (g *generation) decode(b []byte) error {
	if len(b) < generationSize || usage(b[0]) > indexed || len(b) > generationSize+1 != (usage(b[0]) == indexed) {
		return fmt.Errorf("record of database %s is malformed", g.name)
	}
	g.usage = usage(b[0])
	g.table = millrace.TableID(binary.BigEndian.Uint32(b[1:]))
	g.load = millrace.LoadID(binary.BigEndian.Uint64(b[5:]))
	g.missing = binary.BigEndian.Uint64(b[13:])
	if b = b[generationSize:]; len(b) > 0 {
		g.split = b[0]&flagSplit != 0
		b = b[1:]
	}
	if g.usage == indexed {
		g.index = new(rowIndex)
		if err := g.index.decode(b); err != nil {
			return fmt.Errorf("record of database %s: %w", g.name, err)
		}
	}
	return nil
}

// table is what the catalog knows of one table.
type table struct {
	id millrace.TableID
	// seed is the CRC of the table ID, with which those of its values begin.
	seed uint32
	// schemas and codecs hold all versions; schema and codec are the newest.
	schemas map[millrace.SchemaVersion]*millrace.Schema
	codecs  map[millrace.SchemaVersion]*millrace.KeyCodec
	schema  *millrace.Schema
	codec   *millrace.KeyCodec
	live    *generation
	shadow  *generation
	// scope is what is held of the table.
	scope millrace.Scope
	// diverged says why the table is not what the source has, or is empty.
	diverged string
}

func newTable(id millrace.TableID) *table {
	return &table{
		id:      id,
		scope:   millrace.AllKeys(),
		seed:    crc32.Checksum(binary.BigEndian.AppendUint32(nil, uint32(id)), castagnoli),
		schemas: make(map[millrace.SchemaVersion]*millrace.Schema),
		codecs:  make(map[millrace.SchemaVersion]*millrace.KeyCodec),
	}
}

func (t *table) addSchema(s *millrace.Schema) error {
	codec, err := millrace.NewKeyCodec(s)
	if err != nil {
		return err
	}
	t.schemas[s.Version], t.codecs[s.Version] = s, codec
	if t.schema == nil || s.Version > t.schema.Version {
		t.schema, t.codec = s, codec
	}
	return nil
}

// inTransition reports whether the live generation may differ from the source's
// rows until a load ends: rows were changed there without being sent, which is
// why the table is loaded again.
func (t *table) inTransition() bool { return t.live != nil && t.shadow != nil }

// name is for messages.
func (t *table) name() string {
	if t.schema == nil {
		return "with ID " + t.id.String()
	}
	return t.schema.QualifiedName()
}

// catalog is which tables there are and where their rows lie. One that has been
// published is not changed any more: the writer changes a clone.
type catalog struct {
	number uint64
	// pieces is the database of values in pieces. A store of the first format
	// that is only read has none, nor needs it.
	pieces      lmdb.DBI
	tables      map[millrace.TableID]*table
	generations map[string]*generation
	// filter is what the store holds, narrowing how far rows are removed that it held
	// before; nil if none are.
	filter    *millrace.Filter
	narrowing []byte
	// visible holds the tables that have a live generation, by name.
	visible map[string]*table
}

func newCatalog() *catalog {
	return &catalog{
		tables:      make(map[millrace.TableID]*table),
		generations: make(map[string]*generation),
		filter:      new(millrace.Filter),
	}
}

// clone copies everything but the schemas and codecs, which nobody changes.
func (c *catalog) clone() *catalog {
	d := newCatalog()
	d.number, d.pieces, d.filter, d.narrowing = c.number, c.pieces, c.filter, c.narrowing
	for name, g := range c.generations {
		h := *g
		h.indexes = nil
		d.generations[name] = &h
	}
	for _, ix := range d.withUsage(indexed) {
		g := d.generations[ix.index.of]
		g.indexes = append(g.indexes, ix)
	}
	for id, t := range c.tables {
		u := *t
		u.schemas, u.codecs = maps.Clone(t.schemas), maps.Clone(t.codecs)
		if t.live != nil {
			u.live = d.generations[t.live.name]
		}
		if t.shadow != nil {
			u.shadow = d.generations[t.shadow.name]
		}
		d.tables[id] = &u
	}
	d.index()
	return d
}

// index finds the visible tables. Where a table was dropped and made again at
// the source, the one that was described last has the name.
func (c *catalog) index() {
	c.visible = make(map[string]*table, len(c.tables))
	for _, t := range c.tables {
		if t.live == nil || t.schema == nil {
			continue
		}
		if o := c.visible[t.name()]; o == nil || o.schema.Version < t.schema.Version {
			c.visible[t.name()] = t
		}
	}
}

// newestSchemas returns what Catalog.Schemas of a checkpoint holds.
func (c *catalog) newestSchemas() []*millrace.Schema {
	var all []*millrace.Schema
	for _, t := range c.tables {
		if t.schema != nil {
			all = append(all, t.schema)
		}
	}
	slices.SortFunc(all, func(a, b *millrace.Schema) int { return cmp.Compare(a.Table, b.Table) })
	return all
}

// withUsage returns the generations used so, in the order of their names.
func (c *catalog) withUsage(u usage) []*generation {
	var all []*generation
	for _, g := range c.generations {
		if g.usage == u {
			all = append(all, g)
		}
	}
	slices.SortFunc(all, func(a, b *generation) int { return cmp.Compare(a.name, b.name) })
	return all
}

// readCatalog builds the catalog that txn sees. handle gives the handle of a
// named database; known is false where it has not been opened here yet.
func (s *Store) readCatalog(txn *lmdb.Txn, number uint64, handle func(name string) (dbi lmdb.DBI, known bool)) (c *catalog, unknown []string, err error) {
	c = newCatalog()
	c.number = number
	if c.filter, err = s.readFilter(txn); err != nil {
		return nil, nil, err
	}
	if c.narrowing, err = s.readNarrowing(txn); err != nil {
		return nil, nil, err
	}
	cur, err := txn.OpenCursor(s.meta)
	if err != nil {
		return nil, nil, s.fail("read meta", err)
	}
	defer cur.Close()
	for k, v, err := cur.Get(nil, nil, lmdb.First); ; k, v, err = cur.Get(nil, nil, lmdb.Next) {
		if lmdb.IsNotFound(err) {
			break
		}
		if err != nil {
			return nil, nil, s.fail("read meta", err)
		}
		if len(k) < 2 || k[1] != 0 || k[0] == prefixMissing || k[0] == prefixVerify {
			continue
		}
		value, err := unseal(k, v)
		if err == nil {
			err = c.enter(k[0], k[2:], value)
		}
		if err != nil {
			return nil, nil, s.corrupt("%v", err)
		}
	}
	if err := c.rescope(); err != nil {
		return nil, nil, fmt.Errorf("store %s: %w", s.dir, err)
	}
	for _, g := range c.generations {
		dbi, known := handle(g.name)
		if !known {
			unknown = append(unknown, g.name)
		}
		g.dbi = dbi
		if err := c.place(g); err != nil {
			return nil, nil, s.corrupt("%v", err)
		}
	}
	for _, ix := range c.withUsage(indexed) {
		if err := c.placeIndex(ix); err != nil {
			return nil, nil, s.corrupt("%v", err)
		}
	}
	if dbi, known := handle(piecesName); known {
		c.pieces = dbi
	} else if c.hasSplit() {
		unknown = append(unknown, piecesName)
	}
	c.index()
	return c, unknown, nil
}

// enter takes in one record of meta.
func (c *catalog) enter(prefix byte, key, value []byte) error {
	switch prefix {
	case prefixSchema:
		schema, err := millrace.DecodeSchema(value)
		if err != nil {
			return err
		}
		if want := schemaKey(schema.Table, schema.Version)[2:]; !bytes.Equal(key, want) {
			return fmt.Errorf("schema version %v of table %v stands under another key", schema.Version, schema.Table)
		}
		return c.table(schema.Table).addSchema(schema)
	case prefixDiverged:
		if len(key) != 4 {
			return fmt.Errorf("mark of divergence stands under a key of %d bytes", len(key))
		}
		c.table(millrace.TableID(binary.BigEndian.Uint32(key))).diverged = string(value)
	case prefixDatabase:
		g := &generation{name: string(key)}
		if err := g.decode(value); err != nil {
			return err
		}
		c.generations[g.name] = g
	default:
		return fmt.Errorf("meta record of an unknown kind %q", prefix)
	}
	return nil
}

// place enters a generation at its table.
func (c *catalog) place(g *generation) error {
	if g.usage != live && g.usage != shadow {
		return nil
	}
	t := c.tables[g.table]
	if t == nil || t.schema == nil {
		return fmt.Errorf("database %s is the %v generation of table %v, of which no schema is here", g.name, g.usage, g.table)
	}
	at := &t.live
	if g.usage == shadow {
		at = &t.shadow
	}
	if *at != nil {
		return fmt.Errorf("table %s has two %v generations, %s and %s", t.name(), g.usage, (*at).name, g.name)
	}
	*at = g
	return nil
}

// hasSplit reports whether any generation has values in pieces.
func (c *catalog) hasSplit() bool {
	for _, g := range c.generations {
		if g.split {
			return true
		}
	}
	return false
}

// table returns the table with the ID, making it if need be.
func (c *catalog) table(id millrace.TableID) *table {
	t := c.tables[id]
	if t == nil {
		t = newTable(id)
		c.tables[id] = t
	}
	return t
}
