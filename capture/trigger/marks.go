package trigger

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture/table"
	"github.com/millrace-db/millrace/capture/trigger/keylog"
)

// marks are what a captured table looks like in a snapshot, so far as its rows can
// come or go without being logged. They stand in the tick of each window, so that
// the next one can be compared with it, also by another process.
type marks struct {
	// Leaves tells the partitions that hold rows, each with the act by which it
	// became one: detached and attached again, it is another.
	Leaves string `json:"leaves"`
	// Files tells the files that their rows are in, which TRUNCATE and rewrites
	// replace.
	Files string `json:"files"`
	// Generated are the numbers of generated columns, which are left out.
	Generated []int16 `json:"generated,omitempty"`
	// Choice tells which columns and rows are captured, or is empty for all.
	Choice string `json:"choice,omitempty"`
	// Noting identifies the event triggers that note DDL, or is empty where there are
	// none; Plain tells a table without partitions.
	Noting string `json:"noting,omitempty"`
	Plain  bool   `json:"plain,omitempty"`
}

// The reasons of differs that noted DDL may take back.
const (
	rewritten   = "it was rewritten, or a partition of it was truncated"
	partitioned = "a partition came or went"
)

// excused takes a reason of differs back where the DDL that was noted between the two
// marks shows that no row came or went. kept tells that all partitions that there were
// are there with their files.
//
// VACUUM FULL and CLUSTER are not noted, and keep the rows; of a plain table TRUNCATE,
// which is not noted either, would have been logged. A partition that was created as one
// was empty then.
func (m *marks) excused(before *marks, reason string, kept bool, events []keylog.Event) bool {
	if before == nil || m.Noting == "" || m.Noting != before.Noting {
		return false
	}
	switch {
	case reason == rewritten && m.Plain && before.Plain:
		return !slices.ContainsFunc(events, func(e keylog.Event) bool { return e.Rewritten })
	case reason == partitioned && kept:
		return len(events) > 0 && !slices.ContainsFunc(events, func(e keylog.Event) bool { return e.Tag != "CREATE TABLE" })
	}
	return false
}

// differs says why a table that looked like before is to be loaded again, or "".
// truncated tells that a TRUNCATE of it was logged in between: every row that is in
// the files by now was written after that, and is logged.
func (m *marks) differs(before *marks, truncated bool) string {
	switch {
	case before == nil:
		return "what it looked like before is not known"
	case before.Choice != m.Choice:
		return "other columns or rows of it were chosen"
	case before.Leaves != m.Leaves:
		return partitioned
	case before.Files != m.Files && !truncated:
		return rewritten
	}
	for _, n := range before.Generated {
		if !slices.Contains(m.Generated, n) {
			return "a column that was generated is not any more"
		}
	}
	return ""
}

// choiceMark tells one choice from another.
func choiceMark(c *table.Choice) string {
	if c.IsAll() {
		return ""
	}
	columns := slices.Sorted(slices.Values(c.Columns))
	sum := sha256.Sum256([]byte(strings.Join(columns, "\x00") + "\x01" + c.Where))
	return hex.EncodeToString(sum[:8])
}

// excused asks what marks.excused needs.
func (s *Source) excused(ctx context.Context, w *window, t *captured, a *aspect, reason string) (bool, error) {
	events, err := keylog.Events(ctx, w.conn, t.id, s.before.String())
	if err != nil {
		return false, err
	}
	kept := t.heaps != nil
	if kept && reason == partitioned {
		now, err := heapsOf(ctx, w.conn.PgConn(), t.id)
		if err != nil {
			return false, err
		}
		for id, file := range t.heaps {
			kept = kept && now[id] == file
		}
	}
	return a.marks.excused(t.marks, reason, kept, events), nil
}

// lookAtHeaps keeps the partitions of a table in mind as the window has them, unless
// they are as they were.
func (t *captured) lookAtHeaps(ctx context.Context, conn *pgx.Conn, now *marks) (err error) {
	if now.Plain || t.heaps != nil && t.marks != nil && t.marks.Leaves == now.Leaves && t.marks.Files == now.Files {
		return nil
	}
	t.heaps, err = heapsOf(ctx, conn.PgConn(), t.id)
	return err
}

// heapsOf returns the files of a table's partitions that hold rows, by their OIDs.
func heapsOf(ctx context.Context, conn *pgconn.PgConn, id millrace.TableID) (map[string]string, error) {
	all := make(map[string]string)
	err := ask(ctx, conn, fmt.Sprintf(`WITH RECURSIVE tree (oid) AS (SELECT %d::oid UNION SELECT i.inhrelid FROM tree JOIN pg_inherits i ON i.inhparent = tree.oid)
SELECT c.oid, c.relfilenode FROM tree JOIN pg_class c ON c.oid = tree.oid WHERE c.relkind NOT IN ('p', 'I')`, id), func(row [][]byte) error {
		all[string(row[0])] = string(row[1])
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look at the partitions of table %v: %w", id, err)
	}
	return all, nil
}
