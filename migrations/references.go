package migrations

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/capture/table"
	"github.com/millrace-db/millrace/internal/wait"
)

// Foreign keys between tables that move are made at the target when it has converged,
// and before writers go over: until then rows of different times stand there, and
// changes go in table by table. They are added without looking at rows, and validated
// behind that, which keeps neither readers nor changes waiting. A partitioned table
// takes no key that is not valid, so each of its partitions gets it first, and the table
// then takes these over.

// reference is a foreign key of the source between two tables that move.
type reference struct {
	name            string
	of, to          *Table   // tables
	columns, others []string // at the target: those that refer, and what they refer to
	// actions is what stands behind REFERENCES.
	actions string
	// valid says that all rows at the source were looked at.
	valid bool
	// cannot says why it is not made at the target, and mend what to do; empty if it is.
	cannot, mend string
}

func (r *reference) String() string { return r.name + " of " + r.of.To.String() }

// sql is it behind ADD CONSTRAINT.
func (r *reference) sql() string {
	return fmt.Sprintf("%s FOREIGN KEY (%s) REFERENCES %s (%s)%s", table.Quote(r.name), quoteAll("", r.columns), r.to.To.Quoted(), quoteAll("", r.others), r.actions)
}

// references lists the foreign keys of tables that move, and what is to be known of
// those that do not come along.
func (m *Migration) references(ctx context.Context, src, dst *pgx.Conn) ([]*reference, []capture.Problem, error) {
	var froms []string
	for i := range m.cfg.Tables {
		froms = append(froms, m.cfg.Tables[i].From.Quoted())
	}
	rows, err := src.Query(ctx, `
SELECT k.conname::text, array_position($1::text[], t.name)::int, coalesce(array_position($1::text[], o.name), 0)::int, k.confrelid::regclass::text,
       ARRAY(SELECT a.attname::text FROM unnest(k.conkey) WITH ORDINALITY u (n, i) JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = u.n ORDER BY i),
       ARRAY(SELECT a.attname::text FROM unnest(k.confkey) WITH ORDINALITY u (n, i) JOIN pg_attribute a ON a.attrelid = k.confrelid AND a.attnum = u.n ORDER BY i),
       CASE k.confmatchtype WHEN 'f' THEN ' MATCH FULL' ELSE '' END, k.confupdtype::text, k.confdeltype::text,
       ARRAY(SELECT a.attname::text FROM jsonb_array_elements_text(CASE jsonb_typeof(to_jsonb(k)->'confdelsetcols') WHEN 'array' THEN to_jsonb(k)->'confdelsetcols' ELSE '[]' END) u
             JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = u::int2),
       CASE WHEN k.condeferrable THEN ' DEFERRABLE' ELSE '' END || CASE WHEN k.condeferred THEN ' INITIALLY DEFERRED' ELSE '' END, k.convalidated
FROM unnest($1::text[]) t (name) JOIN pg_constraint k ON k.conrelid = to_regclass(t.name) AND k.contype = 'f' AND k.conparentid = 0
LEFT JOIN unnest($1::text[]) o (name) ON to_regclass(o.name) = k.confrelid
WHERE coalesce(to_jsonb(k)->>'conenforced', 'true') = 'true' ORDER BY 2, 1`, froms)
	if err != nil {
		return nil, nil, fmt.Errorf("look up foreign keys at the source: %w", err)
	}
	actions := map[string]string{"a": "", "r": "RESTRICT", "c": "CASCADE", "n": "SET NULL", "d": "SET DEFAULT"}
	var problems []capture.Problem
	var all []*reference
	var sets [][]string
	if _, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (r reference, err error) {
		var of, to int
		var other, match, onUpdate, onDelete, late string
		var set []string
		if err := row.Scan(&r.name, &of, &to, &other, &r.columns, &r.others, &match, &onUpdate, &onDelete, &set, &late, &r.valid); err != nil {
			return r, err
		}
		r.of = &m.cfg.Tables[of-1]
		if to == 0 {
			problems = append(problems, capture.Warn("table "+r.of.From.String(), fmt.Sprintf("its foreign key %s refers to %s, which does not move", r.name, other), "make the key at the target by hand if there is such a table, NOT VALID and then VALIDATE CONSTRAINT, before writers go over"))
			return r, nil
		}
		r.to = &m.cfg.Tables[to-1]
		r.actions = match
		if a := actions[onUpdate]; a != "" {
			r.actions += " ON UPDATE " + a
		}
		if a := actions[onDelete]; a != "" {
			r.actions += " ON DELETE " + a
		}
		all, sets = append(all, &r), append(sets, set)
		if len(set) > 0 {
			r.actions += " (%s)" // filled in below
		}
		r.actions += late
		return r, nil
	}); err != nil {
		return nil, nil, fmt.Errorf("look up foreign keys at the source: %w", err)
	}
	for i, r := range all {
		if err := m.settleReference(ctx, dst, r, sets[i]); err != nil {
			return nil, nil, err
		}
		if r.cannot != "" {
			problems = append(problems, capture.Warn("table "+r.of.From.String(), fmt.Sprintf("its foreign key %s is not made at the target: %s", r.name, r.cannot), r.mend))
		}
	}
	return all, problems, nil
}

// settleReference says which columns of the target a foreign key is of, and whether the target
// can have it.
func (m *Migration) settleReference(ctx context.Context, dst *pgx.Conn, r *reference, set []string) error {
	cannot := func(text, mend string) {
		if r.cannot == "" {
			r.cannot, r.mend = text, mend
		}
	}
	const byHand = "see to it in the application that is to write there; millrace migrate verify looks whether rows hold to the keys that are there"
	for _, x := range []struct {
		t       *Table
		columns []string
	}{{r.of, r.columns}, {r.to, r.others}, {r.of, set}} {
		for i, name := range x.columns {
			if x.t.omits(name) {
				cannot(fmt.Sprintf("column %s of %v does not move", name, x.t.From), byHand)
			}
			for to, from := range x.t.Columns {
				if from == name {
					x.columns[i] = to
				}
			}
			if _, computed := x.t.Expressions[x.columns[i]]; computed {
				cannot(fmt.Sprintf("column %s of %v is computed by the migration", x.columns[i], x.t.To), byHand)
			}
		}
	}
	if len(set) > 0 {
		r.actions = fmt.Sprintf(r.actions, quoteAll("", set))
	}
	// What is referred to has to be unique over all partitions.
	var there, unique bool
	if err := dst.QueryRow(ctx, `
SELECT to_regclass($1) IS NOT NULL, EXISTS (SELECT FROM pg_index i WHERE i.indrelid = to_regclass($1) AND i.indisunique AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL
    AND (SELECT array_agg(a.attname::text ORDER BY a.attname) FROM unnest(i.indkey::int2[]) WITH ORDINALITY u (n, k) JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = u.n WHERE k <= i.indnkeyatts)
      = (SELECT array_agg(c ORDER BY c) FROM unnest($2::text[]) c))`, r.to.To.Quoted(), r.others).Scan(&there, &unique); err != nil {
		return fmt.Errorf("look for a key of %v: %w", r.to.To, err)
	}
	if there && !unique || !there && r.to.PartitionBy != "" {
		cannot(fmt.Sprintf("%v has no unique index over (%s) there, over all of its partitions together", r.to.To, strings.Join(r.others, ", ")), "have such an index at the target; or "+byHand)
	}
	silences, err := maySilence(ctx, dst)
	if err != nil {
		return err
	}
	if !silences {
		cannot("the role may not keep it silent while changes go in", "GRANT SET ON PARAMETER session_replication_role TO the role of target.url (Postgres 15 and later, or use a superuser)")
	}
	return nil
}

// maySilence reports whether the role may keep triggers and foreign keys silent.
func maySilence(ctx context.Context, dst *pgx.Conn) (may bool, err error) {
	parameter := "false"
	if capture.ServerMajor(dst.PgConn()) >= 15 {
		parameter = "has_parameter_privilege('session_replication_role', 'SET')"
	}
	if err = dst.QueryRow(ctx, "SELECT rolsuper OR "+parameter+" FROM pg_roles WHERE rolname = current_user").Scan(&may); err != nil {
		return false, fmt.Errorf("look whether the role may keep triggers silent: %w", err)
	}
	return may, nil
}

// makeReferences makes and validates at the target the foreign keys that the source has,
// once it has converged. What is there is left as it is. Errors: ErrBlocked, where rows
// do not hold to one, or one is there that nobody has validated.
func (m *Migration) makeReferences(ctx context.Context, src, dst *pgx.Conn) error {
	d, err := m.at(ctx, src, dst)
	if err != nil || d.Step != StepFollowing {
		return err // whoever goes over says that it has not converged
	}
	all, _, err := m.references(ctx, src, dst)
	if err != nil {
		return err
	}
	var invalid []string // that need not be valid
	for _, r := range all {
		if r.cannot == "" && !m.cfg.LeaveForeignKeys {
			if err := m.makeReference(ctx, dst, r); err != nil {
				return err
			}
		}
		if r.valid {
			continue
		}
		there, err := r.find(ctx, dst, r.of.To.Quoted())
		if err != nil {
			return err
		}
		if there != nil {
			invalid = append(invalid, r.of.To.String()+" "+there.name)
		}
	}
	return m.refuseUnvalidated(ctx, dst, invalid)
}

// standingReference is a foreign key of a table at the target.
type standingReference struct {
	name  string
	valid bool
}

// find returns the foreign key of a heap at the target that is this one.
func (r *reference) find(ctx context.Context, dst queryer, heap string) (*standingReference, error) {
	rows, err := dst.Query(ctx, `
SELECT k.conname::text, k.convalidated FROM pg_constraint k
WHERE k.contype = 'f' AND k.conrelid = to_regclass($1) AND k.confrelid = to_regclass($2)
  AND (SELECT array_agg(a.attname || '>' || b.attname ORDER BY 1) FROM unnest(k.conkey, k.confkey) u (x, y)
       JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = u.x JOIN pg_attribute b ON b.attrelid = k.confrelid AND b.attnum = u.y)
    = (SELECT array_agg(c || '>' || o ORDER BY 1) FROM unnest($3::text[], $4::text[]) u (c, o)) ORDER BY k.convalidated DESC, 1`, heap, r.to.To.Quoted(), r.columns, r.others)
	if err != nil {
		return nil, fmt.Errorf("look for foreign key %v: %w", r, err)
	}
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (s standingReference, err error) { return s, row.Scan(&s.name, &s.valid) })
	if err != nil {
		return nil, fmt.Errorf("look for foreign key %v: %w", r, err)
	}
	if len(all) == 0 {
		return nil, nil
	}
	return &all[0], nil
}

// makeReference makes one.
func (m *Migration) makeReference(ctx context.Context, dst *pgx.Conn, r *reference) error {
	var partitioned bool
	var heaps []string
	if err := dst.QueryRow(ctx, `
SELECT c.relkind = 'p', CASE WHEN c.relkind = 'p' THEN ARRAY(SELECT relid::regclass::text FROM pg_partition_tree(c.oid) WHERE isleaf ORDER BY 1) ELSE ARRAY[$1] END
FROM pg_class c WHERE c.oid = to_regclass($1)`, r.of.To.Quoted()).Scan(&partitioned, &heaps); err != nil {
		return fmt.Errorf("look up partitions of %v: %w", r.of.To, err)
	}
	if there, err := r.find(ctx, dst, r.of.To.Quoted()); err != nil {
		return err
	} else if there != nil && (partitioned || there.valid) {
		return nil
	}
	if partitioned && !r.valid {
		r.valid = true // the target's has to be, or cannot be
	}
	for _, heap := range heaps {
		there, err := r.find(ctx, dst, heap)
		if err != nil {
			return err
		}
		if there == nil {
			if err := m.alter(ctx, dst, r, "ALTER TABLE "+heap+" ADD CONSTRAINT "+r.sql()+" NOT VALID"); err != nil {
				return err
			}
			there = &standingReference{name: r.name}
		}
		if !there.valid && r.valid {
			if err := m.alter(ctx, dst, r, "ALTER TABLE "+heap+" VALIDATE CONSTRAINT "+table.Quote(there.name)); err != nil {
				return err
			}
		}
	}
	if partitioned {
		if err := m.alter(ctx, dst, r, "ALTER TABLE "+r.of.To.Quoted()+" ADD CONSTRAINT "+r.sql()); err != nil {
			return err
		}
	}
	m.log.Info("foreign key stands at the target", "key", r.name, "table", r.of.To.String(), "valid", r.valid)
	return nil
}

// alter runs one statement of making a foreign key; nobody queues behind its lock for
// long.
func (m *Migration) alter(ctx context.Context, dst *pgx.Conn, r *reference, sql string) error {
	for attempt := 0; ; attempt++ {
		_, err := dst.Exec(ctx, "BEGIN; SET LOCAL lock_timeout = '"+guardWait+"'; "+sql+"; COMMIT", pgx.QueryExecModeSimpleProtocol)
		if err == nil {
			return nil
		}
		if _, again := dst.Exec(ctx, "ROLLBACK"); again != nil {
			return fmt.Errorf("make foreign key %v: %w", r, again)
		}
		switch {
		case code(err) == "55P03" && attempt < lockAttempts:
			if err := wait.For(ctx, lockPause); err != nil {
				return err
			}
		case code(err) == "23503":
			return fmt.Errorf("%w: foreign key %v does not hold at the target, and does at the source: %w; mend: millrace migrate verify -f FILE --full; if the sides are equal, look who has written at the source with keys disabled, and mend the rows there", ErrBlocked, r, err)
		default:
			return fmt.Errorf("%w: foreign key %v cannot be made at the target: %s: %w; mend: make it by hand there, or target.foreign_keys: leave in the migration file", ErrBlocked, r, sql, err)
		}
	}
}

// refuseUnvalidated refuses foreign keys of the target that nobody has validated, but
// for those that are not valid at the source either.
func (m *Migration) refuseUnvalidated(ctx context.Context, dst queryer, but []string) error {
	var names []string
	for i := range m.cfg.Tables {
		names = append(names, m.cfg.Tables[i].To.Quoted())
	}
	rows, err := dst.Query(ctx, strings.ReplaceAll(tree, "SELECT $1::bigint::oid", "SELECT to_regclass(t)::oid FROM unnest($1::text[]) t")+`
SELECT n.nspname::text, c.relname::text, k.conname::text
FROM tree JOIN pg_class c ON c.oid = tree.oid JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_constraint k ON k.conrelid = c.oid
WHERE k.contype = 'f' AND NOT k.convalidated AND coalesce(to_jsonb(k)->>'conenforced', 'true') = 'true' ORDER BY 1, 2`, names)
	if err != nil {
		return fmt.Errorf("look for foreign keys that are not valid: %w", err)
	}
	type one struct {
		of   table.Name
		name string
	}
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (x one, err error) { return x, row.Scan(&x.of.Schema, &x.of.Name, &x.name) })
	if err != nil {
		return fmt.Errorf("look for foreign keys that are not valid: %w", err)
	}
	var open, mends []string
	for _, x := range all {
		if !slices.Contains(but, x.of.String()+" "+x.name) {
			open, mends = append(open, x.name+" of "+x.of.String()), append(mends, fmt.Sprintf("ALTER TABLE %s VALIDATE CONSTRAINT %s", x.of.Quoted(), table.Quote(x.name)))
		}
	}
	if len(open) > 0 {
		return fmt.Errorf("%w: foreign keys of the target are not validated: %s; mend: %s; at the target", ErrBlocked, strings.Join(open, ", "), strings.Join(mends, "; "))
	}
	return nil
}
