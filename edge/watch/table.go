package watch

import (
	"fmt"
	"maps"
	"sync"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/rowjson"
)

// table is a table as one of its schemas describes it. It is shared and not changed.
type table struct {
	schema *millrace.Schema
	name   string
	codec  *millrace.KeyCodec
	rows   *rowjson.Encoder
	// around is about how long an event is apart from its values.
	around int
}

// tables are those of a stream at a place, by their IDs. They are not changed.
type tables map[millrace.TableID]*table

// forms makes tables of schemas, once for each.
type forms struct {
	mu  sync.Mutex
	all map[form]*table
}

// form names a schema: versions are those of a stream within an epoch.
type form struct {
	epoch   millrace.Epoch
	version millrace.SchemaVersion
}

// maxForms bounds what a long history of schemas leaves behind.
const maxForms = 4096

func (f *forms) get(epoch millrace.Epoch, s *millrace.Schema) (*table, error) {
	key := form{epoch, s.Version}
	f.mu.Lock()
	defer f.mu.Unlock()
	if t := f.all[key]; t != nil {
		return t, nil
	}
	t := &table{schema: s, name: s.QualifiedName()}
	var err error
	if t.codec, err = millrace.NewKeyCodec(s); err == nil {
		t.rows, err = rowjson.New(s)
	}
	if err != nil {
		return nil, fmt.Errorf("watch table %s: %w", t.name, err)
	}
	t.around = 200 + 2*len(t.name)
	for i := range s.Columns {
		t.around += len(s.Columns[i].Name) + 4
	}
	if f.all == nil || len(f.all) >= maxForms {
		f.all = make(map[form]*table)
	}
	f.all[key] = t
	return t, nil
}

// older returns what writes rows of an older schema as those of t.
func (f *forms) older(epoch millrace.Epoch, version millrace.SchemaVersion, t *table) (*rowjson.Encoder, error) {
	f.mu.Lock()
	was := f.all[form{epoch, version}]
	f.mu.Unlock()
	if was == nil || was.schema.Table != t.schema.Table {
		return nil, fmt.Errorf("%w: a row of %s is of schema version %v, which the log does not have at hand", errRecord, t.name, version)
	}
	return rowjson.NewAs(was.schema, t.schema)
}

// of returns the tables of a catalog.
func (f *forms) of(epoch millrace.Epoch, c *millrace.Catalog) (tables, error) {
	all := make(tables, len(c.Schemas))
	for _, s := range c.Schemas {
		t, err := f.get(epoch, s)
		if err != nil {
			return nil, err
		}
		all[s.Table] = t
	}
	return all, nil
}

// with returns the tables with another form of one.
func (t tables) with(one *table) tables {
	all := maps.Clone(t)
	if all == nil {
		all = make(tables)
	}
	all[one.schema.Table] = one
	return all
}

// without returns the tables without one.
func (t tables) without(id millrace.TableID) tables {
	all := maps.Clone(t)
	delete(all, id)
	return all
}

// named reports whether there is a table of the name.
func (t tables) named(name string) *table {
	for _, one := range t {
		if one.name == name {
			return one
		}
	}
	return nil
}

// sameSchemas reports whether nothing between two places of a stream, of which these are
// the catalogs, has changed a schema or dropped a table: versions only grow.
func sameSchemas(a, b *millrace.Catalog) bool {
	return a.LastVersion == b.LastVersion && len(a.Schemas) == len(b.Schemas)
}
