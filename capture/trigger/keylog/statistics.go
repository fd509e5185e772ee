package keylog

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
)

// Watch finds writers that fire no trigger although all triggers are as they were
// left: what writes below SQL, as some tools for bulk loads do. Use one for each
// stream, and not from two goroutines at once.
//
// It compares two statistics that every transaction reports together: the rows
// written in a table, and the rows inserted into its log. They tell less than it
// seems. Both count what was taken back, so an abort after the triggers ran does not
// part them; but a statement that fails before its AFTER triggers run has written
// rows and logged none. And a row of the log has up to 200 keys, so that a busy table
// hides a few rows that were not logged. So more rows written than the log can have
// keys, for longer than one look, is a suspicion and stops nothing by itself. It
// makes two things happen:
//
//   - The rows are asked. A row that was written since, and whose key is nowhere in
//     the log since, cannot be had in another way: ErrUnlogged. That sees inserted and
//     updated rows.
//   - Where no such row is found, a Suspect is returned, so that the table is verified
//     against the edges next, which sees deleted rows too.
//
// What stays below suspicion is left to verification in rotation.
type Watch struct {
	looker *Looker
	texts  texts
	query  string
	before map[int]*sample
	// asked is when the rows of a log's table may be asked again. They are not
	// asked all the time where statements fail all the time.
	asked  map[int]time.Time
	anewIn time.Duration // the shortest time between
}

const (
	askAgain = 10 * time.Minute
	// askShare is how many times longer than asking took the time between is.
	askShare = 20
)

// sample is what was counted at a time.
type sample struct {
	written  int64  // rows in the table: inserted, updated and deleted
	inserted int64  // rows in the log
	altered  int64  // rows of the log that somebody updated or deleted
	files    string // the table's, partitions included
	segments string // the log's files
	snapshot string
	pending  int64 // the difference at the look before this one; 0 for none
}

// missing is how many rows were written since before that the log cannot have the
// keys of, 0 if the two cannot be compared.
func (s *sample) missing(before *sample, mode Mode) int64 {
	if before.files != s.files || s.written < before.written || s.inserted < before.inserted {
		return 0 // rewritten, partitions came or went, statistics were reset
	}
	keys := int64(1) // of a row of the log
	if mode == Statement {
		keys = run
	}
	return max((s.written-before.written)-(s.inserted-before.inserted)*keys, 0)
}

// Suspect is a table whose log may lack changes.
type Suspect struct {
	Table millrace.TableID
	Name  string // schema.table
	// Missing is how many at least, those of statements that failed included. 0
	// where somebody has written to the log instead.
	Missing int64
	// Text is for people.
	Text string
}

// NewWatch returns a Watch for a stream.
func NewWatch(stream string) (*Watch, error) {
	looker, err := NewLooker(stream)
	if err != nil {
		return nil, err
	}
	t, err := parseTexts()
	if err != nil {
		return nil, err
	}
	query, err := t.render("statistics.sql", nil)
	if err != nil {
		return nil, err
	}
	return &Watch{looker: looker, texts: t, query: query, before: make(map[int]*sample), asked: make(map[int]time.Time), anewIn: askAgain}, nil
}

// Look compares with the look before. Once a minute is often enough; without a
// suspicion it is one cheap query. It needs a connection that may be busy for as long
// as the table takes to be read. Errors: ErrUnlogged; those of a log that is not as
// it was left are not among them.
func (w *Watch) Look(ctx context.Context, db Beginner) ([]Suspect, error) {
	tx, err := db.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return nil, fmt.Errorf("watch the statistics: %w", err)
	}
	suspects, err := w.look(ctx, tx)
	if e := end(ctx, tx, err == nil); err == nil && e != nil {
		err = fmt.Errorf("watch the statistics: %w", e)
	}
	return suspects, err
}

func (w *Watch) look(ctx context.Context, q Querier) ([]Suspect, error) {
	logs, err := w.looker.Look(ctx, q)
	if err != nil {
		return nil, err
	}
	now, err := w.count(ctx, q)
	if err != nil {
		return nil, err
	}
	before := w.before
	w.before = now
	var suspects []Suspect
	for i := range logs {
		l := &logs[i]
		s, b := now[l.ID], before[l.ID]
		if s == nil || b == nil {
			continue
		}
		if s.altered > b.altered {
			suspects = append(suspects, Suspect{Table: l.Table.ID, Name: l.Table.String(), Text: fmt.Sprintf(
				"table %v: somebody has updated or deleted %d rows of its log (millrace.log_%d_*); it is verified next", &l.Table, s.altered-b.altered, l.ID)})
		}
		missing := s.missing(b, l.Mode)
		switch {
		case missing == 0:
		case b.pending == 0 || time.Now().Before(w.asked[l.ID]):
			// A backend may have reported one of the two a moment ago and be about
			// to report the other. What is asked later covers the time until then.
			again := *b
			again.pending = missing
			now[l.ID] = &again
		default:
			begin := time.Now()
			found, err := w.suspect(ctx, q, l, b, s, min(missing, b.pending))
			w.asked[l.ID] = time.Now().Add(max(w.anewIn, askShare*time.Since(begin)))
			if err != nil {
				return nil, err
			}
			suspects = append(suspects, found)
		}
	}
	return suspects, nil
}

// suspect asks the rows.
func (w *Watch) suspect(ctx context.Context, q Querier, l *Log, before, now *sample, missing int64) (Suspect, error) {
	found := Suspect{Table: l.Table.ID, Name: l.Table.String(), Missing: missing, Text: fmt.Sprintf(
		"table %v: %d rows or more were written that are not in its log, by statements that failed or by a writer that fires no triggers; it is verified next", &l.Table, missing)}
	if len(l.Problems) > 0 || before.segments != now.segments {
		return found, nil // keys that were logged need not be there any more
	}
	var complete bool
	if err := q.QueryRow(ctx, "SELECT pg_visible_in_snapshot($1::text::xid8, $2::text::pg_snapshot)", fmt.Sprint(l.CompleteSince), before.snapshot).Scan(&complete); err != nil {
		return found, fmt.Errorf("look since when table %v is logged: %w", &l.Table, err)
	}
	if !complete {
		return found, nil // rows were not to be logged yet
	}
	text := &logTexts{ID: l.ID, Table: l.Table.quoted()}
	for i, name := range l.Table.Key {
		text.Keys = append(text.Keys, keyText{Column: quote(name), Log: KeyColumn(i), Last: i == len(l.Table.Key)-1})
	}
	query, err := w.texts.render("unlogged.sql", text)
	if err != nil {
		return found, err
	}
	var key *string
	if err := q.QueryRow(ctx, query, before.snapshot).Scan(&key); err != nil {
		return found, fmt.Errorf("look for rows of %v that are not in its log: %w", &l.Table, err)
	}
	if key != nil {
		return found, fmt.Errorf("%w: table %v: the row with key (%s) was written and is not in the log; mend: find what writes it without firing triggers (%d rows of late, or more), then millrace load %v",
			ErrUnlogged, &l.Table, *key, missing, &l.Table)
	}
	return found, nil
}

// count reads the statistics of each log.
func (w *Watch) count(ctx context.Context, q Querier) (map[int]*sample, error) {
	rows, err := q.Query(ctx, w.query, w.looker.stream)
	if err != nil {
		return nil, fmt.Errorf("read the statistics: %w", err)
	}
	all := make(map[int]*sample)
	var id int
	var s sample
	_, err = pgx.ForEachRow(rows, []any{&id, &s.written, &s.files, &s.inserted, &s.altered, &s.segments, &s.snapshot}, func() error {
		one := s
		all[id] = &one
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the statistics: %w", err)
	}
	return all, nil
}
