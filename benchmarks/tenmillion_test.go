package benchmarks

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/millrace-db/millrace/tests/harness"
)

const (
	// The bounds of memory while a transaction of any size goes through.
	transferMemory = 300 << 20
	edgeMemory     = 700 << 20
	memoryPause    = 50 * time.Millisecond
	readPause      = 5 * time.Millisecond
	largeLimit     = 30 * time.Minute
)

// BenchmarkTenMillion inserts -large rows in one transaction. It fails when
// transfer's resident memory or the edge's anonymous memory goes over its bound,
// or when a reader, who asks all the time, sees other than none or all of them.
func BenchmarkTenMillion(b *testing.B) {
	for b.Loop() {
		tenMillion(b, *largeFlag)
	}
}

func tenMillion(b *testing.B, rows int) {
	const before = 1000
	s, e := newSystem(b, before)
	t := s.StartTransfer()
	e.Start()
	if _, err := awaitRow(b.Context(), e, before, copyLimit); err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(b.Context(), largeLimit)
	defer cancel()
	memory := make(chan int64, 1)
	watch, stop := context.WithCancel(ctx)
	defer stop()
	go func() { memory <- mostAnonymous(watch, e.Process) }()
	seen := make(chan error, 1)
	var polls int
	var visible time.Time
	go func() {
		var err error
		polls, visible, err = seenWhole(ctx, e.Client, before, rows)
		seen <- err
	}()
	edgeBefore := e.CPU()
	began := time.Now()
	if _, err := s.DB.Pool.Exec(ctx, fmt.Sprintf(`INSERT INTO bench SELECT i, i %% 1000, 'note of row ' || i || ' and some more text to make it a row of about 100 bytes'
		FROM generate_series(%d, %d) i`, before+1, before+rows)); err != nil {
		b.Fatal(err)
	}
	committed := time.Now()
	if err := <-seen; err != nil {
		b.Fatal(err)
	}
	stop()
	anonymous := <-memory
	rss := t.MaxRSS()
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(rows)/visible.Sub(committed).Seconds(), "rows/s")
	b.ReportMetric(float64(rss>>20), "transfer-MiB")
	b.ReportMetric(float64(anonymous>>20), "edge-anonymous-MiB")
	record(b, map[string]any{
		"what": "one transaction", "rows": rows, "insert_seconds": committed.Sub(began).Seconds(),
		"commit_to_visible_seconds": visible.Sub(committed).Seconds(), "polls": polls,
		"transfer_rss_mib": rss >> 20, "edge_anonymous_mib": anonymous >> 20,
		"transfer_cpu_seconds": t.CPU(), "edge_cpu_seconds": e.CPU() - edgeBefore,
	})
	if rss >= transferMemory {
		b.Errorf("transfer held %d MiB, the bound is %d", rss>>20, transferMemory>>20)
	}
	if anonymous >= edgeMemory {
		b.Errorf("the edge held %d MiB of anonymous memory, the bound is %d", anonymous>>20, edgeMemory>>20)
	}
	t.Stop(stopLimit)
	e.Stop(stopLimit)
}

// mostAnonymous returns the most anonymous memory that the process held until
// ctx ended.
func mostAnonymous(ctx context.Context, p *harness.Process) int64 {
	var most int64
	for ctx.Err() == nil {
		most = max(most, p.Anonymous())
		harness.Pass(ctx, memoryPause)
	}
	return most
}

// seenWhole asks for the number of rows, and for the transaction's first and last
// one in one answer, until all are there. It returns when it asked for the
// answer that showed them, and an error when it saw some.
func seenWhole(ctx context.Context, c *harness.Client, before, rows int) (polls int, at time.Time, err error) {
	ends := []harness.RowKey{{Table: table, Key: []string{fmt.Sprint(before + 1)}}, {Table: table, Key: []string{fmt.Sprint(before + rows)}}}
	for {
		at = time.Now()
		status, err := c.Status(ctx)
		if err != nil {
			return polls, at, fmt.Errorf("poll %d: %w", polls, err)
		}
		polls++
		n := int(status.Rows(table)) //nolint:gosec // far from the limit
		if n != before && n != before+rows {
			return polls, at, fmt.Errorf("a reader saw %d rows, which are neither %d nor %d: the transaction showed in part", n, before, before+rows)
		}
		a, err := c.Get(ctx, ends)
		if err != nil {
			return polls, at, fmt.Errorf("poll %d: %w", polls, err)
		}
		var got struct {
			Rows []json.RawMessage `json:"rows"`
		}
		if err := json.Unmarshal(a.Body, &got); err != nil {
			return polls, at, err
		}
		first, last := string(got.Rows[0]) != "null", string(got.Rows[1]) != "null"
		if first != last || n > before && !first {
			return polls, at, fmt.Errorf("a reader saw one end of the transaction (first %v, last %v) behind a count of %d", first, last, n)
		}
		if n == before+rows {
			return polls, at, nil
		}
		harness.Pass(ctx, readPause)
	}
}
