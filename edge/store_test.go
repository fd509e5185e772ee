package edge

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/millrace-db/millrace"
)

var testStream = millrace.StreamID{1, 2, 3}

const (
	oidInt8 = 20
	oidText = 25
)

// testSchema describes public.NAME with the columns id, note and big. keyType is
// that of id.
func testSchema(table millrace.TableID, version millrace.SchemaVersion, name string, keyType uint32, columns ...string) *millrace.Schema {
	s := &millrace.Schema{
		Version: version, Table: table, Namespace: "public", Name: name,
		Types: []millrace.TypeDesc{
			{OID: oidInt8, Kind: millrace.TypeBase, Schema: "pg_catalog", Name: "int8"},
			{OID: oidText, Kind: millrace.TypeBase, Schema: "pg_catalog", Name: "text"},
		},
		Columns: []millrace.Column{{Name: "id", Type: keyType, Typmod: -1, NotNull: true, KeyOrdinal: 1}},
	}
	for _, c := range columns {
		s.Columns = append(s.Columns, millrace.Column{Name: c, Type: oidText, Typmod: -1})
	}
	return s
}

func openStore(t testing.TB, dir string, change ...func(*Options)) *Store {
	t.Helper()
	opts := Options{Dir: dir, Stream: testStream, MapSize: 1 << 30, MaxDBs: 64}
	for _, f := range change {
		f(&opts)
	}
	s, err := Open(opts)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() { closeStore(t, s) })
	return s
}

// closeStore checks a store and closes it, once.
func closeStore(t testing.TB, s *Store) {
	t.Helper()
	if err := s.Check(context.Background()); err != nil && !errors.Is(err, ErrClosed) {
		t.Errorf("Check: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
}

func encodeKey(t testing.TB, s *millrace.Schema, id string) []byte {
	t.Helper()
	codec, err := millrace.NewKeyCodec(s)
	if err != nil {
		t.Fatalf("NewKeyCodec: %v", err)
	}
	key, err := codec.Append(nil, [][]byte{[]byte(id)})
	if err != nil {
		t.Fatalf("encode key %q: %v", id, err)
	}
	return key
}

// unchanged stands for a column that the source did not send.
const unchanged = "\x00unchanged"

func encodeRow(version millrace.SchemaVersion, values ...string) []byte {
	cols := make([]millrace.Datum, len(values))
	for i, v := range values {
		switch v {
		case unchanged:
			cols[i].State = millrace.ColumnUnchanged
		case "NULL":
			cols[i].State = millrace.ColumnNull
		default:
			cols[i].Text = []byte(v)
		}
	}
	return millrace.AppendRow(nil, version, cols)
}

// feed applies entries with indexes of its own making.
type feed struct {
	t     testing.TB
	s     *Store
	w     *Writer
	index millrace.Index
	epoch millrace.Epoch
	loads map[millrace.TableID]millrace.LoadID
}

func newFeed(t testing.TB, s *Store) *feed {
	t.Helper()
	w, err := s.NewWriter()
	if err != nil {
		t.Fatalf("NewWriter: %v", err)
	}
	t.Cleanup(w.Close)
	return &feed{t: t, s: s, w: w, index: s.Index(), epoch: max(s.Place().Epoch, 1), loads: make(map[millrace.TableID]millrace.LoadID)}
}

func (f *feed) checkpoint() *millrace.Checkpoint {
	c := &millrace.Checkpoint{
		Stream: f.s.Stream(), Epoch: f.epoch, Index: f.index, Chain: millrace.NewChain(f.s.Stream(), f.epoch), Term: 1,
		Offset: millrace.Offset(f.index), Time: time.UnixMicro(int64(f.index)).UTC(),
	}
	for table, load := range f.loads {
		c.Catalog.Loads = append(c.Catalog.Loads, millrace.Load{ID: load, Table: table})
	}
	slices.SortFunc(c.Catalog.Loads, func(a, b millrace.Load) int { return cmp.Compare(a.ID, b.ID) })
	c.Catalog.LastLoad, c.Catalog.LastVersion = 1<<20, 1<<20
	return c
}

// apply applies entries to a transaction that it begins if none is open.
func (f *feed) apply(entries ...*millrace.Entry) error {
	if !f.w.Open() {
		if err := f.w.Begin(); err != nil {
			return err
		}
	}
	for _, e := range entries {
		if err := f.w.Apply(e, millrace.ModeWAL); err != nil {
			f.w.Abort()
			return err
		}
		f.index++
		switch e.Kind {
		case millrace.KindLoadBegin:
			f.loads[e.Table] = e.Load
		case millrace.KindLoadEnd, millrace.KindDrop:
			delete(f.loads, e.Table)
		}
	}
	return nil
}

// unit applies entries and commits.
func (f *feed) unit(entries ...*millrace.Entry) error {
	if err := f.apply(entries...); err != nil {
		return err
	}
	return f.w.Commit(f.checkpoint())
}

func (f *feed) must(entries ...*millrace.Entry) {
	f.t.Helper()
	if err := f.unit(entries...); err != nil {
		f.t.Fatalf("apply: %v", err)
	}
}

func (f *feed) sweep() {
	f.t.Helper()
	for {
		more, err := f.w.Chore()
		if err != nil {
			f.t.Fatalf("Chore: %v", err)
		}
		if !more {
			return
		}
	}
}

// tableFeed makes entries of one table.
type tableFeed struct {
	t      testing.TB
	schema *millrace.Schema
}

func (f tableFeed) put(values ...string) *millrace.Entry {
	return &millrace.Entry{Kind: millrace.KindPut, Table: f.schema.Table, Key: encodeKey(f.t, f.schema, values[0]), Row: encodeRow(f.schema.Version, values...)}
}

func (f tableFeed) move(from string, values ...string) *millrace.Entry {
	e := f.put(values...)
	e.From = encodeKey(f.t, f.schema, from)
	return e
}

func (f tableFeed) load(load millrace.LoadID, values ...string) *millrace.Entry {
	e := f.put(values...)
	e.Load = load
	return e
}

func (f tableFeed) delete(id string) *millrace.Entry {
	return &millrace.Entry{Kind: millrace.KindDelete, Table: f.schema.Table, Key: encodeKey(f.t, f.schema, id)}
}

func (f tableFeed) describe() *millrace.Entry {
	return &millrace.Entry{Kind: millrace.KindSchema, Table: f.schema.Table, Schema: f.schema}
}

func (f tableFeed) control(kind millrace.Kind, load millrace.LoadID) *millrace.Entry {
	return &millrace.Entry{Kind: kind, Table: f.schema.Table, Load: load}
}

// loaded makes an empty table that readers can see.
func (f *feed) loaded(schema *millrace.Schema) tableFeed {
	f.t.Helper()
	tf := tableFeed{f.t, schema}
	load := millrace.LoadID(schema.Version)
	f.must(tf.describe(), tf.control(millrace.KindLoadBegin, load), tf.control(millrace.KindLoadEnd, load))
	return tf
}

// dump returns the rows of a table as "id=note,big" in key order.
func dump(t testing.TB, s *Store, name string) string {
	t.Helper()
	var rows []string
	err := s.View(context.Background(), func(v *View) error {
		table, err := v.Table(name)
		if err != nil {
			return err
		}
		return table.Scan(nil, nil, 0, func(_ []byte, row *Row) error {
			rows = append(rows, rowString(row))
			return nil
		})
	})
	if err != nil {
		t.Fatalf("scan %s: %v", name, err)
	}
	return strings.Join(rows, " ")
}

func rowString(row *Row) string {
	values := make([]string, len(row.Columns))
	for i, c := range row.Columns {
		values[i] = string(c.Text)
		if c.State == millrace.ColumnNull {
			values[i] = "NULL"
		}
	}
	return values[0] + "=" + strings.Join(values[1:], ",")
}

func TestPutGetScan(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	f := newFeed(t, s)
	tf := tableFeed{t, testSchema(7, 1, "accounts", oidInt8, "note", "big")}
	ctx := context.Background()

	f.must(tf.describe(), tf.control(millrace.KindLoadBegin, 1))
	for i := 10; i > 0; i-- {
		f.must(tf.load(1, strconv.Itoa(i), "n"+strconv.Itoa(i), "NULL"))
	}
	err := s.View(ctx, func(v *View) error {
		_, err := v.Table("public.accounts")
		return err
	})
	if !errors.Is(err, ErrNoTable) {
		t.Errorf("table before its first LoadEnd: error %v, want ErrNoTable", err)
	}
	f.must(tf.control(millrace.KindLoadEnd, 1))
	f.must(tf.put("11", "new", "b"), tf.delete("3"), tf.put("4", "changed", unchanged), tf.move("5", "50", "moved", unchanged), tf.delete("5"))

	want := "1=n1,NULL 2=n2,NULL 4=changed,NULL 6=n6,NULL 7=n7,NULL 8=n8,NULL 9=n9,NULL 10=n10,NULL 11=new,b 50=moved,NULL"
	if got := dump(t, s, "public.accounts"); got != want {
		t.Errorf("rows are\n%s, want\n%s", got, want)
	}
	read := func(s *Store) {
		t.Helper()
		err := s.View(ctx, func(v *View) error {
			if v.Index() != f.index {
				t.Errorf("Index is %v, want %v", v.Index(), f.index)
			}
			table, err := v.Table("public.accounts")
			if err != nil {
				return err
			}
			if n, err := table.Rows(); err != nil || n != 10 {
				t.Errorf("Rows is %d, %v, want 10", n, err)
			}
			var row Row
			if err := table.Get(encodeKey(t, tf.schema, "3"), &row); !errors.Is(err, ErrNotFound) {
				t.Errorf("Get of a deleted row: %v, want ErrNotFound", err)
			}
			if err := table.Get(encodeKey(t, tf.schema, "50"), &row); err != nil {
				return err
			}
			if got := rowString(&row); got != "50=moved,NULL" {
				t.Errorf("row 50 is %s", got)
			}
			var page []string
			err = table.Scan(nil, encodeKey(t, tf.schema, "8"), 2, func(_ []byte, row *Row) error {
				page = append(page, string(row.Columns[0].Text))
				return nil
			})
			if got := fmt.Sprint(page); err != nil || got != "[9 10]" {
				t.Errorf("two rows after 8 are %s, %v", got, err)
			}
			return nil
		})
		if err != nil {
			t.Fatalf("View: %v", err)
		}
	}
	read(s)

	f.w.Close()
	closeStore(t, s)
	s = openStore(t, dir, func(o *Options) { o.Stream = millrace.StreamID{} })
	read(s)
	if s.Stream() != testStream {
		t.Errorf("reopened store holds stream %v", s.Stream())
	}
}
