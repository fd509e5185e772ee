package wal

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/capture/chunk"
	"github.com/millrace-db/millrace/capture/table"
	"github.com/millrace-db/millrace/internal/wait"
)

// Begin makes the slot, anew if it is there, and returns the place that it begins
// at, with the tables as the catalogs have them: for a stream whose rows are copied
// by somebody else. Opened there, a Source gives all changes of all tables from that
// place on, and no load.
//
// It returns when every transaction that committed before the place is seen by
// new snapshots: a commit is in the WAL before that. So a row read by a snapshot
// that is taken after Begin is as it was at that place, or changed behind it. For
// that it waits until all transactions have ended that run now, prepared ones too.
//
// Position, Time and Catalog of the result are set, nothing else.
func (c *Capture) Begin(ctx context.Context) (*millrace.Checkpoint, error) {
	from, err := c.begin(ctx)
	if err != nil {
		return nil, fmt.Errorf("begin capture of stream %s: %w", c.cfg.Stream, err)
	}
	return from, nil
}

func (c *Capture) begin(ctx context.Context) (*millrace.Checkpoint, error) {
	conn, err := c.connect(ctx, nil)
	if err != nil {
		return nil, err
	}
	defer capture.Close(conn)
	server, problems, err := checkServer(ctx, conn)
	if err == nil {
		err = capture.FirstError(problems)
	}
	if err != nil {
		return nil, err
	}
	from := new(millrace.Checkpoint)
	if _, err := c.fenceTables(ctx, conn, server, &from.Catalog); err != nil {
		return nil, err
	}
	if from.Position, err = c.makeSlot(ctx, conn, server); err != nil {
		return nil, err
	}
	from.Time = time.Now().UTC()
	// Described behind the place: what was altered before it is in the catalogs,
	// and what is altered later is told by the stream.
	tables, err := c.fenceTables(ctx, conn, server, &from.Catalog)
	if err != nil {
		return nil, err
	}
	for _, t := range tables {
		s, err := t.Schema(millrace.ModeWAL)
		if err != nil {
			return nil, err
		}
		from.Catalog.LastVersion++
		from.Catalog.Schemas = append(from.Catalog.Schemas, withVersion(s, from.Catalog.LastVersion))
	}
	slices.SortFunc(from.Catalog.Schemas, func(a, b *millrace.Schema) int { return cmp.Compare(a.Table, b.Table) })
	if err := c.keepMarks(ctx, conn, tables); err != nil {
		return nil, err
	}
	return from, c.awaitVisible(ctx, conn)
}

// keepMarks notes how the tables look: whoever copies them reads what they have by
// now, and rows that come or go later without being sent are found by comparison.
func (c *Capture) keepMarks(ctx context.Context, conn *pgx.Conn, tables []*table.Info) error {
	f := &follower{c: c}
	if err := f.read(ctx, conn); err != nil {
		return err
	}
	marks, err := c.marks(ctx, conn, idsOf(tables))
	if err != nil {
		return err
	}
	for _, id := range idsOf(tables) {
		if marks[id] == nil {
			return fmt.Errorf("%w: table with OID %v was dropped at the source; mend: millrace check says which", capture.ErrTables, id)
		}
		if err := f.keep(ctx, conn, id, marks[id]); err != nil {
			return err
		}
	}
	return nil
}

// awaitVisible waits until everything that runs now has ended.
func (c *Capture) awaitVisible(ctx context.Context, conn *pgx.Conn) error {
	now, err := chunk.CurrentSnapshot(ctx, conn)
	if err != nil {
		return err
	}
	for told := time.Now(); ; {
		var text string
		if err := conn.QueryRow(ctx, "SELECT pg_current_snapshot()::text").Scan(&text); err != nil {
			return fmt.Errorf("take snapshot: %w", err)
		}
		s, err := chunk.ParseSnapshot(text)
		if err != nil {
			return err
		}
		if s.Xmin >= now.Xmax {
			return nil
		}
		if time.Since(told) > 10*time.Second {
			told = time.Now()
			c.log.Warn("waiting for transactions that ran when the slot was made", "oldest", uint64(s.Xmin))
		}
		if err := wait.For(ctx, settleInterval); err != nil {
			return err
		}
	}
}
