package benchmarks

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
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

// statements is how many each client runs.
func (w written) statements() int {
	n := map[int]int{1: 3000, 100: 300, 10_000: 20}[w.rows]
	if w.op == "" {
		n = 1500
	}
	if w.clients > 1 {
		n /= 4
	}
	if w.width == wide && w.rows > 1 {
		n /= 3
	}
	return max(1, int(float64(n)**turnFlag))
}

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
// -rounds is how often each way has its turn, in changing order; -turn makes each
// turn longer; -all adds 8 clients and rows of 2 KB. A ratio is that of two turns
// of the same round.
func BenchmarkOverhead(b *testing.B) {
	for _, l := range writtenLoads(*allFlag) {
		b.Run(strings.ReplaceAll(l.String(), " ", "_"), func(b *testing.B) {
			for b.Loop() {
				overhead(b, l)
			}
		})
	}
}

// cost is what a load took in one turn.
type cost struct {
	perSecond float64 // statements, or transactions of TPC-B
	mean, p99 float64 // milliseconds
	wal       float64 // bytes a statement
	cpu       float64 // of the server's processes for clients, milliseconds a statement
}

func overhead(b *testing.B, l written) {
	rigs := newRigs(b, l)
	all := make([][]cost, len(rigs))
	for turn := range *roundsFlag {
		order := make([]int, len(rigs))
		for i := range order {
			order[i] = (i + turn) % len(rigs)
		}
		if turn%2 == 1 {
			slices.Reverse(order)
		}
		for _, i := range order {
			all[i] = append(all[i], rigs[i].turn(b, l))
		}
	}
	b.ReportMetric(0, "ns/op")
	for i, r := range rigs {
		figure := map[string]any{
			"what": "cost to writers", "load": l.String(), "way": r.way, "rounds": *roundsFlag, "statements": l.statements() * l.clients,
		}
		for _, m := range []struct {
			name string
			of   func(cost) float64
		}{
			{"time", func(c cost) float64 { return c.mean }},
			{"p99", func(c cost) float64 { return c.p99 }},
			{"wal", func(c cost) float64 { return c.wal }},
			{"cpu", func(c cost) float64 { return c.cpu }},
			{"throughput", func(c cost) float64 { return c.perSecond }},
		} {
			var values, ratios []float64
			for turn := range all[i] {
				values = append(values, m.of(all[i][turn]))
				ratios = append(ratios, m.of(all[i][turn])/m.of(all[0][turn]))
			}
			figure[m.name] = median(values)
			figure[m.name+"_ratio"] = []float64{round(slices.Min(ratios)), round(median(ratios)), round(slices.Max(ratios))}
			if i > 0 && (m.name == "time" || m.name == "wal") {
				b.ReportMetric(median(ratios), strings.ReplaceAll(r.way, " ", "-")+"-"+m.name+"-ratio")
			}
		}
		record(b, figure)
	}
}

func round(x float64) float64 { return math.Round(x*1000) / 1000 }
