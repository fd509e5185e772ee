// Package control owns the control schema that millrace keeps in a source
// database: its numbered migrations, the registry of streams, the exclusive
// hold of the publisher of a stream, and the ledger of what was published.
//
// It promises that migrations are idempotent and safe to run from several
// processes at once, that at most one live process has the Hold of a stream,
// and that a Hold which is gone is noticed by its owner. What a stream's
// history is, it leaves to the topic: the hold only keeps two publishers from
// fencing each other for ever.
//
// The statements stand as constants beside the functions that run them. No
// function keeps a connection that it was given.
package control

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/millrace-db/millrace"
)

// stopError is an error that only an operator mends.
type stopError string

func (e stopError) Error() string { return string(e) }
func (stopError) Unwrap() error   { return millrace.ErrStop }

var (
	// ErrNotInitialised occurs when the database has no control schema, or one
	// that is older than this process needs. Mend: millrace init.
	ErrNotInitialised error = stopError("the source database has no millrace control schema; run millrace init")

	// ErrNoStream occurs when the registry has no stream of the name. Mend:
	// millrace init.
	ErrNoStream error = stopError("the stream is not registered in the source database; run millrace init")

	// ErrPooler occurs when the hold's connection does not go to a server
	// process of its own. Mend: give the stream a source URL that reaches
	// Postgres directly.
	ErrPooler error = stopError("the connection goes through a pooler, where a session lock holds nothing; give source.url the address of Postgres itself (capture trigger does without)")

	// ErrRights occurs when the role may not read or write the control schema.
	// Mend: make it a member of the role that may.
	ErrRights error = stopError("the role has no rights in millrace's control schema")

	// ErrNewer occurs when a newer version of millrace has migrated the control
	// schema. Mend: upgrade this process.
	ErrNewer error = stopError("the control schema is newer than this version of millrace; upgrade it")
)

const (
	codeUndefinedTable   = "42P01"
	codeInvalidSchema    = "3F000"
	codeLockNotAvailable = "55P03"
	codeForeignKey       = "23503"
	codeNoRights         = "42501"
)

// cancelLimit is how long the cancelling of a statement is waited for.
const cancelLimit = time.Second

// CloseConn closes a connection; nothing is lost with it. A statement that was broken
// off is cancelled at the server in the background, and is given a second for that:
// PgBouncer before 1.19 ends for everybody when whoever asks for it is gone before it
// has passed that on, as a process that ends would be.
func CloseConn(ctx context.Context, conn *pgx.Conn) {
	_ = conn.Close(ctx)
	timer := time.NewTimer(cancelLimit)
	defer timer.Stop()
	select {
	case <-conn.PgConn().CleanupDone():
	case <-timer.C: // nobody answers
	}
}

// explain gives the errors that mean "not set up" their names and adds the mend
// where a lock was not to be had.
func explain(doing string, err error) error {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		switch pg.Code {
		case codeUndefinedTable, codeInvalidSchema:
			return fmt.Errorf("%s: %w", doing, ErrNotInitialised)
		case codeForeignKey:
			return fmt.Errorf("%s: %w", doing, ErrNoStream)
		case codeNoRights:
			return fmt.Errorf("%s: %w: %s; mend: run millrace init as a role with CREATEROLE, which makes the role of source.url a member of source.roles.capture, or give source.url the role that ran init", doing, ErrRights, pg.Message)
		case codeLockNotAvailable:
			return fmt.Errorf("%s: another session has locked the control schema (see pg_locks); try again when it is done: %w", doing, err)
		}
	}
	return fmt.Errorf("%s: %w", doing, err)
}
