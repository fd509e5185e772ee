package serve

import (
	"fmt"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// route names what a request asks for, in metrics.
type route uint8

const (
	routeOther route = iota
	routeStreams
	routeStatus
	routeTables
	routeRow
	routeScan
	routeRowsGet
	routeHealth
	routeMetrics
	routeCompact
	routeImages
	routeRest
	routeWatch
	routeOpenAPI
	numRoutes
)

var routeNames = [numRoutes]string{"other", "streams", "status", "tables", "row", "scan", "rows_get", "health", "metrics", "compact", "images", "rest", "watch", "openapi"}

// metrics are looked up once, because a lookup by label costs as much as a read
// of a row.
type metrics struct {
	registerer prometheus.Registerer
	all        []prometheus.Collector
	seconds    [numRoutes]prometheus.Observer
	answers    [numRoutes][6]prometheus.Counter // by the first digit of the status
}

func newMetrics(r prometheus.Registerer, waiting func() float64) (*metrics, error) {
	m := &metrics{registerer: r}
	seconds := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "millrace_serve_request_seconds",
		Help:    "Time from a request's header to the end of its answer.",
		Buckets: []float64{25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 100e-3, 1},
	}, []string{"route"})
	answers := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "millrace_serve_answers_total",
		Help: "Answers by the class of their status.",
	}, []string{"route", "status"})
	m.all = []prometheus.Collector{seconds, answers, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "millrace_serve_waiting",
		Help: "Requests that wait for an index (min_index).",
	}, waiting)}
	for i := range m.seconds {
		m.seconds[i] = seconds.WithLabelValues(routeNames[i])
		for class := range m.answers[i] {
			m.answers[i][class] = answers.WithLabelValues(routeNames[i], strconv.Itoa(class)+"xx")
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
			return nil, fmt.Errorf("register metrics of serve: %w", err)
		}
	}
	return m, nil
}

func (m *metrics) observe(r route, status int, took time.Duration) {
	m.seconds[r].Observe(took.Seconds())
	m.answers[r][min(max(status/100, 0), 5)].Inc()
}

func (m *metrics) unregister() {
	if m.registerer == nil {
		return
	}
	for _, c := range m.all {
		m.registerer.Unregister(c)
	}
}
