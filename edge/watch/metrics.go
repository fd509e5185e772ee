package watch

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	registerer prometheus.Registerer
	all        []prometheus.Collector
	records    prometheus.Counter
	events     prometheus.Counter
	cutOff     prometheus.Counter
}

func newMetrics(h *Hub) *metrics {
	m := &metrics{
		registerer: h.c.Registerer,
		records:    prometheus.NewCounter(prometheus.CounterOpts{Name: "millrace_watch_records_total", Help: "Batches of the log that were decoded for watchers."}),
		events:     prometheus.NewCounter(prometheus.CounterOpts{Name: "millrace_watch_events_total", Help: "Events that were given to watchers."}),
		cutOff:     prometheus.NewCounter(prometheus.CounterOpts{Name: "millrace_watch_cut_off_total", Help: "Watches that were ended because they did not take what they were sent."}),
	}
	m.all = []prometheus.Collector{m.records, m.events, m.cutOff, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "millrace_watch_watchers", Help: "Watchers that there are.",
	}, func() float64 {
		h.mu.Lock()
		defer h.mu.Unlock()
		return float64(h.watchers)
	})}
	if m.registerer != nil {
		m.registerer.MustRegister(m.all...)
	}
	return m
}

func (m *metrics) unregister() {
	if m.registerer == nil {
		return
	}
	for _, c := range m.all {
		m.registerer.Unregister(c)
	}
}
