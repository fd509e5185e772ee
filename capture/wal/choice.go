package wal

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/capture/table"
)

// member writes a table as a member of a publication.
func (c *Capture) member(name table.Name) string {
	ch := c.choices.Of(name)
	text := name.Quoted()
	if ch.Columns != nil {
		var quoted []string
		for _, column := range ch.Columns {
			quoted = append(quoted, table.Quote(column))
		}
		text += " (" + strings.Join(quoted, ", ") + ")"
	}
	if ch.Where != "" {
		text += " WHERE (" + ch.Where + ")"
	}
	return text
}

// table looks up a table of the stream, with the choice of the publication.
func (c *Capture) table(ctx context.Context, conn *pgx.Conn, id millrace.TableID, moreTypes []uint32) (*table.Info, error) {
	t, err := table.ByID(ctx, conn, id, moreTypes)
	if t != nil {
		t.Choice = c.choiceOf(id)
	}
	return t, err
}

// choiceOf returns what the publication has of a table of the stream.
func (c *Capture) choiceOf(id millrace.TableID) table.Choice {
	if chosen := c.chosen.Load(); chosen != nil {
		return (*chosen)[id]
	}
	return table.Choice{}
}

// checkChoice says what is wrong with the columns and rows chosen of a table.
func checkChoice(t *table.Info) []capture.Problem {
	if t.Choice.IsAll() {
		return nil
	}
	subject := "table " + t.Name.String()
	problems := t.CheckChoice()
	if t.Choice.Columns != nil && t.Identity == "f" {
		problems = append(problems, capture.Refuse(capture.ErrTable, subject, "source.columns chooses columns, and its REPLICA IDENTITY is FULL, which needs all of them",
			"ALTER TABLE "+t.Name.Quoted()+" REPLICA IDENTITY DEFAULT, or remove it from source.columns"))
	}
	if t.Choice.Where != "" && t.Identity != "f" && slices.ContainsFunc(t.Columns, func(c table.Column) bool { return c.OutOfLine && t.Choice.Chooses(c.Name) }) {
		problems = append(problems, capture.Warn(subject, "source.where chooses rows, and a row that begins to be chosen by an update comes without values that are stored out of line and did not change: then the whole table is loaded again, unless it is being loaded already",
			"ALTER TABLE "+t.Name.Quoted()+" REPLICA IDENTITY FULL, if that happens often"))
	}
	return problems
}

// sameWhere reports whether two conditions on a table are the same to the server:
// a publication prints its own in another form than it was written in.
func sameWhere(ctx context.Context, conn *pgx.Conn, name table.Name, a, b string) (bool, error) {
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
		rows, err := tx.Query(ctx, "EXPLAIN (VERBOSE, COSTS OFF) SELECT FROM "+name.Quoted()+" WHERE ("+where+")", pgx.QueryExecModeSimpleProtocol)
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
func (c *Capture) filterColumns(ctx context.Context, tx pgx.Tx, t *table.Info) (columns []string, err error) {
	probe := table.Quote("millrace_probe_" + c.cfg.Stream)
	nested, err := tx.Begin(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = nested.Rollback(ctx) }() // that is what it is for
	if _, err := nested.Exec(ctx, "CREATE PUBLICATION "+probe+" FOR TABLE "+t.Name.Quoted()+" WHERE ("+t.Choice.Where+")"); err != nil {
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
func (c *Capture) fitFilters(ctx context.Context, tx pgx.Tx, tables []*table.Info) error {
	for _, t := range tables {
		if t.Choice.Where == "" || t.Identity == "f" {
			continue
		}
		columns, err := c.filterColumns(ctx, tx, t)
		if err != nil {
			return fmt.Errorf("%w: table %v: source.where: %w", capture.ErrTable, t.Name, err)
		}
		key, _, _ := t.Key(millrace.ModeWAL)
		for _, name := range columns {
			if !slices.ContainsFunc(key, func(n int16) bool { return t.Column(n).Name == name }) {
				return fmt.Errorf("%w: table %v: source.where uses column %s, which its updates and deletes do not carry; mend: ALTER TABLE %s REPLICA IDENTITY FULL, or use the key's columns only", capture.ErrTable, t.Name, name, t.Name.Quoted())
			}
		}
	}
	return nil
}
