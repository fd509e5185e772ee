package wal

import "github.com/prometheus/client_golang/prometheus"

// metrics of one stream's capture.
type metrics struct {
	units, bytes, copied, loads prometheus.Counter
	received, confirmed         prometheus.Gauge
	spool, files, open          prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer, stream string) (*metrics, error) {
	label := prometheus.Labels{"stream": stream}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "millrace_capture_" + name, Help: help, ConstLabels: label})
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: "millrace_capture_" + name, Help: help, ConstLabels: label})
	}
	m := &metrics{
		units:     counter("units_total", "Units that capture has given out."),
		bytes:     counter("bytes_total", "Bytes of replication messages received from the source."),
		copied:    counter("copied_rows_total", "Rows read by loads, the first copy among them."),
		loads:     counter("loads_total", "Loads begun."),
		received:  gauge("received_lsn_bytes", "End of the newest transaction received, as a byte position in the WAL."),
		confirmed: gauge("confirmed_lsn_bytes", "Position that the source has been told is done, as a byte position in the WAL."),
		open:      gauge("open_transactions", "Transactions that the source streams and has not ended yet."),
		spool:     gauge("spool_bytes", "Bytes of transactions that are held in spool files."),
		files:     gauge("spool_files", "Spool files that there are."),
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.units, m.bytes, m.copied, m.loads, m.received, m.confirmed, m.spool, m.files, m.open} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}
