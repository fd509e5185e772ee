package trigger

import "github.com/prometheus/client_golang/prometheus"

// metrics of one stream's capture.
type metrics struct {
	units, windows, polls, keys, busy, emptied prometheus.Counter
	copied, loads                              prometheus.Counter
	tick                                       prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer, stream string) (*metrics, error) {
	label := prometheus.Labels{"stream": stream}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "millrace_capture_" + name, Help: help, ConstLabels: label})
	}
	m := &metrics{
		units:   counter("units_total", "Units that capture has given out."),
		windows: counter("windows_total", "Windows that were given out: looks at the source that found something, or were due."),
		polls:   counter("polls_total", "Times that the source was asked whether anything is new."),
		keys:    counter("keys_total", "Distinct keys that windows have found in the logs of keys."),
		busy:    counter("lock_waits_total", "Windows that were put off because somebody held or awaited a lock on a table against everybody."),
		emptied: counter("log_segments_emptied_total", "Segments of logs of keys that were emptied because all of them was published and old."),
		copied:  counter("copied_rows_total", "Rows read by loads, the first copy among them."),
		loads:   counter("loads_total", "Loads begun."),
		tick:    prometheus.NewGauge(prometheus.GaugeOpts{Name: "millrace_capture_tick", Help: "Number of the newest window.", ConstLabels: label}),
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.units, m.windows, m.polls, m.keys, m.busy, m.emptied, m.copied, m.loads, m.tick} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}
