package benchmarks

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/millrace-db/millrace/internal/pgtest"
	"github.com/millrace-db/millrace/tests/harness"
)

// BenchmarkIdle measures what capture by triggers uses while nobody writes, of a
// core, over -seconds: the polls alone, and a whole transfer process with its
// heartbeat of a second.
func BenchmarkIdle(b *testing.B) {
	b.Run("polls", func(b *testing.B) {
		for b.Loop() {
			idlePolls(b)
		}
	})
	b.Run("transfer", func(b *testing.B) {
		for b.Loop() {
			idleTransfer(b)
		}
	})
}

// idle waits for -seconds and returns what the functions' processor time rose by, in
// parts of a core.
func idle(b *testing.B, wait func(time.Duration), of ...func() float64) []float64 {
	b.Helper()
	var before, share []float64
	for _, f := range of {
		before = append(before, f())
	}
	began := time.Now()
	wait(time.Duration(*secondsFlag) * time.Second)
	took := time.Since(began).Seconds()
	for i, f := range of {
		share = append(share, (f()-before[i])/took)
	}
	return share
}

func idlePolls(b *testing.B) {
	server := pgtest.Cluster(b, pgtest.Options{FSync: true})
	db := pgtest.On(b, server)
	db.Exec(`CREATE TABLE bench (id bigint PRIMARY KEY, note text); CREATE TABLE beside (id bigint PRIMARY KEY, note text)`)
	t := newTaker(b, db, harness.CaptureTrigger, time.Hour, table, "public.beside")
	t.begin()
	poll := func(d time.Duration) {
		ctx, cancel := context.WithTimeout(b.Context(), d)
		defer cancel()
		if _, err := t.src.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
			b.Fatalf("a poll of an idle source: got error %v, want none but the time's end", err)
		}
	}
	poll(2 * time.Second) // the pauses grow
	backend := func() float64 { return harness.CPUOf(backendOf(b, db)) }
	share := idle(b, poll, func() float64 { return ownCPU(b) }, backend)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(100*share[0], "%-of-a-core")
	b.ReportMetric(100*share[1], "%-of-a-core-at-the-server")
	record(b, map[string]any{
		"what": "polls of an idle source", "tables": 2, "seconds": *secondsFlag, "capture_percent": 100 * share[0], "server_percent": 100 * share[1],
	})
}

// backendOf is the server's process for the capture.
func backendOf(b *testing.B, db *pgtest.DB) int {
	b.Helper()
	var pid int
	err := db.Pool.QueryRow(b.Context(), `SELECT pid FROM pg_stat_activity WHERE application_name = 'millrace' AND datname = current_database()`).Scan(&pid)
	if err != nil {
		b.Fatal(err)
	}
	return pid
}

func idleTransfer(b *testing.B) {
	s, e := newSystemOf(b, 1000, harness.CaptureTrigger)
	wait := func(d time.Duration) { harness.Pass(b.Context(), d) }
	all := func() float64 { return harness.TreeCPUOf(s.DB.Server.PID()) }
	without := idle(b, wait, all)
	t := s.StartTransfer()
	e.Start()
	if _, err := awaitRow(b.Context(), e, 1000, copyLimit); err != nil {
		b.Fatal(err)
	}
	wait(2 * time.Second)
	with := idle(b, wait, t.CPU, all)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(100*with[0], "%-of-a-core")
	b.ReportMetric(100*(with[1]-without[0]), "%-of-a-core-at-the-server")
	record(b, map[string]any{
		"what": "transfer beside an idle source", "tables": 1, "seconds": *secondsFlag,
		"transfer_percent": 100 * with[0], "server_percent": 100 * (with[1] - without[0]), "server_alone_percent": 100 * without[0],
	})
	t.Stop(stopLimit)
	e.Stop(stopLimit)
}
