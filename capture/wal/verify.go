package wal

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture/chunk"
)

// A pass verifies a table: it states, range by range, what the source has, so
// that edges can compare it with what they have stored. A range is read like a
// chunk of a load, in a window: its Verify entry stands where the stream has
// passed everything that the range's snapshot sees. Keys that the stream has
// changed by then and the snapshot does not see are named in it and take no part.

const (
	// verifyRows is the most rows of a range, verifyWindow the bytes of keys
	// that may change while it is read, before it is read anew.
	verifyRows   = 10_000
	verifyWindow = 1 << 20
	// verifyWhole bounds what is held of a table that cannot be read in ranges,
	// in bytes.
	verifyWhole = 64 << 20
	// verifyTries is how often a range is read before the pass is given up.
	verifyTries = 20
)

// Phases of a pass.
const (
	PassWaiting = "waiting"
	PassRunning = "running"
	PassDone    = "done"
	PassFailed  = "failed"
)

// PassStatus says how far the newest pass over a table has come.
type PassStatus struct {
	// ID is that of its entries, 0 while it waits. IDs grow within the stream.
	ID           uint64
	Table, Phase string
	// Ranges and Rows were given out.
	Ranges, Rows uint64
	RequestedAt  time.Time
	// Problem says why it failed.
	Problem string
}

// pass is the newest pass over a table. It is under the lock of loads.
type pass struct {
	PassStatus
	table millrace.TableID
	// last is where the stream stood when its last entry was given out.
	last millrace.LSN
	// given tells that nothing more of it follows.
	given bool
}

// Verify asks for a pass over the named tables, all of the stream's if none is
// named. One over a table that waits for one, or is under way, begins anew.
// Errors: ErrNoTable.
func (s *Source) Verify(tables []string) error {
	var ids []millrace.TableID
	for _, name := range tables {
		id, err := s.loads.tableNamed(name)
		if err != nil {
			return err
		}
		ids = append(ids, id)
	}
	s.loads.mu.Lock()
	defer s.loads.mu.Unlock()
	if len(tables) == 0 {
		ids = slices.Collect(maps.Keys(s.loads.schemas))
	}
	s.loads.wantLocked(ids)
	return nil
}

func (l *loads) wantLocked(ids []millrace.TableID) {
	for _, id := range ids {
		if l.schemas[id] == nil {
			continue // it has left the stream since it was looked up
		}
		l.passes[id] = &pass{table: id, PassStatus: PassStatus{Table: l.schemas[id].QualifiedName(), Phase: PassWaiting, RequestedAt: time.Now().UTC()}}
	}
	l.wakeLocked()
}

// Passes returns the newest pass over each table, in the order of their names.
// One is done when all of it has been published and read back.
func (s *Source) Passes() []PassStatus {
	confirmed := millrace.LSN(s.confirmed.Load())
	s.loads.mu.Lock()
	defer s.loads.mu.Unlock()
	var all []PassStatus
	for _, p := range s.loads.passes {
		st := p.PassStatus
		// Its last entry stands at the position of the unit before it, so only a
		// later position tells.
		if p.given && confirmed > p.last {
			st.Phase = PassDone
		}
		all = append(all, st)
	}
	slices.SortFunc(all, func(a, b PassStatus) int { return cmp.Compare(a.Table, b.Table) })
	return all
}

// verifier runs passes, one after the other.
type verifier struct {
	worker
	hashes   rowBuffer
	sum      millrace.VerifySum
	snapshot string // of the range
	last     uint64 // ID
}

// verify runs the passes that are asked for, and one over every table each
// VerifyEvery, until ctx ends or one meets what needs an operator.
func (l *loads) verify(ctx context.Context, c *Capture) error {
	v := &verifier{worker: worker{c: c, l: l}}
	defer v.disconnect()
	// The first comes early, because not every process lives for long.
	timer := time.NewTimer(c.cfg.VerifyEvery / 10)
	defer timer.Stop()
	if c.cfg.VerifyEvery == 0 {
		timer.Stop()
	}
	for {
		p, changed := l.nextPass()
		if p == nil {
			select {
			case <-ctx.Done():
				return nil
			case <-changed:
			case <-timer.C:
				timer.Reset(c.cfg.VerifyEvery)
				l.mu.Lock()
				l.wantLocked(slices.Collect(maps.Keys(l.schemas)))
				l.mu.Unlock()
			}
			continue
		}
		err := v.run(ctx, p)
		if ctx.Err() != nil {
			return nil
		}
		if millrace.NeedsOperator(err) {
			return fmt.Errorf("verify %s: %w", p.Table, err)
		}
		l.mu.Lock()
		if err != nil {
			p.Phase, p.Problem = PassFailed, err.Error()
			v.disconnect()
			c.log.Warn("verification failed", "table", p.Table, "error", err)
		} else {
			p.given = true
		}
		l.mu.Unlock()
	}
}

// nextPass returns a pass that waits, the oldest first, but for those over tables
// that are being loaded; otherwise nil and what is closed when there may be one.
func (l *loads) nextPass() (*pass, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var first *pass
	for _, p := range l.passes {
		if p.Phase == PassWaiting && l.byTable[p.table] == nil && (first == nil || p.RequestedAt.Before(first.RequestedAt) || p.RequestedAt.Equal(first.RequestedAt) && p.table < first.table) {
			first = p
		}
	}
	return first, l.changed
}

// run carries a pass out.
func (v *verifier) run(ctx context.Context, p *pass) error {
	v.last = max(v.last+1, uint64(time.Now().UnixMicro()))
	v.l.mu.Lock()
	p.ID, p.Phase = v.last, PassRunning
	v.l.mu.Unlock()
	tries, pause := 0, firstRetry
	for low := []byte(nil); ; {
		if err := v.pace(ctx); err != nil {
			return err
		}
		next, again, err := v.step(ctx, p, low)
		switch {
		case errors.Is(err, chunk.ErrBusy) || err == nil && again == waitForMore:
			if err := wait(ctx, pause); err != nil {
				return err
			}
			pause = min(2*pause, lastRetry)
		case err != nil:
			return explain(err)
		case again == sameOnceMore:
			if tries++; tries >= verifyTries {
				return fmt.Errorf("its rows change faster than they can be read; tried %d times", tries)
			}
		case next == nil:
			return nil
		default:
			low, tries, pause = next, 0, firstRetry
		}
	}
}

// sameOnceMore says that a range was read in vain.
const sameOnceMore = nothingMore + 1

// step verifies one range, which begins at low, and returns where the next one
// begins, nil at the end.
func (v *verifier) step(ctx context.Context, p *pass, low []byte) (next []byte, _ progress, err error) {
	schema, window, err := v.open(ctx, p)
	if err != nil {
		return nil, more, err
	}
	defer func() {
		v.l.mu.Lock()
		v.l.closeLocked(p.table, window)
		v.l.mu.Unlock()
	}()
	if err := v.prepare(ctx, schema); altered(err) {
		again, err := v.describeRange(ctx, schema)
		return low, again, err
	} else if err != nil {
		return nil, more, err
	}
	for pause := firstRetry; ; pause = min(2*pause, lastRetry) {
		snapshot, _, err := v.reader.Begin(ctx)
		if altered(err) {
			again, err := v.describeRange(ctx, schema)
			return low, again, err
		}
		if err != nil {
			return nil, more, err
		}
		v.l.mu.Lock()
		v.l.pending.Show(snapshot)
		overflown := window.Overflown()
		ok := !overflown && window.Accept(snapshot)
		v.l.mu.Unlock()
		if ok {
			v.snapshot = snapshot.String()
			break
		}
		if err := v.reader.Cancel(ctx); err != nil {
			return nil, more, err
		}
		if overflown {
			return low, sameOnceMore, nil
		}
		if err := wait(ctx, pause); err != nil {
			return nil, more, err
		}
	}
	if next, err = v.read(ctx, schema, low); err != nil {
		return nil, more, errors.Join(err, v.reader.Cancel(ctx))
	}
	emitted := false
	err = v.l.pass(ctx, func(d *decoder) (err error) {
		emitted, err = v.emit(d, p, schema, window, low, next)
		return err
	}, v.reader.End)
	if err == nil && !emitted {
		return low, sameOnceMore, nil
	}
	if rate := v.c.cfg.VerifyRate; rate > 0 {
		v.paced = time.Now().Add(time.Duration(v.hashes.n) * time.Second / time.Duration(rate))
	}
	return next, more, err
}

// describeRange is describe for a range, which follows again whatever comes of it.
func (v *verifier) describeRange(ctx context.Context, known *millrace.Schema) (progress, error) {
	again, err := v.describe(ctx, known)
	if again == waitForMore {
		return sameOnceMore, err // nothing came of it
	}
	return waitForMore, err
}

// open waits until the table is not being loaded, and opens a window.
func (v *verifier) open(ctx context.Context, p *pass) (*millrace.Schema, *chunk.Window, error) {
	for {
		v.l.mu.Lock()
		schema, loading, changed := v.l.schemas[p.table], v.l.byTable[p.table] != nil, v.l.changed
		if schema == nil {
			v.l.mu.Unlock()
			return nil, nil, fmt.Errorf("%w: %s has left it", ErrNoTable, p.Table)
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
				quote(schema.Namespace)+"."+quote(schema.Name), bytewiseIndex(schema, codec))
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
		text := quote(s.Columns[i].Name)
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
