package trigger

import (
	"context"
	"fmt"
	"strconv"
)

// manyKeys is how many keys a table's rows are always looked up by index for.
const manyKeys = 10_000

// What lets the server read a table from end to end, and forbids it again. Left
// alone it takes every window for a small one, because a log has no statistics.
const (
	scanOn  = "SET LOCAL enable_seqscan = on; SET LOCAL enable_nestloop = off; SET LOCAL enable_mergejoin = off"
	scanOff = "SET LOCAL enable_seqscan = off; SET LOCAL enable_nestloop = on; SET LOCAL enable_mergejoin = on"
)

// worthScan reports whether so many keys cost more, looked up one by one, than
// reading so many blocks: a look-up costs about half of what a block of rows does.
func worthScan(keys, blocks uint64) bool { return keys >= manyKeys && keys >= 2*blocks }

// choosePlans chooses how the rows of each table are read.
func (w *window) choosePlans(ctx context.Context) error {
	for i := range w.news {
		n := &w.news[i]
		if n.keys < manyKeys {
			continue
		}
		var blocks uint64
		err := ask(ctx, w.conn.PgConn(), fmt.Sprintf(`WITH RECURSIVE tree (oid) AS (SELECT %d::oid UNION SELECT i.inhrelid FROM tree JOIN pg_inherits i ON i.inhparent = tree.oid)
SELECT coalesce(sum(pg_relation_size(oid) / current_setting('block_size')::bigint), 0)::bigint FROM tree`, n.t.id), func(row [][]byte) (err error) {
			blocks, err = strconv.ParseUint(string(row[0]), 10, 64)
			return err
		})
		if err != nil {
			return fmt.Errorf("measure table %v: %w", n.t.name, err)
		}
		n.scan = worthScan(n.keys, blocks)
	}
	return nil
}
