package main

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/internal/config"
	"github.com/millrace-db/millrace/internal/control"
	"github.com/millrace-db/millrace/internal/finding"
	"github.com/millrace-db/millrace/transfer"
)

// capturing is what commands need of a capture, whichever way it has. An adapter
// for each way adds what only commands say of it.
type capturing interface {
	// Check says what does not fit at the source, CheckAnew the same for a stream
	// that begins anew, CheckPosition whether capture could go on at a position.
	Check(ctx context.Context) ([]finding.Finding, error)
	CheckAnew(ctx context.Context) ([]finding.Finding, error)
	CheckPosition(ctx context.Context, position func(context.Context) (millrace.Position, time.Time, error)) ([]finding.Finding, error)
	// Reach refuses a source that no stream can be captured from.
	Reach(ctx context.Context) error
	// Install makes what capture needs at the source, or makes fit what is there;
	// Uninstall takes it away.
	Install(ctx context.Context) error
	Uninstall(ctx context.Context) error
	// Watch looks after the source until ctx ends, Warning says what is amiss
	// there while the stream goes on.
	Watch(ctx context.Context) error
	Warning() string

	// open opens it after a checkpoint.
	open(ctx context.Context, after *millrace.Checkpoint) (captured, error)
	// installSQL is what Install would run, for people to read.
	installSQL(ctx context.Context) (string, error)
	// installed says what Install has made, removed what Uninstall has.
	installed() string
	removed() string
}

// captured is a capture that is open.
type captured interface {
	transfer.Source
	RequestLoad(ctx context.Context, table, reason string) error
	Loads() []capture.LoadStatus
	PauseLoads(pause bool)
	Verify(tables []string) error
	Passes() []capture.PassStatus
}

// slotted is a capture that keeps a place at the source by a replication slot.
type slotted interface {
	// ForeignSlot reports whether the slot is somebody else's.
	ForeignSlot(ctx context.Context) (bool, error)
	// DropSlot drops it, if it is ours and there.
	DropSlot(ctx context.Context) (bool, error)
}

// newCapture makes the capture of a stream. registered is its row in the
// registry; the zero value stands for the names that init would give.
func newCapture(s *config.Stream, registered control.Stream, log *slog.Logger, reg prometheus.Registerer) (capturing, error) {
	switch s.Source.Capture {
	case config.CaptureWAL:
		return newWALCapture(s, registered, log, reg)
	case config.CaptureTrigger:
		return newTriggerCapture(s, s.Source.Login(), log, reg)
	}
	return nil, fmt.Errorf("stream %s: no way to capture %s", s.Name, s.Source.Capture) // the configuration has checked it
}

// roled is a capture that makes roles at the source.
type roled interface {
	// UninstallRoles drops those that nobody else uses, and returns the others.
	UninstallRoles(ctx context.Context) (left []string, err error)
}
