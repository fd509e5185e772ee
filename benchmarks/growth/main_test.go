// Package growth measures how a store bears growth, in one process, on a real disk:
// what applying, reading and the file cost as rows come, and what a unit and a load of
// as many rows do to memory and to those who read meanwhile. `make growth` runs it.
//
// What is measured takes turns with the same work over a small environment of LMDB that
// does not grow: on a machine that others use too, that tells their noise from growth.
// Processor time and bytes written say most, because others change them least.
package growth

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

//nolint:gochecknoglobals // flags of the test binary
var (
	rowsFlag      = flag.String("rows", "100000,300000,1000000", "sizes of the table at which is measured, ascending")
	keysFlag      = flag.String("keys", "sequential,random", "orders in which keys come")
	sortedFlag    = flag.Bool("sorted", false, "the rows between two sizes come in the order of their keys, which at random takes many times as long")
	putsFlag      = flag.Int("puts", 50_000, "puts of a round, in batches of 1,000")
	readsFlag     = flag.Int("reads", 100_000, "reads of a round")
	roundsFlag    = flag.Int("rounds", 3, "rounds at each size, what is compared by turns")
	largeFlag     = flag.Int("large", 1_000_000, "rows of the large unit and of the load")
	baseFlag      = flag.Int("base", 1_000_000, "rows that the store has before the large unit")
	rateFlag      = flag.Int("rate", 1_000, "live changes a second before the load, and while the rows of before it are removed")
	besideFlag    = flag.Int("beside", 100, "live changes after every 10,000 rows of the load")
	idleFlag      = flag.Float64("idle", 5, "seconds of reading an idle store before and after the large unit and the load")
	referenceFlag = flag.Int("reference", 100_000, "rows of the environment of LMDB alone beside which is measured, in the order of their keys; with that of -rows, what LMDB itself makes of the size")
	firstFlag     = flag.Bool("first", false, "what reads beside the large unit and the load runs before all other processes")
	dirFlag       = flag.String("dir", "", "directory of the stores, not of a file system in memory; default: one of the test's, which is removed")
)

// sizes returns the sizes of -rows.
func sizes(b *testing.B) []int {
	b.Helper()
	var all []int
	for s := range strings.SplitSeq(*rowsFlag, ",") {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 || len(all) > 0 && n <= all[len(all)-1] {
			b.Fatalf("-rows %s: want ascending numbers between commas", *rowsFlag)
		}
		all = append(all, n)
	}
	return all
}

// figure writes one measurement with what it was measured on.
func figure(b *testing.B, values map[string]any) {
	b.Helper()
	values["benchmark"], values["cores"], values["load"] = b.Name(), runtime.NumCPU(), load()
	values["at"] = time.Now().UTC().Format(time.RFC3339)
	line, err := json.Marshal(values)
	if err != nil {
		b.Fatal(err)
	}
	fmt.Println(string(line))
}

// storeDir makes a directory for a store, which is removed with all that is in it, and
// says what it lies on.
func storeDir(b *testing.B) string {
	b.Helper()
	parent := *dirFlag
	if parent == "" {
		parent = os.TempDir()
	}
	dir, err := os.MkdirTemp(parent, "growth")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			b.Error(err)
		}
	})
	kind, device, err := diskOf(dir)
	if err != nil {
		b.Fatal(err)
	}
	if kind == "tmpfs" || kind == "ramfs" {
		b.Fatalf("%s is kept in memory (%s), which tells nothing about a disk; mend: -dir", dir, kind)
	}
	fmt.Printf("%s: stores on %s (%s), load %s\n", b.Name(), device, kind, load())
	return dir
}

// quantile sorts values, and returns that below which the share q of them lie.
func quantile(values []time.Duration, q float64) time.Duration {
	if len(values) == 0 {
		return 0
	}
	slices.Sort(values)
	return values[min(int(q*float64(len(values))), len(values)-1)]
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 }

func mib(bytes int64) int64 { return bytes >> 20 }
