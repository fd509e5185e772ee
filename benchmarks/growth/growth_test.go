package growth

import (
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"
)

// BenchmarkGrowth fills a table, in the order of its keys or at random, and measures at
// each size: new rows and updates of rows at random, in batches of 1,000 with a synced
// commit each; reads of rows at random; and the file. It prints how each grows with the
// logarithm of the rows.
func BenchmarkGrowth(b *testing.B) {
	for name := range strings.SplitSeq(*keysFlag, ",") {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				growth(b, orderNamed(b, name))
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

// measured is what was found at one size.
type measured struct {
	rows int
	// fill is how many rows a second came since the size before.
	fill           float64
	insert, update puts
	// Of reads, in µs: medians of rounds, but of the 95th and 99th percentiles the least,
	// because what others do to them is added to them. reference is that of the environment
	// that does not grow, readCPU per read.
	p50, p95, p99, p99Median, p99Ratio, readCPU, reference99 float64
	// interrupted is how often in a second of a thread the machine does something else.
	interrupted float64
	// minor and major are page faults a read.
	minor, major float64
	bytes        float64
}

// puts are medians of rounds, each of them per put.
type puts struct {
	perSecond, wall, cpu float64 // µs
	written              float64 // bytes
	ratio                float64 // of wall to that of the reference
}

// warmRows is for how many rows there is a read before reads are measured. A fault maps 16
// pages, with hundreds of rows.
const warmRows = 10

func growth(b *testing.B, order keyOrder) {
	dir := storeDir(b)
	ref := newReference(b, filepath.Join(dir, "reference"))
	s := newSystem(b, filepath.Join(dir, "store"))
	m := watchMemory(b)
	var all []measured
	rows := 0
	for _, size := range sizes(b) {
		if size <= rows {
			b.Fatalf("-rows: rounds have brought %d rows already; mend: sizes that are further apart, or fewer -puts", rows)
		}
		began := time.Now()
		s.fill(order, rows, size)
		at := measured{rows: size, fill: float64(size-rows) / time.Since(began).Seconds()}
		rows = size
		info, err := os.Stat(filepath.Join(dir, "store", "data.mdb"))
		if err != nil {
			b.Fatal(err)
		}
		at.bytes = float64(info.Size()) / float64(rows)
		// New rows come on top of those of the size, and count with them from then on.
		at.reads(b, newReader(s.store, order, rows), ref)
		rows = at.writes(s, ref, order, rows)
		all = append(all, at)
		figure(b, map[string]any{
			"rows": size, "fill_per_second": at.fill, "insert": at.insert.figures(), "update": at.update.figures(), "read_p50_us": at.p50, "read_p95_us": at.p95, "interrupted_per_second": at.interrupted, "read_p99_us": at.p99, "read_p99_median_us": at.p99Median,
			"read_p99_to_reference": at.p99Ratio, "read_cpu_us": at.readCPU, "reference_read_p99_us": at.reference99, "read_minor_faults": at.minor, "read_major_faults": at.major,
			"file_bytes_per_row": at.bytes,
		})
	}
	m.end()
	figure(b, map[string]any{"anonymous_mib": mib(m.anonymous), "file_mib": mib(m.file), "peak_mib": mib(m.peak)})
	printGrowth(b, all)
	fmt.Printf("memory: %d MiB anonymous at most, %d MiB of mapped files, both %d MiB; load %s\n", mib(m.anonymous), mib(m.file), mib(m.peak), load())
}

func (p puts) figures() map[string]float64 {
	return map[string]float64{"per_second": p.perSecond, "wall_us": p.wall, "cpu_us": p.cpu, "written_bytes": p.written, "to_reference": p.ratio}
}

func (at *measured) reads(b *testing.B, r *reader, ref *reference) {
	b.Helper()
	var p50, p95, p99, cpu, reference, minor, major, other []float64
	// A page of the file that this process reads for the first time costs a fault.
	_, _ = r.many(b, max(*readsFlag, r.rows/warmRows))
	for range *roundsFlag {
		other = append(other, interrupted())
		rt := ref.many(*readsFlag)
		taken, c := r.many(b, *readsFlag)
		p50, p99 = append(p50, micros(quantile(taken, 0.5))), append(p99, micros(quantile(taken, 0.99)))
		p95 = append(p95, micros(quantile(taken, 0.95)))
		reference = append(reference, micros(quantile(rt, 0.99)))
		cpu = append(cpu, micros(c.cpu)/float64(*readsFlag))
		minor, major = append(minor, float64(c.minor)/float64(*readsFlag)), append(major, float64(c.major)/float64(*readsFlag))
	}
	at.minor, at.major = median(minor), median(major)
	at.p50, at.p99, at.p99Median, at.readCPU, at.reference99 = median(p50), slices.Min(p99), median(p99), median(cpu), slices.Min(reference)
	at.p95, at.interrupted = slices.Min(p95), median(other)
	at.p99Ratio = at.p99 / at.reference99
}

// writes puts new rows and updates by turns, and returns how many rows there are then.
func (at *measured) writes(s *system, ref *reference, order keyOrder, rows int) int {
	rnd := rand.New(rand.NewPCG(7, 8))
	var inserts, updates rounds
	for round := range *roundsFlag {
		r := ref.write(20 * referenceBatch)
		inserts.add(s, r, func(n int) { s.p.put(order(rows+n), 0, 0) })
		rows += *putsFlag
		r = ref.write(20 * referenceBatch)
		updates.add(s, r, func(int) { s.p.put(order(rnd.IntN(rows)), round+1, 0) })
	}
	at.insert, at.update = inserts.median(), updates.median()
	return rows
}

// rounds are the puts of some rounds, as lists.
type rounds struct{ wall, cpu, written, ratio []float64 }

// add brings -puts entries in, in batches of 1,000, each with a commit.
func (r *rounds) add(s *system, ref cost, put func(n int)) {
	records := s.made(func() {
		for n := range *putsFlag {
			put(n)
			if (n+1)%1000 == 0 || n+1 == *putsFlag {
				s.p.end()
			}
		}
	})
	c := spend(syscall.RUSAGE_SELF, func() { s.applyMade(records) })
	n := float64(*putsFlag)
	r.wall, r.cpu, r.written = append(r.wall, micros(c.wall)/n), append(r.cpu, micros(c.cpu)/n), append(r.written, float64(c.written)/n)
	r.ratio = append(r.ratio, micros(c.wall)/n/(micros(ref.wall)/(20*referenceBatch)))
}

func (r *rounds) median() puts {
	wall := median(r.wall)
	return puts{perSecond: 1e6 / wall, wall: wall, cpu: median(r.cpu), written: median(r.written), ratio: median(r.ratio)}
}

// printGrowth prints a table and, below it, by how much a doubling of the rows raises
// each column: over all sizes (least squares against log2 of the rows), and between each
// two. What grows with the logarithm has the same slope everywhere; where it rises from
// pair to pair, growth is worse.
func printGrowth(b *testing.B, all []measured) {
	columns := []struct {
		name string
		of   func(*measured) float64
	}{
		{"insert µs", func(m *measured) float64 { return m.insert.wall }},
		{"cpu µs", func(m *measured) float64 { return m.insert.cpu }},
		{"written B", func(m *measured) float64 { return m.insert.written }},
		{"to ref", func(m *measured) float64 { return m.insert.ratio }},
		{"update µs", func(m *measured) float64 { return m.update.wall }},
		{"cpu µs", func(m *measured) float64 { return m.update.cpu }},
		{"written B", func(m *measured) float64 { return m.update.written }},
		{"to ref", func(m *measured) float64 { return m.update.ratio }},
		{"read p50 µs", func(m *measured) float64 { return m.p50 }},
		{"p95 µs", func(m *measured) float64 { return m.p95 }},
		{"p99 µs", func(m *measured) float64 { return m.p99 }},
		{"p99 to ref", func(m *measured) float64 { return m.p99Ratio }},
		{"cpu µs", func(m *measured) float64 { return m.readCPU }},
		{"faults", func(m *measured) float64 { return m.minor + m.major }},
		{"interrupted/s", func(m *measured) float64 { return m.interrupted }},
		{"file B/row", func(m *measured) float64 { return m.bytes }},
		{"fill rows/s", func(m *measured) float64 { return m.fill }},
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', tabwriter.AlignRight)
	row := func(name string, cell func(of func(*measured) float64) string) {
		_, _ = fmt.Fprint(w, name, "\t")
		for _, c := range columns {
			_, _ = fmt.Fprint(w, cell(c.of), "\t")
		}
		_, _ = fmt.Fprintln(w)
	}
	_, _ = fmt.Fprintf(w, "%s\t", strings.TrimPrefix(b.Name(), "BenchmarkGrowth/"))
	for _, c := range columns {
		_, _ = fmt.Fprint(w, c.name, "\t")
	}
	_, _ = fmt.Fprintln(w)
	for i := range all {
		row(fmt.Sprint(all[i].rows), func(of func(*measured) float64) string { return fmt.Sprintf("%.4g", of(&all[i])) })
	}
	if len(all) > 1 {
		row("a doubling", func(of func(*measured) float64) string { return percent(slope(all, of), of(&all[0])) })
	}
	for i := 1; i < len(all) && len(all) > 2; i++ {
		row(fmt.Sprintf("%d to %d", all[i-1].rows, all[i].rows), func(of func(*measured) float64) string { return percent(slope(all[i-1:i+1], of), of(&all[0])) })
	}
	if err := w.Flush(); err != nil {
		b.Fatal(err)
	}
}

// percent gives a slope as a part of what there was at the first size.
func percent(slope, first float64) string {
	if first == 0 {
		return "-"
	}
	return fmt.Sprintf("%+.1f %%", 100*slope/first)
}

// slope returns by how much a doubling of the rows raises a value.
func slope(all []measured, of func(*measured) float64) float64 {
	var sx, sy, sxx, sxy float64
	for i := range all {
		x, y := math.Log2(float64(all[i].rows)), of(&all[i])
		sx, sy, sxx, sxy = sx+x, sy+y, sxx+x*x, sxy+x*y
	}
	n := float64(len(all))
	return (n*sxy - sx*sy) / (n*sxx - sx*sx)
}
