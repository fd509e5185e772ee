package resp

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	registerer  prometheus.Registerer
	all         []prometheus.Collector
	connections prometheus.Gauge
	refused     prometheus.Counter
	cutOff      prometheus.Counter
	errors      prometheus.Counter
	unknown     prometheus.Counter
}

func newMetrics(r prometheus.Registerer, commands map[string]*command) (*metrics, error) {
	m := &metrics{registerer: r}
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: "millrace_resp_" + name, Help: help})
		m.all = append(m.all, c)
		return c
	}
	m.connections = prometheus.NewGauge(prometheus.GaugeOpts{Name: "millrace_resp_connections", Help: "Connections of clients of Redis."})
	m.all = append(m.all, m.connections)
	m.refused = counter("refused_connections_total", "Connections that were turned away because there were too many.")
	m.cutOff = counter("cut_off_total", "Connections that were closed because the client took too long to read, to write or to show who it is.")
	m.errors = counter("errors_total", "Answers that were errors.")
	byName := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "millrace_resp_commands_total", Help: "Commands of clients of Redis, by name."}, []string{"command"})
	m.all = append(m.all, byName)
	m.unknown = byName.WithLabelValues("unknown")
	for _, c := range commands {
		c.count = m.unknown
		if !c.write {
			c.count = byName.WithLabelValues(c.name)
		}
	}
	if r == nil {
		return m, nil
	}
	for i, c := range m.all {
		if err := r.Register(c); err != nil {
			for _, c := range m.all[:i] {
				r.Unregister(c)
			}
			return nil, fmt.Errorf("register metrics of resp: %w", err)
		}
	}
	return m, nil
}

func (m *metrics) unregister() {
	if m.registerer == nil {
		return
	}
	for _, c := range m.all {
		m.registerer.Unregister(c)
	}
}
