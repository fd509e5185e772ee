package millrace

import (
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/zeebo/blake3"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// The golden files are the format, frozen: a topic of a dozen records, and
// values that edges store. Beside each stands a JSON file that says what is in
// it. The code must write the same bytes for ever and read them as the JSON
// says; so must a reader in another language, written from docs/FORMAT.md alone.
//
//	go test -run TestGolden -update .
//
// writes them anew, which is right only together with a new format version.
var updateGolden = flag.Bool("update", false, "write the golden files anew")

const goldenDir = "testdata/format"

// golden is one file: its name, its bytes and what is in it.
type golden struct {
	name    string
	bytes   []byte
	content any
}

var goldenTime = time.Date(2026, 1, 2, 3, 4, 5, 678901000, time.UTC)

const (
	goldenAccounts TableID = 16385
	goldenEvents   TableID = 16390
)

func goldenAccountsSchema() *Schema {
	return &Schema{
		Version: 1, Table: goldenAccounts, Namespace: "public", Name: "accounts",
		Columns: []Column{
			{Name: "id", Type: 20, Typmod: -1, NotNull: true, KeyOrdinal: 1, Number: 1},
			{Name: "owner", Type: 25, Typmod: -1, Collation: "default", Number: 3},
			{Name: "balance", Type: 1700, Typmod: 655366},
			{Name: "note", Type: 25, Typmod: -1, Collation: "C"},
		},
		Types: []TypeDesc{
			{OID: 20, Kind: TypeBase, Schema: "pg_catalog", Name: "int8"},
			{OID: 25, Kind: TypeBase, Schema: "pg_catalog", Name: "text"},
			{OID: 1700, Kind: TypeBase, Schema: "pg_catalog", Name: "numeric"},
		},
	}
}

// goldenEventsSchema has a type of every kind, and a key of two columns that
// are not in the order of the columns.
func goldenEventsSchema() *Schema {
	return &Schema{
		Version: 2, Table: goldenEvents, Namespace: "app", Name: "événements",
		Columns: []Column{
			{Name: "at", Type: 1184, Typmod: 6, NotNull: true, KeyOrdinal: 2},
			{Name: "host", Type: 25, Typmod: -1, Collation: "default", NotNull: true, KeyOrdinal: 1},
			{Name: "mood", Type: 20001, Typmod: -1},
			{Name: "moods", Type: 20002, Typmod: -1},
			{Name: "where", Type: 20003, Typmod: -1},
			{Name: "score", Type: 20004, Typmod: -1},
			{Name: "span", Type: 3904, Typmod: -1},
			{Name: "spans", Type: 4451, Typmod: -1},
			{Name: "label", Type: 25, Typmod: -1, Collation: "ignore_case", Nondeterministic: true},
		},
		Types: []TypeDesc{
			{OID: 23, Kind: TypeBase, Schema: "pg_catalog", Name: "int4"},
			{OID: 25, Kind: TypeBase, Schema: "pg_catalog", Name: "text"},
			{OID: 1184, Kind: TypeBase, Schema: "pg_catalog", Name: "timestamptz"},
			{OID: 3904, Kind: TypeRange, Schema: "pg_catalog", Name: "int4range", Elem: 23},
			{OID: 4451, Kind: TypeMultirange, Schema: "pg_catalog", Name: "int4multirange", Elem: 3904},
			{OID: 20001, Kind: TypeEnum, Schema: "app", Name: "mood", Labels: []string{"sad", "ok", "happy"}},
			{OID: 20002, Kind: TypeArray, Schema: "app", Name: "_mood", Elem: 20001, Delim: ';'},
			{OID: 20003, Kind: TypeComposite, Schema: "app", Name: "place", Attributes: []Attribute{{"x", 23}, {"label", 25}}},
			{OID: 20004, Kind: TypeDomain, Schema: "app", Name: "score", Elem: 23},
		},
	}
}

// goldenTopic writes records and folds them as it goes. It computes the chain
// by itself, from the definition and not with UnitHash.
type goldenTopic struct {
	t         testing.TB
	header    Header
	key       ed25519.PrivateKey
	fold      *Fold
	next      Index
	prev      Chain
	open      []Head // of the open unit
	files     []golden
	schemas   map[TableID]*Schema
	positions uint64
}

func (g *goldenTopic) codec(table TableID) *KeyCodec {
	k, err := NewKeyCodec(g.schemas[table])
	if err != nil {
		g.t.Fatal(err)
	}
	return k
}

func (g *goldenTopic) encodeKey(table TableID, texts ...string) []byte {
	values := make([][]byte, len(texts))
	for i := range texts {
		values[i] = []byte(texts[i])
	}
	b, err := g.codec(table).Append(nil, values)
	if err != nil {
		g.t.Fatal(err)
	}
	return b
}

// text, null and so on make columns.
func text(s string) Datum { return Datum{Text: []byte(s)} }

var (
	null      = Datum{State: ColumnNull}
	unchanged = Datum{State: ColumnUnchanged}
	missing   = Datum{State: ColumnMissing}
)

func (g *goldenTopic) row(table TableID, columns ...Datum) []byte {
	return AppendRow(nil, g.schemas[table].Version, columns)
}

// unit makes the payload of a unit.
func (g *goldenTopic) unit(xid uint32, entries ...*Entry) []byte {
	var w UnitWriter
	for _, e := range entries {
		if err := w.Append(e); err != nil {
			g.t.Fatal(err)
		}
	}
	g.positions += 0x100
	end := UnitEnd{Time: goldenTime.Add(time.Duration(g.positions) * time.Millisecond), Token: 0x16B374D848 + g.positions, XID: xid}
	payload, err := w.Finish(end)
	if err != nil {
		g.t.Fatal(err)
	}
	return payload
}

// chainOf follows the definition of the chain for one unit, or a part of it.
func chainOf(prev Chain, unit []Head) Chain {
	var order []TableID
	tables := map[TableID][]byte{}
	for _, h := range unit {
		if !slices.Contains(order, h.Table) {
			order = append(order, h.Table)
		}
		tables[h.Table] = append(tables[h.Table], h.Raw...)
	}
	var all []byte
	for _, table := range order {
		sum := blake3.Sum256(tables[table])
		all = binary.BigEndian.AppendUint32(all, uint32(table))
		all = append(all, sum[:]...)
	}
	u := blake3.Sum256(all)
	return blake3.Sum256(append(prev[:], u[:]...))
}

// batch writes a batch of the payloads, which are whole units or a part of one.
func (g *goldenTopic) batch(name string, payloads ...[]byte) {
	payload := bytes.Join(payloads, nil)
	h := g.header
	h.Kind, h.First, h.Prev, h.Chain = RecordBatch, g.next, g.prev, g.prev
	for rest := payload; len(rest) > 0; {
		var head Head
		var err error
		if rest, err = NextHead(rest, &head); err != nil {
			g.t.Fatal(err)
		}
		g.open = append(g.open, head)
		h.Count++
		if head.Last {
			g.prev = chainOf(g.prev, g.open)
			h.Chain, g.open = g.prev, nil
			g.header.Time, g.header.Position.LSN = head.End.Time, LSN(head.End.Token)
		}
	}
	if len(g.open) > 0 {
		h.Chain = chainOf(g.prev, g.open)
	}
	h.Time, h.Position = g.header.Time, g.header.Position
	g.next += Index(h.Count)
	g.add(name, h, payload, Accepted)
}

func (g *goldenTopic) reign(name string, term Term, publisher byte, key ed25519.PrivateKey) {
	g.header.Term, g.key = term, key
	g.header.Publisher = PublisherID(bytes.Repeat([]byte{publisher}, 16))
	h := g.header
	h.Kind, h.Position = RecordTerm, Position{}
	h.Time = goldenTime
	g.open, g.next = nil, g.fold.Index()+1
	g.add(name, h, nil, Reign)
}

func (g *goldenTopic) state(name string) {
	h, payload := g.fold.StateRecord()
	g.add(name, h, payload, Noted)
}

func (g *goldenTopic) add(name string, h Header, payload []byte, want Outcome) {
	b, err := AppendRecord(nil, &h, payload, g.key)
	if err != nil {
		g.t.Fatalf("%s: %v", name, err)
	}
	r, err := DecodeRecord(b, nil)
	if err != nil {
		g.t.Fatalf("%s: %v", name, err)
	}
	if got, err := g.fold.Step(r); got != want {
		g.t.Fatalf("%s: fold says %v, %v, want %v", name, got, err, want)
	}
	name = fmt.Sprintf("%02d-%s.record", len(g.files)+1, name)
	g.files = append(g.files, golden{name, b, g.describeRecord(b, r)})
}

// goldenFiles makes everything that is frozen.
func goldenFiles(t testing.TB) []golden {
	id := StreamID{0xb4, 0x8c, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14}
	g := &goldenTopic{
		t: t, fold: NewFold(id, 1), next: 1, prev: NewChain(id, 1),
		header: Header{Stream: id, Epoch: 1, Position: Position{
			Mode: ModeWAL, SystemID: 7311884467325312345, Timeline: 1, Slot: "millrace_bank", LSN: 0x16B374D848,
		}},
		schemas: map[TableID]*Schema{goldenAccounts: goldenAccountsSchema(), goldenEvents: goldenEventsSchema()},
	}
	a, e := goldenAccounts, goldenEvents
	account := func(id string) []byte { return g.encodeKey(a, id) }

	g.reign("term", 1, 0xA1, nil)
	g.batch("batch-load",
		g.unit(0, &Entry{Kind: KindSchema, Table: a, Schema: g.schemas[a]}, &Entry{Kind: KindLoadBegin, Table: a, Load: 1, LoadInfo: &LoadInfo{Reason: "first copy"}}),
		g.unit(0, &Entry{Kind: KindSchema, Table: e, Schema: g.schemas[e]}, &Entry{Kind: KindLoadBegin, Table: e, Load: 2, LoadInfo: &LoadInfo{Reason: "first copy"}}),
		g.unit(0,
			&Entry{Kind: KindPut, Table: a, Key: account("1"), Row: g.row(a, text("1"), text("Ada"), text("100.50"), null), Load: 1},
			&Entry{Kind: KindPut, Table: a, Key: account("2"), Row: g.row(a, text("2"), text("Grace"), text("-7"), text("")), Load: 1}),
		g.unit(0, &Entry{Kind: KindLoadEnd, Table: a, Load: 1, LoadInfo: &LoadInfo{Rows: 2}}, &Entry{Kind: KindLoadEnd, Table: e, Load: 2, LoadInfo: &LoadInfo{}}),
	)
	g.batch("batch-heartbeat", g.unit(740, &Entry{Kind: KindHeartbeat}))
	at := "2026-01-02 03:04:05.678901+00"
	g.batch("batch-live",
		// Two tables by turns, so that the order of first touch shows.
		g.unit(741,
			&Entry{Kind: KindPut, Table: e, Key: g.encodeKey(e, "edge\x00one", at), Row: g.row(e,
				text(at), text("edge\x00one"), text("ok"), text("{ok;happy}"), text(`(1,"a b")`), text("7"), text("[1,5)"), text("{[1,5),[7,9)}"), text("Grün"))},
			&Entry{Kind: KindPut, Table: a, Key: account("1"), Row: g.row(a, text("1"), text("Ada"), text("90.50"), unchanged)},
			&Entry{Kind: KindPut, Table: e, Key: g.encodeKey(e, "edge", "infinity"), Row: g.row(e, text("infinity"), text("edge"), null, null, null, null, null, null, missing)},
			// The key of account 2 becomes -3; its note comes from the old row.
			&Entry{Kind: KindPut, Table: a, Key: account("-3"), From: account("2"), Row: g.row(a, text("-3"), text("Grace"), text("3"), unchanged)},
			&Entry{Kind: KindDelete, Table: a, Key: account("2")}),
		g.unit(742, &Entry{Kind: KindMessage, Message: &LogicalMessage{Prefix: "app.deploy", Content: []byte{0, 1, 0xfe, 0xff}}}),
	)
	g.state("state")
	long := g.unit(743,
		&Entry{Kind: KindTruncate, Table: e},
		&Entry{Kind: KindPut, Table: a, Key: account("4"), Row: g.row(a, text("4"), text("Edsger"), text("NaN"), text(strings.Repeat("structured ", 9)))},
		&Entry{Kind: KindDelete, Table: a, Key: account("1")})
	var h Head
	rest, err := NextHead(long, &h)
	if err != nil {
		t.Fatal(err)
	}
	g.batch("batch-part-1", long[:len(long)-len(rest)])
	g.batch("batch-part-2", rest)

	// A unit is left open; the next reign voids it, and its index is used again.
	g.batch("batch-void", long[:len(long)-len(rest)])
	key := testKey(7)
	g.reign("term-signed", 2, 0xB2, key)
	g.batch("batch-signed",
		g.unit(0, &Entry{Kind: KindVerify, Table: a, Verify: &VerifyRange{
			ID: 5, Low: account("-3"), High: account("100"), Rows: 2, Hash: [16]byte{1, 2, 3, 15: 16},
			LeftOut: [][]byte{account("4")}, Snapshot: "745:747:745",
		}}),
		g.unit(0, &Entry{Kind: KindVerify, Table: e, Verify: &VerifyRange{ID: 6, Buckets: 16, Bucket: 3}}),
		g.unit(748,
			&Entry{Kind: KindQuarantine, Table: a, Key: account("4"), Quarantine: &Quarantined{Kind: KindPut, Reason: "share of deleted rows over 10 %"}},
			&Entry{Kind: KindLoadBegin, Table: a, Load: 3, LoadInfo: &LoadInfo{Reason: "rows were kept back"}}),
	)
	g.state("state-signed")
	values := goldenValues(t, g)

	// A load comes on, in each of the ways; then the table leaves the stream.
	progress := func(info LoadInfo) []byte {
		return g.unit(0, &Entry{Kind: KindLoadProgress, Table: a, Load: 3, LoadInfo: &info})
	}
	g.batch("batch-progress",
		progress(LoadInfo{Progress: []byte{1, 2, 3}}), progress(LoadInfo{Added: []byte{4}}),
		progress(LoadInfo{Reason: "the table was rewritten"}),
		g.unit(0, &Entry{Kind: KindLoadBegin, Table: e, Load: 4, LoadInfo: &LoadInfo{Reason: "asked for", Progress: []byte{5, 6}}}),
		progress(LoadInfo{Added: []byte{7, 8, 9}}))
	g.state("state-progress")
	g.batch("batch-drop", g.unit(0, &Entry{Kind: KindDrop, Table: a}))
	g.state("state-drop")
	return slices.Concat(g.files, values, goldenPartial(t))
}

// goldenValues are those that do not stand in the topic by themselves.
func goldenValues(t testing.TB, g *goldenTopic) []golden {
	c := g.fold.Checkpoint()
	c.TopicID, c.Offset = "0jQEXOq0QNaUoWEeUmRVjw", 1234
	wal := c.Position
	trigger := Position{Mode: ModeTrigger, SystemID: 7311884467325312345, Tick: 77, Snapshot: "745:747:745"}
	row := AppendRow(nil, 300, []Datum{text("seven"), null, unchanged, missing, text("")})
	return []golden{
		{"checkpoint.checkpoint", AppendCheckpoint(nil, &c), describe(checkpointProto(&c).ProtoReflect())},
		{"wal.position", AppendPosition(nil, wal), describe(positionProto(wal).ProtoReflect())},
		{"trigger.position", AppendPosition(nil, trigger), describe(positionProto(trigger).ProtoReflect())},
		{"row.row", row, describeRow(t, row)},
		goldenKeys(t),
	}
}

// describe gives a message as JSON: fields under their names, those at their
// default left out, byte strings in hexadecimal, enumerators by number.
func describe(m protoreflect.Message) map[string]any {
	out := map[string]any{}
	one := func(fd protoreflect.FieldDescriptor, v protoreflect.Value) any {
		switch fd.Kind() {
		case protoreflect.MessageKind:
			return describe(v.Message())
		case protoreflect.BytesKind:
			return hex.EncodeToString(v.Bytes())
		case protoreflect.EnumKind:
			return int32(v.Enum())
		}
		return v.Interface()
	}
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		name := string(fd.Name())
		if !fd.IsList() {
			out[name] = one(fd, v)
			return true
		}
		var list []any
		for i := range v.List().Len() {
			list = append(list, one(fd, v.List().Get(i)))
		}
		out[name] = list
		return true
	})
	return out
}

func describeRow(t testing.TB, b []byte) any {
	var r Row
	if err := DecodeRow(b, &r); err != nil {
		t.Fatal(err)
	}
	columns := []any{}
	for _, d := range r.Columns {
		if d.State == ColumnValue {
			columns = append(columns, map[string]any{"text": string(d.Text)})
		} else {
			columns = append(columns, d.State.String())
		}
	}
	return map[string]any{"version": uint64(r.Version), "columns": columns}
}

func (g *goldenTopic) describeRecord(b []byte, r *Record) any {
	out := map[string]any{
		"kind": r.Kind.String(), "stream": r.Stream.String(), "epoch": uint64(r.Epoch), "term": uint64(r.Term),
		"publisher": r.Publisher.String(), "first": uint64(r.First), "count": r.Count, "time_us": micros(r.Time),
		"prev": r.Prev.String(), "chain": r.Chain.String(), "body": hex.EncodeToString(r.Body[:]),
		"position": describe(positionProto(r.Position).ProtoReflect()), "crc": r.CRC,
		"codec": b[signedSize+int(binary.BigEndian.Uint16(b[6:]))],
	}
	if len(r.Signature) > 0 {
		pub := g.key.Public().(ed25519.PublicKey)
		if err := r.VerifySignature(pub); err != nil {
			g.t.Fatal(err)
		}
		out["key_id"] = hex.EncodeToString(r.KeyID[:])
		out["signed_by"] = hex.EncodeToString(pub)
	}
	switch r.Kind {
	case RecordState:
		s, err := DecodeState(r.Payload)
		if err != nil {
			g.t.Fatal(err)
		}
		out["state"] = describe(stateProto(s).ProtoReflect())
	case RecordBatch:
		payload := r.Payload
		if r.Partial {
			var p partialBatch
			if err := p.decode(payload); err != nil {
				g.t.Fatal(err)
			}
			payload = p.entries
			out["units"] = describeUnits(g.t, r.Payload)
		}
		entries, err := walkPayload(payload)
		if err != nil {
			g.t.Fatal(err)
		}
		list := []any{}
		for _, e := range entries {
			list = append(list, g.describeEntry(e))
		}
		out["entries"] = list
	}
	return out
}

func (g *goldenTopic) describeEntry(e *Entry) any {
	out := describe(entryProto(e).ProtoReflect())
	texts := func(name string, key []byte) {
		if len(key) == 0 {
			return
		}
		values, err := g.codec(e.Table).Decode(key, nil)
		if err != nil {
			g.t.Fatal(err)
		}
		list := []any{}
		for _, v := range values {
			list = append(list, string(v))
		}
		out[name] = list
	}
	texts("key", e.Key)
	texts("from", e.From)
	if e.Row != nil {
		out["row"] = describeRow(g.t, e.Row)
	}
	return out
}

func TestGolden(t *testing.T) {
	files := goldenFiles(t)
	if *updateGolden {
		writeGolden(t, files)
	}
	known := map[string]bool{}
	for _, f := range files {
		known[f.name], known[f.name+".json"] = true, true
		if want := readGolden(t, f.name); !bytes.Equal(f.bytes, want) {
			t.Errorf("%s: the format has changed:\ngot  %x\nwant %x", f.name, f.bytes, want)
		}
		want := parseJSON(t, f.name, readGolden(t, f.name+".json"))
		if got := parseJSON(t, f.name, marshalJSON(t, f.content)); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: content has changed:\ngot  %v\nwant %v", f.name, got, want)
		}
	}
	present, err := os.ReadDir(goldenDir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range present {
		if !known[f.Name()] {
			t.Errorf("%s/%s is of no use any more", goldenDir, f.Name())
		}
	}
}

// TestGoldenByReaderInPython has the golden files read by a program that was
// written from docs/FORMAT.md and shares no code with this package.
func TestGoldenByReaderInPython(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Fatalf("python3 is needed to hold the format against another reader; scripts/setup installs it: %v", err)
	}
	cmd := exec.CommandContext(t.Context(), python, "-B", "tests/format/reader.py", goldenDir)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("reader: %v\n%s", err, stderr.Bytes())
	}
	var got map[string]any
	d := json.NewDecoder(bytes.NewReader(out))
	d.UseNumber()
	if err := d.Decode(&got); err != nil {
		t.Fatal(err)
	}
	files := goldenFiles(t)
	for _, f := range files {
		want := parseJSON(t, f.name, readGolden(t, f.name+".json"))
		if !reflect.DeepEqual(got[f.name], want) {
			t.Errorf("%s: the reader in Python says\n%v\nwant\n%v", f.name, got[f.name], want)
		}
	}
	if len(got) != len(files) {
		t.Errorf("the reader read %d files, want %d", len(got), len(files))
	}
}

// TestGoldenByReaderInPythonRefusesDamage: the other reader is a proof only if
// it looks at what it reads.
func TestGoldenByReaderInPythonRefusesDamage(t *testing.T) {
	for name, alter := range map[string]func([]byte) []byte{
		"payload": func(b []byte) []byte { b[len(b)-1] ^= 1; return b },
		"chain":   func(b []byte) []byte { b[112] ^= 1; return reseal(b) },
		"end":     func(b []byte) []byte { return b[:len(b)-1] },
	} {
		dir := t.TempDir()
		for _, f := range goldenFiles(t) {
			if !strings.HasSuffix(f.name, ".record") {
				continue
			}
			b := bytes.Clone(f.bytes)
			if strings.Contains(f.name, "batch-live") {
				b = alter(b)
			}
			if err := os.WriteFile(filepath.Join(dir, f.name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		out, err := exec.CommandContext(t.Context(), "python3", "-B", "tests/format/reader.py", dir).CombinedOutput()
		if err == nil || !bytes.Contains(out, []byte("batch-live")) {
			t.Errorf("%s altered: the reader says %v:\n%s", name, err, out)
		}
	}
}

func readGolden(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(goldenDir, name))
	if err != nil {
		t.Fatalf("read golden file: %v", err)
	}
	return b
}

func writeGolden(t *testing.T, files []golden) {
	if err := os.RemoveAll(goldenDir); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(goldenDir, 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(name string, b []byte) {
		if err := os.WriteFile(filepath.Join(goldenDir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range files {
		write(f.name, f.bytes)
		write(f.name+".json", append(marshalJSON(t, f.content), '\n'))
	}
}

func marshalJSON(t testing.TB, v any) []byte {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func parseJSON(t testing.TB, name string, b []byte) (v any) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return v
}
