package relay

import (
	"crypto/ed25519"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/millrace-db/millrace"
	edgelog "github.com/millrace-db/millrace/edge/log"
)

// first makes a client try one upstream before another.
func first(then ...Upstream) func(*ClientConfig) {
	return func(c *ClientConfig) { c.Secondaries = then }
}

// awaitNode waits until a node follows another.
func (n *node) awaitNode(name string) {
	n.t.Helper()
	await(n.t, n.name+" to follow "+name, func() bool { return n.client.Status().Node == name })
}

// TestSilent: an upstream that sends nothing any more is left, as one that is gone is,
// and a quiet one is not.
func TestSilent(t *testing.T) {
	root := newRoot(t, "root", 3, nil)
	hung := newNode(t, "hung", func(c *ServerConfig) { c.Beat = time.Hour })
	hung.follow(nil, root.upstream())
	hung.awaitIndex(3)
	child := newNode(t, "child", nil)
	child.follow(first(root.upstream()), hung.upstream())
	child.awaitNode("hung")
	child.awaitNode("root")
	if s := child.client.Status(); !strings.Contains(s.Upstreams[0].Problem, errSilent.Error()) {
		t.Errorf("the problem of a silent upstream is %q", s.Upstreams[0].Problem)
	}
	root.batches(2)
	child.awaitIndex(5)
}

// TestUpstreamDies: a child goes on by way of another upstream, and so does its own.
func TestUpstreamDies(t *testing.T) {
	root := newRoot(t, "root", 3, nil)
	a, b := newNode(t, "a", nil), newNode(t, "b", nil)
	a.follow(nil, root.upstream())
	b.follow(nil, root.upstream())
	child, grandchild := newNode(t, "child", nil), newNode(t, "grandchild", nil)
	child.follow(first(b.upstream()), a.upstream())
	grandchild.follow(nil, child.upstream())
	child.awaitNode("a")
	grandchild.awaitIndex(3)
	a.close()
	child.awaitNode("b")
	root.batches(5)
	grandchild.awaitIndex(8)
	grandchild.sameAs(root)
	await(t, "the path below to be told", func() bool { return strings.Join(grandchild.client.Path(), " ") == "child b root" })
}

// liar makes a relay that serves a history of its own from some batch on, with the chain
// that belongs to it.
func liar(t *testing.T, honest, forged int, key ed25519.PrivateKey) *node {
	n := newNode(t, "liar", nil)
	n.key = key
	n.begin()
	n.batches(honest)
	n.key = nil
	for range forged {
		n.batch("forged")
	}
	return n
}

// TestLiar: with a key that is trusted, a forged batch is refused although its chain is
// right; the relay is left alone and told of, and whoever follows the edge goes on.
func TestLiar(t *testing.T) {
	pub, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	trusted, err := millrace.NewKeyring([]millrace.TrustedKey{{Key: pub, From: millrace.Place{Epoch: 1, Index: 1}}})
	if err != nil {
		t.Fatal(err)
	}
	root := newNode(t, "root", nil)
	root.key = key
	root.begin()
	root.batches(20)
	liar := liar(t, 5, 10, key)
	child, below := newNode(t, "child", nil), newNode(t, "below", nil)
	child.trusted, below.trusted = trusted, trusted
	child.follow(first(root.upstream()), liar.upstream())
	below.follow(nil, child.upstream())
	below.awaitIndex(20)
	below.sameAs(root)
	child.sameAs(root)
	await(t, "the liar to be told of", func() bool { return child.client.Status().Upstreams[0].Untrue != "" })
	if s := child.client.Status(); s.Node != "root" || child.client.Fault() == nil {
		t.Errorf("child follows %q, fault %v", s.Node, child.client.Fault())
	}
	root.batches(5)
	below.awaitIndex(25)
}

// TestLiarUnsigned: without keys nothing shows that a batch is forged, until another
// upstream is compared: that is told of, and where all disagree, the stream stops.
func TestLiarUnsigned(t *testing.T) {
	root := newRoot(t, "root", 20, nil)
	liar := liar(t, 5, 5, nil)
	child := newNode(t, "child", nil)
	child.follow(first(root.upstream()), liar.upstream())
	await(t, "one of both to be told of", func() bool { return child.client.Fault() != nil })
	var s Status // of when it follows somebody, which it does not while it goes over
	await(t, "the other to be followed", func() bool { s = child.client.Status(); return s.URL != "" })
	for _, u := range s.Upstreams {
		if (u.Untrue != "") == (u.URL == s.URL) {
			t.Errorf("upstream %+v, followed is %s", u, s.URL)
		}
	}
	child.halt()
	child.follow(nil, root.upstream())
	if child.place().Chain != root.place().Chain {
		await(t, "the stream to stop", func() bool { return errors.Is(child.fault(), ErrUntrue) })
	}
}

// TestDamaged: bytes that were altered on their way are asked for once more, and a relay
// that goes on to alter them is left alone.
func TestDamaged(t *testing.T) {
	root := newRoot(t, "root", 20, nil)
	bad := newNode(t, "bad", func(c *ServerConfig) {
		c.Filter = func([]byte) (Rewriter, error) {
			return func(record []byte) ([]byte, error) {
				b := append([]byte(nil), record...)
				b[len(b)-1] ^= 1
				return b, nil
			}, nil
		}
	})
	bad.follow(nil, root.upstream())
	bad.awaitIndex(20)
	child := newNode(t, "child", nil)
	child.follow(func(c *ClientConfig) {
		c.Secondaries = []Upstream{root.upstream()}
		c.Filter = []byte("any")
	}, bad.upstream())
	// The root knows no filters, so there is nobody else.
	await(t, "the relay to be left alone", func() bool { return child.client.Status().Upstreams[0].Untrue != "" })
	if at := child.place(); at.Index != 0 {
		t.Errorf("the child has come to index %v", at.Index)
	}
}

// TestPruned: where the logs of upstreams do not reach back, a secondary serves, and once
// it is not needed any more a primary does; with none that reaches, ErrGone names one.
func TestPruned(t *testing.T) {
	long := newRoot(t, "long", 10, nil)
	short := newNode(t, "short", nil)
	short.log = openLog(t, func(o *edgelog.Options) { o.MaxBytes, o.SegmentBytes = 1, 1 })
	short.follow(nil, long.upstream())
	short.awaitIndex(10)
	child := newNode(t, "child", nil)
	child.follow(nil, short.upstream())
	await(t, "the log to be found too short", func() bool { return errors.Is(child.fault(), ErrGone) })
	var gone *GoneError
	if !errors.As(child.fault(), &gone) || gone.URL != short.http.URL || gone.Oldest != short.log.Status().Begin+1 || gone.Oldest < 2 {
		t.Errorf("the error is %v", child.fault())
	}
	child.halt()
	child.follow(first(long.upstream()), short.upstream())
	child.awaitIndex(10)
	child.awaitNode("short")
	long.batches(3)
	child.awaitIndex(13)
}

// TestEpochs: an epoch that is over is told from one that has not begun, a child learns of
// the next one, and follows its copy from beside while the first one goes on.
func TestEpochs(t *testing.T) {
	root := newRoot(t, "root", 3, nil)
	child := newNode(t, "child", nil)
	child.follow(nil, root.upstream())
	child.awaitIndex(3)
	if begun, err := child.client.Ask(t.Context(), testStream, 2); begun || err != nil {
		t.Fatalf("epoch 2 has begun: %v, error %v", begun, err)
	}
	next := &node{t: t, name: "next", epoch: 2, now: testTime, log: openLog(t, nil)}
	next.begin()
	root.mu.Lock()
	root.next = next.log
	root.mu.Unlock()
	await(t, "the child to learn of epoch 2", func() bool { return len(child.client.Named(1)) == 1 })
	if begun, err := child.client.Ask(t.Context(), testStream, 2); begun || err != nil {
		t.Fatalf("epoch 2 has begun without an entry: %v, error %v", begun, err)
	}
	next.batches(4)
	if begun, err := child.client.Ask(t.Context(), testStream, 2); !begun || err != nil {
		t.Fatalf("epoch 2 has begun: %v, error %v", begun, err)
	}
	source, err := child.client.Aside().Open(t.Context(), From{Stream: testStream, Epoch: 2})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := source.Next(t.Context()); err != nil || source.Epoch() != 2 {
		t.Errorf("epoch %v, error %v", source.Epoch(), err)
	}
	root.batches(1)
	child.awaitIndex(4)

	// The root goes over.
	root.mu.Lock()
	old := root.log
	root.epoch, root.log, root.next = 2, next.log, nil
	root.mu.Unlock()
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	await(t, "the epoch to be over", func() bool { return errors.Is(child.fault(), ErrGone) })
	for {
		if _, _, err = source.Next(t.Context()); err != nil {
			t.Fatal(err) // it goes on over the change
		}
		if source.c.states[0].Newest == 4 {
			break
		}
	}
	if err := source.Close(); err != nil {
		t.Error(err)
	}
}

// TestWithheld: an upstream that says that it comes on, and sends nothing of it, is left,
// although it seems to be the freshest.
func TestWithheld(t *testing.T) {
	root := newRoot(t, "root", 3, nil)
	boast := func(n int) []byte {
		return appendNodeState(nil, &State{
			Node: "boaster", Stream: testStream, Epoch: 1, Oldest: 1, Newest: millrace.Index(100 + n), Chain: millrace.Chain{1},
			Time: testTime.Add(time.Duration(n) * time.Hour), TopicID: testTopic,
		})
	}
	boaster := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer func() { _ = conn.Close() }()
		_, err = conn.Write([]byte("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + Protocol + "\r\n\r\n"))
		if err == nil {
			_, err = conn.Write(appendFrame(nil, frameWelcome, boast(0)))
		}
		for n := 1; err == nil; n++ {
			_, err = conn.Write(appendFrame(nil, frameState, boast(n)))
			_ = sleep(t.Context(), 20*time.Millisecond)
		}
	}))
	defer boaster.Close()
	child := newNode(t, "child", nil)
	child.follow(first(root.upstream()), upstream(t, boaster.URL))
	child.awaitNode("boaster")
	child.awaitNode("root")
	child.awaitIndex(3)
	if s := child.client.Status(); !strings.Contains(s.Upstreams[0].Problem, errWithheld.Error()) {
		t.Errorf("the problem of the upstream is %q", s.Upstreams[0].Problem)
	}
	child.halt()
}
