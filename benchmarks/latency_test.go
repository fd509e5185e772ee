package benchmarks

import (
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace/tests/harness"
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
	took := commits(b, s, e, 1_000_000, *secondsFlag*commitRate)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(milliseconds(quantile(took.fromAck, 0.5)), "p50-ms")
	b.ReportMetric(milliseconds(quantile(took.fromAck, 0.99)), "p99-ms")
	figure := took.figure()
	figure["what"], figure["capture"] = "commit acknowledged to visible over the edge's HTTP", s.Mode()
	record(b, figure)
	t.Stop(stopLimit)
	e.Stop(stopLimit)
}

// delays are those of rows from the source to an edge's reader, sorted.
type delays struct {
	// fromAck counts from the moment at which the commit was acknowledged, fromSend
	// from that at which it was asked for.
	fromAck, fromSend []time.Duration
}

func (d delays) figure() map[string]any {
	return map[string]any{
		"commits": len(d.fromAck), "commits_per_second": commitRate,
		"p50_ms": milliseconds(quantile(d.fromAck, 0.5)), "p90_ms": milliseconds(quantile(d.fromAck, 0.9)),
		"p99_ms": milliseconds(quantile(d.fromAck, 0.99)), "max_ms": milliseconds(quantile(d.fromAck, 1)),
		"with_commit_p50_ms": milliseconds(quantile(d.fromSend, 0.5)), "with_commit_p99_ms": milliseconds(quantile(d.fromSend, 0.99)),
	}
}

// commits commits n rows at commitRate, with ids from first on, and waits for each
// at the edge.
func commits(b *testing.B, s *harness.System, e *harness.Edge, first, n int) delays {
	b.Helper()
	ctx := b.Context()
	conn, err := pgx.Connect(ctx, s.SourceURL)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = conn.Close(ctx) }() // nothing is lost with it
	var (
		mu     sync.Mutex
		took   delays
		failed error
		wg     sync.WaitGroup
	)
	tick := time.NewTicker(time.Second / commitRate)
	defer tick.Stop()
	for id := first; id < first+n; id++ {
		<-tick.C
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
			took.fromAck, took.fromSend = append(took.fromAck, seen.Sub(acknowledged)), append(took.fromSend, seen.Sub(sent))
		})
	}
	wg.Wait()
	if failed != nil {
		b.Fatal(failed)
	}
	slices.Sort(took.fromAck)
	slices.Sort(took.fromSend)
	return took
}
