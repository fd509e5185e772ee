package trigger

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/capture/table"
	"github.com/millrace-db/millrace/capture/trigger/keylog"
)

// aspect is what a snapshot's catalogs say of a captured table.
type aspect struct {
	name  table.Name
	shape string
	marks marks
	log   *keylog.Log // nil for none
}

// userTypes is the first OID that a type of a user can have.
const userTypes = 16384

// aspectsQuery looks at tables, cheaply enough to be asked in every window. The
// shape changes whenever something changes that the schema is made of: every
// change of a catalog's row makes another of it, whose xmin is that of the
// transaction. It may change without that.
//
// The files are read from the catalog, as the snapshot has it, and not by the
// functions that tell how it is right now.
func aspectsQuery(tables []*captured) string {
	ids := idList(tables)
	var types []string
	for _, t := range tables {
		if t.schema == nil {
			continue
		}
		for i := range t.schema.Types {
			if oid := t.schema.Types[i].OID; oid >= userTypes {
				types = append(types, strconv.FormatUint(uint64(oid), 10))
			}
		}
	}
	slices.Sort(types)
	typeList := "'{" + strings.Join(slices.Compact(types), ",") + "}'::oid[]"
	return `
WITH RECURSIVE tree (root, oid, since) AS (
    SELECT oid, oid, '' FROM unnest('{` + ids + `}'::oid[]) oid
  UNION
    SELECT tree.root, i.inhrelid, tree.since || i.xmin::text || ' '
    FROM tree JOIN pg_inherits i ON i.inhparent = tree.oid
), heaps AS (
    SELECT tree.root, md5(string_agg(concat_ws(' ', c.oid, tree.since), ',' ORDER BY c.oid)) AS leaves,
           md5(string_agg(concat_ws(' ', c.oid, c.relfilenode), ',' ORDER BY c.oid)) AS files
    FROM tree JOIN pg_class c ON c.oid = tree.oid
    WHERE c.relkind NOT IN ('p', 'I')
    GROUP BY tree.root
)
SELECT c.oid::bigint, n.nspname::text, c.relname::text,
       md5(concat_ws(' ', c.xmin,
           (SELECT string_agg(concat_ws(' ', a.attnum, a.xmin), ',' ORDER BY a.attnum) FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0),
           (SELECT string_agg(concat_ws(' ', i.indexrelid, i.xmin), ',' ORDER BY i.indexrelid) FROM pg_index i WHERE i.indrelid = c.oid),
           (SELECT string_agg(concat_ws(' ', y.oid, y.xmin,
                (SELECT string_agg(concat_ws(' ', e.oid, e.xmin), ',' ORDER BY e.oid) FROM pg_enum e WHERE e.enumtypid = y.oid),
                (SELECT string_agg(concat_ws(' ', a.attnum, a.xmin), ',' ORDER BY a.attnum) FROM pg_attribute a WHERE y.typtype = 'c' AND a.attrelid = y.typrelid)
                ), ';' ORDER BY y.oid)
            FROM pg_type y WHERE y.oid = ANY (` + typeList + `)))),
       coalesce(h.leaves, ''), coalesce(h.files, ''),
       ARRAY(SELECT a.attnum FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated <> '' ORDER BY a.attnum)::text,
       c.relkind = 'r',
       (` + keylog.EventTriggersQuery + `)
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN heaps h ON h.root = c.oid
WHERE c.oid = ANY ('{` + ids + `}'::oid[])`
}

// idList lists the OIDs of tables, as within an array's braces.
func idList(tables []*captured) string {
	var ids []string
	for _, t := range tables {
		ids = append(ids, strconv.FormatUint(uint64(t.id), 10))
	}
	return strings.Join(ids, ",")
}

// parseAspect reads a row of aspectsQuery.
func parseAspect(row [][]byte) (id millrace.TableID, a *aspect, err error) {
	oid, err := strconv.ParseUint(string(row[0]), 10, 32)
	if err != nil {
		return 0, nil, fmt.Errorf("look at tables: %w", err)
	}
	a = &aspect{name: table.Name{Schema: string(row[1]), Name: string(row[2])}, shape: string(row[3])}
	a.marks.Leaves, a.marks.Files, a.marks.Plain, a.marks.Noting = string(row[4]), string(row[5]), string(row[7]) == "t", string(row[8])
	for text := range strings.FieldsFuncSeq(string(row[6]), func(c rune) bool { return c < '0' || c > '9' }) {
		n, err := strconv.ParseInt(text, 10, 16)
		if err != nil {
			return 0, nil, fmt.Errorf("look at generated columns: %w", err)
		}
		a.marks.Generated = append(a.marks.Generated, int16(n))
	}
	return millrace.TableID(oid), a, nil
}

// lookUp looks a captured table up. It returns nil if there is no such table.
func lookUp(ctx context.Context, conn table.Querier, t *captured) (*table.Info, error) {
	info, err := table.ByID(ctx, conn, t.id, nil)
	if info != nil {
		info.Choice, info.Logged = t.choice, t.log.key
	}
	return info, err
}

// shapeStep is what has become of a table's schema.
type shapeStep struct {
	schema *millrace.Schema // the new one, or nil if it is the same
	reason string           // to load the table again, or ""
}

// reshape compares the schema that the stream has of a table with its catalogs.
func (t *captured) reshape(ctx context.Context, conn table.Querier) (shapeStep, error) {
	var step shapeStep
	info, err := lookUp(ctx, conn, t)
	if err != nil {
		return step, err
	}
	if info == nil {
		return step, goneError(t)
	}
	if info.Kind == "r" && info.Persistence != "p" {
		return step, fmt.Errorf("%w: %v has become unlogged, so a crash of the server empties it without a trace; mend: ALTER TABLE %s SET LOGGED", capture.ErrTable, t.name, t.name.Quoted())
	}
	s, err := info.Schema(millrace.ModeTrigger)
	if err != nil {
		return step, err
	}
	s.Version = t.schema.Version
	if t.schema.SameAs(s) {
		return step, nil
	}
	st := table.Compare(t.schema, s, info.Missing())
	if st.Key != "" {
		return step, fmt.Errorf("%w: %v: %s; mend: %s, or begin a new epoch", capture.ErrKeyChanged, t.name, st.Key, capture.CopyAgain)
	}
	return shapeStep{schema: s, reason: st.Rows}, t.fitsLog(s)
}

func goneError(t *captured) error {
	return fmt.Errorf("%w: %v was dropped at the source; mend: take it out of source.tables, run millrace init and start transfer again", capture.ErrTables, t.name)
}
