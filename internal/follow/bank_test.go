package follow

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge"
	"github.com/millrace-db/millrace/edge/image"
	"github.com/millrace-db/millrace/edge/serve"
	"github.com/millrace-db/millrace/internal/config"
	"github.com/millrace-db/millrace/internal/kafkatest"
	"github.com/millrace-db/millrace/internal/topic"
)

const bootWait = 90 * time.Second

var bankID = millrace.StreamID{7, 7, 7}

// bank is a stream in a topic. Unit n gives all rows the value n, so that any view can
// be checked by itself.
type bank struct {
	t       testing.TB
	cluster *kfake.Cluster
	brokers []string
	name    string
	log     *topic.Topic
	key     ed25519.PrivateKey
	epoch   millrace.Epoch
	term    millrace.Term // of who reigns

	index  millrace.Index
	chain  millrace.Chain
	unitNo int
	// end is the offset behind the newest record.
	end millrace.Offset

	mu    sync.Mutex // of what benchmarks measure
	codec *millrace.KeyCodec
}

const bankRows = 50

func newBank(t *testing.T) *bank {
	t.Helper()
	return newBankWith(t, nil)
}

// newBankWith signs with a key, if it is not nil.
func newBankWith(t *testing.T, key ed25519.PrivateKey, options ...kfake.Opt) *bank {
	t.Helper()
	cluster, err := kfake.NewCluster(append([]kfake.Opt{kfake.NumBrokers(1), kfake.DefaultNumPartitions(1)}, options...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	b := &bank{t: t, cluster: cluster, brokers: cluster.ListenAddrs(), name: kafkatest.Topic(t), key: key}
	b.begin(1)
	return b
}

// begin begins an epoch, with its first copy.
func (b *bank) begin(epoch millrace.Epoch) {
	b.t.Helper()
	b.open(epoch)
	first := []*millrace.Entry{{Kind: millrace.KindSchema, Table: 9, Schema: bankSchema()}, {Kind: millrace.KindLoadBegin, Table: 9, Load: 1}}
	for _, e := range b.rows() {
		e.Load = 1
		first = append(first, e)
	}
	b.entries(append(first, &millrace.Entry{Kind: millrace.KindLoadEnd, Table: 9, Load: 1})...)
}

func bankSchema() *millrace.Schema {
	return &millrace.Schema{
		Version: 1, Table: 9, Namespace: "public", Name: "t",
		Types: []millrace.TypeDesc{{OID: 25, Kind: millrace.TypeBase, Schema: "pg_catalog", Name: "text"}},
		Columns: []millrace.Column{
			{Name: "id", Type: 25, Typmod: -1, NotNull: true, KeyOrdinal: 1}, {Name: "v", Type: 25, Typmod: -1},
		},
	}
}

// open makes the topic of an epoch and begins to reign there.
func (b *bank) open(epoch millrace.Epoch) {
	b.t.Helper()
	var err error
	if b.log, err = topic.Open(b.t.Context(), topic.Config{Brokers: b.brokers, Topic: topic.EpochName(b.name, epoch), ClientID: "publisher"}); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = b.log.Close() })
	if err := b.log.Create(b.t.Context(), 1); err != nil {
		b.t.Fatal(err)
	}
	b.epoch, b.term, b.index, b.chain, b.unitNo = epoch, 1, 0, millrace.NewChain(bankID, epoch), 0
	b.append(b.header(millrace.RecordTerm), nil)
}

func (b *bank) header(kind millrace.RecordKind) millrace.Header {
	return millrace.Header{Kind: kind, Stream: bankID, Epoch: b.epoch, Term: b.term, Publisher: millrace.PublisherID{byte(b.term)}}
}

func (b *bank) append(h millrace.Header, payload []byte) {
	b.t.Helper()
	value, err := millrace.AppendRecord(nil, &h, payload, b.key)
	if err != nil {
		b.t.Fatal(err)
	}
	offset, err := b.log.Append(b.t.Context(), value, h.First, h.Count)
	if err != nil {
		b.t.Fatal(err)
	}
	b.end = offset + 1
}

func (b *bank) rows() (entries []*millrace.Entry) {
	for i := range bankRows {
		row := []millrace.Datum{{Text: []byte("r" + strconv.Itoa(i))}, {Text: []byte(strconv.Itoa(b.unitNo))}}
		key, err := bankCodec(b.t).AppendRowKey(nil, row)
		if err != nil {
			b.t.Fatal(err)
		}
		entries = append(entries, &millrace.Entry{Kind: millrace.KindPut, Table: 9, Key: key, Row: millrace.AppendRow(nil, 1, row)})
	}
	return entries
}

func bankCodec(t testing.TB) *millrace.KeyCodec {
	t.Helper()
	codec, err := millrace.NewKeyCodec(bankSchema())
	if err != nil {
		t.Fatal(err)
	}
	return codec
}

// entries appends one unit.
func (b *bank) entries(entries ...*millrace.Entry) {
	b.t.Helper()
	var w millrace.UnitWriter
	for _, e := range entries {
		if err := w.Append(e); err != nil {
			b.t.Fatal(err)
		}
	}
	body, err := w.Finish(millrace.UnitEnd{Time: time.Now(), Token: uint64(b.index) + 1})
	if err != nil {
		b.t.Fatal(err)
	}
	h := b.header(millrace.RecordBatch)
	h.First, h.Count, h.Prev, h.Time = b.index+1, uint32(len(entries)), b.chain, time.Now()
	var unit millrace.UnitHash
	var run millrace.Run
	var head millrace.Head
	for rest := body; len(rest) > 0; {
		if rest, err = millrace.NextHead(rest, &head); err != nil {
			b.t.Fatal(err)
		}
		run.Extend(&unit, &head)
	}
	run.Flush(&unit)
	b.chain = unit.Chain(b.chain)
	h.Chain = b.chain
	b.index += millrace.Index(len(entries))
	h.Position = millrace.Position{Mode: millrace.ModeWAL, SystemID: 1, Timeline: 1, Slot: "s", LSN: millrace.LSN(b.index)}
	b.append(h, body)
}

// unit gives all rows the next number.
func (b *bank) unit() {
	b.t.Helper()
	b.unitNo++
	b.entries(b.rows()...)
}

// heartbeat appends a unit that changes nothing.
func (b *bank) heartbeat() {
	b.t.Helper()
	b.entries(&millrace.Entry{Kind: millrace.KindHeartbeat})
}

// state appends a state record, as who reigns does every minute.
func (b *bank) state() {
	b.t.Helper()
	h := b.header(millrace.RecordState)
	h.First, h.Prev, h.Chain, h.Time = b.index+1, b.chain, b.chain, time.Now()
	h.Position = millrace.Position{Mode: millrace.ModeWAL, SystemID: 1, Timeline: 1, Slot: "s", LSN: millrace.LSN(b.index)}
	b.append(h, millrace.AppendState(nil, &millrace.State{Catalog: millrace.Catalog{Schemas: []*millrace.Schema{bankSchema()}}}))
}

func (b *bank) request(q kmsg.Request) kmsg.Response {
	b.t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(b.brokers...))
	if err != nil {
		b.t.Fatal(err)
	}
	defer client.Close()
	answer, err := client.Request(b.t.Context(), q)
	if err != nil {
		b.t.Fatal(err)
	}
	return answer
}

// trim takes everything away that is in the topic.
func (b *bank) trim() {
	b.t.Helper()
	q := kmsg.NewPtrDeleteRecordsRequest()
	q.TimeoutMillis = 10_000
	one := kmsg.NewDeleteRecordsRequestTopic()
	one.Topic = topic.EpochName(b.name, b.epoch)
	partition := kmsg.NewDeleteRecordsRequestTopicPartition()
	partition.Offset = -1
	one.Partitions = append(one.Partitions, partition)
	q.Topics = append(q.Topics, one)
	answer := b.request(q).(*kmsg.DeleteRecordsResponse)
	if err := kerr.ErrorForCode(answer.Topics[0].Partitions[0].ErrorCode); err != nil {
		b.t.Fatal(err)
	}
}

// remove deletes the topic.
func (b *bank) remove() {
	b.t.Helper()
	name := topic.EpochName(b.name, b.epoch)
	q := kmsg.NewPtrDeleteTopicsRequest()
	q.TimeoutMillis = 10_000
	q.TopicNames = []string{name}
	one := kmsg.NewDeleteTopicsRequestTopic()
	one.Topic = &name
	q.Topics = append(q.Topics, one)
	answer := b.request(q).(*kmsg.DeleteTopicsResponse)
	if err := kerr.ErrorForCode(answer.Topics[0].ErrorCode); err != nil {
		b.t.Fatal(err)
	}
}

// lines takes what is logged.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// branch is an edge of the bank.
type branch struct {
	t      testing.TB
	b      *bank
	dir    string
	log    *lines
	stream *Stream
	// url is where its images are, if it runs.
	url   string
	cut   cut
	end   context.CancelFunc
	ended chan struct{}
	err   error
}

func (x *branch) Upstream(string) *serve.UpstreamStatus { return x.stream.UpstreamStatus() }
func (x *branch) Children(string) []serve.ChildStatus   { return x.stream.Children() }
func (x *branch) Handler(string) http.Handler {
	if server := x.stream.Relay(); server != nil {
		return server
	}
	return nil
}

// edge makes an edge in a directory, which takes images from peers.
func (b *bank) edge(dir string, from ...string) *branch {
	return b.edgeWith(dir, options{}, from...)
}

// wentAway makes an edge that comes to the next unit and goes, and returns its directory.
func (b *bank) wentAway(o options) (dir string) {
	b.t.Helper()
	dir = filepath.Join(b.t.TempDir(), "away")
	x := b.edgeWith(dir, o)
	b.unit()
	x.at(b.unitNo)
	x.end()
	return dir
}

// options of an edge; none must be set.
type options struct {
	trusted *millrace.Keyring
	// config and rules change what the edge is made from.
	config func(*config.Config)
	rules  func(*bootRules)
}

func (b *bank) edgeWith(dir string, o options, from ...string) *branch {
	b.t.Helper()
	c := bankConfig(dir, b.brokers, b.name, from...)
	if o.config != nil {
		o.config(c)
	}
	x := &branch{t: b.t, b: b, dir: dir, log: new(lines), ended: make(chan struct{})}
	registry := prometheus.NewRegistry()
	var err error
	x.stream, err = New(Config{
		Whole: c, Stream: &c.Streams[0], Trusted: o.trusted, Version: "test", Metrics: registry,
		Logger: slog.New(slog.NewTextHandler(x.log, &slog.HandlerOptions{Level: slog.LevelInfo})),
	})
	if err != nil {
		b.t.Fatal(err)
	}
	x.stream.bootRules.retryMin, x.stream.bootRules.confirm, x.stream.bootRules.pause = 50*time.Millisecond, time.Second, time.Millisecond
	x.stream.bootRules.tell = 100 * time.Millisecond
	if o.rules != nil {
		o.rules(&x.stream.bootRules)
	}
	dirOfImages := filepath.Join(c.Edge.Images.Dir, "bank")
	maker, err := image.NewMaker(image.MakerConfig{Home: x.stream.Home(), Dir: dirOfImages, Turns: image.NewTurns(1), Keep: 2})
	if err != nil {
		b.t.Fatal(err)
	}
	answers, err := serve.New(serve.Config{
		Streams: map[string]serve.Reader{"bank": x.stream.Home()}, Listen: "127.0.0.1:0", Relays: x,
		Fault:     func(string) error { return x.stream.Fault() },
		Bootstrap: func(string) *serve.Bootstrap { return x.stream.Bootstrap() },
		Images:    func(string) http.Handler { return image.Handler(dirOfImages, maker) },
	})
	if err != nil {
		b.t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(answers)
	server.Listener = &cutListener{Listener: server.Listener, cut: &x.cut}
	server.Start()
	x.url = server.URL
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { maker.Run(ctx) })
	go func() {
		defer close(x.ended)
		x.err = x.stream.Run(ctx)
	}()
	x.end = sync.OnceFunc(func() {
		cancel()
		<-x.ended
		running.Wait()
		x.cut.heal()
		server.CloseClientConnections()
		server.Close()
		if err := x.stream.Home().Store().Check(context.Background()); err != nil {
			b.t.Errorf("Check: %v", err)
		}
		if err := x.stream.Close(); err != nil {
			b.t.Errorf("Close: %v", err)
		}
		if b.t.Failed() {
			b.t.Logf("edge %s logged:\n%s", filepath.Base(dir), x.log)
		}
	})
	b.t.Cleanup(x.end)
	return x
}

// value is the number that all rows of an edge have; -1 if there are none.
func (x *branch) value() int {
	x.t.Helper()
	value := -1
	err := x.stream.Home().View(context.Background(), func(v *edge.View) (err error) {
		value, err = bankValue(v)
		return err
	})
	if err != nil {
		x.t.Fatalf("wrong answer: %v", err)
	}
	return value
}

func bankValue(v *edge.View) (value int, err error) {
	value = -1
	table, err := v.Table("public.t")
	if errors.Is(err, edge.ErrNoTable) {
		return value, nil
	}
	if err != nil {
		return value, err
	}
	rows := 0
	err = table.Scan(nil, nil, 0, func(_ []byte, row *edge.Row) error {
		n, err := strconv.Atoi(string(row.Columns[1].Text))
		if err != nil {
			return err
		}
		if rows > 0 && n != value {
			return fmt.Errorf("rows of units %d and %d", value, n)
		}
		value = n
		rows++
		return nil
	})
	if err == nil && rows != bankRows {
		err = fmt.Errorf("%d rows", rows)
	}
	return value, err
}

// until waits until something holds.
func (x *branch) until(what string, holds func() bool) {
	x.t.Helper()
	deadline := time.NewTimer(bootWait)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-deadline.C:
			x.t.Fatalf("edge %s: wait until %s; it is at %d, bootstrap %+v, fault %v", filepath.Base(x.dir), what, x.value(), x.stream.Bootstrap(), x.stream.Fault())
		case <-x.ended:
			x.t.Fatalf("edge %s: wait until %s; it has ended: %v", filepath.Base(x.dir), what, x.err)
		case <-tick.C:
		}
	}
}

func (x *branch) at(unit int) {
	x.t.Helper()
	x.until(fmt.Sprintf("it has unit %d", unit), func() bool { return x.value() == unit })
}

// took waits until the edge has taken an image, and returns what is shown of that.
func (x *branch) took() *serve.Bootstrap {
	x.t.Helper()
	x.until("it has taken an image", func() bool { b := x.stream.Bootstrap(); return b != nil && b.State == serve.BootstrapDone })
	return x.stream.Bootstrap()
}

// imageOf publishes units and makes an image of them, in a directory of images.
func imageOf(b *bank, units int) string {
	b.t.Helper()
	dir := b.t.TempDir()
	peer := b.edge(filepath.Join(dir, "peer"))
	for range units {
		b.unit()
	}
	peer.at(b.unitNo)
	if _, err := image.Create(b.t.Context(), peer.stream.Home().Store(), image.Options{Dir: filepath.Join(dir, "bank")}); err != nil {
		b.t.Fatal(err)
	}
	peer.end()
	return dir
}

// onlyImage is the one in such a directory.
func onlyImage(t *testing.T, dir string) string {
	t.Helper()
	all, err := image.List(filepath.Join(dir, "bank"))
	if err != nil || len(all) != 1 {
		t.Fatal(all, err)
	}
	return all[0].Path
}
