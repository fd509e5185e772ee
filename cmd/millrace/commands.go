package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/transfer"
	"github.com/millrace-db/millrace/transfer/admin"
)

// commands gives the admin listener's commands to the capture that a stream's
// publisher has open. Another one is opened for each reign, so that is looked up
// each time.
type commands struct {
	source atomic.Pointer[captured]
	status func() transfer.Status
	// paused outlives a reign; pausing is held while a source is told.
	paused  atomic.Bool
	pausing sync.Mutex
}

// open opens the capture of a reign.
func (c *commands) open(ctx context.Context, from capturing, after *millrace.Checkpoint) (transfer.Source, error) {
	source, err := from.open(ctx, after)
	if err != nil {
		return nil, err
	}
	c.pausing.Lock()
	defer c.pausing.Unlock()
	source.PauseLoads(c.paused.Load())
	c.source.Store(&source)
	return source, nil
}

// now returns the capture that is open, nil if none has been yet.
func (c *commands) now() captured {
	if source := c.source.Load(); source != nil {
		return *source
	}
	return nil
}

// Load implements admin.Commands.
func (c *commands) Load(ctx context.Context, table, reason string) error {
	source := c.now()
	if source == nil {
		return admin.ErrOpening
	}
	return named(source.RequestLoad(ctx, table, reason))
}

// Loads implements admin.Commands.
func (c *commands) Loads() []admin.LoadStatus {
	source := c.now()
	if source == nil {
		return nil
	}
	var all []admin.LoadStatus
	for _, l := range source.Loads() {
		all = append(all, loadStatus(&l, c.paused.Load(), time.Now()))
	}
	return all
}

func loadStatus(l *capture.LoadStatus, paused bool, now time.Time) admin.LoadStatus {
	s := admin.LoadStatus{
		Table: l.Table, Reason: l.Reason, Rows: l.Rows, BlocksDone: l.BlocksDone, Blocks: l.Blocks,
		Phase: admin.PhaseRunning, StartedAt: l.StartedAt, Paused: paused,
	}
	switch {
	case l.Done:
		s.Phase, s.Estimate = admin.PhaseDone, l.Rows
		return s
	case l.Waiting:
		s.Phase, s.Estimate = admin.PhaseWaiting, l.Rows
		return s
	}
	if l.Blocks > 0 && l.BlocksDone > 0 {
		s.Estimate = uint64(float64(l.Rows) * float64(l.Blocks) / float64(l.BlocksDone))
	}
	// What was read before this process took the load up says nothing of its pace.
	if read := l.BlocksDone - min(l.BlocksBefore, l.BlocksDone); read > 0 && !paused && l.Blocks > l.BlocksDone {
		eta := now.Add(time.Duration(float64(now.Sub(l.StartedAt)) * float64(l.Blocks-l.BlocksDone) / float64(read)))
		s.ETA = &eta
	}
	return s
}

// PauseLoads implements admin.Commands.
func (c *commands) PauseLoads(pause bool) {
	c.pausing.Lock()
	defer c.pausing.Unlock()
	c.paused.Store(pause)
	if source := c.now(); source != nil {
		source.PauseLoads(pause)
	}
}

// Verify implements admin.Commands.
func (c *commands) Verify(_ context.Context, tables []string) error {
	source := c.now()
	if source == nil {
		return admin.ErrOpening
	}
	return named(source.Verify(tables))
}

// Verifications implements admin.Commands.
func (c *commands) Verifications() []admin.VerifyStatus {
	source := c.now()
	if source == nil {
		return nil
	}
	// A pass is done when a position behind it has been read back, so the index
	// that was read back is that of its last entry, or later.
	passes, index := source.Passes(), c.status().Index
	var all []admin.VerifyStatus
	for _, p := range passes {
		all = append(all, admin.VerifyStatus{
			ID: p.ID, Table: p.Table, Phase: p.Phase, Ranges: p.Ranges, Rows: p.Rows, Index: index,
			RequestedAt: p.RequestedAt, Problem: p.Problem,
		})
	}
	return all
}

// named gives capture's errors the listener's names.
func named(err error) error {
	switch {
	case errors.Is(err, capture.ErrNoTable):
		return fmt.Errorf("%w: %w", admin.ErrUnknownTable, err)
	case errors.Is(err, capture.ErrLoading):
		return fmt.Errorf("%w: %w", admin.ErrLoading, err)
	}
	return err
}
