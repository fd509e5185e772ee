package resp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var testStream = millrace.StreamID{7}

const (
	oidBool = 16
	oidInt8 = 20
	oidText = 25
	oidJSON = 3802
)

func column(name string, oid, key uint32) millrace.Column {
	return millrace.Column{Name: name, Type: oid, Typmod: -1, NotNull: key > 0, KeyOrdinal: key}
}

func schema(version millrace.SchemaVersion, table millrace.TableID, namespace, name string, columns ...millrace.Column) *millrace.Schema {
	types := []millrace.TypeDesc{
		{OID: oidBool, Kind: millrace.TypeBase, Schema: "pg_catalog", Name: "bool"},
		{OID: oidInt8, Kind: millrace.TypeBase, Schema: "pg_catalog", Name: "int8"},
		{OID: oidText, Kind: millrace.TypeBase, Schema: "pg_catalog", Name: "text"},
		{OID: oidJSON, Kind: millrace.TypeBase, Schema: "pg_catalog", Name: "jsonb"},
	}
	return &millrace.Schema{Version: version, Table: table, Namespace: namespace, Name: name, Types: types, Columns: columns}
}

func accountsSchema() *millrace.Schema {
	return schema(1, 11, "public", "accounts", column("id", oidInt8, 1), column("owner", oidText, 0), column("note", oidText, 0), column("live", oidBool, 0))
}

// recordsSchema has a composite key whose order is not that of the columns.
func recordsSchema() *millrace.Schema {
	return schema(2, 12, "dns", "records", column("name", oidText, 2), column("zone", oidInt8, 1), column("data", oidJSON, 0))
}

// oddSchema has a name that is escaped in keys.
func oddSchema() *millrace.Schema { return schema(3, 13, "odd", "a:b%", column("id", oidText, 1)) }

// source fills a store as an applier does.
type source struct {
	t       testing.TB
	w       *edge.Writer
	index   millrace.Index
	catalog millrace.Catalog
}

// unit applies entries and commits them.
func (s *source) unit(entries ...*millrace.Entry) {
	s.t.Helper()
	if err := s.w.Begin(); err != nil {
		s.t.Fatal(err)
	}
	for _, e := range entries {
		if err := s.w.Apply(e, millrace.ModeWAL); err != nil {
			s.t.Fatal(err)
		}
		s.index++
		switch e.Kind {
		case millrace.KindSchema:
			s.catalog.Schemas = append(s.catalog.Schemas, e.Schema)
			s.catalog.LastVersion = max(s.catalog.LastVersion, e.Schema.Version)
		case millrace.KindLoadBegin:
			s.catalog.Loads = append(s.catalog.Loads, millrace.Load{ID: e.Load, Table: e.Table})
			s.catalog.LastLoad = e.Load
		case millrace.KindLoadEnd:
			s.catalog.Loads = nil
		}
	}
	c := &millrace.Checkpoint{
		Stream: testStream, Epoch: 1, Index: s.index, Chain: millrace.NewChain(testStream, 1), Term: 3, Offset: 5, Time: time.Now().Add(-time.Second),
		Position: millrace.Position{Mode: millrace.ModeWAL, SystemID: 1, Timeline: 1, Slot: "millrace_bank", LSN: 4711},
		Catalog:  s.catalog.Clone(),
	}
	if err := s.w.Commit(c); err != nil {
		s.t.Fatal(err)
	}
}

// load makes tables readable.
func (s *source) load(schemas ...*millrace.Schema) {
	var begin, end []*millrace.Entry
	for _, one := range schemas {
		load := millrace.LoadID(one.Table)
		begin = append(begin, &millrace.Entry{Kind: millrace.KindSchema, Table: one.Table, Schema: one},
			&millrace.Entry{Kind: millrace.KindLoadBegin, Table: one.Table, Load: load})
		end = append(end, &millrace.Entry{Kind: millrace.KindLoadEnd, Table: one.Table, Load: load})
	}
	s.unit(begin...)
	s.unit(end...)
}

// put makes a live change; "NULL" stands for NULL.
func put(t testing.TB, s *millrace.Schema, values ...string) *millrace.Entry {
	t.Helper()
	columns := make([]millrace.Datum, len(values))
	for i, v := range values {
		if columns[i].Text = []byte(v); v == "NULL" {
			columns[i] = millrace.Datum{State: millrace.ColumnNull}
		}
	}
	codec, err := millrace.NewKeyCodec(s)
	if err != nil {
		t.Fatal(err)
	}
	key, err := codec.AppendRowKey(nil, columns)
	if err != nil {
		t.Fatal(err)
	}
	return &millrace.Entry{Kind: millrace.KindPut, Table: s.Table, Key: key, Row: millrace.AppendRow(nil, s.Version, columns)}
}

func openStore(t testing.TB) (*edge.Store, *source) {
	t.Helper()
	store, err := edge.Open(edge.Options{Dir: t.TempDir(), Stream: testStream, MapSize: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Check(context.Background()); err != nil {
			t.Error(err)
		}
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	w, err := store.NewWriter()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	return store, &source{t: t, w: w}
}

// newStore returns a store with 25 accounts and some records.
func newStore(t testing.TB) (*edge.Store, *source) {
	t.Helper()
	store, src := openStore(t)
	a, r, o := accountsSchema(), recordsSchema(), oddSchema()
	src.load(a, r, o)
	var rows []*millrace.Entry
	for i := 1; i <= 25; i++ {
		rows = append(rows, put(t, a, strconv.Itoa(i), fmt.Sprintf("owner %d", i), "NULL", "t"))
	}
	for _, name := range []string{"a", "ab", "abc", "b,c", "é", "*", "50%", "x:y"} {
		rows = append(rows, put(t, r, name, "7", `{"of": "`+name+`"}`))
	}
	rows = append(rows, put(t, r, "a", "8", `"quoted"`), put(t, o, "k"))
	src.unit(rows...)
	return store, src
}

// start runs a server of a store on a unix socket and returns how to reach it.
func start(t testing.TB, config Config) (dial func() net.Conn, stop func()) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	config.Plain = []net.Listener{l}
	stop = run(t, config)
	return func() net.Conn {
		t.Helper()
		c, err := new(net.Dialer).DialContext(t.Context(), "tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}, stop
}

func run(t testing.TB, config Config) (stop func()) {
	t.Helper()
	s, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(time.Minute):
			t.Error(errors.New("Run does not end"))
		}
		if n := s.buffered.Load(); n != 0 {
			t.Errorf("%d bytes of buffers are still counted", n)
		}
	})
	t.Cleanup(stop)
	return stop
}

func bank(store Reader) []Stream { return []Stream{{"bank", store}} }
