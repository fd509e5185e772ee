// Package proof compares every row of a stream's tables at the source with every
// row of a local store, exactly and while writers go on.
//
// It promises that a difference it reports is one, and that rows it calls equal
// are: source and store are read at the same place of the history. For that it
// holds writers off for a moment:
//
//	tables locked IN SHARE MODE   no change is in flight any more
//	  source snapshot             sees every change there was
//	  heartbeat committed         its LSN is behind all of them
//	  store reaches that LSN      it has applied every change there was
//	  store snapshot
//	tables unlocked               writers go on; both snapshots stay
//	  rows compared
//
// It shares with the pipeline the way keys are encoded, and nothing of how
// changes are captured, carried and applied.
package proof

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge"
	"github.com/millrace-db/millrace/internal/wait"
)

// ErrBusy occurs when the tables could not be locked, because transactions of
// the source kept them for too long. Try again when there are fewer long ones.
var ErrBusy = errors.New("the tables could not be locked")

// Config says what to compare.
type Config struct {
	// SourceURL reaches the source database, directly.
	SourceURL string
	// Tables are the captured tables, schema.table.
	Tables []string
	// Store is an edge's store, or one opened read-only. Its MaxViewAge bounds
	// the comparison.
	Store *edge.Store
	// Stream is the stream's name. A heartbeat of it is committed, so that the
	// store need not wait for the next one.
	Stream string
	// Mode is how the stream is captured. Default: WAL.
	Mode millrace.Mode
	// LockTimeout is how long one attempt to lock the tables may hold writers
	// up, 400 ms by default: below deadlock_timeout, so that an application's
	// transaction never ends for it. Attempts are how many there are; 20 by
	// default.
	LockTimeout time.Duration
	Attempts    int
	// CatchUp is how long the store may take to reach the source, while writers
	// are held off. Default 30 s.
	CatchUp time.Duration
	// Examples is how many differences of a table are described. Default 5.
	Examples int
}

func (c *Config) complete() error {
	if c.Store == nil || c.SourceURL == "" || c.Stream == "" || len(c.Tables) == 0 {
		return errors.New("compare source and edge: source, stream, tables and store must be given")
	}
	if c.LockTimeout <= 0 {
		c.LockTimeout = 400 * time.Millisecond
	}
	if c.Attempts <= 0 {
		c.Attempts = 20
	}
	if c.CatchUp <= 0 {
		c.CatchUp = 30 * time.Second
	}
	if c.Examples <= 0 {
		c.Examples = 5
	}
	return nil
}

// Result says what was compared and how it came out.
type Result struct {
	// Index and Chain are where the store stood.
	Index  millrace.Index
	Chain  millrace.Chain
	Tables []TableResult
	// Held is how long writers were held off, Took how long it took in all.
	Held, Took time.Duration
}

// TableResult is the comparison of one table.
type TableResult struct {
	Name string
	// SourceRows and EdgeRows are all rows of each side.
	SourceRows, EdgeRows uint64
	// Missing are rows that only the source has, Extra those that only the edge
	// has, Different those that both have with other values.
	Missing, Extra, Different uint64
	// Examples describe the first differences.
	Examples []string
}

// Differences is the number of rows that are not equal.
func (t *TableResult) Differences() uint64 { return t.Missing + t.Extra + t.Different }

// SourceRows is the number of rows of all tables at the source.
func (r *Result) SourceRows() (n uint64) {
	for i := range r.Tables {
		n += r.Tables[i].SourceRows
	}
	return n
}

// EdgeRows is the number of rows of all tables at the edge.
func (r *Result) EdgeRows() (n uint64) {
	for i := range r.Tables {
		n += r.Tables[i].EdgeRows
	}
	return n
}

// Differences is the number of rows of all tables that are not equal.
func (r *Result) Differences() (n uint64) {
	for i := range r.Tables {
		n += r.Tables[i].Differences()
	}
	return n
}

// Examples are those of all tables.
func (r *Result) Examples() []string {
	var all []string
	for i := range r.Tables {
		all = append(all, r.Tables[i].Examples...)
	}
	return all
}

// Run compares. Differences are no error; the result tells them. Errors:
// ErrBusy, and those of the source and the store.
func Run(ctx context.Context, cfg Config) (*Result, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	r := &run{cfg: cfg, began: time.Now()}
	defer r.close()
	result, err := r.all(ctx)
	if err != nil {
		return nil, fmt.Errorf("compare source and edge: %w", err)
	}
	return result, nil
}

// run is one comparison.
type run struct {
	cfg   Config
	began time.Time
	// locks holds the tables, rows has the snapshot.
	locks, rows *pgx.Conn
	locked      time.Time
	marked      mark
	result      Result
}

func (r *run) all(ctx context.Context) (*Result, error) {
	if err := r.connect(ctx); err != nil {
		return nil, err
	}
	if err := r.lock(ctx); err != nil {
		return nil, err
	}
	if err := r.snapshot(ctx); err != nil {
		return nil, err
	}
	if err := r.mark(ctx); err != nil {
		return nil, err
	}
	if err := r.reach(ctx); err != nil {
		return nil, err
	}
	err := r.cfg.Store.View(ctx, func(v *edge.View) error {
		r.result.Index, r.result.Chain = v.Index(), v.Place().Chain
		if err := r.unlock(ctx); err != nil {
			return err
		}
		for _, name := range r.cfg.Tables {
			if err := r.table(ctx, v, name); err != nil {
				return fmt.Errorf("table %s: %w", name, err)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	r.result.Took = time.Since(r.began)
	return &r.result, nil
}

// session pins what the text of a value depends on.
const session = `
SET DateStyle = 'ISO, MDY'; SET IntervalStyle = 'postgres'; SET TimeZone = 'UTC'; SET extra_float_digits = 3;
SET bytea_output = 'hex'; SET client_encoding = 'UTF8'; SET lc_monetary = 'C'; SET search_path = pg_catalog;
SET xmloption = 'content'; SET row_security = off; SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0`

func (r *run) connect(ctx context.Context) (err error) {
	for _, conn := range []**pgx.Conn{&r.locks, &r.rows} {
		cfg, err := pgx.ParseConfig(r.cfg.SourceURL)
		if err != nil {
			return fmt.Errorf("read source URL: %w", err)
		}
		cfg.RuntimeParams["application_name"] = "millrace proof"
		if *conn, err = pgx.ConnectConfig(ctx, cfg); err != nil {
			return fmt.Errorf("connect to the source: %w", err)
		}
		if _, err = (*conn).Exec(ctx, session, pgx.QueryExecModeSimpleProtocol); err != nil {
			return fmt.Errorf("prepare session: %w", err)
		}
	}
	return nil
}

// lock waits out the transactions that have changed the tables, and holds new
// ones off.
func (r *run) lock(ctx context.Context) error {
	names := make([]string, len(r.cfg.Tables))
	for i, name := range r.cfg.Tables {
		names[i] = quoted(name)
	}
	statements := fmt.Sprintf("BEGIN; SET LOCAL lock_timeout = %d; LOCK TABLE %s IN SHARE MODE",
		r.cfg.LockTimeout.Milliseconds(), strings.Join(names, ", "))
	for attempt := 1; ; attempt++ {
		r.locked = time.Now()
		_, err := r.locks.Exec(ctx, statements, pgx.QueryExecModeSimpleProtocol)
		if err == nil {
			return nil
		}
		var pg *pgconn.PgError
		busy := errors.As(err, &pg) && (pg.Code == "55P03" || pg.Code == "40P01")
		if !busy {
			return fmt.Errorf("lock tables: %w", err)
		}
		if _, err := r.locks.Exec(ctx, "ROLLBACK"); err != nil {
			return fmt.Errorf("lock tables: %w", err)
		}
		if attempt == r.cfg.Attempts {
			return fmt.Errorf("%w in %d attempts of %s: a transaction holds one of them", ErrBusy, attempt, r.cfg.LockTimeout)
		}
		// Writers go first for as long as they were held up.
		if err := wait.For(ctx, r.cfg.LockTimeout); err != nil {
			return err
		}
	}
}

// snapshot opens the one that the rows are read with. A transaction gives its
// locks up after it has become visible, so every change is in it.
func (r *run) snapshot(ctx context.Context) error {
	if _, err := r.rows.Exec(ctx, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SELECT pg_current_snapshot()", pgx.QueryExecModeSimpleProtocol); err != nil {
		return fmt.Errorf("take snapshot: %w", err)
	}
	return nil
}

// mark commits a transaction, behind every change that the snapshot sees, on a
// connection of its own: the others are within transactions.
func (r *run) mark(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, r.cfg.SourceURL)
	if err != nil {
		return fmt.Errorf("connect to the source: %w", err)
	}
	r.marked, err = setMark(ctx, conn, r.cfg.Mode, r.cfg.Stream)
	return errors.Join(err, conn.Close(ctx))
}

// reach waits until the store has applied a unit that ends at or behind the
// mark: it has then applied all that were committed before.
func (r *run) reach(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.CatchUp)
	defer cancel()
	for {
		changed := r.cfg.Store.Changed()
		at, index, err := applied(ctx, r.cfg.Store)
		if err != nil {
			return err
		}
		if passed, err := r.marked.passed(&at); passed || err != nil {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for the edge to reach %v: it is at %v, index %v: %w", &r.marked, at, index, ctx.Err())
		}
	}
}

func (r *run) unlock(ctx context.Context) error {
	if _, err := r.locks.Exec(ctx, "ROLLBACK"); err != nil {
		return fmt.Errorf("unlock tables: %w", err)
	}
	r.result.Held = time.Since(r.locked)
	return nil
}

func (r *run) close() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	for _, conn := range []*pgx.Conn{r.locks, r.rows} {
		if conn != nil {
			_ = conn.Close(ctx) // it was only read from; its locks end with it
		}
	}
}

// quoted returns schema.table as SQL writes it.
func quoted(table string) string {
	schema, name, _ := strings.Cut(table, ".")
	return pgx.Identifier{schema, name}.Sanitize()
}

// Write prints the result: a line for each table, and the first differences.
func (r *Result) Write(w io.Writer) {
	for i := range r.Tables {
		t := &r.Tables[i]
		fmt.Fprintf(w, "%s: %d rows at the source, %d at the edge, %d differences\n", t.Name, t.SourceRows, t.EdgeRows, t.Differences())
		for _, example := range t.Examples {
			fmt.Fprintf(w, "  %s\n", example)
		}
	}
}
