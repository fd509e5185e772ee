package millrace

import (
	"bytes"
	"fmt"
	"slices"
	"time"

	"pgregory.net/rapid"
)

// Generators of everything that is stored. What they make is well formed, and
// in the form that decoding gives: nil where a byte string is empty.

func genBytes(t *rapid.T, label string, least int) []byte {
	b := rapid.SliceOfN(rapid.Byte(), least, least+40).Draw(t, label)
	if len(b) == 0 {
		return nil
	}
	return b
}

func genTime(t *rapid.T) time.Time {
	us := rapid.Int64().Draw(t, "time")
	if us == 0 {
		return time.Time{}
	}
	return time.UnixMicro(us).UTC()
}

func genArray(t *rapid.T, label string, dst []byte) {
	copy(dst, rapid.SliceOfN(rapid.Byte(), len(dst), len(dst)).Draw(t, label))
}

func genName(t *rapid.T, label string) string {
	return rapid.StringN(1, 12, -1).Draw(t, label)
}

var genSchema = rapid.Custom(func(t *rapid.T) *Schema {
	s := &Schema{
		Version:   SchemaVersion(rapid.Uint64Min(1).Draw(t, "version")),
		Table:     TableID(rapid.Uint32Min(1).Draw(t, "table")),
		Namespace: genName(t, "namespace"),
		Name:      genName(t, "name"),
	}
	oids := rapid.SliceOfNDistinct(rapid.Uint32Min(1), 1, 5, rapid.ID).Draw(t, "oids")
	slices.Sort(oids)
	for i, oid := range oids {
		s.Types = append(s.Types, genType(t, oid, oids[:i]))
	}
	names := rapid.SliceOfNDistinct(rapid.StringN(1, 12, -1), 1, 5, rapid.ID).Draw(t, "columns")
	keys := rapid.IntRange(1, len(names)).Draw(t, "keys")
	order := rapid.Permutation(names).Draw(t, "order")
	for _, name := range names {
		c := Column{
			Name:             name,
			Type:             rapid.SampledFrom(oids).Draw(t, "type"),
			Typmod:           rapid.Int32().Draw(t, "typmod"),
			Collation:        rapid.String().Draw(t, "collation"),
			Nondeterministic: rapid.Bool().Draw(t, "nondeterministic"),
			NotNull:          rapid.Bool().Draw(t, "not null"),
			Number:           rapid.Uint32().Draw(t, "number"),
		}
		if i := slices.Index(order, name); i < keys {
			c.KeyOrdinal = uint32(i + 1)
		}
		s.Columns = append(s.Columns, c)
	}
	return s
})

// genType makes a type that may be built of the ones below it.
func genType(t *rapid.T, oid uint32, below []uint32) TypeDesc {
	d := TypeDesc{OID: oid, Kind: TypeBase, Schema: rapid.String().Draw(t, "type schema"), Name: genName(t, "type name")}
	kinds := []TypeKind{TypeBase, TypeEnum, TypeComposite}
	if len(below) > 0 {
		kinds = append(kinds, TypeArray, TypeDomain, TypeRange, TypeMultirange)
	}
	d.Kind = rapid.SampledFrom(kinds).Draw(t, "type kind")
	switch d.Kind {
	case TypeEnum:
		d.Labels = rapid.SliceOfN(rapid.String(), 1, 4).Draw(t, "labels")
	case TypeComposite:
		for range rapid.IntRange(0, min(3, len(below))).Draw(t, "attributes") {
			d.Attributes = append(d.Attributes, Attribute{Name: rapid.String().Draw(t, "attribute"), Type: rapid.SampledFrom(below).Draw(t, "attribute type")})
		}
	case TypeBase:
		d.Delim = rapid.Byte().Draw(t, "delim")
	default:
		d.Elem = rapid.SampledFrom(below).Draw(t, "elem")
	}
	return d
}

var genPosition = rapid.Custom(func(t *rapid.T) Position {
	p := Position{Mode: Mode(rapid.IntRange(0, 2).Draw(t, "mode"))}
	if p.Mode == ModeNone {
		return p
	}
	p.SystemID = rapid.Uint64Min(1).Draw(t, "system")
	if p.Mode == ModeWAL {
		p.Timeline = rapid.Uint32Min(1).Draw(t, "timeline")
		p.Slot = genName(t, "slot")
		p.LSN = LSN(rapid.Uint64().Draw(t, "lsn"))
		return p
	}
	p.Timeline = rapid.Uint32().Draw(t, "timeline")
	p.Tick = rapid.Uint64().Draw(t, "tick")
	p.Snapshot = rapid.String().Draw(t, "snapshot")
	return p
})

var genState = rapid.Custom(func(t *rapid.T) *State {
	s := new(State)
	tables := rapid.SliceOfNDistinct(rapid.Uint32Min(1), 0, 3, rapid.ID).Draw(t, "tables")
	slices.Sort(tables)
	for _, table := range tables {
		schema := genSchema.Draw(t, "schema")
		schema.Table = TableID(table)
		s.Catalog.Schemas = append(s.Catalog.Schemas, schema)
		s.Catalog.LastVersion = max(s.Catalog.LastVersion, schema.Version)
	}
	loads := rapid.SliceOfNDistinct(rapid.Uint64Min(1), 0, 3, rapid.ID).Draw(t, "loads")
	slices.Sort(loads)
	for _, id := range loads {
		s.Catalog.Loads = append(s.Catalog.Loads, Load{ID: LoadID(id), Table: TableID(rapid.Uint32Min(1).Draw(t, "table")), Progress: genBytes(t, "progress", 0)})
		s.Catalog.LastLoad = LoadID(id)
	}
	for range rapid.IntRange(0, 3).Draw(t, "recent") {
		r := Recent{First: Index(rapid.Uint64Min(1).Draw(t, "first"))}
		r.Last = Index(rapid.Uint64Min(uint64(r.First)).Draw(t, "last"))
		genArray(t, "chain", r.Chain[:])
		s.Recent = append(s.Recent, r)
	}
	return s
})

var genCheckpoint = rapid.Custom(func(t *rapid.T) *Checkpoint {
	s := genState.Draw(t, "state")
	c := &Checkpoint{
		Epoch:    Epoch(rapid.Uint64Min(1).Draw(t, "epoch")),
		Index:    Index(rapid.Uint64().Draw(t, "index")),
		Term:     Term(rapid.Uint64().Draw(t, "term")),
		TopicID:  rapid.String().Draw(t, "topic"),
		Offset:   Offset(rapid.Int64Min(-1).Draw(t, "offset")),
		Position: genPosition.Draw(t, "position"),
		Time:     genTime(t),
		Recent:   s.Recent,
		Catalog:  s.Catalog,
	}
	genArray(t, "stream", c.Stream[:])
	genArray(t, "chain", c.Chain[:])
	genArray(t, "publisher", c.Publisher[:])
	c.Stream[0], c.Chain[0] = 1, 1
	return c
})

// genRow makes the bytes of a row.
var genRow = rapid.Custom(func(t *rapid.T) []byte {
	columns := make([]Datum, rapid.IntRange(0, 9).Draw(t, "columns"))
	for i := range columns {
		columns[i].State = ColumnState(rapid.IntRange(0, 3).Draw(t, "state"))
		if columns[i].State == ColumnValue {
			columns[i].Text = rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "text")
		}
	}
	return AppendRow(nil, SchemaVersion(rapid.Uint64Min(1).Draw(t, "version")), columns)
})

// genEntry makes a valid entry of any kind that ends no unit.
var genEntry = rapid.Custom(func(t *rapid.T) *Entry {
	e := &Entry{
		Kind:    Kind(rapid.IntRange(1, NumKinds-1).Draw(t, "kind")),
		Table:   TableID(rapid.Uint32Min(1).Draw(t, "table")),
		Ordinal: rapid.Uint64().Draw(t, "ordinal"),
	}
	switch e.Kind {
	case KindPut:
		e.Key, e.From = genBytes(t, "key", 1), genBytes(t, "from", 0)
		e.Row = genRow.Draw(t, "row")
		e.Load = LoadID(rapid.Uint64().Draw(t, "load"))
	case KindDelete:
		e.Key = genBytes(t, "key", 1)
	case KindSchema:
		e.Schema = genSchema.Draw(t, "schema")
		e.Table = e.Schema.Table
	case KindLoadBegin, KindLoadEnd, KindLoadProgress:
		e.Load = LoadID(rapid.Uint64Min(1).Draw(t, "load"))
		if e.Kind == KindLoadProgress || rapid.Bool().Draw(t, "info") {
			e.LoadInfo = &LoadInfo{Reason: rapid.String().Draw(t, "reason"), Rows: rapid.Uint64().Draw(t, "rows")}
		}
		if e.LoadInfo != nil && e.Kind != KindLoadEnd {
			e.LoadInfo.Progress = genBytes(t, "progress", 0)
		}
		if e.Kind == KindLoadProgress && e.LoadInfo.Progress == nil {
			e.LoadInfo.Added = genBytes(t, "added", 0)
		}
	case KindVerify:
		e.Verify = genVerify(t)
	case KindHeartbeat:
		e.Table = 0
	case KindMessage:
		e.Table = 0
		e.Message = &LogicalMessage{Prefix: rapid.String().Draw(t, "prefix"), Content: genBytes(t, "content", 0)}
	case KindQuarantine:
		e.Key = genBytes(t, "key", 0)
		e.Quarantine = &Quarantined{Kind: Kind(rapid.IntRange(1, NumKinds-1).Draw(t, "quarantined")), Reason: rapid.String().Draw(t, "reason")}
	}
	return e
})

func genVerify(t *rapid.T) *VerifyRange {
	v := &VerifyRange{
		ID: rapid.Uint64().Draw(t, "id"), Low: genBytes(t, "low", 0), High: genBytes(t, "high", 0),
		Buckets: rapid.Uint32().Draw(t, "buckets"), Bucket: rapid.Uint32().Draw(t, "bucket"),
		Rows: rapid.Uint64().Draw(t, "rows"), Snapshot: rapid.String().Draw(t, "snapshot"),
	}
	genArray(t, "hash", v.Hash[:])
	for range rapid.IntRange(0, 3).Draw(t, "left out") {
		v.LeftOut = append(v.LeftOut, rapid.SliceOfN(rapid.Byte(), 0, 9).Draw(t, "key"))
	}
	return v
}

var genEnd = rapid.Custom(func(t *rapid.T) UnitEnd {
	return UnitEnd{Time: genTime(t), Token: rapid.Uint64().Draw(t, "token"), XID: rapid.Uint32().Draw(t, "xid")}
})

// genUnit makes the entries of a unit and their payload.
func genUnit(t *rapid.T) ([]*Entry, []byte) {
	entries := rapid.SliceOfN(genEntry, 1, 6).Draw(t, "entries")
	var w UnitWriter
	for i, e := range entries {
		e.Ordinal = uint64(i)
		if err := w.Append(e); err != nil {
			t.Fatalf("append entry %d: %v", i, err)
		}
	}
	last := entries[len(entries)-1]
	last.Last, last.End = true, genEnd.Draw(t, "end")
	payload, err := w.Finish(last.End)
	if err != nil {
		t.Fatal(err)
	}
	return entries, payload
}

// walkPayload decodes a payload with NextHead and DecodeEntry and says where
// they do not agree.
func walkPayload(payload []byte) ([]*Entry, error) {
	var entries []*Entry
	var h Head
	for rest := payload; len(rest) > 0; {
		before := rest
		var err error
		if rest, err = NextHead(rest, &h); err != nil {
			return entries, err
		}
		if !bytes.Equal(h.Raw, before[:len(before)-len(rest)]) {
			return entries, fmt.Errorf("raw bytes of entry %d are not those before the rest", len(entries))
		}
		e := new(Entry)
		if err := DecodeEntry(h.Body, e); err != nil {
			return entries, err
		}
		if h.Kind != e.Kind || h.Table != e.Table || h.Ordinal != e.Ordinal || h.Last != e.Last || h.End != e.End {
			return entries, errHeadDiffers
		}
		entries = append(entries, e)
	}
	return entries, nil
}

var errHeadDiffers = fmt.Errorf("head and entry differ")
