package table

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
)

// Fit says what keeps a table from being captured in a mode, or what should be
// known of it. all are the tables that are captured, t among them.
func Fit(ctx context.Context, conn Querier, mode millrace.Mode, t *Info, all []*Info) ([]capture.Problem, error) {
	subject := "table " + t.Name.String()
	one := func(text, mend string) ([]capture.Problem, error) {
		return []capture.Problem{capture.Refuse(capture.ErrTable, subject, text, mend)}, nil
	}
	switch {
	case t.Kind != "r" && t.Kind != "p":
		kinds := map[string]string{"v": "a view", "m": "a materialized view", "f": "a foreign table", "i": "an index", "I": "an index", "S": "a sequence", "c": "a composite type"}
		return one("it is "+kinds[t.Kind]+", "+unseen(mode), "capture the tables under it instead")
	case t.Persistence == "u":
		return one(unlogged(mode), "ALTER TABLE "+t.Name.Quoted()+" SET LOGGED")
	case t.Persistence != "p":
		return one("it is temporary", "capture a permanent table")
	case t.Kind == "r" && t.Inherits && !t.Partition:
		return one("it takes part in plain inheritance, so its rows are spread over several tables", "make it a partitioned table, or capture tables without INHERITS")
	}
	s, err := t.Schema(mode)
	if err != nil {
		if _, problem, mend := t.Key(mode); problem != "" {
			return one(problem, mend)
		}
		return one(err.Error(), "see there")
	}
	s.Version = 1
	if _, err := millrace.NewKeyCodec(s); err != nil {
		return one(err.Error(), "ALTER TABLE "+t.Name.Quoted()+" REPLICA IDENTITY USING INDEX …, with a unique index over columns of other types")
	}
	var problems []capture.Problem
	if t.Kind == "p" {
		found, err := fitLeaves(ctx, conn, mode, t, s)
		if err != nil {
			return nil, err
		}
		problems = append(problems, found...)
	}
	if t.Partition {
		root, err := coveredBy(ctx, conn, t, all)
		if err != nil {
			return nil, err
		}
		if root != "" {
			return one("it is a partition of "+root+", under whose name its rows are captured", "remove it from the configuration")
		}
	}
	var schemaUsage, tableSelect bool
	if err := conn.QueryRow(ctx, "SELECT has_schema_privilege($1, 'USAGE'), has_table_privilege($2::bigint::oid, 'SELECT')", t.Name.Schema, int64(t.ID)).
		Scan(&schemaUsage, &tableSelect); err != nil {
		return nil, fmt.Errorf("look up privileges on %v: %w", t.Name, err)
	}
	if !schemaUsage {
		problems = append(problems, capture.Refuse(capture.ErrTable, subject, "the role may not use schema "+t.Name.Schema, "GRANT USAGE ON SCHEMA "+Quote(t.Name.Schema)+" TO the role of the source URL"))
	}
	if !tableSelect {
		problems = append(problems, capture.Refuse(capture.ErrTable, subject, "the role may not read it", "GRANT SELECT ON "+t.Name.Quoted()+" TO the role of the source URL"))
	}
	if t.Kind == "p" {
		unread, err := unreadLeaves(ctx, conn, t)
		if err != nil {
			return nil, err
		}
		problems = append(problems, unread...)
	}
	if t.RowSecurity {
		problems = append(problems, capture.Warn(subject, "it has row security, which does not exist at the edge: whoever reads there sees all rows", "make sure that is wanted; the role needs BYPASSRLS for the first copy"))
	}
	return problems, nil
}

// unseen says of a relation that is no table why it is not captured, unlogged of
// a table that is not in the WAL.
func unseen(mode millrace.Mode) string {
	if mode == millrace.ModeTrigger {
		return "whose rows come from elsewhere"
	}
	return "which logical decoding does not see"
}

func unseenLeaf(mode millrace.Mode) string {
	if mode == millrace.ModeTrigger {
		return "so its changes are not seen"
	}
	return "so logical decoding does not see its changes"
}

func unlogged(mode millrace.Mode) string {
	if mode == millrace.ModeTrigger {
		return "it is unlogged, so a crash of the server empties it without a trace"
	}
	return "it is unlogged, so its changes are not in the WAL"
}

// unreadLeaves finds partitions that the role may not read: loads read each by
// itself, for which rights on the table do not count. Changes are read without, so it
// is a warning: partitions come while the stream runs.
func unreadLeaves(ctx context.Context, conn Querier, t *Info) ([]capture.Problem, error) {
	rows, err := conn.Query(ctx, `
WITH RECURSIVE tree (oid) AS (
    SELECT $1::bigint::oid
  UNION
    SELECT i.inhrelid FROM tree JOIN pg_inherits i ON i.inhparent = tree.oid
)
SELECT n.nspname::text, c.relname::text, has_schema_privilege(n.oid, 'USAGE')
FROM tree JOIN pg_class c ON c.oid = tree.oid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND NOT (has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT'))
ORDER BY 1, 2`, int64(t.ID))
	if err != nil {
		return nil, fmt.Errorf("look up privileges on the partitions of %v: %w", t.Name, err)
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (p capture.Problem, err error) {
		var name Name
		var usage bool
		if err := row.Scan(&name.Schema, &name.Name, &usage); err != nil {
			return p, err
		}
		mend := "GRANT SELECT ON " + name.Quoted() + " TO the role of the source URL"
		if !usage {
			mend = "GRANT USAGE ON SCHEMA " + Quote(name.Schema) + " and SELECT ON " + name.Quoted() + " TO the role of the source URL"
		}
		return capture.Warn("partition "+name.String()+" of "+t.Name.String(), "the role may not read it, and the next load of the table stops there", mend), nil
	})
}

// fitLeaves looks at the partitions. The WAL holds the key that each leaf's own
// replica identity has, and it must be the root's.
func fitLeaves(ctx context.Context, conn Querier, mode millrace.Mode, t *Info, s *millrace.Schema) ([]capture.Problem, error) {
	leaves, err := Leaves(ctx, conn, t.ID)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, i := range s.KeyColumns() {
		names = append(names, s.Columns[i].Name)
	}
	slices.Sort(names)
	key := ""
	for i, name := range names {
		if i > 0 {
			key += ","
		}
		key += name
	}
	var problems []capture.Problem
	for _, l := range leaves {
		subject := "partition " + l.Name + " of " + t.Name.String()
		switch {
		case l.Kind != "r":
			problems = append(problems, capture.Refuse(capture.ErrTable, subject, "it is no plain table, "+unseenLeaf(mode), "ALTER TABLE "+t.Name.Quoted()+" DETACH PARTITION "+l.Name))
		case l.Persistence != "p":
			problems = append(problems, capture.Refuse(capture.ErrTable, subject, unlogged(mode), "ALTER TABLE "+l.Name+" SET LOGGED"))
		case mode == millrace.ModeWAL && l.Identity != "f" && l.Key != key:
			problems = append(problems, capture.Refuse(capture.ErrTable, subject, "its replica identity has columns ("+l.Key+"), the table's key has ("+key+")", "ALTER TABLE "+l.Name+" REPLICA IDENTITY DEFAULT, or USING INDEX over the key's columns"))
		}
	}
	return problems, nil
}

// coveredBy names the captured table that t is a partition of, if any.
func coveredBy(ctx context.Context, conn Querier, t *Info, all []*Info) (string, error) {
	rows, err := conn.Query(ctx, `
WITH RECURSIVE up (oid) AS (
    SELECT $1::bigint::oid
  UNION
    SELECT i.inhparent FROM up JOIN pg_inherits i ON i.inhrelid = up.oid
)
SELECT oid::bigint FROM up`, int64(t.ID))
	if err != nil {
		return "", fmt.Errorf("look up parents of %v: %w", t.Name, err)
	}
	parents, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return "", fmt.Errorf("look up parents of %v: %w", t.Name, err)
	}
	for _, other := range all {
		if other != t && slices.Contains(parents, int64(other.ID)) {
			return other.Name.String(), nil
		}
	}
	return "", nil
}
