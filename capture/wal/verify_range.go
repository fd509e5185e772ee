package wal

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/capture/chunk"
	"github.com/millrace-db/millrace/capture/table"
)

// open waits until the table is not being loaded, and opens a window.
func (v *verifier) open(ctx context.Context, p *pass) (*millrace.Schema, *chunk.Window, error) {
	for {
		v.l.mu.Lock()
		schema, loading, changed := v.l.schemas[p.table], v.l.byTable[p.table] != nil, v.l.changed
		if schema == nil {
			v.l.mu.Unlock()
			return nil, nil, fmt.Errorf("%w: %s has left it", capture.ErrNoTable, p.Table)
		}
		if v.l.passes[p.table] != p {
			v.l.mu.Unlock()
			return nil, nil, errors.New("another pass was asked for")
		}
		if !loading {
			w := v.l.pending.Open(verifyWindow)
			v.l.openLocked(p.table, w)
			v.l.mu.Unlock()
			return schema, w, nil
		}
		v.l.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil, nil, context.Cause(ctx)
		case <-changed:
		}
	}
}

// read hashes the rows of a range, or of the whole table where the source does not
// sort its keys as they are encoded.
func (v *verifier) read(ctx context.Context, schema *millrace.Schema, low []byte) (next []byte, err error) {
	codec, err := millrace.NewKeyCodec(schema)
	if err != nil {
		return nil, err
	}
	plan := millrace.NewVerifyPlan(schema)
	if err := v.hashes.reset(); err != nil {
		return nil, err
	}
	add := func(key []byte, columns []millrace.Datum) error {
		h, err := v.sum.Hash(plan, key, columns)
		if err != nil {
			return err
		}
		var b [16]byte
		binary.BigEndian.PutUint64(b[:8], h.Hi)
		binary.BigEndian.PutUint64(b[8:], h.Lo)
		if err := v.hashes.add(key, b[:]); err != nil {
			return err
		}
		if len(v.hashes.b) > verifyWhole {
			return fmt.Errorf("it is too large to be verified whole, and the source does not sort its keys by their bytes; mend: CREATE INDEX ON %s (%s)",
				table.Quote(schema.Namespace)+"."+table.Quote(schema.Name), bytewiseIndex(schema, codec))
		}
		return nil
	}
	collate, ok := codec.SourceOrder()
	if ok {
		ok, err = v.sortsFast(ctx, schema, codec, collate)
	}
	switch {
	case err != nil:
		return nil, err
	case ok:
		return v.reader.Range(ctx, low, verifyRows, collate, add)
	}
	return nil, v.reader.All(ctx, add)
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
func (v *verifier) sortsFast(ctx context.Context, s *millrace.Schema, codec *millrace.KeyCodec, collate []bool) (bool, error) {
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
	err := v.conn.QueryRow(ctx, `
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

// emit puts the range's Verify entry into the stream, or returns false where it
// would say nothing.
func (v *verifier) emit(d *decoder, p *pass, schema *millrace.Schema, w *chunk.Window, low, high []byte) (bool, error) {
	d.loads.mu.Lock()
	defer d.loads.mu.Unlock()
	if w.Overflown() || d.loads.schemas[p.table] != schema || d.loads.byTable[p.table] != nil {
		return false, nil
	}
	r := millrace.VerifyRange{ID: p.ID, Low: low, High: high, Snapshot: v.snapshot}
	some := w.Unseen(func(key []byte) {
		if r.Holds(key) {
			r.LeftOut = append(r.LeftOut, key)
		}
	})
	if !some {
		return false, nil
	}
	slices.SortFunc(r.LeftOut, bytes.Compare)
	v.sum.Reset()
	err := v.hashes.each(func(key, h []byte) error {
		if !w.LeavesOut(key) {
			v.sum.AddHash(millrace.RowHash{Hi: binary.BigEndian.Uint64(h), Lo: binary.BigEndian.Uint64(h[8:])})
		}
		return nil
	})
	if err != nil {
		return false, err
	}
	r.Rows, r.Hash = v.sum.Rows, v.sum.Sum()
	if err := d.w.Append(&millrace.Entry{Kind: millrace.KindVerify, Table: p.table, Verify: &r}); err != nil {
		return false, fmt.Errorf("verify %s: %w", p.Table, err)
	}
	p.Ranges++
	p.Rows += r.Rows
	p.last = d.position.LSN
	return true, nil
}
