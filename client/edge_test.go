package client_test

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/client"
	"github.com/millrace-db/millrace/edge"
	edgelog "github.com/millrace-db/millrace/edge/log"
	"github.com/millrace-db/millrace/edge/serve"
	"github.com/millrace-db/millrace/edge/watch"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// deadline bounds every wait; the machine may be busy with other tests.
const deadline = time.Minute

func timeout(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	t.Cleanup(cancel)
	return ctx
}

const (
	oidInt8 = 20
	oidText = 25
)

var testStream = millrace.StreamID{7}

func schemaOf(version millrace.SchemaVersion, table millrace.TableID, name string) *millrace.Schema {
	return &millrace.Schema{
		Version: version, Table: table, Namespace: "public", Name: name,
		Types: []millrace.TypeDesc{
			{OID: oidInt8, Kind: millrace.TypeBase, Schema: "pg_catalog", Name: "int8"},
			{OID: oidText, Kind: millrace.TypeBase, Schema: "pg_catalog", Name: "text"},
		},
		Columns: []millrace.Column{
			{Name: "id", Type: oidInt8, Typmod: -1, KeyOrdinal: 1, NotNull: true, Number: 1},
			{Name: "note", Type: oidText, Typmod: -1, Number: 2},
		},
	}
}

// testEdge is an edge without a topic: what it takes in is made here.
type testEdge struct {
	t     testing.TB
	store *edge.Store
	log   *edgelog.Log
	hub   *watch.Hub
	unix  string
	// change is for the configuration of the server.
	change []func(*serve.Config)
	// served is the server that runs, and how to end it.
	server *serve.Server
	stop   func()

	w       *edge.Writer
	fold    *millrace.Fold
	now     time.Time
	entries []*millrace.Entry
	schemas map[millrace.TableID]*millrace.Schema
	codecs  map[millrace.TableID]*millrace.KeyCodec
}

// newEdge makes an edge with the empty tables public.a and public.b, which serves.
func newEdge(t testing.TB, o edgelog.Options, change ...func(*serve.Config)) *testEdge {
	t.Helper()
	dir := t.TempDir()
	if o.Dir = filepath.Join(dir, "log"); o.Retain == 0 {
		o.Retain = 1 << 62 // times are made up
	}
	e := &testEdge{
		t: t, change: change, unix: filepath.Join(dir, "s"), fold: millrace.NewFold(testStream, 1), now: time.Now().Add(-time.Minute).Truncate(time.Microsecond).UTC(),
		schemas: make(map[millrace.TableID]*millrace.Schema), codecs: make(map[millrace.TableID]*millrace.KeyCodec),
	}
	var err error
	if e.store, err = edge.Open(edge.Options{Dir: filepath.Join(dir, "store"), MapSize: 1 << 30}); err != nil {
		t.Fatal(err)
	}
	if e.log, err = edgelog.Open(o); err != nil {
		t.Fatal(err)
	}
	if e.hub, err = watch.New(watch.Config{Log: func() *edgelog.Log { return e.log }}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if e.stop != nil {
			e.stop()
		}
		_ = e.hub.Close()
		_ = e.log.Close()
		if err := e.store.Close(); err != nil {
			t.Error(err)
		}
	})
	c := e.fold.Checkpoint()
	e.log.Start(&c)
	h := e.header(millrace.RecordTerm)
	e.record(h, nil)
	for i, name := range []string{"a", "b"} {
		s := schemaOf(millrace.SchemaVersion(i+1), millrace.TableID(i+1), name)
		e.schemas[s.Table] = s
		if e.codecs[s.Table], err = millrace.NewKeyCodec(s); err != nil {
			t.Fatal(err)
		}
		load := millrace.LoadID(i + 1)
		e.entries = append(e.entries, &millrace.Entry{Kind: millrace.KindSchema, Table: s.Table, Schema: s},
			&millrace.Entry{Kind: millrace.KindLoadBegin, Table: s.Table, Load: load}, &millrace.Entry{Kind: millrace.KindLoadEnd, Table: s.Table, Load: load})
	}
	e.commit()
	e.serve()
	return e
}

// serve begins to answer.
func (e *testEdge) serve() {
	e.t.Helper()
	c := serve.Config{
		Streams: map[string]serve.Reader{"bank": e.store}, Unix: e.unix, Listen: "127.0.0.1:0",
		Watch: func(string) *watch.Hub { return e.hub },
	}
	for _, f := range e.change {
		f(&c)
	}
	var err error
	e.server, err = serve.New(c)
	if err != nil {
		e.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	if err := e.server.Listen(ctx); err != nil {
		e.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- e.server.Run(ctx) }()
	e.stop = func() {
		cancel()
		if err := <-ended; err != nil {
			e.t.Errorf("Run: %v", err)
		}
		e.stop = nil
	}
}

func (e *testEdge) url() string { return "http://" + e.server.Addr() }

func (e *testEdge) header(kind millrace.RecordKind) millrace.Header {
	return millrace.Header{Kind: kind, Stream: testStream, Epoch: 1, Term: 1, Publisher: millrace.PublisherID{1}, Time: e.now}
}

func (e *testEdge) record(h millrace.Header, payload []byte) {
	e.t.Helper()
	value, err := millrace.AppendRecord(nil, &h, payload, nil)
	if err != nil {
		e.t.Fatal(err)
	}
	r, err := millrace.DecodeRecord(value, nil)
	if err == nil {
		_, err = e.fold.Step(r)
	}
	if err != nil {
		e.t.Fatal(err)
	}
	e.log.Append(0, value, r, r.Kind == millrace.RecordBatch)
}

func (e *testEdge) key(table millrace.TableID, id int) []byte {
	key, err := e.codecs[table].Append(nil, [][]byte{strconv.AppendInt(nil, int64(id), 10)})
	if err != nil {
		e.t.Fatal(err)
	}
	return key
}

func (e *testEdge) put(table millrace.TableID, id int, note string) {
	row := millrace.AppendRow(nil, e.schemas[table].Version, []millrace.Datum{{Text: strconv.AppendInt(nil, int64(id), 10)}, {Text: []byte(note)}})
	e.entries = append(e.entries, &millrace.Entry{Kind: millrace.KindPut, Table: table, Key: e.key(table, id), Row: row})
}

func (e *testEdge) delete(table millrace.TableID, id int) {
	e.entries = append(e.entries, &millrace.Entry{Kind: millrace.KindDelete, Table: table, Key: e.key(table, id)})
}

// commit brings what was gathered as one unit into store and log, and returns its last
// index.
func (e *testEdge) commit() millrace.Index {
	e.t.Helper()
	e.now = e.now.Add(time.Microsecond)
	var u millrace.UnitWriter
	for _, entry := range e.entries {
		if err := u.Append(entry); err != nil {
			e.t.Fatal(err)
		}
	}
	token := uint64(e.fold.Index()) + 1000
	payload, err := u.Finish(millrace.UnitEnd{Time: e.now, Token: token})
	if err != nil {
		e.t.Fatal(err)
	}
	h := e.header(millrace.RecordBatch)
	h.First, h.Count, h.Prev = e.fold.Next(), uint32(len(e.entries)), e.fold.Chain()
	h.Position = millrace.Position{Mode: millrace.ModeWAL, SystemID: 1, Timeline: 1, Slot: "s", LSN: millrace.LSN(token)}
	var unit millrace.UnitHash
	var run millrace.Run
	var head millrace.Head
	for rest := payload; len(rest) > 0; {
		if rest, err = millrace.NextHead(rest, &head); err != nil {
			e.t.Fatal(err)
		}
		run.Extend(&unit, &head)
	}
	run.Flush(&unit)
	h.Chain = unit.Chain(h.Prev)
	e.record(h, payload)
	if e.w == nil {
		if e.w, err = e.store.NewWriter(); err != nil {
			e.t.Fatal(err)
		}
	}
	if err := e.w.Begin(); err != nil {
		e.t.Fatal(err)
	}
	for _, entry := range e.entries {
		if err := e.w.Apply(entry, millrace.ModeWAL); err != nil {
			e.t.Fatal(err)
		}
	}
	c := e.fold.Checkpoint()
	if err := e.w.Commit(&c); err != nil {
		e.t.Fatal(err)
	}
	e.log.Commit(&c)
	e.entries = e.entries[:0]
	return c.Index
}

// done gives the store's writer up, which the goroutine that committed has to do.
func (e *testEdge) done() {
	if e.w != nil {
		e.w.Close()
		e.w = nil
	}
}

func newClient(t testing.TB, c client.Config) *client.Client {
	t.Helper()
	c.Stream = "bank"
	got, err := client.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(got.Close)
	return got
}

func note(i int) string { return fmt.Sprintf("note %d", i) }
