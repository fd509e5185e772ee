package relay

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/topic"
)

const table = millrace.TableID(77)

var streamID = millrace.StreamID{7, 7}

// source publishes a stream of one table into a topic, as a publisher of one reign.
type source struct {
	t     testing.TB
	topic *topic.Topic
	key   ed25519.PrivateKey
	codec *millrace.KeyCodec
	fold  *millrace.Fold

	mu sync.Mutex
	// sent are the times at which the batches were there for Kafka to take, by their
	// last index.
	sent map[millrace.Index]time.Time
}

func newSource(t testing.TB, brokers []string, name string, key ed25519.PrivateKey) *source {
	t.Helper()
	to, err := topic.Open(t.Context(), topic.Config{Brokers: brokers, Topic: name})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = to.Close() })
	if err := to.Create(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	p := &source{t: t, topic: to, key: key, fold: millrace.NewFold(streamID, 1), sent: map[millrace.Index]time.Time{}}
	if p.codec, err = millrace.NewKeyCodec(schema()); err != nil {
		t.Fatal(err)
	}
	p.append(t.Context(), millrace.Header{Kind: millrace.RecordTerm, Term: 1, Time: time.Now()}, nil)
	p.batch(t.Context(), []*millrace.Entry{
		{Kind: millrace.KindSchema, Table: table, Schema: schema()},
		{Kind: millrace.KindLoadBegin, Table: table, Load: 1},
		{Kind: millrace.KindLoadEnd, Table: table, Load: 1},
	})
	return p
}

func schema() *millrace.Schema {
	return &millrace.Schema{
		Version: 1, Table: table, Namespace: "public", Name: "t",
		Types: []millrace.TypeDesc{
			{OID: 20, Kind: millrace.TypeBase, Schema: "pg_catalog", Name: "int8"},
			{OID: 25, Kind: millrace.TypeBase, Schema: "pg_catalog", Name: "text"},
		},
		Columns: []millrace.Column{
			{Name: "id", Type: 20, Typmod: -1, NotNull: true, KeyOrdinal: 1},
			{Name: "v", Type: 25, Typmod: -1},
		},
	}
}

func (p *source) put(id int, v string) *millrace.Entry {
	key, err := p.codec.Append(nil, [][]byte{[]byte(strconv.Itoa(id))})
	if err != nil {
		p.t.Fatal(err)
	}
	return &millrace.Entry{
		Kind: millrace.KindPut, Table: table, Key: key,
		Row: millrace.AppendRow(nil, 1, []millrace.Datum{{Text: []byte(strconv.Itoa(id))}, {Text: []byte(v)}}),
	}
}

// framed makes a batch of units of one entry each, or of one unit where it is the first.
func framed(fold *millrace.Fold, entries []*millrace.Entry, at time.Time) (millrace.Header, []byte, error) {
	h := millrace.Header{Kind: millrace.RecordBatch, Term: 1, First: fold.Next(), Count: uint32(len(entries)), Prev: fold.Chain(), Chain: fold.Chain(), Time: at}
	h.Position = millrace.Position{Mode: millrace.ModeWAL, SystemID: 1, Timeline: 1, Slot: "millrace_test", LSN: millrace.LSN(h.Last())}
	units := [][]*millrace.Entry{entries}
	if fold.Next() > 1 {
		units = nil
		for i := range entries {
			units = append(units, entries[i:i+1])
		}
	}
	var payload []byte
	for _, unit := range units {
		var w millrace.UnitWriter
		for _, e := range unit {
			if err := w.Append(e); err != nil {
				return h, nil, err
			}
		}
		body, err := w.Finish(millrace.UnitEnd{Time: at, Token: uint64(h.Last())})
		if err != nil {
			return h, nil, err
		}
		var hash millrace.UnitHash
		hash.Add(table, body)
		h.Chain = hash.Chain(h.Chain)
		payload = append(payload, body...)
	}
	return h, payload, nil
}

func (p *source) batch(ctx context.Context, entries []*millrace.Entry) {
	h, payload, err := framed(p.fold, entries, time.Now())
	if err != nil {
		p.t.Errorf("frame a batch: %v", err)
		return
	}
	p.mu.Lock()
	p.sent[h.Last()] = h.Time
	p.mu.Unlock()
	p.append(ctx, h, payload)
}

func (p *source) append(ctx context.Context, h millrace.Header, payload []byte) {
	h.Stream, h.Epoch, h.Publisher = streamID, 1, millrace.PublisherID{1}
	value, err := millrace.AppendRecord(nil, &h, payload, p.key)
	if err == nil {
		var r *millrace.Record
		if r, err = millrace.DecodeRecord(value, nil); err == nil {
			_, err = p.fold.Step(r)
		}
	}
	if err == nil {
		_, err = p.topic.Append(ctx, value, h.First, h.Count)
	}
	if err != nil && ctx.Err() == nil {
		p.t.Errorf("publish: %v", err)
	}
}

// run publishes so many changes a second, in batches of what came in ten milliseconds,
// for some time. All that the time is for are published, however late it gets its turn.
func (p *source) run(ctx context.Context, rate int, d time.Duration) {
	const every = 10 * time.Millisecond
	tick := time.NewTicker(every)
	defer tick.Stop()
	began := time.Now()
	for made := 0; ; {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			since := min(now.Sub(began), d)
			var entries []*millrace.Entry
			for due := int(since.Seconds() * float64(rate)); made < due; made++ {
				entries = append(entries, p.put(made%10_000, fmt.Sprintf("value %d of a row that is as long as such rows are", made)))
			}
			if len(entries) > 0 {
				p.batch(ctx, entries)
			}
			if since == d {
				return
			}
		}
	}
}
