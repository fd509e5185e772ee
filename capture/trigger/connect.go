package trigger

import (
	"context"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/millrace-db/millrace/capture"
)

// connect opens a connection, which a pooler may share out anew for each
// transaction. So nothing is set for the session but what poolers keep for their
// clients, and no statement is prepared under a name.
func (c *Capture) connect(ctx context.Context) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig(c.cfg.URL)
	if err != nil {
		return nil, capture.ConnectError(err)
	}
	capture.Bound(&cfg.Config)
	cfg.RuntimeParams["application_name"] = "millrace"
	cfg.RuntimeParams["client_encoding"] = "UTF8"
	cfg.DefaultQueryExecMode = pgx.QueryExecModeExec
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, capture.ConnectError(err)
	}
	return conn, nil
}

// settings are the statements that pin, for one transaction, what the text of a
// value depends on and what could end the transaction or change how it is durable.
func settings(conn *pgconn.PgConn) string {
	text := capture.SetLocal() + "; SET LOCAL standard_conforming_strings = on; SET LOCAL synchronous_commit = on"
	if capture.ServerMajor(conn) >= 17 {
		text += "; SET LOCAL transaction_timeout = 0"
	}
	return text
}

// look runs fn in a transaction that changes nothing, with the settings pinned.
func look(ctx context.Context, conn *pgx.Conn, fn func(pgx.Tx) error) error {
	return pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		if err := ask(ctx, conn.PgConn(), settings(conn.PgConn())); err != nil {
			return err
		}
		return fn(tx)
	})
}

// ask runs statements, separated by semicolons, and calls take for each row that
// they return, in their order; a row's texts are valid during the call.
func ask(ctx context.Context, conn *pgconn.PgConn, sql string, take ...func(row [][]byte) error) (err error) {
	results := conn.Exec(ctx, sql)
	defer func() {
		if closeErr := results.Close(); closeErr != nil {
			err = closeErr // it is what the statements say; err may only follow from it
		}
	}()
	n := 0
	for results.NextResult() {
		rows := results.ResultReader()
		if len(rows.FieldDescriptions()) == 0 {
			continue
		}
		for rows.NextRow() {
			if err := take[n](rows.Values()); err != nil {
				return err
			}
		}
		n++
	}
	return nil
}

// literal writes a text as SQL does under standard_conforming_strings.
func literal(text string) string { return "'" + strings.ReplaceAll(text, "'", "''") + "'" }
