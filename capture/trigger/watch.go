package trigger

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/capture/trigger/keylog"
)

const (
	// watchInterval is how often the source's statistics are looked at.
	watchInterval = time.Minute
	// suspected is how long a suspicion is shown.
	suspected = time.Hour
)

// suspicion is the newest that the statistics gave rise to.
type suspicion struct {
	mu   sync.Mutex
	text string
	at   time.Time
}

// Watch looks, while a Source is open, for writers that call no triggers; see
// keylog.Watch. A suspicion becomes a Warning, and has the Source verify the table
// next. It returns nil when ctx ends. Errors: keylog.ErrUnlogged.
//
// While none is open nobody at the source waits for the stream. Its logs go on
// growing.
func (c *Capture) Watch(ctx context.Context) error {
	w, err := keylog.NewWatch(c.cfg.Stream)
	if err != nil {
		return err
	}
	tick := time.NewTicker(c.watchInterval)
	defer tick.Stop()
	failed := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		s := c.source.Load()
		if s == nil {
			continue
		}
		err := c.watchOnce(ctx, w, s)
		switch {
		case errors.Is(err, keylog.ErrUnlogged):
			return fmt.Errorf("watch stream %s: %w", c.cfg.Stream, err)
		case err == nil && failed:
			c.log.Info("the source's statistics are looked at again")
		case err != nil && !failed && ctx.Err() == nil:
			c.log.Warn("the source's statistics cannot be looked at", "error", err)
		}
		failed = err != nil
	}
}

// watchOnce looks over a connection of its own: it may have to read a table.
func (c *Capture) watchOnce(ctx context.Context, w *keylog.Watch, s *Source) error {
	conn, err := c.connect(ctx)
	if err != nil {
		return err
	}
	defer capture.Close(conn)
	suspects, err := w.Look(ctx, conn)
	for _, found := range suspects {
		c.log.Warn(found.Text)
		c.suspicion.mu.Lock()
		c.suspicion.text, c.suspicion.at = found.Text, time.Now()
		c.suspicion.mu.Unlock()
		if s.verifying(found.Name) {
			continue // and is not to begin anew
		}
		if err := s.Verify([]string{found.Name}); err != nil && !errors.Is(err, capture.ErrNoTable) {
			return err
		}
	}
	return err
}

// verifying reports whether a pass over a table waits or is under way.
func (s *Source) verifying(name string) bool {
	return slices.ContainsFunc(s.Passes(), func(p capture.PassStatus) bool {
		return p.Table == name && (p.Phase == capture.PassWaiting || p.Phase == capture.PassRunning)
	})
}

// Warning says what an operator should know of the source, or nothing.
func (c *Capture) Warning() string {
	c.suspicion.mu.Lock()
	defer c.suspicion.mu.Unlock()
	if time.Since(c.suspicion.at) > suspected {
		return ""
	}
	return c.suspicion.text
}
