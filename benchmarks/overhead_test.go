package benchmarks

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"
)

// wide is the size of rows that mean something to the write-ahead log; narrow
// that of most.
const (
	narrow = 100
	wide   = 2000
)

// written is a load on the source whose cost is measured.
type written struct {
	// op is INSERT, UPDATE or DELETE of so many rows a statement, of so many
	// bytes each; or empty: pgbench's TPC-B-like transaction.
	op          string
	rows, width int
	clients     int
	// flushed says whether a commit waits for the disk, as it does by default.
	// Where it does not, nothing hides what a statement costs the processor.
	flushed bool
}

func (w written) String() string {
	commit := ""
	if !w.flushed {
		commit = ", synchronous_commit off"
	}
	clients := "1 client"
	if w.clients > 1 {
		clients = fmt.Sprint(w.clients, " clients")
	}
	if w.op == "" {
		return fmt.Sprintf("TPC-B, %s%s", clients, commit)
	}
	return fmt.Sprintf("%s of %d rows of %d B, %s%s", w.op, w.rows, w.width, clients, commit)
}

// statements is how many each client runs in a turn.
func (w written) statements() int {
	n := map[int]int{1: 1000, 100: 100, 10_000: 5}[w.rows]
	if w.op == "" {
		n = 600
	}
	if w.clients > 1 {
		n /= 4
	}
	if w.width == wide && w.rows > 1 {
		n /= 2
	}
	return max(1, int(float64(n)**turnFlag))
}

// turns is how many each way has. Short and many, because a machine with other work
// is another one a second later.
func turns() int { return 5 * *roundsFlag }

// writtenLoads are narrow rows and one client, or, of all, every combination.
func writtenLoads(all bool) []written {
	widths, clients := []int{narrow}, []int{1}
	if all {
		widths, clients = []int{narrow, wide}, []int{1, 8}
	}
	var loads []written
	for _, c := range clients {
		loads = append(loads, written{clients: c, flushed: true}, written{clients: c})
		for _, width := range widths {
			for _, op := range []string{"INSERT", "UPDATE", "DELETE"} {
				loads = append(loads,
					written{op, 1, width, c, true}, written{op, 1, width, c, false},
					written{op, 100, width, c, true}, written{op, 10_000, width, c, true})
			}
		}
	}
	return loads
}

// BenchmarkOverhead measures what capture costs those who write: the same load on
// the same machine in turns without capture, with a logical slot that is read,
// with triggers by statement and by row, and with the keys logged by hand.
//
// Each way has five times -rounds turns, in changing order; -turn makes each longer;
// -all adds 8 clients and rows of 2 KB. A ratio of times is that of two turns of one
// round; those of the log, of processor time and of the 99th percentile are over all
// turns.
func BenchmarkOverhead(b *testing.B) {
	for _, l := range writtenLoads(*allFlag) {
		b.Run(strings.ReplaceAll(l.String(), " ", "_"), func(b *testing.B) {
			for b.Loop() {
				overhead(b, l)
			}
		})
	}
}

// cost is what a load took in its turns.
type cost struct {
	perSecond []float64       // statements, or transactions of TPC-B, by turn
	mean      []float64       // milliseconds a statement, by turn
	times     []time.Duration // of all statements
	wal       float64         // bytes
	cpu       float64         // of the server, seconds
}

func overhead(b *testing.B, l written) {
	rigs := newRigs(b, l)
	for turn := range turns() {
		order := make([]int, len(rigs))
		for i := range order {
			order[i] = (i + turn) % len(rigs)
		}
		if turn%2 == 1 {
			slices.Reverse(order)
		}
		for _, i := range order {
			rigs[i].turn(b, l)
		}
	}
	b.ReportMetric(0, "ns/op")
	base := &rigs[0].cost
	for _, r := range rigs {
		r.detach()
		c := &r.cost
		n := float64(len(c.times))
		figure := map[string]any{
			"what": "cost to writers", "load": l.String(), "way": r.way, "turns": turns(), "statements": len(c.times),
			"time_ms": median(c.mean), "time_ratio": ratios(c.mean, base.mean),
			"per_second": median(c.perSecond), "per_second_ratio": ratios(c.perSecond, base.perSecond),
			"p99_ms": c.p99(), "p99_ratio": round(c.p99() / base.p99()),
			"wal_bytes": math.Round(c.wal / n), "wal_ratio": round(c.wal / base.wal),
			"server_cpu_ms": c.cpu * 1000 / n, "server_cpu_ratio": round(c.cpu / base.cpu),
		}
		record(b, figure)
		if c != base {
			name := strings.ReplaceAll(r.way, " ", "-")
			b.ReportMetric(ratios(c.mean, base.mean)[1], name+"-time-ratio")
			b.ReportMetric(c.wal/base.wal, name+"-wal-ratio")
		}
	}
}

func (c *cost) p99() float64 {
	slices.Sort(c.times)
	return milliseconds(quantile(c.times, 0.99))
}

// ratios are least, median and greatest of those of two series, turn by turn.
func ratios(of, to []float64) []float64 {
	var all []float64
	for i := range of {
		all = append(all, of[i]/to[i])
	}
	return []float64{round(slices.Min(all)), round(median(all)), round(slices.Max(all))}
}

func round(x float64) float64 { return math.Round(x*1000) / 1000 }
