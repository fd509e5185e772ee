package chunk

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
)

// Range reads the rows from the key low on (from the first, if it is empty) in
// the order of their encoded keys, up to limit rows or about ReaderConfig.Bytes,
// between Begin and End. It returns the key that the following range begins with,
// or nil if there are no more rows. collate is that of KeyCodec.SourceOrder.
func (r *Reader) Range(ctx context.Context, low []byte, limit int, collate []bool, fn func(key []byte, columns []millrace.Datum) error) (next []byte, err error) {
	var texts [][]byte
	if len(low) > 0 {
		if texts, err = r.codec.Decode(low, nil); err != nil {
			return nil, fmt.Errorf("read range of %s: %w", r.cfg.Schema.QualifiedName(), err)
		}
	}
	var order, from []string
	var params []any
	for i, c := range r.codec.Columns() {
		column := "t." + pgx.Identifier{r.cfg.Schema.Columns[c].Name}.Sanitize()
		suffix := ""
		// A column that sorts so by itself is left as it is, for its index.
		if collate[i] && !sortsByBytes(r.cfg.Schema.Columns[c].Collation) {
			suffix = ` COLLATE "C"`
		}
		order = append(order, column+suffix)
		if texts != nil {
			from = append(from, fmt.Sprintf("$%d::text::%s%s", i+1, r.types[i], suffix))
			params = append(params, string(texts[i]))
		}
	}
	where := []string{"true"}
	if r.cfg.Where != "" {
		where = append(where, "("+r.cfg.Where+")")
	}
	if texts != nil {
		where = append(where, fmt.Sprintf("ROW(%s) >= ROW(%s)", strings.Join(order, ", "), strings.Join(from, ", ")))
	}
	query := fmt.Sprintf("DECLARE range NO SCROLL CURSOR FOR SELECT %s FROM %s t WHERE %s ORDER BY %s LIMIT %d",
		r.columns, r.name(), strings.Join(where, " AND "), strings.Join(order, ", "), limit+1)
	n, room := 0, r.cfg.Bytes
	if _, err = r.fetch(ctx, query, params, nil); err != nil {
		return nil, fmt.Errorf("read range of %s: %w", r.cfg.Schema.QualifiedName(), err)
	}
	err = r.drain(ctx, "range", func() (int, bool) { return room, next == nil }, func(raw [][]byte) (bool, error) {
		if n == limit || room <= 0 {
			return false, r.give(raw, func(key []byte, _ []millrace.Datum) error {
				next = append([]byte(nil), key...)
				return nil
			})
		}
		n++
		for _, text := range raw {
			room -= len(text)
		}
		return true, r.give(raw, fn)
	})
	if err != nil {
		return nil, fmt.Errorf("read range of %s: %w", r.cfg.Schema.QualifiedName(), err)
	}
	return next, nil
}

// sortsByBytes reports whether a collation compares texts by their bytes.
func sortsByBytes(collation string) bool { return collation == "C" || collation == "POSIX" }

// All reads all rows, in no order, between Begin and End.
func (r *Reader) All(ctx context.Context, fn func(key []byte, columns []millrace.Datum) error) error {
	query := fmt.Sprintf("DECLARE whole NO SCROLL CURSOR FOR SELECT %s FROM %s t", r.columns, r.name())
	if r.cfg.Where != "" {
		query += " WHERE (" + r.cfg.Where + ")"
	}
	_, err := r.conn.Exec(ctx, query)
	if err == nil {
		err = r.drain(ctx, "whole", func() (int, bool) { return r.cfg.Bytes, true }, func(raw [][]byte) (bool, error) { return true, r.give(raw, fn) })
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", r.cfg.Schema.QualifiedName(), err)
	}
	return nil
}
