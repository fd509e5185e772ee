package migrations

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture/chunk"
)

// mend reads missing rows of one table from the source by their keys, beside the
// changes. It is exact in the way that package chunk's windows are: the snapshot
// sees everything that was applied before the window opened, the rows go in when the
// changes have passed everything that the snapshot sees, and those are left out
// whose key was changed by something that it does not see. These are missing still,
// or have come with the change.
type mend struct {
	t      *mapping
	window *chunk.Window
	reader *chunk.Reader
	keys   [][]byte
	// read says that rows were read, and from where on they may go in.
	read  bool
	rows  map[string][]millrace.Datum
	until uint64
}

const (
	mendKeys   = 5_000    // at once
	mendWindow = 32 << 20 // bytes of keys that may change meanwhile
)

// mendKey is a key in the window, which is for all tables.
func mendKey(id millrace.TableID, key []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(id)), key...)
}

func (d *mend) note(x chunk.XID, keys [][]byte, all bool) {
	if all {
		d.window.NoteAll(x)
	}
	for _, key := range keys {
		d.window.Note(x, key)
	}
}

// converge takes the target to where it is the source: it is called behind each
// commit.
func (f *follower) converge(ctx context.Context) error {
	if f.sink.exact || f.horizon == 0 || f.at.Position.Token() < f.horizon {
		return nil
	}
	if f.mend == nil {
		found, err := f.beginMend(ctx)
		if err != nil || found {
			return err
		}
		return f.converged(ctx)
	}
	switch {
	case f.mend.window.Overflown():
		f.mend = nil // again, in a new one
		return nil
	case !f.mend.read:
		return f.readMissing(ctx)
	case f.at.Position.Token() >= f.mend.until:
		return f.putMissing(ctx)
	}
	return nil
}

// beginMend opens a window for rows that are missing; it returns false if none is.
func (f *follower) beginMend(ctx context.Context) (bool, error) {
	rows, err := f.dst.Query(ctx, `
SELECT table_id::bigint, key FROM millrace.migration_missing
WHERE name = $1 AND table_id = (SELECT min(table_id::bigint)::oid FROM millrace.migration_missing WHERE name = $1) LIMIT $2`, f.m.cfg.Name, mendKeys)
	if err != nil {
		return false, fmt.Errorf("read which rows are missing: %w", err)
	}
	d := new(mend)
	_, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (id int64, err error) {
		var texts []string
		if err := row.Scan(&id, &texts); err != nil {
			return id, err
		}
		t := f.spare.tables[millrace.TableID(id)]
		if t == nil {
			return id, fmt.Errorf("table %d does not move", id)
		}
		d.t = t.m
		var values [][]byte
		for _, text := range texts {
			values = append(values, []byte(text))
		}
		key, err := t.m.codec.Append(nil, values)
		d.keys = append(d.keys, key)
		return id, err
	})
	if err != nil {
		return false, fmt.Errorf("read which rows are missing: %w", err)
	}
	if len(d.keys) == 0 {
		return false, nil
	}
	if f.m.cfg.Capture != millrace.ModeWAL {
		return false, fmt.Errorf("%w: %d rows of %v are noted as missing, and changes that are captured by %v carry all of their values; mend: report it; millrace migrate abort -f FILE, and begin again", ErrChanged, len(d.keys), d.t.from, f.m.cfg.Capture)
	}
	d.window = f.pending.Open(mendWindow)
	f.mend = d
	f.m.log.Info("reading rows whose changes did not carry all of their values", "table", d.t.from.String(), "rows", len(d.keys))
	return true, f.readMissing(ctx)
}

// readMissing reads the rows, if a snapshot is to be had that sees enough.
func (f *follower) readMissing(ctx context.Context) error {
	d := f.mend
	if d.reader == nil {
		schema := f.at.Catalog.Schema(d.t.id)
		r, err := chunk.NewReader(ctx, f.src, chunk.ReaderConfig{Schema: schema, Listed: true})
		if err != nil {
			return readerError(err)
		}
		d.reader = r
	}
	snapshot, _, err := d.reader.Begin(ctx)
	if errors.Is(err, chunk.ErrBusy) {
		return nil // behind the next batch
	}
	if err != nil {
		return readerError(err)
	}
	f.pending.Show(snapshot)
	if !d.window.Accept(snapshot) {
		return d.reader.Cancel(ctx)
	}
	d.rows = make(map[string][]millrace.Datum)
	c := chunk.Chunk{Keys: d.keys}
	if err := d.reader.Rows(ctx, &c, func(key []byte, columns []millrace.Datum) error {
		d.rows[string(key)] = copyColumns(columns)
		return nil
	}); err != nil {
		return errors.Join(err, d.reader.Cancel(ctx))
	}
	d.keys = c.Keys // those that there was room for
	if err := d.reader.Cancel(ctx); err != nil {
		return err
	}
	if d.until, err = f.sourceEnd(ctx); err != nil {
		return err
	}
	d.read = true
	return nil
}

// readerError says what to do where a table was altered.
func readerError(err error) error {
	if errors.Is(err, chunk.ErrReshaped) {
		return fmt.Errorf("%w: %w; mend: millrace migrate abort -f FILE, and begin again", ErrChanged, err)
	}
	return err
}

// sourceEnd is a token: what comes with it, or a higher one, is behind all that has
// committed by now.
func (f *follower) sourceEnd(ctx context.Context) (uint64, error) { return f.from.Ahead(ctx, f.src) }

// putMissing puts the rows that were read, where the changes stand now.
func (f *follower) putMissing(ctx context.Context) error {
	d := f.mend
	f.mend = nil
	left := 0
	b := f.spare.tables[d.t.id]
	for _, key := range d.keys {
		if d.window.LeavesOut(mendKey(d.t.id, key)) {
			left++
			continue
		}
		b.rows[string(key)] = &rowChange{deleted: d.rows[string(key)] == nil, columns: d.rows[string(key)]}
	}
	if err := f.sink.apply(ctx, f.spare); err != nil {
		return err
	}
	f.spare.reset()
	if err := f.sink.commit(ctx, f.at.Index, f.at, &record{}); err != nil {
		return err
	}
	f.m.log.Info("rows were read", "table", d.t.from.String(), "rows", len(d.keys)-left, "changed_meanwhile", left)
	return nil
}

// converged notes that the target is the source.
func (f *follower) converged(ctx context.Context) error {
	tag, err := f.dst.Exec(ctx, `
UPDATE millrace.migration_place SET converged_at = clock_timestamp()
WHERE name = $1 AND converged_at IS NULL AND NOT EXISTS (SELECT FROM millrace.migration_missing x WHERE x.name = $1)`, f.m.cfg.Name)
	if err != nil {
		return fmt.Errorf("note that the target has converged: %w", err)
	}
	if tag.RowsAffected() == 0 {
		return nil
	}
	f.sink.exact = true
	f.m.log.Info("the target has converged: from here on it is the source at each index", "index", f.at.Index.String())
	return f.m.done(ctx, f.src, f.dst, StepFollowing)
}
