package wal

import (
	"bytes"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/pgtest"
)

// BenchmarkBacklog receives and decodes a backlog of pgbench-like rows, reading
// in gulps and reading at once. MILLRACE_BENCH_ROWS sets its size.
func BenchmarkBacklog(b *testing.B) {
	rows := benchSize(b, "MILLRACE_BENCH_ROWS", 200_000)
	db := pgtest.New(b)
	db.Exec("create table a (aid int primary key, bid int, abalance int, filler char(84))")
	r := newRig(b, db, nil, "a")
	r.open()
	r.copied()
	r.close()
	n := strconv.Itoa(rows)
	db.Exec("insert into a select i, 1, 0, '' from generate_series(1, " + n + ") i")
	r.db.Exec("select pg_logical_emit_message(true, 'test', 'end')")
	for _, way := range []struct {
		name   string
		gather func(net.Conn, time.Duration, int)
	}{
		{"gulps", gather},
		{"eager", func(net.Conn, time.Duration, int) {}},
	} {
		b.Run(way.name, func(b *testing.B) {
			r.c.gather = way.gather
			b.ReportAllocs()
			cpu := processCPU(b)
			var sender time.Duration
			for range b.N {
				r.open()
				pid := db.String("select active_pid from pg_replication_slots where slot_name = $1", r.cfg.Slot)
				drain(b, r)
				sender += otherCPU(pid)
				r.close()
			}
			b.ReportMetric(sender.Seconds()/float64(b.N), "walsender-cpu-s/op")
			b.ReportMetric(float64(rows)*float64(b.N)/b.Elapsed().Seconds(), "rows/s")
			b.ReportMetric((processCPU(b)-cpu).Seconds()/float64(b.N), "cpu-s/op")
		})
	}
}

// benchSize is the number that the environment variable name has, or otherwise.
func benchSize(b *testing.B, name string, otherwise int) int {
	b.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		b.Fatalf("%s: %v", name, err)
	}
	return n
}

// drain takes units up to a logical message.
func drain(b *testing.B, r *rig) {
	for {
		u, err := r.src.Next(r.ctx())
		if err != nil {
			b.Fatal(err)
		}
		var last []byte
		for {
			run, err := u.Body.Next(1 << 20)
			if err != nil {
				break
			}
			last = append(last[:0], run[:min(len(run), 64)]...)
		}
		if err := u.Body.Close(); err != nil {
			b.Fatal(err)
		}
		var h millrace.Head
		if u.Entries == 1 {
			if _, err := millrace.NextHead(last, &h); err == nil && h.Kind == millrace.KindMessage {
				return
			}
		}
	}
}

func processCPU(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// otherCPU is what another process has used, as far as the system tells.
func otherCPU(pid string) time.Duration {
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	var ticks time.Duration
	for _, f := range fields[11:13] { // utime, stime in hundredths of a second
		n, _ := strconv.Atoi(f)
		ticks += time.Duration(n)
	}
	return ticks * 10 * time.Millisecond
}
