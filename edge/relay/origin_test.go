package relay

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace-db/millrace"
)

// topicOf is the topic that a root would have written.
type topicOf struct {
	root *node
	// trimmed is the first index that is there, dead tells that it cannot be reached.
	trimmed atomic.Uint64
	dead    atomic.Bool
}

var errTrimmed = errors.New("trimmed")

type topicReader struct {
	o    *topicOf
	next int
}

func (o *topicOf) Open(_ context.Context, from From) (OriginSource, error) {
	if o.dead.Load() {
		return nil, errModel
	}
	if uint64(from.Index)+1 < o.trimmed.Load() {
		return nil, errTrimmed
	}
	r := &topicReader{o: o}
	if from.After != nil {
		r.next = int(from.After.Offset) + 1
	}
	return r, nil
}

func (o *topicOf) Stand(context.Context, millrace.Epoch) (millrace.Index, time.Time, error) {
	if o.dead.Load() {
		return 0, time.Time{}, errModel
	}
	at := o.root.place()
	return at.Index, at.Time, nil
}

func (o *topicOf) Gone(err error) bool { return errors.Is(err, errTrimmed) }

func (r *topicReader) TopicID() string       { return testTopic }
func (r *topicReader) Epoch() millrace.Epoch { return 1 }
func (r *topicReader) Close() error          { return nil }

func (r *topicReader) Next(ctx context.Context) (millrace.Offset, []byte, error) {
	for {
		if r.o.dead.Load() {
			return 0, nil, errModel
		}
		if all := r.o.root.records(); r.next < len(all) {
			one := all[r.next]
			r.next++
			return one.offset, one.value, nil
		}
		if err := sleep(ctx, time.Millisecond); err != nil {
			return 0, nil, err
		}
	}
}

var kafka = Upstream{text: OriginName, origin: true}

// TestOrigin: the topic is one more upstream: it is gone over to and left like others.
func TestOrigin(t *testing.T) {
	root := newRoot(t, "root", 5, nil)
	topic := &topicOf{root: root}
	relay := newNode(t, "relay", nil)
	relay.follow(nil, root.upstream())
	child := newNode(t, "child", nil)
	at := func(change func(*ClientConfig)) func(*ClientConfig) {
		return func(c *ClientConfig) {
			c.Origin = topic
			change(c)
		}
	}

	// Kafka behind a relay that dies.
	child.follow(at(first(kafka)), relay.upstream())
	child.awaitIndex(5)
	child.awaitNode("relay")
	relay.close()
	child.awaitNode(OriginName)
	root.batches(5)
	child.awaitIndex(10)
	child.sameAs(root)
	if s := child.client.Status(); len(s.Path) != 0 || s.URL != OriginName || child.client.Report(nil) {
		t.Errorf("beside Kafka it says %+v", s)
	}
	child.halt()

	// A topic that no longer reaches back, before a relay with a long log; then it is
	// gone back to.
	late := newNode(t, "late", nil)
	topic.trimmed.Store(8)
	late.follow(at(first(root.upstream())), kafka)
	late.awaitIndex(10)
	late.awaitNode(OriginName)
	root.batches(2)
	late.awaitIndex(12)
	late.sameAs(root)
	topic.dead.Store(true)
	late.awaitNode("root")
	root.batches(2)
	late.awaitIndex(14)
}

// TestOriginDecides: what the topic gives is not held against it, and stops the stream
// where it differs from what is here; where nobody has what comes next, that is said.
func TestOriginDecides(t *testing.T) {
	root := newRoot(t, "root", 10, nil)
	topic := &topicOf{root: root}
	liar := liar(t, 5, 3, nil)
	child := newNode(t, "child", nil)
	child.follow(nil, liar.upstream())
	child.awaitIndex(8)
	child.halt()
	liar.close()
	child.follow(func(c *ClientConfig) {
		c.Origin, c.Secondaries = topic, []Upstream{kafka}
	}, upstream(t, "http://127.0.0.1:1"))
	await(t, "the stream to stop", func() bool { return errors.Is(child.fault(), millrace.ErrDiverged) })
	child.halt()

	topic.trimmed.Store(5)
	late := newNode(t, "late", nil)
	late.follow(func(c *ClientConfig) { c.Origin = topic }, kafka)
	await(t, "the beginning to be gone", func() bool { return errors.Is(late.fault(), ErrGone) && errors.Is(late.fault(), errTrimmed) })
}

// TestOriginGoneAfterProbe: that the topic has lost a place is said in words also when it was
// asked since where it ends, and answered.
func TestOriginGoneAfterProbe(t *testing.T) {
	root := newRoot(t, "root", 10, nil)
	topic := &topicOf{root: root}
	topic.trimmed.Store(5)
	c, err := NewClient(ClientConfig{Node: "late", Stream: "stream", Upstreams: []Upstream{kafka}, Origin: topic, Applied: func() Applied { return Applied{} }})
	if err != nil {
		t.Fatal(err)
	}
	from := From{Epoch: 1}
	for _, want := range []string{errTrimmed.Error(), "index 1 of epoch 1"} {
		_, err := c.Open(t.Context(), from)
		if !errors.Is(err, ErrGone) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "%!") {
			t.Errorf("Open: %v", err)
		}
		c.probeOrigin(t.Context(), 0)
	}
}
