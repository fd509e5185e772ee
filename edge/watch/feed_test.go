package watch

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"testing"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge/event"
	edgelog "github.com/millrace-db/millrace/edge/log"
)

var testStream = millrace.StreamID{7}

const (
	oidInt8 = 20
	oidText = 25
	oidJSON = 114
)

func schema(version millrace.SchemaVersion, table millrace.TableID, name string, columns ...string) *millrace.Schema {
	s := &millrace.Schema{Version: version, Table: table, Namespace: "public", Name: name, Types: []millrace.TypeDesc{
		{OID: oidInt8, Kind: millrace.TypeBase, Schema: "pg_catalog", Name: "int8"},
		{OID: oidText, Kind: millrace.TypeBase, Schema: "pg_catalog", Name: "text"},
		{OID: oidJSON, Kind: millrace.TypeBase, Schema: "pg_catalog", Name: "json"},
	}}
	for i, c := range columns {
		column := millrace.Column{Name: c, Type: oidText, Typmod: -1, Number: uint32(i + 1)}
		if i == 0 {
			column.Type, column.KeyOrdinal, column.NotNull = oidInt8, 1, true
		}
		if c == "doc" {
			column.Type = oidJSON
		}
		s.Columns = append(s.Columns, column)
	}
	return s
}

// feed makes a stream and plays it into a log, as an applier does. It knows what
// watchers are to be told.
type feed struct {
	t     testing.TB
	rnd   *rand.Rand
	log   *edgelog.Log
	fold  *millrace.Fold
	epoch millrace.Epoch
	term  millrace.Term
	now   time.Time
	// want are all events; unit begins those of the unit that is being made.
	want    []event.Event
	entries []*millrace.Entry
	tables  map[millrace.TableID]*millrace.Schema
	codecs  map[millrace.TableID]*millrace.KeyCodec
	// rewriter makes the batches partial; nil for whole ones.
	rewriter *millrace.Rewriter
}

// forEver keeps what the made-up times would let go.
const forEver = 1 << 62

func openLog(t testing.TB, o edgelog.Options) *edgelog.Log {
	t.Helper()
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	if o.Retain == 0 {
		o.Retain = forEver
	}
	l, err := edgelog.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func newFeed(t testing.TB, l *edgelog.Log, epoch millrace.Epoch, seed uint64) *feed {
	f := &feed{
		t: t, rnd: rand.New(rand.NewPCG(seed, uint64(epoch))), log: l, epoch: epoch, fold: millrace.NewFold(testStream, epoch), //nolint:gosec // a test that can be repeated
		now:    time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		tables: make(map[millrace.TableID]*millrace.Schema), codecs: make(map[millrace.TableID]*millrace.KeyCodec),
	}
	c := f.fold.Checkpoint()
	l.Start(&c)
	f.reign()
	return f
}

func (f *feed) add(h millrace.Header, payload []byte) {
	f.t.Helper()
	value, err := millrace.AppendRecord(nil, &h, payload, nil)
	if err != nil {
		f.t.Fatal(err)
	}
	r, err := millrace.DecodeRecord(value, nil)
	if err == nil {
		_, err = f.fold.Step(r)
	}
	if err != nil {
		f.t.Fatal(err)
	}
	whole := !f.fold.Open()
	if f.rewriter != nil {
		if value, err = f.rewriter.Rewrite(value); err == nil {
			r, err = millrace.DecodeRecord(value, nil)
		}
		if err != nil {
			f.t.Fatal(err)
		}
	}
	f.log.Append(millrace.Offset(0), value, r, whole && r.Kind == millrace.RecordBatch)
}

// commit shows what was added.
func (f *feed) commit() {
	c := f.fold.Checkpoint()
	f.log.Commit(&c)
}

func (f *feed) header(kind millrace.RecordKind) millrace.Header {
	return millrace.Header{Kind: kind, Stream: testStream, Epoch: f.epoch, Term: f.term, Publisher: millrace.PublisherID{byte(f.term), 1}, Time: f.now}
}

func (f *feed) reign() {
	f.term++
	f.add(f.header(millrace.RecordTerm), nil)
}

// entry adds an entry to the unit that is being made, and what is told of it.
func (f *feed) entry(e *millrace.Entry, told *event.Event) {
	f.entries = append(f.entries, e)
	if told == nil {
		return
	}
	told.Epoch, told.Index = f.epoch, f.fold.Index()+millrace.Index(len(f.entries))
	if e.Table != 0 && told.Table == "" {
		told.Table = f.tables[e.Table].QualifiedName()
	}
	f.want = append(f.want, *told)
}

func (f *feed) schema(s *millrace.Schema) {
	told := &event.Event{Op: event.Schema, Table: s.QualifiedName()}
	if old := f.tables[s.Table]; old != nil && old.Name != s.Name {
		told.Was = old.QualifiedName()
	}
	codec, err := millrace.NewKeyCodec(s)
	if err != nil {
		f.t.Fatal(err)
	}
	f.tables[s.Table], f.codecs[s.Table] = s, codec
	f.entry(&millrace.Entry{Kind: millrace.KindSchema, Table: s.Table, Schema: s}, told)
}

func (f *feed) key(table millrace.TableID, id int) []byte {
	key, err := f.codecs[table].Append(nil, [][]byte{strconv.AppendInt(nil, int64(id), 10)})
	if err != nil {
		f.t.Fatal(err)
	}
	return key
}

// put makes a put of a row whose other columns have the texts; "" is unchanged.
func (f *feed) put(table millrace.TableID, id, from int, texts ...string) {
	s := f.tables[table]
	columns := []millrace.Datum{{Text: strconv.AppendInt(nil, int64(id), 10)}}
	row := fmt.Sprintf(`{"%s":%d`, s.Columns[0].Name, id)
	told := &event.Event{Op: event.Put, Key: []string{strconv.Itoa(id)}}
	for i, text := range texts {
		name := s.Columns[i+1].Name
		if text == "" {
			columns = append(columns, millrace.Datum{State: millrace.ColumnUnchanged})
			told.Unchanged = append(told.Unchanged, name)
			continue
		}
		columns = append(columns, millrace.Datum{Text: []byte(text)})
		if s.Columns[i+1].Type == oidText {
			text = strconv.Quote(text)
		}
		row += fmt.Sprintf(`,"%s":%s`, name, text)
	}
	e := &millrace.Entry{Kind: millrace.KindPut, Table: table, Key: f.key(table, id), Row: millrace.AppendRow(nil, s.Version, columns)}
	if from != 0 {
		e.From, told.OldKey = f.key(table, from), []string{strconv.Itoa(from)}
	}
	told.Row = []byte(row + "}")
	f.entry(e, told)
}

func (f *feed) delete(table millrace.TableID, id int) {
	f.entry(&millrace.Entry{Kind: millrace.KindDelete, Table: table, Key: f.key(table, id)}, &event.Event{Op: event.Delete, Key: []string{strconv.Itoa(id)}})
}

// unit ends the unit that was made and adds it in so many batches, whose number of
// entries is about equal.
func (f *feed) unit(parts int) {
	f.t.Helper()
	f.now = f.now.Add(time.Second)
	var w millrace.UnitWriter
	for _, e := range f.entries {
		if err := w.Append(e); err != nil {
			f.t.Fatal(err)
		}
	}
	rest, err := w.Finish(millrace.UnitEnd{Time: f.now, Token: uint64(f.now.Unix())})
	if err != nil {
		f.t.Fatal(err)
	}
	end := f.fold.Index() + millrace.Index(len(f.entries))
	for i := len(f.want) - 1; i >= 0 && f.want[i].Index > f.fold.Index() && f.want[i].Epoch == f.epoch; i-- {
		f.want[i].UnitEnd, f.want[i].Time = end, f.now
	}
	left := len(f.entries)
	f.entries = nil
	prev := f.fold.Chain()
	var unit millrace.UnitHash
	for ; parts > 0; parts-- {
		n := left / parts
		left -= n
		h := f.header(millrace.RecordBatch)
		h.First, h.Count, h.Prev, h.Time = f.fold.Next(), uint32(n), prev, f.now
		h.Position = millrace.Position{Mode: millrace.ModeWAL, SystemID: 1, Timeline: 1, Slot: "s", LSN: millrace.LSN(f.now.Unix())}
		part := rest
		var run millrace.Run
		var head millrace.Head
		for range n {
			if rest, err = millrace.NextHead(rest, &head); err != nil {
				f.t.Fatal(err)
			}
			run.Extend(&unit, &head)
		}
		run.Flush(&unit)
		h.Chain = unit.Chain(prev)
		unit.Absorb()
		f.add(h, part[:len(part)-len(rest)])
	}
}

// some adds and shows a unit of any kind.
func (f *feed) some() {
	if f.rnd.IntN(20) == 0 {
		f.reign()
	}
	n := 1 + f.rnd.IntN(12)
	for range n {
		id := 1 + f.rnd.IntN(40)
		table := millrace.TableID(1 + f.rnd.IntN(2))
		switch k := f.rnd.IntN(20); {
		case k < 12:
			f.put(table, id, 0, fmt.Sprintf("text %d of %d", f.rnd.IntN(1000), id))
		case k < 13:
			f.put(table, id, id+1, "")
			f.delete(table, id+1)
		case k < 17:
			f.delete(table, id)
		case k < 18:
			f.entry(&millrace.Entry{Kind: millrace.KindTruncate, Table: table}, &event.Event{Op: event.Truncate})
		default:
			f.entry(&millrace.Entry{Kind: millrace.KindHeartbeat}, nil)
		}
	}
	parts := 1
	if len(f.entries) > 3 && f.rnd.IntN(4) == 0 {
		parts = 2 + f.rnd.IntN(2)
	}
	f.unit(parts)
	f.commit()
}

// first adds the tables a and b.
func (f *feed) first() {
	f.schema(schema(1, 1, "a", "id", "note"))
	f.schema(schema(2, 2, "b", "id", "note"))
	f.unit(1)
	f.commit()
}

// deadline bounds every wait; the machine may be busy with other tests.
const deadline = time.Minute

func timeout(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	t.Cleanup(cancel)
	return ctx
}
