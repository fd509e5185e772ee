// Package apply measures what applying costs beside LMDB alone, in one process:
// the other benchmarks measure whole systems.
package apply

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/bmatsuo/lmdb-go/lmdb"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/applier"
	"github.com/millrace-db/millrace/edge"
)

//nolint:gochecknoglobals // flags of the test binary
var (
	putsFlag   = flag.Int("puts", 300_000, "puts of a round")
	roundsFlag = flag.Int("rounds", 3, "interleaved rounds")
)

// applyOrder is an order of puts: of new rows as their keys ascend or at random,
// or over rows that are there.
type applyOrder struct {
	name            string
	random, updates bool
}

// BenchmarkApply measures puts a second from records to rows on disk (record CRC,
// snappy, fold with chain, row CRC, LMDB commit with sync), one commit a batch,
// beside a loop over LMDB alone that puts the same keys and rows in batches of
// the same size, with the same sync. The rounds are interleaved. Beside it stand
// what hashing for the chain and the CRC of the values cost by themselves.
func BenchmarkApply(b *testing.B) {
	for _, o := range []applyOrder{{name: "sequential"}, {name: "random", random: true}, {name: "updates", random: true, updates: true}} {
		for _, size := range []int{100, 1000, 10_000} {
			b.Run(fmt.Sprintf("%s/batch=%d", o.name, size), func(b *testing.B) {
				for b.Loop() {
					applyShare(b, o, size)
				}
			})
		}
	}
}

func applyShare(b *testing.B, o applyOrder, size int) {
	// A commit of a small batch is its sync, so fewer are enough.
	n := min(*putsFlag, 300*size)
	puts := applyPuts(b, n, o.random)
	var ours, raw, ratios []float64
	for range *roundsFlag {
		a, l := applyOurs(b, o, puts, size), applyRaw(b, o, puts, size)
		ours, raw, ratios = append(ours, a), append(raw, l), append(ratios, a/l)
	}
	slices.Sort(ratios)
	share := ratios[len(ratios)/2]
	hash, crc := applyHash(b, puts, size), applyCRC(puts)
	line, err := json.Marshal(map[string]any{
		"benchmark": b.Name(), "cores": runtime.NumCPU(), "puts": n, "puts_per_second": ours, "lmdb_puts_per_second": raw, "share": share, "shares": ratios,
		"hash_ns_per_put": hash, "crc_ns_per_put": crc,
	})
	if err != nil {
		b.Fatal(err)
	}
	fmt.Println(string(line))
	b.ReportMetric(share, "share")
	b.ReportMetric(slices.Max(ours), "puts/s")
	b.ReportMetric(slices.Max(raw), "lmdb-puts/s")
	b.ReportMetric(hash, "hash-ns/put")
	b.ReportMetric(crc, "crc-ns/put")
	b.ReportMetric(0, "ns/op")
}

var applyStream = millrace.StreamID{4, 2} //nolint:gochecknoglobals // of this file's benchmark

func applySchema() *millrace.Schema {
	return &millrace.Schema{
		Version: 1, Table: 7, Namespace: "public", Name: "t",
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

// applyPuts makes puts of n rows of about 100 bytes.
func applyPuts(b *testing.B, n int, random bool) []*millrace.Entry {
	b.Helper()
	codec, err := millrace.NewKeyCodec(applySchema())
	if err != nil {
		b.Fatal(err)
	}
	puts := make([]*millrace.Entry, n)
	for i := range puts {
		id := []byte(strconv.Itoa(i))
		key, err := codec.Append(nil, [][]byte{id})
		if err != nil {
			b.Fatal(err)
		}
		row := millrace.AppendRow(nil, 1, []millrace.Datum{{Text: id}, {Text: fmt.Appendf(nil, "note of row %076d", i)}})
		puts[i] = &millrace.Entry{Kind: millrace.KindPut, Table: 7, Key: key, Row: row}
	}
	if random {
		rand.New(rand.NewPCG(1, 2)).Shuffle(n, func(i, j int) { puts[i], puts[j] = puts[j], puts[i] })
	}
	return puts
}

// applyTopic is a partition in memory: what a publisher would have appended.
type applyTopic struct {
	b       *testing.B
	index   millrace.Index
	chain   millrace.Chain
	records [][]byte
}

func (p *applyTopic) append(h millrace.Header, payload []byte) {
	p.b.Helper()
	h.Stream, h.Epoch, h.Term, h.Publisher = applyStream, 1, 1, millrace.PublisherID{1}
	record, err := millrace.AppendRecord(nil, &h, payload, nil)
	if err != nil {
		p.b.Fatal(err)
	}
	p.records = append(p.records, record)
}

// unit appends entries as one unit in a batch of its own.
func (p *applyTopic) unit(entries ...*millrace.Entry) {
	p.b.Helper()
	h := millrace.Header{Kind: millrace.RecordBatch, First: p.index + 1, Count: uint32(len(entries)), Prev: p.chain, Time: time.Now()}
	body := applyBody(p.b, entries)
	var unit millrace.UnitHash
	hashBody(p.b, &unit, body, len(entries))
	p.chain = unit.Chain(p.chain)
	p.index += millrace.Index(len(entries))
	h.Chain = p.chain
	h.Position = millrace.Position{Mode: millrace.ModeWAL, SystemID: 1, Timeline: 1, Slot: "bench", LSN: millrace.LSN(p.index)}
	p.append(h, body)
}

func applyBody(b *testing.B, entries []*millrace.Entry) []byte {
	b.Helper()
	var w millrace.UnitWriter
	for _, e := range entries {
		if err := w.Append(e); err != nil {
			b.Fatal(err)
		}
	}
	body, err := w.Finish(millrace.UnitEnd{Time: time.Now(), Token: 1})
	if err != nil {
		b.Fatal(err)
	}
	return body
}

func hashBody(b *testing.B, unit *millrace.UnitHash, body []byte, n int) {
	b.Helper()
	var run millrace.Run
	var h millrace.Head
	for range n {
		var err error
		if body, err = millrace.NextHead(body, &h); err != nil {
			b.Fatal(err)
		}
		run.Extend(unit, &h)
	}
	run.Flush(unit)
}

// applySource reads an applyTopic to its end, and then waits.
type applySource struct {
	records [][]byte
	next    millrace.Offset
}

func (s *applySource) TopicID() string { return "bench" }
func (s *applySource) Close() error    { return nil }

func (s *applySource) Next(ctx context.Context) (millrace.Offset, []byte, error) {
	if int(s.next) >= len(s.records) {
		<-ctx.Done()
		return 0, nil, ctx.Err()
	}
	at := s.next
	s.next++
	return at, s.records[at], nil
}

// applyOurs returns how many puts a second come from records to rows on disk.
func applyOurs(b *testing.B, o applyOrder, puts []*millrace.Entry, size int) float64 {
	b.Helper()
	store, err := edge.Open(edge.Options{Dir: b.TempDir(), MapSize: 4 << 30, MaxDBs: 16})
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := store.Close(); err != nil {
			b.Error(err)
		}
	}()
	p := &applyTopic{b: b, chain: millrace.NewChain(applyStream, 1)}
	p.append(millrace.Header{Kind: millrace.RecordTerm}, nil)
	control := func(kind millrace.Kind) *millrace.Entry { return &millrace.Entry{Kind: kind, Table: 7, Load: 1} }
	p.unit(&millrace.Entry{Kind: millrace.KindSchema, Table: 7, Schema: applySchema()}, control(millrace.KindLoadBegin), control(millrace.KindLoadEnd))
	if o.updates {
		for part := range slices.Chunk(puts, 10_000) {
			p.unit(part...)
		}
	}
	applyRecords(b, store, p, 0)
	for part := range slices.Chunk(puts, size) {
		p.unit(part...)
	}
	began := time.Now()
	applyRecords(b, store, p, 1) // one commit a batch
	return float64(len(puts)) / time.Since(began).Seconds()
}

// applyRecords runs an applier until the store has all of the topic.
func applyRecords(b *testing.B, store *edge.Store, p *applyTopic, commitBytes int64) {
	b.Helper()
	a, err := applier.New(applier.Config{
		Store: store, CommitBytes: commitBytes,
		OpenSource: func(_ context.Context, after *millrace.Checkpoint) (applier.Source, error) {
			return &applySource{records: p.records, next: applier.OffsetOf(after) + 1}, nil
		},
	})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	ended := make(chan error)
	go func() { ended <- a.Run(ctx) }()
	err = store.WaitIndex(b.Context(), p.index)
	cancel()
	if runErr := <-ended; err == nil {
		err = runErr
	}
	if err != nil {
		b.Fatal(err)
	}
}

// applyRaw returns how many puts a second LMDB takes by itself.
func applyRaw(b *testing.B, o applyOrder, puts []*millrace.Entry, size int) float64 {
	b.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	dir, err := os.MkdirTemp(b.TempDir(), "lmdb")
	if err != nil {
		b.Fatal(err)
	}
	env, err := lmdb.NewEnv()
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = env.Close() }()
	var dbi lmdb.DBI
	must := func(err error) {
		b.Helper()
		if err != nil {
			b.Fatal(err)
		}
	}
	must(env.SetMapSize(4 << 30))
	must(env.SetMaxDBs(16))
	must(env.Open(dir, 0, 0o600))
	must(env.UpdateLocked(func(txn *lmdb.Txn) (err error) {
		dbi, err = txn.CreateDBI("t")
		return err
	}))
	put := func(size int) {
		for part := range slices.Chunk(puts, size) {
			must(env.UpdateLocked(func(txn *lmdb.Txn) error {
				for _, e := range part {
					if err := txn.Put(dbi, e.Key, e.Row, 0); err != nil {
						return err
					}
				}
				return nil
			}))
		}
	}
	if o.updates {
		put(10_000)
	}
	began := time.Now()
	put(size)
	return float64(len(puts)) / time.Since(began).Seconds()
}

// applyHash returns the nanoseconds that hashing for the chain takes a put.
func applyHash(b *testing.B, puts []*millrace.Entry, size int) float64 {
	b.Helper()
	var bodies [][]byte
	for part := range slices.Chunk(puts, size) {
		bodies = append(bodies, applyBody(b, part))
	}
	chain := millrace.NewChain(applyStream, 1)
	began := time.Now()
	left := len(puts)
	for _, body := range bodies {
		var unit millrace.UnitHash
		n := min(size, left)
		hashBody(b, &unit, body, n)
		chain = unit.Chain(chain)
		left -= n
	}
	return float64(time.Since(began).Nanoseconds()) / float64(len(puts))
}

// applyCRC returns the nanoseconds that the CRC of its value takes a put.
func applyCRC(puts []*millrace.Entry) float64 {
	table := crc32.MakeTable(crc32.Castagnoli)
	var sum uint32
	began := time.Now()
	for _, e := range puts {
		sum ^= crc32.Update(crc32.Update(0, table, e.Key), table, e.Row)
	}
	taken := time.Since(began)
	runtime.KeepAlive(sum)
	return float64(taken.Nanoseconds()) / float64(len(puts))
}
