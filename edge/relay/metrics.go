package relay

import "github.com/prometheus/client_golang/prometheus"

// serverMetrics are documented by their help texts, as clientMetrics are.
type serverMetrics struct {
	registered
	bytes   prometheus.Counter
	refused *prometheus.CounterVec
	cut     prometheus.Counter
}

// registered are collectors that go together.
type registered struct {
	registerer prometheus.Registerer
	collectors []prometheus.Collector
}

func (r *registered) counter(name, help string) prometheus.Counter {
	c := prometheus.NewCounter(prometheus.CounterOpts{Name: "millrace_relay_" + name, Help: help})
	r.collectors = append(r.collectors, c)
	return c
}

func (r *registered) vector(name, help, label string) *prometheus.CounterVec {
	c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "millrace_relay_" + name, Help: help}, []string{label})
	r.collectors = append(r.collectors, c)
	return c
}

func (r *registered) gauge(name, help string, value func() float64) {
	r.collectors = append(r.collectors, prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "millrace_relay_" + name, Help: help}, value))
}

func (r *registered) register() {
	if r.registerer != nil {
		r.registerer.MustRegister(r.collectors...)
	}
}

func (r *registered) unregister() {
	if r.registerer == nil {
		return
	}
	for _, c := range r.collectors {
		r.registerer.Unregister(c)
	}
}

func newServerMetrics(s *Server) *serverMetrics {
	m := &serverMetrics{registered: registered{registerer: s.config.Registerer}}
	m.gauge("children", "Edges that follow this one.", func() float64 { return float64(len(s.Peers())) })
	m.bytes = m.counter("sent_bytes_total", "Bytes of the log that were sent to edges that follow this one.")
	m.refused = m.vector("refused_total", "Edges that were not served, or no longer, by the reason that they were given.", "reason")
	m.cut = m.counter("cut_off_total", "Edges that were cut off because they did not take in what was sent.")
	m.register()
	return m
}

type clientMetrics struct {
	registered
	changes prometheus.Counter
	untrue  prometheus.Counter
}

func newClientMetrics(c *Client) *clientMetrics {
	m := &clientMetrics{registered: registered{registerer: c.config.Registerer}}
	m.changes = m.counter("upstream_changes_total", "Times that another upstream was gone over to.")
	m.untrue = m.counter("upstream_untrue_total", "Times that an upstream was left alone because what it gave was not of the history.")
	m.gauge("depth", "Edges above this one; 0 while it follows none.", func() float64 { return float64(len(c.Path())) })
	m.gauge("upstreams_untrue", "Upstreams that are left alone because what they gave was not of the history.", func() float64 {
		n := 0
		for _, u := range c.Status().Upstreams {
			if u.Untrue != "" {
				n++
			}
		}
		return float64(n)
	})
	m.gauge("behind", "Entries that the upstream has and that are not applied here.", func() float64 { return float64(c.Status().Behind) })
	m.gauge("behind_seconds", "By how much the newest unit of the upstream is younger than the newest that is applied here.",
		func() float64 { return c.Status().BehindTime.Seconds() })
	m.register()
	return m
}
