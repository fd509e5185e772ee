package trigger

import (
	"context"
	"fmt"
	"strconv"

	"github.com/millrace-db/millrace"
)

// A transaction that has locked a captured table against everybody, after TRUNCATE or
// ALTER TABLE, keeps its rows from being read for as long as it is open. Windows go on
// without that table: they neither lock it nor read from it, and its log says whether
// that is right. What the transaction does itself no snapshot sees before it has ended;
// so a table that has no news does not have to be read. One that has some, from before
// the lock and not yet read, holds the windows up, because a snapshot stands for all
// tables.

// apartQuery asks which tables are locked against everybody, or are asked to be: who
// wants to read them queues behind that. A lock on a partition counts for its root.
func apartQuery(tables []*captured) string {
	return `
WITH RECURSIVE tree (root, oid) AS (
    SELECT oid, oid FROM unnest('{` + idList(tables) + `}'::oid[]) oid
  UNION
    SELECT tree.root, i.inhrelid FROM tree JOIN pg_inherits i ON i.inhparent = tree.oid
)
SELECT DISTINCT tree.root::bigint
FROM tree JOIN pg_locks l ON l.relation = tree.oid
WHERE l.locktype = 'relation' AND l.mode = 'AccessExclusiveLock' AND l.pid <> pg_backend_pid()
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())`
}

// setApart says which tables the next window goes on without. It asks only after a
// window could not be had, and until none is.
func (s *Source) setApart(ctx context.Context) error {
	if !s.heldUp && len(s.apart) == 0 {
		return nil
	}
	s.heldUp = false
	apart := make(map[millrace.TableID]bool)
	err := ask(ctx, s.conn.PgConn(), apartQuery(s.tables), func(row [][]byte) error {
		oid, err := strconv.ParseUint(string(row[0]), 10, 32)
		apart[millrace.TableID(oid)] = true
		return err
	})
	if err != nil {
		return fmt.Errorf("look for locks: %w", err)
	}
	for _, t := range s.tables {
		if apart[t.id] != s.apart[t.id] {
			s.c.log.Info("table is locked against everybody: windows go on without it while nothing is new there", "table", t.name.String(), "locked", apart[t.id])
		}
	}
	s.apart = apart
	return nil
}
