package image

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge"
)

// childVariable makes the test binary run one of children in place of the tests.
const childVariable = "MILLRACE_IMAGE_TEST_CHILD"

var children = map[string]func() error{
	"create":  createChild,
	"restore": restoreChild,
	"fetch":   fetchChild,
	"swap":    swapChild,
}

func TestMain(m *testing.M) {
	if name := os.Getenv(childVariable); name != "" {
		if err := children[name](); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

var testStream = millrace.StreamID{1, 2, 3}

const oidText = 25

func testSchema(table millrace.TableID, name string) *millrace.Schema {
	return &millrace.Schema{
		Version: millrace.SchemaVersion(table), Table: table, Namespace: "public", Name: name,
		Types: []millrace.TypeDesc{{OID: oidText, Kind: millrace.TypeBase, Schema: "pg_catalog", Name: "text"}},
		Columns: []millrace.Column{
			{Name: "id", Type: oidText, Typmod: -1, NotNull: true, KeyOrdinal: 1},
			{Name: "value", Type: oidText, Typmod: -1},
		},
	}
}

// source fills a store as an applier does. Each unit gives all rows its number,
// so that any snapshot can be checked by itself.
type source struct {
	t     testing.TB
	store *edge.Store
	w     *edge.Writer
	index millrace.Index
	loads []millrace.Load
	// key signs the header of the record that each unit comes in; nil for none.
	key ed25519.PrivateKey
}

const sourceRows = 300

func options(dir string) edge.Options {
	return edge.Options{Dir: dir, Stream: testStream, MapSize: 1 << 30, MaxDBs: 32}
}

func newSource(t testing.TB, store *edge.Store) *source {
	t.Helper()
	w, err := store.NewWriter()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	s := &source{t: t, store: store, w: w, index: store.Index()}
	if s.index == 0 {
		for i, schema := range []*millrace.Schema{testSchema(1, "a"), testSchema(2, "b")} {
			load := millrace.LoadID(i + 1)
			s.apply(
				&millrace.Entry{Kind: millrace.KindSchema, Table: schema.Table, Schema: schema},
				&millrace.Entry{Kind: millrace.KindLoadBegin, Table: schema.Table, Load: load},
				&millrace.Entry{Kind: millrace.KindLoadEnd, Table: schema.Table, Load: load})
		}
	}
	return s
}

func (s *source) apply(entries ...*millrace.Entry) {
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
		case millrace.KindLoadBegin:
			s.loads = []millrace.Load{{ID: e.Load, Table: e.Table}}
		case millrace.KindLoadEnd:
			s.loads = nil
		}
	}
	c := &millrace.Checkpoint{
		Stream: testStream, Epoch: 2, Index: s.index, Chain: millrace.NewChain(testStream, 2), Term: 4, Publisher: millrace.PublisherID{5},
		TopicID: "topic", Offset: millrace.Offset(2 * s.index), Time: time.UnixMicro(int64(s.index)).UTC(),
		Catalog: millrace.Catalog{Loads: s.loads, LastLoad: 100, LastVersion: 100},
	}
	s.w.Header(s.header(c, len(entries)))
	if err := s.w.Commit(c); err != nil {
		s.t.Fatal(err)
	}
}

// header is the signed header of the record that ends at c.
func (s *source) header(c *millrace.Checkpoint, entries int) []byte {
	s.t.Helper()
	if s.key == nil {
		return nil
	}
	return signedHeader(s.t, c, entries, s.key)
}

func signedHeader(t testing.TB, c *millrace.Checkpoint, entries int, key ed25519.PrivateKey) []byte {
	t.Helper()
	h := millrace.Header{
		Kind: millrace.RecordBatch, Stream: c.Stream, Epoch: c.Epoch, Term: c.Term, Publisher: c.Publisher,
		First: c.Index - millrace.Index(entries) + 1, Count: uint32(entries), Prev: c.Chain, Chain: c.Chain, Time: c.Time,
		Position: millrace.Position{Mode: millrace.ModeWAL, SystemID: 1, Timeline: 1, Slot: "slot", LSN: 1},
	}
	b, err := millrace.AppendRecord(nil, &h, nil, key)
	if err != nil {
		t.Fatal(err)
	}
	r, err := millrace.DecodeRecord(b, nil)
	if err != nil {
		t.Fatal(err)
	}
	return r.SignedHeader()
}

func put(t testing.TB, table millrace.TableID, load millrace.LoadID, values ...string) *millrace.Entry {
	t.Helper()
	columns := make([]millrace.Datum, len(values))
	for i, v := range values {
		columns[i].Text = []byte(v)
	}
	codec, err := millrace.NewKeyCodec(testSchema(table, "t"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := codec.AppendRowKey(nil, columns)
	if err != nil {
		t.Fatal(err)
	}
	return &millrace.Entry{
		Kind: millrace.KindPut, Table: table, Load: load, Key: key,
		Row: millrace.AppendRow(nil, millrace.SchemaVersion(table), columns),
	}
}

// unit gives all rows a number: small ones, large ones, and long keys.
func (s *source) unit(number int) {
	s.t.Helper()
	text := strconv.Itoa(number) + ":"
	var all []*millrace.Entry
	for i := range sourceRows {
		all = append(all, put(s.t, 1, 0, strconv.Itoa(i), text+strings.Repeat("v", 20*i)))
		all = append(all, put(s.t, 2, 0, strings.Repeat("k", 5*i)+strconv.Itoa(i), text))
	}
	s.apply(all...)
}

// rowsOf returns all rows that readers of a store see, and their unit's number.
func rowsOf(t testing.TB, s *edge.Store) (rows []string, number string) {
	t.Helper()
	err := s.View(t.Context(), func(v *edge.View) error {
		tables, err := v.Tables()
		if err != nil {
			return err
		}
		for _, info := range tables {
			table, err := v.Table(info.Name)
			if err != nil {
				return err
			}
			err = table.Scan(nil, nil, 0, func(key []byte, row *edge.Row) error {
				n, _, _ := bytes.Cut(row.Columns[1].Text, []byte(":"))
				if number == "" {
					number = string(n)
				}
				if number != string(n) {
					return fmt.Errorf("%s has rows of units %s and %s", info.Name, number, n)
				}
				rows = append(rows, fmt.Sprintf("%s %x %q", info.Name, key, row.Columns))
				return nil
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return rows, number
}

func openStore(t testing.TB, o edge.Options) *edge.Store {
	t.Helper()
	s, err := edge.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return s
}

func openHome(t testing.TB, dir string) *edge.Home {
	t.Helper()
	h, err := edge.OpenHome(options(dir))
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func closeHome(t testing.TB, h *edge.Home) {
	t.Helper()
	if err := h.Store().Check(t.Context()); err != nil {
		t.Errorf("Check: %v", err)
	}
	if err := h.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
}
