package benchmarks

import (
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/millrace-db/millrace/internal/pgtest"
	"github.com/millrace-db/millrace/tests/harness"
)

// BenchmarkCaptures takes one backlog of -changes changes of rows of about 100 B,
// captured both ways, again and again: the window over the log of keys beside the
// decoding of the same changes. Units are encoded and thrown away. Five of six
// changes are inserts, in statements of 10,000; the others update what was inserted,
// so by its keys the backlog is a sixth smaller than by its changes.
func BenchmarkCaptures(b *testing.B) {
	for b.Loop() {
		captures(b)
	}
}

func captures(b *testing.B) {
	server := pgtest.Cluster(b, pgtest.Options{FSync: true, Settings: map[string]string{
		"max_wal_size": "8GB", "checkpoint_timeout": "1h", "shared_buffers": "512MB", "autovacuum": "off",
	}})
	db := pgtest.On(b, server)
	db.Exec(`CREATE TABLE bench (id bigint PRIMARY KEY, n int NOT NULL, note text NOT NULL)`)
	const heartbeat = time.Second
	takers := []*taker{newTaker(b, db, harness.CaptureWAL, heartbeat, table), newTaker(b, db, harness.CaptureTrigger, heartbeat, table)}
	for _, t := range takers {
		t.begin()
		t.close()
	}
	keys := *changesFlag * 5 / 6 / 10_000 * 10_000
	changes := uint64(keys)
	for at := 0; at < keys; at += 10_000 {
		db.Exec("INSERT INTO bench " + fmt.Sprintf(rowsOf, fmt.Sprint(at), fmt.Sprint(at), 10_000))
		if at%50_000 == 0 {
			db.Exec(fmt.Sprintf(`UPDATE bench SET n = n + 1 WHERE id > %d AND id <= %d`, at, at+10_000))
			changes += 10_000
		}
	}
	db.Exec(`ANALYZE bench`)
	db.Exec(`CHECKPOINT`)
	wanted := []uint64{changes, uint64(keys)}
	var seconds, cpu, serverCPU [2][]float64
	var ratios []float64
	for round := range *roundsFlag {
		for _, way := range []int{round % 2, 1 - round%2} {
			t := takers[way]
			ownBefore, serverBefore, began := ownCPU(b), harness.TreeCPUOf(server.PID()), time.Now()
			t.start()
			for got := uint64(0); got < wanted[way]; {
				u := t.next()
				if err := take(u); err != nil {
					b.Fatal(err)
				}
				if u.Entries > 1 { // a heartbeat is one
					got += u.Entries
				}
			}
			seconds[way] = append(seconds[way], time.Since(began).Seconds())
			cpu[way] = append(cpu[way], ownCPU(b)-ownBefore)
			t.close()
			serverCPU[way] = append(serverCPU[way], harness.TreeCPUOf(server.PID())-serverBefore)
		}
		ratios = append(ratios, seconds[0][round]/seconds[1][round])
	}
	for way, name := range []string{"WAL", "triggers"} {
		record(b, map[string]any{
			"what": "capture of one backlog", "way": name, "changes": changes, "keys": keys, "rounds": *roundsFlag,
			"changes_per_second": float64(changes) / median(seconds[way]), "keys_per_second": float64(keys) / median(seconds[way]),
			"seconds": seconds[way], "cpu_seconds": median(cpu[way]), "server_cpu_seconds": median(serverCPU[way]),
		})
		b.ReportMetric(float64(changes)/median(seconds[way]), name+"-changes/s")
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median(ratios), "ratio")
	record(b, map[string]any{
		"what": "rate by triggers to that by WAL, of the same changes", "rounds": *roundsFlag,
		"ratio": []float64{round(slices.Min(ratios)), round(median(ratios)), round(slices.Max(ratios))},
	})
}

// ownCPU is the processor time of this process, in seconds.
func ownCPU(b *testing.B) float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds()
}
