package transfer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/control"
)

// ErrEpoch occurs when a new epoch of the stream was begun since this process has
// read the registry: while it waited for the hold, or was stopped. It has nothing
// to publish in the old one. Mend: start it again, as any supervisor does.
var ErrEpoch = errors.New("a new epoch of the stream was begun")

// acquireHold takes the hold and looks whether the stream is still in the epoch
// that is to be published: a new one is begun under the hold.
func acquireHold(ctx context.Context, url string, s *control.Stream, p millrace.PublisherID, lease time.Duration, logger *slog.Logger) (Hold, error) {
	// One that was stopped while a new epoch was begun need not wait to learn it.
	if err := sameEpoch(ctx, url, s); err != nil {
		return nil, err
	}
	hold, err := control.AcquireHold(ctx, url, s.Name, p, lease, logger)
	if err != nil {
		return nil, err
	}
	if err := sameEpoch(ctx, url, s); err != nil {
		return nil, errors.Join(err, hold.Close(ctx))
	}
	return hold, nil
}

func sameEpoch(ctx context.Context, url string, s *control.Stream) error {
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		return fmt.Errorf("look at the stream's epoch: %w", err)
	}
	// A pooler, which the hold refuses with its mend, has no place for prepared
	// statements.
	cfg.DefaultQueryExecMode = pgx.QueryExecModeExec
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return fmt.Errorf("look at the stream's epoch: %w", err)
	}
	defer func() {
		limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeLimit)
		defer cancel()
		control.CloseConn(limited, conn)
	}()
	now, err := control.LoadStream(ctx, conn, s.Name)
	if err != nil {
		return err
	}
	if now.Epoch != s.Epoch || now.TopicID != s.TopicID {
		return fmt.Errorf("%w: it is at epoch %v in topic %s, and this process was started for epoch %v in topic %s; start it again",
			ErrEpoch, now.Epoch, now.Topic, s.Epoch, s.Topic)
	}
	return nil
}
