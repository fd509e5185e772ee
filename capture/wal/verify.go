package wal

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/capture/chunk"
	"github.com/millrace-db/millrace/internal/wait"
)

// A pass verifies a table: it states, range by range, what the source has, so
// that edges can compare it with what they have stored. A range is read like a
// chunk of a load, in a window: its Verify entry stands where the stream has
// passed everything that the range's snapshot sees. Keys that the stream has
// changed by then and the snapshot does not see are named in it and take no part.

const (
	// verifyWindow is how many bytes of keys may change while a range is read,
	// before it is read anew.
	verifyWindow = 1 << 20
	// verifyWhole bounds a table that cannot be read in ranges, in bytes of what is
	// held of it.
	verifyWhole = 64 << 20
	// verifyTries is how often a range is read before the pass is given up.
	verifyTries = 20
)

// pass is the newest pass over a table. It is under the lock of loads.
type pass struct {
	capture.PassStatus
	table millrace.TableID
	// ranges are what is left of it to read.
	ranges []capture.KeyRange
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
	s.loads.wantLocked(ids, []capture.KeyRange{{}})
	return nil
}

// VerifyRanges asks for a pass over ranges of a table, in ascending order; otherwise it
// is Verify. An entry may speak of a part of one of them.
func (s *Source) VerifyRanges(table string, ranges []capture.KeyRange) error {
	id, err := s.loads.tableNamed(table)
	if err != nil {
		return err
	}
	s.loads.mu.Lock()
	defer s.loads.mu.Unlock()
	s.loads.wantLocked([]millrace.TableID{id}, ranges)
	return nil
}

func (l *loads) wantLocked(ids []millrace.TableID, ranges []capture.KeyRange) {
	for _, id := range ids {
		if l.schemas[id] == nil {
			continue // it has left the stream since it was looked up
		}
		l.passes[id] = &pass{table: id, ranges: slices.Clone(ranges), PassStatus: capture.PassStatus{Table: l.schemas[id].QualifiedName(), Phase: capture.PassWaiting, RequestedAt: time.Now().UTC()}}
	}
	l.wakeLocked()
}

// Passes returns the newest pass over each table, in the order of their names.
// One is done when all of it has been published and read back.
func (s *Source) Passes() []capture.PassStatus {
	confirmed := millrace.LSN(s.confirmed.Load())
	s.loads.mu.Lock()
	defer s.loads.mu.Unlock()
	var all []capture.PassStatus
	for _, p := range s.loads.passes {
		st := p.PassStatus
		// Its last entry stands at the position of the unit before it, so only a
		// later position tells.
		if p.given && confirmed > p.last {
			st.Phase = capture.PassDone
		}
		all = append(all, st)
	}
	slices.SortFunc(all, func(a, b capture.PassStatus) int { return cmp.Compare(a.Table, b.Table) })
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
				l.wantLocked(slices.Collect(maps.Keys(l.schemas)), []capture.KeyRange{{}})
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
			p.Phase, p.Problem = capture.PassFailed, err.Error()
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
		if p.Phase == capture.PassWaiting && l.byTable[p.table] == nil && (first == nil || p.RequestedAt.Before(first.RequestedAt) || p.RequestedAt.Equal(first.RequestedAt) && p.table < first.table) {
			first = p
		}
	}
	return first, l.changed
}

// run carries a pass out.
func (v *verifier) run(ctx context.Context, p *pass) error {
	v.last = max(v.last+1, uint64(time.Now().UnixMicro()))
	v.l.mu.Lock()
	p.ID, p.Phase = v.last, capture.PassRunning
	v.l.mu.Unlock()
	tries, pause := 0, firstRetry
	for len(p.ranges) > 0 {
		if err := v.pace(ctx); err != nil {
			return err
		}
		next, again, err := v.step(ctx, p, p.ranges[0])
		switch {
		case errors.Is(err, chunk.ErrBusy) || err == nil && again == waitForMore:
			if err := wait.For(ctx, pause); err != nil {
				return err
			}
			pause = min(2*pause, lastRetry)
		case err != nil:
			return explain(err)
		case again == sameOnceMore:
			if tries++; tries >= verifyTries {
				return fmt.Errorf("its rows change faster than they can be read; tried %d times", tries)
			}
		default:
			if p.ranges[0].Low = next; next == nil {
				p.ranges = p.ranges[1:]
			}
			tries, pause = 0, firstRetry
		}
	}
	return nil
}

// sameOnceMore says that a range was read in vain.
const sameOnceMore = nothingMore + 1

// step verifies the beginning of a range, and returns where the rest of it begins, nil
// where none is left.
func (v *verifier) step(ctx context.Context, p *pass, of capture.KeyRange) (next []byte, _ progress, err error) {
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
		return nil, again, err
	} else if err != nil {
		return nil, more, err
	}
	for pause := firstRetry; ; pause = min(2*pause, lastRetry) {
		snapshot, _, err := v.reader.Begin(ctx)
		if altered(err) {
			again, err := v.describeRange(ctx, schema)
			return nil, again, err
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
			return nil, sameOnceMore, nil
		}
		if err := wait.For(ctx, pause); err != nil {
			return nil, more, err
		}
	}
	if next, err = v.read(ctx, schema, of); err != nil {
		return nil, more, errors.Join(err, v.reader.Cancel(ctx))
	}
	high := next
	if high == nil {
		high = of.High
	}
	emitted := false
	err = v.l.pass(ctx, func(d *decoder) (err error) {
		emitted, err = v.emit(d, p, schema, window, of.Low, high)
		return err
	}, v.reader.End)
	if err == nil && !emitted {
		return nil, sameOnceMore, nil
	}
	v.hasRead(v.hashes.n, v.c.cfg.VerifyRate)
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
