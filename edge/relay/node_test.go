package relay

import (
	"context"
	"crypto/ed25519"
	"errors"
	"log/slog"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/millrace-db/millrace"
	edgelog "github.com/millrace-db/millrace/edge/log"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	testStream = millrace.StreamID{7, 7}
	testTime   = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
)

const testTopic = "topic-id"

// patience bounds what a test waits for.
const patience = 60 * time.Second

// node is an edge without a store: what it follows goes through a fold into its log.
type node struct {
	t      testing.TB
	name   string
	server *Server
	http   *httptest.Server
	client *Client

	mu    sync.Mutex
	log   *edgelog.Log
	epoch millrace.Epoch
	at    millrace.Checkpoint
	next  *edgelog.Log
	path  func() []string
	// now and offset are of the next unit that a root makes.
	now    time.Time
	offset millrace.Offset
	term   millrace.Term
	fold   *millrace.Fold
	// key signs what a root makes; trusted is what a child asks for.
	key     ed25519.PrivateKey
	trusted *millrace.Keyring
	stop    func()
	err     error
}

func testLogger(t testing.TB) *slog.Logger {
	if testing.Verbose() {
		return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return slog.New(slog.DiscardHandler)
}

func openLog(t testing.TB, change func(*edgelog.Options)) *edgelog.Log {
	t.Helper()
	o := edgelog.Options{Dir: t.TempDir(), Retain: 100 * 365 * 24 * time.Hour}
	if change != nil {
		change(&o)
	}
	l, err := edgelog.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// newNode serves a node that holds nothing.
func newNode(t testing.TB, name string, change func(*ServerConfig)) *node {
	t.Helper()
	n := &node{t: t, name: name, epoch: 1, now: testTime, log: openLog(t, nil)}
	n.serve(change)
	return n
}

// newRoot serves a node that makes its records itself, and has made some.
func newRoot(t testing.TB, name string, batches int, change func(*ServerConfig)) *node {
	t.Helper()
	n := newNode(t, name, change)
	n.begin()
	n.batches(batches)
	return n
}

func (n *node) serve(change func(*ServerConfig)) {
	c := ServerConfig{Node: n.name, Local: n, Beat: 20 * time.Millisecond, Logger: testLogger(n.t).With("at", n.name)}
	if change != nil {
		change(&c)
	}
	var err error
	if n.server, err = NewServer(c); err != nil {
		n.t.Fatal(err)
	}
	n.http = httptest.NewServer(n.server)
	n.t.Cleanup(n.close)
}

func (n *node) close() {
	if n.server == nil {
		return
	}
	n.halt()
	_ = n.server.Close()
	n.http.Close()
	if n.client != nil {
		_ = n.client.Close()
	}
	n.server = nil
}

// halt ends following.
func (n *node) halt() {
	if n.stop != nil {
		n.stop()
		n.stop = nil
	}
}

func (n *node) upstream() Upstream { return upstream(n.t, n.http.URL) }

func upstream(t testing.TB, url string) Upstream {
	t.Helper()
	u, err := ParseUpstream(url)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func (n *node) Log(epoch millrace.Epoch) *edgelog.Log {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch epoch {
	case 0, n.epoch:
		return n.log
	case n.epoch + 1:
		return n.next
	}
	return nil
}

func (n *node) Epochs() (now, next millrace.Epoch) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.next != nil {
		next = n.epoch + 1
	}
	return n.epoch, next
}

func (n *node) Path() []string {
	n.mu.Lock()
	path, client := n.path, n.client
	n.mu.Unlock()
	switch {
	case path != nil:
		return path()
	case client != nil:
		return client.Path()
	}
	return nil
}

func (n *node) place() millrace.Checkpoint {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.at
}

func (n *node) applied() Applied {
	at := n.place()
	return Applied{Stream: at.Stream, Place: millrace.Place{Epoch: at.Epoch, Index: at.Index}, Chain: at.Chain, Time: at.Time}
}

// begin makes a root ready to make units.
func (n *node) begin() {
	n.t.Helper()
	n.fold = millrace.NewFold(testStream, n.epoch)
	c := n.fold.Checkpoint()
	c.TopicID = testTopic
	n.log.Start(&c)
	n.reign()
}

func (n *node) reign() {
	n.term++
	n.take(n.header(millrace.RecordTerm), nil)
}

func (n *node) header(kind millrace.RecordKind) millrace.Header {
	return millrace.Header{Kind: kind, Stream: testStream, Epoch: n.epoch, Term: n.term, Publisher: millrace.PublisherID{byte(n.term), 1}, Time: n.now}
}

// take puts a record that a root has made into its log.
func (n *node) take(h millrace.Header, payload []byte) {
	n.t.Helper()
	value, err := millrace.AppendRecord(nil, &h, payload, n.key)
	if err != nil {
		n.t.Fatal(err)
	}
	r, err := millrace.DecodeRecord(value, nil)
	if err == nil {
		_, err = n.fold.Step(r)
	}
	if err != nil {
		n.t.Fatal(err)
	}
	n.keep(n.fold, r, n.offset, value, testTopic)
	n.offset++
}

// keep puts an accepted record into the log.
func (n *node) keep(fold *millrace.Fold, r *millrace.Record, offset millrace.Offset, value []byte, topic string) {
	whole := r.Kind == millrace.RecordBatch && !fold.Open()
	n.log.Append(offset, value, r, whole)
	if !whole {
		return
	}
	at := fold.Checkpoint()
	at.TopicID, at.Offset = topic, offset
	n.log.Commit(&at)
	n.mu.Lock()
	n.at = at
	n.mu.Unlock()
}

// batch makes a batch of one unit with the given text.
func (n *node) batch(text string) {
	n.t.Helper()
	n.now = n.now.Add(time.Second)
	h := n.header(millrace.RecordBatch)
	var w millrace.UnitWriter
	if err := w.Append(&millrace.Entry{Kind: millrace.KindMessage, Message: &millrace.LogicalMessage{Prefix: "test", Content: []byte(text)}}); err != nil {
		n.t.Fatal(err)
	}
	body, err := w.Finish(millrace.UnitEnd{Time: n.now, Token: uint64(n.now.Unix())})
	if err != nil {
		n.t.Fatal(err)
	}
	h.First, h.Count, h.Prev = n.fold.Next(), 1, n.fold.Chain()
	var unit millrace.UnitHash
	unit.Add(0, body)
	h.Chain = unit.Chain(h.Prev)
	h.Position = millrace.Position{Mode: millrace.ModeWAL, SystemID: 1, Timeline: 1, Slot: "millrace_test", LSN: millrace.LSN(n.now.Unix())}
	n.take(h, body)
}

func (n *node) batches(count int) {
	n.t.Helper()
	for range count {
		n.batch("some text")
	}
}

// newClient makes the client of a node.
func (n *node) follow(change func(*ClientConfig), ups ...Upstream) {
	n.t.Helper()
	c := ClientConfig{
		Node: n.name, Stream: "s", Upstreams: ups, Applied: n.applied,
		Silence: time.Second, Stale: 200 * time.Millisecond, Margin: 2 * time.Second, Probe: 50 * time.Millisecond, Check: 200 * time.Millisecond,
		RetryMin: 5 * time.Millisecond, RetryMax: 50 * time.Millisecond, Seed: 1, Logger: testLogger(n.t).With("at", n.name),
	}
	if change != nil {
		change(&c)
	}
	client, err := NewClient(c)
	if err != nil {
		n.t.Fatal(err)
	}
	n.mu.Lock()
	n.client = client
	n.mu.Unlock()
	n.run()
}

// run follows until halt.
func (n *node) run() {
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	work.Go(func() { n.client.Run(ctx) })
	work.Go(func() {
		for ctx.Err() == nil {
			err := n.once(ctx)
			n.mu.Lock()
			n.err = err
			n.mu.Unlock()
			if millrace.NeedsOperator(err) || errors.Is(err, ErrGone) {
				return
			}
			_ = sleep(ctx, 5*time.Millisecond)
		}
	})
	n.stop = func() {
		cancel()
		work.Wait()
	}
}

func (n *node) fault() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.err
}

// once follows one upstream to the end.
func (n *node) once(ctx context.Context) error {
	at := n.place()
	from := From{Stream: testStream, Epoch: at.Epoch, Index: at.Index, Chain: at.Chain}
	if at.Index > 0 {
		from.After = &at
	}
	src, err := n.client.Open(ctx, from)
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }()
	fold := millrace.FoldFrom(&at)
	if at.Epoch == 0 {
		fold = millrace.NewFold(src.Stream(), src.Epoch())
	}
	c := fold.Checkpoint()
	c.TopicID = src.TopicID()
	n.log.Start(&c)
	for {
		offset, value, err := src.Next(ctx)
		if err != nil {
			return err
		}
		r, err := millrace.DecodeRecord(value, nil)
		var outcome millrace.Outcome
		if err == nil {
			err = n.trusted.Check(r, fold.Next())
		}
		if err == nil {
			outcome, err = fold.Step(r)
		}
		if err != nil {
			return src.Reject(err)
		}
		if outcome != millrace.Repeated && outcome != millrace.Stale {
			n.keep(fold, r, offset, value, src.TopicID())
		}
	}
}

// await waits for a condition.
func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for %s", patience, what)
		}
		_ = sleep(t.Context(), 2*time.Millisecond)
	}
}

// awaitIndex waits until a node has come to an index.
func (n *node) awaitIndex(want millrace.Index) {
	n.t.Helper()
	deadline := time.Now().Add(patience)
	for n.place().Index < want {
		if time.Now().After(deadline) {
			n.t.Fatalf("%s has come to index %v, want %v; fault: %v", n.name, n.place().Index, want, n.fault())
		}
		changed := n.log.Changed()
		if n.place().Index >= want {
			return
		}
		select {
		case <-changed:
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// sameAs compares the logs of two nodes byte for byte.
func (n *node) sameAs(o *node) {
	n.t.Helper()
	a, b := n.records(), o.records()
	if !slices.EqualFunc(a, b, func(x, y kept) bool { return x.offset == y.offset && string(x.value) == string(y.value) }) {
		n.t.Fatalf("log of %s has %d records, that of %s %d, and they differ", n.name, len(a), o.name, len(b))
	}
	if n.place().Chain != o.place().Chain {
		n.t.Fatalf("%s has chain %v, %s %v", n.name, n.place().Chain, o.name, o.place().Chain)
	}
}

type kept struct {
	offset millrace.Offset
	value  []byte
}

// records are those of the log up to where it ends.
func (n *node) records() (all []kept) {
	n.t.Helper()
	r, err := n.log.Reader(n.log.Status().Begin)
	if err != nil {
		n.t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	for {
		if at, _ := r.At(); at >= n.log.Status().End {
			return all
		}
		record, err := r.Next(n.t.Context())
		if err != nil {
			n.t.Fatal(err)
		}
		all = append(all, kept{record.Offset, slices.Clone(record.Value)})
	}
}
