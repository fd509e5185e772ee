package growth

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/applier"
	"github.com/millrace-db/millrace/edge"
)

const (
	tableID    = 7
	tableName  = "public.t"
	batchBytes = 1 << 20
	// commitEach makes each batch a commit of its own.
	commitEach = 1
)

var testStream = millrace.StreamID{4, 3} //nolint:gochecknoglobals // a constant

func tableSchema() *millrace.Schema {
	return &millrace.Schema{
		Version: 1, Table: tableID, Namespace: "public", Name: "t",
		Types: []millrace.TypeDesc{
			{OID: 20, Kind: millrace.TypeBase, Schema: "pg_catalog", Name: "int8"},
			{OID: 25, Kind: millrace.TypeBase, Schema: "pg_catalog", Name: "text"},
		},
		Columns: []millrace.Column{
			{Name: "id", Type: 20, Typmod: -1, NotNull: true, KeyOrdinal: 1},
			{Name: "note", Type: 25, Typmod: -1},
		},
	}
}

// keyOrder gives the number of the row that comes as the nth.
type keyOrder func(n int) uint32

func sequential(n int) uint32 { return uint32(n) }

// random is the last step of MurmurHash3, which gives each number once.
func random(n int) uint32 {
	h := uint32(n)
	h = (h ^ h>>16) * 0x85ebca6b
	h = (h ^ h>>13) * 0xc2b2ae35
	return h ^ h>>16
}

func orderNamed(b *testing.B, name string) keyOrder {
	b.Helper()
	switch name {
	case "sequential":
		return sequential
	case "random":
		return random
	}
	b.Fatalf("-keys %s: want sequential or random", name)
	return nil
}

// rowMaker makes keys and rows of about 100 bytes.
type rowMaker struct {
	codec *millrace.KeyCodec
	id    []byte
	note  []byte
	key   []byte
	row   []byte
}

func newRowMaker() *rowMaker {
	codec, err := millrace.NewKeyCodec(tableSchema())
	if err != nil {
		panic(err)
	}
	return &rowMaker{codec: codec}
}

func (m *rowMaker) appendKey(dst []byte, row uint32) []byte {
	m.id = strconv.AppendUint(m.id[:0], uint64(row), 10)
	key, err := m.codec.Append(dst, [][]byte{m.id})
	if err != nil {
		panic(err)
	}
	return key
}

// make makes a version of a row. What it returns is valid until the next call.
func (m *rowMaker) make(row uint32, version int) (key, encoded []byte) {
	m.key = m.appendKey(m.key[:0], row)
	m.note = fmt.Appendf(m.note[:0], "version %06d of row %068d", version, row)
	m.row = millrace.AppendRow(m.row[:0], 1, []millrace.Datum{{Text: m.id}, {Text: m.note}})
	return m.key, m.row
}

// publisher makes the records that a publisher would append.
type publisher struct {
	rowMaker
	w     millrace.UnitWriter
	unit  millrace.UnitHash
	index millrace.Index // of the newest entry
	whole millrace.Index // of the newest complete unit
	chain millrace.Chain
	emit  func(record []byte)
}

func newPublisher() *publisher {
	return &publisher{rowMaker: *newRowMaker(), chain: millrace.NewChain(testStream, 1)}
}

func (p *publisher) record(h millrace.Header, payload []byte) {
	h.Stream, h.Epoch, h.Term, h.Publisher = testStream, 1, 1, millrace.PublisherID{1}
	record, err := millrace.AppendRecord(nil, &h, payload, nil)
	if err != nil {
		panic(err)
	}
	p.emit(record)
}

// begin appends the term record and the load of a table that is still empty.
func (p *publisher) begin() {
	p.record(millrace.Header{Kind: millrace.RecordTerm}, nil)
	p.entries(&millrace.Entry{Kind: millrace.KindSchema, Table: tableID, Schema: tableSchema()},
		&millrace.Entry{Kind: millrace.KindLoadBegin, Table: tableID, Load: 1}, &millrace.Entry{Kind: millrace.KindLoadEnd, Table: tableID, Load: 1})
}

// entries appends a unit.
func (p *publisher) entries(entries ...*millrace.Entry) {
	for _, e := range entries {
		if err := p.w.Append(e); err != nil {
			panic(err)
		}
	}
	p.end()
}

// put writes a row into the unit under way, and appends what fills a batch.
func (p *publisher) put(row uint32, version int, load millrace.LoadID) {
	key, encoded := p.make(row, version)
	if err := p.w.Put(tableID, key, nil, encoded, load); err != nil {
		panic(err)
	}
	if p.w.Buffered() >= batchBytes {
		part := p.w.Take()
		p.batch(part, p.w.Len()-1)
		p.unit.Absorb()
	}
}

// end ends the unit under way.
func (p *publisher) end() {
	n := p.w.Len()
	body, err := p.w.Finish(millrace.UnitEnd{Time: time.Now(), Token: uint64(p.whole) + 1})
	if err != nil {
		panic(err)
	}
	p.chain = p.batch(body, n)
	p.unit.Reset()
	p.whole = p.index
}

// batch appends a part of the unit under way, which has had n entries then.
func (p *publisher) batch(body []byte, n uint64) millrace.Chain {
	p.unit.Add(tableID, body)
	last := p.whole + millrace.Index(n)
	h := millrace.Header{
		Kind: millrace.RecordBatch, First: p.index + 1, Count: uint32(last - p.index), Prev: p.chain, Chain: p.unit.Chain(p.chain), Time: time.Now(),
		Position: millrace.Position{Mode: millrace.ModeWAL, SystemID: 1, Timeline: 1, Slot: "bench", LSN: millrace.LSN(p.whole) + 1},
	}
	p.record(h, body)
	p.index = last
	return h.Chain
}

// system is a store and what comes to it.
type system struct {
	b     *testing.B
	store *edge.Store
	p     *publisher
	topic chan []byte
	given millrace.Offset
	// metrics are the store's.
	metrics *prometheus.Registry
}

// newSystem makes a store with an empty table.
func newSystem(b *testing.B, dir string) *system {
	b.Helper()
	metrics := prometheus.NewRegistry()
	store, err := edge.Open(edge.Options{Dir: dir, MaxDBs: 16, Registerer: metrics})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := store.Close(); err != nil {
			b.Error(err)
		}
	})
	s := &system{b: b, store: store, p: newPublisher(), metrics: metrics}
	s.apply(0, s.p.begin)
	return s
}

// apply runs an applier while publish appends records, until the store has all of them.
// commitBytes is the applier's; 0 is its default.
func (s *system) apply(commitBytes int64, publish func()) {
	s.b.Helper()
	ctx, cancel := context.WithCancel(s.b.Context())
	defer cancel()
	s.topic = make(chan []byte, 4)
	a, err := applier.New(applier.Config{Store: s.store, CommitBytes: commitBytes, OpenSource: s.open})
	if err != nil {
		s.b.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		ended <- a.Run(ctx)
		cancel()
	}()
	s.p.emit = func(record []byte) {
		select {
		case s.topic <- record:
		case <-ctx.Done():
		}
	}
	publish()
	err = s.store.WaitIndex(ctx, s.p.index)
	cancel()
	if runErr := <-ended; runErr != nil {
		err = runErr
	}
	if err != nil {
		s.b.Fatal(err)
	}
}

// made returns the records that publish appends, without bringing them anywhere.
func (s *system) made(publish func()) (records [][]byte) {
	s.p.emit = func(record []byte) { records = append(records, record) }
	publish()
	return records
}

// applyMade brings records that were made before to the store, each a commit.
func (s *system) applyMade(records [][]byte) {
	s.b.Helper()
	s.apply(commitEach, func() {
		for _, r := range records {
			s.p.emit(r)
		}
	})
}

// spooled makes records into a file, and returns a function that appends them. Making
// them is the work of others, and so would take place beside what is measured.
func (s *system) spooled(dir string, publish func()) (replay func()) {
	s.b.Helper()
	f, err := os.Create(filepath.Join(dir, "records"))
	if err != nil {
		s.b.Fatal(err)
	}
	w := bufio.NewWriterSize(f, batchBytes)
	must := func(err error) {
		if err != nil {
			s.b.Fatal(err)
		}
	}
	s.p.emit = func(record []byte) {
		must(binary.Write(w, binary.BigEndian, uint64(len(record))))
		_, err := w.Write(record)
		must(err)
	}
	publish()
	must(w.Flush())
	return func() {
		_, err := f.Seek(0, io.SeekStart)
		must(err)
		r := bufio.NewReaderSize(f, batchBytes)
		for {
			var size uint64
			if err := binary.Read(r, binary.BigEndian, &size); errors.Is(err, io.EOF) {
				break
			} else {
				must(err)
			}
			record := make([]byte, size)
			_, err := io.ReadFull(r, record)
			must(err)
			s.p.emit(record)
		}
		must(f.Close())
	}
}

// fill appends the rows from one number on to before another one, in units of a batch.
func (s *system) fill(order keyOrder, from, to int) {
	s.b.Helper()
	if *sortedFlag {
		rows := make([]uint32, to-from)
		for i := range rows {
			rows[i] = order(from + i)
		}
		slices.Sort(rows)
		order = func(n int) uint32 { return rows[n-from] }
	}
	s.apply(0, func() {
		for n := from; n < to; n++ {
			s.p.put(order(n), 0, 0)
			if (n+1)%5000 == 0 || n+1 == to {
				s.p.end()
			}
		}
	})
}

func (s *system) open(_ context.Context, after *millrace.Checkpoint) (applier.Source, error) {
	if next := applier.OffsetOf(after) + 1; next != s.given {
		return nil, fmt.Errorf("%w: records from offset %v on are asked for, and those before %v are gone: the applier has begun again", millrace.ErrStop, next, s.given)
	}
	return s, nil
}

// TopicID, Next and Close are those of an applier.Source.
func (s *system) TopicID() string { return "bench" }

// Next waits for the next record.
func (s *system) Next(ctx context.Context) (millrace.Offset, []byte, error) {
	select {
	case r := <-s.topic:
		s.given++
		return s.given - 1, r, nil
	case <-ctx.Done():
		return 0, nil, ctx.Err()
	}
}

// Close does nothing.
func (s *system) Close() error { return nil }
