package trigger

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"

	"github.com/millrace-db/millrace/capture/table"
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

// rewritten is the reason of differs that noted DDL may take back.
const rewritten = "it was rewritten, or a partition of it was truncated"

// excusable reports whether what happened between two marks, of which differs says
// rewritten, may be found among the DDL that was noted in between: all of it was, and
// TRUNCATE, which is not noted, would have been logged.
func (m *marks) excusable(before *marks) bool {
	return m.Plain && before.Plain && m.Noting != "" && m.Noting == before.Noting
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
		return "a partition came or went"
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
