package migrations

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/capture/table"
)

// readSource looks up the columns of a table at the source.
func readSource(ctx context.Context, q queryer, id millrace.TableID) ([]sourceColumn, error) {
	rows, err := q.Query(ctx, `SELECT attname::text, format_type(atttypid, atttypmod), format_type(atttypid, -1), attgenerated <> '', attidentity = 'a', atttypid, (SELECT typtype::text FROM pg_type y WHERE y.oid = atttypid)
FROM pg_attribute WHERE attrelid = $1::bigint::oid AND attnum > 0 AND NOT attisdropped ORDER BY attnum`, int64(id))
	if err != nil {
		return nil, fmt.Errorf("look up columns at the source: %w", err)
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (c sourceColumn, err error) {
		return c, row.Scan(&c.name, &c.typ, &c.cast, &c.generated, &c.always, &c.oid, &c.kind)
	})
}

// readTarget looks up the columns of a table at the target.
func readTarget(ctx context.Context, q queryer, id millrace.TableID) ([]targetColumn, error) {
	rows, err := q.Query(ctx, `SELECT attname::text, format_type(atttypid, atttypmod), format_type(atttypid, -1), attnotnull, attgenerated <> '', attidentity <> '', atthasdef, attidentity = 'a',
       CASE WHEN attgenerated <> '' THEN (SELECT coalesce(pg_get_expr(f.adbin, f.adrelid), '') FROM pg_attrdef f WHERE f.adrelid = attrelid AND f.adnum = attnum) ELSE '' END,
       atttypid, (SELECT typtype::text FROM pg_type y WHERE y.oid = atttypid)
FROM pg_attribute WHERE attrelid = $1::bigint::oid AND attnum > 0 AND NOT attisdropped ORDER BY attnum`, int64(id))
	if err != nil {
		return nil, fmt.Errorf("look up columns at the target: %w", err)
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (c targetColumn, err error) {
		return c, row.Scan(&c.name, &c.typ, &c.cast, &c.notNull, &c.generated, &c.identity, &c.hasPreset, &c.always, &c.sql, &c.oid, &c.kind)
	})
}

// tree lists a table and all that is under it.
const tree = `WITH RECURSIVE tree (oid) AS (
    SELECT $1::bigint::oid
  UNION
    SELECT i.inhrelid FROM tree JOIN pg_inherits i ON i.inhparent = tree.oid
)
`

// readUnique looks up the unique indexes of a table and of the heaps under it.
func readUnique(ctx context.Context, q queryer, id millrace.TableID) (root []uniqueIndex, heaps map[string][]uniqueIndex, err error) {
	rows, err := q.Query(ctx, tree+`
SELECT c.oid::bigint, c.oid::regclass::text, c.relkind::text, x.name, x.exprs, x.predicate, x.onenull
FROM tree JOIN pg_class c ON c.oid = tree.oid
LEFT JOIN LATERAL (
    SELECT ic.relname::text AS name, coalesce(pg_get_expr(i.indpred, i.indrelid), '') AS predicate,
           coalesce((to_jsonb(i)->>'indnullsnotdistinct')::boolean, false) AS onenull,
           ARRAY(SELECT pg_get_indexdef(i.indexrelid, n, true) FROM generate_series(1, i.indnkeyatts) n ORDER BY n) AS exprs
    FROM pg_index i JOIN pg_class ic ON ic.oid = i.indexrelid
    WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid) x ON true
WHERE c.relkind IN ('r', 'p') ORDER BY 2, 4`, int64(id))
	if err != nil {
		return nil, nil, fmt.Errorf("look up unique indexes: %w", err)
	}
	defer rows.Close()
	heaps = make(map[string][]uniqueIndex)
	for rows.Next() {
		var of int64
		var heap, kind string
		var name, predicate *string
		var oneNull *bool
		var exprs []string
		if err := rows.Scan(&of, &heap, &kind, &name, &exprs, &predicate, &oneNull); err != nil {
			return nil, nil, fmt.Errorf("look up unique indexes: %w", err)
		}
		if kind == "r" && heaps[heap] == nil {
			heaps[heap] = []uniqueIndex{}
		}
		if name == nil {
			continue
		}
		x := uniqueIndex{name: *name, exprs: exprs, where: *predicate, oneNull: *oneNull}
		if millrace.TableID(of) == id {
			root = append(root, x)
		}
		if kind == "r" {
			heaps[heap] = append(heaps[heap], x)
		}
	}
	return root, heaps, rows.Err()
}

// everywhere are the indexes that each of some heaps has.
func everywhere(heaps map[string][]uniqueIndex) (all []uniqueIndex) {
	have := make(map[string]int)
	for _, heap := range slices.Sorted(maps.Keys(heaps)) {
		for _, x := range heaps[heap] {
			text := strings.Join(x.exprs, "\x00") + "\x01" + x.where
			if have[text]++; have[text] == len(heaps) {
				all = append(all, x)
			}
		}
	}
	return all
}

// readMapping looks a table up at both sides. schema is that of the source's, nil to
// take it from the catalog too. The mapping is nil where a side has no table to map.
func readMapping(ctx context.Context, src, dst queryer, t *Table, schema *millrace.Schema) (*mapping, []capture.Problem, error) {
	bad := func(subject, text, mend string) []capture.Problem {
		return []capture.Problem{capture.Refuse(ErrBlocked, subject, text, mend)}
	}
	from, err := table.ByName(ctx, src, t.From)
	if err != nil {
		return nil, nil, err
	}
	if from == nil {
		return nil, bad("table "+t.From.String(), "the source does not have it", "correct tables in the migration file"), nil
	}
	from.Choice = t.choice(from)
	if schema == nil {
		if schema, err = from.Schema(t.mode); err != nil {
			return nil, bad("table "+t.From.String(), err.Error(), "see there"), nil
		}
		schema.Version = 1
	} else if schema.Table != from.ID {
		return nil, nil, fmt.Errorf("%w: table %v at the source is not the one that was copied, which had OID %v; mend: millrace migrate abort -f FILE, and begin again", ErrChanged, t.From, schema.Table)
	}
	to, err := table.ByName(ctx, dst, t.To)
	if err != nil {
		return nil, nil, err
	}
	subject := "table " + t.To.String() + " at the target"
	switch {
	case to == nil:
		return nil, bad(subject, "it is missing", "millrace migrate prepare -f FILE makes it; one whose columns are mapped has to be made by hand"), nil
	case to.Kind != "r" && to.Kind != "p":
		return nil, bad(subject, "it is no table", "drop it, or choose another name under to"), nil
	case to.Persistence != "p":
		return nil, bad(subject, "it is unlogged or temporary", "ALTER TABLE "+t.To.Quoted()+" SET LOGGED"), nil
	}
	srcColumns, err := readSource(ctx, src, from.ID)
	if err != nil {
		return nil, nil, err
	}
	dstColumns, err := readTarget(ctx, dst, to.ID)
	if err != nil {
		return nil, nil, err
	}
	m, problems := mapColumns(t, schema, srcColumns, dstColumns)
	root, heaps, err := readUnique(ctx, dst, to.ID)
	if err != nil {
		return nil, nil, err
	}
	known, parts, err := readUnique(ctx, src, from.ID)
	if err != nil {
		return nil, nil, err
	}
	if t.key != nil {
		known = everywhere(parts)
	}
	aside, err := keysAside(ctx, dst, t.To)
	if err != nil {
		return nil, nil, err
	}
	if problems = append(problems, m.checkUnique(known, root, heaps, aside)...); aside && to.Kind == "r" {
		m.loose = false // once they are made
	}
	more, err := m.checkGuards(ctx, dst, to.ID)
	if err != nil {
		return nil, nil, err
	}
	problems = append(problems, more...)
	if len(problems) == 0 && len(m.derived) > 0 {
		more = m.checkExpressions(ctx, src, dst)
	}
	if len(problems)+len(more) == 0 {
		more = m.checkComputed(ctx, dst)
	}
	return m, append(problems, more...), nil
}

// checkComputed has the target plan what its unique indexes compare, over the columns
// that come: what rows of a batch have of them has to be known before they are there.
func (m *mapping) checkComputed(ctx context.Context, dst queryer) []capture.Problem {
	if len(m.unique) == 0 {
		return nil
	}
	var columns, names []string
	for _, c := range m.carried {
		columns = append(columns, "NULL::"+c.targetCast+" AS "+table.Quote(c.target))
	}
	for _, d := range m.derived {
		columns = append(columns, "NULL::"+d.targetCast+" AS "+table.Quote(d.target))
	}
	for n := range m.unique {
		names = append(names, m.unique[n].name)
	}
	rows, err := dst.Query(ctx, "SELECT FROM ("+m.withUnique("SELECT "+strings.Join(columns, ", "))+") x LIMIT 0")
	if err == nil {
		rows.Close()
		err = rows.Err()
	}
	if err == nil {
		return nil
	}
	return []capture.Problem{capture.Refuse(ErrBlocked, "table "+m.to.String()+" at the target", fmt.Sprintf("what its unique indexes (%s) have of a row cannot be computed from the columns that come: %v", strings.Join(names, ", "), err), "DROP INDEX at the target until writers have gone over, or carry over the columns that they are of")}
}

// checkExpressions has both sides plan the expressions of computed columns: the copy
// computes them at the source, changes at the target.
func (m *mapping) checkExpressions(ctx context.Context, src, dst queryer) []capture.Problem {
	var problems []capture.Problem
	var there []string
	for _, c := range m.carried {
		there = append(there, "NULL::"+c.sourceCast+" AS "+table.Quote(c.source))
	}
	for _, d := range m.derived {
		for _, x := range []struct {
			q     queryer
			where side
			from  string
		}{{src, source, m.from.Quoted()}, {dst, target, "(SELECT " + strings.Join(there, ", ") + ") x"}} {
			rows, err := x.q.Query(ctx, fmt.Sprintf("SELECT (%s)::%s FROM %s LIMIT 0", d.sql, d.targetCast, x.from))
			if err == nil {
				rows.Close()
				err = rows.Err()
			}
			if err != nil {
				problems = append(problems, capture.Refuse(ErrBlocked, "table "+m.from.String(), fmt.Sprintf("the expression for column %s cannot be computed at the %s: %v", d.target, x.where, err), "correct the expression in the migration file; functions and types that are not in pg_catalog need their schema"))
			}
		}
	}
	return problems
}

// choice is what capture reads of a table.
func (t *Table) choice(info *table.Info) table.Choice {
	c := table.Choice{Key: t.key}
	if len(t.Omit) == 0 {
		return c
	}
	for i := range info.Columns {
		name := info.Columns[i].Name
		if !info.Columns[i].Generated && !t.omits(name) {
			c.Columns = append(c.Columns, name)
		}
	}
	return c
}

func (t *Table) omits(name string) bool {
	for _, o := range t.Omit {
		if o == name {
			return true
		}
	}
	return false
}

// checkGuards looks for triggers, foreign keys and exclusion constraints at the
// target, on the table and all that is under it. Triggers of our own note keys for a
// stream of the table: they are to fire for what is carried over, too; or for the way
// back, and leave that out by themselves.
func (m *mapping) checkGuards(ctx context.Context, dst queryer, id millrace.TableID) ([]capture.Problem, error) {
	var always, exclusions []string
	err := dst.QueryRow(ctx, tree+`
SELECT EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid IN (SELECT oid FROM tree) AND g.tgenabled <> 'D' AND g.tgname NOT LIKE $2
               AND NOT EXISTS (SELECT FROM pg_proc f JOIN pg_namespace n ON n.oid = f.pronamespace WHERE f.oid = g.tgfoid AND n.nspname = 'millrace')),
       ARRAY(SELECT g.tgname::text FROM pg_trigger g WHERE g.tgrelid IN (SELECT oid FROM tree) AND g.tgenabled IN ('A', 'R') AND g.tgname NOT LIKE $2
             AND NOT EXISTS (SELECT FROM pg_proc f JOIN pg_namespace n ON n.oid = f.pronamespace WHERE f.oid = g.tgfoid AND n.nspname = 'millrace') ORDER BY 1),
       ARRAY(SELECT c.conname::text FROM pg_constraint c WHERE c.conrelid IN (SELECT oid FROM tree) AND c.contype = 'x' ORDER BY 1)`, int64(id), denyTrigger+"%").
		Scan(&m.guarded, &always, &exclusions)
	if err != nil {
		return nil, fmt.Errorf("look up triggers at the target: %w", err)
	}
	var problems []capture.Problem
	subject := "table " + m.to.String() + " at the target"
	for _, name := range always {
		problems = append(problems, capture.Refuse(ErrBlocked, subject, "its trigger "+name+" is enabled ALWAYS or for REPLICA, so it would fire for each change that is carried over", "ALTER TABLE "+m.to.Quoted()+" ENABLE TRIGGER "+table.Quote(name)+", which the migration keeps silent"))
	}
	for _, name := range exclusions {
		problems = append(problems, capture.Refuse(ErrBlocked, subject, "its exclusion constraint "+name+" is enforced row by row, while rows of different times are there", "ALTER TABLE "+m.to.Quoted()+" DROP CONSTRAINT "+table.Quote(name)+", and make it again when the migration follows"))
	}
	return problems, nil
}
