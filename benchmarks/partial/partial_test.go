// Package partial measures what an edge is sent that holds one of ten tables, and what it
// costs its upstream to leave the others out, beside sending its log as it is.
package partial

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/millrace-db/millrace"
	edgelog "github.com/millrace-db/millrace/edge/log"
)

const (
	tables    = 10
	entries   = 200_000
	batchSize = 1 << 20
	rounds    = 5
)

// history is a log of units of five changes of rows of about 160 bytes, in batches of 1 MiB.
type history struct {
	log     *edgelog.Log
	bytes   int64
	index   millrace.Index
	schemas []*millrace.Schema
}

func schema(i int) *millrace.Schema {
	return &millrace.Schema{
		Version: millrace.SchemaVersion(i + 1), Table: millrace.TableID(16384 + i), Namespace: "public", Name: fmt.Sprintf("t%d", i),
		Types: []millrace.TypeDesc{
			{OID: 20, Kind: millrace.TypeBase, Schema: "pg_catalog", Name: "int8"},
			{OID: 25, Kind: millrace.TypeBase, Schema: "pg_catalog", Name: "text"},
		},
		Columns: []millrace.Column{{Name: "id", Type: 20, NotNull: true, KeyOrdinal: 1}, {Name: "v", Type: 25}},
	}
}

// newHistory makes a history in which a unit is of one table, or of five.
func newHistory(b *testing.B, mixed bool) *history {
	b.Helper()
	l, err := edgelog.Open(edgelog.Options{Dir: b.TempDir(), Retain: 1 << 62})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := l.Close(); err != nil {
			b.Error(err)
		}
	})
	h := &history{log: l}
	r := rand.New(rand.NewPCG(1, 2))
	stream := millrace.StreamID{1}
	fold := millrace.NewFold(stream, 1)
	c := fold.Checkpoint()
	l.Start(&c)
	header := millrace.Header{Stream: stream, Epoch: 1, Term: 1, Publisher: millrace.PublisherID{1}, Time: time.UnixMicro(1)}
	var offset millrace.Offset
	add := func(hd millrace.Header, payload []byte) {
		record, err := millrace.AppendRecord(nil, &hd, payload, nil)
		if err != nil {
			b.Fatal(err)
		}
		d, err := millrace.DecodeRecord(record, nil)
		if err == nil {
			_, err = fold.Step(d)
		}
		if err != nil {
			b.Fatal(err)
		}
		l.Append(offset, record, d, true)
		h.bytes += int64(len(record))
		offset++
		if d.Kind == millrace.RecordBatch {
			c := fold.Checkpoint()
			c.Offset = offset - 1
			l.Commit(&c)
		}
	}
	hd := header
	hd.Kind = millrace.RecordTerm
	add(hd, nil)
	next, prev := millrace.Index(1), millrace.NewChain(stream, 1)
	var (
		payload []byte
		count   uint32
		chain   = prev
	)
	flush := func() {
		hd := header
		hd.Kind, hd.First, hd.Count, hd.Prev, hd.Chain = millrace.RecordBatch, next, count, prev, chain
		hd.Position = millrace.Position{Mode: millrace.ModeWAL, SystemID: 1, Timeline: 1, Slot: "s", LSN: millrace.LSN(next)}
		add(hd, payload)
		next, prev, payload, count = next+millrace.Index(count), chain, nil, 0
	}
	unit := func(all ...*millrace.Entry) {
		var w millrace.UnitWriter
		for _, e := range all {
			if err := w.Append(e); err != nil {
				b.Fatal(err)
			}
		}
		p, err := w.Finish(millrace.UnitEnd{Time: header.Time, Token: uint64(next)})
		if err != nil {
			b.Fatal(err)
		}
		var hash millrace.UnitHash
		var run millrace.Run
		var head millrace.Head
		for rest := p; len(rest) > 0; {
			if rest, err = millrace.NextHead(rest, &head); err != nil {
				b.Fatal(err)
			}
			run.Extend(&hash, &head)
		}
		run.Flush(&hash)
		chain = hash.Chain(chain)
		payload, count = append(payload, p...), count+uint32(len(all))
		if len(payload) >= batchSize {
			flush()
		}
	}
	for i := range tables {
		s := schema(i)
		h.schemas = append(h.schemas, s)
		unit(&millrace.Entry{Kind: millrace.KindSchema, Table: s.Table, Schema: s})
	}
	flush()
	const letters = "abcdefghijklmnopqrstuvwxyz0123456789"
	text := make([]byte, 130)
	for n := 0; n < entries; n += 5 {
		one := r.IntN(tables)
		var all []*millrace.Entry
		for i := range 5 {
			s := h.schemas[one]
			if mixed {
				s = h.schemas[(one+i)%tables]
			}
			for j := range text {
				text[j] = letters[r.IntN(len(letters))]
			}
			id := uint64(r.IntN(1 << 20))
			all = append(all, &millrace.Entry{
				Kind: millrace.KindPut, Table: s.Table, Key: binary.BigEndian.AppendUint64(nil, id|1<<63),
				Row: millrace.AppendRow(nil, s.Version, []millrace.Datum{{Text: fmt.Append(nil, id)}, {Text: text}}),
			})
		}
		unit(all...)
	}
	if count > 0 {
		flush()
	}
	h.index = next - 1
	return h
}

// pipe is a connection to somebody who reads and forgets.
func pipe(b *testing.B) net.Conn {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	go func() {
		c, err := l.Accept()
		if err == nil {
			_, _ = io.Copy(io.Discard, c)
			_ = c.Close()
		}
	}()
	c, err := new(net.Dialer).DialContext(b.Context(), "tcp", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = c.Close()
		_ = l.Close()
	})
	return c
}

// send sends the log whole, or what filter makes of it, and returns how many bytes went out.
func (h *history) send(b *testing.B, to net.Conn, filter *millrace.Filter) (sent int64) {
	b.Helper()
	r, err := h.log.Reader(0)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	w := millrace.NewRewriter(filter, nil)
	var frame []byte
	for {
		if at, _ := r.At(); at == h.index {
			return sent
		}
		if filter == nil {
			n, err := r.CopyTo(context.Background(), to, batchSize)
			if err != nil {
				b.Fatal(err)
			}
			sent += n
			continue
		}
		record, err := r.Next(context.Background())
		if err != nil {
			b.Fatal(err)
		}
		value, err := w.Rewrite(record.Value)
		if err != nil {
			b.Fatal(err)
		}
		frame = edgelog.AppendFrame(frame[:0], record.Offset, value)
		if _, err := to.Write(frame); err != nil {
			b.Fatal(err)
		}
		sent += int64(len(frame))
	}
}

// BenchmarkPartial sends the same log in turns: as it is, to an edge that holds all ten
// tables of it named one by one (which is read and copied), to one that holds one, and to
// one that holds a tenth of the keys of one.
func BenchmarkPartial(b *testing.B) {
	filter := func(names []string, prefixes map[string][][]string) *millrace.Filter {
		f, err := millrace.NewFilter(names, prefixes)
		if err != nil {
			b.Fatal(err)
		}
		return f
	}
	var all []string
	for i := range tables {
		all = append(all, schema(i).QualifiedName())
	}
	kinds := []struct {
		name   string
		filter *millrace.Filter
	}{
		{"whole", nil},
		{"ten tables", filter(all, nil)},
		{"one table", filter(all[:1], nil)},
		{"one key", filter(nil, map[string][][]string{all[0]: {{"7"}}})},
	}
	for _, mixed := range []bool{false, true} {
		name := "units of one table"
		if mixed {
			name = "units of five tables"
		}
		b.Run(name, func(b *testing.B) {
			h := newHistory(b, mixed)
			took, sent := make([][]float64, len(kinds)), make([]int64, len(kinds))
			for b.Loop() {
				for range rounds {
					for i, k := range kinds {
						to := pipe(b)
						began := time.Now()
						sent[i] = h.send(b, to, k.filter)
						took[i] = append(took[i], time.Since(began).Seconds())
					}
				}
			}
			for i, k := range kinds {
				slices.Sort(took[i])
				median := took[i][len(took[i])/2]
				batches := float64(h.bytes) / batchSize
				b.Logf("%s: %.1f%% of the log's %d bytes sent, %.0f ns an entry, %.2f ms a MiB of log",
					k.name, 100*float64(sent[i])/float64(h.bytes), h.bytes, median*1e9/entries, median*1e3/batches)
			}
		})
	}
}
