package benchmarks

import (
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// BenchmarkHeldOpen measures what a transaction that is held open costs the
// others: the delay of rows that are committed beside it, against that of rows
// committed before and after it, in the same system. Its own rows must not come
// before its commit, and must then.
//
// -held says how long it is open.
func BenchmarkHeldOpen(b *testing.B) {
	for b.Loop() {
		heldOpen(b)
	}
}

func heldOpen(b *testing.B) {
	const (
		own    = 500_000 // its rows' ids begin here
		spread = 50.0    // milliseconds that two runs may differ by on a machine with other work
	)
	s, e := newSystem(b, 1000)
	t := s.StartTransfer()
	e.Start()
	ctx := b.Context()
	if _, err := awaitRow(ctx, e, 1000, copyLimit); err != nil {
		b.Fatal(err)
	}
	n := *heldFlag * commitRate
	before := commits(b, s, e, 1_000_000, n/2)

	conn, err := pgx.Connect(ctx, s.SourceURL)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = conn.Close(ctx) }() // nothing is lost with it
	open, err := conn.Begin(ctx)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := open.Exec(ctx, `INSERT INTO bench SELECT i, 1, 'held back' FROM generate_series($1::int, $1 + 999) i`, own); err != nil {
		b.Fatal(err)
	}
	began := time.Now()
	beside := commits(b, s, e, 2_000_000, n)
	if _, err := e.Row(ctx, table, "500000"); err == nil {
		b.Fatal("a row of the open transaction is at the edge")
	}
	if err := open.Commit(ctx); err != nil {
		b.Fatal(err)
	}
	held, committed := time.Since(began), time.Now()
	seen, err := awaitRow(ctx, e, own+999, copyLimit)
	if err != nil {
		b.Fatal(err)
	}
	after := commits(b, s, e, 3_000_000, n/2)

	without := delays{fromAck: append(before.fromAck, after.fromAck...), fromSend: append(before.fromSend, after.fromSend...)}
	slices.Sort(without.fromAck)
	slices.Sort(without.fromSend)
	with99, without99 := milliseconds(quantile(beside.fromAck, 0.99)), milliseconds(quantile(without.fromAck, 0.99))
	if with99 > 2*without99+spread {
		b.Errorf("beside a transaction held open for %s, 99 of 100 rows come within %.1f ms, without it within %.1f", held, with99, without99)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(with99, "p99-ms")
	b.ReportMetric(without99, "p99-ms-without")
	b.ReportMetric(with99/without99, "ratio")
	for what, took := range map[string]delays{"beside a transaction held open": beside, "without it, before and after": without} {
		figure := took.figure()
		figure["what"], figure["capture"] = "commit acknowledged to visible, "+what, s.Mode()
		figure["held_seconds"], figure["own_rows_ms"] = held.Seconds(), milliseconds(seen.Sub(committed))
		record(b, figure)
	}
	t.Stop(stopLimit)
	e.Stop(stopLimit)
}
