package keylog

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/millrace-db/millrace/internal/wait"
)

const (
	lockAttempts = 10
	// lockTimeout is how long one attempt to lock a table may hold back those
	// who come after it.
	lockTimeout = time.Second
)

// retry runs f in a transaction until it gets its locks.
func retry(ctx context.Context, conn *pgx.Conn, doing string, f func(pgx.Tx) error) error {
	for attempt := 1; ; attempt++ {
		// What is looked up under a lock has to be newer than the lock.
		err := pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, func(tx pgx.Tx) error {
			for _, statement := range transactionSettings {
				if _, err := tx.Exec(ctx, statement); err != nil {
					return err
				}
			}
			return f(tx)
		})
		if err == nil {
			return nil
		}
		switch code(err) {
		case "42501": // insufficient_privilege
			return fmt.Errorf("%w: %s: %w; mend: run it as a role that owns the table", ErrRefused, doing, err)
		case "55P03", "40P01": // lock_not_available, deadlock_detected
		default:
			return fmt.Errorf("%s: %w", doing, err)
		}
		if attempt == lockAttempts {
			return fmt.Errorf("%s: long transactions keep it locked (%d attempts); end them (pg_stat_activity) and run init again: %w", doing, attempt, err)
		}
		if err := wait.For(ctx, time.Duration(attempt)*lockTimeout/2); err != nil {
			return fmt.Errorf("%s: %w", doing, err)
		}
	}
}

// code is the SQLSTATE of an error, "" if the server sent none.
func code(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code
	}
	return ""
}
