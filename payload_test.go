package millrace

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"pgregory.net/rapid"
)

func TestUnitWriterGivesOrdinalsAndEnd(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var w UnitWriter
		var want []*Entry
		var payload []byte
		for range rapid.IntRange(1, 3).Draw(t, "units") {
			entries := rapid.SliceOfN(genEntry, 1, 8).Draw(t, "entries")
			for i, e := range entries {
				e.Ordinal = uint64(i)
				if w.Len() != uint64(i) {
					t.Fatalf("writer says %d entries, want %d", w.Len(), i)
				}
				if err := appendBySort(&w, e); err != nil {
					t.Fatal(err)
				}
				if rapid.IntRange(0, 2).Draw(t, "take") == 0 {
					payload = append(payload, w.Take()...)
				}
			}
			last := entries[len(entries)-1]
			last.Last, last.End = true, genEnd.Draw(t, "end")
			rest, err := w.Finish(last.End)
			if err != nil {
				t.Fatal(err)
			}
			payload = append(payload, rest...)
			want = append(want, entries...)
		}
		var generated []byte
		for _, e := range want {
			generated = append(generated, payloadTag)
			n := len(generated)
			generated = prefixLength(AppendEntry(generated, e), n)
		}
		if !bytes.Equal(payload, generated) {
			t.Fatalf("writer made\n%x\nwant\n%x", payload, generated)
		}
		if _, err := walkPayload(payload); err != nil {
			t.Fatal(err)
		}
	})
}

// appendBySort uses the writer's own method for the entry's kind.
func appendBySort(w *UnitWriter, e *Entry) error {
	switch e.Kind {
	case KindPut:
		return w.Put(e.Table, e.Key, e.From, e.Row, e.Load)
	case KindDelete:
		return w.Delete(e.Table, e.Key)
	}
	return w.Append(e)
}

// TestUnitWriterAllocatesOnce wants a unit to cost one allocation, of its size,
// whatever was written before.
func TestUnitWriterAllocatesOnce(t *testing.T) {
	var w UnitWriter
	key, row := []byte{0x80, 1}, AppendRow(nil, 1, benchColumns())
	for _, entries := range []int{1000, 1, 100} {
		if n := testing.AllocsPerRun(10, func() {
			for range entries {
				if err := w.Put(7, key, nil, row, 0); err != nil {
					t.Fatal(err)
				}
			}
			unit, err := w.Finish(UnitEnd{Token: 1})
			if err != nil {
				t.Fatal(err)
			}
			if spare := cap(unit) - len(unit); spare > len(unit)/4+64 {
				t.Errorf("a unit of %d bytes holds %d more", len(unit), spare)
			}
		}); n > 1 {
			t.Errorf("a unit of %d entries costs %v allocations", entries, n)
		}
	}
}

func TestUnitWriterTakeStaysWhole(t *testing.T) {
	var w UnitWriter
	for i := range 3 {
		if err := w.Delete(1, []byte{byte('a' + i)}); err != nil {
			t.Fatal(err)
		}
	}
	out := w.Take()
	want := bytes.Clone(out)
	if w.Buffered() == 0 || w.Len() != 3 {
		t.Fatalf("after Take: %d bytes, %d entries; the newest entry must stay", w.Buffered(), w.Len())
	}
	for range 100 {
		if err := w.Delete(1, bytes.Repeat([]byte{'z'}, 100)); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(out, want) {
		t.Error("bytes that Take gave out were written over")
	}
	if again := w.Take(); len(again) == 0 || len(w.Take()) != 0 {
		t.Error("want all but the newest entry once, then nothing")
	}
}

func TestUnitWriterRefuses(t *testing.T) {
	large := make([]byte, MaxEntry)
	schema := &Schema{Version: 1, Table: 1, Namespace: "public", Name: "nothing"}
	tests := []struct {
		name  string
		write func(*UnitWriter) error
		want  error
	}{
		{"put without table", func(w *UnitWriter) error { return w.Put(0, []byte{1}, nil, []byte{1}, 0) }, ErrMalformed},
		{"put without key", func(w *UnitWriter) error { return w.Put(1, nil, nil, []byte{1}, 0) }, ErrMalformed},
		{"put without row", func(w *UnitWriter) error { return w.Put(1, []byte{1}, nil, nil, 0) }, ErrMalformed},
		{"large put", func(w *UnitWriter) error { return w.Put(1, []byte{1}, nil, large, 0) }, ErrTooLarge},
		{"delete without table", func(w *UnitWriter) error { return w.Delete(0, []byte{1}) }, ErrMalformed},
		{"delete without key", func(w *UnitWriter) error { return w.Delete(1, nil) }, ErrMalformed},
		{"large delete", func(w *UnitWriter) error { return w.Delete(1, large) }, ErrTooLarge},
		{"no kind", func(w *UnitWriter) error { return w.Append(&Entry{}) }, ErrMalformed},
		{"unknown kind", func(w *UnitWriter) error { return w.Append(&Entry{Kind: 99, Table: 1}) }, ErrMalformed},
		{"schema without columns", func(w *UnitWriter) error { return w.Append(&Entry{Kind: KindSchema, Table: 1, Schema: schema}) }, ErrMalformed},
		{"text that is none", func(w *UnitWriter) error {
			return w.Append(&Entry{Kind: KindMessage, Message: &LogicalMessage{Prefix: "\xff"}})
		}, ErrMalformed},
		{"large message", func(w *UnitWriter) error {
			return w.Append(&Entry{Kind: KindMessage, Message: &LogicalMessage{Content: large}})
		}, ErrTooLarge},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var w UnitWriter
			if _, err := w.Finish(UnitEnd{}); err == nil {
				t.Error("a unit without entries was finished")
			}
			if err := w.Delete(7, []byte("first")); err != nil {
				t.Fatal(err)
			}
			if err := tt.write(&w); !errors.Is(err, tt.want) {
				t.Errorf("got error %v, want %v", err, tt.want)
			}
			// The refused entry has left nothing behind.
			payload, err := w.Finish(UnitEnd{Token: 5})
			if err != nil {
				t.Fatal(err)
			}
			got, err := walkPayload(payload)
			if err != nil || len(got) != 1 || !got[0].Last || got[0].End.Token != 5 || string(got[0].Key) != "first" {
				t.Errorf("got entries %+v, %v, want the first alone", got, err)
			}
		})
	}
}

func TestUnitWriterTakesLargestEntry(t *testing.T) {
	var w UnitWriter
	// Tag, length and the other fields of this entry take 17 bytes.
	row := make([]byte, MaxEntry-17)
	if err := w.Put(1, []byte{1}, []byte{2}, row, 3); err != nil {
		t.Fatal(err)
	}
	payload, err := w.Finish(UnitEnd{Time: time.Unix(1, 0), Token: 1<<64 - 1, XID: 1<<32 - 1})
	if err != nil {
		t.Fatal(err)
	}
	if len(payload) > MaxPayload {
		t.Fatalf("the largest entry makes a payload of %d bytes, the limit is %d", len(payload), MaxPayload)
	}
	for _, body := range []Body{NewUnit(Position{}, time.Time{}, 1, payload).Body, NewReaderBody(bytes.NewReader(payload), nil)} {
		got, err := body.Next(100)
		if err != nil || !bytes.Equal(got, payload) {
			t.Errorf("%T: got %d bytes, %v, want %d", body, len(got), err, len(payload))
		}
	}
}

func TestEntryRefuses(t *testing.T) {
	schema := &Schema{
		Version: 1, Table: 1, Namespace: "public", Name: "t",
		Columns: []Column{{Name: "id", Type: 23, KeyOrdinal: 1}}, Types: []TypeDesc{{OID: 23, Kind: TypeBase, Name: "int4"}},
	}
	tests := []struct {
		name  string
		entry Entry
		want  string
	}{
		{"no kind", Entry{Table: 1}, "unknown entry type 0"},
		{"later kind", Entry{Kind: 13, Table: 1}, "unknown entry type 13"},
		{"put without table", Entry{Kind: KindPut, Key: []byte{1}, Row: []byte{1}}, "table ID"},
		{"heartbeat of a table", Entry{Kind: KindHeartbeat, Table: 1}, "table ID"},
		{"put without row", Entry{Kind: KindPut, Table: 1, Key: []byte{1}}, "row missing"},
		{"delete with row", Entry{Kind: KindDelete, Table: 1, Key: []byte{1}, Row: []byte{1}}, "row missing or not wanted"},
		{"delete with old key", Entry{Kind: KindDelete, Table: 1, Key: []byte{1}, From: []byte{1}}, "old key not wanted"},
		{"delete without key", Entry{Kind: KindDelete, Table: 1}, "key missing"},
		{"delete of a load", Entry{Kind: KindDelete, Table: 1, Key: []byte{1}, Load: 1}, "load ID not wanted"},
		{"truncate with key", Entry{Kind: KindTruncate, Table: 1, Key: []byte{1}}, "key not wanted"},
		{"truncate with load info", Entry{Kind: KindTruncate, Table: 1, LoadInfo: &LoadInfo{}}, "load info missing or not wanted"},
		{"progress without load", Entry{Kind: KindLoadProgress, Table: 1, LoadInfo: &LoadInfo{}}, "load ID missing"},
		{"progress without info", Entry{Kind: KindLoadProgress, Table: 1, Load: 1}, "load info missing"},
		{"progress in both ways", Entry{Kind: KindLoadProgress, Table: 1, Load: 1, LoadInfo: &LoadInfo{Progress: []byte{1}, Added: []byte{1}}}, "note of progress"},
		{"progress too long", Entry{Kind: KindLoadProgress, Table: 1, Load: 1, LoadInfo: &LoadInfo{Added: make([]byte, MaxProgress+1)}}, "note of progress"},
		{"begin with more progress", Entry{Kind: KindLoadBegin, Table: 1, Load: 1, LoadInfo: &LoadInfo{Added: []byte{1}}}, "note of progress"},
		{"end with progress", Entry{Kind: KindLoadEnd, Table: 1, Load: 1, LoadInfo: &LoadInfo{Progress: []byte{1}}}, "note of progress"},
		{"drop of no table", Entry{Kind: KindDrop}, "table ID"},
		{"drop of a load", Entry{Kind: KindDrop, Table: 1, Load: 1}, "load ID not wanted"},
		{"load without ID", Entry{Kind: KindLoadBegin, Table: 1}, "load ID missing"},
		{"schema without schema", Entry{Kind: KindSchema, Table: 1}, "schema missing"},
		{"schema of another table", Entry{Kind: KindSchema, Table: 2, Schema: schema}, "another table"},
		{"truncate with schema", Entry{Kind: KindTruncate, Table: 1, Schema: schema}, "schema missing or not wanted"},
		{"verify without range", Entry{Kind: KindVerify, Table: 1}, "range missing"},
		{"message without message", Entry{Kind: KindMessage}, "message missing"},
		{"quarantine without reason", Entry{Kind: KindQuarantine, Table: 1}, "quarantine missing"},
		{"quarantine of nothing", Entry{Kind: KindQuarantine, Table: 1, Quarantine: &Quarantined{}}, "unknown kind of what"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var e Entry
			err := DecodeEntry(AppendEntry(nil, &tt.entry), &e)
			if !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got error %v, want ErrMalformed with %q", err, tt.want)
			}
		})
	}
}

// TestEntryRefusesOtherForms holds bytes that some protobuf decoders read and
// others read differently.
func TestEntryRefusesOtherForms(t *testing.T) {
	del := AppendEntry(nil, &Entry{Kind: KindDelete, Table: 1, Key: []byte{1}})
	with := func(more ...byte) []byte { return append(bytes.Clone(del), more...) }
	tests := []struct {
		name  string
		entry []byte
		want  string
	}{
		{"key twice", with(0x22, 1, 2), "field 4 stands twice"},
		{"table after key", with(0x10, 2), "field 2 comes after field 4"},
		{"kind twice", append([]byte{0x08, 1}, del...), "field 1 stands twice"},
		{"end twice", with(0x7a, 0, 0x7a, 0), "field 15 stands twice"},
		{"unknown varint", with(0x68, 1), "unknown field 13"},
		{"unknown bytes", with(0x82, 1, 0), "unknown field 16"},
		{"unknown field of the end", with(0x7a, 2, 0x20, 1), "unknown field 4"},
		{"32-bit field", with(0x2d, 0, 0, 0, 0), "wire type 5"},
		{"group", with(0x2b, 0x2c), "wire type 3"},
		{"key as number", []byte{0x08, 2, 0x10, 1, 0x20, 1}, "field 4 is not a byte string"},
		{"large table", []byte{0x08, 2, 0x10, 0x80, 0x80, 0x80, 0x80, 0x10}, "field 2 is not a 32-bit number"},
		{"tag cut off", with(0x80), "bad field tag"},
		{"value cut off", with(0x2a, 5, 1), "field 5 is cut off"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var e Entry
			if err := DecodeEntry(tt.entry, &e); !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("entry: got error %v, want ErrMalformed with %q", err, tt.want)
			}
			if strings.Contains(tt.name, "as number") {
				return // a head does not look at the key
			}
			payload := append([]byte{payloadTag, byte(len(tt.entry))}, tt.entry...)
			var h Head
			if _, err := NextHead(payload, &h); !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("head: got error %v, want ErrMalformed with %q", err, tt.want)
			}
		})
	}
}

// TestEntryDoesNotLendWhatFollows: appending to a decoded key must not write
// into the payload.
func TestEntryDoesNotLendWhatFollows(t *testing.T) {
	var e Entry
	b := AppendEntry(nil, &Entry{Kind: KindPut, Table: 1, Key: []byte("key"), Row: []byte("row")})
	if err := DecodeEntry(b, &e); err != nil {
		t.Fatal(err)
	}
	_ = append(e.Key, "xxxxxxxx"...)
	if string(e.Row) != "row" {
		t.Errorf("row became %q", e.Row)
	}
}

// drain reads a body to its end in runs of at most max bytes, and checks that
// each run holds as many whole entries as fit, and at least one.
func drain(t *rapid.T, b Body, draw func() int, sizes []int) []byte {
	var all []byte
	for len(sizes) > 0 {
		limit := draw()
		run, err := b.Next(limit)
		if err != nil {
			t.Fatalf("%T: %v", b, err)
		}
		want, n := sizes[0], 1
		for n < len(sizes) && want+sizes[n] <= limit {
			want += sizes[n]
			n++
		}
		if len(run) != want {
			t.Fatalf("%T: run of %d bytes under a limit of %d, want %d", b, len(run), limit, want)
		}
		all = append(all, run...)
		sizes = sizes[n:]
	}
	if _, err := b.Next(draw()); !errors.Is(err, io.EOF) {
		t.Fatalf("%T: after the last entry got %v, want io.EOF", b, err)
	}
	return all
}

func TestBodiesCutAtEntries(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		_, payload := genUnit(t)
		var sizes []int
		for rest := payload; len(rest) > 0; {
			var h Head
			var err error
			if rest, err = NextHead(rest, &h); err != nil {
				t.Fatal(err)
			}
			sizes = append(sizes, len(h.Raw))
		}
		limit := rapid.IntRange(-1, len(payload)+2)
		draw := func() int { return limit.Draw(t, "max") }
		closed := false
		for _, b := range []Body{
			NewUnit(Position{}, time.Time{}, uint64(len(sizes)), payload).Body,
			NewReaderBody(bytes.NewReader(payload), func() error { closed = true; return nil }),
			NewReaderBody(iotest.OneByteReader(bytes.NewReader(payload)), nil),
		} {
			if got := drain(t, b, draw, sizes); !bytes.Equal(got, payload) {
				t.Fatalf("%T: got %x, want %x", b, got, payload)
			}
			if err := b.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if !closed {
			t.Fatal("Close did not reach the stream")
		}
	})
}

func TestReaderBodyTellsWhatIsWrong(t *testing.T) {
	broken := errors.New("disk is gone")
	whole := append([]byte{payloadTag, 2}, 0x08, 8)
	tests := []struct {
		name string
		r    io.Reader
		want error
	}{
		{"ends within an entry", bytes.NewReader(whole[:3]), ErrMalformed},
		{"ends within a length", bytes.NewReader([]byte{payloadTag, 0x80}), ErrMalformed},
		{"no entry", bytes.NewReader([]byte{0xff, 1}), ErrMalformed},
		{"length without end", bytes.NewReader(append([]byte{payloadTag}, bytes.Repeat([]byte{0x80}, 20)...)), ErrMalformed},
		{"large entry", bytes.NewReader([]byte{payloadTag, 0x80, 0x80, 0x80, 0x80, 0x01}), ErrTooLarge},
		{"disk", io.MultiReader(bytes.NewReader(whole[:3]), iotest.ErrReader(broken)), broken},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := NewReaderBody(tt.r, nil).Next(1 << 20); !errors.Is(err, tt.want) {
				t.Errorf("got error %v, want %v", err, tt.want)
			}
		})
	}
	if _, err := NewUnit(Position{}, time.Time{}, 1, whole[:3]).Body.Next(1); !errors.Is(err, ErrMalformed) {
		t.Errorf("memory: got error %v, want ErrMalformed", err)
	}
}
