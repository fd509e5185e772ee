package migrations

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
)

// sink writes changes into the target. It is used by one goroutine.
type sink struct {
	m      *Migration
	conn   *pgx.Conn
	tables []*mapping
	merges []*merge
	// exact says that the target has converged: behind each commit it is the source
	// at that index, so nothing may be missing.
	exact bool
	open  bool // a transaction is
	loud  bool // triggers of the target are not silent
	// applying is called for what goes into the transaction, if it is set.
	applying func(*tableBatch)
	// staged are the merges whose staging tables hold rows that this transaction has
	// merged; its end empties them.
	staged map[*merge]bool
	buf    []byte
}

func (m *Migration) openSink(ctx context.Context, all []*mapping, exact bool) (_ *sink, err error) {
	s := &sink{m: m, tables: all, exact: exact, staged: make(map[*merge]bool)}
	if s.conn, err = m.connect(ctx, target); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			capture.Close(s.conn)
		}
	}()
	// What is confirmed to the source must be durable here.
	if _, err := s.conn.Exec(ctx, "SET synchronous_commit = on"); err != nil {
		return nil, fmt.Errorf("set the session at the target: %w", err)
	}
	if err := m.showApplier(ctx, s.conn); err != nil {
		return nil, err
	}
	if s.loud, err = silence(ctx, s.conn, all); err != nil {
		return nil, err
	}
	for i, t := range all {
		g := t.newMerge(i, m.cfg.Name)
		if _, err := s.conn.Exec(ctx, g.create); err != nil {
			return nil, fmt.Errorf("make a staging table for %v at the target: %w", t.to, err)
		}
		s.merges = append(s.merges, g)
	}
	return s, nil
}

func (s *sink) close() { capture.Close(s.conn) }

// begin begins a transaction if none is open. Rows are found by the index of their
// key, however large the table is: a staging table has no statistics.
func (s *sink) begin(ctx context.Context) error {
	if s.open {
		return nil
	}
	if _, err := s.conn.Exec(ctx, "BEGIN; SET LOCAL enable_seqscan = off; SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off", pgx.QueryExecModeSimpleProtocol); err != nil {
		return fmt.Errorf("begin at the target: %w", err)
	}
	s.open = true
	return nil
}

// apply merges what a batch holds into the open transaction, which it begins if need
// be. It adds to the batch's counts. Errors: ErrConflict.
func (s *sink) apply(ctx context.Context, b *batch) error {
	if err := s.begin(ctx); err != nil {
		return err
	}
	for i, t := range s.tables {
		tb := b.tables[t.id]
		if tb.m != t || !tb.truncated && len(tb.rows) == 0 {
			continue // another partition's, or nothing
		}
		if s.applying != nil {
			s.applying(tb)
		}
		if s.loud {
			if err := t.staysSilent(ctx, s.conn); err != nil {
				return err
			}
		}
		if err := s.table(ctx, s.merges[i], tb); err != nil {
			if c := code(err); strings.HasPrefix(c, "23") || strings.HasPrefix(c, "22") {
				return fmt.Errorf("%w: apply changes of %v: %w; mend: look who else writes to %v at the target, or what it demands that the source does not; then millrace migrate abort -f FILE, and begin again", ErrConflict, t.from, err, t.to)
			}
			return fmt.Errorf("apply changes of %v: %w", t.from, err)
		}
	}
	return nil
}

// job is a statement of a merge, and what becomes of its answer.
type job struct {
	sql  string
	rows *int64 // is added to
}

func (s *sink) table(ctx context.Context, g *merge, tb *tableBatch) (err error) {
	if s.staged[g] { // this transaction has merged a part before
		if _, err := s.conn.Exec(ctx, "DELETE FROM "+g.staging); err != nil {
			return fmt.Errorf("empty the staging table: %w", err)
		}
	}
	s.staged[g] = true
	var has staged
	s.buf = s.buf[:0]
	if s.buf, has, err = tb.stage(s.buf, s.exact); err != nil {
		return err
	}
	if _, err := s.conn.PgConn().CopyFrom(ctx, bytes.NewReader(s.buf), g.copyIn); err != nil {
		return fmt.Errorf("stage: %w", err)
	}
	var done, missing, removed, updated, inserted int64
	var jobs []job
	if tb.truncated {
		jobs = append(jobs, job{g.truncate, &removed})
		if !s.exact {
			jobs = append(jobs, job{fmt.Sprintf("DELETE FROM millrace.migration_missing WHERE name = %s AND table_id = %d", literal(s.m.cfg.Name), tb.m.id), &done})
		}
	}
	if has.unchanged > 0 {
		jobs = append(jobs, job{g.complete, &done})
		if s.exact {
			jobs = append(jobs, job{"DELETE FROM " + g.staging + " WHERE u IS NOT NULL", &missing})
		}
	}
	if !s.exact {
		jobs = append(jobs, job{g.unmissed, &done})
		if has.unchanged > 0 {
			jobs = append(jobs, job{g.missed, &done}, job{g.forgo, &missing})
		}
	}
	if has.deletes > 0 || has.unchanged > 0 && !s.exact { // what is missing goes too
		jobs = append(jobs, job{g.remove, &removed})
	}
	if has.puts > 0 {
		held := g.holders
		if !s.exact {
			held = g.parking
		}
		for _, sql := range held {
			jobs = append(jobs, job{sql, &done})
		}
		jobs = append(jobs, job{g.update, &updated})
	}
	if err := s.run(ctx, jobs); err != nil {
		return err
	}
	if s.exact && missing > 0 {
		return fmt.Errorf("%w: %d rows are not there that changes are of; mend: look who else writes to %v at the target; then millrace migrate abort -f FILE, and begin again", ErrConflict, missing, tb.m.to)
	}
	if updated < has.puts-missing {
		if err := s.run(ctx, []job{{g.insert, &inserted}}); err != nil {
			return err
		}
	}
	if updated+inserted != has.puts-missing {
		return fmt.Errorf("%w: %d rows were to be put, %d were updated and %d inserted, %d wait; mend: look whether a rule or trigger at the target keeps rows out of %v", ErrConflict, has.puts, updated, inserted, missing, tb.m.to)
	}
	tb.counts.Keys += int64(len(tb.rows))
	tb.counts.Updated += updated
	tb.counts.Inserted += inserted
	tb.counts.Deleted += removed
	tb.counts.Missing += missing
	return nil
}

// run runs statements one after the other, in one exchange.
func (s *sink) run(ctx context.Context, jobs []job) error {
	var text strings.Builder
	for _, j := range jobs {
		text.WriteString(j.sql)
		text.WriteString(";\n")
	}
	results, err := s.conn.PgConn().Exec(ctx, text.String()).ReadAll()
	if err != nil {
		return err
	}
	if len(results) != len(jobs) && len(jobs) > 0 {
		return fmt.Errorf("the target answered %d of %d statements", len(results), len(jobs))
	}
	for i, j := range jobs {
		*j.rows += results[i].CommandTag.RowsAffected()
	}
	return nil
}

// record is what is kept of a batch for people.
type record struct {
	First, Last millrace.Index
	Chain       millrace.Chain
	Position    string
	Units       int64
	Time        time.Time
	Counts      map[string]Counts // by the source's names
}

func (r *record) empty() bool { return len(r.Counts) == 0 }

const recordSQL = `
INSERT INTO millrace.migration_batch (name, first_index, last_index, chain, position, units, counts, source_time)
VALUES ($1, $2::text::numeric, $3::text::numeric, $4, $5, $6, $7::text::jsonb, $8) ON CONFLICT DO NOTHING`

// lateRecordSQL is recordSQL for a batch that has been entered at the other side for $9
// microseconds: both are pruned at the same age.
const lateRecordSQL = `
INSERT INTO millrace.migration_batch (name, first_index, last_index, chain, position, units, counts, source_time, written_at)
VALUES ($1, $2::text::numeric, $3::text::numeric, $4, $5, $6, $7::text::jsonb, $8, clock_timestamp() - $9::bigint * interval '1 microsecond') ON CONFLICT DO NOTHING`

// quickRecordSQL is recordSQL for the source, where a batch is entered by itself: nobody
// waits until it is on disk. What a crash of the source takes is entered again when
// following begins again. At the target it is in the transaction that the source's
// leave to forget depends on, and must not be used.
const quickRecordSQL = `WITH quick AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', true))
INSERT INTO millrace.migration_batch (name, first_index, last_index, chain, position, units, counts, source_time)
SELECT $1, $2::text::numeric, $3::text::numeric, $4, $5, $6, $7::text::jsonb, $8 FROM quick ON CONFLICT DO NOTHING`

// commit moves the place and ends the transaction. before is where the place has to
// stand; it is somewhere else where a process that was killed had sent its commit, and
// following begins again then.
func (s *sink) commit(ctx context.Context, before millrace.Index, at *millrace.Checkpoint, r *record) error {
	if err := s.begin(ctx); err != nil {
		return err
	}
	tag, err := s.conn.Exec(ctx, `
UPDATE millrace.migration_place SET checkpoint = $3, index = $4::text::numeric, position = $5, token = $6::text::numeric, source_time = $7, applied_at = clock_timestamp()
WHERE name = $1 AND index = $2::text::numeric`,
		s.m.cfg.Name, before.String(), millrace.AppendCheckpoint(nil, at), at.Index.String(), at.Position.String(), fmt.Sprint(at.Position.Token()), at.Time)
	if err != nil {
		return fmt.Errorf("move the place at the target: %w", err)
	}
	if tag.RowsAffected() != 1 {
		return fmt.Errorf("the place is not at index %v any more", before)
	}
	if !r.empty() {
		if err := s.record(ctx, s.conn, recordSQL, r); err != nil {
			return err
		}
	}
	if _, err := s.conn.Exec(ctx, "COMMIT"); err != nil {
		return fmt.Errorf("commit at the target: %w", err)
	}
	s.open = false
	clear(s.staged)
	return nil
}

// record enters a batch at a side.
func (s *sink) record(ctx context.Context, conn *pgx.Conn, sql string, r *record) error {
	text, err := json.Marshal(r.Counts)
	if err != nil {
		return err
	}
	if _, err := conn.Exec(ctx, sql, s.m.cfg.Name, r.First.String(), r.Last.String(), r.Chain[:], r.Position, r.Units, string(text), r.Time); err != nil {
		return fmt.Errorf("enter a batch: %w", err)
	}
	return nil
}
