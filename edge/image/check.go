package image

import (
	"bytes"

	"github.com/millrace-db/millrace"
)

// rowChecker looks at rows as they come from the frames of an image.
type rowChecker struct {
	manifest *Manifest
	// codecs and columns are those of the versions of each table's schema.
	codecs  map[schemaVersion]*millrace.KeyCodec
	columns map[schemaVersion]int
	set     int
	last    []byte
	stored  []byte
	key     []byte
	row     millrace.Row
}

// schemaVersion names a version of a table's schema.
type schemaVersion struct {
	table   millrace.TableID
	version millrace.SchemaVersion
}

func newRowChecker(m *Manifest) (*rowChecker, error) {
	c := &rowChecker{manifest: m, codecs: make(map[schemaVersion]*millrace.KeyCodec), columns: make(map[schemaVersion]int), set: -1}
	for _, s := range m.Schemas {
		codec, err := millrace.NewKeyCodec(s)
		if err != nil {
			return nil, malformed("schema version %v of table %v: %v", s.Version, s.Table, err)
		}
		c.codecs[schemaVersion{s.Table, s.Version}], c.columns[schemaVersion{s.Table, s.Version}] = codec, len(s.Columns)
	}
	return c, nil
}

func (c *rowChecker) check(set int, key, row []byte) error {
	if set != c.set {
		c.set, c.last = set, c.last[:0]
	}
	table := c.manifest.Sets[set].Table
	if len(key) == 0 {
		return malformed("a row of table %v has no key", table)
	}
	c.stored = millrace.StoreKey(c.stored[:0], key)
	if len(c.last) > 0 && bytes.Compare(c.last, c.stored) >= 0 {
		return malformed("rows of table %v are not in the order of their keys", table)
	}
	c.last = append(c.last[:0], c.stored...)
	if err := millrace.DecodeRow(row, &c.row); err != nil {
		return malformed("a row of table %v: %v", table, err)
	}
	v := schemaVersion{table, c.row.Version}
	codec := c.codecs[v]
	if codec == nil || c.columns[v] != len(c.row.Columns) {
		return malformed("a row of table %v has %d columns of schema version %v, which is not what the manifest has", table, len(c.row.Columns), c.row.Version)
	}
	own, err := codec.AppendRowKey(c.key[:0], c.row.Columns)
	if err != nil {
		return malformed("a row of table %v: %v", table, err)
	}
	c.key = own
	if !bytes.Equal(own, key) {
		return malformed("a row of table %v stands under another key than its own", table)
	}
	return nil
}
