package transfer

import (
	"slices"
	"testing"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/kafkatest"
)

// BenchmarkCommitToConfirm is one unit at a time: from the moment the source has
// it to its confirmation, on a real broker. It reports quantiles.
func BenchmarkCommitToConfirm(b *testing.B) {
	w := newWorld(b, kafkatest.Shared(b).Brokers())
	w.start(w.config())
	w.commit(1)
	w.waitConfirmed(1)
	var times []time.Duration
	n := 1
	for b.Loop() {
		started := time.Now()
		n++
		w.commit(1)
		w.waitConfirmed(n)
		times = append(times, time.Since(started))
	}
	slices.Sort(times)
	b.ReportMetric(float64(times[len(times)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(times[len(times)*99/100].Microseconds())/1000, "p99-ms")
}

// BenchmarkBacklog publishes units of one row of 100 bytes that are all there
// from the beginning, on a real broker.
func BenchmarkBacklog(b *testing.B) {
	w := newWorld(b, kafkatest.Shared(b).Brokers())
	payload := (&world{t: b, make: func(int) *millrace.Unit { return unitOf(1, []int{100}) }}).payload(1)
	w.make = func(n int) *millrace.Unit { return millrace.NewUnit(position(n), unitTime(1), 1, payload) }
	w.start(w.config())
	b.ReportAllocs()
	b.ResetTimer()
	w.commit(b.N)
	w.waitConfirmed(b.N)
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "units/s")
}
