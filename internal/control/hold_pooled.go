package control

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/jackc/pgx/v5"
)

// Behind a pooler in transaction mode a session is nobody's for longer than a
// transaction. There the lock is a transaction's, in one that stays open on the
// hold's connection, and so is the server process that a successor can end.
//
// The transaction must cost the database nothing: it is READ ONLY, so that it has
// no transaction ID, and READ COMMITTED with the simple protocol, because the
// portal of the extended one keeps its snapshot, and with it what vacuum may
// remove, until the next statement. The row is therefore written by a second
// connection, in transactions of its own.
const (
	pooledBegin = `BEGIN ISOLATION LEVEL READ COMMITTED, READ ONLY`
	// What would end the transaction by itself is turned off, for it alone;
	// transaction_timeout came with Postgres 17.
	pooledPin = `
SELECT set_config(name, '0', true) FROM pg_settings
WHERE name IN ('statement_timeout', 'lock_timeout', 'idle_in_transaction_session_timeout', 'transaction_timeout')`
	pooledLock = `SELECT pg_try_advisory_xact_lock(hashtextextended('millrace.hold:' || $1, 0)), pg_backend_pid()`
	pooledPing = `SELECT 1`
	pooledEnd  = `ROLLBACK`

	// As in the other form, the row's commit does not wait for a standby. Several
	// statements in one message are one transaction, and one round trip.
	pooledQuick = `SET LOCAL synchronous_commit = off; SET LOCAL statement_timeout = 0; `
	pooledWrite = pooledQuick + `
INSERT INTO millrace.hold (stream, publisher, pid, acquired_at, renewed_at)
VALUES ($1, $2::text::uuid, $3, clock_timestamp(), clock_timestamp())
ON CONFLICT (stream) DO UPDATE SET
    publisher = excluded.publisher, pid = excluded.pid,
    acquired_at = excluded.acquired_at, renewed_at = excluded.renewed_at`
	// A renewal that finds another pid or no lock changes no row.
	pooledRenew = pooledQuick + `
UPDATE millrace.hold SET renewed_at = clock_timestamp()
WHERE stream = $1 AND publisher = $2::text::uuid AND pid = $3
  AND EXISTS (` + holdLocks + ` AND l.pid = $3)`
	pooledDelete = pooledQuick + `DELETE FROM millrace.hold WHERE stream = $1 AND publisher = $2::text::uuid AND pid = $3`
)

// pooled is what a Hold does otherwise where its lock is a transaction's.
type pooled struct {
	h *Hold
	// writer writes the row; nil until it is needed, and after it failed.
	writer *pgx.Conn
}

// acquire waits for the lock and writes the row.
func (p *pooled) acquire(ctx context.Context) error {
	if err := p.h.wait(ctx); err != nil {
		return err
	}
	if _, err := p.write(ctx, pooledWrite); err != nil {
		return explain("write the hold", err)
	}
	return nil
}

// lock asks for the lock once, in a transaction that stays open if it is got.
// Otherwise nothing is: who waits takes no server connection of the pooler's.
func (p *pooled) lock(ctx context.Context) (got bool, err error) {
	conn := p.h.conn
	for _, sql := range []string{pooledBegin, pooledPin} {
		if _, err := conn.Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol); err != nil {
			return false, err
		}
	}
	if err := conn.QueryRow(ctx, pooledLock, pgx.QueryExecModeSimpleProtocol, p.h.stream).Scan(&got, &p.h.pid); err != nil {
		return false, err
	}
	if !got {
		_, err = conn.Exec(ctx, pooledEnd, pgx.QueryExecModeSimpleProtocol)
	}
	return got, err
}

// renew shows life twice: a statement in the transaction, so that nothing between
// here and the server takes it for idle, and the row.
func (p *pooled) renew(ctx context.Context) error {
	if _, err := p.h.conn.Exec(ctx, pooledPing, pgx.QueryExecModeSimpleProtocol); err != nil {
		return fmt.Errorf("renew the hold: %w", err)
	}
	rows, err := p.write(ctx, pooledRenew)
	if err != nil {
		return fmt.Errorf("renew the hold: %w", err)
	}
	if rows != 1 {
		return errors.New("renew the hold: this transaction has it no longer")
	}
	return nil
}

func (p *pooled) deleteRow(ctx context.Context) error {
	_, err := p.write(ctx, pooledDelete)
	return err
}

// write runs one of the statements about the row, once more on a new connection
// where the one at hand has died: the lock is not on it.
func (p *pooled) write(ctx context.Context, sql string) (rows int64, err error) {
	for fresh := false; ; fresh = true {
		if p.writer == nil || p.writer.IsClosed() {
			fresh = true
			if p.writer, err = pgx.ConnectConfig(ctx, p.h.conn.Config()); err != nil {
				return 0, err
			}
		}
		tag, err := p.writer.Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol,
			p.h.stream, p.h.publisher.String(), strconv.FormatUint(uint64(p.h.pid), 10))
		if err == nil {
			return tag.RowsAffected(), nil
		}
		if fresh || !p.writer.IsClosed() {
			return 0, err
		}
	}
}

func (p *pooled) disconnect(ctx context.Context) {
	if p.writer != nil {
		CloseConn(ctx, p.writer) // every statement of it was a transaction
	}
}
