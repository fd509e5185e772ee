package keylog

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// Config says what to install.
type Config struct {
	// Stream is its name.
	Stream string
	// Tables to capture. The logs of other tables of the stream are taken away.
	Tables []Table
	// Period is how long a segment is written to before the next: published
	// keys can be read for one to two periods. A second at least; parts of one
	// do not count.
	Period time.Duration
	// Roles own, read and write what is made, where they are there or the role of
	// the connection may make them. Empty names stand for the usual ones.
	Roles Roles
	// Login is the role that reads the logs, which is made a member of
	// Roles.Capture; empty for the role of the connection.
	Login string
	// Except are SQL conditions on a session: one that meets all of them, asked in their
	// order, is not logged. Each but the last should be cheap, because every statement of
	// a writer asks the first. None: all are logged.
	Except []string
	// Alone leaves what is made with the role of the connection: nothing is handed to
	// Roles.
	Alone bool
	// Log tells of what was done. nil is silent.
	Log *slog.Logger
}

// The statements that every transaction here begins with. What is SET LOCAL ends
// with the transaction, so it holds through a pooler too.
var transactionSettings = []string{
	fmt.Sprintf("SET LOCAL lock_timeout = %d", lockTimeout.Milliseconds()),
	// Names of types are written out in full, and the conditions of triggers
	// are read with the operators of Postgres itself.
	"SET LOCAL search_path = pg_catalog",
	"SET LOCAL client_min_messages = warning",
	// The event trigger leaves out what is done here.
	"SET LOCAL millrace.installing = on",
	// Two inits at once would replace each other's functions.
	"SELECT pg_advisory_xact_lock(hashtextextended('millrace.migrate', 0))",
}

// installer carries out or writes out what a configuration needs.
type installer struct {
	cfg    Config
	texts  texts
	looker *Looker
	log    *slog.Logger
	// owns says that what is made is handed to the owner role.
	owns bool
}

func newInstaller(cfg Config) (*installer, error) {
	if cfg.Stream == "" || cfg.Period < time.Second {
		return nil, fmt.Errorf("install logs of keys: stream %q, period %v: want a name and a second at least", cfg.Stream, cfg.Period)
	}
	t, err := parseTexts()
	if err != nil {
		return nil, err
	}
	looker, err := NewLooker(cfg.Stream)
	if err != nil {
		return nil, err
	}
	cfg.Roles = cfg.Roles.complete()
	i := &installer{cfg: cfg, texts: t, looker: looker, log: cfg.Log}
	if i.log == nil {
		i.log = slog.New(slog.DiscardHandler)
	}
	return i, nil
}

// Install makes the logs of exactly the configured tables, or makes those whole
// that are there. It can be run again at any time; what is as it should be is
// neither locked nor touched. The control schema must have been migrated.
//
// Each table is done in a transaction of its own, which holds SHARE ROW EXCLUSIVE
// on it for some milliseconds. That waits for the transactions that write to the
// table, and holds back those that come after, for a second at most; then it gives
// way and tries again, ten times at growing distances. A log that is no longer
// wanted is taken away under ACCESS EXCLUSIVE in the same way.
//
// Where something was amiss, or the log is new, its CompleteSince tells that the
// table has to be loaded. Errors: ErrRefused.
func Install(ctx context.Context, conn *pgx.Conn, cfg Config) error {
	i, err := newInstaller(cfg)
	if err != nil {
		return err
	}
	logs, err := i.looker.Look(ctx, conn)
	if err != nil {
		return err
	}
	for n := range cfg.Tables {
		t := &cfg.Tables[n]
		err := retry(ctx, conn, "install triggers on table "+t.String(), func(tx pgx.Tx) error {
			return i.install(ctx, tx, t)
		})
		if err != nil {
			return err
		}
	}
	for n := range logs {
		if l := &logs[n]; !i.wanted(l) {
			if err := i.remove(ctx, conn, l); err != nil {
				return err
			}
		}
	}
	return nil
}

func (i *installer) wanted(l *Log) bool {
	return slices.ContainsFunc(i.cfg.Tables, func(t Table) bool { return t.ID == l.Table.ID })
}

// install does one table, in a transaction that has begun.
func (i *installer) install(ctx context.Context, tx pgx.Tx, t *Table) (err error) {
	if !i.cfg.Alone {
		if i.owns, err = canOwn(ctx, tx, i.cfg.Roles); err != nil {
			return err
		}
	}
	p, err := i.planNow(ctx, tx, t)
	if err != nil || p.nothing() {
		return err
	}
	if _, err := tx.Exec(ctx, p.lock, pgx.QueryExecModeSimpleProtocol); err != nil {
		return err
	}
	// Under the lock nothing of it can change any more.
	if p, err = i.planNow(ctx, tx, t); err != nil {
		return err
	}
	for _, statements := range p.statements {
		if _, err := tx.Exec(ctx, statements, pgx.QueryExecModeSimpleProtocol); err != nil {
			return err
		}
	}
	i.log.Info("triggers installed", "stream", i.cfg.Stream, "table", t.String(), "log", p.id, "mode", string(p.mode), "why", p.why)
	return nil
}

// planNow says what a table needs, by what q sees.
func (i *installer) planNow(ctx context.Context, q Querier, t *Table) (*plan, error) {
	logs, err := i.looker.Look(ctx, q)
	if err != nil {
		return nil, err
	}
	number, err := nextNumber(ctx, q)
	if err != nil {
		return nil, err
	}
	return i.plan(ctx, q, logs, t, number)
}

// plan is what one table needs.
type plan struct {
	id         int
	mode       Mode
	why        string
	lock       string
	statements []string
}

func (p *plan) nothing() bool { return len(p.statements) == 0 }

// plan says what a table needs where these logs are there. A new one gets the
// number.
func (i *installer) plan(ctx context.Context, q Querier, logs []Log, t *Table, number int) (*plan, error) {
	f, err := lookUp(ctx, q, t)
	if err != nil {
		return nil, err
	}
	var l *Log
	if n := slices.IndexFunc(logs, func(l Log) bool { return l.Table.ID == t.ID }); n >= 0 {
		l = &logs[n]
		number = l.ID
	}
	text := newLogTexts(number, i.cfg.Stream, int64(i.cfg.Period/time.Second), f)
	text.Roles, text.Except = i.cfg.roleTexts(), i.cfg.Except
	defining, err := i.texts.defining(text)
	if err != nil {
		return nil, err
	}
	p := &plan{id: number, mode: text.Mode, lock: "LOCK TABLE " + text.Table + " IN SHARE ROW EXCLUSIVE MODE"}
	fresh := l == nil
	var reasons []string
	if l != nil {
		fresh = !slices.Equal(l.Table.Key, t.Key)
		for _, problem := range l.Problems {
			reasons = append(reasons, problem.Text)
			fresh = fresh || problem.Kind == SegmentMissing || problem.Kind == KeyChanged
		}
		if fresh && len(reasons) == 0 {
			reasons = append(reasons, l.Fits(t.Key).Text)
		}
		if len(reasons) == 0 && l.definition == text.Definition && l.Mode == text.Mode && !l.Renamed() {
			return p, nil
		}
	}
	text.Hole = l == nil || len(reasons) > 0
	text.Reason = literal(strings.Join(reasons, "; "))
	switch {
	case l == nil:
		p.why = "new"
	case text.Hole:
		p.why = strings.Join(reasons, "; ")
	default:
		p.why = "other settings or version"
	}
	return p, i.write(p, text, defining, l != nil && fresh, fresh)
}

// write puts the statements into the plan. drop says that there is a log of
// another form.
func (i *installer) write(p *plan, text *logTexts, defining []string, drop, fresh bool) error {
	add := func(name string) error {
		statements, err := i.texts.render(name, text)
		p.statements = append(p.statements, statements)
		return err
	}
	if drop {
		p.statements = append(p.statements, "DROP TABLE IF EXISTS "+strings.Join(text.Segments(), ", ")+";\n")
	}
	if fresh {
		if err := add("segments.sql"); err != nil {
			return err
		}
	}
	p.statements = append(p.statements, defining...)
	names := []string{"enable.sql"}
	if i.owns {
		names = append(names, "own.sql")
	}
	for _, name := range append(names, "register.sql") {
		if err := add(name); err != nil {
			return err
		}
	}
	return nil
}

// nextNumber is the number of a log that is made next.
func nextNumber(ctx context.Context, q Querier) (int, error) {
	var number int
	if err := q.QueryRow(ctx, "SELECT coalesce(max(id), 0) + 1 FROM millrace.key_log").Scan(&number); err != nil {
		return 0, fmt.Errorf("number a log: %w", err)
	}
	return number, nil
}
