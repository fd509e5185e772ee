package benchmarks

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/millrace-db/millrace/tests/harness"
)

// copyRounds is how often the rows are copied out beside the first copy.
const copyRounds = 3

// BenchmarkFirstCopy copies -copy rows to the edge, from the start of transfer's
// process to the moment when a reader sees the last row, beside COPY … TO STDOUT
// of the same table into /dev/null, before and after it.
func BenchmarkFirstCopy(b *testing.B) {
	for b.Loop() {
		firstCopy(b, *copyFlag)
	}
}

func firstCopy(b *testing.B, rows int) {
	s, e := newSystem(b, rows)
	// What COPY reads and what the first copy reads is as warm.
	var theirs []float64
	for range copyRounds {
		theirs = append(theirs, copyOut(b, s, rows))
	}
	e.Start()
	began := time.Now()
	t := s.StartTransfer()
	memory := make(chan int64, 1)
	watch, stop := context.WithCancel(b.Context())
	defer stop()
	go func() { memory <- mostAnonymous(watch, e.Process) }()
	at, err := awaitRow(b.Context(), e, rows, largeLimit)
	if err != nil {
		b.Fatal(err)
	}
	stop()
	ours := float64(rows) / at.Sub(began).Seconds()
	status, err := e.Status(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	if n := int(status.Rows(table)); n != rows { //nolint:gosec // far from the limit
		b.Fatalf("the edge has %d rows, want %d", n, rows)
	}
	theirs = append(theirs, copyOut(b, s, rows))
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(ours, "rows/s")
	b.ReportMetric(median(theirs), "COPY-rows/s")
	b.ReportMetric(ours/median(theirs), "ratio")
	record(b, map[string]any{
		"what": "first copy", "rows": rows, "seconds": at.Sub(began).Seconds(), "rows_per_second": ours,
		"copy_to_stdout_rows_per_second": median(theirs), "ratio": ours / median(theirs),
		"transfer_rss_mib": t.MaxRSS() >> 20, "edge_anonymous_mib": <-memory >> 20,
		"transfer_cpu_seconds": t.CPU(), "edge_cpu_seconds": e.CPU(),
	})
	t.Stop(stopLimit)
	e.Stop(stopLimit)
}

// copyOut returns rows a second of COPY into /dev/null.
func copyOut(b *testing.B, s *harness.System, rows int) float64 {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), backlogLimit)
	defer cancel()
	conn, err := pgconn.Connect(ctx, s.SourceURL)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = conn.Close(ctx) }() // nothing is lost with it
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = null.Close() }() // it holds nothing
	began := time.Now()
	tag, err := conn.CopyTo(ctx, null, "COPY "+table+" TO STDOUT")
	if err != nil {
		b.Fatal(err)
	}
	if tag.RowsAffected() != int64(rows) {
		b.Fatal(fmt.Errorf("COPY gave %d rows, want %d", tag.RowsAffected(), rows))
	}
	return float64(rows) / time.Since(began).Seconds()
}
