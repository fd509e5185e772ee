package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/wait"
)

// The hold is a session advisory lock, so it ends with the session that has it.
// The row beside it says whose it is and when that session last showed life: a
// stopped process keeps its connection, and with it the lock.
const (
	holdLock  = `SELECT pg_try_advisory_lock(hashtextextended('millrace.hold:' || $1, 0))`
	holdWrite = `
INSERT INTO millrace.hold (stream, publisher, pid, acquired_at, renewed_at)
VALUES ($1, $2, pg_backend_pid(), clock_timestamp(), clock_timestamp())
ON CONFLICT (stream) DO UPDATE SET
    publisher = excluded.publisher, pid = excluded.pid,
    acquired_at = excluded.acquired_at, renewed_at = excluded.renewed_at`
	// A renewal that finds another pid or no lock changes no row.
	holdRenew = `
UPDATE millrace.hold SET renewed_at = clock_timestamp()
WHERE stream = $1 AND publisher = $2 AND pid = $3 AND pid = pg_backend_pid()
  AND EXISTS (` + holdLocks + ` AND l.pid = pg_backend_pid())`
	holdDelete = `DELETE FROM millrace.hold WHERE stream = $1 AND publisher = $2 AND pid = pg_backend_pid()`
	// Who has the lock, and for how long it has shown no life by the server's
	// clock. A session that has the lock and has not written its row yet is
	// judged by its last statement.
	holdHolder = `
SELECT l.pid, coalesce(h.publisher::text, ''),
       extract(epoch FROM clock_timestamp() - greatest(h.renewed_at, a.state_change))::float8
FROM (` + holdLocks + `) l
LEFT JOIN millrace.hold h ON h.stream = $1 AND h.pid = l.pid
LEFT JOIN pg_stat_activity a ON a.pid = l.pid`
	holdLocks = `
SELECT l.pid FROM pg_locks l, hashtextextended('millrace.hold:' || $1, 0) AS key
WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND l.classid::bigint = ((key >> 32) & 4294967295) AND l.objid::bigint = (key & 4294967295)`
	holdEnd = `SELECT pg_terminate_backend($1)`
	// The row needs no durability, and a commit that waits for a standby would
	// look like a dead holder.
	holdSession = `SET synchronous_commit = off; SET idle_session_timeout = 0; SET statement_timeout = 0; SET lock_timeout = 0`
)

// MinLease is the shortest lease: below it a busy server looks dead.
const MinLease = 300 * time.Millisecond

// minAnswer is how long the server has to answer one who waits, at least.
const minAnswer = time.Second

// Hold is the exclusive right to publish a stream, on a connection of its own.
// Its methods may be called concurrently.
type Hold struct {
	conn      *pgx.Conn
	stream    string
	publisher millrace.PublisherID
	lease     time.Duration
	// pid is the server process that has the lock.
	pid uint32
	log *slog.Logger
	// pooled is set where the lock is a transaction's (hold_pooled.go).
	pooled *pooled

	stop context.CancelFunc
	done chan struct{} // closed when the renewing goroutine has ended
	lost chan struct{}

	closing sync.Once
	err     error
}

// AcquireHold blocks until the stream is held by publisher, or ctx ends. It opens
// a connection of its own to url. With capture wal url must reach Postgres
// directly; with capture trigger it may lead through a pooler in transaction mode,
// and a second connection is opened for the time of the hold. While another
// process has the hold it waits; one that has not renewed it for a lease is ended.
// logger may be nil.
//
// lease is how long a holder may show no life, at least MinLease. Errors:
// ErrPooler, ErrNoStream, ErrNotInitialised, and those of the connection, which
// are the caller's to retry. The caller closes the Hold.
func AcquireHold(ctx context.Context, url, stream string, publisher millrace.PublisherID, lease time.Duration, logger *slog.Logger) (*Hold, error) {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	if lease < MinLease {
		return nil, fmt.Errorf("acquire hold of stream %s: lease of %s: want at least %s", stream, lease, MinLease)
	}
	config, err := pgx.ParseConfig(url)
	if err != nil {
		return nil, fmt.Errorf("acquire hold of stream %s: %w", stream, err)
	}
	config.RuntimeParams["application_name"] = "millrace hold " + stream
	// A pooler has no place for prepared statements.
	config.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("acquire hold of stream %s: %w", stream, err)
	}
	h := &Hold{
		conn: conn, stream: stream, publisher: publisher, lease: lease, log: logger.With("stream", stream),
		done: make(chan struct{}), lost: make(chan struct{}),
	}
	if err := h.acquire(ctx); err != nil {
		h.disconnect()
		return nil, fmt.Errorf("acquire hold of stream %s: %w", stream, err)
	}
	// The hold outlives ctx, which bounds the wait only.
	renewing, stop := context.WithCancel(context.WithoutCancel(ctx))
	h.stop = stop
	go h.keep(renewing)
	return h, nil
}

func (h *Hold) acquire(ctx context.Context) error {
	s, err := LoadStream(ctx, h.conn, h.stream)
	if err != nil {
		return err
	}
	if s.Capture == CaptureTrigger {
		h.pooled = &pooled{h: h}
		return h.pooled.acquire(ctx)
	}
	// A pooler answers the handshake itself and makes up the process ID.
	if err := h.conn.QueryRow(ctx, `SELECT pg_backend_pid()`, pgx.QueryExecModeSimpleProtocol).Scan(&h.pid); err != nil {
		return err
	}
	if h.pid != h.conn.PgConn().PID() {
		return ErrPooler
	}
	if _, err := h.conn.Exec(ctx, holdSession, pgx.QueryExecModeSimpleProtocol); err != nil {
		return err
	}
	if err := h.wait(ctx); err != nil {
		return err
	}
	if _, err := h.conn.Exec(ctx, holdWrite, h.stream, [16]byte(h.publisher)); err != nil {
		return explain("write the hold", err)
	}
	return nil
}

// wait returns when the lock is ours.
func (h *Hold) wait(ctx context.Context) error {
	pause := min(max(h.lease/10, 20*time.Millisecond), time.Second)
	told := uint32(0)
	for {
		got, pid, err := h.try(ctx, &told)
		if err != nil || got {
			return err
		}
		if pid == 0 { // it went meanwhile
			continue
		}
		if err := wait.For(ctx, pause); err != nil {
			return fmt.Errorf("server process %d has it: %w", pid, err)
		}
	}
}

// try asks for the lock once and looks who has it otherwise. A server that is
// gone without a word is given up after a while: who waits here is to take over
// when the one that holds fails, and the network may fail for both.
func (h *Hold) try(ctx context.Context, told *uint32) (got bool, holder uint32, err error) {
	limited, cancel := context.WithTimeout(ctx, max(h.lease, minAnswer))
	defer cancel()
	if got, err = h.lock(limited); err == nil && !got {
		holder, err = h.judge(limited, told)
	}
	if err != nil && limited.Err() != nil && ctx.Err() == nil {
		err = fmt.Errorf("the server has not answered for %v: %w", max(h.lease, minAnswer), err)
	}
	return got, holder, err
}

// lock asks for the lock once.
func (h *Hold) lock(ctx context.Context) (got bool, err error) {
	if h.pooled != nil {
		return h.pooled.lock(ctx)
	}
	err = h.conn.QueryRow(ctx, holdLock, h.stream).Scan(&got)
	return got, err
}

// judge looks at who has the lock and ends a holder that has shown no life for a
// lease. It returns that holder's process, 0 if there is none.
func (h *Hold) judge(ctx context.Context, told *uint32) (pid uint32, err error) {
	var publisher string
	var silent *float64
	err = h.conn.QueryRow(ctx, holdHolder, h.stream).Scan(&pid, &publisher, &silent)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	if *told != pid {
		h.log.Info("waiting for the stream's hold", "holder_pid", pid, "holder", publisher, "lease", h.lease)
		*told = pid
	}
	if silent == nil || *silent < h.lease.Seconds() {
		return pid, nil
	}
	var ended bool
	err = h.conn.QueryRow(ctx, holdEnd, pid).Scan(&ended)
	var pg *pgconn.PgError
	if errors.As(err, &pg) && !h.conn.IsClosed() {
		return pid, fmt.Errorf("end server process %d, which has the hold and has shown no life for %.1f s: %w; grant pg_signal_backend to this role or end that process yourself", pid, *silent, err)
	}
	if err != nil {
		return pid, err
	}
	h.log.Warn("ended a holder that showed no life", "holder_pid", pid, "holder", publisher, "silent_seconds", *silent, "lease", h.lease)
	return pid, nil
}

// keep renews the hold until stop, or until it is gone.
func (h *Hold) keep(ctx context.Context) {
	defer close(h.done)
	for {
		err := h.pause(ctx)
		if err == nil {
			err = h.renew(ctx)
		}
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			h.log.Warn("lost the stream's hold", "error", err)
			close(h.lost)
			return
		}
	}
}

// pause waits for a third of the lease, reading from the connection meanwhile,
// so that its end is noticed at once.
func (h *Hold) pause(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, h.lease/3)
	defer cancel()
	for {
		_, err := h.conn.WaitForNotification(ctx)
		if ctx.Err() != nil && !h.conn.IsClosed() {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (h *Hold) renew(ctx context.Context) error {
	// After the rest of the lease a successor may have ended this session.
	ctx, cancel := context.WithTimeout(ctx, h.lease*2/3)
	defer cancel()
	if h.pooled != nil {
		return h.pooled.renew(ctx)
	}
	tag, err := h.conn.Exec(ctx, holdRenew, h.stream, [16]byte(h.publisher), h.pid)
	if err != nil {
		return fmt.Errorf("renew the hold: %w", err)
	}
	if tag.RowsAffected() != 1 {
		return errors.New("renew the hold: this session has it no longer")
	}
	return nil
}

// Lost is closed when the connection or the lock is gone: another process may
// publish from then on. Close does not close it.
func (h *Hold) Lost() <-chan struct{} { return h.lost }

// Close gives the hold up and returns when its connection is closed. Closing
// again does nothing.
func (h *Hold) Close(ctx context.Context) error {
	h.closing.Do(func() {
		h.stop()
		<-h.done
		if !h.conn.IsClosed() {
			// The row goes before the lock does, so it is never a successor's.
			if err := h.deleteRow(ctx); err != nil {
				h.err = fmt.Errorf("give up the hold of stream %s: %w", h.stream, err)
			}
		}
		h.disconnect()
	})
	return h.err
}

func (h *Hold) deleteRow(ctx context.Context) error {
	if h.pooled != nil {
		return h.pooled.deleteRow(ctx)
	}
	_, err := h.conn.Exec(ctx, holdDelete, h.stream, [16]byte(h.publisher))
	return err
}

func (h *Hold) disconnect() {
	ctx, cancel := context.WithTimeout(context.Background(), h.lease)
	defer cancel()
	CloseConn(ctx, h.conn) // the session ends either way
	if h.pooled != nil {
		h.pooled.disconnect(ctx)
	}
}

const holdNow = `
SELECT publisher::text, pid, extract(epoch FROM clock_timestamp() - renewed_at)::float8
FROM millrace.hold WHERE stream = $1`

// Holder is what the hold's row says, for people.
type Holder struct {
	Publisher string
	PID       uint32
	// Silent is how long ago the hold was renewed, by the server's clock.
	Silent time.Duration
}

// LookHolder reads who holds a stream; nil if nobody does.
func LookHolder(ctx context.Context, conn *pgx.Conn, stream string) (*Holder, error) {
	var h Holder
	var silent float64
	err := conn.QueryRow(ctx, holdNow, stream).Scan(&h.Publisher, &h.PID, &silent)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, explain("look who holds stream "+stream, err)
	}
	h.Silent = time.Duration(silent * float64(time.Second))
	return &h, nil
}
