// Package reads measures how an edge answers reads: in the process that keeps the
// store, and over its sockets, beside Redis, beside LMDB alone and beside a server
// that does nothing, in the same run. `make reads` runs it.
//
// Each measurement is a JSON line on standard output, beside Go's own lines. What is
// compared is interleaved in rounds, and the ratio printed is the median of those of
// the rounds: on a machine that others use too, figures of different times say little.
package reads

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge"
)

//nolint:gochecknoglobals // flags of the test binary
var (
	rowsFlag    = flag.Int("rows", 1_000_000, "rows of the table")
	secondsFlag = flag.Float64("seconds", 4, "length of each measurement")
	roundsFlag  = flag.Int("rounds", 3, "interleaved rounds")
	onlyFlag    = flag.String("only", "", "measure only what has this in its name; what is compared with has to have it too")
	dirFlag     = flag.String("dir", "", "directory of the stores; default: one of the test's, which is removed")
)

// figure writes one measurement with what it was measured on.
func figure(b *testing.B, values map[string]any) {
	b.Helper()
	values["benchmark"] = b.Name()
	values["rows"] = *rowsFlag
	values["cores"] = runtime.NumCPU()
	line, err := json.Marshal(values)
	if err != nil {
		b.Fatal(err)
	}
	fmt.Println(string(line))
}

func median[T cmp.Ordered](all []T) T {
	sorted := slices.Sorted(slices.Values(all))
	return sorted[len(sorted)/2]
}

const (
	tableID = 11
	oidInt8 = 20
	oidText = 25
)

var testStream = millrace.StreamID{7} //nolint:gochecknoglobals // a constant

// benchSchema is a table of rows of about 100 bytes.
func benchSchema() *millrace.Schema {
	column := func(name string, oid, key uint32) millrace.Column {
		return millrace.Column{Name: name, Type: oid, Typmod: -1, NotNull: key > 0, KeyOrdinal: key}
	}
	return &millrace.Schema{
		Version: 1, Table: tableID, Namespace: "public", Name: "t",
		Types: []millrace.TypeDesc{
			{OID: oidInt8, Kind: millrace.TypeBase, Schema: "pg_catalog", Name: "int8"},
			{OID: oidText, Kind: millrace.TypeBase, Schema: "pg_catalog", Name: "text"},
		},
		Columns: []millrace.Column{column("id", oidInt8, 1), column("balance", oidInt8, 0), column("note", oidText, 0)},
	}
}

// putter makes puts of rows.
type putter struct {
	codec *millrace.KeyCodec
	text  []byte
}

func newPutter(b *testing.B) *putter {
	codec, err := millrace.NewKeyCodec(benchSchema())
	if err != nil {
		b.Fatal(err)
	}
	return &putter{codec: codec}
}

func (p *putter) appendKey(dst []byte, id int) ([]byte, error) {
	p.text = fmt.Appendf(p.text[:0], "%d", id)
	return p.codec.Append(dst, [][]byte{p.text})
}

func (p *putter) put(b *testing.B, id int, balance int64) *millrace.Entry {
	key, err := p.appendKey(nil, id)
	if err != nil {
		b.Fatal(err)
	}
	row := millrace.AppendRow(nil, 1, []millrace.Datum{
		{Text: fmt.Appendf(nil, "%d", id)}, {Text: fmt.Appendf(nil, "%d", balance)}, {Text: fmt.Appendf(nil, "%080d", id)},
	})
	return &millrace.Entry{Kind: millrace.KindPut, Table: tableID, Key: key, Row: row}
}

// feed writes units as an applier does.
type feed struct {
	b     *testing.B
	w     *edge.Writer
	index millrace.Index
	cat   millrace.Catalog
}

func (f *feed) unit(entries ...*millrace.Entry) error {
	if err := f.w.Begin(); err != nil {
		return err
	}
	for _, e := range entries {
		if err := f.w.Apply(e, millrace.ModeWAL); err != nil {
			return err
		}
		f.index++
	}
	return f.w.Commit(&millrace.Checkpoint{
		Stream: testStream, Epoch: 1, Index: f.index, Chain: millrace.NewChain(testStream, 1), Term: 1, Offset: 5, Time: time.Now(),
		Position: millrace.Position{Mode: millrace.ModeWAL, SystemID: 1, Timeline: 1, Slot: "bench", LSN: 1}, Catalog: f.cat.Clone(),
	})
}

// newStore makes a store of n rows.
func newStore(b *testing.B, name string, n int) (*edge.Store, *feed) {
	b.Helper()
	dir := *dirFlag
	if dir == "" {
		dir = b.TempDir()
	}
	dir = filepath.Join(dir, name)
	if err := os.RemoveAll(dir); err != nil {
		b.Fatal(err)
	}
	store, err := edge.Open(edge.Options{Dir: dir, Stream: testStream})
	if err != nil {
		b.Fatal(err)
	}
	w, err := store.NewWriter()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		w.Close()
		if err := errors.Join(store.Close(), os.RemoveAll(dir)); err != nil {
			b.Error(err)
		}
	})
	f := &feed{b: b, w: w}
	s := benchSchema()
	f.cat = millrace.Catalog{Schemas: []*millrace.Schema{s}, LastVersion: 1, LastLoad: 1, Loads: []millrace.Load{{ID: 1, Table: tableID}}}
	err = f.unit(&millrace.Entry{Kind: millrace.KindSchema, Table: tableID, Schema: s}, &millrace.Entry{Kind: millrace.KindLoadBegin, Table: tableID, Load: 1})
	f.cat.Loads = nil
	if err == nil {
		err = f.unit(&millrace.Entry{Kind: millrace.KindLoadEnd, Table: tableID, Load: 1})
	}
	p := newPutter(b)
	const step = 10_000
	for at := 0; at < n && err == nil; at += step {
		var entries []*millrace.Entry
		for id := at; id < min(at+step, n); id++ {
			entries = append(entries, p.put(b, id, int64(id)))
		}
		err = f.unit(entries...)
	}
	if err != nil {
		b.Fatal(err)
	}
	if err := store.View(context.Background(), func(v *edge.View) error {
		t, err := v.Table("public.t")
		if err == nil && n > 0 {
			var key []byte
			if key, err = p.appendKey(nil, n-1); err == nil {
				err = t.Get(key, new(edge.Row))
			}
		}
		return err
	}); err != nil {
		b.Fatal(err)
	}
	return store, f
}
