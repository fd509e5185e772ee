package follow

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge"
	"github.com/millrace-db/millrace/edge/image"
	"github.com/millrace-db/millrace/edge/serve"
	"github.com/millrace-db/millrace/internal/config"
	"github.com/millrace-db/millrace/internal/kafkatest"
)

var (
	benchRows = flag.Int("rows", 200_000, "rows of the benchmarks of images")
	benchFor  = flag.Duration("for", 5*time.Second, "how long each part of the benchmark beside changes takes")
	benchDir  = flag.String("dir", "", "where the benchmarks keep their stores; empty for the place of temporary files")
)

const (
	benchChunk   = 5000
	benchChanges = 5000 // a second
	benchValue   = 100  // bytes
)

// newBulk is a stream over a real broker whose first copy are many rows.
func newBulk(t testing.TB, rows int) *bank {
	t.Helper()
	b := &bank{t: t, brokers: kafkatest.Shared(t).Brokers(), name: kafkatest.Topic(t)}
	b.open(1)
	b.entries(&millrace.Entry{Kind: millrace.KindSchema, Table: 9, Schema: bankSchema()}, &millrace.Entry{Kind: millrace.KindLoadBegin, Table: 9, Load: 1})
	rnd := rand.New(rand.NewPCG(1, 2))
	for at := 0; at < rows; at += benchChunk {
		var chunk []*millrace.Entry
		for i := at; i < min(at+benchChunk, rows); i++ {
			e := b.row(rnd, i)
			e.Load = 1
			chunk = append(chunk, e)
		}
		b.entries(chunk...)
	}
	b.entries(&millrace.Entry{Kind: millrace.KindLoadEnd, Table: 9, Load: 1})
	return b
}

func benchKey(i int) string { return fmt.Sprintf("row-%010d", i) }

func (b *bank) row(rnd *rand.Rand, i int) *millrace.Entry {
	b.t.Helper()
	const letters = "abcdefghijklmnopqrstuvwxyz0123456789 ,."
	value := make([]byte, benchValue)
	for at := 0; at < len(value); {
		// As text is, in part: runs repeat.
		n := min(len(value)-at, 4+rnd.IntN(12))
		c := letters[rnd.IntN(len(letters))]
		for k := range n {
			value[at+k] = c + byte(k%2)
		}
		at += n
	}
	row := []millrace.Datum{{Text: []byte(benchKey(i))}, {Text: value}}
	if b.codec == nil {
		b.codec = bankCodec(b.t)
	}
	key, err := b.codec.AppendRowKey(nil, row)
	if err != nil {
		b.t.Fatal(err)
	}
	return &millrace.Entry{Kind: millrace.KindPut, Table: 9, Key: key, Row: millrace.AppendRow(nil, 1, row)}
}

func benchScratch(b *testing.B) string {
	b.Helper()
	dir, err := os.MkdirTemp(*benchDir, "millrace-bench-")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func benchOptions() options {
	return options{config: func(c *config.Config) {
		c.Edge.MapSize = 32 << 30
		c.Edge.Log.MaxBytes = 1 << 30
	}}
}

// reached waits until an edge has come to where the stream is.
func (x *branch) reached() {
	x.t.Helper()
	deadline := time.Now().Add(time.Hour)
	for x.stream.Home().Place().Index < x.b.index {
		if time.Now().After(deadline) {
			x.t.Fatalf("it is at %v, the stream at %v", x.stream.Home().Place().Index, x.b.index)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// BenchmarkBootstrap fills an edge through the topic, and another one from an image that
// the first makes because it is asked to, in one run: go test -bench Bootstrap -rows N.
func BenchmarkBootstrap(b *testing.B) {
	dir := benchScratch(b)
	bulk := newBulk(b, *benchRows)
	for round := range b.N {
		began := time.Now()
		first := bulk.edgeWith(filepath.Join(dir, fmt.Sprint("topic-", round)), benchOptions())
		first.reached()
		topic := time.Since(began)

		began = time.Now()
		c, err := image.Create(b.Context(), first.stream.Home().Store(), image.Options{Dir: filepath.Join(first.dir, "images", "bank")})
		if err != nil {
			b.Fatal(err)
		}
		making := time.Since(began)

		began = time.Now()
		fresh := bulk.edgeWith(filepath.Join(dir, fmt.Sprint("image-", round)), benchOptions(), first.url)
		var states []string
		spent := make(map[string]time.Duration)
		at, since := "", began
		for fresh.stream.Home().Place().Index < bulk.index {
			if s := fresh.stream.Bootstrap(); s != nil && s.State != at {
				if at != "" {
					spent[at] += time.Since(since)
				}
				at, since = s.State, time.Now()
				states = append(states, at)
			}
			time.Sleep(2 * time.Millisecond)
		}
		spent[at] += time.Since(since)
		whole := time.Since(began)
		if s := fresh.took(); s.State != serve.BootstrapDone {
			b.Fatalf("no image was taken: %+v", s)
		}
		rows := float64(*benchRows)
		b.ReportMetric(rows/topic.Seconds(), "topic-rows/s")
		b.ReportMetric(rows/whole.Seconds(), "image-rows/s")
		b.ReportMetric(topic.Seconds()/whole.Seconds(), "topic/image")
		b.ReportMetric(rows/making.Seconds(), "made-rows/s")
		b.ReportMetric(float64(c.Manifest.Stored())/rows, "image-B/row")
		space := fresh.stream.Home().Space()
		b.ReportMetric(float64(space.File)/rows, "store-B/row")
		b.Logf("%d rows: topic %v; image made in %v, taken in %v: %v (%v)", *benchRows, topic, making, whole, spent, states)
		fresh.end()
		first.end()
	}
}

// measured is what was seen in one part of BenchmarkImageBeside.
type measured struct {
	rate    float64 // changes a second that were applied
	lag     []time.Duration
	read    []time.Duration
	images  int
	seconds float64
}

func p99(all []time.Duration) time.Duration {
	slices.Sort(all)
	return all[len(all)*99/100]
}

// BenchmarkImageBeside applies 5,000 changes a second while rows are read, in turns
// without and with images being written all the time: what becomes of their rate, of the
// time until they are visible, and of reads.
func BenchmarkImageBeside(b *testing.B) {
	dir := benchScratch(b)
	bulk := newBulk(b, *benchRows)
	x := bulk.edgeWith(filepath.Join(dir, "edge"), benchOptions())
	x.reached()
	rnd := rand.New(rand.NewPCG(3, 4))
	part := func(images bool) (m measured) {
		ctx, cancel := context.WithTimeout(b.Context(), *benchFor)
		defer cancel()
		var work sync.WaitGroup
		if images {
			work.Go(func() {
				for ctx.Err() == nil {
					_, err := image.Create(ctx, x.stream.Home().Store(), image.Options{Dir: filepath.Join(x.dir, "images", "bank"), Keep: 1, Background: true})
					if err != nil && ctx.Err() == nil {
						b.Error(err)
						return
					}
					m.images++
				}
			})
		}
		work.Go(func() {
			pick, codec := rand.New(rand.NewPCG(5, 6)), bankCodec(b)
			var row edge.Row
			tick := time.NewTicker(500 * time.Microsecond)
			defer tick.Stop()
			for ctx.Err() == nil {
				began := time.Now()
				err := x.stream.Home().View(context.Background(), func(v *edge.View) error {
					table, err := v.Table("public.t")
					if err != nil {
						return err
					}
					key, err := codec.AppendRowKey(nil, []millrace.Datum{{Text: []byte(benchKey(pick.IntN(*benchRows)))}, {}})
					if err != nil {
						return err
					}
					return table.Get(key, &row)
				})
				if err != nil {
					b.Error(err)
					return
				}
				m.read = append(m.read, time.Since(began))
				<-tick.C
			}
		})
		var wanted atomic.Int64
		began := time.Now()
		const every = 10 * time.Millisecond
		tick := time.NewTicker(every)
		defer tick.Stop()
		for ctx.Err() == nil {
			<-tick.C
			due := int(time.Since(began).Seconds()*benchChanges) - int(wanted.Load())
			if due <= 0 {
				continue
			}
			var unit []*millrace.Entry
			for range due {
				unit = append(unit, bulk.row(rnd, rnd.IntN(*benchRows)))
			}
			published := time.Now()
			bulk.entries(unit...)
			wanted.Add(int64(due))
			index := bulk.index
			work.Go(func() {
				if err := x.stream.Home().Store().WaitIndex(context.Background(), index); err != nil {
					b.Error(err)
				}
				took := time.Since(published)
				bulk.mu.Lock()
				m.lag = append(m.lag, took)
				bulk.mu.Unlock()
			})
		}
		work.Wait()
		m.seconds = time.Since(began).Seconds()
		m.rate = float64(wanted.Load()) / m.seconds
		return m
	}
	part(false) // to warm up
	for range b.N {
		var without, with measured
		var ratios [3][]float64
		for range 4 {
			a, z := part(false), part(true)
			ratios[0] = append(ratios[0], z.rate/a.rate)
			ratios[1] = append(ratios[1], p99(z.lag).Seconds()/p99(a.lag).Seconds())
			ratios[2] = append(ratios[2], p99(z.read).Seconds()/p99(a.read).Seconds())
			without.read, without.lag = append(without.read, a.read...), append(without.lag, a.lag...)
			with.read, with.lag = append(with.read, z.read...), append(with.lag, z.lag...)
			without.rate += a.rate / 4
			with.rate += z.rate / 4
			with.images += z.images
		}
		for i := range ratios {
			slices.Sort(ratios[i])
		}
		median := func(all []float64) float64 { return (all[1] + all[2]) / 2 }
		b.ReportMetric(median(ratios[0]), "rate-ratio")
		b.ReportMetric(median(ratios[1]), "visible-p99-ratio")
		b.ReportMetric(median(ratios[2]), "read-p99-ratio")
		b.ReportMetric(with.rate, "changes/s")
		b.ReportMetric(float64(p99(without.read).Microseconds()), "read-p99-µs")
		b.ReportMetric(float64(p99(without.lag).Milliseconds()), "visible-p99-ms")
		b.Logf("without: %.0f changes/s, visible p99 %v, read p99 %v (of %d); with %d images: %.0f changes/s, visible p99 %v, read p99 %v (of %d)",
			without.rate, p99(without.lag), p99(without.read), len(without.read), with.images, with.rate, p99(with.lag), p99(with.read), len(with.read))
	}
	x.end()
}
