package millrace

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// The benchmarks run over rows of pgbench's largest table, about 160 bytes an
// entry, in batches of 1,000 single-row transactions. Figures are per batch
// where the name says Batch, otherwise per entry.

const benchEntries = 1000

func benchColumns() []Datum {
	return []Datum{
		{Text: []byte("1234567")},
		{Text: []byte("12")},
		{Text: []byte("-48213")},
		{Text: bytes.Repeat([]byte{' '}, 84)},
	}
}

// benchPayload holds changes of three tables by turns, as pgbench makes them.
func benchPayload(tb testing.TB) []byte {
	tb.Helper()
	random := rand.New(rand.NewPCG(1, 1))
	columns := benchColumns()
	var payload []byte
	var w UnitWriter
	for i := range benchEntries {
		columns[0].Text = fmt.Appendf(nil, "%d", random.IntN(1e7))
		columns[2].Text = fmt.Appendf(nil, "%d", random.IntN(1e6)-5e5)
		key := []byte{0x80, byte(i >> 16), byte(i >> 8), byte(i)}
		table := TableID(16384 + i%3)
		if err := w.Put(table, key, nil, AppendRow(nil, 3, columns), 0); err != nil {
			tb.Fatal(err)
		}
		if i%3 != 2 && i != benchEntries-1 {
			continue
		}
		unit, err := w.Finish(UnitEnd{Time: time.UnixMicro(1767323045678901), Token: 0x16B374D848, XID: uint32(i)})
		if err != nil {
			tb.Fatal(err)
		}
		payload = append(payload, unit...)
	}
	return payload
}

func benchHeader() Header {
	id := StreamID{1}
	return Header{
		Kind: RecordBatch, Stream: id, Epoch: 1, Term: 1, Publisher: PublisherID{1}, First: 1, Count: benchEntries,
		Prev: NewChain(id, 1), Chain: NewChain(id, 2), Time: time.UnixMicro(1767323045678901),
		Position: Position{Mode: ModeWAL, SystemID: 7311884467325312345, Timeline: 1, Slot: "millrace_bank", LSN: 0x16B374D848},
	}
}

func BenchmarkAppendRecordBatch(b *testing.B) {
	for name, key := range map[string]ed25519.PrivateKey{"unsigned": nil, "signed": testKey(1)} {
		b.Run(name, func(b *testing.B) {
			payload, h := benchPayload(b), benchHeader()
			var dst []byte
			b.SetBytes(int64(len(payload)))
			b.ReportAllocs()
			for b.Loop() {
				var err error
				if dst, err = AppendRecord(dst[:0], &h, payload, key); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(len(payload))/float64(len(dst)), "ratio")
		})
	}
}

func BenchmarkDecodeRecordBatch(b *testing.B) {
	payload, h := benchPayload(b), benchHeader()
	record := mustRecord(b, &h, payload, nil)
	buf := make([]byte, len(payload))
	b.SetBytes(int64(len(payload)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := DecodeRecord(record, buf); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkNextHead(b *testing.B) {
	payload := benchPayload(b)
	rest := payload
	var h Head
	b.SetBytes(int64(len(payload) / benchEntries))
	b.ReportAllocs()
	for b.Loop() {
		if len(rest) == 0 {
			rest = payload
		}
		var err error
		if rest, err = NextHead(rest, &h); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecodeEntry(b *testing.B) {
	var heads []Head
	for rest := benchPayload(b); len(rest) > 0; {
		var h Head
		rest, _ = NextHead(rest, &h)
		heads = append(heads, h)
	}
	var e Entry
	i := 0
	b.SetBytes(int64(len(heads[0].Body)))
	b.ReportAllocs()
	for b.Loop() {
		if err := DecodeEntry(heads[i%len(heads)].Body, &e); err != nil {
			b.Fatal(err)
		}
		i++
	}
}

func BenchmarkUnitWriter(b *testing.B) {
	for _, entries := range []int{1, 4, 1000} {
		b.Run(fmt.Sprintf("entries=%d", entries), func(b *testing.B) {
			row, key := AppendRow(nil, 3, benchColumns()), []byte{0x80, 1, 2, 3}
			end := UnitEnd{Time: time.UnixMicro(1767323045678901), Token: 0x16B374D848, XID: 7}
			var w UnitWriter
			b.SetBytes(int64(entries * len(row)))
			b.ReportAllocs()
			for b.Loop() {
				for range entries {
					if err := w.Put(16384, key, nil, row, 0); err != nil {
						b.Fatal(err)
					}
				}
				if _, err := w.Finish(end); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkAppendRow(b *testing.B) {
	columns := benchColumns()
	var dst []byte
	b.ReportAllocs()
	for b.Loop() {
		dst = AppendRow(dst[:0], 3, columns)
	}
	b.SetBytes(int64(len(dst)))
}

func BenchmarkDecodeRow(b *testing.B) {
	row := AppendRow(nil, 3, benchColumns())
	var r Row
	b.SetBytes(int64(len(row)))
	b.ReportAllocs()
	for b.Loop() {
		if err := DecodeRow(row, &r); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkUnitHashBatch advances the chain over a batch: of units of three
// entries, and of one unit of one table.
func BenchmarkUnitHashBatch(b *testing.B) {
	payload := benchPayload(b)
	for name, whole := range map[string]bool{"units-of-3": false, "one-unit": true} {
		b.Run(name, func(b *testing.B) {
			var u UnitHash
			chain := NewChain(StreamID{1}, 1)
			b.SetBytes(int64(len(payload)))
			b.ReportAllocs()
			for b.Loop() {
				var run Run
				var h Head
				for rest := payload; len(rest) > 0; {
					var err error
					if rest, err = NextHead(rest, &h); err != nil {
						b.Fatal(err)
					}
					if whole {
						h.Table = 16384
					}
					run.Extend(&u, &h)
					if h.Last && !whole || len(rest) == 0 {
						run.Flush(&u)
						chain = u.Chain(chain)
						u.Reset()
					}
				}
			}
		})
	}
}

func BenchmarkFoldBatch(b *testing.B) {
	payload, h := benchPayload(b), benchHeader()
	chain := NewChain(h.Stream, h.Epoch)
	first := chain
	var unit []Head
	for rest := payload; len(rest) > 0; {
		var head Head
		rest, _ = NextHead(rest, &head)
		if unit = append(unit, head); head.Last {
			chain, unit = chainOf(chain, unit), nil
		}
	}
	h.Prev, h.Chain = first, chain
	record := mustRecord(b, &h, payload, nil)
	r, err := DecodeRecord(record, nil)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(payload)))
	b.ReportAllocs()
	for b.Loop() {
		f := NewFold(h.Stream, h.Epoch)
		f.term, f.publisher = h.Term, h.Publisher
		if _, err := f.Step(r); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*benchEntries), "ns/entry")
}

// TestHotPathDoesNotAllocate keeps the benchmarks' most important figure from
// growing unseen.
func TestHotPathDoesNotAllocate(t *testing.T) {
	payload, h := benchPayload(t), benchHeader()
	record := mustRecord(t, &h, payload, nil)
	dst, buf := make([]byte, 0, len(payload)*2), make([]byte, len(payload))
	columns := benchColumns()
	row := AppendRow(nil, 3, columns)
	key := []byte{0x80, 1, 2, 3}
	end := UnitEnd{Time: time.UnixMicro(1767323045678901), Token: 0x16B374D848, XID: 7}
	var (
		e Entry
		r Row
		w UnitWriter
	)
	for _, tt := range []struct {
		name string
		most float64
		fn   func() error
	}{
		{"walk heads", 0, func() (err error) {
			var head Head
			for rest := payload; len(rest) > 0 && err == nil; {
				rest, err = NextHead(rest, &head)
			}
			return err
		}},
		{"decode entries", 0, func() (err error) {
			var head Head
			for rest := payload; len(rest) > 0 && err == nil; {
				if rest, err = NextHead(rest, &head); err == nil {
					err = DecodeEntry(head.Body, &e)
				}
			}
			return err
		}},
		{"encode row", 0, func() error { dst = AppendRow(dst[:0], 3, columns); return nil }},
		{"decode row", 0, func() error { return DecodeRow(row, &r) }},
		// The unit's one buffer.
		{"unit of one change", 1, func() error {
			if err := w.Put(16384, key, nil, row, 0); err != nil {
				return err
			}
			_, err := w.Finish(end)
			return err
		}},
		{"encode record", 0, func() (err error) { dst, err = AppendRecord(dst[:0], &h, payload, nil); return err }},
		// The record, and its position with the slot's name.
		{"decode record", 3, func() error { _, err := DecodeRecord(record, buf); return err }},
	} {
		got := testing.AllocsPerRun(20, func() {
			if err := tt.fn(); err != nil {
				t.Fatalf("%s: %v", tt.name, err)
			}
		})
		if got > tt.most {
			t.Errorf("%s: %v allocations, want at most %v", tt.name, got, tt.most)
		}
	}
}

// BenchmarkKeyringCheck is what a signature costs a reader, a batch.
func BenchmarkKeyringCheck(b *testing.B) {
	payload, h := benchPayload(b), benchHeader()
	key := testKey(1)
	r, err := DecodeRecord(mustRecord(b, &h, payload, key), nil)
	if err != nil {
		b.Fatal(err)
	}
	ring, err := NewKeyring([]TrustedKey{{Key: key.Public().(ed25519.PublicKey), From: Place{1, 1}}})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := ring.Check(r, r.First); err != nil {
			b.Fatal(err)
		}
	}
}
