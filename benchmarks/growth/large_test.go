package growth

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/millrace-db/millrace"
)

const (
	// memoryBound is the most anonymous memory that an edge may hold, whatever comes.
	memoryBound = 700 << 20
	// p99Aim is how many times what it is on an idle store the 99th percentile of reads
	// may be.
	p99Aim = 1.5
	// chunkRows is how many rows of a load come as a unit, liveRows how many changes.
	chunkRows, liveRows = 10_000, 5
	largeLimit          = time.Hour
)

// BenchmarkLargeUnit brings -large rows in as one unit, into a table that has -base of
// them, beside reads of those. It fails when memory goes over its bound.
func BenchmarkLargeUnit(b *testing.B) {
	for name := range strings.SplitSeq(*keysFlag, ",") {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				largeUnit(b, orderNamed(b, name))
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

func largeUnit(b *testing.B, order keyOrder) {
	s, r, ref := largeSystem(b, order, *baseFlag)
	replay := s.spooled(b.TempDir(), func() {
		for n := range *largeFlag {
			s.p.put(order(*baseFlag+n), 0, 0)
		}
		s.p.end()
	})
	p := startReading(b, r, ref)
	idle := during(p, *idleFlag)
	phases := []phase{beside(p, ref)}
	m := watchMemory(b)
	began := time.Now()
	s.apply(0, replay)
	taken := time.Since(began)
	m.end()
	phases = append(phases, phase{"unit", p.since()})
	idle.add(during(p, *idleFlag))
	p.end(b)
	report(b, idle, phases, m, map[string]any{
		"rows": *largeFlag, "seconds": taken.Seconds(), "rows_per_second": float64(*largeFlag) / taken.Seconds(),
	})
}

// BenchmarkLoad loads a table of -large rows again, beside reads and live changes of it,
// and goes on until the rows of before are removed. It fails when memory goes over its
// bound.
func BenchmarkLoad(b *testing.B) {
	for name := range strings.SplitSeq(*keysFlag, ",") {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				largeLoad(b, orderNamed(b, name))
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

func largeLoad(b *testing.B, order keyOrder) {
	s, r, ref := largeSystem(b, order, *largeFlag)
	p := startReading(b, r, ref)
	idle := during(p, *idleFlag)
	phases := []phase{beside(p, ref)}
	live := &live{s: s, order: order, rnd: rand.New(rand.NewPCG(9, 10))}
	s.apply(0, func() { live.during(*idleFlag) })
	phases = append(phases, phase{"live", p.since()})
	replay := s.spooled(b.TempDir(), func() {
		s.p.entries(&millrace.Entry{Kind: millrace.KindLoadBegin, Table: tableID, Load: 2})
		for n := range *largeFlag {
			s.p.put(order(n), 1, 2)
			if (n+1)%chunkRows == 0 || n+1 == *largeFlag {
				s.p.end()
				for range *besideFlag / liveRows {
					live.unit()
				}
			}
		}
		s.p.entries(&millrace.Entry{Kind: millrace.KindLoadEnd, Table: tableID, Load: 2})
	})
	p.since()
	m := watchMemory(b)
	began := time.Now()
	s.apply(0, replay)
	loading := time.Since(began)
	phases = append(phases, phase{"load", p.since()})
	began = time.Now()
	s.apply(0, func() {
		for live.removed() < *largeFlag && time.Since(began) < largeLimit {
			live.during(1)
		}
	})
	removing := time.Since(began)
	m.end()
	phases = append(phases, phase{"removal", p.since()})
	idle.add(during(p, *idleFlag))
	p.end(b)
	report(b, idle, phases, m, map[string]any{
		"rows": *largeFlag, "seconds": loading.Seconds(), "rows_per_second": float64(*largeFlag) / loading.Seconds(), "removal_seconds": removing.Seconds(),
		"live_changes": live.changes,
	})
}

// largeSystem makes a system with a table of rows, something that reads it, and the
// reference.
func largeSystem(b *testing.B, order keyOrder, rows int) (*system, *reader, *reference) {
	b.Helper()
	dir := storeDir(b)
	ref := newReference(b, filepath.Join(dir, "reference"))
	s := newSystem(b, filepath.Join(dir, "store"))
	s.fill(order, 0, rows)
	r := newReader(s.store, order, rows)
	_, _ = r.many(b, max(*readsFlag, rows/warmRows))
	return s, r, ref
}

// during returns the times of some seconds.
func during(p *paced, seconds float64) readTimes {
	p.since()
	<-time.After(time.Duration(seconds * float64(time.Second)))
	return p.since()
}

// beside returns the times while another environment is written: what a writer that has
// nothing to do with the store does to reads here.
func beside(p *paced, ref *reference) phase {
	p.since()
	for began := time.Now(); time.Since(began).Seconds() < *idleFlag; {
		ref.write(referenceBatch)
	}
	return phase{"other", p.since()}
}

// live makes live changes: units of some updates of rows at random.
type live struct {
	s       *system
	order   keyOrder
	rnd     *rand.Rand
	changes int
}

func (l *live) unit() {
	for range liveRows {
		l.changes++
		l.s.p.put(l.order(l.rnd.IntN(*largeFlag)), 2+l.changes, 0)
	}
	l.s.p.end()
}

// during appends units at the rate of -rate for some seconds.
func (l *live) during(seconds float64) {
	t := time.NewTicker(time.Second * liveRows / time.Duration(*rateFlag))
	defer t.Stop()
	for began := time.Now(); time.Since(began).Seconds() < seconds; <-t.C {
		l.unit()
	}
}

// removed returns how many rows of before have been removed.
func (l *live) removed() int {
	l.s.b.Helper()
	families, err := l.s.metrics.Gather()
	if err != nil {
		l.s.b.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "millrace_edge_swept_rows_total" {
			return int(f.GetMetric()[0].GetCounter().GetValue())
		}
	}
	l.s.b.Fatal("the store does not count the rows that it removes")
	return 0
}

// phase is a time in which reads were measured.
type phase struct {
	name  string
	times readTimes
}

// report prints memory, and reads beside those of an idle store.
func report(b *testing.B, idle readTimes, phases []phase, m *memory, values map[string]any) {
	b.Helper()
	i50, i99 := quantile(idle.store, 0.5), quantile(idle.store, 0.99)
	r99 := quantile(idle.reference, 0.99)
	values["idle_p50_us"], values["idle_p99_us"], values["reference_idle_p99_us"] = micros(i50), micros(i99), micros(r99)
	fmt.Printf("idle: %d reads, p50 %.1f µs, p99 %.1f µs; reference p99 %.1f µs\n", len(idle.store), micros(i50), micros(i99), micros(r99))
	for _, ph := range phases {
		p50, p99, ref := quantile(ph.times.store, 0.5), quantile(ph.times.store, 0.99), quantile(ph.times.reference, 0.99)
		ratio, refRatio := float64(p99)/float64(i99), float64(ref)/float64(r99)
		most := quantile(ph.times.store, 1)
		values[ph.name] = map[string]any{
			"reads": len(ph.times.store), "p50_us": micros(p50), "p99_us": micros(p99), "most_ms": micros(most) / 1000, "p99_to_idle": ratio,
			"reference_p99_us": micros(ref), "reference_p99_to_idle": refRatio,
		}
		fmt.Printf("%s: %d reads, p50 %.1f µs, p99 %.1f µs, most %.1f ms: %.2f times idle (aim %.1f); reference p99 %.1f µs, %.2f times\n",
			ph.name, len(ph.times.store), micros(p50), micros(p99), micros(most)/1000, ratio, p99Aim, micros(ref), refRatio)
		b.ReportMetric(ratio, ph.name+"-p99-to-idle")
	}
	values["first"] = *firstFlag
	values["anonymous_mib"], values["file_mib"], values["peak_mib"] = mib(m.anonymous), mib(m.file), mib(m.peak)
	figure(b, values)
	b.ReportMetric(float64(mib(m.anonymous)), "anonymous-MiB")
	if m.anonymous >= memoryBound {
		b.Errorf("%d MiB of anonymous memory were held, the bound is %d", mib(m.anonymous), int64(memoryBound>>20))
	}
}
