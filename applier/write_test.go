package applier

import (
	"context"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge"
)

// With everything at hand before the writer begins, units gather in one
// transaction; those that are complete must be committed before a part of
// another one enters it, or they would be given up with the part.
func TestCompleteUnitsOutliveAPart(t *testing.T) {
	topic := newMemoryTopic()
	p := newPublisher(t, topic, 1)
	p.reign()
	p.copied(3, "a")
	p.unit(p.put(1, "b"))
	next := p.successor()
	p.parts(1, p.put(2, "void"), p.put(3, "void"), p.put(9, "void"))(2)
	next.reign()
	next.unit(next.put(3, "c"))

	s := openStore(t, t.TempDir())
	applyAtOnce(t, s, topic)
	wantContent(t, s, "1=b 2=a 3=c")
	if s.Index() != next.index || s.Place().Chain != next.chain {
		t.Errorf("store is at %+v, want index %v chain %v", s.Place(), next.index, next.chain)
	}
}

// applyAtOnce applies a topic with everything at hand before the writer begins.
func applyAtOnce(t *testing.T, s *edge.Store, topic *memoryTopic) {
	t.Helper()
	c := Config{Store: s, OpenSource: topic.open}
	a, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	f := &fetcher{config: &a.config, metrics: a.metrics}
	q := newQueue(a.config.QueueBytes)
	for i, record := range topic.records {
		work, err := f.take(millrace.Offset(i), record)
		if err != nil {
			t.Fatalf("record %d: %v", i, err)
		}
		if work == nil {
			continue
		}
		if err := q.push(context.Background(), work); err != nil {
			t.Fatal(err)
		}
	}
	q.close()
	w := &writer{config: &a.config, status: &a.status, stall: a.config.Stall}
	done := make(chan error)
	go func() { done <- w.run(q) }() // it locks its goroutine to a thread
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// The commit ends where a Verify entry does, so that just the rows of its index
// can be compared, though more is at hand.
func TestVerifyEndsItsCommit(t *testing.T) {
	topic := newMemoryTopic()
	p := newPublisher(t, topic, 1)
	p.reign()
	p.copied(3, "a")
	plan := millrace.NewVerifyPlan(testSchema())
	const rounds = 20
	for i := range rounds {
		value := strconv.Itoa(i)
		p.unit(p.rows(3, value)...)
		var sum millrace.VerifySum
		for id := 1; id <= 3; id++ {
			if err := sum.Add(plan, testKey(t, id), []millrace.Datum{{Text: []byte(strconv.Itoa(id))}, {Text: []byte(value)}}); err != nil {
				t.Fatal(err)
			}
		}
		p.unit(&millrace.Entry{Kind: millrace.KindVerify, Table: testTable, Verify: &millrace.VerifyRange{ID: 1, Rows: sum.Rows, Hash: sum.Sum()}})
	}
	p.unit(p.rows(3, "z")...)

	s := openStore(t, t.TempDir())
	applyAtOnce(t, s, topic)
	wantContent(t, s, "1=z 2=z 3=z")
	for limit := time.After(deadline); s.Verifying() != 0; {
		select {
		case <-limit:
			t.Fatalf("Verify entries at index %v are not compared", s.Verifying())
		case <-time.After(time.Millisecond):
		}
	}
	v := s.Verified()
	// Of many at once some may be skipped, because they wait for one another.
	if len(v) != 1 || v[0].Equal == 0 || v[0].Different != 0 || v[0].Equal+v[0].Skipped != rounds || strings.Contains(v[0].SkipReason, "its unit") {
		t.Errorf("of %d Verify entries: %+v", rounds, v)
	}
}
