package transfer

import (
	"fmt"
	"math"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are those of one stream; all carry its name in the label stream.
type metrics struct {
	batches, entries, bytes prometheus.Counter
	states, reigns, stale   prometheus.Counter
	ledgerRows, ledgerFails prometheus.Counter
	trims, trimFails        prometheus.Counter
	produce, readBack       prometheus.Histogram
}

// newMetrics makes and registers them. A nil registerer is no error.
func newMetrics(registerer prometheus.Registerer, t *Transfer) (*metrics, error) {
	labels := prometheus.Labels{"stream": t.config.Stream.Name}
	var all []prometheus.Collector
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: "millrace_transfer_" + name, Help: help, ConstLabels: labels})
		all = append(all, c)
		return c
	}
	latency := func(name, help string) prometheus.Histogram {
		h := prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "millrace_transfer_" + name, Help: help, ConstLabels: labels,
			Buckets: prometheus.ExponentialBucketsRange(0.0001, 30, 20),
		})
		all = append(all, h)
		return h
	}
	gauge := func(name, help string, value func(Status) float64) {
		all = append(all, prometheus.NewGaugeFunc(
			prometheus.GaugeOpts{Name: "millrace_transfer_" + name, Help: help, ConstLabels: labels},
			func() float64 { return value(t.Status()) }))
	}
	m := &metrics{
		batches:     counter("batches_total", "Batches that the topic has acknowledged."),
		entries:     counter("entries_total", "Entries in those batches."),
		bytes:       counter("bytes_total", "Bytes of those batches as stored."),
		states:      counter("states_total", "State records that the topic has acknowledged."),
		reigns:      counter("reigns_total", "Reigns that this process has begun."),
		stale:       counter("stale_records_total", "Records of other publishers that were void when read."),
		ledgerRows:  counter("ledger_rows_total", "Rows written to the ledger."),
		ledgerFails: counter("ledger_failures_total", "Rows that could not be written to the ledger and were tried again."),
		trims:       counter("trims_total", "Times that records were deleted from the topic, as kafka.retain says."),
		trimFails:   counter("trim_failures_total", "Looks at what may go of the topic that failed."),
		produce:     latency("produce_seconds", "Time from sending a batch to its acknowledgement."),
		readBack:    latency("read_back_seconds", "Time from sending a record to its acceptance by the publisher's own fold."),
	}
	gauge("index", "Index of the newest complete entry that was read back.", func(s Status) float64 { return float64(s.Index) })
	gauge("term", "Term of the current or last reign.", func(s Status) float64 { return float64(s.Term) })
	gauge("unread_bytes", "Bytes that are published and not yet read back.", func(s Status) float64 { return float64(s.UnreadBytes) })
	gauge("publishing", "1 while a reign is publishing.", func(s Status) float64 {
		if s.Phase == PhasePublishing {
			return 1
		}
		return 0
	})
	gauge("lag_seconds", "Now minus the source time of the newest unit that was read back.", func(s Status) float64 {
		if s.LagSeconds == nil {
			return math.NaN()
		}
		return *s.LagSeconds
	})
	trim := func(name, help string, value func(*Trim) float64) {
		all = append(all, prometheus.NewGaugeFunc(
			prometheus.GaugeOpts{Name: "millrace_transfer_" + name, Help: help, ConstLabels: labels},
			func() float64 {
				newest, _ := t.newestTrim()
				if newest == nil {
					return math.NaN()
				}
				return value(newest)
			}))
	}
	trim("topic_start_index", "Index behind which the topic begins, as of the newest look; NaN before.", func(t *Trim) float64 { return float64(t.ToIndex) })
	trim("trim_held_edges", "Edges that still need records which kafka.retain would let go.", func(t *Trim) float64 { return float64(len(t.Holders) + t.More) })
	if registerer == nil {
		return m, nil
	}
	for _, c := range all {
		if err := registerer.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics of transfer of stream %s: %w", t.config.Stream.Name, err)
		}
	}
	return m, nil
}
