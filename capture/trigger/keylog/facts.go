package keylog

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Querier is what a connection, a transaction and a pool have in common.
type Querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// facts is what a log is made from.
type facts struct {
	table      Table
	kind       string // pg_class.relkind
	owner      string
	partition  bool
	inherits   bool // has parents or children
	subscribed bool // a subscription writes it, or a partition of it
	keyTypes   []keyType
	partitions []string // quoted, of all levels
}

// mode chooses how the triggers are called: by statement wherever they then see
// every change.
func (f *facts) mode() Mode {
	if f.kind == "p" || f.partition || f.subscribed {
		return Row
	}
	return Statement
}

const factsQuery = `
WITH RECURSIVE tree (oid) AS (
    SELECT $1::bigint::oid
  UNION
    SELECT i.inhrelid FROM tree JOIN pg_inherits i ON i.inhparent = tree.oid
)
SELECT n.nspname::text, c.relname::text, c.relkind::text, pg_get_userbyid(c.relowner)::text, c.relispartition,
       EXISTS (SELECT FROM pg_inherits i WHERE c.oid IN (i.inhrelid, i.inhparent)),
       EXISTS (SELECT FROM pg_subscription_rel s JOIN tree ON tree.oid = s.srrelid),
       ARRAY(SELECT format('%I.%I', pn.nspname, p.relname)
             FROM tree JOIN pg_class p ON p.oid = tree.oid JOIN pg_namespace pn ON pn.oid = p.relnamespace
             WHERE p.oid <> c.oid ORDER BY p.oid)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.oid = $1::bigint::oid`

// keyType is the type of a key column in a log.
type keyType struct {
	Name    string // as SQL writes it
	Collate string // its COLLATE clause, "" for none
}

// keyTypesQuery gives the types of a log's columns: those of the key, but of a
// domain what is under it, because its constraints may refuse the NULLs of a
// TRUNCATE, and without lengths.
const keyTypesQuery = `
SELECT format_type(base.oid, -1), coalesce(' COLLATE ' || quote_ident(cn.nspname) || '.' || quote_ident(l.collname), '')
FROM unnest($2::text[]) WITH ORDINALITY k (name, number)
JOIN pg_attribute a ON a.attrelid = $1::bigint::oid AND a.attname = k.name AND a.attnum > 0 AND NOT a.attisdropped
CROSS JOIN LATERAL (
    WITH RECURSIVE under (oid, kind, base) AS (
        SELECT t.oid, t.typtype, t.typbasetype FROM pg_type t WHERE t.oid = a.atttypid
      UNION
        SELECT t.oid, t.typtype, t.typbasetype FROM under JOIN pg_type t ON t.oid = under.base WHERE under.kind = 'd'
    )
    SELECT oid FROM under WHERE kind <> 'd'
) base
LEFT JOIN pg_collation l ON l.oid = a.attcollation
LEFT JOIN pg_namespace cn ON cn.oid = l.collnamespace
ORDER BY k.number`

// lookUp returns the facts of a table, as of now. The transaction's search_path
// has to be pg_catalog alone.
func lookUp(ctx context.Context, q Querier, t *Table) (*facts, error) {
	f := facts{table: Table{ID: t.ID, Key: t.Key}}
	err := q.QueryRow(ctx, factsQuery, int64(t.ID)).
		Scan(&f.table.Schema, &f.table.Name, &f.kind, &f.owner, &f.partition, &f.inherits, &f.subscribed, &f.partitions)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, fmt.Errorf("%w: table %v (%d) is gone; mend: correct the configuration, then millrace init", ErrRefused, t, t.ID)
	}
	if err != nil {
		return nil, fmt.Errorf("look up table %v: %w", t, err)
	}
	switch {
	case f.kind != "r" && f.kind != "p":
		return nil, fmt.Errorf("%w: %v is no table; mend: capture the tables under it", ErrRefused, t)
	case f.kind == "r" && f.inherits && !f.partition:
		return nil, fmt.Errorf("%w: table %v takes part in plain inheritance, so its rows are spread over several tables; mend: make it a partitioned table", ErrRefused, t)
	case len(t.Key) == 0:
		return nil, fmt.Errorf("%w: table %v has no key; mend: ALTER TABLE %s ADD PRIMARY KEY (…)", ErrRefused, t, f.table.quoted())
	}
	rows, err := q.Query(ctx, keyTypesQuery, int64(t.ID), t.Key)
	if err != nil {
		return nil, fmt.Errorf("look up the key of %v: %w", t, err)
	}
	f.keyTypes, err = pgx.CollectRows(rows, pgx.RowToStructByPos[keyType])
	if err != nil {
		return nil, fmt.Errorf("look up the key of %v: %w", t, err)
	}
	if len(f.keyTypes) != len(t.Key) {
		return nil, fmt.Errorf("%w: table %v no longer has all columns of its key (%s); mend: millrace init once more", ErrRefused, t, strings.Join(t.Key, ", "))
	}
	return &f, nil
}
