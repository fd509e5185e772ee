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
)

// Config of a Reporter.
type Config struct {
	// Topic is the topic of reports.
	Topic topic.Config
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
	config  Config
	open    *topic.Topic
	sent    *prometheus.CounterVec
	failing bool
}

// NewReporter makes a reporter.
func NewReporter(c Config) (*Reporter, error) {
	if c.Interval < leastGap || c.Report == nil || c.State == nil {
		return nil, fmt.Errorf("make reporter: interval %v (least %v) or functions are missing", c.Interval, leastGap)
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	r := &Reporter{config: c, sent: prometheus.NewCounterVec(prometheus.CounterOpts{
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
		}
		select {
		case <-ctx.Done():
			if !r.failing {
				r.report(context.WithoutCancel(ctx), lastLimit, StateStopped)
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
			mend := "see that this edge may reach and write the topic; the edge goes on without"
			if errors.Is(err, topic.ErrNoTopic) {
				mend = "millrace init makes it; the edge goes on without"
			}
			r.config.Logger.Warn("the status of this edge is not reported", "topic", r.config.Topic.Topic, "error", err, "mend", mend)
		}
		r.failing = true
		return
	}
	r.sent.WithLabelValues("sent").Inc()
	if r.failing {
		r.config.Logger.Info("the status of this edge is reported again", "topic", r.config.Topic.Topic)
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
	if r.open == nil {
		if r.open, err = topic.Open(ctx, r.config.Topic); err != nil {
			return err
		}
	}
	if err := r.open.Put(ctx, []byte(report.Edge), value); err != nil {
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
