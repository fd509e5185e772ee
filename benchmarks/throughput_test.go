package benchmarks

import (
	"context"
	"fmt"
	"os/exec"
	"testing"
	"time"

	"github.com/millrace-db/millrace/tests/harness"
)

const (
	// backlogLimit bounds the work on one backlog, backlogMemory what transfer may
	// hold meanwhile.
	backlogLimit  = 10 * time.Minute
	backlogMemory = 150 << 20
)

// load is a kind of backlog.
type load struct {
	name string
	// share of -changes that it has: a commit costs the source more than a change.
	share int
	// size is that of its transactions, in rows.
	size int
	// one is what a transaction does to the rows behind $1.
	one string
}

const rowsOf = `SELECT i, i %% 1000, 'note of row ' || i || ' and some more text to make it a row of about 100 bytes' FROM generate_series(%s + 1, %s + %d) i`

func loads() []load {
	inserts := func(size int) string { return fmt.Sprintf("INSERT INTO bench "+rowsOf, "at", "at", size) }
	return []load{
		{"inserts in transactions of 1000", 1, 1000, inserts(1000)},
		{"updates in transactions of 100", 5, 100, "UPDATE bench SET n = n + 1 WHERE id > at AND id <= at + 100"},
		{"inserts in transactions of 1", 5, 1, inserts(1)},
	}
}

// BenchmarkThroughput takes a backlog of changes from the source to the edge,
// beside pg_recvlogical writing the same backlog, decoded by the same plugin
// for the same publication, to /dev/null. The rounds are interleaved, each with
// a new backlog that both take, in alternating order.
func BenchmarkThroughput(b *testing.B) {
	for _, l := range loads() {
		b.Run(l.name, func(b *testing.B) {
			for b.Loop() {
				throughput(b, l)
			}
		})
	}
}

func throughput(b *testing.B, l load) {
	changes, updates := *changesFlag/l.share, l.name[0] == 'u'
	before := 0
	if updates {
		before = changes
	}
	s, e := newSystem(b, before)
	t := s.StartTransfer()
	e.Start()
	s.DB.Exec(`INSERT INTO bench VALUES (-1, 0, 'first')`)
	if _, err := awaitRow(b.Context(), e, -1, copyLimit); err != nil {
		b.Fatal(err)
	}
	t.Stop(stopLimit)
	var ours, theirs, ratios []float64
	for round := range *roundsFlag {
		slot := fmt.Sprintf("recv_%d", round)
		s.DB.Exec(fmt.Sprintf(`SELECT pg_create_logical_replication_slot('%s', 'pgoutput')`, slot))
		from := round * changes
		if updates {
			from = 0
		}
		last := -2 - round
		backlog(s, l, from, changes, last)
		var r, m float64
		steps := []func(){
			func() { r = recvlogical(b, s, slot, l, changes) },
			func() { m = millrace(b, s, e, last, l, changes) },
		}
		steps[round%2]()
		steps[1-round%2]()
		s.DB.Exec(fmt.Sprintf(`SELECT pg_drop_replication_slot('%s')`, slot))
		ours, theirs, ratios = append(ours, m), append(theirs, r), append(ratios, m/r)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median(ours), "changes/s")
	b.ReportMetric(median(theirs), "pg_recvlogical-changes/s")
	b.ReportMetric(median(ratios), "ratio")
	record(b, map[string]any{
		"what": "ratio of millrace to pg_recvlogical, median of rounds", "load": l.name, "changes": changes, "rounds": *roundsFlag,
		"millrace_changes_per_second": median(ours), "pg_recvlogical_changes_per_second": median(theirs), "ratio": median(ratios),
	})
	e.Stop(stopLimit)
}

// backlog commits changes, and then a row with the given ID.
func backlog(s *harness.System, l load, from, changes, last int) {
	s.DB.Exec(fmt.Sprintf(`DO $$
DECLARE at bigint := %d;
BEGIN
  PERFORM set_config('synchronous_commit', 'off', false);
  WHILE at < %d LOOP
    %s;
    COMMIT;
    at := at + %d;
  END LOOP;
END $$`, from, from+changes, l.one, l.size))
	s.DB.Exec(fmt.Sprintf(`INSERT INTO bench VALUES (%d, 0, 'last')`, last))
}

// recvlogical returns changes a second of pg_recvlogical, from the start of its
// process to its end behind the last change.
func recvlogical(b *testing.B, s *harness.System, slot string, l load, changes int) float64 {
	b.Helper()
	path, err := s.DB.Server.Binaries().Program("pg_recvlogical")
	if err != nil {
		b.Fatal(err)
	}
	end := s.DB.String(`SELECT pg_current_wal_insert_lsn()`)
	// It ends at the first thing that it gets at or behind the end.
	s.DB.Exec(`SELECT pg_logical_emit_message(false, 'bench', '')`)
	ctx, cancel := context.WithTimeout(b.Context(), backlogLimit)
	defer cancel()
	began := time.Now()
	cmd := exec.CommandContext(ctx, path, "-d", s.DB.URL, "--slot", slot, "--start", "--endpos", end, "-f", "/dev/null",
		"-o", "proto_version=2", "-o", "streaming=on", "-o", "publication_names=millrace_"+s.Stream)
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("pg_recvlogical: %v: %s", err, out)
	}
	took := time.Since(began)
	rate := float64(changes) / took.Seconds()
	record(b, map[string]any{
		"what": "pg_recvlogical to /dev/null", "load": l.name, "changes": changes, "seconds": took.Seconds(), "changes_per_second": rate,
		"client_cpu_seconds": (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds(),
	})
	return rate
}

// millrace returns changes a second of transfer and edge together, from the
// start of transfer's process to the moment when the last row is read at the
// edge, which runs and has applied all that was before.
func millrace(b *testing.B, s *harness.System, e *harness.Edge, last int, l load, changes int) float64 {
	b.Helper()
	edgeBefore, kafkaBefore := e.CPU(), harness.CPUOf(s.Kafka.PID(0))
	began := time.Now()
	t := s.StartTransfer()
	at, err := awaitRow(b.Context(), e, last, backlogLimit)
	if err != nil {
		b.Fatal(err)
	}
	took := at.Sub(began)
	rate := float64(changes) / took.Seconds()
	record(b, map[string]any{
		"what": "backlog to edge", "load": l.name, "changes": changes, "seconds": took.Seconds(), "changes_per_second": rate,
		"transfer_cpu_seconds": t.CPU(), "edge_cpu_seconds": e.CPU() - edgeBefore,
		"kafka_cpu_seconds": harness.CPUOf(s.Kafka.PID(0)) - kafkaBefore,
		"transfer_rss_mib":  t.MaxRSS() >> 20, "edge_rss_mib": e.MaxRSS() >> 20,
	})
	if rss := t.MaxRSS(); rss >= backlogMemory {
		b.Errorf("transfer held %d MiB, the bound is %d", rss>>20, backlogMemory>>20)
	}
	// The slot moves on before the next round: what is confirmed is not sent
	// again.
	harness.Until(b, stopLimit, "the backlog is confirmed", func(context.Context) error {
		behind := s.DB.String(`SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn) < 1000000 FROM pg_replication_slots WHERE slot_name = $1`, "millrace_"+s.Stream)
		if behind != "t" {
			return harness.NotYet("the slot is behind")
		}
		return nil
	})
	t.Stop(stopLimit)
	return rate
}
