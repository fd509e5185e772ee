package wal

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
)

// choice is which columns and rows of a table are captured.
type choice struct {
	columns []string // nil for all, in no order
	where   string   // SQL, without parentheses; empty for all
}

func (c *choice) isAll() bool { return c.columns == nil && c.where == "" }

// checkNames refuses choices for tables that are not captured.
func (c *Capture) checkNames(cfg *Config) error {
	for _, name := range slices.Sorted(maps.Keys(cfg.Columns)) {
		if !slices.Contains(cfg.Tables, name) {
			return fmt.Errorf("columns of table %q, which is not captured", name)
		}
		if len(cfg.Columns[name]) == 0 {
			return fmt.Errorf("no columns of table %q; name at least those of its key", name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(cfg.Where)) {
		if !slices.Contains(cfg.Tables, name) {
			return fmt.Errorf("rows of table %q, which is not captured", name)
		}
	}
	return nil
}

// configured returns the choice that the configuration makes.
func (c *Capture) configured(name tableName) choice {
	return choice{columns: c.cfg.Columns[name.String()], where: strings.TrimSpace(c.cfg.Where[name.String()])}
}

// member writes a table as a member of a publication.
func (c *Capture) member(name tableName) string {
	ch := c.configured(name)
	text := name.quoted()
	if ch.columns != nil {
		var quoted []string
		for _, column := range ch.columns {
			quoted = append(quoted, quote(column))
		}
		text += " (" + strings.Join(quoted, ", ") + ")"
	}
	if ch.where != "" {
		text += " WHERE (" + ch.where + ")"
	}
	return text
}

// table looks up a table of the stream, with the choice of the publication.
func (c *Capture) table(ctx context.Context, conn *pgx.Conn, id millrace.TableID, moreTypes []uint32) (*tableInfo, error) {
	t, err := tableByID(ctx, conn, id, moreTypes)
	if t != nil {
		t.choice = c.choiceOf(id)
	}
	return t, err
}

// choiceOf returns what the publication has of a table of the stream.
func (c *Capture) choiceOf(id millrace.TableID) choice {
	if chosen := c.chosen.Load(); chosen != nil {
		return (*chosen)[id]
	}
	return choice{}
}

// chooses reports whether a column is captured, so far as that is chosen.
func (c *choice) chooses(column string) bool {
	return c.columns == nil || slices.Contains(c.columns, column)
}

// checkChoice says what is wrong with the columns chosen of a table.
func (t *tableInfo) checkChoice() []problem {
	if t.choice.isAll() {
		return nil
	}
	subject := "table " + t.name.String()
	var problems []problem
	for _, name := range t.choice.columns {
		i := slices.IndexFunc(t.columns, func(c columnInfo) bool { return c.name == name })
		switch {
		case i < 0:
			problems = append(problems, refuse(ErrTable, subject, "source.columns names column "+name+", which it does not have", "correct source.columns"))
		case t.columns[i].generated:
			problems = append(problems, refuse(ErrTable, subject, "source.columns names column "+name+", which is generated and not captured", "remove it from source.columns"))
		}
	}
	if t.choice.columns != nil && t.identity == "f" {
		problems = append(problems, refuse(ErrTable, subject, "source.columns chooses columns, and its REPLICA IDENTITY is FULL, which needs all of them",
			"ALTER TABLE "+t.name.quoted()+" REPLICA IDENTITY DEFAULT, or remove it from source.columns"))
	}
	if t.choice.where != "" && t.identity != "f" && slices.ContainsFunc(t.columns, func(c columnInfo) bool { return c.outOfLine && t.choice.chooses(c.name) }) {
		problems = append(problems, warn(subject, "source.where chooses rows, and a row that begins to be chosen by an update comes without values that are stored out of line and did not change: then the whole table is loaded again, unless it is being loaded already",
			"ALTER TABLE "+t.name.quoted()+" REPLICA IDENTITY FULL, if that happens often"))
	}
	return problems
}

// sameWhere reports whether two conditions on a table are the same to the server:
// a publication prints its own in another form than it was written in.
func sameWhere(ctx context.Context, conn *pgx.Conn, name tableName, a, b string) (bool, error) {
	if a == "" || b == "" || a == b {
		return a == b, nil
	}
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{AccessMode: pgx.ReadOnly})
	if err != nil {
		return false, err
	}
	defer func() { _ = tx.Rollback(ctx) }() // nothing was changed
	// One way to read the table only, so that plans differ by the condition.
	if _, err := tx.Exec(ctx, "SET LOCAL enable_indexscan = off; SET LOCAL enable_bitmapscan = off; SET LOCAL enable_indexonlyscan = off; SET LOCAL max_parallel_workers_per_gather = 0",
		pgx.QueryExecModeSimpleProtocol); err != nil {
		return false, err
	}
	var plans [2]string
	for i, where := range []string{a, b} {
		rows, err := tx.Query(ctx, "EXPLAIN (VERBOSE, COSTS OFF) SELECT FROM "+name.quoted()+" WHERE ("+where+")", pgx.QueryExecModeSimpleProtocol)
		if err != nil {
			return false, err
		}
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return false, fmt.Errorf("read condition %q on %v: %w", where, name, err)
		}
		plans[i] = strings.Join(lines, "\n")
	}
	return plans[0] == plans[1], nil
}

// filterColumns returns the columns that the condition on a table uses, as the
// server sees it: it is made in a publication that is taken back.
func (c *Capture) filterColumns(ctx context.Context, tx pgx.Tx, t *tableInfo) (columns []string, err error) {
	probe := quote("millrace_probe_" + c.cfg.Stream)
	nested, err := tx.Begin(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = nested.Rollback(ctx) }() // that is what it is for
	if _, err := nested.Exec(ctx, "CREATE PUBLICATION "+probe+" FOR TABLE "+t.name.quoted()+" WHERE ("+t.choice.where+")"); err != nil {
		return nil, err
	}
	rows, err := nested.Query(ctx, `
SELECT DISTINCT a.attname::text
FROM pg_publication p
JOIN pg_publication_rel r ON r.prpubid = p.oid
JOIN pg_depend d ON d.classid = 'pg_publication_rel'::regclass AND d.objid = r.oid AND d.refclassid = 'pg_class'::regclass AND d.refobjsubid > 0
JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
WHERE p.pubname = $1`, "millrace_probe_"+c.cfg.Stream)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// fitFilters refuses conditions that would make the client's UPDATE and DELETE
// fail once they are published: those must be decided by what each of them carries.
func (c *Capture) fitFilters(ctx context.Context, tx pgx.Tx, tables []*tableInfo) error {
	for _, t := range tables {
		if t.choice.where == "" || t.identity == "f" {
			continue
		}
		columns, err := c.filterColumns(ctx, tx, t)
		if err != nil {
			return fmt.Errorf("%w: table %v: source.where: %w", ErrTable, t.name, err)
		}
		key, _, _ := t.key()
		for _, name := range columns {
			if !slices.ContainsFunc(key, func(n int16) bool { return t.column(n).name == name }) {
				return fmt.Errorf("%w: table %v: source.where uses column %s, which its updates and deletes do not carry; mend: ALTER TABLE %s REPLICA IDENTITY FULL, or use the key's columns only", ErrTable, t.name, name, t.name.quoted())
			}
		}
	}
	return nil
}
