package relay

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace-db/millrace"
	edgelog "github.com/millrace-db/millrace/edge/log"
)

// stranger is a client by itself, for what a child would not do.
func stranger(t *testing.T, to *node) *Client {
	t.Helper()
	c, err := NewClient(ClientConfig{Node: "stranger", Stream: "s", Upstreams: []Upstream{to.upstream()}, Applied: func() Applied { return Applied{} }})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *Client) hello(t *testing.T, h *hello) *link {
	t.Helper()
	h.node = c.config.Node
	l, err := c.connect(t.Context(), c.ups[0], h)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.conn.Close() })
	return l
}

// noise does not become smaller when it is packed.
func noise(n int) string {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b)
	return string(b)
}

// indexes reads records until the upstream closes, and returns their last indexes.
func (l *link) indexes(t *testing.T, c *Client) (all []millrace.Index, err error) {
	t.Helper()
	s := &Source{c: c, link: l}
	d := edgelog.NewDecoder((*stream)(s))
	for {
		r, err := d.Next()
		if err != nil {
			return all, err
		}
		if r.Header.Kind == millrace.RecordBatch {
			all = append(all, r.Header.Last())
		}
	}
}

// TestSlowChild: a child that takes in nothing is cut off, and one that says nothing too.
func TestSlowChild(t *testing.T) {
	root := newRoot(t, "root", 1, func(c *ServerConfig) { c.Stall = 300 * time.Millisecond })
	for range 32 {
		root.batch(noise(1 << 20))
	}
	l := stranger(t, root).hello(t, &hello{})
	await(t, "the child to be cut off", func() bool { return len(root.server.Peers()) == 0 })
	if n, err := io.Copy(io.Discard, l.conn); n >= 32<<20 {
		t.Errorf("it got all %d bytes, error %v", n, err)
	}

	quiet := newRoot(t, "quiet", 1, func(c *ServerConfig) { c.Silence = 300 * time.Millisecond })
	l = stranger(t, quiet).hello(t, &hello{})
	if _, err := io.Copy(io.Discard, l.conn); err != nil {
		t.Logf("read of a connection that was cut off: %v", err)
	}
	await(t, "the child to be cut off", func() bool { return len(quiet.server.Peers()) == 0 })
}

// TestMaxPeers: no more children are served than may be, and others are told.
func TestMaxPeers(t *testing.T) {
	root := newRoot(t, "root", 1, func(c *ServerConfig) { c.MaxPeers = 2 })
	c := stranger(t, root)
	for range 2 {
		c.hello(t, &hello{})
	}
	if _, err := c.connect(t.Context(), c.ups[0], &hello{node: "third"}); err == nil || !strings.Contains(err.Error(), "max_peers") {
		t.Errorf("a third child gets %v", err)
	}
}

// TestRate: a child gets no more in a second than it may, and states in between.
func TestRate(t *testing.T) {
	const rate = 1 << 20
	root := newRoot(t, "root", 1, func(c *ServerConfig) { c.MaxRate = rate })
	for range 2 {
		root.batch(noise(1 << 20))
	}
	size := 0
	for _, r := range root.records() {
		size += len(r.value)
	}
	c := stranger(t, root)
	l := c.hello(t, &hello{})
	began := time.Now()
	states := 0
	for got := 0; got < size; {
		kind, _, n, err := l.frames.next()
		if err != nil {
			t.Fatal(err)
		}
		switch kind {
		case frameRecords:
			if _, err := io.CopyN(io.Discard, l.r, int64(n)); err != nil {
				t.Fatal(err)
			}
			got += n
		case frameState:
			states++
		default:
			t.Fatalf("frame of kind %d", kind)
		}
	}
	least := time.Duration(float64(size)/rate*float64(time.Second)) - time.Second/4
	if took := time.Since(began); took < least {
		t.Errorf("%d bytes came in %v, at %d a second they take %v", size, took, rate, least)
	}
	if states < 5 {
		t.Errorf("%d states came in between", states)
	}
}

// TestUntil: a child that wants to stop at an index gets what comes before, and is told.
func TestUntil(t *testing.T) {
	root := newRoot(t, "root", 10, nil)
	c := stranger(t, root)
	at, err := c.hello(t, &hello{until: 7}).indexes(t, c)
	var refusal *RefusedError
	if !errors.As(err, &refusal) || refusal.Code != CodeDone || len(at) != 7 || at[6] != 7 {
		t.Errorf("it gets %v and %v, want 1 to 7 and %v", at, err, CodeDone)
	}
}

// TestNewest: a child that wants what comes from now on gets nothing older.
func TestNewest(t *testing.T) {
	root := newRoot(t, "root", 10, nil)
	c := stranger(t, root)
	l := c.hello(t, &hello{newest: true, until: 12})
	if l.welcome.From != 10 || l.welcome.FromChain != root.place().Chain {
		t.Errorf("it begins behind index %v", l.welcome.From)
	}
	root.batches(3)
	if at, err := l.indexes(t, c); len(at) != 2 || at[0] != 11 || at[1] != 12 {
		t.Errorf("it gets %v and %v, want 11 and 12", at, err)
	}
}

// TestFilter: a filter is refused by name where nobody knows filters, or this one; where
// one does, records come as it makes them.
func TestFilter(t *testing.T) {
	root := newRoot(t, "root", 3, nil)
	c := stranger(t, root)
	refusedFor := func(to *node, filter, word string) {
		t.Helper()
		_, err := c.connect(t.Context(), to.upstream(), &hello{node: "x", filter: []byte(filter)})
		var refusal *RefusedError
		if !errors.As(err, &refusal) || refusal.Code != CodeFilter || !strings.Contains(err.Error(), word) {
			t.Errorf("filter %q: %v, want a refusal that speaks of %q", filter, err, word)
		}
	}
	refusedFor(root, "t", "root serves whole streams only")

	other := newNode(t, "other", func(s *ServerConfig) {
		s.Filter = func(filter []byte) (Rewriter, error) {
			if len(filter) == 0 {
				return nil, nil
			}
			if string(filter) != "known" {
				return nil, errors.New("no such table")
			}
			return func(record []byte) ([]byte, error) { return append(record[:len(record):len(record)], "!"...), nil }, nil
		}
	})
	other.begin()
	other.batches(3)
	refusedFor(other, "t", "no such table")
	l := c.hello(t, &hello{})
	_ = l.conn.Close()
	c.ups[0] = other.upstream()
	l = c.hello(t, &hello{filter: []byte("known")})
	d := edgelog.NewDecoder((*stream)(&Source{c: c, link: l}))
	for _, want := range other.records() {
		r, err := d.Next()
		if err != nil {
			t.Fatal(err)
		}
		if string(r.Value) != string(want.value)+"!" || r.Offset != want.offset {
			t.Errorf("record of %d bytes, want %d and one more", len(r.Value), len(want.value))
		}
	}
}

// TestReports: what a child reports comes to its upstream, with its name.
func TestReports(t *testing.T) {
	var mu sync.Mutex
	got := map[string]string{}
	root := newRoot(t, "root", 1, func(c *ServerConfig) {
		c.Reports = func(child string, payload []byte) {
			mu.Lock()
			defer mu.Unlock()
			got[child] = string(payload)
		}
	})
	child := newNode(t, "child", nil)
	child.follow(nil, root.upstream())
	if child.client.Report(make([]byte, MaxReport+1)) {
		t.Error("a report that is too large is taken")
	}
	large := strings.Repeat("r", MaxReport)
	if !child.client.Report([]byte(large)) {
		t.Error("a report is not taken")
	}
	await(t, "the report", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return got["child"] == large
	})
}

// TestNotUpgraded: what is no request of another edge gets an answer of HTTP.
func TestNotUpgraded(t *testing.T) {
	root := newRoot(t, "root", 1, nil)
	for _, c := range []struct {
		method, upgrade string
		want            int
	}{
		{http.MethodPost, Protocol, http.StatusMethodNotAllowed},
		{http.MethodGet, "", http.StatusUpgradeRequired},
		{http.MethodGet, "websocket", http.StatusUpgradeRequired},
		{http.MethodGet, "millrace-relay/2", http.StatusUpgradeRequired},
	} {
		r, err := http.NewRequestWithContext(context.Background(), c.method, root.http.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		if c.upgrade != "" {
			r.Header.Set("Connection", "keep-alive, Upgrade")
			r.Header.Set("Upgrade", c.upgrade)
		}
		response, err := root.http.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = response.Body.Close()
		if response.StatusCode != c.want {
			t.Errorf("%s with %q: %s, want %d", c.method, c.upgrade, response.Status, c.want)
		}
	}
}

// TestMalformedHello: bytes that are no hello get a refusal, and end nothing else.
func TestMalformedHello(t *testing.T) {
	root := newRoot(t, "root", 1, nil)
	c := stranger(t, root)
	for _, h := range []*hello{{node: ""}, {node: "x", index: 5}} {
		_, err := c.connect(t.Context(), c.ups[0], h)
		var refusal *RefusedError
		if !errors.As(err, &refusal) || refusal.Code != CodeMalformed {
			t.Errorf("hello %+v: %v, want %v", h, err, CodeMalformed)
		}
	}
	c.hello(t, &hello{})
}

// fileConn notes what is read into it.
type fileConn struct {
	net.Conn
	sent  bytes.Buffer
	files int
}

func (c *fileConn) SetWriteDeadline(time.Time) error { return nil }
func (c *fileConn) Write(b []byte) (int, error)      { return c.sent.Write(b) }

func (c *fileConn) ReadFrom(r io.Reader) (int64, error) {
	if l, ok := r.(*io.LimitedReader); ok {
		if _, ok := l.R.(*os.File); ok {
			c.files++
		}
	}
	return io.Copy(&c.sent, r)
}

// TestFilesAreNotCopied: large pieces of the log go to the connection as parts of a file,
// which TCP sends without copying, and small ones in one write with their head.
func TestFilesAreNotCopied(t *testing.T) {
	root := newRoot(t, "root", 1, nil)
	root.batch(noise(1 << 20))
	root.batches(3)
	r, err := root.log.Reader(0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	conn := &fileConn{}
	w := &wire{ctx: t.Context(), conn: conn, stall: time.Minute}
	for at := millrace.Index(0); at < 5; at, _ = r.At() {
		if _, err := r.CopyTo(t.Context(), w, pieceSize); err != nil {
			t.Fatal(err)
		}
	}
	if conn.files < 4 {
		t.Errorf("%d pieces came out of files", conn.files)
	}
	at, err := (&link{r: bufio.NewReader(&conn.sent), frames: frameReader{r: nil}}).readAll(t, stranger(t, root))
	if len(at) != 5 || !errors.Is(err, io.EOF) {
		t.Errorf("records up to %v came, error %v", at, err)
	}
}

func (l *link) readAll(t *testing.T, c *Client) ([]millrace.Index, error) {
	t.Helper()
	l.frames.r = l.r
	return l.indexes(t, c)
}

// TestProblemBeside: what a client beside another one meets stands in the status of that,
// while it follows nobody, until somebody is served.
func TestProblemBeside(t *testing.T) {
	root := newRoot(t, "root", 3, nil)
	c := stranger(t, root)
	c.config.Filter = []byte("t")
	if _, err := c.Aside().Open(t.Context(), From{Stream: testStream, Epoch: 1}); err == nil {
		t.Fatal("a client that wants what is not served is served")
	}
	if got := c.Status().Upstreams[0].Problem; !strings.Contains(got, "root serves whole streams only") {
		t.Errorf("the problem of the upstream is %q", got)
	}
	c.config.Filter = nil
	source, err := c.Aside().Open(t.Context(), From{Stream: testStream, Epoch: 1})
	if err != nil {
		t.Fatal(err)
	}
	if got := c.Status().Upstreams[0].Problem; got != "" {
		t.Errorf("the problem of an upstream that serves is %q", got)
	}
	if err := source.Close(); err != nil {
		t.Error(err)
	}
}
