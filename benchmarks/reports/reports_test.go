// Package reports measures what it costs that many edges say how they are: the
// publisher that follows them, the broker that keeps them, and relays that sum them up.
package reports

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/edgestatus"
	"github.com/millrace-db/millrace/internal/kafkatest"
	"github.com/millrace-db/millrace/internal/topic"
	"github.com/millrace-db/millrace/tests/harness"
)

var (
	edges = flag.Int("edges", 1000, "how many edges report")
	span  = flag.Duration("for", 5*time.Second, "how long they are watched")
	every = flag.Duration("every", 10*time.Second, "how often each of them reports")
	width = flag.Int("width", 64, "how many edges follow one relay")
)

// The variables that make this binary stand in for edges.
const (
	sendVariable = "MILLRACE_REPORTS_SEND" // brokers, a comma between them
	nameVariable = "MILLRACE_REPORTS_TOPIC"
)

func TestMain(m *testing.M) {
	flag.Parse()
	if brokers := os.Getenv(sendVariable); brokers != "" {
		if err := send(topic.Config{Brokers: strings.Split(brokers, ","), Topic: os.Getenv(nameVariable)}); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	kafkatest.Main(m)
}

// report is what an edge of ten tables says that is well.
func report(name string, index millrace.Index) *edgestatus.Report {
	now := time.Now().UTC()
	lag := 0.02
	r := &edgestatus.Report{
		Edge: name, Stream: "dns", StreamID: millrace.StreamID{1}.String(), Epoch: 1, Index: index, Chain: millrace.NewChain(millrace.StreamID{1}, millrace.Epoch(index)).String(),
		Term: 3, LagSeconds: &lag, SourceTime: &now, State: edgestatus.StateStream, Tables: 10, Rows: 2_000_000, Version: "1.0.0",
		StartedAt: now, ReportedAt: now, Interval: every.Seconds(), Log: &edgestatus.Log{Oldest: 1, Newest: index},
		Space: &edgestatus.Space{File: 5 << 30, Map: 64 << 30, DiskFree: 100 << 30},
	}
	for i := range 10 {
		r.Verify = append(r.Verify, edgestatus.TableVerify{
			Table: fmt.Sprintf("public.table_%d", i), ID: millrace.TableID(16384 + i), Index: index - 5, Time: &now, Equal: 1000,
			Pass: edgestatus.Pass{ID: 7, Equal: 100, Rows: 200_000, From: 1, To: index - 5},
		})
	}
	return r
}

func name(i int) string { return fmt.Sprintf("edge-%05d.example", i) }

// indexAt is how far a stream of a thousand entries a second is.
func indexAt(t time.Time) millrace.Index { return millrace.Index(t.UnixMilli() % 1_000_000_000) }

// send reports for all edges, each at its time within the interval, until it is killed.
func send(c topic.Config) error {
	const senders = 16
	group, ctx := errgroup.WithContext(context.Background())
	for s := range senders {
		group.Go(func() error {
			t, err := topic.Open(ctx, c)
			if err != nil {
				return err
			}
			defer func() { _ = t.Close() }() // it is killed
			began := time.Now()
			for round := 0; ; round++ {
				for i := s; i < *edges; i += senders {
					due := began.Add(time.Duration(round)*(*every) + time.Duration(float64(*every)*float64(i)/float64(*edges)))
					time.Sleep(time.Until(due))
					value, err := report(name(i), indexAt(time.Now())).Encode()
					if err != nil {
						return err
					}
					if err := t.Put(ctx, []byte(name(i)), value); err != nil {
						return err
					}
				}
			}
		})
	}
	return group.Wait()
}

// ownCPU is what this process has used.
func ownCPU(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// cpuOf is what another process has used.
func cpuOf(pid int) time.Duration { return time.Duration(harness.CPUOf(pid) * float64(time.Second)) }

func heap() float64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc)
}

func brokersAndTopic(b *testing.B) (*kafkatest.Cluster, topic.Config, *topic.Topic) {
	b.Helper()
	cluster := kafkatest.Start(b, 1)
	c := topic.Config{Brokers: cluster.Brokers(), Topic: edgestatus.TopicOf(kafkatest.Topic(b))}
	t, err := topic.Open(b.Context(), c)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = t.Close() })
	if err := t.CreateCompacted(b.Context(), 1); err != nil {
		b.Fatal(err)
	}
	return cluster, c, t
}

// watch follows the reports as transfer does, until want edges are known.
func watch(b *testing.B, c topic.Config, want int) *edgestatus.Watcher {
	b.Helper()
	w, err := edgestatus.NewWatcher(c, "", func() millrace.Epoch { return 1 }, nil, nil)
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	var work sync.WaitGroup
	work.Go(func() { w.Run(ctx) })
	b.Cleanup(func() {
		cancel()
		work.Wait()
	})
	deadline := time.Now().Add(*every*3 + time.Minute)
	for w.Summary(time.Now()).Edges < want {
		if time.Now().After(deadline) {
			b.Fatalf("%d edges are known, want %d", w.Summary(time.Now()).Edges, want)
		}
		time.Sleep(100 * time.Millisecond)
	}
	return w
}

// BenchmarkFlat: every edge reports to the topic.
func BenchmarkFlat(b *testing.B) {
	cluster, c, t := brokersAndTopic(b)
	cmd := exec.CommandContext(b.Context(), os.Args[0], "-edges", strconv.Itoa(*edges), "-every", every.String())
	cmd.Env = append(os.Environ(), sendVariable+"="+strings.Join(c.Brokers, ","), nameVariable+"="+c.Topic)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = cmd.Process.Kill() // it has no other end
		_ = cmd.Wait()
	})
	before := heap()
	w := watch(b, c, *edges)
	first, err := t.Info(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	own, broker, began := ownCPU(b), cpuOf(cluster.PID(0)), time.Now()
	time.Sleep(*span)
	own, broker = ownCPU(b)-own, cpuOf(cluster.PID(0))-broker
	seconds := time.Since(began).Seconds()
	last, err := t.Info(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	one, err := report(name(1), 1_000_000).Encode()
	if err != nil {
		b.Fatal(err)
	}
	rate := float64(last.End-first.End) / seconds
	if s := w.Summary(time.Now()); s.Edges != *edges || s.Silent > *edges/10 {
		b.Errorf("%d edges are known, %d silent, want %d", s.Edges, s.Silent, *edges)
	}
	b.ReportMetric(rate, "reports/s")
	b.ReportMetric(rate*float64(len(one))/1024, "KiB/s")
	b.ReportMetric(own.Seconds()/seconds*100, "%cpu-publisher")
	b.ReportMetric(broker.Seconds()/seconds*100, "%cpu-broker")
	b.ReportMetric((heap()-before)/(1<<20), "MiB-publisher")

	began = time.Now()
	fleet, err := edgestatus.Read(b.Context(), t, "")
	if err != nil {
		b.Fatal(err)
	}
	s := fleet.Summary(time.Now(), nil)
	if s.Edges != *edges {
		b.Errorf("%d edges are read, want %d", s.Edges, *edges)
	}
	b.ReportMetric(time.Since(began).Seconds(), "s-status")
	b.ReportMetric(float64(last.End-first.Start), "records-in-topic")
}

// BenchmarkTree: edges report to relays, and the roots to the topic.
func BenchmarkTree(b *testing.B) {
	cluster, c, t := brokersAndTopic(b)
	level := make([]*edgestatus.Report, *edges)
	for i := range level {
		level[i] = report(name(i), indexAt(time.Now()))
	}
	var relays, levels, largest int
	var upBytes, upCount int
	began, own := time.Now(), ownCPU(b)
	for len(level) > *width {
		levels++
		var above []*edgestatus.Report
		for i := 0; i < len(level); i += *width {
			relay := new(edgestatus.Collector)
			for _, r := range level[i:min(i+*width, len(level))] {
				payload, err := r.Encode()
				if err != nil {
					b.Fatal(err)
				}
				relay.Take(r.Edge, payload)
				upBytes, upCount, largest = upBytes+len(payload), upCount+1, max(largest, len(payload))
			}
			up := report(fmt.Sprintf("relay-%d-%04d.example", levels, i / *width), indexAt(time.Now()))
			up.Below = relay.Below(nil)
			above, relays = append(above, up), relays+1
		}
		level = above
	}
	tree, took := ownCPU(b)-own, time.Since(began)
	rootBytes := 0
	before := heap()
	for _, r := range level {
		value, err := r.Encode()
		if err != nil {
			b.Fatal(err)
		}
		rootBytes += len(value)
		if err := t.Put(b.Context(), []byte(r.Edge), value); err != nil {
			b.Fatal(err)
		}
	}
	w := watch(b, c, *edges+relays)
	s := w.Summary(time.Now())
	if s.Edges != *edges+relays || s.Relays != relays || s.Levels != levels {
		b.Errorf("the roots speak of %d edges, %d relays, %d levels; want %d, %d, %d", s.Edges, s.Relays, s.Levels, *edges+relays, relays, levels)
	}
	b.ReportMetric((heap()-before)/(1<<20), "MiB-publisher")

	// A round of all roots, again and again: what the publisher and the broker do for it.
	rounds := 0
	own, broker := ownCPU(b), cpuOf(cluster.PID(0))
	for until := time.Now().Add(*span); time.Now().Before(until); rounds++ {
		for _, r := range level {
			value, err := r.Encode()
			if err != nil {
				b.Fatal(err)
			}
			if err := t.Put(b.Context(), []byte(r.Edge), value); err != nil {
				b.Fatal(err)
			}
		}
		limited, cancel := context.WithTimeoutCause(b.Context(), time.Minute, errors.New("reports are not read"))
		if _, err := w.Fresh(limited); err != nil {
			b.Fatal(err)
		}
		cancel()
	}
	own, broker = ownCPU(b)-own, cpuOf(cluster.PID(0))-broker
	b.ReportMetric(float64(len(level)), "roots")
	b.ReportMetric(float64(relays), "relays")
	b.ReportMetric(float64(rootBytes)/1024/every.Seconds(), "KiB/s-topic")
	b.ReportMetric(float64(largest)/1024, "KiB-largest-up")
	b.ReportMetric(float64(upBytes)/float64(upCount)/1024, "KiB-mean-up")
	b.ReportMetric(own.Seconds()/float64(rounds)/every.Seconds()*100, "%cpu-publisher-and-roots")
	b.ReportMetric(broker.Seconds()/float64(rounds)/every.Seconds()*100, "%cpu-broker")
	b.ReportMetric(tree.Seconds()/float64(relays)*1000, "ms-cpu-relay-round")
	b.ReportMetric(took.Seconds(), "s-tree-on-one-machine")
}
