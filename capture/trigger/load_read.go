package trigger

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/capture/chunk"
)

const (
	// chunkBytes is about how many bytes of rows one chunk, and so one unit of a
	// load, has at most.
	chunkBytes = 4 << 20
	// heldPause is the pause after something could not be read, lagPause that
	// before a replica's lag is looked at again.
	heldPause = 2 * time.Second
	lagPause  = 500 * time.Millisecond
)

// tableReader reads a table for as long as its schema and the connection stay.
type tableReader struct {
	*chunk.Reader
	schema *millrace.Schema
	conn   *pgx.Conn
}

// read reads in the transaction of a window, after its rows. It returns the units
// that follow the window's, at its Position; what does not fit into memory is in a
// file. What cannot be read is put off, and the window goes on without it: an error
// ends the source.
func (l *loads) read(ctx context.Context, w *window) ([]*millrace.Unit, error) {
	now := time.Now()
	l.mu.Lock()
	l.tick = w.position.Tick
	ld, p := l.nextLoadLocked(now), l.passLocked()
	if p != nil && l.passes.next.After(now) {
		p = nil
	}
	if ld != nil && p != nil {
		// They take turns.
		if l.turns++; l.turns%2 == 0 {
			ld = nil
		} else {
			p = nil
		}
	}
	// Reading a table that somebody keeps to himself would wait for him.
	if ld != nil && w.s.apart[ld.table] {
		ld.paced, ld = now.Add(heldPause), nil
	}
	if p != nil && w.s.apart[p.table] {
		l.passes.next, p = now.Add(heldPause), nil
	}
	l.mu.Unlock()
	if ld == nil && p == nil {
		return nil, nil
	}
	if err := ask(ctx, w.conn.PgConn(), "SAVEPOINT millrace_read"); err != nil {
		return nil, fmt.Errorf("read in a window: %w", err)
	}
	var u *millrace.Unit
	var err error
	if ld != nil {
		u, err = l.chunk(ctx, w, ld)
	} else {
		u, err = l.verify(ctx, w, p)
	}
	if err == nil {
		if err = ask(ctx, w.conn.PgConn(), "RELEASE SAVEPOINT millrace_read"); err != nil && u != nil {
			err = fmt.Errorf("%w: %w", errAhead, err)
		}
	}
	if err == nil && u == nil {
		return nil, nil
	}
	if err == nil {
		return []*millrace.Unit{u}, nil
	}
	err = explain(err)
	if u != nil {
		err = errors.Join(err, u.Body.Close())
	}
	name := ""
	if ld != nil {
		name = ld.name
	} else {
		name = p.Table
	}
	if ctx.Err() != nil || w.conn.IsClosed() || millrace.NeedsOperator(err) || errors.Is(err, errAhead) {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if err := ask(ctx, w.conn.PgConn(), "ROLLBACK TO SAVEPOINT millrace_read"); err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	clear(l.readers)
	l.failed(ld, p, err)
	return nil, nil
}

// errAhead occurs where it is noted that something was read which will not be given out.
// It ends the source; the next one begins at what was published.
var errAhead = errors.New("what was read of it was not given out")

// failed puts off what could not be read.
func (l *loads) failed(ld *load, p *pass, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if ld != nil {
		l.c.log.Warn("load is held up, another attempt follows", "table", ld.name, "error", err, "pause", heldPause)
		l.held = time.Now().Add(heldPause)
		return
	}
	l.c.log.Warn("verification failed", "table", p.Table, "error", err)
	p.Phase, p.Problem = capture.PassFailed, err.Error()
}

// explain tells what no retry mends.
func explain(err error) error {
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == "42501" { // insufficient_privilege
		return fmt.Errorf("%w: %w; mend: grant the role SELECT on the table, and BYPASSRLS if it has row security", capture.ErrTable, err)
	}
	return err
}

// reader returns a reader of a table for the transaction of a window.
func (l *loads) reader(ctx context.Context, w *window, id millrace.TableID) (*tableReader, error) {
	l.mu.Lock()
	t := l.tables[id]
	l.mu.Unlock()
	if r := l.readers[id]; r != nil && r.schema == t.schema && r.conn == w.conn {
		return r, nil
	}
	r, err := chunk.NewReader(ctx, w.conn, chunk.ReaderConfig{
		Schema: t.schema, Listed: t.choice.Columns != nil, Where: t.choice.Where, Bytes: chunkBytes, Joins: true,
	})
	if err != nil {
		return nil, err
	}
	l.readers[id] = &tableReader{r, t.schema, w.conn}
	return l.readers[id], nil
}

// late reports whether replicas lag too much for anything to be loaded, and puts
// loads off if so.
func (l *loads) late(ctx context.Context, w *window) (bool, error) {
	if l.c.cfg.LoadMaxLag == 0 {
		return false, nil
	}
	now := time.Now()
	if over, err := l.lag.Over(ctx, w.conn, now, l.c.cfg.LoadMaxLag, l.c.log); err != nil || !over {
		return false, err
	}
	l.mu.Lock()
	l.held = now.Add(lagPause)
	l.mu.Unlock()
	return true, nil
}

// chunk reads the next chunk of a load, and makes its unit.
func (l *loads) chunk(ctx context.Context, w *window, ld *load) (*millrace.Unit, error) {
	if late, err := l.late(ctx, w); late || err != nil {
		return nil, err
	}
	r, err := l.reader(ctx, w, ld.table)
	if err != nil {
		return nil, err
	}
	snapshot, leaves, err := r.Join(ctx)
	if err != nil {
		return nil, err
	}
	c, seen, err := l.open(ctx, w, ld, snapshot, leaves)
	if err != nil {
		return nil, err
	}
	out := &unitFile{dir: l.c.cfg.SpoolDir, out: &l.out}
	if err := out.reset(); err != nil {
		return nil, err
	}
	rows := uint64(0)
	err = r.Rows(ctx, &c, func(key []byte, columns []millrace.Datum) error {
		rows++
		l.row = millrace.AppendRow(l.row[:0], r.schema.Version, columns)
		if err := out.out.Put(ld.table, key, nil, l.row, ld.id); err != nil {
			if errors.Is(err, millrace.ErrTooLarge) {
				return fmt.Errorf("%w; mend: remove the value at the source, then begin a new epoch", err)
			}
			return err
		}
		return out.spill()
	})
	if err == nil {
		if err = l.carried(ld, seen, c, rows, out.out); err != nil {
			err = fmt.Errorf("%w: %w", errAhead, err)
		}
	}
	if err != nil {
		return nil, errors.Join(err, out.remove())
	}
	l.c.metrics.copied.Add(float64(rows))
	u, err := out.unit(w)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errAhead, err)
	}
	return u, nil
}

// open says which chunk is to be read in a snapshot, in a window of the load that
// leaves nothing out: all that the stream has brought is seen.
func (l *loads) open(ctx context.Context, w *window, ld *load, snapshot chunk.Snapshot, leaves []chunk.Leaf) (chunk.Chunk, *chunk.Window, error) {
	l.mu.Lock()
	seen := ld.work.Open(new(chunk.Pending))
	if !seen.Accept(snapshot) {
		panic("trigger: a window that waits for nothing refuses a snapshot")
	}
	if known := ld.work.Known(); !ld.work.Match(seen, leaves) && known != nil {
		ld.restarts++
	}
	l.turns++
	ld.turn = l.turns
	next, measured := ld.work.Next(seen), ld.sizes != nil && ld.measured == ld.restarts
	l.mu.Unlock()
	if measured {
		return next, seen, nil
	}
	sizes, err := heapSizes(ctx, w.conn, leaves)
	if err != nil {
		return next, nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	ld.took(sizes)
	return next, seen, nil
}

// carried notes that a chunk has been read, and writes what stands behind its rows:
// how far the load has come, or its end.
func (l *loads) carried(ld *load, seen *chunk.Window, c chunk.Chunk, rows uint64, w *millrace.UnitWriter) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	ld.work.Took(rows)
	ld.work.Done(seen, c)
	if rate := l.c.cfg.LoadRate; rate > 0 {
		ld.paced = time.Now().Add(time.Duration(rows) * time.Second / time.Duration(rate))
	}
	if ld.work.Finished() {
		if err := l.endFinishedLocked(w); err != nil {
			return err
		}
	}
	if l.under[ld.table] != ld {
		return nil // its end stands there
	}
	return ld.write(w, millrace.KindLoadProgress, &millrace.LoadInfo{Progress: ld.note()})
}
