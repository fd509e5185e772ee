package keylog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
)

// remove takes a log away.
func (i *installer) remove(ctx context.Context, conn *pgx.Conn, l *Log) error {
	err := retry(ctx, conn, "remove the triggers of table "+l.Table.String(), func(tx pgx.Tx) error {
		statements, err := i.removal(ctx, tx, l)
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, statements, pgx.QueryExecModeSimpleProtocol)
		return err
	})
	if err != nil {
		return err
	}
	i.log.Info("triggers removed", "stream", i.cfg.Stream, "table", l.Table.String(), "log", l.ID)
	return nil
}

// removal writes out what takes a log away.
func (i *installer) removal(ctx context.Context, q Querier, l *Log) (string, error) {
	text := &logTexts{ID: l.ID, Table: l.Table.quoted(), Partitioned: l.kind == "p"}
	// The name as it is now: the table may have been renamed or dropped since.
	err := q.QueryRow(ctx, `SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.oid = $1::bigint::oid`, int64(l.Table.ID)).Scan(&text.Table)
	switch {
	case err == nil:
		text.Exists = true
	case !errors.Is(err, pgx.ErrNoRows):
		return "", fmt.Errorf("look up table %v: %w", &l.Table, err)
	}
	return i.texts.render("remove.sql", text)
}

// Uninstall takes away all that the stream has: triggers, functions, logs, ticks.
// Roles, the event trigger and the control schema are left to other streams. What
// is not there is no error. Each table is locked as Install says. log may be nil.
func Uninstall(ctx context.Context, conn *pgx.Conn, stream string, log *slog.Logger) error {
	i, err := newInstaller(Config{Stream: stream, Period: time.Second, Log: log})
	if err != nil {
		return err
	}
	var there bool
	if err := conn.QueryRow(ctx, "SELECT to_regclass('millrace.key_log') IS NOT NULL").Scan(&there); err != nil {
		return fmt.Errorf("look for logs of keys: %w", err)
	}
	if !there {
		return nil
	}
	logs, err := i.looker.Look(ctx, conn)
	if err != nil {
		return err
	}
	for n := range logs {
		if err := i.remove(ctx, conn, &logs[n]); err != nil {
			return err
		}
	}
	if _, err := conn.Exec(ctx, "DELETE FROM millrace.tick WHERE stream = $1", stream); err != nil {
		return fmt.Errorf("remove the ticks of stream %s: %w", stream, err)
	}
	if _, err := conn.Exec(ctx, "DELETE FROM millrace.wanted_load WHERE stream = $1", stream); err != nil {
		return fmt.Errorf("remove the loads that were asked for of stream %s: %w", stream, err)
	}
	return nil
}
