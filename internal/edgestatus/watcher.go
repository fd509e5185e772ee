package edgestatus

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/topic"
)

// watchPause is the time between two attempts to read the topic.
const watchPause = 10 * time.Second

// Watcher follows the reports of the edges of one stream.
type Watcher struct {
	config   topic.Config
	streamID string
	epoch    func() millrace.Epoch
	log      *slog.Logger

	mu    sync.Mutex
	fleet *Fleet
}

// NewWatcher makes a watcher of the reports about a stream. epoch returns its
// current epoch. The metrics have no label of the stream: the registerer adds it.
func NewWatcher(c topic.Config, streamID string, epoch func() millrace.Epoch, log *slog.Logger, registerer prometheus.Registerer) (*Watcher, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	w := &Watcher{config: c, streamID: streamID, epoch: epoch, log: log, fleet: new(Fleet)}
	if registerer == nil {
		return w, nil
	}
	if err := registerer.Register(fleetMetrics{w}); err != nil {
		return nil, fmt.Errorf("register metrics of edges: %w", err)
	}
	return w, nil
}

// Edges returns the edges as far as they are known, without their tables and
// errors.
func (w *Watcher) Edges(now time.Time) []Edge {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.fleet.Edges(now)
}

// Lowest returns the lowest index that an edge of the current epoch has
// reported. ok is false if none has.
func (w *Watcher) Lowest() (index millrace.Index, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.fleet.Lowest(w.epoch())
}

// Run follows the topic until ctx ends. Failures are logged once and tried
// again: publishing does not depend on them.
func (w *Watcher) Run(ctx context.Context) {
	failing := false
	for {
		err := w.follow(ctx, func() {
			if failing {
				w.log.Info("the reports of edges are read again", "topic", w.config.Topic)
			}
			failing = false
		})
		if ctx.Err() != nil {
			return
		}
		if !failing {
			w.log.Warn("the reports of edges cannot be read; publishing goes on", "topic", w.config.Topic, "error", err)
			failing = true
		}
		pause := time.NewTimer(watchPause)
		select {
		case <-ctx.Done():
			pause.Stop()
			return
		case <-pause.C:
		}
	}
}

// follow reads the topic from its start and on, until an error.
func (w *Watcher) follow(ctx context.Context, begun func()) error {
	t, err := topic.Open(ctx, w.config)
	if err != nil {
		return err
	}
	defer func() { _ = t.Close() }() // nothing is appended
	info, err := t.Info(ctx)
	if err != nil {
		return err
	}
	r, err := t.Read(ctx, info.Start)
	if err != nil {
		return err
	}
	defer r.Close()
	// What is known is replaced only by as much.
	fresh := &Fleet{StreamID: w.streamID, slim: true}
	if err := fresh.takeUntil(ctx, r, info.End); err != nil {
		return err
	}
	begun()
	w.mu.Lock()
	w.fleet = fresh
	w.mu.Unlock()
	for {
		m, err := r.Next(ctx)
		if err != nil {
			return err
		}
		w.mu.Lock()
		w.fleet.Take(m)
		w.mu.Unlock()
	}
}

// fleetMetrics are those of the edges of one stream.
type fleetMetrics struct{ w *Watcher }

var (
	edgesDesc = prometheus.NewDesc("millrace_edges",
		"Edges that have reported, by state: reporting, silent (no report for three intervals) or stopped.", []string{"state"}, nil)
	lowestDesc = prometheus.NewDesc("millrace_edge_lowest_index",
		"Lowest index that any edge of the current epoch has reported; NaN if none has.", nil, nil)
	ignoredDesc = prometheus.NewDesc("millrace_edge_reports_ignored_total",
		"Records in the topic of reports that are none.", nil, nil)
	differDesc = prometheus.NewDesc("millrace_edges_different",
		"Edges that have reported rows which differ from the source's.", nil, nil)
)

func (m fleetMetrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- edgesDesc
	ch <- lowestDesc
	ch <- ignoredDesc
	ch <- differDesc
}

func (m fleetMetrics) Collect(ch chan<- prometheus.Metric) {
	count := map[string]int{"reporting": 0, "silent": 0, StateStopped: 0}
	different := 0
	for _, e := range m.w.Edges(time.Now()) {
		switch {
		case e.State == StateStopped:
			count[StateStopped]++
		case e.Silent:
			count["silent"]++
		default:
			count["reporting"]++
		}
		if e.Differs() {
			different++
		}
	}
	for state, n := range count {
		ch <- prometheus.MustNewConstMetric(edgesDesc, prometheus.GaugeValue, float64(n), state)
	}
	lowest := math.NaN()
	if index, ok := m.w.Lowest(); ok {
		lowest = float64(index)
	}
	m.w.mu.Lock()
	ignored := m.w.fleet.Ignored
	m.w.mu.Unlock()
	ch <- prometheus.MustNewConstMetric(lowestDesc, prometheus.GaugeValue, lowest)
	ch <- prometheus.MustNewConstMetric(ignoredDesc, prometheus.CounterValue, float64(ignored))
	ch <- prometheus.MustNewConstMetric(differDesc, prometheus.GaugeValue, float64(different))
}
