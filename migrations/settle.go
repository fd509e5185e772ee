package migrations

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/capture/table"
)

// settling is a table of the target that is to be settled when its rows are there: what
// is there twice is taken away, and keys that stood aside and indexes that were left for
// later are made.
type settling struct {
	*mapping
	after []string     // statements that make what was left for later
	left  atomic.Int64 // chunks of it
	done  bool
}

// toSettle returns the tables of the target.
func (m *Migration) toSettle(ctx context.Context, src, dst *pgx.Conn, all []*mapping, made []string) (tables []*settling, err error) {
	for i := range m.cfg.Tables {
		t := &m.cfg.Tables[i]
		if slices.ContainsFunc(tables, func(s *settling) bool { return s.to == t.To }) {
			continue // another partition of the source's goes there too
		}
		s := &settling{mapping: all[i]}
		if slices.Contains(made, t.To.String()) {
			d, _, err := define(ctx, src, dst, t, all[i].id)
			if err != nil {
				return nil, err
			}
			s.after = d.after
		}
		tables = append(tables, s)
	}
	return tables, nil
}

// settle settles the tables that are not settled yet, as many at once as there are
// workers, and notes behind which place the target is the source.
func (m *Migration) settle(ctx context.Context, src, dst *pgx.Conn, all []*mapping, tables []*settling) error {
	if err := m.settleTables(ctx, all, tables); err != nil {
		return err
	}
	c, err := m.capture(ctx, src)
	if err != nil {
		return err
	}
	horizon, err := c.Ahead(ctx, src)
	if err != nil {
		return err
	}
	if _, err := dst.Exec(ctx, "UPDATE millrace.migration_place SET horizon = $2::text::numeric WHERE name = $1", m.cfg.Name, fmt.Sprint(horizon)); err != nil {
		return fmt.Errorf("note how far the source is: %w", err)
	}
	return nil
}

// settleTable settles a table, on one connection.
func (m *Migration) settleTable(ctx context.Context, dst *pgx.Conn, t *settling) error {
	if err := m.settleKeys(ctx, dst, t); err != nil {
		return err
	}
	for _, text := range t.after {
		if err := m.makeIndex(ctx, dst, t, text); err != nil {
			return err
		}
	}
	return m.analyze(ctx, dst, t)
}

func (m *Migration) makeIndex(ctx context.Context, dst *pgx.Conn, t *settling, text string) error {
	m.log.Info("making an index", "table", t.to.String(), "sql", text)
	_, err := dst.Exec(ctx, text)
	if c := code(err); c == "23505" || c == "42P07" {
		// The server has gone on with that of a process that was killed, and was waited for.
		_, err = dst.Exec(ctx, text)
	}
	if err != nil {
		return fmt.Errorf("make an index at the target: %s: %w", text, err)
	}
	return nil
}

// analyze is the last: expressions of indexes have statistics too.
func (m *Migration) analyze(ctx context.Context, dst *pgx.Conn, t *settling) error {
	if _, err := dst.Exec(ctx, "ANALYZE "+t.to.Quoted()); err != nil {
		return fmt.Errorf("analyze %v at the target: %w", t.to, err)
	}
	t.done = true
	return nil
}

// settleTables works on several tables, and on several indexes of one, at once.
func (m *Migration) settleTables(ctx context.Context, all []*mapping, tables []*settling) error {
	group, ctx := errgroup.WithContext(ctx)
	free := make(chan *pgx.Conn, m.cfg.Workers) // nil is a connection that is not there yet
	for range m.cfg.Workers {
		free <- nil
	}
	defer func() { // behind all that has begun
		for range m.cfg.Workers {
			if conn := <-free; conn != nil {
				capture.Close(conn)
			}
		}
	}()
	with := func(do func(conn *pgx.Conn) error) (err error) {
		var conn *pgx.Conn
		select {
		case conn = <-free:
		case <-ctx.Done():
			return ctx.Err()
		}
		defer func() { free <- conn }()
		if conn == nil {
			if conn, err = m.settler(ctx, all); err != nil {
				return err
			}
		}
		return do(conn)
	}
	for _, t := range tables {
		if t.done {
			continue
		}
		group.Go(func() error {
			if err := with(func(conn *pgx.Conn) error { return m.settleKeys(ctx, conn, t) }); err != nil {
				return err
			}
			var indexes errgroup.Group
			for _, text := range t.after {
				indexes.Go(func() error {
					return with(func(conn *pgx.Conn) error { return m.makeIndex(ctx, conn, t, text) })
				})
			}
			if err := indexes.Wait(); err != nil {
				return err
			}
			return with(func(conn *pgx.Conn) error { return m.analyze(ctx, conn, t) })
		})
	}
	return group.Wait()
}

// settler connects to the target, to work on tables there.
func (m *Migration) settler(ctx context.Context, all []*mapping) (*pgx.Conn, error) {
	conn, err := m.connect(ctx, target)
	if err != nil {
		return nil, err
	}
	if err = m.showApplier(ctx, conn); err == nil {
		_, err = silence(ctx, conn, all)
	}
	if err != nil {
		capture.Close(conn)
		return nil, err
	}
	return conn, nil
}

// settleKeys takes rows away that a table without a key over all of its partitions has
// twice, and makes the keys that stand aside.
func (m *Migration) settleKeys(ctx context.Context, dst *pgx.Conn, t *settling) error {
	if t.loose {
		err := pgx.BeginFunc(ctx, dst, func(tx pgx.Tx) error {
			removed, err := removeDoubles(ctx, tx, t.to.Quoted(), quoteAll("", t.keyNames()), "")
			if err != nil || removed == 0 {
				return err
			}
			m.log.Info("rows that had moved while they were copied were there twice", "table", t.to.String(), "rows", removed)
			_, err = tx.Exec(ctx, `UPDATE millrace.migration_key SET removed = removed + $3
WHERE ctid = (SELECT ctid FROM millrace.migration_key WHERE name = $1 AND table_name = $2 ORDER BY heap, number LIMIT 1)`, m.cfg.Name, t.to.String(), removed)
			return err
		})
		if err != nil {
			return fmt.Errorf("take rows away that %v has twice: %w", t.to, err)
		}
	}
	return m.makeKeys(ctx, dst, t.to)
}

// backToKeys makes the keys of a table before its copy is done: some of its rows are
// read again, and which of them are there already is looked up by the key.
func (m *Migration) backToKeys(ctx context.Context, to table.Name, all []*mapping) error {
	conn, err := m.settler(ctx, all)
	if err != nil {
		return err
	}
	defer capture.Close(conn)
	return m.makeKeys(ctx, conn, to)
}
