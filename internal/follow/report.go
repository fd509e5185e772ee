package follow

import (
	"context"
	"fmt"
	"time"

	"github.com/millrace-db/millrace/applier"
	"github.com/millrace-db/millrace/edge"
	"github.com/millrace-db/millrace/internal/edgestatus"
	"github.com/millrace-db/millrace/internal/lineage"
	"github.com/millrace-db/millrace/internal/mend"
)

// reports makes the reporter of a stream at this edge.
func (f *Stream) reports() (*edgestatus.Reporter, error) {
	started := time.Now().UTC()
	var up func(payload []byte) bool
	if f.upstreams != nil {
		up = f.upstreams.Report
	}
	return edgestatus.NewReporter(edgestatus.Config{
		Up: up, Either: f.edge.UsesKafka(),
		Topic: lineage.Reports(f.config, "millrace-edge-", f.log), Interval: time.Duration(f.edge.Report), Logger: f.log, Registerer: f.metrics,
		State: func() string {
			s := f.status()
			return fmt.Sprint(s.Epoch, reportState(&s), s.Err != nil, f.home.Store().Space().Alarm != "", f.home.VerifyNews())
		},
		Report: func(ctx context.Context) (*edgestatus.Report, error) {
			r, err := f.report(ctx)
			if err != nil {
				return nil, err
			}
			r.Edge, r.StartedAt = f.edge.ID, started
			return r, nil
		},
	})
}

// status is that of the epoch that readers use, with all that is wrong.
func (f *Stream) status() applier.Status {
	f.mu.Lock()
	current := f.current
	f.mu.Unlock()
	s := applier.Status{Phase: applier.PhaseConnecting, StreamID: f.home.Stream(), Epoch: f.home.Place().Epoch}
	if current != nil {
		s = current.Status()
	}
	s.Err = f.Fault()
	return s
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
func (f *Stream) report(ctx context.Context) (*edgestatus.Report, error) {
	s := f.status()
	r := &edgestatus.Report{Stream: f.config.Name, State: reportState(&s), Version: f.version}
	if s.Err != nil {
		r.Error = mend.OneLine(s.Err.Error())
	}
	if !s.StreamID.IsZero() {
		r.StreamID = s.StreamID.String()
	}
	err := f.home.View(ctx, func(v *edge.View) error {
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
		for _, t := range v.Filter().Tables {
			r.Holds = append(r.Holds, edgestatus.Held{Table: t.Name, Prefixes: len(t.Prefixes)})
		}
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
	if l := f.LogStatus(); l != nil {
		r.Log = &edgestatus.Log{Oldest: l.Oldest, Newest: l.Newest}
	}
	r.UnprovenSince = f.home.Unproven().Image
	if b := f.Bootstrap(); b != nil && (b.Running() || !b.AgainAt.IsZero()) {
		r.Bootstrap = b.State
	}
	if epoch, place := f.home.Following(); epoch != 0 {
		r.Next = &edgestatus.Next{Epoch: epoch, Index: place.Index}
	}
	if s := f.home.Store().Space(); s.Map > 0 {
		r.Space = &edgestatus.Space{File: s.File, Map: s.Map, DiskFree: s.Disk, Growth: s.Growth, Alarm: s.Alarm}
	}
	r.Below = f.below()
	// First what is pending, so that nothing is left out of both.
	r.Verifying = f.home.Verifying()
	for _, v := range f.home.Verified() {
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
