package serve_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge"
	"github.com/millrace-db/millrace/edge/serve"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var testStream = millrace.StreamID{7}

const (
	oidBool   = 16
	oidInt8   = 20
	oidText   = 25
	oidTstz   = 1184
	oidNum    = 1700
	accounts  = "public.accounts"
	records   = "dns.records"
	streamURL = "/v1/streams/bank"
)

var testTypes = []millrace.TypeDesc{
	{OID: oidBool, Kind: millrace.TypeBase, Schema: "pg_catalog", Name: "bool"},
	{OID: oidInt8, Kind: millrace.TypeBase, Schema: "pg_catalog", Name: "int8"},
	{OID: oidText, Kind: millrace.TypeBase, Schema: "pg_catalog", Name: "text"},
	{OID: oidTstz, Kind: millrace.TypeBase, Schema: "pg_catalog", Name: "timestamptz"},
	{OID: oidNum, Kind: millrace.TypeBase, Schema: "pg_catalog", Name: "numeric"},
}

func column(name string, oid, key uint32) millrace.Column {
	return millrace.Column{Name: name, Type: oid, Typmod: -1, NotNull: key > 0, KeyOrdinal: key}
}

func accountsSchema() *millrace.Schema {
	return &millrace.Schema{
		Version: 1, Table: 11, Namespace: "public", Name: "accounts", Types: testTypes,
		Columns: []millrace.Column{column("id", oidInt8, 1), column("balance", oidNum, 0), column("at", oidTstz, 0), column("note", oidText, 0)},
	}
}

// recordsSchema has a composite key whose order is not that of the columns.
func recordsSchema() *millrace.Schema {
	return &millrace.Schema{
		Version: 2, Table: 12, Namespace: "dns", Name: "records", Types: testTypes,
		Columns: []millrace.Column{column("name", oidText, 2), column("zone", oidInt8, 1), column("live", oidBool, 3), column("data", oidText, 0)},
	}
}

// source fills a store as an applier does.
type source struct {
	t       testing.TB
	store   *edge.Store
	w       *edge.Writer
	index   millrace.Index
	time    time.Time
	catalog millrace.Catalog
	lsn     millrace.LSN
	epoch   millrace.Epoch
}

func newSource(t testing.TB, store *edge.Store) *source {
	t.Helper()
	w, err := store.NewWriter()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	return &source{t: t, store: store, w: w, lsn: 4711, epoch: 1}
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
		Stream: testStream, Epoch: s.epoch, Index: s.index, Chain: millrace.NewChain(testStream, s.epoch), Term: 3, Offset: 5, Time: s.time,
		Position: millrace.Position{Mode: millrace.ModeWAL, SystemID: 1, Timeline: 1, Slot: "millrace_bank", LSN: s.lsn},
		Catalog:  s.catalog.Clone(),
	}
	if err := s.w.Commit(c); err != nil {
		s.t.Fatal(err)
	}
}

func schemaEntry(s *millrace.Schema) *millrace.Entry {
	return &millrace.Entry{Kind: millrace.KindSchema, Table: s.Table, Schema: s}
}

func loadEntry(s *millrace.Schema, kind millrace.Kind, load millrace.LoadID) *millrace.Entry {
	return &millrace.Entry{Kind: kind, Table: s.Table, Load: load}
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

func openStore(t testing.TB, dir string, views int) *edge.Store {
	t.Helper()
	store, err := edge.Open(edge.Options{Dir: dir, Stream: testStream, MapSize: 256 << 20, MaxViews: views})
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
	return store
}

// newStore returns a store with both tables: 25 accounts, and some records.
func newStore(t testing.TB) (*edge.Store, *source) {
	t.Helper()
	return newStoreOf(t, 0)
}

func newStoreOf(t testing.TB, views int) (*edge.Store, *source) {
	t.Helper()
	store := openStore(t, t.TempDir(), views)
	src := newSource(t, store)
	src.time = time.Now().Add(-2 * time.Second)
	a, r := accountsSchema(), recordsSchema()
	src.unit(schemaEntry(a), schemaEntry(r), loadEntry(a, millrace.KindLoadBegin, 1), loadEntry(r, millrace.KindLoadBegin, 2))
	src.unit(loadEntry(a, millrace.KindLoadEnd, 1), loadEntry(r, millrace.KindLoadEnd, 2))
	var rows []*millrace.Entry
	for i := 1; i <= 25; i++ {
		rows = append(rows, put(t, a, strconv.Itoa(i), fmt.Sprintf("%d.50", i), "2024-01-02 03:04:05+00", "NULL"))
	}
	for _, name := range []string{"a", "ab", "abc", "b,c", "b/c", "é", "*", "50%"} {
		rows = append(rows, put(t, r, name, "7", "t", "data of "+name))
	}
	rows = append(rows, put(t, r, "a", "8", "f", `"quoted"`))
	src.unit(rows...)
	return store, src
}

func newServer(t testing.TB, store *edge.Store, change ...func(*serve.Config)) *serve.Server {
	t.Helper()
	registry := prometheus.NewRegistry()
	config := serve.Config{Streams: map[string]serve.Reader{"bank": store}, Gatherer: registry, Registerer: registry}
	for _, f := range change {
		f(&config)
	}
	s, err := serve.New(config)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// answer is one answer of a handler.
type answer struct {
	status int
	header http.Header
	body   string
}

func ask(t testing.TB, h http.Handler, method, target, body string) answer {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), method, target, strings.NewReader(body)))
	a := answer{w.Code, w.Result().Header, w.Body.String()}
	if length := a.header.Get("Content-Length"); length != "" && length != strconv.Itoa(len(a.body)) {
		t.Errorf("%s %s: Content-Length %s, body of %d bytes", method, target, length, len(a.body))
	}
	return a
}

func get(t testing.TB, h http.Handler, target string) answer {
	t.Helper()
	return ask(t, h, http.MethodGet, target, "")
}

// code is the code of an error's body.
func (a answer) code(t testing.TB) string {
	t.Helper()
	var body struct {
		Error struct{ Code, Message, Mend string }
	}
	d := json.NewDecoder(strings.NewReader(a.body))
	d.DisallowUnknownFields()
	if err := d.Decode(&body); err != nil {
		t.Errorf("answer %d: %q is not an error body: %v", a.status, a.body, err)
	}
	if body.Error.Message == "" || body.Error.Mend == "" {
		t.Errorf("answer %d: %q lacks message or mend", a.status, a.body)
	}
	return body.Error.Code
}

// compact takes the blanks out of JSON that a test wants.
func compact(t testing.TB, s string) string {
	t.Helper()
	var b bytes.Buffer
	if err := json.Compact(&b, []byte(s)); err != nil {
		t.Fatalf("%s: %v", s, err)
	}
	return b.String() + "\n"
}
