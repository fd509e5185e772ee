// Package streams measures what it costs an edge to follow many streams to which little
// comes.
package streams

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/config"
	"github.com/millrace-db/millrace/internal/edgestatus"
	"github.com/millrace-db/millrace/internal/follow"
	"github.com/millrace-db/millrace/internal/kafkatest"
	"github.com/millrace-db/millrace/internal/testdir"
	"github.com/millrace-db/millrace/internal/topic"
	"github.com/millrace-db/millrace/tests/harness"
)

var (
	streams = flag.Int("streams", 10, "how many streams the edge follows")
	span    = flag.Duration("for", 5*time.Second, "how long it is watched")
	beat    = flag.Duration("beat", time.Second, "how often a heartbeat comes in each stream; 0 for never")
)

func TestMain(m *testing.M) { kafkatest.Main(m) }

// publisher appends to the topic of a stream as a transfer of an idle source does.
type publisher struct {
	topic  *topic.Topic
	header millrace.Header
}

func newPublisher(ctx context.Context, brokers []string, i int) (*publisher, error) {
	t, err := topic.Open(ctx, topic.Config{Brokers: brokers, Topic: fmt.Sprintf("millrace.s%d", i)})
	if err != nil {
		return nil, err
	}
	if err := t.Create(ctx, 1); err != nil {
		return nil, err
	}
	reports, err := topic.Open(ctx, topic.Config{Brokers: brokers, Topic: edgestatus.TopicOf(t.Name())})
	if err != nil {
		return nil, err
	}
	defer func() { _ = reports.Close() }() // nothing is appended
	if err := reports.CreateCompacted(ctx, 1); err != nil {
		return nil, err
	}
	id := millrace.StreamID{1, byte(i >> 8), byte(i)}
	p := &publisher{topic: t, header: millrace.Header{
		Kind: millrace.RecordTerm, Stream: id, Epoch: 1, Term: 1, Publisher: millrace.PublisherID{1}, Time: time.Now().UTC(),
	}}
	if err := p.append(ctx, nil); err != nil {
		return nil, err
	}
	p.header.First, p.header.Prev = 1, millrace.NewChain(id, 1)
	return p, nil
}

// heartbeat appends a unit of one entry.
func (p *publisher) heartbeat(ctx context.Context) error {
	var w millrace.UnitWriter
	now := time.Now().UTC()
	if err := w.Append(&millrace.Entry{Kind: millrace.KindHeartbeat}); err != nil {
		return err
	}
	payload, err := w.Finish(millrace.UnitEnd{Time: now, Token: uint64(p.header.First)})
	if err != nil {
		return err
	}
	var u millrace.UnitHash
	u.Add(0, payload)
	h := &p.header
	h.Kind, h.Count, h.Chain, h.Time = millrace.RecordBatch, 1, u.Chain(h.Prev), now
	h.Position = millrace.Position{Mode: millrace.ModeWAL, SystemID: 1, Timeline: 1, Slot: "s", LSN: millrace.LSN(h.First)}
	if err := p.append(ctx, payload); err != nil {
		return err
	}
	h.First, h.Prev = h.First+1, h.Chain
	return nil
}

func (p *publisher) append(ctx context.Context, payload []byte) error {
	record, err := millrace.AppendRecord(nil, &p.header, payload, nil)
	if err == nil {
		_, err = p.topic.Append(ctx, record, p.header.First, p.header.Count)
	}
	return err
}

// used is what this process has, and has used.
type used struct {
	cpu            time.Duration
	heap, resident float64 // MiB
	files, threads int
}

func measure(b *testing.B) used {
	b.Helper()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		b.Fatal(err)
	}
	u := used{cpu: time.Duration(r.Utime.Nano() + r.Stime.Nano()), heap: float64(m.HeapAlloc) / (1 << 20), files: len(files)}
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		n, _ := strconv.Atoi(fields[1]) // the lines that are wanted have numbers
		switch fields[0] {
		case "RssAnon:":
			u.resident = float64(n) / 1024
		case "Threads:":
			u.threads = n
		}
	}
	return u
}

// BenchmarkIdle: an edge follows streams in which nothing but a heartbeat comes.
func BenchmarkIdle(b *testing.B) {
	cluster := kafkatest.Start(b, 1)
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	dir := testdir.For(b)
	text := fmt.Sprintf("edge: {id: here, data_dir: %q, map_size: 1GiB}\nstreams:\n", dir)
	publishers := make([]*publisher, *streams)
	for i := range publishers {
		var err error
		if publishers[i], err = newPublisher(ctx, cluster.Brokers(), i); err != nil {
			b.Fatal(err)
		}
		text += fmt.Sprintf("- {name: s%d, kafka: {brokers: [%q]}}\n", i, cluster.Brokers()[0])
	}
	c, err := config.Parse("edge.yaml", []byte(text), nil)
	if err != nil {
		b.Fatal(err)
	}
	// The load's own connections are there before the edge is measured.
	beatAll := func() error {
		group, ctx := errgroup.WithContext(ctx)
		group.SetLimit(8)
		for _, p := range publishers {
			group.Go(func() error { return p.heartbeat(ctx) })
		}
		return group.Wait()
	}
	if err := beatAll(); err != nil {
		b.Fatal(err)
	}
	before := measure(b)
	var work sync.WaitGroup
	all := make([]*follow.Stream, *streams)
	for i := range all {
		if all[i], err = follow.New(follow.Config{Whole: c, Stream: &c.Streams[i], Version: "bench", Logger: slog.New(slog.DiscardHandler)}); err != nil {
			b.Fatal(err)
		}
		work.Go(func() {
			if err := all[i].Run(ctx); err != nil {
				b.Error(err)
			}
		})
	}
	defer func() {
		cancel()
		work.Wait()
		for _, s := range all {
			if err := s.Close(); err != nil {
				b.Error(err)
			}
		}
	}()
	deadline := time.Now().Add(5 * time.Minute)
	for _, s := range all {
		for s.Home().Place().Index == 0 {
			if time.Now().After(deadline) {
				b.Fatalf("stream %s has come to nothing: %v", s.Name(), s.Fault())
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	after := measure(b)
	broker, began := harness.CPUOf(cluster.PID(0)), time.Now()
	for at := began; time.Since(began) < *span; at = at.Add(*beat) {
		if *beat == 0 {
			time.Sleep(*span)
			break
		}
		time.Sleep(time.Until(at))
		if err := beatAll(); err != nil {
			b.Fatal(err)
		}
	}
	seconds := time.Since(began).Seconds()
	end := measure(b)
	n := float64(*streams)
	b.ReportMetric((end.cpu-after.cpu).Seconds()/seconds*100/n, "%cpu-with-load/stream")
	b.ReportMetric((harness.CPUOf(cluster.PID(0))-broker)/seconds*100/n, "%cpu-broker/stream")
	b.ReportMetric((end.heap-before.heap)/n, "MiB-heap/stream")
	b.ReportMetric((end.resident-before.resident)/n, "MiB-anonymous/stream")
	b.ReportMetric(float64(end.files-before.files)/n, "files/stream")
	b.ReportMetric(float64(end.threads-before.threads), "threads")
}
