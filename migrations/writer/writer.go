// Package writer has an application write to the side of a migration that takes
// writes, while writers go over and back: held for a moment, and not failed.
//
// It asks millrace.migration_manager at both sides: when it begins, when one of them
// tells that it has changed, every few seconds, and when a write is denied. What it
// promises rests on the denial alone: a write that reached the wrong side was refused
// there with SQLSTATE 25006 and has left nothing, so it is made once more at the other.
package writer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millrace-db/millrace/internal/wait"
)

// Defaults of a Config.
const (
	DefaultHold = 30 * time.Second
	DefaultPoll = 5 * time.Second
)

// Config says which migration, and how to reach its two sides.
type Config struct {
	// Migration is its name.
	Migration string
	// Source and Target are the application's pools. They stay the caller's. The role
	// needs to read millrace.migration_manager: GRANT USAGE ON SCHEMA millrace, and
	// SELECT on the table, at both sides.
	Source, Target *pgxpool.Pool
	// Hold is how long a write is held at most while no side takes it. Default 30 s.
	Hold time.Duration
	// Poll is how often the sides are asked where they tell nothing. Default 5 s.
	Poll time.Duration
	// Logger hears when writers go over. Default: none.
	Logger *slog.Logger
}

// ErrHeld occurs when a write was held for as long as Config.Hold allows. It has not
// been made.
var ErrHeld = errors.New("no side takes writes")

// Writer gives out the pool of the side that takes writes. It is safe for concurrent
// use.
type Writer struct {
	cfg    Config
	log    *slog.Logger
	cancel context.CancelFunc
	group  sync.WaitGroup

	mu      sync.Mutex
	target  bool // takes writes
	term    int64
	changed chan struct{} // closed when that changes
}

// Open asks both sides and begins to watch them. One of them may be away, if the other
// answers. While neither knows of the migration, writes go to the source.
func Open(ctx context.Context, cfg Config) (*Writer, error) {
	if cfg.Migration == "" || cfg.Source == nil || cfg.Target == nil {
		return nil, errors.New("open writer: a migration's name and two pools are needed")
	}
	if cfg.Hold <= 0 {
		cfg.Hold = DefaultHold
	}
	if cfg.Poll <= 0 {
		cfg.Poll = DefaultPoll
	}
	w := &Writer{cfg: cfg, log: cfg.Logger, changed: make(chan struct{})}
	if w.log == nil {
		w.log = slog.New(slog.DiscardHandler)
	}
	if err := w.ask(ctx); err != nil {
		return nil, err
	}
	watching, cancel := context.WithCancel(context.WithoutCancel(ctx))
	w.cancel = cancel
	for _, pool := range []*pgxpool.Pool{cfg.Source, cfg.Target} {
		w.group.Go(func() { w.watch(watching, pool) })
	}
	return w, nil
}

// Close ends the watching. The pools stay open.
func (w *Writer) Close() {
	w.cancel()
	w.group.Wait()
}

// Pool returns the pool of the side that takes writes, as far as is known, and how
// often that has changed. A write through it may be denied: use Do.
func (w *Writer) Pool() (pool *pgxpool.Pool, term int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.target {
		return w.cfg.Target, w.term
	}
	return w.cfg.Source, w.term
}

// Do runs fn with the pool of the side that takes writes. Where a write is denied there,
// fn is run again, with the pool of the side that takes it by then: so what it does has
// to be one transaction, or of no account if it is done twice. Other errors of fn are
// returned as they are. Errors of its own: ErrHeld, and that of ctx.
func (w *Writer) Do(ctx context.Context, fn func(ctx context.Context, pool *pgxpool.Pool) error) error {
	var deadline time.Time
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		pool, term := w.Pool()
		err := fn(ctx, pool)
		if !Denied(err) {
			return err
		}
		if deadline.IsZero() {
			deadline = time.Now().Add(w.cfg.Hold)
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%w, for %v: %w", ErrHeld, w.cfg.Hold, err)
		}
		if asked := w.ask(ctx); asked != nil && ctx.Err() != nil {
			return asked
		}
		if err := w.awaitChange(ctx, term, pause); err != nil {
			return err
		}
	}
}

// The pause before a write that was denied is made again, where nothing is told.
const (
	firstPause = 2 * time.Millisecond
	lastPause  = 100 * time.Millisecond
)

// awaitChange waits until the term is another one, or a pause is over.
func (w *Writer) awaitChange(ctx context.Context, term int64, pause time.Duration) error {
	w.mu.Lock()
	now, changed := w.term, w.changed
	w.mu.Unlock()
	if now != term {
		return nil
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-changed:
	case <-timer.C:
	}
	return nil
}

// Denied reports whether an error is the denial of a write by a migration's gate.
func Denied(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == "25006"
}

// ask asks both sides who takes writes; the newer answer counts.
func (w *Writer) ask(ctx context.Context) error {
	var failed error
	answers := 0
	for _, pool := range []*pgxpool.Pool{w.cfg.Source, w.cfg.Target} {
		active, term, err := askOne(ctx, pool, w.cfg.Migration)
		if err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		answers++
		w.learn(active == "target", term)
	}
	if answers == 0 {
		return fmt.Errorf("ask who takes writes: %w", failed)
	}
	return nil
}

func askOne(ctx context.Context, pool *pgxpool.Pool, migration string) (active string, term int64, err error) {
	var there bool
	if err := pool.QueryRow(ctx, "SELECT to_regclass('millrace.migration_manager') IS NOT NULL").Scan(&there); err != nil || !there {
		return "", -1, err
	}
	err = pool.QueryRow(ctx, "SELECT active, term FROM millrace.migration_manager WHERE name = $1", migration).Scan(&active, &term)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", -1, nil
	}
	return active, term, err
}

// learn takes an answer.
func (w *Writer) learn(toTarget bool, term int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if term <= w.term {
		return
	}
	w.target, w.term = toTarget, term
	close(w.changed)
	w.changed = make(chan struct{})
	w.log.Info("writers go over", "migration", w.cfg.Migration, "to_target", toTarget, "term", term)
}

// watch listens to one side, and asks now and then.
func (w *Writer) watch(ctx context.Context, pool *pgxpool.Pool) {
	for ctx.Err() == nil {
		// A side that is away is asked again when it is back.
		_ = w.listen(ctx, pool)
		if wait.For(ctx, w.cfg.Poll) == nil {
			_ = w.ask(ctx)
		}
	}
}

func (w *Writer) listen(ctx context.Context, pool *pgxpool.Pool) error {
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return err
	}
	// It is listening, so nobody else gets it.
	own := conn.Hijack()
	defer own.Close(context.WithoutCancel(ctx)) //nolint:errcheck // nothing is lost with it
	if _, err := own.Exec(ctx, "LISTEN millrace_migration"); err != nil {
		return err
	}
	for {
		limited, cancel := context.WithTimeout(ctx, w.cfg.Poll)
		_, err := own.WaitForNotification(limited)
		cancel()
		if err != nil && limited.Err() == nil || ctx.Err() != nil {
			return err
		}
		if own.IsClosed() {
			return err
		}
		if err := w.ask(ctx); err != nil {
			return err
		}
	}
}
