package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace/sql"
)

// Migration is one numbered file of the control schema.
type Migration struct {
	Number int
	// Name is the file's name, SQL its text, Down that of the file of the same
	// name that takes it back.
	Name, SQL, Down string
}

// Migrations returns all numbered files, in order.
func Migrations() ([]Migration, error) {
	names, err := fs.Glob(sql.Control, "control/*.sql")
	if err != nil {
		return nil, fmt.Errorf("list control schema files: %w", err)
	}
	slices.Sort(names)
	all := make([]Migration, 0, len(names))
	for i, name := range names {
		text, err := fs.ReadFile(sql.Control, name)
		if err != nil {
			return nil, fmt.Errorf("read control schema file: %w", err)
		}
		digits, _, _ := strings.Cut(path.Base(name), "_")
		number, err := strconv.Atoi(digits)
		if err != nil || number != i+1 {
			return nil, fmt.Errorf("read control schema file %s: want number %04d in front", name, i+1)
		}
		down, err := fs.ReadFile(sql.Control, path.Join("control/down", path.Base(name)))
		if err != nil {
			return nil, fmt.Errorf("read what takes control schema file %s back: %w", name, err)
		}
		all = append(all, Migration{Number: number, Name: path.Base(name), SQL: string(text), Down: string(down)})
	}
	return all, nil
}

const (
	migrateLockTimeout = `SET LOCAL lock_timeout = '5s'`
	migrateLock        = `SELECT pg_advisory_xact_lock(hashtextextended('millrace.migrate', 0))`
	schemaExists       = `SELECT to_regclass('millrace.version') IS NOT NULL`
	schemaVersion      = `SELECT coalesce(max(number), 0) FROM millrace.version`
	schemaMigrated     = `INSERT INTO millrace.version (number) VALUES ($1)`
)

// Migrate brings the control schema to the newest version: one transaction for
// each file that has not been run, under an advisory lock, so that it is safe to
// run from several processes and again. A file waits at most 5 s for a lock.
// Errors: ErrNewer.
func Migrate(ctx context.Context, conn *pgx.Conn) error {
	all, err := Migrations()
	if err != nil {
		return err
	}
	for {
		done, err := migrateOnce(ctx, conn, all)
		if done || err != nil {
			return err
		}
	}
}

// migrateOnce runs the next file, if there is one.
func migrateOnce(ctx context.Context, conn *pgx.Conn, all []Migration) (done bool, err error) {
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if err := lockSchema(ctx, tx); err != nil {
			return err
		}
		pending, err := pendingOf(ctx, tx, all)
		if err != nil || len(pending) == 0 {
			done = true
			return err
		}
		next := pending[0]
		// The simple protocol takes a file of several statements.
		if _, err := tx.Exec(ctx, next.SQL, pgx.QueryExecModeSimpleProtocol); err != nil {
			return fmt.Errorf("run %s: %w", next.Name, err)
		}
		_, err = tx.Exec(ctx, schemaMigrated, next.Number)
		return err
	})
	if err != nil && !errors.Is(err, ErrNewer) {
		return false, explain("migrate the control schema", err)
	}
	return done, err
}

// Pending returns the files that Migrate would run.
func Pending(ctx context.Context, conn *pgx.Conn) ([]Migration, error) {
	all, err := Migrations()
	if err != nil {
		return nil, err
	}
	return pendingOf(ctx, conn, all)
}

// queryer is what a connection and a transaction have in common.
type queryer interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

func pendingOf(ctx context.Context, q queryer, all []Migration) ([]Migration, error) {
	version, err := versionOf(ctx, q, all)
	if err != nil {
		return nil, err
	}
	return all[version:], nil
}

// versionOf returns the number of the newest file that has been run, 0 for none.
func versionOf(ctx context.Context, q queryer, all []Migration) (int, error) {
	var exists bool
	if err := q.QueryRow(ctx, schemaExists).Scan(&exists); err != nil {
		return 0, fmt.Errorf("look for the control schema: %w", err)
	}
	if !exists {
		return 0, nil
	}
	var version int
	if err := q.QueryRow(ctx, schemaVersion).Scan(&version); err != nil {
		return 0, fmt.Errorf("read the version of the control schema: %w", err)
	}
	if version > len(all) {
		return 0, fmt.Errorf("%w (it is at version %d, this process knows %d)", ErrNewer, version, len(all))
	}
	return version, nil
}
