package migrations

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/internal/wait"
)

// side names one of the two databases, for people.
type side string

const (
	source side = "source"
	target side = "target"
)

// connect opens a connection that prints and reads values the same on both sides.
func (m *Migration) connect(ctx context.Context, where side) (*pgx.Conn, error) {
	url := m.cfg.SourceURL
	if where == target {
		url = m.cfg.TargetURL
	}
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		return nil, capture.ConnectErrorOf(err, string(where))
	}
	for name, value := range capture.Session() {
		cfg.RuntimeParams[name] = value
	}
	cfg.RuntimeParams["application_name"] = "millrace migrate " + m.cfg.Name
	capture.Bound(&cfg.Config)
	cfg.DefaultQueryExecMode = pgx.QueryExecModeExec
	cfg.AfterConnect = capture.PinLater
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if code(err) == "08P01" { // protocol_violation: PgBouncer does not know a setting
		return nil, pooler(where, err)
	}
	if err != nil {
		return nil, capture.ConnectErrorOf(err, string(where))
	}
	// Poolers make up the process that can be cancelled, and may be told to leave out
	// settings without a word.
	var process uint32
	var settings string
	if err := conn.QueryRow(ctx, "SELECT pg_backend_pid(), concat_ws(' ', current_setting('search_path'), current_setting('extra_float_digits'), current_setting('row_security'))").Scan(&process, &settings); err != nil {
		capture.Close(conn)
		return nil, fmt.Errorf("look where the connection to the %s leads: %w", where, err)
	}
	if pinned := capture.Session(); process != conn.PgConn().PID() || settings != pinned["search_path"]+" "+pinned["extra_float_digits"]+" "+pinned["row_security"] {
		capture.Close(conn)
		return nil, pooler(where, nil)
	}
	return conn, nil
}

// poolerError occurs where a URL leads to a connection pooler.
type poolerError struct {
	where side
	err   error
}

func pooler(where side, err error) error { return &poolerError{where, err} }

// problem is it, as the plan shows it.
func (e *poolerError) problem() capture.Problem {
	return capture.Refuse(ErrBlocked, string(e.where)+".url", "it leads to a connection pooler (PgBouncer, or a managed one), which passes on neither the session's settings and locks nor replication", "give the address of the server itself")
}

func (e *poolerError) Error() string { return ErrBlocked.Error() + ": " + e.problem().String() }

func (e *poolerError) Unwrap() []error { return []error{ErrBlocked, e.err} }

// both connects to both sides.
func (m *Migration) both(ctx context.Context) (src, dst *pgx.Conn, err error) {
	if src, err = m.connect(ctx, source); err != nil {
		return nil, nil, err
	}
	if dst, err = m.connect(ctx, target); err != nil {
		capture.Close(src)
		return nil, nil, err
	}
	return src, dst, nil
}

// take takes the migration for this process, until the connection to the target
// ends. A server lets go of it a moment after the connection that had it was closed.
// Errors: ErrRunning.
func (m *Migration) take(ctx context.Context, dst *pgx.Conn) error {
	return m.takeLock(ctx, dst, "", func(waited time.Duration) error {
		if waited > letGoLimit {
			return fmt.Errorf("%w (%s); end it, or wait for it", ErrRunning, m.cfg.Name)
		}
		return nil
	})
}

// A migration's locks are by its name, and goesOver behind that is of who decides which side
// takes writes.
const (
	lockKey  = "hashtextextended('millrace.migration.' || $1, 0)"
	goesOver = " goes over"
)

// tryLock takes the lock of a name, until the connection ends, if nobody has it.
func tryLock(ctx context.Context, conn *pgx.Conn, name string) (taken bool, err error) {
	err = conn.QueryRow(ctx, "SELECT pg_try_advisory_lock("+lockKey+")", name).Scan(&taken)
	return taken, err
}

// takeLock takes a lock of the migration, and waits for who has it until waiting, which is
// told for how long that has been, returns an error.
func (m *Migration) takeLock(ctx context.Context, conn *pgx.Conn, which string, waiting func(waited time.Duration) error) error {
	for began := time.Now(); ; {
		taken, err := tryLock(ctx, conn, m.cfg.Name+which)
		if err != nil {
			return fmt.Errorf("take migration %s: %w", m.cfg.Name, err)
		}
		if taken {
			return nil
		}
		if err := waiting(time.Since(began)); err != nil {
			return err
		}
		if err := wait.For(ctx, lockPause/4); err != nil {
			return err
		}
	}
}

// letGoLimit is how long the server may take for that.
const letGoLimit = time.Second

// code returns the SQLSTATE of an error, "" for none.
func code(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code
	}
	return ""
}
