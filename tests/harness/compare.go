package harness

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/zeebo/xxh3"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/pgtest"
	"github.com/millrace-db/millrace/internal/rowjson"
)

// Rows holds a hash of each row of a table by the JSON of its key columns, and
// the row itself where rows are sparse: those are of small tables.
type Rows map[string]rowHash

type rowHash struct {
	hash xxh3.Uint128
	text string
}

// add enters a row given as JSON: its columns in any order and spacing, its
// numbers as they were written. sparse leaves out columns that are null.
func (r Rows) add(text []byte, key []string, sparse bool) error {
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.UseNumber()
	var row map[string]any
	if err := dec.Decode(&row); err != nil {
		return fmt.Errorf("read row %q: %w", text, err)
	}
	values := make([]any, len(key))
	for i, name := range key {
		v, ok := row[name]
		if !ok {
			return fmt.Errorf("row %s has no key column %s", text, name)
		}
		values[i] = v
	}
	id, err := json.Marshal(values)
	if err != nil {
		return err
	}
	if sparse {
		maps.DeleteFunc(row, func(_ string, v any) bool { return v == nil })
	}
	whole, err := json.Marshal(row) // sorts the columns
	if err != nil {
		return err
	}
	if _, ok := r[string(id)]; ok {
		return fmt.Errorf("row %s comes twice", id)
	}
	one := rowHash{hash: xxh3.Hash128(whole)}
	if sparse {
		one.text = string(whole)
	}
	r[string(id)] = one
	return nil
}

// Differences lists the rows in which two tables differ.
type Differences struct {
	Missing, Extra, Changed []string
	// Example shows a changed row, where rows are held whole.
	Example string
}

// Count is the number of rows that differ.
func (d Differences) Count() int { return len(d.Missing) + len(d.Extra) + len(d.Changed) }

// String names some of each.
func (d Differences) String() string {
	some := func(keys []string) string {
		if len(keys) > 5 {
			return strings.Join(keys[:5], " ") + " …"
		}
		return strings.Join(keys, " ")
	}
	return fmt.Sprintf("%d missing (%s), %d too many (%s), %d changed (%s)%s",
		len(d.Missing), some(d.Missing), len(d.Extra), some(d.Extra), len(d.Changed), some(d.Changed), d.Example)
}

// Diff compares what should be there with what is.
func Diff(want, got Rows) Differences {
	var d Differences
	for key, hash := range want {
		other, ok := got[key]
		switch {
		case !ok:
			d.Missing = append(d.Missing, key)
		case other.hash != hash.hash:
			if d.Changed = append(d.Changed, key); d.Example == "" && hash.text != "" {
				d.Example = fmt.Sprintf("; want for instance %s, got %s", shortened(hash.text), shortened(other.text))
			}
		}
	}
	for key := range got {
		if _, ok := want[key]; !ok {
			d.Extra = append(d.Extra, key)
		}
	}
	return d
}

// shortened cuts values that say no more by their length.
func shortened(text string) string {
	return regexp.MustCompile(`("[^"]{40})[^"]{40,}"`).ReplaceAllString(text, `$1…"`)
}

// KeyOf returns the names of the primary key's columns of table
// (schema.table) in key order.
func KeyOf(ctx context.Context, db *pgtest.DB, table string) ([]string, error) {
	rows, err := db.Pool.Query(ctx, `
SELECT a.attname FROM pg_index i
CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, n)
JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
WHERE i.indrelid = $1::text::regclass AND i.indisprimary ORDER BY k.n`, table)
	if err != nil {
		return nil, fmt.Errorf("read key of %s: %w", table, err)
	}
	key, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err == nil && len(key) == 0 {
		err = errors.New("it has none")
	}
	if err != nil {
		return nil, fmt.Errorf("read key of %s: %w", table, err)
	}
	return key, nil
}

// SourceRows reads all rows of a table at the source, as to_jsonb gives them.
// For it and the two below sparse means that a column which is null and one that
// is not there are the same: one that was added comes into the stream with the
// table's next change.
func SourceRows(ctx context.Context, db *pgtest.DB, table string, sparse bool) (Rows, error) {
	key, err := KeyOf(ctx, db, table)
	if err != nil {
		return nil, err
	}
	quoted := pgx.Identifier(strings.SplitN(table, ".", 2)).Sanitize()
	rows, err := db.Pool.Query(ctx, "SELECT to_jsonb(t)::text FROM "+quoted+" t")
	if err != nil {
		return nil, fmt.Errorf("read %s at the source: %w", table, err)
	}
	defer rows.Close()
	all := Rows{}
	for rows.Next() {
		if err := all.add(rows.RawValues()[0], key, sparse); err != nil {
			return nil, fmt.Errorf("read %s at the source: %w", table, err)
		}
	}
	return all, rows.Err()
}

// EdgeRows reads all rows of a table at an edge by scanning over HTTP. The edge
// must be at rest: a scan's pages are different snapshots, and EdgeRows refuses
// pages of different indexes unless only heartbeats can have moved it.
func EdgeRows(ctx context.Context, c *Client, table string, key []string, sparse bool) (Rows, error) {
	const page = 1000
	all := Rows{}
	for cursor := ""; ; {
		p, err := c.Scan(ctx, table, "", page, cursor)
		if err != nil {
			return nil, fmt.Errorf("scan %s at the edge: %w", table, err)
		}
		if len(p.Rows) > page {
			return nil, fmt.Errorf("scan %s at the edge: %d rows for a limit of %d", table, len(p.Rows), page)
		}
		for _, row := range p.Rows {
			if err := all.add(row, key, sparse); err != nil {
				return nil, fmt.Errorf("scan %s at the edge: %w", table, err)
			}
		}
		if p.Cursor == "" {
			return all, nil
		}
		cursor = p.Cursor
	}
}

// WitnessRows gives the rows that the topic's entries add up to.
func WitnessRows(t *WitnessTable, key []string, sparse bool) (Rows, error) {
	all := Rows{}
	if t == nil || t.Rows == nil {
		return nil, errors.New("the topic has no complete load of the table")
	}
	encoders := map[millrace.SchemaVersion]*rowjson.Encoder{}
	var buf []byte
	for _, encoded := range t.Rows {
		row, err := decodeRow(encoded)
		if err != nil {
			return nil, err
		}
		enc := encoders[row.Version]
		if enc == nil {
			s := t.schemas[row.Version]
			if s == nil {
				return nil, fmt.Errorf("row of schema version %v, which the topic does not have", row.Version)
			}
			if enc, err = rowjson.New(s); err != nil {
				return nil, err
			}
			encoders[row.Version] = enc
		}
		if buf, err = enc.AppendRow(buf[:0], row); err != nil {
			return nil, err
		}
		if err := all.add(buf, key, sparse); err != nil {
			return nil, err
		}
	}
	return all, nil
}
