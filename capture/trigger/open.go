package trigger

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/capture/chunk"
	"github.com/millrace-db/millrace/capture/table"
	"github.com/millrace-db/millrace/capture/trigger/keylog"
)

// Open begins or goes on with a stream whose history ends at from. ctx bounds the
// opening only; Close ends the source.
//
// At a first start (from.Position is zero) all tables join the stream and are
// loaded. Loads that are under way in from.Catalog go on where they were.
//
// An error that wraps millrace.ErrStop needs an operator; others are worth a
// retry.
func (c *Capture) Open(ctx context.Context, from *millrace.Checkpoint) (*Source, error) {
	s, err := c.open(ctx, from)
	if err != nil {
		return nil, fmt.Errorf("open capture of stream %s: %w", c.cfg.Stream, sourceError(err))
	}
	return s, nil
}

func (c *Capture) open(ctx context.Context, from *millrace.Checkpoint) (*Source, error) {
	ctx, cancel := context.WithTimeout(ctx, stepLimit)
	defer cancel()
	conn, err := c.connect(ctx)
	if err != nil {
		return nil, err
	}
	keep := false
	defer func() {
		if !keep {
			capture.Close(conn)
		}
	}()
	problems, err := c.checkServer(ctx, conn)
	if err == nil {
		err = capture.FirstError(problems)
	}
	if err != nil {
		return nil, err
	}
	s := &Source{
		c: c, conn: conn, epoch: from.Epoch, woken: make(chan struct{}, 1), position: from.Position, version: from.Catalog.LastVersion,
		backoff: backoff{shortest: c.cfg.PollMin, longest: c.cfg.PollMax},
	}
	if !from.Position.IsZero() {
		if err := fenceMode(from.Position); err != nil {
			return nil, err
		}
		if s.before, err = chunk.ParseSnapshot(from.Position.Snapshot); err != nil {
			return nil, fmt.Errorf("position %v: %w", from.Position, err)
		}
	}
	if s.loads, err = c.resumeLoads(&from.Catalog, s.wake); err != nil {
		return nil, err
	}
	if err := look(ctx, conn, func(tx pgx.Tx) error { return s.takeUp(ctx, tx, &from.Catalog) }); err != nil {
		return nil, err
	}
	s.ctx, s.end = context.WithCancelCause(context.Background())
	keep = true
	c.source.Store(s)
	c.log.Info("capture goes on", "tick", s.position.Tick, "snapshot", s.position.Snapshot, "tables", len(s.tables), "loads", len(from.Catalog.Loads))
	return s, nil
}

// takeUp runs the fences, and compares the tables of the stream with those that are
// configured. A table that was dropped and made again leaves, and joins under its
// new ID.
func (s *Source) takeUp(ctx context.Context, tx pgx.Tx, catalog *millrace.Catalog) error {
	logs, problems, err := s.c.logs(ctx, tx)
	if err == nil {
		err = capture.FirstError(problems)
	}
	if err != nil {
		return err
	}
	var f facts
	if err := ask(ctx, tx.Conn().PgConn(), factsQuery(s.c.cfg.Stream, strconv.FormatUint(uint64(s.epoch), 10), s.position.Tick), func(row [][]byte) error {
		_, err := f.parse(row)
		return err
	}); err != nil {
		return fmt.Errorf("look at tick %d: %w", s.position.Tick, err)
	}
	if err := fence(s.position, &f, s.c.planted); err != nil {
		return err
	}
	note, highest, err := readTick(ctx, tx, s.c.cfg.Stream, s.epoch, s.position.Tick)
	if err != nil {
		return err
	}
	s.tick = max(highest, s.position.Tick)
	infos, problems, err := s.c.checkTables(ctx, tx, logs)
	if err != nil {
		return err
	}
	if len(infos) < len(s.c.tables) {
		if err := table.FenceNames(ctx, tx, catalog, infos); err != nil {
			return errors.Join(capture.FirstError(problems), err)
		}
	}
	if err := capture.FirstError(append(problems, checkLogs(infos, logs)...)); err != nil {
		return err
	}
	for _, info := range infos {
		if err := s.add(info, logs[info.ID], catalog.Schema(info.ID), note); err != nil {
			return err
		}
	}
	slices.SortFunc(s.tables, func(a, b *captured) int { return cmp.Compare(a.id, b.id) })
	for _, schema := range catalog.Schemas {
		if !slices.ContainsFunc(s.tables, func(t *captured) bool { return t.id == schema.Table }) {
			s.leaving = append(s.leaving, schema.Table)
		}
	}
	return nil
}

// add adds a table that is configured. schema is the stream's, or nil: then it joins.
func (s *Source) add(info *table.Info, log *keylog.Log, schema *millrace.Schema, note *tickNote) error {
	t := &captured{id: info.ID, name: info.Name, choice: info.Choice, log: logOf(log)}
	s.tables = append(s.tables, t)
	if schema == nil {
		s.joining = true
		return nil
	}
	if err := t.adopt(schema); err != nil {
		return err
	}
	if note != nil {
		t.marks = note.Tables[strconv.FormatUint(uint64(t.id), 10)].Marks
	}
	s.loads.described(t)
	return nil
}

// refreshNames looks up what the tables are called by now, and whether they and
// their logs are still there.
func (s *Source) refreshNames(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stepLimit)
	defer cancel()
	return look(ctx, s.conn, func(tx pgx.Tx) error {
		logs, problems, err := s.c.logs(ctx, tx)
		if err == nil {
			err = capture.FirstError(problems)
		}
		if err != nil {
			return err
		}
		for _, t := range s.tables {
			var name table.Name
			err := tx.QueryRow(ctx, "SELECT n.nspname::text, c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1::bigint::oid", int64(t.id)).Scan(&name.Schema, &name.Name)
			if errors.Is(err, pgx.ErrNoRows) {
				return goneError(t)
			}
			if err != nil {
				return fmt.Errorf("look up the name of table %v: %w", t.name, err)
			}
			if err := s.intact(ctx, tx, t, logs[t.id]); err != nil {
				return err
			}
			t.name, t.log = name, logOf(logs[t.id])
		}
		return nil
	})
}
