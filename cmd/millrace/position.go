package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/config"
	"github.com/millrace-db/millrace/internal/control"
	"github.com/millrace-db/millrace/internal/lineage"
	"github.com/millrace-db/millrace/internal/topic"
)

// publishedPosition folds a stream's topic to its end, as a publisher does before
// it opens capture, and returns position and time there. They are zero before the
// first unit, and where the topic is not the registered one.
func publishedPosition(ctx context.Context, conn *pgx.Conn, s *config.Stream, registered control.Stream, log *slog.Logger) (millrace.Position, time.Time, error) {
	fail := func(err error) (millrace.Position, time.Time, error) { return millrace.Position{}, time.Time{}, err }
	row, err := control.NewestLedger(ctx, conn, registered.Name, registered.Epoch)
	if err != nil {
		return fail(err)
	}
	t, err := lineage.OpenTopic(ctx, s, registered.Topic, log)
	if err != nil {
		return fail(err)
	}
	defer func() { _ = t.Close() }() // nothing is appended
	info, err := t.Info(ctx)
	if errors.Is(err, topic.ErrNoTopic) || err == nil && info.ID != registered.TopicID {
		return fail(nil)
	}
	if err != nil {
		return fail(err)
	}
	fold, err := foldTopic(ctx, t, info, registered, row)
	if err != nil {
		return fail(err)
	}
	c := fold.Checkpoint()
	return c.Position, c.Time, nil
}

// foldTopic folds a topic to its end, from the state record that the ledger
// attests or from its start.
func foldTopic(ctx context.Context, t *topic.Topic, info topic.Info, registered control.Stream, row *control.LedgerRow) (*millrace.Fold, error) {
	from, attested := info.Start, false
	if row != nil && row.StateOffset != millrace.NoOffset && row.StateOffset >= info.Start && row.StateOffset < info.End {
		from, attested = row.StateOffset, true
	}
	fold := millrace.NewFold(registered.ID, registered.Epoch)
	reader, err := t.Read(ctx, from)
	if err != nil {
		return nil, err
	}
	defer reader.Close()
	for {
		m, err := reader.Until(ctx, info.End)
		if errors.Is(err, io.EOF) {
			return fold, nil
		}
		if err != nil {
			return nil, err
		}
		record, err := millrace.DecodeRecord(m.Value, nil)
		if err != nil {
			return nil, err
		}
		// A topic that was trimmed begins with an accepted state record too.
		if attested || m.Offset == info.Start && record.Kind == millrace.RecordState {
			attested = false
			if fold, err = millrace.FoldFromState(record); err != nil {
				return nil, err
			}
			continue
		}
		if _, err := fold.Step(record); err != nil {
			return nil, err
		}
	}
}
