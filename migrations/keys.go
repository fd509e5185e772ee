package migrations

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace/capture/table"
)

// Keys and unique indexes of a table that prepare has made stand aside while its rows
// are copied, since an index that is made at once costs a fraction of one that grows row
// by row. Nothing needs them before changes are applied, and no change is before the
// copy is done. Rows that were met twice meanwhile, and rows of different times that have
// the same value where it has to be unique, are in the table then. All of these have
// been changed since changes are kept, so one of them is left, whichever, and their own
// changes put that right, as they do where rows are in each other's way earlier.

// setKeysAside drops what is unique in a table that prepare has made and that has no
// rows yet, and notes how it is made again. A table that somebody else has use for by
// its key, or whose indexes are not as prepare makes them, is left as it is.
func (m *Migration) setKeysAside(ctx context.Context, dst *pgx.Conn, t *mapping) error {
	err := pgx.BeginFunc(ctx, dst, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SET LOCAL lock_timeout = '1s'"); err != nil {
			return err
		}
		var noted, rows bool
		if err := tx.QueryRow(ctx, "SELECT EXISTS (SELECT FROM millrace.migration_key WHERE name = $1 AND table_name = $2), EXISTS (SELECT FROM "+t.to.Quoted()+")", m.cfg.Name, t.to.String()).Scan(&noted, &rows); err != nil {
			return err
		}
		if noted || rows {
			return nil
		}
		keys, fit, err := readKeys(ctx, tx, t.to)
		if err != nil || !fit {
			return err
		}
		for i, k := range keys {
			if _, err := tx.Exec(ctx, k.drop); err != nil {
				return err
			}
			if _, err := tx.Exec(ctx, "INSERT INTO millrace.migration_key (name, table_name, heap, number, statement, columns, predicate, one_null) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
				m.cfg.Name, t.to.String(), k.heap, i, k.statement, k.exprs, k.where, k.oneNull); err != nil {
				return err
			}
		}
		return nil
	})
	switch code(err) {
	case "2BP01", "55P03": // dependent_objects_still_exist, lock_not_available
		m.log.Info("rows come beside the keys, which are in use", "table", t.to.String(), "error", err)
		return nil
	}
	if err != nil {
		return fmt.Errorf("set the keys of %v aside at the target: %w", t.to, err)
	}
	return nil
}

// key is what is unique in a heap of the target.
type key struct {
	uniqueIndex
	heap            string // as SQL writes it
	statement, drop string
}

// readKeys looks up what is unique in a table, the key first. They are fit to be set
// aside if making them again makes the same, and if nobody captures the table, by its
// publication or by triggers.
func readKeys(ctx context.Context, q queryer, of table.Name) (keys []key, fit bool, err error) {
	from := strings.ReplaceAll(tree, "$1::bigint::oid", "to_regclass($1)::oid")
	if err := q.QueryRow(ctx, from+`
SELECT NOT EXISTS (SELECT FROM pg_publication_tables p JOIN pg_class c ON c.relname = p.tablename JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = p.schemaname WHERE c.oid IN (SELECT oid FROM tree))
   AND NOT EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid IN (SELECT oid FROM tree) AND NOT g.tgisinternal AND g.tgname NOT LIKE $2)
   AND NOT EXISTS (SELECT FROM pg_constraint f WHERE f.contype = 'f' AND f.confrelid IN (SELECT oid FROM tree))
   AND NOT EXISTS (SELECT FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid WHERE i.indrelid IN (SELECT oid FROM tree) AND i.indisunique AND (
       x.relkind <> 'i' OR x.relispartition OR x.reloptions IS NOT NULL OR x.reltablespace <> 0 OR i.indisreplident OR i.indisclustered OR i.indisexclusion OR NOT i.indisvalid
       OR EXISTS (SELECT FROM unnest(i.indclass) o JOIN pg_opclass p ON p.oid = o WHERE NOT p.opcdefault)
       OR EXISTS (SELECT FROM unnest(i.indcollation) o JOIN pg_collation l ON l.oid = o WHERE NOT l.collisdeterministic)))`, of.Quoted(), denyTrigger+"%").Scan(&fit); err != nil || !fit {
		return nil, false, err
	}
	rows, err := q.Query(ctx, from+`
SELECT c.oid::regclass::text, x.relname::text, x.oid::regclass::text, coalesce(pg_get_constraintdef(k.oid), ''), pg_get_indexdef(x.oid),
       ARRAY(SELECT pg_get_indexdef(x.oid, n, true) FROM generate_series(1, i.indnkeyatts) n ORDER BY n), coalesce(pg_get_expr(i.indpred, i.indrelid), ''),
       coalesce((to_jsonb(i)->>'indnullsnotdistinct')::boolean, false)
FROM tree JOIN pg_class c ON c.oid = tree.oid JOIN pg_index i ON i.indrelid = c.oid JOIN pg_class x ON x.oid = i.indexrelid
LEFT JOIN pg_constraint k ON k.conindid = x.oid AND k.contype IN ('p', 'u')
WHERE c.relkind = 'r' AND i.indisunique ORDER BY 1, i.indisprimary DESC, 2`, of.Quoted())
	if err != nil {
		return nil, false, err
	}
	keys, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (k key, err error) {
		var index, constraint, definition string
		if err := row.Scan(&k.heap, &k.name, &index, &constraint, &definition, &k.exprs, &k.where, &k.oneNull); err != nil {
			return k, err
		}
		k.statement, k.drop = definition, "DROP INDEX "+index
		if constraint != "" {
			k.statement = fmt.Sprintf("ALTER TABLE %s ADD CONSTRAINT %s %s", k.heap, table.Quote(k.name), constraint)
			k.drop = fmt.Sprintf("ALTER TABLE %s DROP CONSTRAINT %s", k.heap, table.Quote(k.name))
		}
		return k, nil
	})
	return keys, true, err
}

// keysAside reports whether keys of a table stand aside.
func keysAside(ctx context.Context, dst queryer, to table.Name) (aside bool, err error) {
	if err = dst.QueryRow(ctx, "SELECT to_regclass('millrace.migration_key') IS NOT NULL").Scan(&aside); err == nil && aside {
		err = dst.QueryRow(ctx, "SELECT EXISTS (SELECT FROM millrace.migration_key WHERE table_name = $1 AND made_at IS NULL)", to.String()).Scan(&aside)
	}
	if err != nil {
		return false, fmt.Errorf("look for keys that stand aside at the target: %w", err)
	}
	return aside, nil
}

// makeKeys makes the keys of a table that stand aside. Rows that are in the way of one
// are taken away: see above.
func (m *Migration) makeKeys(ctx context.Context, dst *pgx.Conn, to table.Name) error {
	rows, err := dst.Query(ctx, "SELECT heap, number, statement, columns, predicate, one_null FROM millrace.migration_key WHERE name = $1 AND table_name = $2 AND made_at IS NULL ORDER BY heap, number", m.cfg.Name, to.String())
	if err != nil {
		return fmt.Errorf("look for keys that stand aside at the target: %w", err)
	}
	type noted struct {
		key
		number int
	}
	keys, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (k noted, err error) {
		return k, row.Scan(&k.heap, &k.number, &k.statement, &k.exprs, &k.where, &k.oneNull)
	})
	if err != nil {
		return fmt.Errorf("look for keys that stand aside at the target: %w", err)
	}
	for _, k := range keys {
		m.log.Info("making a key", "table", to.String(), "sql", k.statement)
		once := func() error {
			return pgx.BeginFunc(ctx, dst, func(tx pgx.Tx) error {
				// The commit of a process that was killed may be under way.
				var made bool
				if err := tx.QueryRow(ctx, "SELECT made_at IS NOT NULL FROM millrace.migration_key WHERE name = $1 AND heap = $2 AND number = $3 FOR UPDATE", m.cfg.Name, k.heap, k.number).Scan(&made); err != nil || made {
					return err
				}
				if _, err := tx.Exec(ctx, k.statement); err != nil {
					return err
				}
				_, err := tx.Exec(ctx, "UPDATE millrace.migration_key SET made_at = clock_timestamp() WHERE name = $1 AND heap = $2 AND number = $3", m.cfg.Name, k.heap, k.number)
				return err
			})
		}
		err := once()
		if code(err) == "23505" { // unique_violation
			if err = m.removeTwice(ctx, dst, &k.key, k.number); err == nil {
				err = once()
			}
		}
		if err != nil {
			return fmt.Errorf("make a key at the target: %s: %w", k.statement, err)
		}
		m.pass("key made")
	}
	return nil
}

// removeTwice takes all rows away but one, of each group that has the same value of a
// key.
func (m *Migration) removeTwice(ctx context.Context, dst *pgx.Conn, k *key, number int) error {
	var conditions []string
	if k.where != "" {
		conditions = append(conditions, "("+k.where+")")
	}
	if !k.oneNull {
		for _, e := range k.exprs {
			conditions = append(conditions, "("+e+") IS DISTINCT FROM NULL")
		}
	}
	where := ""
	if len(conditions) > 0 {
		where = " WHERE " + strings.Join(conditions, " AND ")
	}
	return pgx.BeginFunc(ctx, dst, func(tx pgx.Tx) error {
		removed, err := removeDoubles(ctx, tx, "ONLY "+k.heap, "("+strings.Join(k.exprs, "), (")+")", where)
		if err != nil {
			return err
		}
		m.log.Info("rows that had changed while they were copied were in the way of a key", "heap", k.heap, "rows", removed)
		_, err = tx.Exec(ctx, "UPDATE millrace.migration_key SET removed = removed + $4 WHERE name = $1 AND heap = $2 AND number = $3", m.cfg.Name, k.heap, number, removed)
		return err
	})
}

// removeDoubles deletes all but one of the rows of each group. They are looked for by
// a statement of their own, since Postgres runs none in parallel that deletes.
func removeDoubles(ctx context.Context, tx pgx.Tx, from, by, where string) (int64, error) {
	if _, err := tx.Exec(ctx, "SELECT set_config('work_mem', current_setting('maintenance_work_mem'), true)"); err != nil {
		return 0, err
	}
	if _, err := tx.Exec(ctx, fmt.Sprintf(`CREATE TEMP TABLE millrace_doubles ON COMMIT DROP AS
SELECT heap, at FROM (SELECT tableoid AS heap, ctid AS at, row_number() OVER (PARTITION BY %s) AS n FROM %s%s) x WHERE n > 1`, by, from, where)); err != nil {
		return 0, err
	}
	tag, err := tx.Exec(ctx, fmt.Sprintf("DELETE FROM %s d USING pg_temp.millrace_doubles x WHERE d.tableoid = x.heap AND d.ctid = x.at", from))
	return tag.RowsAffected(), err
}
