// Package migrate measures migrations between two real clusters with fsync on, beside
// what people use otherwise, over the same rows and changes in the same run:
// pgcopydb for the copy, the apply worker of logical replication for changes; and how
// long clients are held when writers go over and come back. `make migrations` runs it.
//
// What is compared takes turns, and who begins changes from round to round: on a
// machine that others use too, the ratios say most.
package migrate

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture/table"
	"github.com/millrace-db/millrace/internal/pgserver"
	"github.com/millrace-db/millrace/internal/pgtest"
	"github.com/millrace-db/millrace/internal/testdir"
	"github.com/millrace-db/millrace/migrations"
)

//nolint:gochecknoglobals // flags of the test binary, and its clusters
var (
	rowsFlag    = flag.Int("rows", 300_000, "rows that are copied, in four tables")
	plainFlag   = flag.Bool("plain", true, "copy without checksums too")
	roundsFlag  = flag.Int("rounds", 3, "rounds, what is compared by turns")
	changesFlag = flag.Int("changes", 100_000, "changes of a round of the benchmark that applies them")
	movesFlag   = flag.Int("moves", 3, "how often writers go over, and how often they come back")
	rateFlag    = flag.Int("rate", 1000, "writes a second while writers go over")
	clientsFlag = flag.Int("clients", 16, "clients that make them")
	budgetFlag  = flag.Duration("budget", 2*time.Second, "pause budget")
	captureFlag = flag.String("capture", "wal", "how changes are captured: wal or trigger, at both sides")
	versionFlag = flag.String("to", "15,17", "versions of the target, between commas; the source is a Postgres 15")

	servers = map[string]*pgserver.Server{}
	dirs    []string
)

// limit bounds every wait.
const limit = 10 * time.Minute

func TestMain(m *testing.M) {
	pgtest.Main(m, func() error {
		var failed error
		for _, s := range servers {
			failed = errors.Join(failed, s.Quit())
		}
		for _, dir := range dirs {
			failed = errors.Join(failed, os.RemoveAll(dir))
		}
		return failed
	})
}

// server returns a cluster of a version, with fsync on.
func server(b *testing.B, name string, version int) *pgserver.Server {
	b.Helper()
	name = fmt.Sprint(name, version)
	if s := servers[name]; s != nil {
		return s
	}
	dir, err := testdir.New()
	must(b, "make a directory", err)
	binaries, err := pgserver.Find(b.Context(), version, pgserver.AllowFetch(""))
	must(b, "find Postgres", err)
	s, err := pgserver.Start(b.Context(), pgserver.Config{Dir: dir + "/data", Binaries: binaries, FSync: true, Settings: map[string]string{
		"shared_buffers": "256MB", "max_wal_size": "4GB", "maintenance_work_mem": "256MB", "max_worker_processes": "16",
	}})
	must(b, "start Postgres", err)
	servers[name], dirs = s, append(dirs, dir)
	return s
}

// targets are the versions of -to.
func targets(b *testing.B) []int {
	b.Helper()
	var all []int
	for text := range strings.SplitSeq(*versionFlag, ",") {
		n, err := strconv.Atoi(text)
		must(b, "-to", err)
		all = append(all, n)
	}
	return all
}

// migration makes one of tables of schema public, with the defaults of a migration file.
func migration(b *testing.B, name string, src, dst *pgtest.DB, noChecksums bool, tables ...string) *migrations.Migration {
	b.Helper()
	cfg := migrations.Config{Name: name, SourceURL: src.URL, TargetURL: dst.URL, SpoolDir: b.TempDir(), PauseBudget: *budgetFlag, NoChecksums: noChecksums}
	if *captureFlag == "trigger" {
		cfg.Capture, cfg.TargetCapture = millrace.ModeTrigger, millrace.ModeTrigger
	}
	for _, t := range tables {
		at := table.Name{Schema: "public", Name: t}
		cfg.Tables = append(cfg.Tables, migrations.Table{From: at, To: at})
	}
	m, err := migrations.New(cfg)
	must(b, "configure", err)
	return m
}

func must(b *testing.B, what string, err error) {
	b.Helper()
	if err != nil {
		b.Fatalf("%s: %v", what, err)
	}
}

// await waits until ok says so, asking every few milliseconds.
func await(b *testing.B, what string, ok func() bool) {
	b.Helper()
	deadline := time.Now().Add(limit)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(deadline) {
			b.Fatalf("waited %v for %s", limit, what)
		}
		<-tick.C
	}
}

// same wants tables to have the same rows on both sides.
func same(b *testing.B, src, dst *pgtest.DB, tables ...string) {
	b.Helper()
	for _, t := range tables {
		sql := "SELECT count(*) || ' ' || coalesce(sum(hashtextextended(x::text, 0)::numeric), 0) FROM " + t + " x"
		if got, want := dst.String(sql), src.String(sql); got != want {
			b.Fatalf("table %s: rows and sum are %s at the target, %s at the source", t, got, want)
		}
	}
}

// following runs Follow until it is stopped.
func following(b *testing.B, m *migrations.Migration) (stop func()) {
	b.Helper()
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error, 1)
	go func() { done <- m.Follow(ctx, migrations.Forever) }()
	return func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) && ctx.Err() == nil {
			b.Fatalf("follow: %v", err)
		}
	}
}

// simple runs statements that have no parameters, each by itself.
func simple(b *testing.B, pool *pgxpool.Pool, statements ...string) {
	b.Helper()
	for _, s := range statements {
		_, err := pool.Exec(b.Context(), s, pgx.QueryExecModeSimpleProtocol)
		must(b, s[:min(len(s), 80)], err)
	}
}

// figure writes one measurement with what it was measured on.
func figure(b *testing.B, values map[string]any) {
	b.Helper()
	load, err := os.ReadFile("/proc/loadavg")
	must(b, "read the load", err)
	values["benchmark"], values["cores"], values["load"] = b.Name(), runtime.NumCPU(), strings.Join(strings.Fields(string(load))[:3], " ")
	values["at"] = time.Now().UTC().Format(time.RFC3339)
	line, err := json.Marshal(values)
	must(b, "write a figure", err)
	fmt.Println(string(line))
}

func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	return slices.Sorted(slices.Values(values))[len(values)/2]
}

// quantile returns the value below which the share q of values lie.
func quantile(values []time.Duration, q float64) time.Duration {
	if len(values) == 0 {
		return 0
	}
	return slices.Sorted(slices.Values(values))[min(int(q*float64(len(values))), len(values)-1)]
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
