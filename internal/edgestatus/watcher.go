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

	// History is the publisher's own, to compare edges with; nil for none. It is set
	// before Run.
	History *History

	mu    sync.Mutex
	fleet *Fleet
	// following tells that what was in the topic is in fleet, up to before offset read.
	// changed is closed, and replaced, when either changes.
	following bool
	read      millrace.Offset
	changed   chan struct{}
}

// NewWatcher makes a watcher of the reports about a stream. epoch returns its
// current epoch. The metrics have no label of the stream: the registerer adds it.
func NewWatcher(c topic.Config, streamID string, epoch func() millrace.Epoch, log *slog.Logger, registerer prometheus.Registerer) (*Watcher, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	w := &Watcher{config: c, streamID: streamID, epoch: epoch, log: log, fleet: new(Fleet), changed: make(chan struct{})}
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

// Summary sums up the edges as far as they are known, those below relays included.
func (w *Watcher) Summary(now time.Time) *Summary {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.fleet.Summary(now, w.History)
}

// Fresh returns the edges with all that was in the topic of reports when it was called.
func (w *Watcher) Fresh(ctx context.Context) ([]Edge, error) {
	end, err := w.end(ctx)
	if err != nil {
		return nil, err
	}
	for {
		w.mu.Lock()
		ok, read, changed := w.following && w.read >= end, w.read, w.changed
		if ok {
			defer w.mu.Unlock()
			return w.fleet.Edges(time.Now()), nil
		}
		w.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("read the reports of edges up to offset %v, come to %v: %w", end, read, context.Cause(ctx))
		}
	}
}

// end is where the next report will stand.
func (w *Watcher) end(ctx context.Context) (millrace.Offset, error) {
	t, err := topic.Open(ctx, w.config)
	if err != nil {
		return 0, err
	}
	defer func() { _ = t.Close() }() // nothing is appended
	info, err := t.Info(ctx)
	return info.End, err
}

// come notes how far the topic was read.
func (w *Watcher) come(following bool, read millrace.Offset, do func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if do != nil {
		do()
	}
	w.following, w.read = following, read
	close(w.changed)
	w.changed = make(chan struct{})
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
		w.come(false, 0, nil)
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
	r, err := t.ReadGathered(ctx, info.Start)
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
	w.come(true, info.End, func() { w.fleet = fresh })
	for {
		m, err := r.Next(ctx)
		if err != nil {
			return err
		}
		w.come(true, m.Offset+1, func() { w.fleet.Take(m) })
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
	versionsDesc = prometheus.NewDesc("millrace_edges_by_version", "Edges by the version of the program, sixteen at most by name.", []string{"version"}, nil)
	forkedDesc   = prometheus.NewDesc("millrace_edges_forked",
		"Edges whose chain is another one than the publisher, their relay or another edge has at the same index.", nil, nil)
	roomDesc = prometheus.NewDesc("millrace_edges_room_alarm", "Edges whose store has little room left.", nil, nil)
	goneDesc = prometheus.NewDesc("millrace_edges_gone", "Edges that followed a relay within the last hour and do so no more.", nil, nil)
	lagDesc  = prometheus.NewDesc("millrace_edges_lag_seconds", "How far edges were behind the source when they reported. It has no sum.", nil, nil)
)

func (m fleetMetrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- edgesDesc
	ch <- lowestDesc
	ch <- ignoredDesc
	ch <- differDesc
	ch <- versionsDesc
	ch <- forkedDesc
	ch <- roomDesc
	ch <- goneDesc
	ch <- lagDesc
}

func (m fleetMetrics) Collect(ch chan<- prometheus.Metric) {
	s := m.w.Summary(time.Now())
	for state, n := range map[string]int{"reporting": s.Edges - s.Silent - s.Stopped, "silent": s.Silent, StateStopped: s.Stopped} {
		ch <- prometheus.MustNewConstMetric(edgesDesc, prometheus.GaugeValue, float64(max(n, 0)), state)
	}
	for version, n := range s.Versions {
		ch <- prometheus.MustNewConstMetric(versionsDesc, prometheus.GaugeValue, float64(n), version)
	}
	ch <- prometheus.MustNewConstMetric(forkedDesc, prometheus.GaugeValue, float64(s.Forked))
	ch <- prometheus.MustNewConstMetric(roomDesc, prometheus.GaugeValue, float64(s.Room))
	ch <- prometheus.MustNewConstMetric(goneDesc, prometheus.GaugeValue, float64(s.Gone))
	buckets, below := make(map[float64]uint64, len(lagBounds)), uint64(0)
	for i, bound := range lagBounds {
		below += uint64(s.Lag[i])
		buckets[bound] = below
	}
	// There is no sum: what relays send up has the classes alone.
	ch <- prometheus.MustNewConstHistogram(lagDesc, below+uint64(s.Lag[len(lagBounds)]), math.NaN(), buckets)
	lowest := math.NaN()
	if index, ok := m.w.Lowest(); ok {
		lowest = float64(index)
	}
	m.w.mu.Lock()
	ignored := m.w.fleet.Ignored
	m.w.mu.Unlock()
	ch <- prometheus.MustNewConstMetric(lowestDesc, prometheus.GaugeValue, lowest)
	ch <- prometheus.MustNewConstMetric(ignoredDesc, prometheus.CounterValue, float64(ignored))
	ch <- prometheus.MustNewConstMetric(differDesc, prometheus.GaugeValue, float64(s.Different))
}
