package edgestatus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace-db/millrace/internal/topic"
)

const (
	// leastGap is the least time between two reports.
	leastGap = time.Second
	// sendLimit bounds the time that a report may take to be sent, lastLimit that
	// of the last one.
	sendLimit = 10 * time.Second
	lastLimit = 3 * time.Second
	// retryGap is the longest time until a report that failed is tried again.
	retryGap = 5 * time.Second
)

// Config of a Reporter.
type Config struct {
	// Topic is the topic of reports. It has no brokers where Up alone takes them.
	Topic topic.Config
	// Up hands a report to the relay that this edge follows, which sums it up with
	// others; nil where the edge follows none, and reports to the topic. It tells
	// whether the report was taken.
	Up func(payload []byte) bool
	// Either tells that a report goes to the topic where Up takes none.
	Either bool
	// Interval is the time between two reports when nothing changes.
	Interval time.Duration
	// Report makes the report; Interval, Format and ReportedAt are filled in.
	Report func(ctx context.Context) (*Report, error)
	// State returns a text that changes when a report should be sent at once. It
	// is asked once a second.
	State func() string
	// Logger gets the first of several failures, and the end of them.
	Logger *slog.Logger
	// Registerer takes the metrics; nil drops them.
	Registerer prometheus.Registerer
}

// Reporter sends the reports of one edge about one stream.
type Reporter struct {
	config Config
	// lastLimit bounds the last report.
	lastLimit time.Duration
	open      *topic.Topic
	sent      *prometheus.CounterVec
	failing   bool
	// retracted tells that no report of this edge's own is left in the topic, where
	// it would be counted beside the one that goes up the tree.
	retracted bool
}

// NewReporter makes a reporter.
func NewReporter(c Config) (*Reporter, error) {
	if c.Interval < leastGap || c.Report == nil || c.State == nil {
		return nil, fmt.Errorf("make reporter: interval %v (least %v) or functions are missing", c.Interval, leastGap)
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	r := &Reporter{config: c, lastLimit: lastLimit, sent: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "millrace_edge_reports_total", Help: "Reports of this edge to the topic of reports, by result: sent or failed.",
	}, []string{"result"})}
	r.sent.WithLabelValues("sent")
	r.sent.WithLabelValues("failed")
	if c.Registerer != nil {
		if err := c.Registerer.Register(r.sent); err != nil {
			return nil, fmt.Errorf("register metrics of reports: %w", err)
		}
	}
	return r, nil
}

// Run reports until ctx ends, and then once more that the edge has stopped. What
// goes wrong is logged once and tried again: it is never the edge's end.
func (r *Reporter) Run(ctx context.Context) {
	defer r.close()
	tick := time.NewTicker(leastGap)
	defer tick.Stop()
	var next time.Time
	last := ""
	for {
		state := r.config.State()
		if now := time.Now(); !now.Before(next) || state != last && !r.failing {
			r.report(ctx, sendLimit, "")
			last, next = state, now.Add(r.config.Interval)
			if r.failing {
				next = now.Add(min(r.config.Interval, retryGap))
			}
		}
		select {
		case <-ctx.Done():
			if !r.failing {
				r.report(context.WithoutCancel(ctx), r.lastLimit, StateStopped)
			}
			return
		case <-tick.C:
		}
	}
}

// report sends a report, of another state than the edge's own where one is
// given.
func (r *Reporter) report(ctx context.Context, limit time.Duration, state string) {
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := r.send(limited, state)
	if ctx.Err() != nil {
		return // the last one follows
	}
	if err != nil {
		r.sent.WithLabelValues("failed").Inc()
		if !r.failing {
			to, mend := "topic "+r.config.Topic.Topic, "see that this edge may reach and write the topic; the edge goes on without"
			if errors.Is(err, topic.ErrNoTopic) {
				mend = "millrace init makes it; the edge goes on without"
			}
			if r.config.Up != nil {
				to, mend = "relay", "the status of this edge says whom it follows; it goes on without"
			}
			r.config.Logger.Warn("the status of this edge is not reported", "to", to, "error", err, "mend", mend)
		}
		r.failing = true
		return
	}
	r.sent.WithLabelValues("sent").Inc()
	if r.failing {
		r.config.Logger.Info("the status of this edge is reported again")
	}
	r.failing = false
}

func (r *Reporter) send(ctx context.Context, state string) error {
	report, err := r.config.Report(ctx)
	if err != nil {
		return err
	}
	report.Interval, report.ReportedAt = r.config.Interval.Seconds(), time.Now().UTC()
	if state != "" {
		report.State = state
	}
	value, err := report.Encode()
	if err != nil {
		return err
	}
	if r.config.Up != nil {
		return r.sendUp(ctx, report.Edge, value)
	}
	return r.put(ctx, report.Edge, value)
}

// errNotTaken occurs while no relay takes reports.
var errNotTaken = errors.New("no relay that this edge follows takes its report now")

// sendUp hands a report to the relay. Once that works, what an edge of this name has
// put into the topic is taken away.
func (r *Reporter) sendUp(ctx context.Context, edge string, value []byte) error {
	if !r.config.Up(value) {
		if !r.config.Either {
			return errNotTaken
		}
		r.retracted = false
		return r.put(ctx, edge, value)
	}
	if !r.retracted && len(r.config.Topic.Brokers) > 0 {
		if err := r.put(ctx, edge, nil); err != nil && !errors.Is(err, topic.ErrNoTopic) {
			r.config.Logger.Debug("an older report of this edge may be left in the topic", "error", err)
			return nil // it is tried again with the next one
		}
		r.close()
	}
	r.retracted = true
	return nil
}

// put puts a report into the topic, or takes it away.
func (r *Reporter) put(ctx context.Context, edge string, value []byte) (err error) {
	if r.open == nil {
		if r.open, err = topic.Open(ctx, r.config.Topic); err != nil {
			return err
		}
	}
	if err := r.open.Put(ctx, []byte(edge), value); err != nil {
		r.close()
		return err
	}
	return nil
}

func (r *Reporter) close() {
	if r.open != nil {
		_ = r.open.Close() // what was sent is acknowledged
		r.open = nil
	}
}
