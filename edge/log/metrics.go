package log

import "github.com/prometheus/client_golang/prometheus"

// metrics are documented by their help texts.
type metrics struct {
	registerer prometheus.Registerer
	collectors []prometheus.Collector
	renewed    prometheus.Counter
	damaged    prometheus.Counter
}

func newMetrics(l *Log) *metrics {
	m := &metrics{registerer: l.opts.Registerer}
	gauge := func(name, help string, value func(Status) float64) {
		m.collectors = append(m.collectors, prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "millrace_edge_log_" + name, Help: help},
			func() float64 { return value(l.Status()) }))
	}
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: "millrace_edge_log_" + name, Help: help})
		m.collectors = append(m.collectors, c)
		return c
	}
	gauge("oldest_index", "First index that the edge's log holds; 0 if it holds none.", func(s Status) float64 { return float64(s.Oldest) })
	gauge("newest_index", "Last index that the edge's log holds; 0 if it holds none.", func(s Status) float64 { return float64(s.Newest) })
	gauge("bytes", "Size of the segments of the edge's log.", func(s Status) float64 { return float64(s.Bytes) })
	gauge("segments", "Number of segments of the edge's log.", func(s Status) float64 { return float64(s.Segments) })
	gauge("fault", "1 while the edge's log cannot be written, which does not hold up the store; otherwise 0.", func(s Status) float64 {
		if s.Fault != nil {
			return 1
		}
		return 0
	})
	m.renewed = counter("renewed_total", "Times that the edge's log was begun anew and what it held was dropped.")
	m.damaged = counter("damaged_total", "Times that a reader found bytes of the edge's log damaged.")
	if m.registerer != nil {
		m.registerer.MustRegister(m.collectors...)
	}
	return m
}

func (m *metrics) unregister() {
	if m.registerer == nil {
		return
	}
	for _, c := range m.collectors {
		m.registerer.Unregister(c)
	}
}
