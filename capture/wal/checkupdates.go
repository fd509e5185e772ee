package wal

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/capture/table"
)

// gencolsVersion is the version from which a server refuses to update and delete
// rows of a published table whose replica identity has generated columns that are
// not published. REPLICA IDENTITY FULL has all columns.
const gencolsVersion = 180000

// checkUpdates refuses tables that the server would let nobody update or delete
// from once they are published: it is the client's statement that would fail. It
// is asked before a table is published; afterwards it would help nobody.
func checkUpdates(ctx context.Context, conn *pgx.Conn, server *serverInfo, tables []*table.Info) ([]capture.Problem, error) {
	if server.version < gencolsVersion {
		return nil, nil
	}
	var problems []capture.Problem
	for _, t := range tables {
		rows, err := conn.Query(ctx, `
WITH RECURSIVE tree (oid) AS (
    SELECT $1::bigint::oid
  UNION
    SELECT i.inhrelid FROM tree JOIN pg_inherits i ON i.inhparent = tree.oid
)
SELECT c.oid::regclass::text, (SELECT min(a.attname)::text FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attgenerated <> '' AND NOT a.attisdropped)
FROM tree JOIN pg_class c ON c.oid = tree.oid
WHERE c.relkind = 'r' AND c.relreplident = 'f'
  AND EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attgenerated <> '' AND NOT a.attisdropped)
ORDER BY 1`, int64(t.ID))
		if err != nil {
			return nil, fmt.Errorf("look up replica identities of %v: %w", t.Name, err)
		}
		var name, column string
		if _, err := pgx.ForEachRow(rows, []any{&name, &column}, func() error {
			problems = append(problems, capture.Refuse(capture.ErrTable, "table "+name,
				"its replica identity is FULL and column "+column+" is generated: once the table is published, this server refuses every UPDATE and DELETE of it",
				"ALTER TABLE "+name+" REPLICA IDENTITY DEFAULT, or USING INDEX over columns that are not generated"))
			return nil
		}); err != nil {
			return nil, fmt.Errorf("look up replica identities of %v: %w", t.Name, err)
		}
	}
	return problems, nil
}
