package benchmarks

import (
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// commitRate is how many rows are committed a second, each in a transaction of
// its own.
const commitRate = 100

// BenchmarkLatency commits single rows on an otherwise idle system and measures
// how long after the commit was acknowledged a reader finds the row through the
// edge's HTTP API.
func BenchmarkLatency(b *testing.B) {
	for b.Loop() {
		latency(b)
	}
}

func latency(b *testing.B) {
	s, e := newSystem(b, 1000)
	t := s.StartTransfer()
	e.Start()
	if _, err := awaitRow(b.Context(), e, 1000, copyLimit); err != nil {
		b.Fatal(err)
	}
	ctx := b.Context()
	conn, err := pgx.Connect(ctx, s.SourceURL)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = conn.Close(ctx) }() // nothing is lost with it
	var (
		mu                sync.Mutex
		fromAck, fromSend []time.Duration
		failed            error
		wg                sync.WaitGroup
	)
	n := *secondsFlag * commitRate
	tick := time.NewTicker(time.Second / commitRate)
	defer tick.Stop()
	for i := range n {
		<-tick.C
		id := 1_000_000 + i
		sent := time.Now()
		if _, err := conn.Exec(ctx, `INSERT INTO bench VALUES ($1, 1, 'a row that is looked for')`, id); err != nil {
			b.Fatal(err)
		}
		acknowledged := time.Now()
		wg.Go(func() {
			seen, err := awaitRow(ctx, e, id, 10*time.Second)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed = err
				return
			}
			fromAck, fromSend = append(fromAck, seen.Sub(acknowledged)), append(fromSend, seen.Sub(sent))
		})
	}
	wg.Wait()
	if failed != nil {
		b.Fatal(failed)
	}
	slices.Sort(fromAck)
	slices.Sort(fromSend)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(milliseconds(quantile(fromAck, 0.5)), "p50-ms")
	b.ReportMetric(milliseconds(quantile(fromAck, 0.99)), "p99-ms")
	record(b, map[string]any{
		"what": "commit acknowledged to visible over the edge's HTTP", "commits": n, "commits_per_second": commitRate,
		"p50_ms": milliseconds(quantile(fromAck, 0.5)), "p90_ms": milliseconds(quantile(fromAck, 0.9)),
		"p99_ms": milliseconds(quantile(fromAck, 0.99)), "max_ms": milliseconds(fromAck[len(fromAck)-1]),
		"with_commit_p50_ms": milliseconds(quantile(fromSend, 0.5)), "with_commit_p99_ms": milliseconds(quantile(fromSend, 0.99)),
	})
	t.Stop(stopLimit)
	e.Stop(stopLimit)
}
