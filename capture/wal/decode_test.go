package wal

import (
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"strings"
	"testing"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture/chunk"
	"github.com/millrace-db/millrace/capture/table"
)

// wire builds pgoutput messages.
type wire struct{ b []byte }

func msg(kind byte) *wire            { return &wire{[]byte{kind}} }
func (w *wire) u8(v byte) *wire      { w.b = append(w.b, v); return w }
func (w *wire) u16(v uint16) *wire   { w.b = binary.BigEndian.AppendUint16(w.b, v); return w }
func (w *wire) u32(v uint32) *wire   { w.b = binary.BigEndian.AppendUint32(w.b, v); return w }
func (w *wire) u64(v uint64) *wire   { w.b = binary.BigEndian.AppendUint64(w.b, v); return w }
func (w *wire) text(s string) *wire  { w.b = append(append(w.b, s...), 0); return w }
func (w *wire) raw(s string) *wire   { w.b = append(w.b, s...); return w }
func (w *wire) value(s string) *wire { return w.u8('t').u32(uint32(len(s))).raw(s) }
func (w *wire) tuple(v ...string) *wire {
	w.u16(uint16(len(v)))
	for _, s := range v {
		switch s {
		case "NULL":
			w.u8('n')
		case "UNCHANGED":
			w.u8('u')
		default:
			w.value(s)
		}
	}
	return w
}

const testTable = 77

func beginMsg(lsn uint64) []byte  { return msg('B').u64(lsn).u64(1).u32(9).b }
func commitMsg(lsn uint64) []byte { return msg('C').u8(0).u64(lsn).u64(lsn + 8).u64(1).b }
func relationMsg(extra ...string) []byte {
	w := msg('R').u32(testTable).text("public").text("t").u8('d').u16(uint16(2 + len(extra)))
	w.u8(1).text("id").u32(23).u32(0xFFFFFFFF)
	w.u8(0).text("v").u32(25).u32(0xFFFFFFFF)
	for _, name := range extra {
		w.u8(0).text(name).u32(25).u32(0xFFFFFFFF)
	}
	return w.b
}

func startMsg(xid uint32, first bool) []byte {
	w := msg('S').u32(xid)
	if first {
		return w.u8(1).b
	}
	return w.u8(0).b
}
func stopMsg() []byte                 { return msg('E').b }
func abortMsg(xid, sub uint32) []byte { return msg('A').u32(xid).u32(sub).b }
func streamCommitMsg(xid uint32, lsn uint64) []byte {
	return msg('c').u32(xid).u8(0).u64(lsn).u64(lsn + 8).u64(1).b
}

// in is a message as it stands in a block of a streamed transaction.
func in(xid uint32, b []byte) []byte { return append(msg(b[0]).u32(xid).b, b[1:]...) }

func insertMsg(v ...string) []byte { return msg('I').u32(testTable).u8('N').tuple(v...).b }

var testTypes = []millrace.TypeDesc{
	{OID: 23, Kind: millrace.TypeBase, Schema: "pg_catalog", Name: "int4"},
	{OID: 25, Kind: millrace.TypeBase, Schema: "pg_catalog", Name: "text"},
}

func testInfo() *table.Info {
	return &table.Info{
		ID: testTable, Name: table.Name{Schema: "public", Name: "t"}, Kind: "r", Persistence: "p", Identity: "d",
		Columns: []table.Column{
			{Number: 1, Name: "id", Type: 23, Typmod: -1, NotNull: true},
			{Number: 2, Name: "v", Type: 25, Typmod: -1, Collation: "default"},
		},
		Indexes: []table.Index{{Name: "t_pkey", Primary: true, Unique: true, Immediate: true, Valid: true, Columns: []int16{1}}},
		Types:   testTypes,
	}
}

// testDecoder gives its units to emit.
func testDecoder(t testing.TB, emit func(*millrace.Unit)) *decoder {
	s, err := testInfo().Schema(millrace.ModeWAL)
	if err != nil {
		t.Fatal(err)
	}
	m, err := newMetrics(nil, "s")
	if err != nil {
		t.Fatal(err)
	}
	files := &spool{dir: t.TempDir(), prefix: "millrace-s-", metrics: m}
	return &decoder{
		open:      newOpenTransactions(files, m, 1<<20),
		breathe:   func() error { return nil },
		stream:    "s",
		position:  millrace.Position{Mode: millrace.ModeWAL, SystemID: 1, Timeline: 1, Slot: "x", LSN: 100},
		settled:   func(uint32) error { return nil },
		schemas:   map[millrace.TableID]*millrace.Schema{testTable: withVersion(s, 1)},
		version:   1,
		lookUp:    func(millrace.TableID, []uint32) (*table.Info, error) { return testInfo(), nil },
		emit:      func(u *millrace.Unit, _ int64) error { emit(u); return nil },
		spool:     files,
		budget:    1 << 20,
		relations: make(map[millrace.TableID]*relation),
		told:      make(map[millrace.TableID]uint64),
		loads:     newLoads(chunk.Snapshot{Xmin: 1, Xmax: 1}, chunkLimits()),
		loaded:    make(map[millrace.TableID]bool),
		snapshot:  func() (chunk.Snapshot, error) { return chunk.Snapshot{Xmin: 1, Xmax: 1}, nil },
		under:     make(map[millrace.TableID]chunk.Snapshot),
		read:      make(map[millrace.TableID]chunk.Snapshot),
		log:       slog.New(slog.DiscardHandler),
		metrics:   m,
	}
}

func TestDecoder(t *testing.T) {
	type step struct {
		b    []byte
		want error // nil: taken
	}
	ok := func(b []byte) step { return step{b, nil} }
	bad := func(b []byte) step { return step{b, ErrProtocol} }
	for name, steps := range map[string][]step{
		"a transaction":           {ok(beginMsg(200)), ok(relationMsg()), ok(insertMsg("1", "a")), ok(commitMsg(200))},
		"empty message":           {bad(nil)},
		"unknown message":         {bad([]byte("Zx"))},
		"stream abort of nothing": {ok(abortMsg(1, 1)), ok(abortMsg(1, 2))},
		"stream abort of another": {ok(startMsg(1, true)), ok(stopMsg()), ok(abortMsg(2, 2)), ok(abortMsg(1, 2))},
		"stream abort in a block": {ok(startMsg(1, true)), bad(abortMsg(1, 1))},
		"stream begins midway":    {bad(startMsg(1, false))},
		"stream begins twice":     {ok(startMsg(1, true)), ok(stopMsg()), bad(startMsg(1, true))},
		"stream after its abort":  {ok(startMsg(1, true)), ok(stopMsg()), ok(abortMsg(1, 1)), bad(startMsg(1, false))},
		"stream in a transaction": {ok(beginMsg(200)), bad(startMsg(1, true))},
		"stream in a stream":      {ok(startMsg(1, true)), bad(startMsg(2, true))},
		"begin in a stream":       {ok(startMsg(1, true)), bad(beginMsg(200))},
		"stream stop of nothing":  {bad(stopMsg())},
		"stream commit":           {ok(startMsg(1, true)), ok(in(1, relationMsg())), ok(in(1, insertMsg("1", "a"))), ok(stopMsg()), ok(streamCommitMsg(1, 200))},
		"stream commit of none":   {bad(streamCommitMsg(1, 200))},
		"stream commit twice":     {ok(startMsg(1, true)), ok(in(1, relationMsg())), ok(in(1, insertMsg("1", "a"))), ok(stopMsg()), ok(streamCommitMsg(1, 200)), bad(streamCommitMsg(1, 300))},
		"stream commit of old":    {ok(startMsg(1, true)), ok(in(1, relationMsg())), ok(in(1, insertMsg("1", "a"))), ok(stopMsg()), bad(streamCommitMsg(1, 50))},
		"streamed garbage":        {ok(startMsg(1, true)), ok(in(1, relationMsg())), ok(in(1, insertMsg("1", "a")[:12])), ok(stopMsg()), bad(streamCommitMsg(1, 200))},
		"aborted garbage":         {ok(startMsg(1, true)), ok(in(1, insertMsg("1", "a")[:12])), ok(stopMsg()), ok(abortMsg(1, 1))},
		"streamed and cut off":    {ok(startMsg(1, true)), bad([]byte("I\x00\x00"))},
		"streamed, not described": {ok(beginMsg(200)), ok(relationMsg()), ok(insertMsg("1", "a")), ok(commitMsg(200)), ok(startMsg(1, true)), ok(in(1, insertMsg("1", "a"))), ok(stopMsg()), bad(streamCommitMsg(1, 300))},
		"change outside":          {ok(relationMsg()), bad(insertMsg("1", "a"))},
		"change not described":    {ok(beginMsg(200)), bad(insertMsg("1", "a"))},
		"begin twice":             {ok(beginMsg(200)), bad(beginMsg(300))},
		"commit without begin":    {bad(commitMsg(200))},
		"commit of another":       {ok(beginMsg(200)), bad(commitMsg(300))},
		"commit before position":  {ok(beginMsg(50)), bad(commitMsg(50))},
		"cut off":                 {ok(beginMsg(200)), ok(relationMsg()), bad(insertMsg("1", "a")[:12])},
		"bytes left":              {ok(beginMsg(200)), ok(relationMsg()), bad(append(insertMsg("1", "a"), 0))},
		"too few columns":         {ok(beginMsg(200)), ok(relationMsg()), bad(insertMsg("1"))},
		"binary column":           {ok(beginMsg(200)), ok(relationMsg()), bad(msg('I').u32(testTable).u8('N').u16(2).u8('b').b)},
		"huge length":             {ok(beginMsg(200)), ok(relationMsg()), bad(msg('I').u32(testTable).u8('N').u16(2).u8('t').u32(0xFFFFFFFF).raw("x").b)},
		"old row in an insert":    {ok(beginMsg(200)), ok(relationMsg()), bad(msg('I').u32(testTable).u8('K').tuple("1", "a").b)},
		"new row in a delete":     {ok(beginMsg(200)), ok(relationMsg()), bad(msg('D').u32(testTable).u8('N').tuple("1", "a").b)},
		"delete without key":      {ok(beginMsg(200)), ok(relationMsg()), step{msg('D').u32(testTable).u8('K').tuple("NULL", "NULL").b, millrace.ErrMalformed}},
		"key is no number":        {ok(beginMsg(200)), ok(relationMsg()), step{insertMsg("one", "a"), millrace.ErrMalformed}},
		"too many columns":        {bad(msg('R').u32(testTable).text("public").text("t").u8('d').u16(60000).b)},
		"name not UTF-8":          {bad(msg('R').u32(testTable).text("pub\xFF").text("t").u8('d').u16(0).b)},
		"truncate count":          {ok(beginMsg(200)), bad(msg('T').u32(9).u8(0).u32(testTable).b)},
		"truncate":                {ok(beginMsg(200)), ok(relationMsg()), ok(msg('T').u32(1).u8(3).u32(testTable).b), ok(commitMsg(200))},
		"table of no stream":      {ok(beginMsg(200)), ok(msg('R').u32(78).text("public").text("u").u8('d').u16(0).b), ok(msg('T').u32(1).u8(0).u32(78).b), ok(commitMsg(200))},
		"origin and type":         {ok(beginMsg(200)), ok(msg('O').u64(1).text("o").b), ok(msg('Y').u32(1).text("n").text("t").b), ok(commitMsg(200))},
		"message outside":         {bad(msg('M').u8(1).u64(1).text("p").u32(1).raw("x").b)},
		"message without xact":    {ok(msg('M').u8(0).u64(1).text("p").u32(1).raw("x").b)},
		"message of wrong length": {ok(beginMsg(200)), bad(msg('M').u8(1).u64(1).text("p").u32(7).raw("x").b)},
	} {
		t.Run(name, func(t *testing.T) {
			d := testDecoder(t, func(u *millrace.Unit) {
				if u.Position.LSN != 208 {
					t.Errorf("unit at %v", u.Position.LSN)
				}
			})
			for i, s := range steps {
				err := d.message(s.b)
				if !errors.Is(err, s.want) || (err == nil) != (s.want == nil) {
					t.Fatalf("message %d: got %v, want %v", i+1, err, s.want)
				}
				if err != nil && !millrace.NeedsOperator(err) {
					t.Errorf("message %d: %v does not stop the stream", i+1, err)
				}
			}
		})
	}
}

// The receive buffer is reused after each message: nothing may be kept of it.
func TestDecoderKeepsNothing(t *testing.T) {
	var units []*millrace.Unit
	d := testDecoder(t, func(u *millrace.Unit) { units = append(units, u) })
	buf := make([]byte, 0, 1024)
	for _, b := range [][]byte{
		beginMsg(200), relationMsg(), insertMsg("1", "first"),
		msg('U').u32(testTable).u8('K').tuple("1", "NULL").u8('N').tuple("2", "UNCHANGED").b,
		msg('M').u8(1).u64(1).text("app").u32(5).raw("hello").b, commitMsg(200),
	} {
		buf = append(buf[:0], b...)
		if err := d.message(buf); err != nil {
			t.Fatal(err)
		}
		clear(buf)
	}
	e := newEdge()
	s := d.schemas[testTable]
	e.at.Catalog.Schemas = []*millrace.Schema{s}
	e.tables[testTable] = make(map[string]storedRow)
	a, err := e.apply(units[0])
	if err != nil {
		t.Fatal(err)
	}
	if got, want := a.kinds(), "put put delete message"; got != want {
		t.Fatalf("got %s, want %s", got, want)
	}
	for _, row := range e.tables[testTable] {
		if got := rowText(s, row.columns); got != `id="2" v="first" ` {
			t.Errorf("row: %s", got)
		}
	}
	if m := a.entries[3].Message; string(m.Content) != "hello" || m.Prefix != "app" {
		t.Errorf("message: %+v", m)
	}
}

func TestDecoderAllocatesNothingPerRow(t *testing.T) {
	d := testDecoder(t, func(*millrace.Unit) {})
	d.budget = 1 << 30
	for _, b := range [][]byte{beginMsg(200), relationMsg()} {
		if err := d.message(b); err != nil {
			t.Fatal(err)
		}
	}
	messages := [][]byte{
		insertMsg("1", strings.Repeat("x", 80)),
		msg('U').u32(testTable).u8('N').tuple("1", "y").b,
		msg('U').u32(testTable).u8('K').tuple("1", "NULL").u8('N').tuple("2", "UNCHANGED").b,
		msg('D').u32(testTable).u8('K').tuple("2", "NULL").b,
	}
	// The unit's buffer grows by doubling: give it room first.
	for range 20000 {
		if err := d.message(messages[0]); err != nil {
			t.Fatal(err)
		}
	}
	d.w.Reset()
	if n := testing.AllocsPerRun(1000, func() {
		for _, b := range messages {
			if err := d.message(b); err != nil {
				t.Fatal(err)
			}
		}
	}); n != 0 {
		t.Errorf("%v allocations in 4 row changes", n)
	}
}

// Whatever comes, the decoder neither panics nor gives out a unit that cannot be
// read.
func FuzzDecoder(f *testing.F) {
	join := func(messages ...[]byte) []byte {
		var b []byte
		for _, m := range messages {
			b = binary.BigEndian.AppendUint16(b, uint16(len(m)))
			b = append(b, m...)
		}
		return b
	}
	f.Add(join(beginMsg(200), relationMsg(), insertMsg("1", "a"), commitMsg(200)))
	f.Add(join(beginMsg(200), relationMsg("w"), insertMsg("1", "a", "NULL"), commitMsg(200)))
	f.Add(join(beginMsg(200), relationMsg(), msg('U').u32(testTable).u8('O').tuple("1", "a").u8('N').tuple("2", "UNCHANGED").b,
		msg('D').u32(testTable).u8('K').tuple("2", "NULL").b, msg('T').u32(1).u8(0).u32(testTable).b, commitMsg(200)))
	f.Add(join(beginMsg(200), msg('M').u8(1).u64(1).text("app").u32(1).raw("x").b, commitMsg(200), beginMsg(300), commitMsg(300)))
	f.Add(join(startMsg(7, true), in(7, relationMsg()), in(8, insertMsg("1", "a")), stopMsg(), startMsg(9, true), in(9, insertMsg("2", "b")), stopMsg(),
		abortMsg(7, 8), abortMsg(9, 9), startMsg(7, false), in(7, insertMsg("3", "c")), stopMsg(), streamCommitMsg(7, 200)))
	f.Fuzz(func(t *testing.T, b []byte) {
		d := testDecoder(t, func(u *millrace.Unit) { checkUnit(t, u) })
		defer func() {
			if err := d.close(); err != nil {
				t.Error(err)
			}
		}()
		for len(b) >= 2 {
			n := min(int(binary.BigEndian.Uint16(b)), len(b)-2)
			err := d.message(b[2 : 2+n])
			if err != nil {
				if !millrace.NeedsOperator(err) {
					t.Errorf("%v does not stop the stream", err)
				}
				return
			}
			b = b[2+n:]
		}
	})
}

func checkUnit(t *testing.T, u *millrace.Unit) {
	n := uint64(0)
	for {
		run, err := u.Body.Next(1 << 20)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		for len(run) > 0 {
			var h millrace.Head
			if run, err = millrace.NextHead(run, &h); err != nil {
				t.Fatal(err)
			}
			var e millrace.Entry
			if err := millrace.DecodeEntry(h.Body, &e); err != nil {
				t.Fatal(err)
			}
			n++
		}
	}
	if n != u.Entries {
		t.Fatalf("unit has %d entries and says %d", n, u.Entries)
	}
}
