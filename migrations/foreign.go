package migrations

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/capture/table"
)

// foreign makes names at the source lead to the target, by postgres_fdw.
type foreign struct {
	m        *Migration
	src, dst *pgx.Conn
	options  EmergencyOptions
}

// away is a table whose name leads to the target.
type away struct {
	name, aside, to table.Name
	columns         []awayColumn
	grants          []string // roles, as SQL writes them, and what they may do
	lacks           []string
}

// awayColumn is a column of it.
type awayColumn struct {
	name, at          string // at the source and at the target
	definition        string // type and collation
	preset, generated string // expressions
	sequence          string // of the target, that its values are drawn from
}

type aways []*away

func (a aways) status() []EmergencyTable {
	var all []EmergencyTable
	for _, t := range a {
		all = append(all, EmergencyTable{Table: t.name.String(), Aside: t.aside.String(), Lacks: t.lacks})
	}
	return all
}

// describe looks at the tables, which have the names of asides where they stand aside.
func (f *foreign) describe(ctx context.Context, asides map[table.Name]table.Name) (aways, error) {
	var all aways
	var problems []capture.Problem
	for i := range f.m.cfg.Tables {
		t := &f.m.cfg.Tables[i]
		now, stands := asides[t.From]
		if !stands {
			now = t.From
		}
		info, err := table.ByName(ctx, f.src, now)
		if err != nil {
			return nil, err
		}
		bad := func(text, mend string) {
			problems = append(problems, capture.Refuse(ErrBlocked, "table "+t.From.String()+" at the source", text, mend))
		}
		if info == nil || info.Kind != "r" && info.Kind != "p" {
			bad("it is gone", "take it out of the migration file's tables")
			continue
		}
		if info.RowSecurity {
			bad("it has row security, which would not hold for rows that are read at the target", "let its clients go to the target")
		}
		if f.options.Writes && len(t.Expressions) > 0 {
			bad("columns of the target are computed by the migration, and would get no value from here", "leave --write out, or make them generated columns at the target when the migration is finished")
		}
		a := &away{name: t.From, aside: table.Name{Schema: t.From.Schema, Name: asideName(t.From.Name)}, to: t.To}
		if err := f.neighbours(ctx, a, int64(info.ID), stands, bad); err != nil {
			return nil, err
		}
		if err := f.columns(ctx, a, t, int64(info.ID)); err != nil {
			return nil, err
		}
		all = append(all, a)
	}
	return all, capture.FirstError(problems)
}

// neighbours looks at what is bound to a table at the source.
func (f *foreign) neighbours(ctx context.Context, a *away, id int64, stands bool, bad func(text, mend string)) error {
	var publications, triggers, views, references, grants []string
	var columnGrants, nameTaken bool
	writes := ""
	if f.options.Writes {
		writes = ", 'INSERT', 'UPDATE', 'DELETE'"
	}
	err := f.src.QueryRow(ctx, `
SELECT ARRAY(SELECT DISTINCT p.pubname::text FROM pg_publication p JOIN LATERAL pg_get_publication_tables(p.pubname) t ON true
             WHERE t.relid IN (SELECT relid FROM pg_partition_tree($1::bigint::oid::regclass) UNION SELECT $1::bigint::oid) AND p.pubname <> $2 ORDER BY 1),
       ARRAY(SELECT tgname::text FROM pg_trigger WHERE tgrelid = $1::bigint::oid AND tgname LIKE 'millrace%' AND tgname <> $3
             AND tgname NOT LIKE ALL (SELECT 'millrace\_' || l.id || '\_%' FROM millrace.key_log l WHERE l.stream = $5) ORDER BY 1),
       ARRAY(SELECT DISTINCT r.ev_class::regclass::text FROM pg_depend d JOIN pg_rewrite r ON r.oid = d.objid
             WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = $1::bigint::oid AND r.ev_class <> $1::bigint::oid ORDER BY 1),
       ARRAY(SELECT conname || ' of ' || conrelid::regclass FROM pg_constraint WHERE contype = 'f' AND (conrelid = $1::bigint::oid OR confrelid = $1::bigint::oid) ORDER BY 1),
       ARRAY(SELECT string_agg(DISTINCT x.privilege_type, ', ') || ' ON %s TO ' || CASE x.grantee WHEN 0 THEN 'PUBLIC' ELSE x.grantee::regrole::text END
             FROM pg_class c, aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) x
             WHERE c.oid = $1::bigint::oid AND x.privilege_type IN ('SELECT'`+writes+`) AND x.grantee <> current_user::regrole GROUP BY x.grantee ORDER BY 1),
       EXISTS (SELECT FROM pg_attribute WHERE attrelid = $1::bigint::oid AND attacl IS NOT NULL),
       to_regclass($4) IS NOT NULL`, id, f.m.slot(), denyTrigger, a.aside.Quoted(), f.m.stream()).Scan(&publications, &triggers, &views, &references, &grants, &columnGrants, &nameTaken)
	if err != nil {
		return fmt.Errorf("look what is bound to table %v: %w", a.name, err)
	}
	if len(publications) > 0 {
		bad("it is in publication "+strings.Join(publications, ", ")+", whose subscribers know it by its name", "move what is fed from it to the target first (docs/MIGRATIONS.md), or take the table out of the publication")
	}
	if len(triggers) > 0 {
		bad("triggers capture it: "+strings.Join(triggers, ", "), "move the stream to the target first (docs/MIGRATIONS.md)")
	}
	if nameTaken && !stands {
		bad("it would be called "+a.aside.String()+" meanwhile, and something has that name", "give that another name")
	}
	for _, g := range grants {
		a.grants = append(a.grants, fmt.Sprintf(g, a.name.Quoted()))
	}
	lacks := func(format string, args ...any) { a.lacks = append(a.lacks, fmt.Sprintf(format, args...)) }
	for _, v := range views {
		lacks("%s reads the table that stands aside", v)
	}
	for _, r := range references {
		lacks("foreign key %s is about the table that stands aside", r)
	}
	if columnGrants {
		lacks("rights to single columns hold no more")
	}
	return nil
}

// columns maps the columns of a table.
func (f *foreign) columns(ctx context.Context, a *away, t *Table, id int64) error {
	rows, err := f.src.Query(ctx, `
SELECT a.attname::text, format_type(a.atttypid, a.atttypmod) || coalesce((SELECT format(' COLLATE %I.%I', n.nspname, c.collname)
           FROM pg_collation c JOIN pg_namespace n ON n.oid = c.collnamespace JOIN pg_type y ON y.oid = a.atttypid WHERE c.oid = a.attcollation AND a.attcollation <> y.typcollation), ''),
       a.attgenerated <> '', coalesce(pg_get_expr(d.adbin, d.adrelid), '')
FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attrelid = $1::bigint::oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum`, id)
	if err != nil {
		return fmt.Errorf("look up columns of table %v: %w", a.name, err)
	}
	columns, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (c awayColumn, err error) {
		var generated bool
		if err = row.Scan(&c.name, &c.definition, &generated, &c.preset); generated {
			c.generated, c.preset = c.preset, ""
		}
		return c, err
	})
	if err != nil {
		return fmt.Errorf("look up columns of table %v: %w", a.name, err)
	}
	var there []string
	if err := f.dst.QueryRow(ctx, "SELECT ARRAY(SELECT attname::text FROM pg_attribute WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped)", t.To.Quoted()).Scan(&there); err != nil {
		return fmt.Errorf("look up columns of table %v at the target: %w", t.To, err)
	}
	for _, c := range columns {
		c.at = c.name
		for to, from := range t.Columns {
			if from == c.name {
				c.at = to
			}
		}
		if t.omits(c.name) || !slices.Contains(there, c.at) {
			a.lacks = append(a.lacks, fmt.Sprintf("column %s is not at the target", c.name))
			continue
		}
		if c.generated == "" {
			if c.sequence, err = drawnFrom(ctx, f.dst, t.To, c.at); err != nil {
				return err
			}
		}
		a.columns = append(a.columns, c)
	}
	return nil
}

func (f *foreign) server() string { return table.Quote("millrace_emergency_" + f.m.cfg.Name) }

// object names something that the n-th table or sequence needs, in schema millrace.
func (f *foreign) object(kind string, n int) string {
	return "millrace." + table.Quote(fmt.Sprintf("emergency_%s_%s%d", f.m.cfg.Name, kind, n))
}

// access says how the source's server reaches the target: options of the server, and of
// the role there.
func (f *foreign) access() (server, role []string, user string, err error) {
	text := f.options.URL
	if text == "" {
		text = f.m.cfg.TargetURL
	}
	const mend = "set emergency.url in the migration file to how the source's server reaches the target, as postgres://role:password@host:port/database"
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "postgres" && u.Scheme != "postgresql" {
		return nil, nil, "", fmt.Errorf("%w: the target's connection string is no URL; mend: %s", ErrBlocked, mend) // and may hold a password
	}
	option := func(name, value string) string { return name + " " + literal(value) }
	words := map[string]string{"host": u.Hostname(), "port": u.Port(), "dbname": strings.TrimPrefix(u.Path, "/")}
	for name, values := range u.Query() {
		switch name {
		case "host", "port", "dbname", "sslmode", "sslrootcert", "sslcert", "sslkey", "target_session_attrs", "connect_timeout":
			words[name] = values[len(values)-1]
		case "application_name":
		case "user":
			u.User = url.User(values[len(values)-1])
		default:
			return nil, nil, "", fmt.Errorf("%w: postgres_fdw is not told of %s in the target's connection string; mend: %s", ErrBlocked, name, mend)
		}
	}
	if words["connect_timeout"] == "" {
		words["connect_timeout"] = "10"
	}
	for _, name := range []string{"host", "port", "dbname", "sslmode", "sslrootcert", "sslcert", "sslkey", "target_session_attrs", "connect_timeout"} {
		if words[name] != "" {
			server = append(server, option(name, words[name]))
		}
	}
	server = append(server, option("application_name", "millrace emergency "+f.m.cfg.Name), option("fetch_size", "1000"))
	if user = u.User.Username(); user == "" {
		return nil, nil, "", fmt.Errorf("%w: the target's URL names no role; mend: %s", ErrBlocked, mend)
	}
	role = append(role, option("user", user))
	if password, ok := u.User.Password(); ok {
		role = append(role, option("password", password))
	}
	return server, role, user, nil
}

// make has the names lead to the target.
func (f *foreign) make(ctx context.Context, tables aways) error {
	server, role, user, err := f.access()
	if err != nil {
		return err
	}
	var there, here []string
	swap := []string{"DELETE FROM millrace.migration_use WHERE at < now() - interval '30 days'"}
	var hasWrapper bool
	if err := f.src.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'postgres_fdw')").Scan(&hasWrapper); err != nil {
		return fmt.Errorf("look for postgres_fdw at the source: %w", err)
	}
	if !hasWrapper {
		here = append(here, "CREATE EXTENSION postgres_fdw SCHEMA public")
	}
	here = append(here, "DROP SERVER IF EXISTS "+f.server()+" CASCADE", // of one that was cut off
		fmt.Sprintf("CREATE SERVER %s FOREIGN DATA WRAPPER postgres_fdw OPTIONS (%s)", f.server(), strings.Join(server, ", ")),
		fmt.Sprintf("CREATE USER MAPPING FOR CURRENT_USER SERVER %s OPTIONS (%s)", f.server(), strings.Join(role, ", ")))
	sequences := 0
	for n, t := range tables {
		var columns, names []string
		for _, c := range t.columns {
			text := fmt.Sprintf("%s %s OPTIONS (column_name %s)", table.Quote(c.name), c.definition, literal(c.at))
			if head, collation, ok := strings.Cut(c.definition, " COLLATE "); ok {
				text = fmt.Sprintf("%s %s OPTIONS (column_name %s) COLLATE %s", table.Quote(c.name), head, literal(c.at), collation)
			}
			switch {
			case c.generated != "":
				text += " GENERATED ALWAYS AS (" + c.generated + ") STORED"
			case f.options.Writes && c.sequence != "":
				sequences++
				view, next := f.object("", sequences), f.object("next", sequences)
				there = append(there, fmt.Sprintf("CREATE OR REPLACE VIEW %s AS SELECT nextval(%s::regclass) AS v", view, literal(c.sequence)),
					fmt.Sprintf("GRANT USAGE ON SCHEMA millrace TO %s", table.Quote(user)), fmt.Sprintf("GRANT SELECT ON %s TO %s", view, table.Quote(user)))
				here = append(here, fmt.Sprintf("CREATE FOREIGN TABLE %s (v bigint) SERVER %s OPTIONS (schema_name 'millrace', table_name %s, updatable 'false')", view, f.server(), literal(fmt.Sprintf("emergency_%s_%d", f.m.cfg.Name, sequences))),
					fmt.Sprintf("CREATE OR REPLACE FUNCTION %s() RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$ BEGIN RETURN (SELECT v FROM %s); END $$", next, view))
				text += " DEFAULT " + next + "()"
			case f.options.Writes && c.preset != "":
				text += " DEFAULT " + c.preset
			}
			columns, names = append(columns, text), append(names, table.Quote(c.name))
		}
		far, note := f.object("t", n+1), literal(f.m.cfg.Name)+", "+literal(t.name.String())
		here = append(here, fmt.Sprintf("CREATE FOREIGN TABLE %s (%s) SERVER %s OPTIONS (schema_name %s, table_name %s, updatable '%t')", far, strings.Join(columns, ", "), f.server(), literal(t.to.Schema), literal(t.to.Name), f.options.Writes),
			fmt.Sprintf("SELECT %s FROM %s LIMIT 1", strings.Join(names, ", "), far)) // does it reach the target?
		if f.options.Writes {
			here = append(here, fmt.Sprintf("CREATE TRIGGER millrace_note BEFORE INSERT OR UPDATE OR DELETE ON %s FOR EACH STATEMENT EXECUTE FUNCTION millrace.migration_note_write(%s)", far, note))
		}
		swap = append(swap, fmt.Sprintf("ALTER TABLE %s RENAME TO %s", t.name.Quoted(), table.Quote(t.aside.Name)),
			fmt.Sprintf("CREATE VIEW %s AS SELECT %s FROM %s WHERE (SELECT millrace.migration_note(%s, 'READ'))", t.name.Quoted(), strings.Join(names, ", "), far, note))
		for _, g := range t.grants {
			swap = append(swap, "GRANT "+g)
		}
		swap = append(swap, fmt.Sprintf("INSERT INTO millrace.migration_emergency (name, table_name, aside, writes) VALUES (%s, %s, %t)", note, literal(t.aside.Name), f.options.Writes))
	}
	if f.options.Dry != nil {
		f.print("at the target", there)
		for i, sql := range here {
			if strings.HasPrefix(sql, "CREATE USER MAPPING") {
				here[i], _, _ = strings.Cut(sql, ", password ")
			}
		}
		f.print("at the source", here)
		f.print("at the source, in one transaction", swap)
		return nil
	}
	for _, sql := range there {
		if _, err := f.dst.Exec(ctx, sql); err != nil {
			return fmt.Errorf("make what draws from sequences, at the target: %s: %w", sql, err)
		}
	}
	if err := pgx.BeginFunc(ctx, f.src, func(tx pgx.Tx) error {
		for _, sql := range here {
			if _, err := tx.Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol); err != nil {
				return f.unmade(sql, err)
			}
		}
		return nil
	}); err != nil {
		return err
	}
	if err := patiently(ctx, f.src, swap); err != nil {
		return fmt.Errorf("have names at the source lead to the target: %w", err)
	}
	f.m.log.Warn("emergency access stands at the source", "writes", f.options.Writes, "tables", len(tables))
	return nil
}

// unmade says what was not made; the statement may hold a password.
func (f *foreign) unmade(sql string, err error) error {
	words := strings.Join(strings.Fields(sql)[:2], " ")
	switch {
	case code(err) == "42501" || code(err) == "58P01" || code(err) == "0A000":
		return fmt.Errorf("%w: %s at the source: %w; mend: as a superuser there, CREATE EXTENSION postgres_fdw; GRANT USAGE ON FOREIGN DATA WRAPPER postgres_fdw TO the role of source.url", ErrBlocked, words, err)
	case strings.HasPrefix(code(err), "08") || code(err) == "2F003" || strings.HasPrefix(sql, "SELECT"):
		return fmt.Errorf("%w: the source's server does not reach the target: %w; mend: set emergency.url to how it does, with a role that has a password and may use the tables", ErrBlocked, err)
	}
	return fmt.Errorf("make emergency access: %s at the source: %w", words, err)
}

func (f *foreign) print(where string, statements []string) {
	fmt.Fprintf(f.options.Dry, "-- %s\n", where)
	for _, sql := range statements {
		fmt.Fprintf(f.options.Dry, "%s;\n", sql)
	}
}

// remove has the names lead to the source's own tables again.
func (f *foreign) remove(ctx context.Context, asides map[table.Name]table.Name) error {
	var swap []string
	for name, aside := range asides {
		swap = append(swap, "DROP VIEW "+name.Quoted(), fmt.Sprintf("ALTER TABLE %s RENAME TO %s", aside.Quoted(), table.Quote(name.Name)))
	}
	slices.Sort(swap)
	slices.Reverse(swap) // the views go before tables get their names
	swap = append(swap, "DELETE FROM millrace.migration_emergency WHERE name = "+literal(f.m.cfg.Name), "DROP SERVER IF EXISTS "+f.server()+" CASCADE")
	list := func(conn *pgx.Conn, query string) ([]string, error) {
		rows, err := conn.Query(ctx, query, "^emergency_"+f.m.cfg.Name+"_(next)?[0-9]+$")
		if err != nil {
			return nil, err
		}
		return pgx.CollectRows(rows, pgx.RowTo[string])
	}
	functions, err := list(f.src, "SELECT format('DROP FUNCTION millrace.%I()', proname) FROM pg_proc WHERE pronamespace = 'millrace'::regnamespace AND proname ~ $1")
	if err != nil {
		return fmt.Errorf("look for what emergency access has made: %w", err)
	}
	views, err := list(f.dst, "SELECT format('DROP VIEW millrace.%I', relname) FROM pg_class WHERE relkind = 'v' AND relnamespace = 'millrace'::regnamespace AND relname ~ $1")
	if err != nil {
		return fmt.Errorf("look for what emergency access has made: %w", err)
	}
	swap = append(swap, functions...)
	if f.options.Dry != nil {
		f.print("at the source, in one transaction", swap)
		f.print("at the target", views)
		return nil
	}
	if err := patiently(ctx, f.src, swap); err != nil {
		if code(err) == "2BP01" {
			err = errors.Join(err, fmt.Errorf("%w: something was made that needs the name; mend: drop that first", ErrBlocked))
		}
		return fmt.Errorf("have names at the source lead to its own tables again: %w", err)
	}
	for _, sql := range views {
		if _, err := f.dst.Exec(ctx, sql); err != nil {
			return fmt.Errorf("%s at the target: %w", sql, err)
		}
	}
	f.m.log.Info("emergency access is taken away")
	return nil
}
