package migrations

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture/table"
)

// tally compares what the two sides have counted when writers go over. All that takes
// longer the more there is was compared before they are held: what the closing side
// has entered as captured with what the opening side has entered as applied. Left for
// the pause are the last few batches, and the rows of tables that are small.
type tally struct {
	w        *ways
	from, to side
	index    millrace.Index // up to which records are compared
	small    []counted
}

// counted is a table whose rows are counted, by its names at the two sides.
type counted struct {
	here, there table.Name
	rows        int64 // at the closing side
}

// countSize is how large, in bytes at either side, the tables together may be whose rows
// are counted while writers wait.
const countSize = 1 << 20

// batchSums says what the batches of a migration ($1) come to, from one index to another.
const batchSums = `
WITH b AS (SELECT * FROM millrace.migration_batch WHERE name = $1 AND last_index BETWEEN $2::text::numeric AND $3::text::numeric),
t AS (SELECT k, sum(coalesce((v->>'puts')::bigint, 0)) puts, sum(coalesce((v->>'deletes')::bigint, 0)) deletes, sum(coalesce((v->>'truncates')::bigint, 0)) truncates
    FROM b, jsonb_each(b.counts) AS e (k, v) GROUP BY k)
SELECT (SELECT count(*) || ' batches with ' || coalesce(sum(units), 0) || ' transactions up to index ' || coalesce(max(last_index), 0) || ', chains ' || coalesce(sum(hashtextextended(last_index || encode(chain, 'hex'), 0)::numeric), 0) FROM b)
    || coalesce((SELECT string_agg(format('; %s: %s puts, %s deletes, %s truncates', k, puts, deletes, truncates), '' ORDER BY k COLLATE "C") FROM t), '')`

// count compares the records of batches, and chooses tables.
func (c *closer) count(ctx context.Context, f *follower) (*tally, error) {
	t := &tally{w: c.w, from: c.from, to: c.to, index: f.at.Index}
	// Each side prunes what is old, by its own clock: the older ones of one side may be gone.
	var first millrace.Index
	var oldest, young [2]millrace.Index
	conns := []*pgx.Conn{f.src, f.dst}
	for i, conn := range conns {
		var all, some string
		err := conn.QueryRow(ctx, "SELECT coalesce(min(last_index), 0)::text, coalesce(min(last_index) FILTER (WHERE written_at > now() - $2::text::interval / 2), $3::text::numeric + 1)::text FROM millrace.migration_batch WHERE name = $1",
			f.m.cfg.Name, keepBatches, t.index.String()).Scan(&all, &some)
		if err == nil {
			_, err = fmt.Sscan(all+" "+some, &oldest[i], &young[i])
		}
		if err != nil {
			return nil, fmt.Errorf("count batches: %w", err)
		}
	}
	for i := range conns {
		if first = max(first, oldest[i]); oldest[i] == 0 {
			first = max(first, young[1-i])
		}
	}
	var sums [2]string
	sum := func(i int) func(context.Context) error {
		return func(ctx context.Context) error {
			if err := conns[i].QueryRow(ctx, batchSums, f.m.cfg.Name, first.String(), t.index.String()).Scan(&sums[i]); err != nil {
				return fmt.Errorf("count batches: %w", err)
			}
			return nil
		}
	}
	if err := together(ctx, sum(0), sum(1)); err != nil {
		return nil, err
	}
	if sums[0] != sums[1] {
		return nil, fmt.Errorf("%w: captured at the %s were %s; applied at the %s were %s; mend: millrace migrate verify -f FILE --full, then look in millrace.migration_batch at both sides", ErrCounts, c.from, sums[0], c.to, sums[1])
	}
	return t, t.choose(ctx)
}

// choose chooses the tables whose rows are counted: as many as there is time for.
func (t *tally) choose(ctx context.Context) error {
	here, there := t.w.m.tables(t.from), t.w.m.tables(t.to)
	sizes := make(map[side][]int64)
	for where, names := range map[side][]table.Name{t.from: here, t.to: there} {
		var quoted []string
		for _, n := range names {
			quoted = append(quoted, n.Quoted())
		}
		rows, err := t.w.gates[where].conn.Query(ctx, `
WITH RECURSIVE tree (i, oid) AS (
    SELECT i, to_regclass(n)::oid FROM unnest($1::text[]) WITH ORDINALITY AS u (n, i)
  UNION
    SELECT i, p.inhrelid FROM tree JOIN pg_inherits p ON p.inhparent = tree.oid
)
SELECT coalesce(sum(pg_relation_size(oid)), 0)::bigint FROM tree GROUP BY i ORDER BY i`, quoted)
		if err == nil {
			sizes[where], err = pgx.CollectRows(rows, pgx.RowTo[int64])
		}
		if err != nil {
			return fmt.Errorf("look how large the tables are at the %s: %w", where, err)
		}
	}
	met := make(map[table.Name]int)
	for _, name := range there {
		met[name]++
	}
	order := make([]int, len(here))
	for i := range order {
		order[i] = i
	}
	larger := func(i int) int64 { return max(sizes[t.from][i], sizes[t.to][i]) }
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(larger(a), larger(b)) })
	var sum int64
	for _, i := range order {
		if sum += larger(i); sum > countSize {
			break
		}
		if met[there[i]] > 1 || slices.Index(here, here[i]) != i {
			continue // several that go into one
		}
		t.small = append(t.small, counted{here: here[i], there: there[i]})
	}
	return nil
}

// rowCountsSQL counts the rows of tables, of which there is one at least.
func rowCountsSQL(names []table.Name) string {
	var parts []string
	for i, n := range names {
		parts = append(parts, fmt.Sprintf("SELECT %d, count(*) FROM %s", i, n.Quoted()))
	}
	return strings.Join(parts, " UNION ALL ") + " ORDER BY 1"
}

// rowCounts reads the answer to rowCountsSQL.
func rowCounts(r *pgconn.Result) ([]int64, error) {
	var counts []int64
	for _, row := range r.Rows {
		n, err := strconv.ParseInt(string(row[1]), 10, 64)
		if err != nil {
			return nil, err
		}
		counts = append(counts, n)
	}
	return counts, nil
}

// closing counts the rows of the closing side, whose tables lock holds.
func (t *tally) closing(ctx context.Context, lock *pgx.Conn) error {
	if len(t.small) == 0 {
		return nil
	}
	var names []table.Name
	for _, c := range t.small {
		names = append(names, c.here)
	}
	results, err := lock.PgConn().Exec(ctx, rowCountsSQL(names)).ReadAll()
	var counts []int64
	if err == nil {
		counts, err = rowCounts(results[0])
	}
	if err != nil {
		return fmt.Errorf("count rows at the %s: %w", t.from, err)
	}
	for i, n := range counts {
		t.small[i].rows = n
	}
	return nil
}

// compare compares what was captured since with what the opening side has entered as
// applied, and rows with rows, when everything has been applied. Errors: ErrCounts.
func (t *tally) compare(ctx context.Context, f *follower) error {
	captured, applied := make(map[string]Counts), make(map[string]Counts)
	for _, r := range f.owed {
		for name, c := range r.Counts {
			captured[name] = captured[name].plus(c)
		}
	}
	texts, rows, err := t.opening(ctx, f)
	if err != nil {
		return err
	}
	for _, text := range texts {
		var counts map[string]Counts
		if err := json.Unmarshal([]byte(text), &counts); err != nil {
			return fmt.Errorf("count batches at the %s: %w", t.to, err)
		}
		for name, c := range counts {
			applied[name] = applied[name].plus(Counts{Puts: c.Puts, Deletes: c.Deletes, Truncates: c.Truncates})
		}
	}
	if len(texts) != len(f.owed) || !maps.Equal(captured, applied) {
		return fmt.Errorf("%w: behind index %v, %d batches were captured at the %s, with %+v, and %d were applied at the %s, with %+v; mend: millrace migrate verify -f FILE --full, then look in millrace.migration_batch at both sides", ErrCounts, t.index, len(f.owed), t.from, captured, len(texts), t.to, applied)
	}
	for i, c := range t.small {
		if rows[i] != c.rows {
			return fmt.Errorf("%w: table %v has %d rows at the %s, and %v has %d at the %s; mend: millrace migrate verify -f FILE --full shows which", ErrCounts, c.here, c.rows, t.from, c.there, rows[i], t.to)
		}
	}
	return nil
}

// opening reads what the opening side has entered, and counts its rows, in one message.
func (t *tally) opening(ctx context.Context, f *follower) (batches []string, rows []int64, err error) {
	sql := fmt.Sprintf("SELECT counts::text FROM millrace.migration_batch WHERE name = %s AND last_index > %s", literal(f.m.cfg.Name), t.index)
	if len(t.small) > 0 {
		var names []table.Name
		for _, c := range t.small {
			names = append(names, c.there)
		}
		sql += "; " + rowCountsSQL(names)
	}
	results, err := f.dst.PgConn().Exec(ctx, sql).ReadAll()
	if err != nil {
		return nil, nil, fmt.Errorf("count at the %s: %w", t.to, err)
	}
	for _, row := range results[0].Rows {
		batches = append(batches, string(row[0]))
	}
	if len(t.small) > 0 {
		if rows, err = rowCounts(results[1]); err != nil {
			return nil, nil, fmt.Errorf("count rows at the %s: %w", t.to, err)
		}
	}
	return batches, rows, nil
}

// plus adds up what was captured.
func (c Counts) plus(d Counts) Counts {
	c.Puts, c.Deletes, c.Truncates = c.Puts+d.Puts, c.Deletes+d.Deletes, c.Truncates+d.Truncates
	return c
}
