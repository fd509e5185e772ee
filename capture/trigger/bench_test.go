package trigger

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/millrace-db/millrace/internal/pgtest"
)

var backlog = flag.Int("backlog", 1_000_000, "keys in the backlog of BenchmarkBacklog")

// BenchmarkBacklog reads and encodes a backlog of logged keys: rows of about 100 B,
// inserted in statements of 10,000, of which every fifth was updated since.
func BenchmarkBacklog(b *testing.B) {
	db := pgtest.On(b, pgtest.Cluster(b, pgtest.Options{Settings: map[string]string{"shared_buffers": "512MB", "max_wal_size": "8GB"}}))
	db.Exec("create table a (id bigint primary key, grp int, at timestamptz default now(), v text)")
	r := newRig(b, db, nil, "a")
	r.begin()
	n := *backlog
	for i := 0; i < n; i += 10_000 {
		db.Exec(fmt.Sprintf("insert into a select i, i %% 100, now(), repeat(md5(i::text), 2) from generate_series(%d, %d) i", i+1, i+10_000))
	}
	db.Exec("update a set grp = grp + 1 where id % 5 = 0")
	db.Exec("checkpoint")
	from := r.edge.at
	for b.Loop() {
		r.close()
		r.edge.at = from
		r.open()
		before, begun := cpu(b), time.Now()
		server := backendCPU(b, db)
		u, err := r.src.Next(r.ctx())
		if err != nil {
			b.Fatal(err)
		}
		first := time.Since(begun)
		bytes, runs := 0, 0
		for {
			run, err := u.Body.Next(1 << 20)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				b.Fatal(err)
			}
			bytes += len(run)
			runs++
		}
		if err := u.Body.Close(); err != nil {
			b.Fatal(err)
		}
		took := time.Since(begun)
		if u.Entries != uint64(n) {
			b.Fatalf("%d entries, want %d", u.Entries, n)
		}
		b.ReportMetric(float64(n)/took.Seconds(), "keys/s")
		b.ReportMetric(first.Seconds(), "s_to_first")
		b.ReportMetric((cpu(b) - before).Seconds(), "cpu_s")
		b.ReportMetric((backendCPU(b, db) - server).Seconds(), "server_cpu_s")
		b.ReportMetric(float64(bytes)/float64(n), "B/key")
	}
}

// BenchmarkIdle measures what a capture costs while nothing comes, on both sides:
// with a heartbeat a second, and by its polls alone.
func BenchmarkIdle(b *testing.B) {
	for _, heartbeat := range []time.Duration{time.Second, time.Hour} {
		b.Run(heartbeat.String(), func(b *testing.B) {
			db := pgtest.New(b)
			db.Exec("create table a (id bigint primary key, v text); create table c (id bigint primary key, v text); create table d (id bigint primary key, v text)")
			r := newRig(b, db, func(c *Config) { c.Heartbeat = heartbeat }, "a", "c", "d")
			r.begin()
			for b.Loop() {
				polls := r.src.polls.n
				before, server, begun := cpu(b), backendCPU(b, db), time.Now()
				for time.Since(begun) < 10*time.Second {
					ctx, cancel := context.WithDeadline(b.Context(), begun.Add(10*time.Second))
					if _, err := r.src.Next(ctx); err != nil && ctx.Err() == nil {
						b.Fatal(err)
					}
					cancel()
				}
				took := time.Since(begun)
				b.ReportMetric(100*(cpu(b)-before).Seconds()/took.Seconds(), "%core")
				b.ReportMetric(100*(backendCPU(b, db)-server).Seconds()/took.Seconds(), "%server_core")
				b.ReportMetric(float64(r.src.polls.n-polls)/took.Seconds(), "polls/s")
			}
		})
	}
}

// cpu is the processor time of this process.
func cpu(t testing.TB) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// backendCPU is that of the server processes of captures.
func backendCPU(t testing.TB, db *pgtest.DB) time.Duration {
	var ticks int64
	for pid := range strings.FieldsSeq(db.String("select string_agg(pid::text, ' ') from pg_stat_activity where application_name = 'millrace' and datname = current_database()")) {
		stat, err := os.ReadFile("/proc/" + pid + "/stat")
		if err != nil {
			t.Fatal(err)
		}
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		for _, f := range fields[11:13] { // utime and stime, in hundredths of a second
			n, err := strconv.ParseInt(f, 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			ticks += n
		}
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}
