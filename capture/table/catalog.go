package table

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

// Querier is what look-ups need of a connection or a transaction.
type Querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// Info is what the source's catalogs say of a table at the moment of the
// look-up.
type Info struct {
	ID          millrace.TableID
	Name        Name
	Kind        string // pg_class.relkind
	Persistence string // pg_class.relpersistence
	Identity    string // pg_class.relreplident
	Partition   bool
	Inherits    bool // has parents or children in pg_inherits
	RowSecurity bool
	Columns     []Column // that are not dropped, by number
	Indexes     []Index  // by name
	// Types describes every type that the columns use.
	Types []millrace.TypeDesc
	// Choice is which columns and rows are captured. The look-up leaves it at
	// all of them.
	Choice Choice
	// Logged are the columns of the key that triggers write, in its order, or
	// none; also left to the caller. (Of a capture by triggers alone.)
	Logged []string
}

// Column is a column of a table.
type Column struct {
	Number           int16 // pg_attribute.attnum
	Name             string
	Type             uint32
	Typmod           int32
	NotNull          bool
	Generated        bool
	HasMissing       bool // rows written before the column have a value for it all the same
	Collation        string
	Nondeterministic bool // the collation is
	OutOfLine        bool // its values may be stored out of line
}

// Index is an index of a table.
type Index struct {
	Name string
	// OID grows with the time at which indexes are made, until it wraps around.
	OID                               uint32
	Primary, Unique, Immediate, Valid bool
	Identity, Partial, HasExpression  bool
	Columns                           []int16 // of the key, in its order
}

const tableQuery = `
SELECT c.oid::bigint, n.nspname::text, c.relname::text, c.relkind::text, c.relpersistence::text, c.relreplident::text,
       c.relispartition, c.relrowsecurity,
       EXISTS (SELECT FROM pg_inherits i WHERE c.oid IN (i.inhrelid, i.inhparent))
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE `

// ByName looks a table up; it returns nil if there is no such table.
func ByName(ctx context.Context, conn Querier, name Name) (*Info, error) {
	return lookUp(ctx, conn, nil, tableQuery+"n.nspname = $1 AND c.relname = $2", name.Schema, name.Name)
}

// ByID looks a table up; it returns nil if there is no such table. The types of the result also
// cover moreTypes.
func ByID(ctx context.Context, conn Querier, id millrace.TableID, moreTypes []uint32) (*Info, error) {
	return lookUp(ctx, conn, moreTypes, tableQuery+"c.oid = $1::bigint::oid", int64(id))
}

func lookUp(ctx context.Context, conn Querier, moreTypes []uint32, query string, args ...any) (*Info, error) {
	var (
		t  Info
		id int64
	)
	err := conn.QueryRow(ctx, query, args...).Scan(&id, &t.Name.Schema, &t.Name.Name, &t.Kind, &t.Persistence, &t.Identity,
		&t.Partition, &t.RowSecurity, &t.Inherits)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look up table %v: %w", args, err)
	}
	t.ID = millrace.TableID(id)
	if err := t.readColumns(ctx, conn); err != nil {
		return nil, fmt.Errorf("look up columns of %v: %w", t.Name, err)
	}
	if err := t.readIndexes(ctx, conn); err != nil {
		return nil, fmt.Errorf("look up indexes of %v: %w", t.Name, err)
	}
	types := slices.Clone(moreTypes)
	for _, c := range t.Columns {
		types = append(types, c.Type)
	}
	if t.Types, err = lookUpTypes(ctx, conn, types); err != nil {
		return nil, fmt.Errorf("look up types of %v: %w", t.Name, err)
	}
	return &t, nil
}

func (t *Info) readColumns(ctx context.Context, conn Querier) error {
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
ORDER BY a.attnum`, int64(t.ID))
	if err != nil {
		return err
	}
	t.Columns, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (c Column, err error) {
		var typ int64
		err = row.Scan(&c.Number, &c.Name, &typ, &c.Typmod, &c.NotNull, &c.Generated, &c.HasMissing, &c.Collation, &c.Nondeterministic, &c.OutOfLine)
		c.Type = uint32(typ)
		return c, err
	})
	return err
}

func (t *Info) readIndexes(ctx context.Context, conn Querier) error {
	rows, err := conn.Query(ctx, `
SELECT c.relname::text, c.oid::bigint, i.indisprimary, i.indisunique, i.indimmediate, i.indisvalid, i.indisreplident,
       i.indpred IS NOT NULL, i.indexprs IS NOT NULL,
       array_to_string((i.indkey::int2[])[0:i.indnkeyatts - 1], ' ')
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
WHERE i.indrelid = $1::bigint::oid
ORDER BY c.relname`, int64(t.ID))
	if err != nil {
		return err
	}
	t.Indexes, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (i Index, err error) {
		var (
			oid     int64
			columns string
		)
		err = row.Scan(&i.Name, &oid, &i.Primary, &i.Unique, &i.Immediate, &i.Valid, &i.Identity, &i.Partial, &i.HasExpression, &columns)
		if err != nil {
			return i, err
		}
		i.OID = uint32(oid)
		for _, text := range strings.Fields(columns) {
			n, err := strconv.ParseInt(text, 10, 16)
			if err != nil {
				return i, fmt.Errorf("read columns of index %s: %w", i.Name, err)
			}
			i.Columns = append(i.Columns, int16(n))
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
func lookUpTypes(ctx context.Context, conn Querier, oids []uint32) ([]millrace.TypeDesc, error) {
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

// Leaf is a partition that holds rows.
type Leaf struct {
	Name        string // as SQL writes it
	Kind        string // pg_class.relkind
	Persistence string // pg_class.relpersistence
	Identity    string // pg_class.relreplident
	Key         string // names of the columns of its replica identity, sorted, with commas between
}

// Leaves looks up the partitions of a table that hold rows, at any depth, by name;
// of a plain table it returns the table itself.
func Leaves(ctx context.Context, conn Querier, root millrace.TableID) ([]Leaf, error) {
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
	leaves, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (l Leaf, err error) {
		return l, row.Scan(&l.Name, &l.Kind, &l.Persistence, &l.Identity, &l.Key)
	})
	if err != nil {
		return nil, fmt.Errorf("look up partitions: %w", err)
	}
	return leaves, nil
}
