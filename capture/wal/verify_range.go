package wal

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/capture/chunk"
	"github.com/millrace-db/millrace/capture/verify"
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

// read hashes the first rows of a range, or all of it where the source does not
// sort its keys as they are encoded. It returns where the rest begins, if any is left.
func (v *verifier) read(ctx context.Context, schema *millrace.Schema, of capture.KeyRange) (next []byte, err error) {
	plan := millrace.NewVerifyPlan(schema)
	if err := v.hashes.reset(); err != nil {
		return nil, err
	}
	return verify.Read(ctx, v.conn, v.reader, schema, of, verifyWhole, func(key []byte, columns []millrace.Datum) error {
		h, err := v.sum.Hash(plan, key, columns)
		if err != nil {
			return err
		}
		var b [16]byte
		binary.BigEndian.PutUint64(b[:8], h.Hi)
		binary.BigEndian.PutUint64(b[8:], h.Lo)
		return v.hashes.add(key, b[:])
	})
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
