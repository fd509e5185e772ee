package main

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture/wal"
	"github.com/millrace-db/millrace/internal/config"
	"github.com/millrace-db/millrace/internal/control"
	"github.com/millrace-db/millrace/sql"
)

// walCapture is capture by logical decoding.
type walCapture struct {
	*wal.Capture
	publication string
	tables      []string
}

func newWALCapture(s *config.Stream, registered control.Stream, log *slog.Logger, reg prometheus.Registerer) (capturing, error) {
	cfg := wal.Config{
		URL: s.Source.URL.Reveal(), Stream: s.Name, Tables: s.Source.Tables,
		Columns: s.Source.Columns, Where: s.Source.Where,
		Slot: registered.Slot, Publication: registered.Publication,
		MemoryBudget: int64(s.Source.Memory), SpoolDir: s.Source.SpoolDir, Heartbeat: duration(s.Source.Heartbeat),
		LoadWorkers: s.Source.Load.Workers, LoadRate: s.Source.Load.RowsPerSecond, LoadMaxLag: duration(s.Source.Load.MaxReplicaLag),
		VerifyEvery: duration(s.Source.Verify.Every), VerifyRate: s.Source.Verify.RowsPerSecond,
		WarnShare: float64(s.Source.WAL.Warn) / 100, RetainLimit: int64(s.Source.WAL.Limit), DropAtLimit: s.Source.WAL.OnLimit == config.OnLimitDrop,
		Logger: log, Registerer: reg,
	}
	if cfg.WarnShare == 0 {
		cfg.WarnShare = -1 // 0 is the stage's word for its default
	}
	if cfg.Slot == "" {
		cfg.Slot, cfg.Publication = control.DefaultSlot(s.Name), control.DefaultPublication(s.Name)
	}
	c, err := wal.New(cfg)
	if err != nil {
		return nil, err
	}
	return &walCapture{c, cfg.Publication, cfg.Tables}, nil
}

func (c *walCapture) open(ctx context.Context, after *millrace.Checkpoint) (captured, error) {
	source, err := c.Open(ctx, after)
	if err != nil {
		return nil, err // and no *wal.Source that is nil
	}
	return source, nil
}

func (c *walCapture) installSQL(context.Context) (string, error) {
	return fmt.Sprintf("-- publication, made or altered to hold exactly these tables\n%s;\n-- event triggers, where the role may make them\n%s",
		c.PublicationSQL(), strings.TrimSpace(sql.EventTriggers)), nil
}

func (c *walCapture) installed() string {
	return fmt.Sprintf("publication %s: %s", c.publication, strings.Join(c.tables, ", "))
}

func (c *walCapture) removed() string { return "publication, slot and registry entry" }
