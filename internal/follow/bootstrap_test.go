package follow

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
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
	b.epoch, b.index, b.chain, b.unitNo = epoch, 0, millrace.NewChain(bankID, epoch), 0
	b.append(b.header(millrace.RecordTerm), nil)
}

func (b *bank) header(kind millrace.RecordKind) millrace.Header {
	return millrace.Header{Kind: kind, Stream: bankID, Epoch: b.epoch, Term: 1, Publisher: millrace.PublisherID{1}}
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

// A new edge takes an image from a peer, which makes one because it is asked to, and
// follows the topic from there, which no longer reaches back; it says what is not proven.
func TestBootstrapNew(t *testing.T) {
	t.Parallel()
	b := newBank(t)
	peer := b.edge(filepath.Join(t.TempDir(), "peer"))
	b.unit()
	peer.at(1)
	b.trim()
	dir := filepath.Join(t.TempDir(), "new")
	fresh := b.edge(dir, "http://127.0.0.1:1", peer.url)
	fresh.until("the image is taken", func() bool { return fresh.value() == 1 })
	b.unit()
	fresh.at(2)
	peer.at(2)
	boot := fresh.took()
	if boot.Reason != bootNew || !strings.HasPrefix(boot.From, peer.url) || boot.Rows != bankRows || boot.Bytes == 0 || boot.Bytes != boot.OfBytes {
		t.Errorf("shown is %+v", boot)
	}
	if u := fresh.stream.Home().Unproven(); u.Image != boot.Index || len(u.Tables) != 1 {
		t.Errorf("unproven are %+v, the image was of %v", u, boot.Index)
	}
	report, err := fresh.stream.report(t.Context())
	if err != nil || report.UnprovenSince != boot.Index || report.Bootstrap != "" {
		t.Errorf("report is %+v, %v", report, err)
	}
	// One whose peers have none yet asks again, because nothing else helps.
	images := t.TempDir()
	patient := b.edge(filepath.Join(t.TempDir(), "patient"), "file://"+images)
	patient.until("it cannot begin", func() bool {
		s := patient.stream.Bootstrap()
		return s != nil && s.Reason == bootGone && s.State == serve.BootstrapFailed
	})
	if err := patient.stream.Fault(); err == nil || !strings.Contains(err.Error(), "is empty, and the source begins at index") {
		t.Errorf("its fault is %v", err)
	}
	if err := os.CopyFS(filepath.Join(images, "bank"), os.DirFS(filepath.Join(peer.dir, "images", "bank"))); err != nil {
		t.Fatal(err)
	}
	patient.at(2)
	patient.end()
	// What it has fetched itself is there when its store is lost and no peer answers.
	if err := os.RemoveAll(filepath.Join(patient.dir, "data")); err != nil {
		t.Fatal(err)
	}
	patient = b.edge(patient.dir, "http://127.0.0.1:1")
	patient.at(2)
	if s := patient.took(); !strings.HasPrefix(s.From, "file://"+patient.dir) {
		t.Errorf("shown is %+v", s)
	}
	patient.end()

	// Another start takes no other.
	fresh.end()
	b.unit()
	again := b.edge(dir, peer.url)
	again.at(3)
	if got := again.stream.Bootstrap(); got != nil {
		t.Errorf("an edge that can go on takes an image: %+v", got)
	}
}

// An edge that was away longer than the topic reaches serves its rows until it has an
// image, from a directory that a server of files has; a program that has its store open
// is led to the new one.
func TestBootstrapGone(t *testing.T) {
	t.Parallel()
	b := newBank(t)
	dir := filepath.Join(t.TempDir(), "away")
	away := b.edge(dir)
	b.unit()
	away.at(1)
	away.end()
	peer := b.edge(filepath.Join(t.TempDir(), "peer"))
	b.unit()
	peer.at(2)
	b.trim()
	b.heartbeat()

	// The directory is not there yet.
	backups := t.TempDir()
	var held sync.Mutex
	held.Lock()
	files := http.FileServer(http.Dir(backups))
	server := httptest.NewServer(http.StripPrefix("/backups", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/rows") {
			held.Lock()
			defer held.Unlock()
		}
		files.ServeHTTP(w, r)
	})))
	t.Cleanup(server.Close)
	away = b.edge(dir, server.URL+"/backups")
	away.until("it has asked in vain", func() bool { s := away.stream.Bootstrap(); return s != nil && s.State == serve.BootstrapFailed })
	if away.value() != 1 || away.stream.Fault() == nil {
		t.Errorf("it has unit %d and fault %v", away.value(), away.stream.Fault())
	}
	reader, err := edge.Open(edge.Options{Dir: filepath.Join(dir, "data", "bank"), ReadOnly: true, MapSize: 1 << 28})
	if err == nil {
		err = reader.Close()
		t.Errorf("a store was opened twice in a process: %v", err)
	}
	peerImages := filepath.Join(peer.dir, "images", "bank")
	if _, err := image.Create(t.Context(), peer.stream.Home().Store(), image.Options{Dir: peerImages}); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(filepath.Join(backups, "bank"), os.DirFS(peerImages)); err != nil {
		t.Fatal(err)
	}
	away.until("it downloads, and says so", func() bool {
		return away.stream.Bootstrap().State == serve.BootstrapDownloading && strings.Contains(away.log.String(), "state=downloading")
	})
	if away.value() != 1 { // and nothing else in the meantime
		t.Errorf("it has unit %d", away.value())
	}
	held.Unlock()
	away.at(2)
	b.unit()
	away.at(3)
	if boot := away.took(); boot.Reason != bootGone {
		t.Errorf("shown is %+v", boot)
	}
	away.until("nothing is wrong", func() bool { return away.stream.Fault() == nil })
	if l := away.stream.LogStatus(); l == nil || l.Newest == 0 || l.Fault != "" {
		t.Errorf("its log is %+v", l)
	}
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

// What peers give that is untrue, or of no use, is refused with an alarm, nothing of it
// is shown, and the next peer is asked.
func TestBootstrapRefuses(t *testing.T) {
	t.Parallel()
	seed := make([]byte, ed25519.SeedSize)
	key := ed25519.NewKeyFromSeed(seed)
	other := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, ed25519.SeedSize))
	ring, err := millrace.NewKeyring([]millrace.TrustedKey{{Key: key.Public().(ed25519.PublicKey), From: millrace.Place{Epoch: 1, Index: 1}}})
	if err != nil {
		t.Fatal(err)
	}
	b := newBankWith(t, key)
	dir := filepath.Join(t.TempDir(), "away")
	away := b.edgeWith(dir, options{trusted: ring})
	b.unit()
	away.at(1)
	away.end()
	old, good := imageOf(b, 1), imageOf(b, 1)
	b.trim()
	b.heartbeat()
	damaged := t.TempDir()
	if err := os.CopyFS(damaged, os.DirFS(good)); err != nil {
		t.Fatal(err)
	}
	rows := filepath.Join(onlyImage(t, damaged), "rows")
	text, err := os.ReadFile(rows)
	if err != nil {
		t.Fatal(err)
	}
	text[len(text)/2]++
	if err := os.WriteFile(rows, text, 0o600); err != nil {
		t.Fatal(err)
	}
	unsigned := imageOf(newBankWith(t, nil), 9)
	forged := imageOf(newBankWith(t, other), 9)

	file := func(dir string) string { return "file://" + dir }
	away = b.edgeWith(dir, options{trusted: ring}, file(old), file(damaged), file(unsigned), file(forged))
	away.until("it has asked in vain", func() bool {
		s := away.stream.Bootstrap()
		return s != nil && strings.Contains(away.log.String(), "there is no signed header") && s.State == serve.BootstrapFailed
	})
	if away.value() != 1 {
		t.Errorf("it has unit %d", away.value())
	}
	problem := away.stream.Bootstrap().Problem
	for _, want := range []string{"the topic begins at", "hash of a frame", "there is no signed header", "is signed by key"} {
		if !strings.Contains(problem, want) {
			t.Errorf("the problem does not say %q: %s", want, problem)
		}
	}
	if n := strings.Count(away.log.String(), "level=ERROR msg=\"a peer's image is refused\""); n < 3 {
		t.Errorf("%d alarms", n)
	}
	away.end()
	if all, err := image.List(filepath.Join(dir, "images", "bank")); err != nil || len(all) != 0 {
		t.Errorf("there are images %v, %v", all, err)
	}
	away = b.edgeWith(dir, options{trusted: ring}, file(old), file(damaged), file(unsigned), file(forged), file(good))
	away.at(b.unitNo)
	b.unit()
	away.at(b.unitNo)
}

// An image of another history, which nothing shows before its source goes on, is followed
// beside the rows that are served, and given up; where it is whole otherwise.
func TestBootstrapDiverged(t *testing.T) {
	t.Parallel()
	b := newBank(t)
	dir := filepath.Join(t.TempDir(), "away")
	away := b.edge(dir)
	b.unit()
	away.at(1)
	away.end()
	good := imageOf(b, 1)
	forged := t.TempDir()
	if err := os.CopyFS(forged, os.DirFS(good)); err != nil {
		t.Fatal(err)
	}
	manifest := filepath.Join(onlyImage(t, forged), "manifest")
	text, err := os.ReadFile(manifest)
	if err != nil {
		t.Fatal(err)
	}
	m, err := image.DecodeManifest(text)
	if err != nil {
		t.Fatal(err)
	}
	m.Checkpoint.Chain[0] ^= 1
	if text, err = image.AppendManifest(nil, m); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(manifest, text, 0o600); err != nil {
		t.Fatal(err)
	}
	// While the source has the record that the image says it was taken at, nothing of it
	// comes; a new edge follows from the start.
	fresh := b.edge(filepath.Join(t.TempDir(), "new"), "file://"+forged)
	fresh.at(2)
	if s := fresh.stream.Bootstrap(); s == nil || s.Bytes != 0 || !strings.Contains(s.Problem, "history diverged") {
		t.Errorf("shown is %+v", s)
	}
	fresh.end()

	b.trim()
	away = b.edge(dir, "file://"+forged)
	away.until("the image is followed", func() bool { s := away.stream.Bootstrap(); return s != nil && s.State == serve.BootstrapFollowing })
	if away.value() != 1 {
		t.Errorf("it has unit %d", away.value())
	}
	b.unit()
	away.until("it is given up", func() bool { return away.stream.Bootstrap().State == serve.BootstrapFailed })
	away.until("the alarm is raised", func() bool { return strings.Contains(away.log.String(), "history diverged") })
	if away.value() != 1 {
		t.Errorf("it has unit %d", away.value())
	}
	away.end()
	// What has come is not taken for the peer's again.
	if err := os.RemoveAll(filepath.Join(dir, "images")); err != nil {
		t.Fatal(err)
	}
	away = b.edge(dir, "file://"+good)
	away.at(3)
}

// A topic that was deleted is what it was: no image mends it, a new epoch does.
func TestBootstrapLost(t *testing.T) {
	t.Parallel()
	b := newBank(t)
	dir := filepath.Join(t.TempDir(), "away")
	away := b.edge(dir)
	b.unit()
	away.at(1)
	away.end()
	newer := imageOf(b, 1)
	b.remove()
	away = b.edge(dir, "file://"+newer)
	away.until("the loss is told", func() bool { return strings.Contains(away.log.String(), "the stream's topic is lost") })
	if away.value() != 1 || away.stream.Bootstrap() != nil {
		t.Errorf("it has unit %d, bootstrap %+v", away.value(), away.stream.Bootstrap())
	}
	b.begin(2)
	b.unit()
	b.unit()
	away.until("it has gone over to the new epoch", func() bool { return away.stream.Home().Place().Epoch == 2 && away.value() == 2 })
	if away.stream.Bootstrap() != nil {
		t.Errorf("bootstrap %+v", away.stream.Bootstrap())
	}
}

// An edge that was away through the begin of an epoch whose topic was trimmed since takes
// an image of that epoch.
func TestBootstrapIntoEpoch(t *testing.T) {
	t.Parallel()
	b := newBank(t)
	dir := filepath.Join(t.TempDir(), "away")
	away := b.edge(dir)
	b.unit()
	away.at(1)
	away.end()
	b.remove()
	b.begin(2)
	b.unit()
	from := imageOf(b, 1)
	b.trim()
	b.heartbeat()
	away = b.edge(dir, "file://"+from)
	away.until("it has gone over", func() bool { return away.stream.Home().Place().Epoch == 2 && away.value() == 2 })
	b.unit()
	away.at(3)
}

// An edge that is far behind takes an image where that is less than what there is to
// follow, and follows otherwise.
func TestBootstrapBehind(t *testing.T) {
	t.Parallel()
	b := newBank(t)
	dir := filepath.Join(t.TempDir(), "away")
	away := b.edge(dir)
	b.unit()
	away.at(1)
	away.end()
	next := int64(b.end)
	from := imageOf(b, 4)

	// From here on the broker holds back what comes next for the edge.
	freed := make(chan struct{})
	t.Cleanup(func() { close(freed) })
	b.cluster.ControlKey(int16(kmsg.Fetch), func(q kmsg.Request) (kmsg.Response, error, bool) {
		b.cluster.KeepControl()
		for _, asked := range q.(*kmsg.FetchRequest).Topics {
			if len(asked.Partitions) == 1 && asked.Partitions[0].FetchOffset == next {
				b.cluster.SleepControl(func() { <-freed })
			}
		}
		return nil, nil, false
	})
	rules := func(few uint64) options {
		return options{rules: func(r *bootRules) { r.behindEvery, r.lag, r.few = 10*time.Millisecond, 0, few }}
	}
	away = b.edgeWith(dir, rules(4*bankRows+1), "file://"+from)
	away.until("it has looked", func() bool {
		s := away.stream.Bootstrap()
		return s != nil && strings.Contains(s.Problem, "200 entries are to be followed")
	})
	if away.value() != 1 {
		t.Errorf("it has unit %d", away.value())
	}
	away.end()
	away = b.edgeWith(dir, rules(4*bankRows), "file://"+from)
	away.at(5)
	if s := away.took(); s.Reason != bootBehind {
		t.Errorf("shown is %+v", s)
	}
	b.unit()
	away.at(6)
}
