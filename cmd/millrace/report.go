package main

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace-db/millrace/applier"
	"github.com/millrace-db/millrace/edge"
	"github.com/millrace-db/millrace/internal/config"
	"github.com/millrace-db/millrace/internal/edgestatus"
	"github.com/millrace-db/millrace/internal/topic"
)

// reportTopic is where the edges of a stream report to.
func reportTopic(s *config.Stream, client string, log *slog.Logger) topic.Config {
	return topic.Config{Brokers: s.Kafka.Brokers, Topic: edgestatus.TopicOf(s.Kafka.Topic), ClientID: client + s.Name, Logger: log}
}

// reports makes the reporter of a stream at this edge.
func (k *keeper) reports(one *kept, log *slog.Logger, metrics prometheus.Registerer) (*edgestatus.Reporter, error) {
	started := time.Now().UTC()
	return edgestatus.NewReporter(edgestatus.Config{
		Topic: reportTopic(one.config, "millrace-edge-", log), Interval: duration(k.c.Edge.Report), Logger: log, Registerer: metrics,
		State: func() string {
			s := one.applier.Status()
			return fmt.Sprint(s.Epoch, reportState(&s), s.Err != nil, one.store.VerifyNews())
		},
		Report: func(ctx context.Context) (*edgestatus.Report, error) {
			r, err := one.report(ctx)
			if err != nil {
				return nil, err
			}
			r.Edge, r.StartedAt = k.c.Edge.ID, started
			return r, nil
		},
	})
}

// reportState is the phase of an applier as people and peers are told it.
func reportState(s *applier.Status) string {
	if s.Phase == applier.PhaseStopped {
		if s.Err != nil {
			return edgestatus.StateFault
		}
		return edgestatus.StateStopped
	}
	return s.Phase // its other names are those of reports
}

// report says how far the stream is here.
func (k *kept) report(ctx context.Context) (*edgestatus.Report, error) {
	s := k.applier.Status()
	r := &edgestatus.Report{Stream: k.config.Name, State: reportState(&s), Version: version}
	if s.Err != nil {
		r.Error = oneLine(s.Err.Error())
	}
	if !s.StreamID.IsZero() {
		r.StreamID = s.StreamID.String()
	}
	err := k.store.View(ctx, func(v *edge.View) error {
		p := v.Place()
		r.Epoch, r.Index, r.Term = p.Epoch, p.Index, p.Term
		if p.Index > 0 {
			r.Chain = p.Chain.String()
		}
		if !p.Time.IsZero() {
			lag, at := max(0, time.Since(p.Time).Seconds()), p.Time.UTC()
			r.LagSeconds, r.SourceTime = &lag, &at
		}
		tables, err := v.Tables()
		if err != nil {
			return err
		}
		r.Tables = len(tables)
		for i := range tables {
			r.Rows += tables[i].Rows
			if why := tables[i].Diverged; why != "" {
				r.Diverged = append(r.Diverged, edgestatus.Diverged{Table: tables[i].Name, Reason: why})
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	// First what is pending, so that nothing is left out of both.
	r.Verifying = k.store.Verifying()
	for _, v := range k.store.Verified() {
		r.Verify = append(r.Verify, reportVerify(&v))
	}
	return r, nil
}

func reportVerify(v *edge.TableVerify) edgestatus.TableVerify {
	r := edgestatus.TableVerify{
		Table: v.Table, ID: v.ID, Index: v.Index, Equal: v.Equal, Different: v.Different, Skipped: v.Skipped, SkipReason: v.SkipReason,
		Pass: edgestatus.Pass(v.Pass), More: v.More,
	}
	if !v.Time.IsZero() {
		r.Time = &v.Time
	}
	for _, d := range v.Differences {
		r.Differences = append(r.Differences, edgestatus.Difference(d))
	}
	return r
}
