// Package verify reads the ranges of a table that Verify entries speak of: in the
// order of the rows' encoded keys, so that a range is the same rows wherever it is
// looked at. What is done with the rows, and where in the stream an entry stands,
// is left to each way of capturing.
package verify

import (
	"bytes"
	"context"
	"fmt"
	"strings"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/capture/chunk"
	"github.com/millrace-db/millrace/capture/table"
)

// Rows is the most rows of a range.
const Rows = 10_000

// Read reads the beginning of a range of a table, of up to Rows rows, or all of it
// where the source does not sort its keys as they are encoded, or not without sorting
// all of them. It calls add for each row with its encoded key and its columns, which
// are valid during the call, and returns the key that the rest of the range begins
// with, nil where none is left. A table that is read whole may have so many bytes: of its keys, and 16 for
// each row. It is called when r has begun or joined a transaction on the connection of
// q; schema is r's.
func Read(ctx context.Context, q table.Querier, r *chunk.Reader, schema *millrace.Schema, of capture.KeyRange, whole int, add func(key []byte, columns []millrace.Datum) error) (next []byte, err error) {
	add = within(of, add)
	codec, err := millrace.NewKeyCodec(schema)
	if err != nil {
		return nil, err
	}
	collate, ok := codec.SourceOrder()
	if ok {
		ok, err = sortsFast(ctx, q, schema, codec, collate)
	}
	switch {
	case err != nil:
		return nil, err
	case ok:
		next, err := r.Range(ctx, of.Low, Rows, collate, add)
		if len(of.High) > 0 && bytes.Compare(next, of.High) >= 0 {
			next = nil
		}
		return next, err
	}
	size := 0
	return nil, r.All(ctx, func(key []byte, columns []millrace.Datum) error {
		if size += len(key) + 16; size > whole {
			return fmt.Errorf("it is too large to be verified whole, and the source does not sort its keys by their bytes; mend: CREATE INDEX ON %s (%s)",
				table.Name{Schema: schema.Namespace, Name: schema.Name}.Quoted(), bytewiseIndex(schema, codec))
		}
		return add(key, columns)
	})
}

// within is add for rows of a range.
func within(of capture.KeyRange, add func(key []byte, columns []millrace.Datum) error) func(key []byte, columns []millrace.Datum) error {
	return func(key []byte, columns []millrace.Datum) error {
		if !of.Holds(key) {
			return nil
		}
		return add(key, columns)
	}
}

// bytewiseIndex lists the columns of an index that sorts as keys are encoded.
func bytewiseIndex(s *millrace.Schema, codec *millrace.KeyCodec) string {
	var columns []string
	for _, i := range codec.Columns() {
		text := table.Quote(s.Columns[i].Name)
		if s.Columns[i].Collation != "" {
			text += ` COLLATE "C"`
		}
		columns = append(columns, text)
	}
	return strings.Join(columns, ", ")
}

// sortsFast reports whether an index of the table gives its rows in the order of
// their encoded keys. That of the key does, unless a text in it is sorted under
// another collation.
func sortsFast(ctx context.Context, q table.Querier, s *millrace.Schema, codec *millrace.KeyCodec, collate []bool) (bool, error) {
	special := false
	var names []string
	for i, c := range codec.Columns() {
		names = append(names, s.Columns[c].Name)
		special = special || collate[i] && s.Columns[c].Collation != "C" && s.Columns[c].Collation != "POSIX"
	}
	if !special {
		return true, nil
	}
	var found bool
	err := q.QueryRow(ctx, `
SELECT EXISTS (
    SELECT FROM pg_index i
    WHERE i.indrelid = $1::oid AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
      AND (SELECT array_agg(a.attname::text ORDER BY k.n)
           FROM unnest(i.indkey::int2[]) WITH ORDINALITY k (attnum, n)
           JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
           WHERE k.n <= i.indnkeyatts) = $2::text[]
      AND NOT EXISTS (SELECT FROM unnest(i.indcollation::oid[]) c (oid) JOIN pg_collation l ON l.oid = c.oid WHERE l.collcollate NOT IN ('C', 'POSIX') OR l.collprovider = 'i')
)`, uint32(s.Table), names).Scan(&found)
	if err != nil {
		return false, fmt.Errorf("look for an index that sorts by bytes: %w", err)
	}
	return found, nil
}
