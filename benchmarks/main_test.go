// Package benchmarks measures millrace end to end, as processes over real
// Postgres and real Kafka, beside what the servers themselves can do over the
// same data in the same run. `make bench` runs it.
//
// Each benchmark prints its figures as one JSON line a measurement, to standard
// output or to the file that -figures names, beside Go's own benchmark line.
package benchmarks

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/millrace-db/millrace/tests/harness"
)

//nolint:gochecknoglobals // flags of the test binary
var (
	figuresFlag = flag.String("figures", "", "append the figures to this file, not to standard output")
	changesFlag = flag.Int("changes", 1_000_000, "changes of the throughput benchmarks, rows of the restart benchmark")
	roundsFlag  = flag.Int("rounds", 3, "interleaved rounds of the throughput benchmark")
	largeFlag   = flag.Int("large", 10_000_000, "rows of the large transaction")
	copyFlag    = flag.Int("copy", 1_000_000, "rows of the first copy")
	secondsFlag = flag.Int("seconds", 30, "length of the latency benchmark")
	heldFlag    = flag.Int("held", 120, "for how many seconds a transaction is held open")
	turnsFlag   = flag.Int("turns", 30, "how many segments of a log are written in the rotation benchmark")
	turnFlag    = flag.Float64("turn", 1, "length of a turn of the overhead benchmark, times the usual")
	allFlag     = flag.Bool("all", false, "8 clients and rows of 2 KB in the overhead benchmark too")
)

func TestMain(m *testing.M) { harness.Main(m) }

// record writes one figure with what it was measured on.
func record(b *testing.B, figure map[string]any) {
	b.Helper()
	figure["benchmark"] = b.Name()
	figure["cores"] = runtime.NumCPU()
	figure["at"] = time.Now().UTC().Format(time.RFC3339)
	line, err := json.Marshal(figure)
	if err != nil {
		b.Fatal(err)
	}
	if *figuresFlag == "" {
		fmt.Println(string(line))
		return
	}
	f, err := os.OpenFile(*figuresFlag, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644) //nolint:gosec // for anybody to read
	if err != nil {
		b.Fatal(err)
	}
	_, err = f.Write(append(line, '\n'))
	if err := errors.Join(err, f.Close()); err != nil {
		b.Fatal(err)
	}
}

// quantile returns the value below which the share q of sorted values lie.
func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}
