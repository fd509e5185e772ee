package trigger

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/millrace-db/millrace/capture/trigger/keylog"
)

// pruneRows is how many ticks are deleted at once, at most.
const pruneRows = 10_000

// tending is what the Source knows of its clearing away.
type tending struct {
	at time.Time
	// failed is the newest failure, kept are the segments that were not emptied
	// when they were last looked at: what changes is logged.
	failed string
	kept   []string
}

// tend clears away, now and then, what is confirmed and old: ticks, and the logs of
// keys. That it fails stops nothing; it is logged, once.
func (s *Source) tend(ctx context.Context) error {
	p := s.confirmed.Load()
	if p == nil || time.Since(s.tending.at) < s.c.tendInterval {
		return nil
	}
	s.tending.at = time.Now()
	_, err := keylog.Prune(ctx, s.conn, s.c.cfg.Stream, uint64(s.epoch), p.Tick, s.c.tickKeep, pruneRows)
	if err == nil {
		err = s.rotate(ctx, p.Snapshot)
	}
	if err != nil && (ctx.Err() != nil || s.conn.IsClosed()) {
		return errors.Join(context.Cause(ctx), fmt.Errorf("clear away what is published: %w", err))
	}
	failed := ""
	if err != nil {
		failed = err.Error()
	}
	if failed != s.tending.failed {
		if err != nil {
			s.c.log.Warn("what is published and old cannot be cleared away", "error", err)
		} else {
			s.c.log.Info("what is published and old is cleared away again")
		}
		s.tending.failed = failed
	}
	return nil
}

// rotate empties segments of the logs that are published.
func (s *Source) rotate(ctx context.Context, snapshot string) error {
	done, err := keylog.Rotate(ctx, s.conn, s.c.cfg.Stream, snapshot)
	if err != nil {
		return err
	}
	if len(done.Emptied) > 0 {
		s.c.log.Debug("segments of logs emptied", "segments", done.Emptied)
		s.c.metrics.emptied.Add(float64(len(done.Emptied)))
	}
	kept := append(done.Kept, done.Busy...)
	if len(kept) > 0 && !slices.Equal(kept, s.tending.kept) {
		s.c.log.Info("segments of logs are not emptied yet: they have keys that are not published, or are in use", "segments", kept)
	}
	s.tending.kept = kept
	return nil
}
