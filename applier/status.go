package applier

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace-db/millrace"
)

// The phases of an Applier.
const (
	// PhaseConnecting: the source is being opened, or nothing has come yet.
	PhaseConnecting = "connecting"
	// PhaseCopy: changes are applied, and a load of a table is under way.
	PhaseCopy = "copy"
	// PhaseStream: changes are applied as they come.
	PhaseStream = "stream"
	// PhaseRetry: an error occurred; the applier waits and begins again.
	PhaseRetry = "retry"
	// PhaseStopped: Run has returned.
	PhaseStopped = "stopped"
)

// Status shows people where an applier stands.
type Status struct {
	StreamID millrace.StreamID
	Epoch    millrace.Epoch
	// Index and Chain are of the newest unit that is committed.
	Index millrace.Index
	Chain millrace.Chain
	Term  millrace.Term
	// LagSeconds is now minus the time at which the source committed that unit;
	// nil if none has been applied.
	LagSeconds *float64
	// Phase is one of the Phase constants.
	Phase string
	// Err is the error of the newest attempt, nil once another has brought
	// something.
	Err error
}

// status is what Status is made of, apart from what the store knows.
type status struct {
	mu    sync.Mutex
	phase string
	err   error
}

func (s *status) set(phase string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.phase, s.err = phase, err
}

func (s *status) stop(err error) { s.set(PhaseStopped, err) }
func (s *status) wait(err error) { s.set(PhaseRetry, err) }

// connect keeps the error of the attempt before.
func (s *status) connect() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.phase = PhaseConnecting
}

func (s *status) applied(c *millrace.Checkpoint) { s.following(len(c.Catalog.Loads) > 0) }

func (s *status) following(loading bool) {
	if loading {
		s.set(PhaseCopy, nil)
		return
	}
	s.set(PhaseStream, nil)
}

// Status returns where the applier stands.
func (a *Applier) Status() Status {
	p := a.config.Store.Place()
	s := Status{StreamID: a.config.Store.Stream(), Epoch: p.Epoch, Index: p.Index, Chain: p.Chain, Term: p.Term, LagSeconds: lag(p.Time)}
	a.status.mu.Lock()
	defer a.status.mu.Unlock()
	s.Phase, s.Err = a.status.phase, a.status.err
	if s.Phase == "" {
		s.Phase = PhaseConnecting
	}
	return s
}

// lag returns the seconds since t, or nil if t is zero.
func lag(t time.Time) *float64 {
	if t.IsZero() {
		return nil
	}
	seconds := max(0, time.Since(t).Seconds())
	return &seconds
}

type metrics struct {
	registerer prometheus.Registerer
	records    *prometheus.CounterVec
	restarts   prometheus.Counter
	lag        prometheus.GaugeFunc
}

func newMetrics(a *Applier) *metrics {
	m := &metrics{
		registerer: a.config.Registerer,
		records: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_applier_records_total", Help: "Records folded, by what the fold made of them.",
		}, []string{"outcome"}),
		restarts: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "millrace_applier_restarts_total", Help: "Times that reading began again at the checkpoint after an error.",
		}),
		lag: prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "millrace_applier_lag_seconds", Help: "Now minus the time at which the source committed the newest applied unit; -1 if none was applied.",
		}, func() float64 {
			if l := lag(a.config.Store.Place().Time); l != nil {
				return *l
			}
			return -1
		}),
	}
	if m.registerer != nil {
		m.registerer.MustRegister(m.records, m.restarts, m.lag)
	}
	return m
}

func (m *metrics) unregister() {
	if m.registerer != nil {
		m.registerer.Unregister(m.records)
		m.registerer.Unregister(m.restarts)
		m.registerer.Unregister(m.lag)
	}
}
