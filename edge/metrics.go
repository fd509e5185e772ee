package edge

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics of one store. All are documented by their help texts.
type metrics struct {
	registerer prometheus.Registerer
	collectors []prometheus.Collector

	commits       prometheus.Counter
	commitSeconds prometheus.Histogram
	entries       prometheus.Counter
	swept         prometheus.Counter
	indexed       prometheus.Counter

	verified      *prometheus.CounterVec
	verifySeconds prometheus.Histogram
}

func newMetrics(s *Store) *metrics {
	gauge := func(name, help string, value func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "millrace_edge_" + name, Help: help}, value)
	}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "millrace_edge_" + name, Help: help})
	}
	m := &metrics{
		commits: counter("commits_total", "Commits of the store."),
		entries: counter("entries_total", "Entries applied, those of units that were given up included."),
		indexed: counter("indexed_rows_total", "Rows entered into indexes that are built in the background."),
		swept:   counter("swept_rows_total", "Rows removed from generations that are gone."),
		commitSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "millrace_edge_commit_seconds", Help: "Time of a commit, from the first sorted row to the synced disk.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 2, 16),
		}),
	}
	m.verified = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "millrace_edge_verify_ranges_total", Help: "Ranges of Verify entries, by result: equal, different, or skipped.",
	}, []string{"result"})
	for _, result := range []string{verifyEqual, verifyDifferent, verifySkipped} {
		m.verified.WithLabelValues(result)
	}
	m.verifySeconds = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "millrace_edge_verify_seconds", Help: "Time to read and hash the rows of a range in the background.",
		Buckets: prometheus.ExponentialBuckets(0.001, 2, 17),
	})
	m.collectors = []prometheus.Collector{
		m.verified, m.verifySeconds,
		gauge("verify_differences", "Ranges whose rows here are not those of the source.", func() float64 { return float64(s.verifier.differences.Load()) }),
		m.commits, m.entries, m.swept, m.indexed, m.commitSeconds,
		gauge("index", "Index of the newest unit committed.", func() float64 { return float64(s.Index()) }),
		gauge("oldest_view_seconds", "Age of the view that has been open for longest.", func() float64 { return s.readers.oldest(time.Now()).Seconds() }),
		gauge("readers", "Places in the table of readers that are in use, by all processes.", func() float64 { return float64(s.watch.places.Load()) }),
		gauge("oldest_reader_commits", "Commits since the oldest snapshot that any process holds; the file grows while it does.", func() float64 { return float64(s.watch.behind.Load()) }),
		gauge("file_growth_bytes", "Growth of the store's file in bytes a second, over the last hour.", func() float64 { return s.Space().Growth }),
		gauge("disk_free_bytes", "Bytes by which the file can grow before the disk is full.", func() float64 { return float64(s.Space().Disk) }),
		gauge("space_alarm", "1 where map or disk are nearly full, or are full within a day at the present rate.", func() float64 {
			if s.Space().Alarm != "" {
				return 1
			}
			return 0
		}),
		gauge("map_bytes", "Largest size of the store.", s.whileOpen(func() float64 { return float64(s.mapSize()) })),
		gauge("file_bytes", "Pages in use or free in the store's file, in bytes.", s.whileOpen(func() float64 {
			size, _, err := s.fullSize()
			if err != nil {
				return 0
			}
			return float64(size)
		})),
	}
	m.register(s.opts.Registerer)
	return m
}

// register shows the metrics at r, nil for nowhere.
func (m *metrics) register(r prometheus.Registerer) {
	if m.registerer = r; r == nil {
		return
	}
	for _, c := range m.collectors {
		r.MustRegister(c)
	}
}

// unregister takes them away, once: another store's may stand in their place
// afterwards.
func (m *metrics) unregister() {
	if m.registerer == nil {
		return
	}
	for _, c := range m.collectors {
		m.registerer.Unregister(c)
	}
	m.registerer = nil
}

// whileOpen guards a metric that asks the environment, which is gone once the
// store is closed.
func (s *Store) whileOpen(value func() float64) func() float64 {
	return func() float64 {
		s.handleMu.RLock()
		defer s.handleMu.RUnlock()
		if s.env == nil {
			return 0
		}
		return value()
	}
}
