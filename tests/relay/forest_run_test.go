package relay

import (
	"context"
	"crypto/ed25519"
	"flag"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/embeddedkafka"
	"github.com/millrace-db/millrace/internal/testdir"
	"github.com/millrace-db/millrace/tests/harness"
)

// go test -run TestForest -v ./tests/relay -edges 50 -rate 1000 -run-for 30s
var (
	edgesFlag = flag.Int("edges", 12, "edges in the tree of three levels")
	rateFlag  = flag.Int("rate", 200, "changes a second")
	forFlag   = flag.Duration("run-for", 4*time.Second, "how long changes come in each part")
)

// TestForest runs a tree of three levels of edges that believe one key: changes come in
// while all is well, for the delays of each level, and then while a relay of the second
// level dies, one hangs, and one forges. Their children go on by way of others, every
// edge that is left ends with the source's chain, and none has applied the forgery.
func TestForest(t *testing.T) {
	f := sow(t)
	// A twelfth of the edges follow Kafka, a sixth those, the rest the second level and
	// what forges.
	roots, relays := max(2, *edgesFlag/12), max(3, *edgesFlag/6)
	var first, second, leaves []*member
	var above, between []string
	for i := range roots {
		m := f.grow(fmt.Sprintf("root-%d", i), 1)
		first, above = append(first, m), append(above, m.http.URL)
	}
	for i := range relays {
		m := f.grow(fmt.Sprintf("relay-%d", i), 2, above...)
		second, between = append(second, m), append(between, m.http.URL)
	}
	for i := range *edgesFlag - roots - relays {
		leaves = append(leaves, f.grow(fmt.Sprintf("leaf-%d", i), 3, between...))
	}
	for _, m := range f.all {
		f.equal(m)
	}
	f.source.run(t.Context(), *rateFlag, *forFlag)
	for _, m := range f.all {
		f.equal(m)
	}
	f.delays(t)
	t.Logf("%d edges: %d follow Kafka, %d those, %d these; all is well", len(f.all), roots, relays, len(leaves))

	// One leaf follows the forger, and has others behind it.
	forger := newForger(t, first[0])
	victim := f.plant("victim", 3, "", "upstream: "+list(forger.url)+"\n  secondaries: "+list(above...))
	f.equal(victim)
	harness.Until(t, moveLimit, "the victim follows the forger", func(context.Context) error {
		if up := victim.upstream(); up != "forger" {
			return harness.NotYet("it follows %s", up)
		}
		return nil
	})

	dying, hanging := second[len(second)-1], second[len(second)-2]
	var publishing sync.WaitGroup
	publishing.Go(func() { f.source.run(t.Context(), *rateFlag, *forFlag) })
	harness.Pass(t.Context(), *forFlag/4)
	forger.lie()
	dying.stop()
	hanging.gate.hold()
	publishing.Wait()
	f.source.run(t.Context(), *rateFlag, time.Second/4) // something comes behind the lie in any case
	for _, m := range leaves {
		harness.Until(t, moveLimit, m.id+" has left who is gone", func(context.Context) error {
			if up := m.upstream(); up == "" || up == dying.id || up == hanging.id {
				return harness.NotYet("it follows %q", up)
			}
			return nil
		})
	}
	harness.Until(t, moveLimit, "the victim has told of the forger", forger.told(victim))
	hanging.stop()
	left := slices.DeleteFunc(slices.Clone(f.all), func(m *member) bool { return m.cancel == nil })
	for _, m := range left {
		f.equal(m)
	}
}

// sow makes a forest with a source and no edge.
func sow(t *testing.T) *forest {
	t.Helper()
	broker, err := embeddedkafka.Start(embeddedkafka.Config{Dir: testdir.For(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = broker.Close() })
	pub, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	f := newForest(t, broker.Addrs(), "forest")
	if f.trusted, err = millrace.NewKeyring([]millrace.TrustedKey{{Key: pub, From: millrace.Place{Epoch: 1, Index: 1}}}); err != nil {
		t.Fatal(err)
	}
	f.source = newSource(t, broker.Addrs(), f.topic, key)
	return f
}

// TestHops prints how long changes take to a chain of three edges, and beside it to three
// edges that all follow Kafka.
func TestHops(t *testing.T) {
	for _, chained := range []bool{false, true} {
		f := sow(t)
		var above []string
		for level := 1; level <= 3; level++ {
			m := f.grow(fmt.Sprintf("edge-%d", level), level, above...)
			if chained {
				above = []string{m.http.URL}
			}
		}
		for _, m := range f.all {
			f.equal(m)
		}
		f.source.run(t.Context(), *rateFlag, *forFlag/2)
		for _, m := range f.all {
			f.equal(m)
		}
		t.Logf("three edges in a chain: %v", chained)
		f.delays(t)
		for _, m := range f.all {
			m.stop()
		}
	}
}

// delays prints how long changes took to the edges of each level, and from an edge to
// those that follow it.
func (f *forest) delays(t *testing.T) {
	t.Helper()
	byID := map[string]*member{}
	for _, m := range f.all {
		byID[m.id] = m
	}
	levels := map[int][]time.Duration{}
	hops := map[int][]time.Duration{}
	for _, m := range f.all {
		at := m.times(f.source)
		for index, when := range at {
			levels[m.level] = append(levels[m.level], when.Sub(f.source.sent[index]))
		}
		if up := byID[m.upstream()]; up != nil {
			there := up.times(f.source)
			for index, when := range at {
				if before, ok := there[index]; ok {
					hops[m.level] = append(hops[m.level], when.Sub(before))
				}
			}
		}
	}
	for level := 1; level <= 3; level++ {
		t.Logf("source to level %d: %s", level, quantiles(levels[level]))
	}
	for level := 2; level <= 3 && len(hops[level]) > 0; level++ {
		t.Logf("hop from level %d to %d: %s", level-1, level, quantiles(hops[level]))
	}
}

// times are when each batch was at an edge.
func (m *member) times(s *source) map[millrace.Index]time.Time {
	s.mu.Lock()
	var all []millrace.Index
	for index := range s.sent {
		if index > 3 { // what comes before is the beginning of the run
			all = append(all, index)
		}
	}
	s.mu.Unlock()
	slices.Sort(all)
	m.mu.Lock()
	defer m.mu.Unlock()
	times := make(map[millrace.Index]time.Time, len(all))
	i := 0
	for _, index := range all {
		for i < len(m.seen) && m.seen[i].index < index {
			i++
		}
		if i == len(m.seen) {
			break
		}
		times[index] = m.seen[i].at
	}
	return times
}

func quantiles(d []time.Duration) string {
	if len(d) == 0 {
		return "nothing"
	}
	slices.Sort(d)
	at := func(q float64) time.Duration {
		return d[min(len(d)-1, int(q*float64(len(d))))].Round(10 * time.Microsecond)
	}
	return fmt.Sprintf("p50 %v, p99 %v, max %v (%d)", at(0.5), at(0.99), at(1), len(d))
}
