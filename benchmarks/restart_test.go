package benchmarks

import (
	"context"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/millrace-db/millrace/tests/harness"
)

// restarts is how often an edge is started again.
const restarts = 30

// BenchmarkRestart measures from the start of an edge's process to its first
// answered read, over a store of a million rows. Half of the ends before are
// kill -9.
func BenchmarkRestart(b *testing.B) {
	for b.Loop() {
		restart(b)
	}
}

func restart(b *testing.B) {
	rows := *changesFlag
	s, e := newSystem(b, rows)
	began := time.Now()
	t := s.StartTransfer()
	e.Start()
	at, err := awaitRow(b.Context(), e, rows, copyLimit)
	if err != nil {
		b.Fatal(err)
	}
	copied := at.Sub(began)
	record(b, map[string]any{"what": "first copy", "rows": rows, "seconds": copied.Seconds(), "rows_per_second": float64(rows) / copied.Seconds()})
	t.Stop(stopLimit)
	harness.Binary(b, harness.Release)
	var took []time.Duration
	for i := range restarts {
		if i%2 == 0 {
			e.Stop(stopLimit)
		} else {
			e.Kill()
		}
		e.Start()
		at, err := firstRead(b.Context(), e, rows/2)
		if err != nil {
			b.Fatal(err)
		}
		took = append(took, at.Sub(e.Started))
	}
	e.Stop(stopLimit)
	slices.Sort(took)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(milliseconds(quantile(took, 0.5)), "p50-ms")
	b.ReportMetric(milliseconds(took[len(took)-1]), "max-ms")
	record(b, map[string]any{
		"what": "start of the edge's process to first answered read", "rows": rows, "restarts": restarts,
		"min_ms": milliseconds(took[0]), "p50_ms": milliseconds(quantile(took, 0.5)), "max_ms": milliseconds(took[len(took)-1]),
	})
}

// firstRead tries to connect again and again, as a proxy in front does, and
// reads a row over the connection.
func firstRead(ctx context.Context, e *harness.Edge, id int) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, copyLimit)
	defer cancel()
	var dialer net.Dialer
	for ctx.Err() == nil {
		conn, err := dialer.DialContext(ctx, "tcp", e.Address)
		if err != nil {
			harness.Pass(ctx, 100*time.Microsecond)
			continue
		}
		if err := conn.Close(); err != nil {
			return time.Time{}, err
		}
		break
	}
	return awaitRow(ctx, e, id, copyLimit)
}
