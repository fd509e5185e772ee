package trigger

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture/chunk"
	"github.com/millrace-db/millrace/capture/trigger/keylog"
)

// window is one look at the source: a transaction with one snapshot, and what is new
// in it. It ends with its tick, which is written by the same transaction.
type window struct {
	s    *Source
	conn *pgx.Conn
	// asked is how often Soon had been called before the snapshot.
	asked uint64
	// ctx is that of the rows, which may be read long after the window was begun.
	ctx context.Context //nolint:containedctx // so it outlives the call that made it
	end context.CancelCauseFunc

	facts    facts
	at       time.Time // of the snapshot, by the source's clock
	position millrace.Position
	unseen   unseen
	wanted   []wantedLoad
	news     []news
	entries  uint64 // of the unit
	// open tells that loads and verification read in the transaction after the rows.
	open bool

	// The rows: those of news[next] are being read by rows.
	results *pgconn.MultiResultReader
	rows    *pgconn.ResultReader
	next    int
	begun   bool
}

// news are what is new in a table's log.
type news struct {
	t                                     *captured
	inserted, updated, deleted, truncated uint64
	keys                                  uint64 // distinct ones
	unknown                               uint64 // distinct ones that are not known whole
	read                                  uint64
	// scan tells that the table is read from end to end.
	scan bool
}

// window makes a window, and its unit unless there is nothing in it and none is due.
func (s *Source) window(ctx context.Context) (*millrace.Unit, error) {
	due := !s.due().After(time.Now())
	w, aspects, err := s.begin(ctx)
	if errors.Is(err, errNames) {
		// Whoever renamed it was quicker. By its ID it is found under its new name.
		if err := s.refreshNames(ctx); err != nil {
			return nil, err
		}
		w, aspects, err = s.begin(ctx)
		if errors.Is(err, errNames) {
			return nil, errBusy // and again
		}
	}
	if err != nil {
		return nil, err
	}
	if err := s.prelude(ctx, w, aspects); err != nil {
		return nil, err
	}
	if s.out.Len() == 0 && len(w.news) == 0 {
		if !due {
			return nil, ask(ctx, s.conn.PgConn(), "ROLLBACK")
		}
		if err := s.out.Append(&millrace.Entry{Kind: millrace.KindHeartbeat}); err != nil {
			return nil, err
		}
	}
	return w.unit(ctx)
}

// begin begins a window: it locks, takes the snapshot, looks at what it is a
// snapshot of and counts what is new. Errors: errBusy, errNames; then there is no
// window.
func (s *Source) begin(ctx context.Context) (*window, map[millrace.TableID]*aspect, error) {
	limited, cancel := context.WithTimeout(ctx, stepLimit)
	defer cancel()
	w := &window{s: s, conn: s.conn, asked: s.asked.Load()}
	aspects := make(map[millrace.TableID]*aspect, len(s.tables))
	var logs []keylog.Log
	if err := s.setApart(limited); err != nil {
		return nil, nil, err
	}
	err := ask(limited, s.conn.PgConn(), s.beginQuery(), w.take, func(row [][]byte) error {
		id, a, err := parseAspect(row)
		aspects[id] = a
		return err
	}, w.want)
	if err == nil {
		logs, err = s.c.looker.Look(limited, s.conn)
	}
	if err != nil {
		if mild := s.mildly(ctx, err); mild != nil {
			return nil, nil, mild
		}
		return nil, nil, fmt.Errorf("begin window: %w", err)
	}
	if err := fence(s.position, &w.facts, s.c.planted); err != nil {
		return nil, nil, err
	}
	for _, t := range s.tables {
		a := aspects[t.id]
		if a == nil || a.name != t.name {
			// The lock is on whatever has the name by now.
			return nil, nil, errors.Join(errNames, ask(ctx, s.conn.PgConn(), "ROLLBACK"))
		}
	}
	for i := range logs {
		if a := aspects[logs[i].Table.ID]; a != nil {
			a.log = &logs[i]
		}
	}
	if !s.position.IsZero() {
		w.unseen = s.c.planted.unseen(unseenBy(s.before, w.facts.Snapshot), s.before, w.facts.Snapshot)
	}
	w.position = millrace.Position{Mode: millrace.ModeTrigger, SystemID: w.facts.System, Tick: s.tick + 1, Snapshot: w.facts.Snapshot.String()}
	if err := w.count(ctx); err != nil {
		return nil, nil, fmt.Errorf("count what is new: %w", err)
	}
	for i := range w.news {
		if s.apart[w.news[i].t.id] {
			// Its rows cannot be read, and the snapshot stands for all tables.
			return nil, nil, errors.Join(fmt.Errorf("%w: %v has news and is locked against everybody", errBusy, w.news[i].t.name), ask(ctx, s.conn.PgConn(), "ROLLBACK"))
		}
	}
	return w, aspects, nil
}

// mildly ends a transaction that failed for a reason which passes, and says which.
// It returns nil if it is none.
func (s *Source) mildly(ctx context.Context, err error) error {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) || s.conn.IsClosed() {
		return nil
	}
	kind := errBusy
	switch pg.Code {
	case "55P03", "40P01", "40001": // lock_not_available, deadlock_detected, serialization_failure
		s.heldUp = true
	case "42P01", "3F000": // undefined_table, invalid_schema_name
		kind = errNames
	default:
		return nil
	}
	return errors.Join(fmt.Errorf("%w: %w", kind, err), ask(ctx, s.conn.PgConn(), "ROLLBACK"))
}

// beginQuery is what a window begins with. LOCK TABLE and SET take no snapshot, so
// the transaction's is taken behind the locks.
func (s *Source) beginQuery() string {
	var tables []string
	for _, t := range s.tables {
		if !s.apart[t.id] {
			tables = append(tables, t.name.Quoted())
		}
	}
	for _, t := range s.tables {
		tables = append(tables, t.log.segments()...)
	}
	q := "BEGIN ISOLATION LEVEL REPEATABLE READ READ WRITE; " + settings(s.conn.PgConn())
	if s.c.planted.early() {
		q += "; SELECT WHERE pg_current_snapshot() IS NULL"
	}
	q += "; SET LOCAL lock_timeout = " + strconv.FormatInt(s.c.lockTimeout.Milliseconds(), 10)
	q += "; LOCK TABLE " + strings.Join(tables, ", ") + " IN ACCESS SHARE MODE; SET LOCAL lock_timeout = 0"
	// What was emptied has no statistics, and reading it from end to end looks cheap.
	q += "; SET LOCAL enable_seqscan = off; SET LOCAL work_mem = '64MB'; SET LOCAL max_parallel_workers_per_gather = 0"
	q += "; " + factsQuery(s.c.cfg.Stream, strconv.FormatUint(uint64(s.epoch), 10), s.position.Tick)
	return q + "; " + aspectsQuery(s.tables) + "; " + wantedQuery(s.c.cfg.Stream)
}

// factsQuery asks for the facts, and the source's clock in microseconds.
// epoch is written in SQL.
func factsQuery(stream, epoch string, tick uint64) string {
	of := fmt.Sprintf("stream = %s AND epoch = %s AND tick = %d", literal(stream), epoch, tick)
	return "SELECT pg_current_snapshot(), (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, pg_is_in_recovery()::text, (SELECT system_identifier FROM pg_control_system())," +
		" (SELECT oid FROM pg_database WHERE datname = current_database())," +
		" coalesce((SELECT snapshot FROM millrace.tick WHERE " + of + "), ''), coalesce((SELECT counts->>'database' FROM millrace.tick WHERE " + of + "), '0')"
}

// parse reads the answer to factsQuery.
func (f *facts) parse(row [][]byte) (at time.Time, err error) {
	if f.Snapshot, err = chunk.ParseSnapshot(string(row[0])); err != nil {
		return at, err
	}
	micros, err := strconv.ParseInt(string(row[1]), 10, 64)
	if err != nil {
		return at, fmt.Errorf("read the source's clock: %w", err)
	}
	f.Recovery = string(row[2]) == "true"
	system, err := strconv.ParseInt(string(row[3]), 10, 64) // a bigint, of which the sign is a bit like any other
	if err != nil {
		return at, fmt.Errorf("read the system identifier: %w", err)
	}
	f.System = uint64(system)
	database, err := strconv.ParseUint(string(row[4]), 10, 32)
	if err != nil {
		return at, fmt.Errorf("read the OID of the database: %w", err)
	}
	of, err := strconv.ParseUint(string(row[6]), 10, 32)
	if err != nil {
		return at, fmt.Errorf("read tick: %w", err)
	}
	f.Database, f.Tick, f.TickDatabase = uint32(database), string(row[5]), uint32(of)
	return time.UnixMicro(micros).UTC(), nil
}

func (w *window) take(row [][]byte) (err error) {
	w.at, err = w.facts.parse(row)
	return err
}

// count asks how much is new, table by table. It reads nothing of tables that have
// not joined: their load will.
func (w *window) count(ctx context.Context) error {
	if w.unseen.isEmpty() {
		return nil
	}
	var parts []string
	for i, t := range w.s.tables {
		if t.schema != nil {
			parts = append(parts, fmt.Sprintf("SELECT %d AS place, n.* FROM (%s) n WHERE n.keys + n.unknown + n.truncated > 0", i, t.log.count(&w.unseen)))
		}
	}
	if len(parts) == 0 {
		return nil
	}
	return ask(ctx, w.conn.PgConn(), strings.Join(parts, " UNION ALL ")+" ORDER BY place", func(row [][]byte) error {
		var n [8]uint64
		for i := range n {
			var err error
			if n[i], err = strconv.ParseUint(string(row[i]), 10, 64); err != nil {
				return err
			}
		}
		t := w.s.tables[n[0]]
		if n[5] > 0 {
			return fmt.Errorf("%w: the log of %v has %d rows of no known action; mend: millrace init, and load the table", keylog.ErrTriggers, t.name, n[5])
		}
		w.news = append(w.news, news{t: t, inserted: n[1], updated: n[2], deleted: n[3], truncated: n[4], keys: n[6], unknown: n[7]})
		return nil
	})
}

// newsOf returns what is new of a table, or nothing.
func (w *window) newsOf(t *captured) news {
	for i := range w.news {
		if w.news[i].t == t {
			return w.news[i]
		}
	}
	return news{t: t}
}

// prelude writes the entries that stand before the rows: of tables that leave and
// join, of those that were altered, and of those that have to be loaded again.
func (s *Source) prelude(ctx context.Context, w *window, aspects map[millrace.TableID]*aspect) error {
	s.out.Reset()
	wanted := s.loads.asked(w, s.before)
	for _, id := range s.leaving {
		if err := s.out.Append(&millrace.Entry{Kind: millrace.KindDrop, Table: id}); err != nil {
			return err
		}
		if err := s.loads.dropped(&s.out, id); err != nil {
			return err
		}
	}
	initial := s.position.IsZero()
	for _, t := range s.tables {
		a := aspects[t.id]
		if err := s.intact(ctx, w.conn, t, a.log); err != nil {
			return err
		}
		t.log = logOf(a.log)
		a.marks.Choice = choiceMark(&t.choice)
		if t.schema == nil {
			if err := s.join(ctx, w, t, initial); err != nil {
				return err
			}
		} else if err := s.follow(ctx, w, t, a, wanted[t.id]); err != nil {
			return err
		}
		if err := t.lookAtHeaps(ctx, w.conn, &a.marks); err != nil {
			return err
		}
		t.shape, t.marks = a.shape, &a.marks
	}
	return nil
}

// intact refuses a table whose changes may not all be logged, and says who did that if
// it was noted.
func (s *Source) intact(ctx context.Context, q keylog.Querier, t *captured, l *keylog.Log) error {
	if l == nil {
		return fmt.Errorf("%w: %v; mend: millrace init", keylog.ErrNotInstalled, t.name)
	}
	if len(l.Problems) == 0 {
		return nil
	}
	var last *keylog.Event
	if !s.position.IsZero() {
		events, err := keylog.Events(ctx, q, t.id, s.before.String())
		if err != nil {
			return errors.Join(l.Err(nil), err)
		}
		if len(events) > 0 {
			last = &events[len(events)-1]
		}
	}
	return l.Err(last)
}

// join brings a table into the stream. Its load reads what is in it by now.
func (s *Source) join(ctx context.Context, w *window, t *captured, initial bool) error {
	info, err := lookUp(ctx, w.conn, t)
	if err != nil {
		return err
	}
	if info == nil {
		return goneError(t)
	}
	schema, err := info.Schema(millrace.ModeTrigger)
	if err != nil {
		return err
	}
	if err := t.fitsLog(schema); err != nil {
		return err
	}
	if err := s.describe(t, schema); err != nil {
		return err
	}
	reason := "it joined the stream"
	if initial {
		reason = "first copy"
	}
	return s.loads.begin(&s.out, t, reason, initial)
}

// follow compares a table with what it was in the window before.
func (s *Source) follow(ctx context.Context, w *window, t *captured, a *aspect, asked string) error {
	reason := a.marks.differs(t.marks, w.newsOf(t).truncated > 0)
	if reason == rewritten || reason == partitioned {
		excused, err := s.excused(ctx, w, t, a, reason)
		if err != nil {
			return err
		}
		if excused {
			reason = ""
		}
	}
	if a.shape != t.shape {
		step, err := t.reshape(ctx, w.conn)
		if err != nil {
			return err
		}
		if step.schema != nil {
			if err := s.describe(t, step.schema); err != nil {
				return err
			}
		}
		if step.reason != "" {
			reason = step.reason // it says more
		}
	}
	if !s.before.Sees(chunk.XID(a.log.CompleteSince)) {
		reason = "changes of it may not have been logged"
		if a.log.Reason != "" {
			reason += ": " + a.log.Reason
		}
	}
	if reason == "" && w.newsOf(t).unknown > 0 {
		reason = "a column of its key had another name for a time, and keys were not logged" // it has its name again, or the stream had stopped
	}
	if reason == "" {
		reason = asked
	}
	if reason == "" {
		return nil
	}
	s.c.log.Info("load begins", "table", t.schema.QualifiedName(), "reason", reason)
	return s.loads.begin(&s.out, t, reason, false)
}

// describe gives a schema the next version and puts it into the stream.
func (s *Source) describe(t *captured, schema *millrace.Schema) error {
	schema.Version = s.version + 1
	if err := s.out.Append(&millrace.Entry{Kind: millrace.KindSchema, Table: schema.Table, Schema: schema}); err != nil {
		return err
	}
	s.version = schema.Version
	if err := t.adopt(schema); err != nil {
		return err
	}
	s.loads.described(t)
	return nil
}
