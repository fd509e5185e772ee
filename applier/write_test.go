package applier

import (
	"context"
	"testing"

	"github.com/millrace-db/millrace"
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
	c := Config{Store: s, OpenSource: topic.open}
	a, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	f := &fetcher{config: &a.config, metrics: a.metrics, after: millrace.NoOffset}
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
	wantContent(t, s, "1=b 2=a 3=c")
	if s.Index() != next.index || s.Place().Chain != next.chain {
		t.Errorf("store is at %+v, want index %v chain %v", s.Place(), next.index, next.chain)
	}
}
