package migrations

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/capture/table"
)

// definition is a table as it is to be made at the target.
type definition struct {
	// before, table and after are statements: what the table needs, the table with
	// what is unique in it, and what is better made when its rows are there.
	before, table, after []string
}

// define writes the statements that make a table at the target like the source's.
func define(ctx context.Context, src, dst queryer, t *Table, id millrace.TableID) (*definition, []capture.Problem, error) {
	d := new(definition)
	var exists bool
	if err := dst.QueryRow(ctx, "SELECT to_regnamespace($1) IS NOT NULL", table.Quote(t.To.Schema)).Scan(&exists); err != nil {
		return nil, nil, fmt.Errorf("look for schema %s at the target: %w", t.To.Schema, err)
	}
	if !exists {
		d.before = append(d.before, "CREATE SCHEMA IF NOT EXISTS "+table.Quote(t.To.Schema))
	}
	problems, err := d.types(ctx, src, dst, t, id)
	if err != nil {
		return nil, nil, err
	}
	if err := d.sequences(ctx, src, id); err != nil {
		return nil, nil, err
	}
	columns, err := d.columns(ctx, src, id)
	if err != nil {
		return nil, nil, err
	}
	keys, checks, err := d.constraints(ctx, src, id)
	if err != nil {
		return nil, nil, err
	}
	unique, plain, err := d.indexes(ctx, src, id)
	if err != nil {
		return nil, nil, err
	}
	create := fmt.Sprintf("CREATE TABLE %s (\n    %s\n)", t.To.Quoted(), strings.Join(append(columns, checks...), ",\n    "))
	heaps := []table.Name{t.To}
	if t.PartitionBy != "" {
		d.table = append(d.table, create+" PARTITION BY LIST (("+t.PartitionBy+"))")
		heaps = nil
		for i := range t.PartitionCount + 1 {
			name, bound := table.Name{Schema: t.To.Schema, Name: fmt.Sprintf("%s_%d", t.To.Name, i)}, fmt.Sprintf("FOR VALUES IN (%d)", i)
			if i == t.PartitionCount {
				name.Name, bound = t.To.Name+"_other", "DEFAULT"
			}
			d.table = append(d.table, fmt.Sprintf("CREATE TABLE %s PARTITION OF %s %s", name.Quoted(), t.To.Quoted(), bound))
			heaps = append(heaps, name)
		}
	} else {
		d.table = append(d.table, create)
	}
	for i, heap := range heaps {
		suffix := ""
		if t.PartitionBy != "" {
			suffix = fmt.Sprintf("_%d", i)
		}
		for _, k := range keys {
			d.table = append(d.table, fmt.Sprintf("ALTER TABLE %s ADD CONSTRAINT %s %s", heap.Quoted(), table.Quote(shorten(k.name, suffix)), k.text))
		}
		for _, x := range unique {
			d.table = append(d.table, fmt.Sprintf("CREATE UNIQUE INDEX %s ON %s %s", table.Quote(shorten(x.name, suffix)), heap.Quoted(), x.text))
		}
	}
	for _, x := range plain {
		d.after = append(d.after, fmt.Sprintf("CREATE INDEX IF NOT EXISTS %s ON %s %s", table.Quote(x.name), t.To.Quoted(), x.text))
	}
	return d, problems, nil
}

// shorten puts a suffix behind a name without making it too long.
func shorten(name, suffix string) string {
	for len(name)+len(suffix) > 63 {
		name = strings.ToValidUTF8(name[:len(name)-1], "")
	}
	return name + suffix
}

// types makes enums that the target lacks, and names other types that it lacks.
func (d *definition) types(ctx context.Context, src, dst queryer, t *Table, id millrace.TableID) ([]capture.Problem, error) {
	rows, err := src.Query(ctx, `
SELECT DISTINCT n.nspname::text, y.typname::text, y.typtype::text,
       ARRAY(SELECT enumlabel::text FROM pg_enum e WHERE e.enumtypid = y.oid ORDER BY enumsortorder),
       coalesce((SELECT x.extname::text FROM pg_depend p JOIN pg_extension x ON x.oid = p.refobjid
                 WHERE p.classid = 'pg_type'::regclass AND p.objid = y.oid AND p.deptype = 'e'), '')
FROM pg_attribute a JOIN pg_type o ON o.oid = a.atttypid
JOIN pg_type y ON y.oid = CASE WHEN o.typcategory = 'A' AND o.typelem <> 0 THEN o.typelem ELSE o.oid END
JOIN pg_namespace n ON n.oid = y.typnamespace
WHERE a.attrelid = $1::bigint::oid AND a.attnum > 0 AND NOT a.attisdropped AND n.nspname <> 'pg_catalog' ORDER BY 1, 2`, int64(id))
	if err != nil {
		return nil, fmt.Errorf("look up types at the source: %w", err)
	}
	type found struct {
		table.Name
		kind, extension string
		labels          []string
	}
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (f found, err error) {
		return f, row.Scan(&f.Schema, &f.Name.Name, &f.kind, &f.labels, &f.extension)
	})
	if err != nil {
		return nil, fmt.Errorf("look up types at the source: %w", err)
	}
	var problems []capture.Problem
	for _, f := range all {
		var there bool
		if err := dst.QueryRow(ctx, "SELECT to_regtype($1) IS NOT NULL", f.Quoted()).Scan(&there); err != nil {
			return nil, fmt.Errorf("look up type %v at the target: %w", f.Name, err)
		}
		switch {
		case there:
		case f.kind == "e" && f.extension == "":
			var labels []string
			for _, l := range f.labels {
				labels = append(labels, literal(l))
			}
			d.before = append(d.before, "CREATE SCHEMA IF NOT EXISTS "+table.Quote(f.Schema), "CREATE TYPE "+f.Quoted()+" AS ENUM ("+strings.Join(labels, ", ")+")")
		case f.extension != "":
			problems = append(problems, capture.Refuse(ErrBlocked, "table "+t.From.String(), "it uses type "+f.String()+" of extension "+f.extension+", which the target lacks", "CREATE EXTENSION "+table.Quote(f.extension)+" at the target"))
		default:
			problems = append(problems, capture.Refuse(ErrBlocked, "table "+t.From.String(), "it uses type "+f.String()+", which the target lacks", "make the type at the target as it is at the source"))
		}
	}
	return problems, nil
}

// sequences makes those that defaults of the table draw from.
func (d *definition) sequences(ctx context.Context, src queryer, id millrace.TableID) error {
	rows, err := src.Query(ctx, `
SELECT DISTINCT n.nspname::text, c.relname::text, format_type(s.seqtypid, NULL), s.seqincrement, s.seqmin, s.seqmax, s.seqstart, s.seqcache, s.seqcycle
FROM pg_attrdef f JOIN pg_depend p ON p.classid = 'pg_attrdef'::regclass AND p.objid = f.oid AND p.refclassid = 'pg_class'::regclass
JOIN pg_class c ON c.oid = p.refobjid AND c.relkind = 'S' JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_sequence s ON s.seqrelid = c.oid
WHERE f.adrelid = $1::bigint::oid ORDER BY 1, 2`, int64(id))
	if err != nil {
		return fmt.Errorf("look up sequences at the source: %w", err)
	}
	statements, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (string, error) {
		var name table.Name
		var typ string
		var increment, low, high, start, cache int64
		var cycle bool
		err := row.Scan(&name.Schema, &name.Name, &typ, &increment, &low, &high, &start, &cache, &cycle)
		text := fmt.Sprintf("CREATE SEQUENCE IF NOT EXISTS %s AS %s INCREMENT %d MINVALUE %d MAXVALUE %d START %d CACHE %d", name.Quoted(), typ, increment, low, high, start, cache)
		if cycle {
			text += " CYCLE"
		}
		return text, err
	})
	if err != nil {
		return fmt.Errorf("look up sequences at the source: %w", err)
	}
	d.before = append(d.before, statements...)
	return nil
}

// columns writes the columns of the table.
func (d *definition) columns(ctx context.Context, src queryer, id millrace.TableID) ([]string, error) {
	rows, err := src.Query(ctx, `
SELECT a.attname::text, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attgenerated::text, a.attidentity::text,
       coalesce(pg_get_expr(f.adbin, f.adrelid), ''),
       coalesce((SELECT quote_ident(n.nspname) || '.' || quote_ident(l.collname) FROM pg_collation l JOIN pg_namespace n ON n.oid = l.collnamespace
                 JOIN pg_type y ON y.oid = a.atttypid WHERE l.oid = a.attcollation AND l.oid <> y.typcollation), '')
FROM pg_attribute a LEFT JOIN pg_attrdef f ON f.adrelid = a.attrelid AND f.adnum = a.attnum
WHERE a.attrelid = $1::bigint::oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum`, int64(id))
	if err != nil {
		return nil, fmt.Errorf("look up columns at the source: %w", err)
	}
	columns, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (string, error) {
		var name, typ, generated, identity, preset, collation string
		var notNull bool
		if err := row.Scan(&name, &typ, &notNull, &generated, &identity, &preset, &collation); err != nil {
			return "", err
		}
		text := table.Quote(name) + " " + typ
		if collation != "" {
			text += " COLLATE " + collation
		}
		switch {
		case generated == "s":
			text += " GENERATED ALWAYS AS (" + preset + ") STORED"
		case generated != "":
			text += " GENERATED ALWAYS AS (" + preset + ") VIRTUAL"
		case identity == "a":
			text += " GENERATED ALWAYS AS IDENTITY"
		case identity != "":
			text += " GENERATED BY DEFAULT AS IDENTITY"
		case preset != "":
			text += " DEFAULT " + preset
		}
		if notNull {
			text += " NOT NULL"
		}
		return text, nil
	})
	if err != nil {
		return nil, fmt.Errorf("look up columns at the source: %w", err)
	}
	return columns, nil
}

type named struct{ name, text string }

// constraints returns those that are unique, and checks.
func (d *definition) constraints(ctx context.Context, src queryer, id millrace.TableID) (keys []named, checks []string, err error) {
	rows, err := src.Query(ctx, `SELECT conname::text, contype::text, pg_get_constraintdef(oid, true) FROM pg_constraint
WHERE conrelid = $1::bigint::oid AND contype IN ('p', 'u', 'c') ORDER BY contype = 'p' DESC, conname`, int64(id))
	if err != nil {
		return nil, nil, fmt.Errorf("look up constraints at the source: %w", err)
	}
	_, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (kind string, err error) {
		var n named
		err = row.Scan(&n.name, &kind, &n.text)
		if kind == "c" {
			checks = append(checks, "CONSTRAINT "+table.Quote(n.name)+" "+n.text)
		} else {
			keys = append(keys, n)
		}
		return kind, err
	})
	if err != nil {
		return nil, nil, fmt.Errorf("look up constraints at the source: %w", err)
	}
	return keys, checks, nil
}

// indexes returns what stands behind ON table of those that are no constraint's.
func (d *definition) indexes(ctx context.Context, src queryer, id millrace.TableID) (unique, plain []named, err error) {
	rows, err := src.Query(ctx, `SELECT c.relname::text, i.indisunique, pg_get_indexdef(i.indexrelid) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
WHERE i.indrelid = $1::bigint::oid AND i.indisvalid AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = i.indexrelid AND k.contype IN ('p', 'u', 'x')) ORDER BY 1`, int64(id))
	if err != nil {
		return nil, nil, fmt.Errorf("look up indexes at the source: %w", err)
	}
	_, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (n named, err error) {
		var isUnique bool
		if err := row.Scan(&n.name, &isUnique, &n.text); err != nil {
			return n, err
		}
		_, rest, ok := strings.Cut(n.text, " USING ")
		if !ok || strings.Contains(n.name, " USING ") {
			return n, fmt.Errorf("index %s has a definition that cannot be read: %s", n.name, n.text)
		}
		n.text = "USING " + rest
		if isUnique {
			unique = append(unique, n)
		} else {
			plain = append(plain, n)
		}
		return n, nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("look up indexes at the source: %w", err)
	}
	return unique, plain, nil
}

// literal writes a text as SQL does.
func literal(text string) string { return "'" + strings.ReplaceAll(text, "'", "''") + "'" }

// toMake returns the tables that prepare has to make, with their definitions.
func (m *Migration) toMake(ctx context.Context, src, dst queryer) (map[int]*definition, []capture.Problem, error) {
	all := make(map[int]*definition)
	var problems []capture.Problem
	for i := range m.cfg.Tables {
		t := &m.cfg.Tables[i]
		from, err := table.ByName(ctx, src, t.From)
		if err != nil {
			return nil, nil, err
		}
		var there bool
		if err := dst.QueryRow(ctx, "SELECT to_regclass($1) IS NOT NULL", t.To.Quoted()).Scan(&there); err != nil {
			return nil, nil, fmt.Errorf("look for table %v at the target: %w", t.To, err)
		}
		if from == nil || there || t.mapped() {
			continue
		}
		d, more, err := define(ctx, src, dst, t, from.ID)
		if err != nil {
			return nil, nil, fmt.Errorf("write the definition of %v: %w", t.From, err)
		}
		all[i], problems = d, append(problems, more...)
	}
	return all, problems, nil
}
