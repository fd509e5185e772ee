package relay

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge/relay"
	"github.com/millrace-db/millrace/tests/harness"
)

// follows waits until an edge follows another, or Kafka.
func follows(t *testing.T, m *member, what string) {
	t.Helper()
	harness.Until(t, moveLimit, m.id+" follows "+what, func(context.Context) error {
		if up := m.upstream(); up != what {
			return harness.NotYet("it follows %q", up)
		}
		return nil
	})
}

// TestBesideKafka: an edge whose relay is gone goes on from Kafka, from the offsets that
// came with the records, and one that a relay has fed a forgery, unsigned, stops where
// Kafka says otherwise.
func TestBesideKafka(t *testing.T) {
	f := sow(t)
	brokers := fmt.Sprintf("kafka: {brokers: [%q], topic: %q}", f.brokers[0], f.topic)
	root := f.grow("root", 1)
	f.equal(root)
	child := f.plant("child", 2, brokers, "upstream: "+list(root.http.URL)+"\n  secondaries: [kafka]")
	f.source.run(t.Context(), 200, time.Second)
	f.equal(child)
	follows(t, child, "root")

	// What the records are signed with is not looked at here.
	f.trusted = nil
	forger := newForger(t, root)
	victim := f.plant("victim", 2, brokers, "upstream: "+list(forger.url)+"\n  secondaries: [kafka]")
	f.equal(victim)
	follows(t, victim, "forger")
	forger.lie()
	f.source.run(t.Context(), 200, time.Second/2)
	limited, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := victim.stream.Home().WaitIndex(limited, f.source.fold.Index()); err != nil {
		t.Fatalf("the victim is at %v: %v; it follows %+v; fault: %v", victim.stream.Home().Place().Index, err, victim.stream.UpstreamStatus(), victim.stream.Fault())
	}
	forger.close()
	f.source.run(t.Context(), 200, time.Second/2)
	select {
	case <-victim.ended:
	case <-time.After(moveLimit):
		t.Fatalf("the victim goes on: %+v", victim.stream.UpstreamStatus())
	}
	if !errors.Is(victim.err, millrace.ErrDiverged) {
		t.Errorf("the victim stopped with %v, want %v", victim.err, millrace.ErrDiverged)
	}
	victim.err = nil

	root.stop()
	follows(t, child, relay.OriginName)
	f.source.run(t.Context(), 200, time.Second/2)
	f.equal(child)
}
