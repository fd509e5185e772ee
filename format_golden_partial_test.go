package millrace

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	millracev1 "github.com/millrace-db/millrace/proto/millrace/v1"
)

// goldenFilter is what the edge of the partial golden files holds.
func goldenFilter(t testing.TB) *Filter {
	return mustFilter(t, []string{"app.événements"}, map[string][][]string{"public.accounts": {{"4"}, {"-3"}}})
}

// goldenPartial are the records that an edge with goldenFilter gets, of a topic of
// their own.
func goldenPartial(t testing.TB) []golden {
	id := StreamID{0xb4, 0x8c, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14}
	g := &goldenTopic{
		t: t, fold: NewFold(id, 1), next: 1, prev: NewChain(id, 1),
		header: Header{Stream: id, Epoch: 1, Position: Position{
			Mode: ModeWAL, SystemID: 7311884467325312345, Timeline: 1, Slot: "millrace_bank", LSN: 0x16B374D848,
		}},
		schemas: map[TableID]*Schema{goldenAccounts: goldenAccountsSchema(), goldenEvents: goldenEventsSchema()},
	}
	a, e := goldenAccounts, goldenEvents
	put := func(id string, length int) *Entry {
		note := strings.Repeat("note "+id+" ", length)
		return &Entry{Kind: KindPut, Table: a, Key: g.encodeKey(a, id), Row: g.row(a, text(id), text("Ada"), text("1"), text(note))}
	}
	event := func(host string) *Entry {
		return &Entry{Kind: KindPut, Table: e, Key: g.encodeKey(e, host, "infinity"), Row: g.row(e, text("infinity"), text(host), null, null, null, null, null, null, null)}
	}
	parts := func(names []string, units ...[]*Entry) {
		var all []*Entry
		for _, u := range units {
			all = append(all, u...)
		}
		payload := g.unit(743, all...)
		for i, u := range units {
			n := 0
			for range u {
				size, err := entrySize(payload[n:])
				if err != nil {
					t.Fatal(err)
				}
				n += size
			}
			g.batch(names[i], payload[:n])
			payload = payload[n:]
		}
	}
	g.reign("term", 1, 0xA1, testKey(7))
	// Schemas and loads come whatever is held.
	g.batch("load",
		g.unit(0, &Entry{Kind: KindSchema, Table: a, Schema: g.schemas[a]}, &Entry{Kind: KindLoadBegin, Table: a, Load: 1}, put("7", 20)),
		g.unit(0, &Entry{Kind: KindSchema, Table: e, Schema: g.schemas[e]}, &Entry{Kind: KindLoadBegin, Table: e, Load: 2}),
		g.unit(0, &Entry{Kind: KindLoadEnd, Table: a, Load: 1}, &Entry{Kind: KindLoadEnd, Table: e, Load: 2}))
	// A unit of which nothing is held, one of which a table is, one of a held key.
	g.batch("units",
		g.unit(741, put("1", 20), put("2", 20)),
		g.unit(742, put("1", 10), event("edge"), put("2", 10)),
		g.unit(743, put("1", 10), put("4", 10)),
		g.unit(744, &Entry{Kind: KindHeartbeat}))
	// Alone in its batch: the last entry shows that it ends.
	g.batch("alone", g.unit(745, event("edge"), put("1", 20)))
	g.state("state")
	// A unit in parts: of accounts nothing is held, then something, then nothing.
	parts([]string{"part-1", "part-2", "part-3", "part-4"},
		[]*Entry{put("1", 300), put("2", 120), event("a")},
		[]*Entry{put("5", 30), put("-3", 30), event("b")},
		[]*Entry{put("6", 30), put("7", 30)},
		[]*Entry{put("8", 30), event("c")})
	var files []golden
	w := NewRewriter(goldenFilter(t), nil)
	fold := NewFold(id, 1)
	fold.Hold(goldenFilter(t))
	partial := 0
	for _, f := range g.files {
		b, err := w.Rewrite(f.bytes)
		if err != nil {
			t.Fatalf("%s: %v", f.name, err)
		}
		r, err := DecodeRecord(b, nil)
		if err == nil {
			_, err = fold.Step(r)
		}
		if err != nil {
			t.Fatalf("%s: %v", f.name, err)
		}
		if r.Partial {
			partial++
		}
		files = append(files, golden{"partial-" + strings.TrimSuffix(f.name, ".record") + ".partial", b, g.describeRecord(b, r)})
	}
	if partial != 5 {
		t.Fatalf("%d records are partial", partial)
	}
	filter := AppendFilter(nil, goldenFilter(t))
	return append(files, golden{"edge.filter", filter, describe(filterProto(goldenFilter(t)).ProtoReflect())})
}

// describeUnits tells what is said of a partial batch beside its entries.
func describeUnits(t testing.TB, payload []byte) any {
	var p partialBatch
	if err := p.decode(payload); err != nil {
		t.Fatal(err)
	}
	return describe(partialProto(t, &p).ProtoReflect())["units"]
}

// partialProto has the entries as they are encoded.
func partialProto(t testing.TB, p *partialBatch) *millracev1.PartialPayload {
	m := new(millracev1.PartialPayload)
	if err := proto.Unmarshal(p.entries, m); err != nil {
		t.Fatal(err)
	}
	for _, u := range p.units {
		one := &millracev1.PartialUnit{Entries: u.entries, Kept: u.kept, Open: u.open}
		for _, table := range p.tables[u.from:u.to] {
			one.Tables = append(one.Tables, &millracev1.PartialTable{Table: uint32(table.id), Hash: table.hash, State: table.state})
		}
		m.Units = append(m.Units, one)
	}
	return m
}

func filterProto(f *Filter) *millracev1.Filter {
	m := new(millracev1.Filter)
	for _, t := range f.Tables {
		one := &millracev1.FilterTable{Name: t.Name}
		for _, p := range t.Prefixes {
			one.Prefixes = append(one.Prefixes, &millracev1.KeyPrefix{Values: p})
		}
		m.Tables = append(m.Tables, one)
	}
	return m
}

func TestPartialAgreesWithGeneratedCode(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		_, payload := genUnit(rt)
		p := partialBatch{entries: payload}
		for range rapid.IntRange(1, 4).Draw(rt, "units") {
			u := partialUnit{entries: rapid.Uint32Range(5, 100).Draw(rt, "entries"), from: len(p.tables)}
			u.kept = rapid.Uint32Range(0, u.entries).Draw(rt, "kept")
			for range rapid.IntRange(1, 4).Draw(rt, "tables") {
				table := partialTable{id: TableID(rapid.Uint32Range(1, 1<<32-1).Draw(rt, "table"))}
				switch rapid.IntRange(0, 2).Draw(rt, "form") {
				case 0:
					table.hash = make([]byte, 32)
					genArray(rt, "hash", table.hash)
				case 1:
					table.state = rapid.SliceOfN(rapid.Byte(), 8, 60).Draw(rt, "state")
				}
				p.tables = append(p.tables, table)
			}
			u.to = len(p.tables)
			p.units = append(p.units, u)
		}
		p.units[0].open = len(p.units) == 1 && rapid.Bool().Draw(rt, "open")
		agree(rt, p.append(nil), partialProto(t, &p), func(b []byte) proto.Message {
			var got partialBatch
			if err := got.decode(b); err != nil {
				rt.Fatal(err)
			}
			return partialProto(t, &got)
		})
	})
}

func TestFilterAgreesWithGeneratedCode(t *testing.T) {
	f := mustFilter(t, []string{"public.b"}, map[string][][]string{"public.a": {{"1", ""}, {"2"}}, "x.ü": {{""}}})
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(filterProto(f))
	if err != nil {
		t.Fatal(err)
	}
	if got := AppendFilter(nil, f); fmt.Sprintf("%x", got) != fmt.Sprintf("%x", b) {
		t.Errorf("wrote %x, generated code %x", got, b)
	}
}

// TestPartialByReaderInPythonRefusesDamage: the other reader looks at hashes, states and
// at what is held.
func TestPartialByReaderInPythonRefusesDamage(t *testing.T) {
	for name, alter := range map[string]func(*partialBatch){
		"03-units": func(p *partialBatch) { p.tables[0].hash[5] ^= 1 },
		"07-part-2": func(p *partialBatch) {
			i := slices.IndexFunc(p.tables, func(t partialTable) bool { return t.state != nil })
			p.tables[i].state[40] ^= 1
		},
		"09-part-4": func(p *partialBatch) {
			p.entries, p.units[0].kept = nil, 0
			for i := range p.tables {
				p.tables[i] = partialTable{id: p.tables[i].id, hash: make([]byte, 32)}
			}
		},
	} {
		dir := t.TempDir()
		for _, f := range goldenPartial(t) {
			b := bytes.Clone(f.bytes)
			if strings.Contains(f.name, name) {
				r, err := DecodeRecord(b, nil)
				if err != nil {
					t.Fatal(err)
				}
				var p partialBatch
				if err := p.decode(r.Payload); err != nil {
					t.Fatal(err)
				}
				alter(&p)
				if b, err = appendPartial(nil, r, p.append(nil)); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(filepath.Join(dir, f.name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		out, err := exec.CommandContext(t.Context(), "python3", "-B", "tests/format/reader.py", dir).CombinedOutput()
		if err == nil || !bytes.Contains(out, []byte(name)) {
			t.Errorf("%s altered: the reader says %v:\n%s", name, err, out)
		}
	}
}
