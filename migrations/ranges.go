package migrations

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
)

// ranges are what is known of a table whose rows are compared. A range that was equal,
// and of which all keys took part, is equal at every later index up to the change that
// goes into it next: that is noted in the transaction that has the change. So a pass
// reads what is not known to be equal, and what was known before is carried forward. It
// holds as long as nobody else writes at the target and its table stays as it is.
type ranges struct {
	shape string // of the target's table
	// clean are known to be equal now, in ascending order; left are those that a pass
	// has not come to.
	clean, left []capture.KeyRange
	// touched are the lows of those that a change goes into in the transaction under
	// way; keys are the first keys that it changes, and many tells that there are more.
	touched [][]byte
	keys    []string
	many    bool
}

// maxKeys is how many keys are held of a transaction under way.
const maxKeys = 10_000

// touch takes note of a change of a key.
func (r *ranges) touch(key []byte) {
	i, exact := slices.BinarySearchFunc(r.clean, key, func(x capture.KeyRange, key []byte) int { return bytes.Compare(x.Low, key) })
	if !exact {
		i--
	}
	if i < 0 || !r.clean[i].Holds(key) {
		return
	}
	r.touched = append(r.touched, r.clean[i].Low)
	r.clean = slices.Delete(r.clean, i, i+1)
}

// touchAll takes note of a change of all rows.
func (r *ranges) touchAll() {
	for _, x := range r.clean {
		r.touched = append(r.touched, x.Low)
	}
	r.clean = nil
}

// compared takes note that a range was compared at the last commit. It is clean if
// nothing has gone into it behind that.
func (r *ranges) compared(x capture.KeyRange, clean bool) {
	clean = clean && !r.many && !slices.ContainsFunc(r.keys, func(key string) bool { return x.Holds([]byte(key)) })
	r.left = without(r.left, x)
	i, end := overlapping(r.clean, x)
	if clean {
		r.clean = slices.Replace(r.clean, i, end, x)
	} else {
		r.clean = slices.Delete(r.clean, i, end)
	}
}

// overlapping returns which of ranges, which are in ascending order, have keys of x.
func overlapping(all []capture.KeyRange, x capture.KeyRange) (first, end int) {
	first, _ = slices.BinarySearchFunc(all, x.Low, func(r capture.KeyRange, low []byte) int {
		if len(r.High) > 0 && bytes.Compare(r.High, low) <= 0 {
			return -1
		}
		return 1
	})
	for end = first; end < len(all) && (len(x.High) == 0 || bytes.Compare(all[end].Low, x.High) < 0); end++ {
	}
	return first, end
}

// without returns what is left of ranges, which are in ascending order, without one.
func without(all []capture.KeyRange, x capture.KeyRange) []capture.KeyRange {
	first, end := overlapping(all, x)
	if first == end {
		return all
	}
	var rest []capture.KeyRange
	if low := all[first].Low; bytes.Compare(low, x.Low) < 0 {
		rest = append(rest, capture.KeyRange{Low: low, High: x.Low})
	}
	if high := all[end-1].High; len(x.High) > 0 && (len(high) == 0 || bytes.Compare(x.High, high) < 0) {
		rest = append(rest, capture.KeyRange{Low: x.High, High: high})
	}
	if first == 0 && len(rest) == 0 {
		return all[end:]
	}
	return slices.Replace(all, first, end, rest...)
}

// between returns what ranges, which are in ascending order, leave of a table.
func between(all []capture.KeyRange) (left []capture.KeyRange) {
	var low []byte
	for _, x := range all {
		if bytes.Compare(low, x.Low) < 0 {
			left = append(left, capture.KeyRange{Low: low, High: x.Low})
		}
		if low = x.High; len(low) == 0 {
			return left
		}
	}
	return append(left, capture.KeyRange{Low: low})
}

// touch takes note of what is applied in the transaction under way.
func (c *certifier) touch(b *tableBatch) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range c.tables {
		if t.to != b.m.to || len(t.clean) == 0 && !c.begun {
			continue
		}
		if b.truncated {
			t.touchAll()
			t.many = true
		}
		for key := range b.rows {
			t.touch([]byte(key))
			if t.many = t.many || len(t.keys) == maxKeys; !t.many {
				t.keys = append(t.keys, key)
			}
		}
	}
}

// commit notes in the transaction of a batch, before it ends, which ranges it goes into.
func (c *certifier) commit(ctx context.Context, s *sink, at millrace.Index) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range c.tables {
		if len(t.touched) > 0 {
			if err := s.begin(ctx); err != nil {
				return err
			}
			if _, err := s.conn.Exec(ctx, "UPDATE millrace.migration_range SET touched = $4::text::numeric WHERE name = $1 AND table_name = $2 AND low = ANY ($3::bytea[]) AND touched IS NULL",
				c.m.cfg.Name, t.from.String(), t.touched, at.String()); err != nil {
				return fmt.Errorf("note which ranges of %v are changed: %w", t.from, err)
			}
		}
		t.touched, t.keys, t.many = t.touched[:0], t.keys[:0], false
	}
	return nil
}

// load reads which ranges are known to be equal, so that changes are noted in them.
func (c *certifier) load(ctx context.Context) error {
	for _, t := range c.tables {
		if err := c.look(ctx, t); err != nil {
			return err
		}
		all, err := c.list(ctx, t, clean)
		if err != nil {
			return err
		}
		t.clean = all
	}
	return nil
}

// clean is a condition for ranges that are known to be equal.
const clean = "touched IS NULL AND left_out = 0"

// list returns ranges that were equal, of these changes and of the table as it is.
func (c *certifier) list(ctx context.Context, t *certified, and string) ([]capture.KeyRange, error) {
	rows, err := c.conn.Query(ctx, `
SELECT r.low, r.high FROM millrace.migration_range r JOIN millrace.migration_place p ON p.name = r.name
WHERE r.name = $1 AND r.table_name = $2 AND r.since = p.converged_at AND r.shape = $3 AND r.equal AND `+and+` ORDER BY r.low`, c.m.cfg.Name, t.from.String(), t.shape)
	if err != nil {
		return nil, fmt.Errorf("read ranges of %v: %w", t.from, err)
	}
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (x capture.KeyRange, err error) {
		return x, row.Scan(&x.Low, &x.High)
	})
	if err != nil {
		return nil, fmt.Errorf("read ranges of %v: %w", t.from, err)
	}
	return all, nil
}

// look looks at the target's table: who alters it, or has its rows in another file, has
// done something to them that no change says.
func (c *certifier) look(ctx context.Context, t *certified) error {
	err := c.conn.QueryRow(ctx, strings.ReplaceAll(tree, "$1::bigint::oid", "to_regclass($1)::oid")+`
SELECT md5(string_agg(concat_ws(' ', c.oid, pg_relation_filenode(c.oid), pg_get_expr(c.relpartbound, c.oid),
           (SELECT string_agg(concat_ws(' ', a.attnum, a.attname, a.atttypid, a.atttypmod, a.attgenerated, CASE WHEN a.attgenerated <> '' THEN pg_get_expr(f.adbin, f.adrelid) END), ',' ORDER BY a.attnum)
            FROM pg_attribute a LEFT JOIN pg_attrdef f ON f.adrelid = a.attrelid AND f.adnum = a.attnum WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)), ';' ORDER BY c.oid))
FROM tree JOIN pg_class c ON c.oid = tree.oid`, t.to.Quoted()).Scan(&t.shape)
	if err != nil {
		return fmt.Errorf("look at %v: %w", t.to, err)
	}
	t.shape += " " + t.schema.Version.String() // and the source's
	return nil
}

// begin finds out what a pass has to read of a table: all but what is known to be equal,
// and what was compared for this pass before it was cut off. The rest is forgotten.
func (c *certifier) begin(ctx context.Context, t *certified) error {
	if err := c.look(ctx, t); err != nil {
		return err
	}
	args := []any{c.m.cfg.Name, t.from.String(), t.shape, c.wanted}
	if _, err := c.conn.Exec(ctx, `
DELETE FROM millrace.migration_range r USING millrace.migration_place p, millrace.migration_wanted w
WHERE r.name = $1 AND r.table_name = $2 AND p.name = $1 AND w.name = $1
  AND (r.since IS DISTINCT FROM p.converged_at OR r.shape <> $3 OR NOT r.equal OR r.counted <> $4 AND (w.whole OR NOT (`+clean+`)))`, args...); err != nil {
		return fmt.Errorf("forget ranges of %v: %w", t.from, err)
	}
	if _, err := c.conn.Exec(ctx, "UPDATE millrace.migration_range SET counted = $3 WHERE name = $1 AND table_name = $2 AND counted <> $3", c.m.cfg.Name, t.from.String(), c.wanted); err != nil {
		return fmt.Errorf("carry ranges of %v forward: %w", t.from, err)
	}
	known, err := c.list(ctx, t, "true")
	if err != nil {
		return err
	}
	equal, err := c.list(ctx, t, clean)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	t.clean, t.left = equal, between(known)
	for _, key := range t.keys {
		t.touch([]byte(key))
	}
	if t.many {
		t.touchAll()
	}
	return nil
}
