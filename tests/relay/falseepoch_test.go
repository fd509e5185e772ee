package relay

import (
	"context"
	"crypto/ed25519"
	"testing"
	"time"

	"github.com/millrace-db/millrace"
	edgelog "github.com/millrace-db/millrace/edge/log"
	"github.com/millrace-db/millrace/internal/testdir"
	"github.com/millrace-db/millrace/tests/harness"
)

// TestFalseEpoch: a relay that makes up a newer epoch, unsigned, brings no edge that
// believes keys to copy it.
func TestFalseEpoch(t *testing.T) {
	f := sow(t)
	root := f.grow("root", 1)
	f.equal(root)
	forger := newForger(t, root)
	forger.next.Store(forgedEpoch(t, 9))
	child := f.plant("child", 2, "", "upstream: "+list(forger.url)+"\n  secondaries: "+list(root.http.URL))
	f.equal(child)
	harness.Until(t, moveLimit, "the epoch was looked at", func(context.Context) error {
		if n := forger.asked.Load(); n < 2 {
			return harness.NotYet("its log was wanted %d times", n)
		}
		return nil
	})
	f.source.run(t.Context(), 200, time.Second)
	f.equal(child)
	if epoch, _ := child.stream.Home().Following(); epoch != 0 {
		t.Errorf("the edge copies epoch %v", epoch)
	}
}

// forgedEpoch is the log of an epoch that nobody has published.
func forgedEpoch(t *testing.T, epoch millrace.Epoch) *edgelog.Log {
	t.Helper()
	log, err := edgelog.Open(edgelog.Options{Dir: testdir.For(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = log.Close() })
	fold := millrace.NewFold(streamID, epoch)
	c := fold.Checkpoint()
	c.TopicID = "made-up"
	log.Start(&c)
	keep := func(h millrace.Header, payload []byte) {
		h.Stream, h.Epoch, h.Publisher = streamID, epoch, millrace.PublisherID{1}
		value, err := millrace.AppendRecord(nil, &h, payload, ed25519.PrivateKey(nil))
		if err != nil {
			t.Fatal(err)
		}
		r, err := millrace.DecodeRecord(value, nil)
		if err == nil {
			_, err = fold.Step(r)
		}
		if err != nil {
			t.Fatal(err)
		}
		log.Append(0, value, r, r.Kind == millrace.RecordBatch)
	}
	keep(millrace.Header{Kind: millrace.RecordTerm, Term: 1, Time: time.Now()}, nil)
	h, payload, err := framed(fold, []*millrace.Entry{{Kind: millrace.KindSchema, Table: table, Schema: schema()}}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	keep(h, payload)
	at := fold.Checkpoint()
	at.TopicID = "made-up"
	log.Commit(&at)
	return log
}
