package applier

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/kafkatest"
	"github.com/millrace-db/millrace/internal/topic"
)

// kafkaSource reads a real topic.
type kafkaSource struct {
	id     string
	topic  *topic.Topic
	reader *topic.Reader
}

func (s *kafkaSource) TopicID() string { return s.id }

func (s *kafkaSource) Next(ctx context.Context) (millrace.Offset, []byte, error) {
	m, err := s.reader.Next(ctx)
	if errors.Is(err, topic.ErrOffsetGone) {
		err = fmt.Errorf("%w: %w; mend: begin a new epoch", ErrSourceGone, err)
	}
	return m.Offset, m.Value, err
}

func (s *kafkaSource) Close() error {
	s.reader.Close()
	return s.topic.Close()
}

// openKafka is an OpenSource for a real topic.
func openKafka(brokers []string, name string) func(context.Context, *millrace.Checkpoint) (Source, error) {
	return func(ctx context.Context, c *millrace.Checkpoint) (Source, error) {
		after := OffsetOf(c)
		t, err := topic.Open(ctx, topic.Config{Brokers: brokers, Topic: name})
		if err != nil {
			return nil, err
		}
		s := &kafkaSource{topic: t}
		info, err := t.Info(ctx)
		if err == nil {
			s.id = info.ID
			from := after + 1
			if after == millrace.NoOffset {
				from = info.Start
			}
			s.reader, err = t.Read(ctx, from)
		}
		if err != nil {
			return nil, errors.Join(err, t.Close())
		}
		return s, nil
	}
}

// Records of a real Kafka are applied once each, whenever the applier is stopped
// and started again, with parts of units and a new reign among them.
func TestKafka(t *testing.T) {
	const rows = 20
	brokers, name := kafkatest.Shared(t).Brokers(), kafkatest.Topic(t)
	ctx, cancel := context.WithTimeout(context.Background(), 3*deadline)
	defer cancel()
	tp, err := topic.Open(ctx, topic.Config{Brokers: brokers, Topic: name})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := tp.Close(); err != nil {
			t.Error(err)
		}
	}()
	if err := tp.Create(ctx, 1); err != nil {
		t.Fatal(err)
	}

	memory := newMemoryTopic()
	p := newPublisher(t, memory, 1)
	p.reign()
	p.copied(rows, "0")
	var ends []millrace.Index // the index after each unit
	for i := 1; i <= 60; i++ {
		if i == 30 {
			next := p.successor()
			p.parts(1, p.put(1, "void"), p.put(2, "void"))(1)
			p = next
			p.reign()
		}
		p.parts(1+i%25, p.rows(rows, fmt.Sprint(i))...)(1 << 30)
		ends = append(ends, p.index)
	}

	var published sync.WaitGroup
	published.Add(1)
	go func() {
		defer published.Done()
		for i, record := range memory.records {
			if _, err := tp.Append(ctx, record, millrace.Index(i), 1); err != nil {
				t.Errorf("append record %d: %v", i, err)
				return
			}
		}
	}()
	dir := t.TempDir()
	for _, until := range []millrace.Index{ends[5], ends[28], ends[40], ends[59]} {
		s := openStore(t, dir)
		r := run(t, s, memory, func(c *Config) { c.OpenSource = openKafka(brokers, name) })
		r.reached(until)
		r.quit()
		closeStore(t, s)
	}
	published.Wait()
	s := openStore(t, dir)
	if s.Index() != p.index || s.Place().Chain != p.chain {
		t.Errorf("store is at %+v, want index %v chain %v", s.Place(), p.index, p.chain)
	}
	want := make([]string, rows)
	for i := range want {
		want[i] = fmt.Sprintf("%d=60", i+1)
	}
	wantContent(t, s, strings.Join(want, " "))
}
