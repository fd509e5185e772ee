package main

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture/trigger"
	"github.com/millrace-db/millrace/internal/config"
)

// triggerCapture is capture by logs of keys that triggers write.
type triggerCapture struct {
	*trigger.Capture
	tables []string
}

func newTriggerCapture(s *config.Stream, login string, log *slog.Logger, reg prometheus.Registerer) (capturing, error) {
	c, err := trigger.New(trigger.Config{
		URL: s.Source.URL.Reveal(), Stream: s.Name, Tables: s.Source.Tables,
		Columns: s.Source.Columns, Where: s.Source.Where,
		PollMin: duration(s.Source.Poll.Min), PollMax: duration(s.Source.Poll.Max), Heartbeat: duration(s.Source.Heartbeat),
		Retain: duration(s.Source.Audit.Retain), Roles: trigger.Roles(s.Source.Roles), Login: login, SpoolDir: s.Source.SpoolDir,
		LoadWorkers: s.Source.Load.Workers, LoadRate: s.Source.Load.RowsPerSecond, LoadMaxLag: duration(s.Source.Load.MaxReplicaLag),
		VerifyEvery: duration(s.Source.Verify.Every), VerifyRate: s.Source.Verify.RowsPerSecond,
		Logger: log, Registerer: reg,
	})
	if err != nil {
		return nil, err
	}
	return &triggerCapture{c, s.Source.Tables}, nil
}

func (c *triggerCapture) open(ctx context.Context, after *millrace.Checkpoint) (captured, error) {
	source, err := c.Open(ctx, after)
	if err != nil {
		return nil, err // and no *trigger.Source that is nil
	}
	return source, nil
}

func (c *triggerCapture) installSQL(ctx context.Context) (string, error) {
	text, err := c.InstallSQL(ctx)
	return "-- logs of keys, the triggers that write them, and roles\n" + strings.TrimSpace(text), err
}

func (c *triggerCapture) installed() string {
	return fmt.Sprintf("triggers and logs of keys: %s", strings.Join(c.tables, ", "))
}

func (c *triggerCapture) removed() string { return "triggers, logs of keys and registry entry" }
