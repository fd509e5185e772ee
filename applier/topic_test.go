package applier

import (
	"context"
	"crypto/ed25519"
	"errors"
	"io"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/millrace-db/millrace"
)

var testStream = millrace.StreamID{9, 9}

// memoryTopic is a partition in memory. fault, if set, is asked for every
// record that a source is about to give.
type memoryTopic struct {
	id string

	mu      sync.Mutex
	records [][]byte
	grown   chan struct{}
	fault   func(offset millrace.Offset, value []byte) ([]byte, error)
	opened  int
}

func newMemoryTopic() *memoryTopic {
	return &memoryTopic{id: "topic-1", grown: make(chan struct{})}
}

func (m *memoryTopic) append(record []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.records = append(m.records, record)
	close(m.grown)
	m.grown = make(chan struct{})
}

func (m *memoryTopic) setFault(f func(millrace.Offset, []byte) ([]byte, error)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fault = f
}

func (m *memoryTopic) timesOpened() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.opened
}

func (m *memoryTopic) open(_ context.Context, after *millrace.Checkpoint) (Source, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.opened++
	return &memorySource{m: m, next: OffsetOf(after) + 1}, nil
}

type memorySource struct {
	m    *memoryTopic
	next millrace.Offset
}

func (s *memorySource) TopicID() string { return s.m.id }
func (s *memorySource) Close() error    { return nil }

func (s *memorySource) Next(ctx context.Context) (millrace.Offset, []byte, error) {
	for {
		s.m.mu.Lock()
		grown, fault := s.m.grown, s.m.fault
		var value []byte
		if int(s.next) < len(s.m.records) {
			value = s.m.records[s.next]
		}
		s.m.mu.Unlock()
		if value != nil {
			at := s.next
			s.next++
			if fault != nil {
				var err error
				if value, err = fault(at, value); err != nil {
					return 0, nil, err
				}
				if value == nil {
					continue // left out
				}
			}
			return at, value, nil
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return 0, nil, ctx.Err()
		}
	}
}

// publisher appends records to a memoryTopic as transfer does.
type publisher struct {
	t     testing.TB
	topic *memoryTopic
	id    millrace.PublisherID
	term  millrace.Term
	epoch millrace.Epoch
	key   ed25519.PrivateKey

	index   millrace.Index
	chain   millrace.Chain
	schemas millrace.SchemaVersion
}

var testTime = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func newPublisher(t testing.TB, topic *memoryTopic, term millrace.Term) *publisher {
	p := &publisher{t: t, topic: topic, id: millrace.PublisherID{byte(term), 7}, term: term, epoch: 1, chain: millrace.NewChain(testStream, 1)}
	return p
}

// successor is a publisher of the next term that goes on after p.
func (p *publisher) successor() *publisher {
	s := newPublisher(p.t, p.topic, p.term+1)
	s.index, s.chain, s.schemas, s.key = p.index, p.chain, p.schemas, p.key
	return s
}

func (p *publisher) header(kind millrace.RecordKind) millrace.Header {
	return millrace.Header{Kind: kind, Stream: testStream, Epoch: p.epoch, Term: p.term, Publisher: p.id}
}

func (p *publisher) record(h millrace.Header, payload []byte) []byte {
	p.t.Helper()
	b, err := millrace.AppendRecord(nil, &h, payload, p.key)
	if err != nil {
		p.t.Fatalf("encode record: %v", err)
	}
	return b
}

// reign appends the term record.
func (p *publisher) reign() { p.topic.append(p.record(p.header(millrace.RecordTerm), nil)) }

// unit appends the entries as one unit, in one batch.
func (p *publisher) unit(entries ...*millrace.Entry) { p.parts(1<<30, entries...)(1 << 30) }

// parts frames the entries as one unit in batches of size entries each, and
// returns a function that appends the next n of them.
func (p *publisher) parts(size int, entries ...*millrace.Entry) (next func(n int)) {
	p.t.Helper()
	var w millrace.UnitWriter
	for _, e := range entries {
		if err := w.Append(e); err != nil {
			p.t.Fatalf("write unit: %v", err)
		}
	}
	body, err := w.Finish(millrace.UnitEnd{Time: testTime, Token: uint64(p.index) + 1})
	if err != nil {
		p.t.Fatalf("finish unit: %v", err)
	}
	var records [][]byte
	var unit millrace.UnitHash
	first, prev := p.index+1, p.chain
	for rest, left := body, len(entries); left > 0; {
		n := min(size, left)
		var run millrace.Run
		var h millrace.Head
		part := rest
		for range n {
			if rest, err = millrace.NextHead(rest, &h); err != nil {
				p.t.Fatalf("walk unit: %v", err)
			}
			run.Extend(&unit, &h)
		}
		run.Flush(&unit)
		left -= n
		header := p.header(millrace.RecordBatch)
		header.First, header.Count, header.Prev, header.Chain = first, uint32(n), prev, unit.Chain(prev)
		unit.Absorb()
		header.Position = millrace.Position{Mode: millrace.ModeWAL, SystemID: 1, Timeline: 1, Slot: "millrace_test", LSN: millrace.LSN(p.index) + 1}
		header.Time = testTime
		records = append(records, p.record(header, part[:len(part)-len(rest)]))
		first += millrace.Index(n)
		p.chain = header.Chain
	}
	p.index += millrace.Index(len(entries))
	return func(n int) {
		for ; n > 0 && len(records) > 0; n-- {
			p.topic.append(records[0])
			records = records[1:]
		}
	}
}

// batch appends whole units in one batch.
func (p *publisher) batch(units ...[]*millrace.Entry) {
	p.t.Helper()
	header := p.header(millrace.RecordBatch)
	header.First, header.Prev, header.Time = p.index+1, p.chain, testTime
	var payload []byte
	for _, entries := range units {
		var w millrace.UnitWriter
		for _, e := range entries {
			if err := w.Append(e); err != nil {
				p.t.Fatalf("write unit: %v", err)
			}
		}
		body, err := w.Finish(millrace.UnitEnd{Time: testTime, Token: uint64(p.index) + 1})
		if err != nil {
			p.t.Fatalf("finish unit: %v", err)
		}
		payload = append(payload, body...)
		var unit millrace.UnitHash
		unit.Add(testTable, body)
		p.chain = unit.Chain(p.chain)
		p.index += millrace.Index(len(entries))
		header.Count += uint32(len(entries))
	}
	header.Chain = p.chain
	header.Position = millrace.Position{Mode: millrace.ModeWAL, SystemID: 1, Timeline: 1, Slot: "millrace_test", LSN: millrace.LSN(p.index)}
	p.topic.append(p.record(header, payload))
}

const testTable = millrace.TableID(77)

func testSchema() *millrace.Schema {
	return &millrace.Schema{
		Version: 1, Table: testTable, Namespace: "public", Name: "t",
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

// copied appends a first copy of rows 1 to n with the value v.
func (p *publisher) copied(n int, v string) {
	p.t.Helper()
	schema := testSchema()
	p.unit(&millrace.Entry{Kind: millrace.KindSchema, Table: testTable, Schema: schema},
		&millrace.Entry{Kind: millrace.KindLoadBegin, Table: testTable, Load: 1})
	if n > 0 {
		rows := p.rows(n, v)
		for _, e := range rows {
			e.Load = 1
		}
		p.unit(rows...)
	}
	p.unit(&millrace.Entry{Kind: millrace.KindLoadEnd, Table: testTable, Load: 1})
}

// rows are puts of the rows 1 to n.
func (p *publisher) rows(n int, v string) []*millrace.Entry {
	entries := make([]*millrace.Entry, n)
	for i := range entries {
		entries[i] = p.put(i+1, v)
	}
	return entries
}

func (p *publisher) put(id int, v string) *millrace.Entry {
	p.t.Helper()
	return &millrace.Entry{
		Kind: millrace.KindPut, Table: testTable, Key: testKey(p.t, id),
		Row: millrace.AppendRow(nil, 1, []millrace.Datum{{Text: []byte(strconv.Itoa(id))}, {Text: []byte(v)}}),
	}
}

func (p *publisher) delete(id int) *millrace.Entry {
	return &millrace.Entry{Kind: millrace.KindDelete, Table: testTable, Key: testKey(p.t, id)}
}

func testKey(t testing.TB, id int) []byte {
	t.Helper()
	codec, err := millrace.NewKeyCodec(testSchema())
	if err != nil {
		t.Fatalf("NewKeyCodec: %v", err)
	}
	key, err := codec.Append(nil, [][]byte{[]byte(strconv.Itoa(id))})
	if err != nil {
		t.Fatalf("encode key: %v", err)
	}
	return key
}

var errLost = errors.New("connection lost")

// once makes a fault that strikes the given offset once.
func once(at millrace.Offset, strike func([]byte) ([]byte, error)) func(millrace.Offset, []byte) ([]byte, error) {
	var o sync.Once
	return func(offset millrace.Offset, value []byte) (out []byte, err error) {
		out = value
		if offset == at {
			o.Do(func() { out, err = strike(value) })
		}
		return out, err
	}
}

// always makes one that strikes it every time.
func always(at millrace.Offset, strike func([]byte) ([]byte, error)) func(millrace.Offset, []byte) ([]byte, error) {
	return func(offset millrace.Offset, value []byte) ([]byte, error) {
		if offset == at {
			return strike(value)
		}
		return value, nil
	}
}

func lost([]byte) ([]byte, error)  { return nil, errLost }
func ended([]byte) ([]byte, error) { return nil, io.ErrUnexpectedEOF }
func left([]byte) ([]byte, error)  { return nil, nil }

func altered(value []byte) ([]byte, error) {
	b := append([]byte(nil), value...)
	b[len(b)-1] ^= 1
	return b, nil
}
