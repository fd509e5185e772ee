package migrations

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/sql"
)

// state is the row of a migration at one side.
type state struct {
	ID           string
	Side         side
	System, Peer string
	Step         Step
	StepAt       time.Time
	Paused       bool
	Tables       string // JSON
	Made         []string
}

// install brings the tables of state to the newest version.
func install(ctx context.Context, conn *pgx.Conn) error {
	names, err := fs.Glob(sql.Migrations, "migrations/*.sql")
	if err != nil {
		return fmt.Errorf("list files: %w", err)
	}
	slices.Sort(names)
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock(hashtextextended('millrace.migrate', 0))"); err != nil {
			return err
		}
		there, err := installed(ctx, tx)
		if err != nil {
			return err
		}
		if there > len(names) {
			return fmt.Errorf("%w: the tables of migrations are at version %d, this process knows %d; mend: use a newer millrace", millrace.ErrStop, there, len(names))
		}
		for i, name := range names[there:] {
			digits, _, _ := strings.Cut(path.Base(name), "_")
			if n, err := strconv.Atoi(digits); err != nil || n != there+i+1 {
				return fmt.Errorf("read %s: want number %04d in front", name, there+i+1)
			}
			text, err := fs.ReadFile(sql.Migrations, name)
			if err != nil {
				return fmt.Errorf("read %s: %w", name, err)
			}
			if _, err := tx.Exec(ctx, string(text), pgx.QueryExecModeSimpleProtocol); err != nil {
				return fmt.Errorf("run %s: %w", name, err)
			}
			if _, err := tx.Exec(ctx, "INSERT INTO millrace.migration_version (number) VALUES ($1)", there+i+1); err != nil {
				return err
			}
		}
		return nil
	})
}

// queryer is what a connection and a transaction have in common.
type queryer interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// installed returns the version of the tables of state, 0 where there are none.
func installed(ctx context.Context, q queryer) (version int, err error) {
	var there bool
	if err = q.QueryRow(ctx, "SELECT to_regclass('millrace.migration_version') IS NOT NULL").Scan(&there); err == nil && there {
		err = q.QueryRow(ctx, "SELECT coalesce(max(number), 0) FROM millrace.migration_version").Scan(&version)
	}
	if err != nil {
		return 0, fmt.Errorf("look for the tables of migrations: %w", err)
	}
	return version, nil
}

// read returns the state at a side, nil where it has none.
func (m *Migration) read(ctx context.Context, q queryer) (*state, error) {
	version, err := installed(ctx, q)
	if err != nil || version == 0 {
		return nil, err
	}
	s := new(state)
	err = q.QueryRow(ctx, `SELECT id::text, side, system, peer, step, step_at, paused, tables::text, made FROM millrace.migration WHERE name = $1`, m.cfg.Name).
		Scan(&s.ID, &s.Side, &s.System, &s.Peer, &s.Step, &s.StepAt, &s.Paused, &s.Tables, &s.Made)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read migration %s: %w", m.cfg.Name, err)
	}
	return s, nil
}

// systemOf returns the system identifier of a server with the OID of the database:
// two databases of one cluster are two sides.
func systemOf(ctx context.Context, q queryer) (string, error) {
	var text string
	err := q.QueryRow(ctx, `SELECT system_identifier::text || '/' || (SELECT oid FROM pg_database WHERE datname = current_database()) FROM pg_control_system()`).Scan(&text)
	if err != nil {
		return "", fmt.Errorf("identify the server: %w", err)
	}
	return text, nil
}

// sameDatabase says whether both sides are one database.
func sameDatabase(ctx context.Context, src, dst queryer) (bool, error) {
	one, err := systemOf(ctx, src)
	if err != nil {
		return false, err
	}
	other, err := systemOf(ctx, dst)
	return one == other, err
}

// tablesText is what the state keeps of the tables: steps of one migration must
// agree on it.
func (m *Migration) tablesText() (string, error) {
	text, err := json.Marshal(m.inFile())
	if err != nil {
		return "", fmt.Errorf("write the tables of migration %s: %w", m.cfg.Name, err)
	}
	return string(text), nil
}

// states reads both sides and fences them against each other. They are nil where
// the migration has not begun.
func (m *Migration) states(ctx context.Context, src, dst queryer) (s, d *state, err error) {
	if s, err = m.read(ctx, src); err != nil {
		return nil, nil, err
	}
	if d, err = m.read(ctx, dst); err != nil {
		return nil, nil, err
	}
	if s == nil && d == nil {
		return nil, nil, nil
	}
	srcSystem, err := systemOf(ctx, src)
	if err != nil {
		return nil, nil, err
	}
	dstSystem, err := systemOf(ctx, dst)
	if err != nil {
		return nil, nil, err
	}
	const mend = "correct the URLs of the migration file, or choose another name"
	for _, x := range []struct {
		*state
		where        side
		system, peer string
	}{{s, source, srcSystem, dstSystem}, {d, target, dstSystem, srcSystem}} {
		switch {
		case x.state == nil:
		case x.Side != x.where:
			return nil, nil, fmt.Errorf("%w: the %s takes part in a migration %s as its %s; mend: %s", ErrOther, x.where, m.cfg.Name, x.Side, mend)
		case x.System != x.system || x.Peer != x.peer:
			return nil, nil, fmt.Errorf("%w: the %s was prepared as %s with %s at the other side, and the URLs lead to %s and %s; mend: %s", ErrOther, x.where, x.System, x.Peer, x.system, x.peer, mend)
		}
	}
	if s != nil && d != nil && s.ID != d.ID {
		return nil, nil, fmt.Errorf("%w: the two sides hold migrations of the name %s that are not the same (%s and %s); mend: millrace migrate abort -f FILE", ErrOther, m.cfg.Name, s.ID, d.ID)
	}
	return s, d, nil
}

// at is states for a step behind prepare: both sides are there, and the tables are
// those that were prepared.
func (m *Migration) at(ctx context.Context, src, dst queryer) (*state, error) {
	s, d, err := m.states(ctx, src, dst)
	if err != nil {
		return nil, err
	}
	if s == nil || d == nil {
		return &state{Step: StepNone}, nil
	}
	if err := m.checkCapture(ctx, src); err != nil {
		return nil, err
	}
	text, err := m.tablesText()
	if err != nil {
		return nil, err
	}
	if same, err := sameJSON(text, d.Tables); err != nil {
		return nil, err
	} else if !same {
		return nil, fmt.Errorf("%w: the tables of the migration file are not those that it was prepared with; mend: put the file back, or millrace migrate abort -f FILE", ErrOther)
	}
	return d, nil
}

func sameJSON(a, b string) (bool, error) {
	var x, y any
	if err := errors.Join(json.Unmarshal([]byte(a), &x), json.Unmarshal([]byte(b), &y)); err != nil {
		return false, fmt.Errorf("read the tables of the migration: %w", err)
	}
	p, err := json.Marshal(x)
	if err != nil {
		return false, err
	}
	q, err := json.Marshal(y)
	return string(p) == string(q), err
}

// done notes at both sides that a step is done. The target's word counts, so it is
// the last.
func (m *Migration) done(ctx context.Context, src, dst *pgx.Conn, step Step) error {
	for _, conn := range []*pgx.Conn{src, dst} {
		if _, err := conn.Exec(ctx, "UPDATE millrace.migration SET step = $2, step_at = clock_timestamp() WHERE name = $1", m.cfg.Name, string(step)); err != nil {
			return fmt.Errorf("note step %s: %w", step, err)
		}
	}
	m.log.Info("step is done", "step", string(step))
	return nil
}
