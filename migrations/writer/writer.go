// Package writer has an application write to the side of a migration that takes
// writes, while writers go over and back: held for a moment, and not failed.
//
// It asks millrace.migration_manager at both sides: when it begins, when one of them
// tells that it has changed, every few seconds, and when a write is denied. What it
// promises rests on the denial alone: a write that reached the wrong side was refused
// there with SQLSTATE 25006 and has left nothing, so it is made once more at the other.
//
// A connection whose transaction was denied has to be rolled back like any other: pgxpool
// closes one that is given back within its transaction, so none stays that would be of no
// use to the next. Connections to the side that writers have left are as good as before,
// for reading and for when they come back.
package writer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
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
	life   context.Context // ends with Close
	cancel context.CancelFunc
	group  sync.WaitGroup
	there  [2]atomic.Bool // each side is known to have what it is asked for

	mu sync.Mutex
	known
	changed chan struct{} // closed when that changes, or a side tells that something has
	asking  [2]*question  // to each side, by whether it is the target's; nil if nobody asks
}

// question is put to a side; err is what came of it when done is closed.
type question struct {
	done chan struct{}
	err  error
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
	w := &Writer{cfg: cfg, log: cfg.Logger, known: known{past: make(map[string]bool)}, changed: make(chan struct{})}
	if w.log == nil {
		w.log = slog.New(slog.DiscardHandler)
	}
	watching, cancel := context.WithCancel(context.WithoutCancel(ctx))
	w.life, w.cancel = watching, cancel
	if err := w.ask(ctx); err != nil {
		w.Close()
		return nil, err
	}
	for _, pool := range []*pgxpool.Pool{cfg.Source, cfg.Target} {
		w.group.Go(func() { w.watch(watching, pool) })
	}
	return w, nil
}

// Close ends the watching; Do is called no more then. The pools stay open.
func (w *Writer) Close() {
	w.cancel()
	w.group.Wait()
}

// Pool returns the pool of the side that takes writes, as far as is known, and how
// often that has changed in this migration. A write through it may be denied: use Do. It
// is nil while neither pool is known to lead to that side.
func (w *Writer) Pool() (pool *pgxpool.Pool, term int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.poolLocked(), w.term
}

func (w *Writer) poolLocked() *pgxpool.Pool {
	switch w.pool {
	case nowhere:
		return nil
	case toTarget:
		return w.cfg.Target
	}
	return w.cfg.Source
}

// Do runs fn with the pool of the side that takes writes. Where a write is denied there,
// fn is run again, with the pool of the side that takes it by then: so what it does has
// to be one transaction, which it rolls back where anything fails, or of no account if it is done twice; and the
// error that it returns has to be, or wrap, that of the statement that was denied, not one
// of those behind it. Other errors of fn are returned as they are. Errors of its own: ErrHeld, and that
// of ctx. It returns no later than Config.Hold behind the first denial, but for the time that fn takes.
func (w *Writer) Do(ctx context.Context, fn func(ctx context.Context, pool *pgxpool.Pool) error) error {
	var deadline time.Time
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		w.mu.Lock()
		pool, changed := w.poolLocked(), w.changed
		w.mu.Unlock()
		err := errNowhere
		if pool != nil {
			err = fn(ctx, pool)
		}
		if pool != nil && !Denied(err) {
			return err
		}
		if deadline.IsZero() {
			deadline = time.Now().Add(w.cfg.Hold)
		}
		left := time.Until(deadline)
		if left <= 0 {
			return fmt.Errorf("%w, for %v: %w", ErrHeld, w.cfg.Hold, err)
		}
		if err := w.awaitChange(ctx, changed, pause, left); err != nil {
			return err
		}
	}
}

// errNowhere is why a write waits that was not tried.
var errNowhere = errors.New("the side that takes them has not been heard of")

// The pause before a write that was denied is made again, where nothing is told.
const (
	firstPause = 2 * time.Millisecond
	lastPause  = 100 * time.Millisecond
)

// awaitChange has both sides asked, and waits until something has changed; where nothing
// has, for a pause. It does not wait for a side that does not answer, and has nobody
// try again what is about to be told.
func (w *Writer) awaitChange(ctx context.Context, changed chan struct{}, pause, left time.Duration) error {
	timer := time.NewTimer(min(lastPause, left))
	defer timer.Stop()
	for _, q := range w.begin() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
			return nil
		case <-timer.C:
			return nil
		case <-q.done:
		}
	}
	timer.Reset(min(pause, left))
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

// askLimit is how long a side may take to answer.
const askLimit = 5 * time.Second

// ask asks both sides who takes writes and waits for their answers; the newer one counts.
func (w *Writer) ask(ctx context.Context) error {
	var errs []error
	for _, q := range w.begin() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-q.done:
		}
		if q.err != nil {
			errs = append(errs, q.err)
		}
	}
	if len(errs) == 2 {
		return fmt.Errorf("ask who takes writes: %w", errors.Join(errs...))
	}
	return nil
}

// begin has both sides asked that are not being asked already. One that does not answer
// does not keep the other one from being asked again.
func (w *Writer) begin() [2]*question {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range w.asking {
		if w.asking[i] != nil {
			continue
		}
		q := &question{done: make(chan struct{})}
		w.asking[i] = q
		w.group.Go(func() {
			q.err = w.askOne(where(i))
			w.mu.Lock()
			defer w.mu.Unlock()
			w.asking[i] = nil
			close(q.done)
		})
	}
	return w.asking
}

// askOne asks one side.
func (w *Writer) askOne(of where) error {
	pool := w.cfg.Source
	if of == toTarget {
		pool = w.cfg.Target
	}
	ctx, cancel := context.WithTimeout(w.life, askLimit)
	defer cancel()
	if there := &w.there[of]; !there.Load() {
		var is bool
		if err := pool.QueryRow(ctx, "SELECT to_regclass('millrace.migration_manager') IS NOT NULL").Scan(&is); err != nil || !is {
			return err
		}
		there.Store(true)
	}
	var a answer
	err := pool.QueryRow(ctx, `
SELECT active, term, coalesce(to_jsonb(m)->>'id', ''), coalesce(to_jsonb(m)->>'side', $2) FROM millrace.migration_manager m WHERE name = $1`, w.cfg.Migration, of.String()).Scan(&a.active, &a.term, &a.id, &a.side)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		w.there[of].Store(false) // it may have been dropped
		return err
	}
	w.learn(&a, of)
	return nil
}

// learn takes an answer of the side that a pool leads to.
func (w *Writer) learn(a *answer, of where) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.take(a, of) {
		return
	}
	w.wakeLocked()
	w.log.Info("writers go over", "migration", w.cfg.Migration, "id", w.id, "to", w.pool.String(), "term", w.term)
}

// wakeLocked has those try again that wait.
func (w *Writer) wakeLocked() {
	close(w.changed)
	w.changed = make(chan struct{})
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
	own, err := w.own(ctx, pool)
	if err != nil {
		return err
	}
	defer func() {
		limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = own.Close(limited) // nothing is lost with it
	}()
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
		if err == nil {
			// Its gate may have opened behind what is known already.
			w.mu.Lock()
			w.wakeLocked()
			w.mu.Unlock()
		}
		if err := w.ask(ctx); err != nil {
			return err
		}
	}
}

// own takes a connection out of a pool that listens.
func (w *Writer) own(ctx context.Context, pool *pgxpool.Pool) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	own := conn.Hijack() // nobody else gets it
	if _, err := own.Exec(ctx, "LISTEN millrace_migration"); err != nil {
		_ = own.Close(ctx) // the failure is told
		return nil, err
	}
	return own, nil
}
