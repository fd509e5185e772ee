package wal

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/capture/table"
	"github.com/millrace-db/millrace/sql"
)

// triggersQuery identifies the event triggers that tell of DDL: the same text
// twice means that they were there all the time in between. It is empty where one
// is missing or turned off.
const triggersQuery = `
SELECT CASE WHEN count(*) FILTER (WHERE e.evtenabled IN ('A', 'O')) = 3
            THEN string_agg(concat_ws(' ', e.oid, e.xmin, e.evtenabled, p.oid, p.xmin), ', ' ORDER BY e.evtname) ELSE '' END
FROM pg_event_trigger e JOIN pg_proc p ON p.oid = e.evtfoid
WHERE e.evtname IN ('millrace_ddl_end', 'millrace_ddl_drop', 'millrace_ddl_rewrite')`

// installTriggers makes the event triggers, if the role may; check warns where
// they are missing.
func (c *Capture) installTriggers(ctx context.Context, conn *pgx.Conn, tables []*table.Info) error {
	var initialised bool
	if err := conn.QueryRow(ctx, "SELECT to_regclass('millrace.leaf') IS NOT NULL").Scan(&initialised); err != nil {
		return fmt.Errorf("look for the control schema: %w", err)
	}
	if !initialised {
		return nil
	}
	err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, fmt.Sprintf("SET LOCAL lock_timeout = %d", lockTimeout.Milliseconds())); err != nil {
			return err
		}
		// Two inits would replace the functions at once.
		if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock(hashtextextended('millrace.migrate', 0))"); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, sql.EventTriggers, pgx.QueryExecModeSimpleProtocol); err != nil {
			return err
		}
		for _, t := range tables {
			if t.Kind != "p" {
				continue
			}
			if _, err := tx.Exec(ctx, "SELECT millrace.note_leaves($1::bigint::oid, true)", int64(t.ID)); err != nil {
				return err
			}
		}
		return nil
	})
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == "42501" { // insufficient_privilege
		c.log.Warn("the role may not make event triggers, so altered tables are noticed late; millrace check says how", "error", pg.Message)
		return nil
	}
	if err != nil {
		return fmt.Errorf("make event triggers: %w", err)
	}
	return nil
}

// checkTriggers says what is not seen where the event triggers are missing, and
// what cannot be captured without them.
func checkTriggers(ctx context.Context, conn *pgx.Conn, server *serverInfo, tables []*table.Info) ([]capture.Problem, error) {
	var initialised bool
	var triggers string
	if err := conn.QueryRow(ctx, "SELECT to_regclass('millrace.leaf') IS NOT NULL, ("+triggersQuery+")").Scan(&initialised, &triggers); err != nil {
		return nil, fmt.Errorf("look for event triggers: %w", err)
	}
	if !initialised || triggers != "" {
		return nil, nil
	}
	const mend = "run millrace init once as a superuser"
	var problems []capture.Problem
	for _, t := range tables {
		if t.Kind == "p" && server.version < 150000 {
			problems = append(problems, capture.Refuse(capture.ErrTable, "table "+t.Name.String(), "it is partitioned, and the database has no event triggers of millrace's: Postgres 14 goes on leaving out changes of a partition that was a table of its own before, unless they see to it",
				mend+", upgrade the source, or name its partitions in its place"))
		}
	}
	return append(problems, capture.Warn("event triggers", "the database has none of millrace's, or one is turned off: a table that is altered keeps its rows as they were at the edges until it is written to; "+
		"a rewrite that keeps a column's name and type (ALTER COLUMN … TYPE … USING) is not seen at all, and renamed labels of enums and altered composite types not before the table itself is altered or transfer starts again; "+
		"partitions that come or go are found by comparison, every few seconds, and each means that the whole table is loaded",
		mend)), nil
}
