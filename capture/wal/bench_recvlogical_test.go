package wal

import (
	"context"
	"fmt"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/millrace-db/millrace/internal/pgtest"
)

// BenchmarkBesideRecvlogical takes one backlog again and again: capture decodes
// it into units that are thrown away, and pg_recvlogical writes it to /dev/null,
// in turns, each the first in every other round. MILLRACE_BENCH_ROWS is the
// number of inserted rows (1,000,000), a fifth of it that of the updates;
// MILLRACE_BENCH_ROUNDS that of the rounds (5).
func BenchmarkBesideRecvlogical(b *testing.B) {
	rows := benchSize(b, "MILLRACE_BENCH_ROWS", 1_000_000)
	for _, load := range []struct {
		name        string
		changes     int
		size        int // of a transaction
		before, one string
	}{
		{
			"inserts in transactions of 10000", rows, 10_000, "",
			"INSERT INTO a SELECT i, i % 100, 0, 'note of row ' || i || ' and some more text to make it a row of about 100 bytes' FROM generate_series($1 + 1, $1 + 10000) i",
		},
		{
			"updates in transactions of 100", rows / 5, 100,
			fmt.Sprintf("INSERT INTO a SELECT i, i %% 100, 0, 'note of row ' || i || ' and some more text to make it a row of about 100 bytes' FROM generate_series(1, %d) i", rows/5),
			"UPDATE a SET abalance = abalance + 1 WHERE aid BETWEEN $1 + 1 AND $1 + 100",
		},
	} {
		b.Run(load.name, func(b *testing.B) {
			db := pgtest.New(b)
			db.Exec("CREATE TABLE a (aid int PRIMARY KEY, bid int, abalance int, filler text)")
			if load.before != "" {
				db.Exec(load.before + "; ANALYZE a")
			}
			r := newRig(b, db, nil, "a")
			r.open()
			r.copied()
			r.close()
			db.Exec(fmt.Sprintf("SELECT pg_create_logical_replication_slot('recv_%s', 'pgoutput')", r.cfg.Slot))
			db.Exec(fmt.Sprintf(`DO $do$
				DECLARE at int := 0;
				BEGIN
					PERFORM set_config('synchronous_commit', 'off', false);
					WHILE at < %d LOOP
						EXECUTE $$%s$$ USING at;
						COMMIT;
						at := at + %d;
					END LOOP;
				END $do$`, load.changes, load.one, load.size))
			end := db.String("SELECT pg_current_wal_insert_lsn()")
			db.Exec("SELECT pg_logical_emit_message(true, 'test', 'end'); CHECKPOINT")
			b.ReportAllocs()
			for b.Loop() {
				besideRecvlogical(b, r, end, load.changes)
			}
		})
	}
}

func besideRecvlogical(b *testing.B, r *rig, end string, changes int) {
	var ours, theirs, ratios []float64
	var sender, senderTheirs, cpu, opening []float64
	for round := range benchSize(b, "MILLRACE_BENCH_ROUNDS", 5) {
		var m, t float64
		steps := []func(){
			func() {
				before := processCPU(b)
				began := time.Now()
				r.open()
				opening = append(opening, time.Since(began).Seconds())
				pid := r.db.String("SELECT active_pid FROM pg_replication_slots WHERE slot_name = $1", r.cfg.Slot)
				drain(b, r)
				m = float64(changes) / time.Since(began).Seconds()
				sender = append(sender, otherCPU(pid).Seconds())
				cpu = append(cpu, (processCPU(b) - before).Seconds())
				r.close()
			},
			func() {
				var c time.Duration
				t, c = recvlogical(b, r, end, changes)
				senderTheirs = append(senderTheirs, c.Seconds())
			},
		}
		steps[round%2]()
		steps[1-round%2]()
		ours, theirs, ratios = append(ours, m), append(theirs, t), append(ratios, m/t)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(middle(ours), "rows/s")
	b.ReportMetric(middle(theirs), "pg_recvlogical-rows/s")
	b.ReportMetric(middle(ratios), "ratio")
	b.ReportMetric(slices.Min(ratios), "least-ratio")
	b.ReportMetric(slices.Max(ratios), "greatest-ratio")
	b.ReportMetric(middle(sender), "walsender-cpu-s")
	b.ReportMetric(middle(senderTheirs), "pg_recvlogical-walsender-cpu-s")
	b.ReportMetric(middle(cpu), "cpu-s")
	b.ReportMetric(middle(opening), "open-s") // a part of the time
}

// recvlogical returns changes a second of pg_recvlogical over the backlog, from
// a copy of a slot that stands before it, and what the walsender used for it.
func recvlogical(b *testing.B, r *rig, end string, changes int) (float64, time.Duration) {
	b.Helper()
	path, err := r.db.Server.Binaries().Program("pg_recvlogical")
	if err != nil {
		b.Fatal(err)
	}
	slot := "round_" + r.cfg.Slot
	r.db.Exec(fmt.Sprintf("SELECT pg_copy_logical_replication_slot('recv_%s', '%s')", r.cfg.Slot, slot))
	ctx, cancel := context.WithTimeout(b.Context(), 10*time.Minute)
	defer cancel()
	began := time.Now()
	cmd := exec.CommandContext(ctx, path, "-d", r.db.URL, "--slot", slot, "--start", "--endpos", end, "-f", "/dev/null",
		"-o", "proto_version=2", "-o", "streaming=on", "-o", "messages=true", "-o", "publication_names="+r.c.cfg.Publication)
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	var sender time.Duration
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	for pid := ""; ; {
		select {
		case err := <-done:
			if err != nil {
				b.Fatalf("pg_recvlogical: %v", err)
			}
			rate := float64(changes) / time.Since(began).Seconds()
			r.db.Exec(fmt.Sprintf("SELECT pg_drop_replication_slot('%s')", slot))
			return rate, sender
		case <-time.After(20 * time.Millisecond):
			if pid == "" {
				pid = r.db.String("SELECT active_pid FROM pg_replication_slots WHERE slot_name = $1", slot)
			}
			if pid != "" {
				sender = max(sender, otherCPU(pid))
			}
		}
	}
}

func middle(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}
