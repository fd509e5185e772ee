package control

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// ErrInUse occurs when a downgrade would take away what a registered stream
// needs. Mend: millrace uninstall of that stream, or no downgrade.
var ErrInUse error = stopError("the control schema is in use")

// ErrForeignObjects occurs when the control schema cannot be dropped because
// something is in it, or depends on it, that is none of millrace's. Mend: move or
// drop that.
var ErrForeignObjects error = stopError("objects that are none of millrace's depend on the control schema")

const (
	codeObjectInUse      = "55006"
	codeDependentObjects = "2BP01"
	schemaVersionDelete  = `DELETE FROM millrace.version WHERE number = $1`
)

// Downgrade takes the control schema back to a version, 0 for none at all: one
// transaction for all files, so that it is as it was where one refuses. It waits
// at most 5 s for a lock. The files that were taken back are returned, the newest
// first; a schema that is at the version already gives none.
//
// Errors: ErrInUse where a registered stream needs what would go,
// ErrForeignObjects, ErrNewer.
func Downgrade(ctx context.Context, conn *pgx.Conn, to int) (undone []Migration, err error) {
	doing := fmt.Sprintf("downgrade the control schema to version %d", to)
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if err := lockSchema(ctx, tx); err != nil {
			return err
		}
		undone, err = downgrade(ctx, tx, to)
		return err
	})
	if err != nil {
		return nil, explainDowngrade(doing, err)
	}
	return undone, nil
}

// Applied returns the files after version to that have been run, the newest
// first: what Downgrade would take back.
func Applied(ctx context.Context, conn *pgx.Conn, to int) ([]Migration, error) {
	return appliedOf(ctx, conn, to)
}

func appliedOf(ctx context.Context, q queryer, to int) ([]Migration, error) {
	all, err := Migrations()
	if err != nil {
		return nil, err
	}
	if to < 0 || to > len(all) {
		return nil, fmt.Errorf("version %d of the control schema: want 0 to %d", to, len(all))
	}
	version, err := versionOf(ctx, q, all)
	if err != nil || version <= to {
		return nil, err
	}
	applied := slices.Clone(all[to:version])
	slices.Reverse(applied)
	return applied, nil
}

// downgrade runs the files that take back what is after version to. The caller
// has locked the schema.
func downgrade(ctx context.Context, tx pgx.Tx, to int) ([]Migration, error) {
	applied, err := appliedOf(ctx, tx, to)
	if err != nil {
		return nil, err
	}
	for _, m := range applied {
		if _, err := tx.Exec(ctx, m.Down, pgx.QueryExecModeSimpleProtocol); err != nil {
			return nil, fmt.Errorf("run down/%s: %w", m.Name, err)
		}
		if m.Number == 1 {
			break // the first file made the table of versions
		}
		if _, err := tx.Exec(ctx, schemaVersionDelete, m.Number); err != nil {
			return nil, err
		}
	}
	return applied, nil
}

// lockSchema lets one process at a time change the control schema.
func lockSchema(ctx context.Context, tx pgx.Tx) error {
	if _, err := tx.Exec(ctx, migrateLockTimeout); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, migrateLock)
	return err
}

// explainDowngrade names what keeps the schema from being taken back.
func explainDowngrade(doing string, err error) error {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		switch pg.Code {
		case codeObjectInUse:
			return fmt.Errorf("%s: %w: %s; mend: %s", doing, ErrInUse, pg.Message, pg.Hint)
		case codeDependentObjects:
			return fmt.Errorf("%s: %w: %s (%s); mend: move or drop what is named", doing, ErrForeignObjects, pg.Message, pg.Detail)
		}
	}
	if errors.Is(err, ErrNewer) {
		return fmt.Errorf("%s: %w", doing, err)
	}
	return explain(doing, err)
}
