package wal

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
)

// tableInfo is what the source's catalogs say of a table at the moment of the
// look-up.
type tableInfo struct {
	id          millrace.TableID
	name        tableName
	kind        string // pg_class.relkind
	persistence string
	identity    string // pg_class.relreplident
	partition   bool
	inherits    bool // has parents or children in pg_inherits
	rowSecurity bool
	columns     []columnInfo
	indexes     []indexInfo
	// types describes every type that the columns use.
	types []millrace.TypeDesc
	// choice is which columns and rows are captured.
	choice choice
}

type columnInfo struct {
	number     int16
	name       string
	typ        uint32
	typmod     int32
	notNull    bool
	generated  bool
	hasMissing bool // rows written before the column have a value for it all the same
	collation  string
	loose      bool // the collation is nondeterministic
	outOfLine  bool // its values may be stored out of line
}

type indexInfo struct {
	name                              string
	primary, unique, immediate, valid bool
	identity, partial, hasExpression  bool
	columns                           []int16 // of the key, in its order
}

const tableQuery = `
SELECT c.oid::bigint, n.nspname::text, c.relname::text, c.relkind::text, c.relpersistence::text, c.relreplident::text,
       c.relispartition, c.relrowsecurity,
       EXISTS (SELECT FROM pg_inherits i WHERE c.oid IN (i.inhrelid, i.inhparent))
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE `

// tableByName returns nil if there is no such table.
func tableByName(ctx context.Context, conn *pgx.Conn, name tableName) (*tableInfo, error) {
	return lookUpTable(ctx, conn, nil, tableQuery+"n.nspname = $1 AND c.relname = $2", name.schema, name.name)
}

// tableByID returns nil if there is no such table. The types of the result also
// cover moreTypes.
func tableByID(ctx context.Context, conn *pgx.Conn, id millrace.TableID, moreTypes []uint32) (*tableInfo, error) {
	return lookUpTable(ctx, conn, moreTypes, tableQuery+"c.oid = $1::bigint::oid", int64(id))
}

func lookUpTable(ctx context.Context, conn *pgx.Conn, moreTypes []uint32, query string, args ...any) (*tableInfo, error) {
	var (
		t  tableInfo
		id int64
	)
	err := conn.QueryRow(ctx, query, args...).Scan(&id, &t.name.schema, &t.name.name, &t.kind, &t.persistence, &t.identity,
		&t.partition, &t.rowSecurity, &t.inherits)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look up table %v: %w", args, err)
	}
	t.id = millrace.TableID(id)
	if err := t.readColumns(ctx, conn); err != nil {
		return nil, fmt.Errorf("look up columns of %v: %w", t.name, err)
	}
	if err := t.readIndexes(ctx, conn); err != nil {
		return nil, fmt.Errorf("look up indexes of %v: %w", t.name, err)
	}
	types := slices.Clone(moreTypes)
	for _, c := range t.columns {
		types = append(types, c.typ)
	}
	if t.types, err = lookUpTypes(ctx, conn, types); err != nil {
		return nil, fmt.Errorf("look up types of %v: %w", t.name, err)
	}
	return &t, nil
}

func (t *tableInfo) readColumns(ctx context.Context, conn *pgx.Conn) error {
	rows, err := conn.Query(ctx, `
SELECT a.attnum, a.attname::text, a.atttypid::bigint, a.atttypmod, a.attnotnull, a.attgenerated <> '',
       -- A value that is stored, or that a rewrite has put into old rows.
       -- So may the default of a domain.
       a.atthasmissing OR a.atthasdef OR t.typdefault IS NOT NULL,
       coalesce(CASE WHEN n.nspname = 'pg_catalog' THEN l.collname::text ELSE n.nspname || '.' || l.collname END, ''),
       coalesce(NOT l.collisdeterministic, false), a.attstorage <> 'p'
FROM pg_attribute a
JOIN pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_collation l ON l.oid = a.attcollation
LEFT JOIN pg_namespace n ON n.oid = l.collnamespace
WHERE a.attrelid = $1::bigint::oid AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attnum`, int64(t.id))
	if err != nil {
		return err
	}
	t.columns, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (c columnInfo, err error) {
		var typ int64
		err = row.Scan(&c.number, &c.name, &typ, &c.typmod, &c.notNull, &c.generated, &c.hasMissing, &c.collation, &c.loose, &c.outOfLine)
		c.typ = uint32(typ)
		return c, err
	})
	return err
}

func (t *tableInfo) readIndexes(ctx context.Context, conn *pgx.Conn) error {
	rows, err := conn.Query(ctx, `
SELECT c.relname::text, i.indisprimary, i.indisunique, i.indimmediate, i.indisvalid, i.indisreplident,
       i.indpred IS NOT NULL, i.indexprs IS NOT NULL,
       array_to_string((i.indkey::int2[])[0:i.indnkeyatts - 1], ' ')
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
WHERE i.indrelid = $1::bigint::oid
ORDER BY c.relname`, int64(t.id))
	if err != nil {
		return err
	}
	t.indexes, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (i indexInfo, err error) {
		var columns string
		err = row.Scan(&i.name, &i.primary, &i.unique, &i.immediate, &i.valid, &i.identity, &i.partial, &i.hasExpression, &columns)
		if err != nil {
			return i, err
		}
		for _, text := range strings.Fields(columns) {
			n, err := strconv.ParseInt(text, 10, 16)
			if err != nil {
				return i, fmt.Errorf("read columns of index %s: %w", i.name, err)
			}
			i.columns = append(i.columns, int16(n))
		}
		return i, nil
	})
	return err
}

// typesQuery describes the given types and all that they are made of. An array
// is told as Postgres itself tells it, by its subscript handler.
const typesQuery = `
WITH RECURSIVE need (oid) AS (
    SELECT unnest($1::bigint[])::oid
  UNION
    SELECT r.oid
    FROM need
    JOIN pg_type t ON t.oid = need.oid
    CROSS JOIN LATERAL (
        SELECT t.typbasetype WHERE t.typtype = 'd'
      UNION ALL
        SELECT t.typelem WHERE t.typelem <> 0 AND t.typsubscript = 'array_subscript_handler'::regproc
      UNION ALL
        SELECT rngsubtype FROM pg_range WHERE rngtypid = t.oid
      UNION ALL
        SELECT rngtypid FROM pg_range WHERE rngmultitypid = t.oid
      UNION ALL
        SELECT atttypid FROM pg_attribute WHERE attrelid = t.typrelid AND t.typtype = 'c' AND attnum > 0 AND NOT attisdropped
    ) r (oid)
)
SELECT t.oid::bigint, n.nspname::text, t.typname::text, t.typtype::text, t.typdelim::text,
       t.typelem <> 0 AND t.typsubscript = 'array_subscript_handler'::regproc,
       coalesce(CASE t.typtype
                WHEN 'd' THEN t.typbasetype
                WHEN 'r' THEN (SELECT rngsubtype FROM pg_range WHERE rngtypid = t.oid)
                WHEN 'm' THEN (SELECT rngtypid FROM pg_range WHERE rngmultitypid = t.oid)
                ELSE t.typelem END, 0)::bigint,
       ARRAY(SELECT enumlabel::text FROM pg_enum WHERE enumtypid = t.oid ORDER BY enumsortorder),
       ARRAY(SELECT attname::text FROM pg_attribute WHERE attrelid = t.typrelid AND t.typtype = 'c' AND attnum > 0 AND NOT attisdropped ORDER BY attnum),
       ARRAY(SELECT atttypid::bigint FROM pg_attribute WHERE attrelid = t.typrelid AND t.typtype = 'c' AND attnum > 0 AND NOT attisdropped ORDER BY attnum)
FROM need
JOIN pg_type t ON t.oid = need.oid
JOIN pg_namespace n ON n.oid = t.typnamespace
ORDER BY t.oid`

// lookUpTypes returns descriptors in ascending order of OID. A type that is no
// longer in the catalog is left out.
func lookUpTypes(ctx context.Context, conn *pgx.Conn, oids []uint32) ([]millrace.TypeDesc, error) {
	want := make([]int64, 0, len(oids))
	for _, oid := range oids {
		want = append(want, int64(oid))
	}
	rows, err := conn.Query(ctx, typesQuery, want)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (t millrace.TypeDesc, err error) {
		var (
			oid, elem   int64
			kind, delim string
			array       bool
			labels      []string
			names       []string
			types       []int64
		)
		if err = row.Scan(&oid, &t.Schema, &t.Name, &kind, &delim, &array, &elem, &labels, &names, &types); err != nil {
			return t, err
		}
		t.OID = uint32(oid)
		if delim != "" && delim != "," {
			t.Delim = delim[0]
		}
		switch {
		case kind == "d":
			t.Kind, t.Elem = millrace.TypeDomain, uint32(elem)
		case kind == "e":
			t.Kind, t.Labels = millrace.TypeEnum, labels
		case kind == "c":
			t.Kind = millrace.TypeComposite
			for i := range names {
				t.Attributes = append(t.Attributes, millrace.Attribute{Name: names[i], Type: uint32(types[i])})
			}
		case kind == "r":
			t.Kind, t.Elem = millrace.TypeRange, uint32(elem)
		case kind == "m":
			t.Kind, t.Elem = millrace.TypeMultirange, uint32(elem)
		case array:
			t.Kind, t.Elem = millrace.TypeArray, uint32(elem)
		default:
			t.Kind = millrace.TypeBase
		}
		return t, nil
	})
}

// leafInfo is a partition that holds rows.
type leafInfo struct {
	name, kind, persistence, identity string
	key                               string // names of the columns of its replica identity, sorted
}

func lookUpLeaves(ctx context.Context, conn *pgx.Conn, root millrace.TableID) ([]leafInfo, error) {
	rows, err := conn.Query(ctx, `
WITH RECURSIVE tree (oid) AS (
    SELECT $1::bigint::oid
  UNION
    SELECT i.inhrelid FROM tree JOIN pg_inherits i ON i.inhparent = tree.oid
)
SELECT c.oid::regclass::text, c.relkind::text, c.relpersistence::text, c.relreplident::text,
       coalesce((SELECT string_agg(a.attname, ',' ORDER BY a.attname)
                 FROM pg_index i
                 JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])
                 WHERE i.indrelid = c.oid AND i.indisvalid AND i.indimmediate
                   AND (c.relreplident = 'd' AND i.indisprimary OR c.relreplident = 'i' AND i.indisreplident)), '')
FROM tree JOIN pg_class c ON c.oid = tree.oid
WHERE c.relkind <> 'p'
ORDER BY 1`, int64(root))
	if err != nil {
		return nil, fmt.Errorf("look up partitions: %w", err)
	}
	leaves, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (l leafInfo, err error) {
		return l, row.Scan(&l.name, &l.kind, &l.persistence, &l.identity, &l.key)
	})
	if err != nil {
		return nil, fmt.Errorf("look up partitions: %w", err)
	}
	return leaves, nil
}
