package harness

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/millrace-db/millrace"
)

// history makes records of a small stream, one batch a unit, as a correct
// publisher does.
type history struct {
	t         *testing.T
	stream    millrace.StreamID
	term      millrace.Term
	publisher millrace.PublisherID
	next      millrace.Index
	chain     millrace.Chain
	records   [][]byte
}

const itemsTable = 42

func newHistory(t *testing.T) *history {
	h := &history{t: t, stream: millrace.StreamID{1}, next: 1}
	h.chain = millrace.NewChain(h.stream, 1)
	h.reign(1, 1)
	h.unit(0,
		&millrace.Entry{Kind: millrace.KindSchema, Table: itemsTable, Schema: &millrace.Schema{
			Version: 1, Table: itemsTable, Namespace: "public", Name: "items",
			Columns: []millrace.Column{{Name: "id", Type: 20, Typmod: -1, NotNull: true, KeyOrdinal: 1}, {Name: "note", Type: 25, Typmod: -1}},
			Types:   []millrace.TypeDesc{{OID: 20, Kind: millrace.TypeBase, Schema: "pg_catalog", Name: "int8"}, {OID: 25, Kind: millrace.TypeBase, Schema: "pg_catalog", Name: "text"}},
		}},
		&millrace.Entry{Kind: millrace.KindLoadBegin, Table: itemsTable, Load: 1, LoadInfo: &millrace.LoadInfo{Reason: "first copy"}},
		h.put("1", "one", 1), h.put("2", "two", 1),
		&millrace.Entry{Kind: millrace.KindLoadEnd, Table: itemsTable, Load: 1, LoadInfo: &millrace.LoadInfo{Rows: 2}},
	)
	h.unit(10, h.put("3", "three", 0))
	h.unit(20, h.put("1", "another one", 0), &millrace.Entry{Kind: millrace.KindDelete, Table: itemsTable, Key: []byte("2")})
	return h
}

func (h *history) put(key, note string, load millrace.LoadID) *millrace.Entry {
	row := millrace.AppendRow(nil, 1, []millrace.Datum{{Text: []byte(key)}, {Text: []byte(note)}})
	return &millrace.Entry{Kind: millrace.KindPut, Table: itemsTable, Key: []byte(key), Row: row, Load: load}
}

func (h *history) reign(term millrace.Term, publisher byte) {
	h.term, h.publisher = term, millrace.PublisherID{publisher}
	h.append(&millrace.Header{Kind: millrace.RecordTerm}, nil)
}

func (h *history) payload(lsn millrace.LSN, entries ...*millrace.Entry) []byte {
	end := millrace.UnitEnd{Time: time.UnixMicro(1), Token: uint64(lsn)}
	if lsn != 0 {
		end.XID = 7
	}
	var w millrace.UnitWriter
	for _, e := range entries {
		if err := w.Append(e); err != nil {
			h.t.Fatal(err)
		}
	}
	payload, err := w.Finish(end)
	if err != nil {
		h.t.Fatal(err)
	}
	return payload
}

// unit appends a unit as one batch.
func (h *history) unit(lsn millrace.LSN, entries ...*millrace.Entry) {
	h.batch(lsn, h.payload(lsn, entries...), h.next)
}

// batch appends a payload with the chain that belongs to it.
func (h *history) batch(lsn millrace.LSN, payload []byte, first millrace.Index) {
	entries, err := parseEntries([][]byte{payload})
	if err != nil {
		h.t.Fatal(err)
	}
	prev := h.chain
	h.chain = chainAfter(h.chain, entries)
	position := millrace.Position{Mode: millrace.ModeWAL, SystemID: 1, Timeline: 1, Slot: "s", LSN: lsn}
	h.append(&millrace.Header{Kind: millrace.RecordBatch, First: first, Count: uint32(len(entries)), Prev: prev, Chain: h.chain, Position: position}, payload)
	h.next = first + millrace.Index(len(entries))
}

func (h *history) append(header *millrace.Header, payload []byte) {
	header.Stream, header.Epoch, header.Term, header.Publisher = h.stream, 1, h.term, h.publisher
	record, err := millrace.AppendRecord(nil, header, payload, nil)
	if err != nil {
		h.t.Fatal(err)
	}
	h.records = append(h.records, record)
}

// judge gives the records to a new witness.
func (h *history) judge() (*Witness, error) {
	w := newWitness()
	for i, r := range h.records {
		if err := w.step(r); err != nil {
			return w, fmt.Errorf("record %d: %w", i, err)
		}
	}
	return w, nil
}

func (h *history) notes(w *Witness) string {
	rows, err := WitnessRows(w.Tables["public.items"], []string{"id"}, false)
	if err != nil {
		h.t.Fatal(err)
	}
	return fmt.Sprint(len(rows))
}

func TestWitnessAcceptsAHistory(t *testing.T) {
	h := newHistory(t)
	old := *h
	h.reign(2, 2)
	h.unit(30, h.put("4", "four", 0))
	// The fenced publisher's next append arrives after all.
	old.records = nil
	old.unit(30, h.put("9", "a void row", 0))
	h.records = append(h.records, old.records...)
	h.unit(40, h.put("5", "five", 0))
	h.records = append(h.records, h.records[len(h.records)-1])
	w, err := h.judge()
	if err != nil {
		t.Fatal(err)
	}
	if w.Index != h.next-1 || w.chain != h.chain || w.Reigns != 2 || w.Stale != 1 || w.Repeats != 1 || w.Units != 5 {
		t.Errorf("got index %v in %d units, %d reigns, %d stale records, %d repeats; want index %v in 5 units, 2, 1 and 1", w.Index, w.Units, w.Reigns, w.Stale, w.Repeats, h.next-1)
	}
	if got := h.notes(w); got != "4" {
		t.Errorf("got %s rows, want 4", got)
	}
	if w.Position.LSN != 40 {
		t.Errorf("got position %v, want the one of the newest unit", w.Position)
	}
}

// TestWitnessCatches plants each kind of wrong history.
func TestWitnessCatches(t *testing.T) {
	for _, one := range []struct {
		name  string
		plant func(*history)
		says  string
	}{
		{"a dropped batch", func(h *history) { h.records = append(h.records[:2], h.records[3:]...) }, "stands where index"},
		{"two batches swapped", func(h *history) { h.records[2], h.records[3] = h.records[3], h.records[2] }, "stands where index"},
		{"two transactions in the wrong order", func(h *history) {
			h.unit(60, h.put("6", "six", 0))
			h.unit(50, h.put("7", "seven", 0))
		}, "comes after one"},
		{"a transaction that comes twice", func(h *history) { h.unit(20, h.put("1", "another one", 0)) }, "comes after one"},
		{"a skipped index", func(h *history) { h.batch(50, h.payload(50, h.put("6", "six", 0)), h.next+1) }, "stands where index"},
		{"a repeat that differs", func(h *history) {
			other := *h
			other.chain, other.records = millrace.NewChain(h.stream, 1), nil
			other.batch(20, h.payload(20, h.put("1", "not that one", 0)), h.next-2)
			h.records = append(h.records, other.records...)
		}, "stands where index"},
		{"another history before it", func(h *history) {
			h.chain = millrace.Chain{1}
			h.unit(50, h.put("6", "six", 0))
		}, "continues chain"},
		{"an entry altered under its chain", func(h *history) {
			r, err := millrace.DecodeRecord(h.records[2], nil)
			if err != nil {
				h.t.Fatal(err)
			}
			payload := []byte(strings.Replace(string(r.Payload), "three", "thrEe", 1))
			if h.records[2], err = millrace.AppendRecord(nil, &r.Header, payload, nil); err != nil {
				h.t.Fatal(err)
			}
		}, "its entries give"},
		{"a bit flipped", func(h *history) { h.records[2][len(h.records[2])-1] ^= 1 }, "CRC-32C"},
		{"a batch of a term without its record", func(h *history) {
			h.term = 9
			h.unit(50, h.put("6", "six", 0))
		}, "no term record"},
		{"another stream", func(h *history) {
			h.stream = millrace.StreamID{2}
			h.unit(50, h.put("6", "six", 0))
		}, "record of stream"},
		{"a load that lacks a row", func(h *history) {
			h.unit(50,
				&millrace.Entry{Kind: millrace.KindLoadBegin, Table: itemsTable, Load: 2},
				h.put("1", "one", 2),
				&millrace.Entry{Kind: millrace.KindLoadEnd, Table: itemsTable, Load: 2, LoadInfo: &millrace.LoadInfo{Rows: 2}})
		}, "brought 1 rows"},
	} {
		t.Run(one.name, func(t *testing.T) {
			h := newHistory(t)
			one.plant(h)
			_, err := h.judge()
			if err == nil || !strings.Contains(err.Error(), one.says) {
				t.Errorf("the witness says %v, want %q", err, one.says)
			}
		})
	}
}

func TestDiffNamesEachKind(t *testing.T) {
	rows := func(texts ...string) Rows {
		all := Rows{}
		for _, text := range texts {
			if err := all.add([]byte(text), []string{"id"}, false); err != nil {
				t.Fatal(err)
			}
		}
		return all
	}
	want := rows(`{"id": 1, "n": 1.0}`, `{"id": 2, "n": null}`, `{"n": 3, "id": 3}`)
	if d := Diff(want, rows(`{"id":3,"n":3}`, `{"n":1.0,"id":1}`, `{"id":2,"n":null}`)); d.Count() != 0 {
		t.Errorf("equal rows: %v", d)
	}
	d := Diff(want, rows(`{"id":1,"n":1.00}`, `{"id":3,"n":3}`, `{"id":4,"n":4}`))
	if got, want := fmt.Sprint(d.Changed, d.Missing, d.Extra), "[[1]] [[2]] [[4]]"; got != want {
		t.Errorf("got changed, missing and extra rows %s, want %s", got, want)
	}
	if err := want.add([]byte(`{"id":1,"n":7}`), []string{"id"}, false); err == nil {
		t.Error("a row that comes twice is not noticed")
	}
}

func TestBooksThatDoNotBalance(t *testing.T) {
	good := Books{Accounts: 5, Tellers: 5, Branches: 5, History: 5}
	if err := good.Balance(); err != nil {
		t.Error(err)
	}
	for _, torn := range []Books{{1, 4, 4, 5, 5, 5, 0}, {1, 1, 5, 4, 5, 5, 0}, {1, 1, 5, 5, 4, 5, 0}, {1, 1, 5, 5, 5, 4, 0}} {
		if torn.Balance() == nil {
			t.Errorf("%+v balances", torn)
		}
	}
}
