package trigger

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/capture/chunk"
	"github.com/millrace-db/millrace/capture/table"
	"github.com/millrace-db/millrace/capture/verify"
)

// A pass verifies a table: it states, range by range, what the source has, so that
// edges can compare it with what they have stored. A range is read like a chunk of a
// load, in the snapshot of a window and behind its rows, so no key is left out.

// verifyWhole bounds a table that cannot be read in ranges, in bytes of its keys and
// 16 for each row: the stream stands still while it is read.
const verifyWhole = 16 << 20

// passes are the newest over each table. They are under the lock of loads.
type passes struct {
	newest map[millrace.TableID]*pass
	last   uint64    // ID
	next   time.Time // when the next range may be read
	// rotation is when all tables are verified next, without being asked; the zero
	// time is never.
	rotation time.Time
	sum      millrace.VerifySum // of the Source's goroutine alone
}

// pass is the newest pass over a table.
type pass struct {
	capture.PassStatus
	table millrace.TableID
	// ranges are what is left of it to read.
	ranges []capture.KeyRange
	// tick is that of its last entry; given tells that nothing more of it follows.
	tick  uint64
	given bool
}

func newPasses(every time.Duration) passes {
	p := passes{newest: make(map[millrace.TableID]*pass)}
	if every > 0 {
		// The first comes early, because not every process lives for long.
		p.rotation = time.Now().Add(every / 10)
	}
	return p
}

// Verify asks for a pass over the named tables, all of the stream's if none is
// named. One over a table that waits for one, or is under way, begins anew.
// Errors: capture.ErrNoTable.
func (s *Source) Verify(tables []string) error {
	var ids []millrace.TableID
	for _, name := range tables {
		id, err := s.loads.named(name)
		if err != nil {
			return err
		}
		ids = append(ids, id)
	}
	s.loads.mu.Lock()
	if len(tables) == 0 {
		ids = slices.Collect(maps.Keys(s.loads.tables))
	}
	s.loads.wantLocked(ids, []capture.KeyRange{{}})
	s.loads.mu.Unlock()
	s.wake()
	return nil
}

// VerifyRanges asks for a pass over ranges of a table, in ascending order; otherwise it
// is Verify. An entry may speak of a part of one of them.
func (s *Source) VerifyRanges(table string, ranges []capture.KeyRange) error {
	id, err := s.loads.named(table)
	if err != nil {
		return err
	}
	s.loads.mu.Lock()
	s.loads.wantLocked([]millrace.TableID{id}, ranges)
	s.loads.mu.Unlock()
	s.wake()
	return nil
}

func (l *loads) wantLocked(ids []millrace.TableID, ranges []capture.KeyRange) {
	for _, id := range ids {
		if t, there := l.tables[id]; there { // it may have left the stream since it was looked up
			l.passes.newest[id] = &pass{table: id, ranges: slices.Clone(ranges), given: len(ranges) == 0, PassStatus: capture.PassStatus{
				Table: t.schema.QualifiedName(), Phase: capture.PassWaiting, RequestedAt: time.Now().UTC(),
			}}
		}
	}
}

// rotateLocked asks for passes over all tables when it is time, and those before have
// been read to their ends: where that takes longer they would begin anew again and again.
func (l *loads) rotateLocked(now time.Time) {
	if l.passes.rotation.IsZero() || now.Before(l.passes.rotation) || l.passLocked() != nil {
		return
	}
	l.passes.rotation = now.Add(l.c.cfg.VerifyEvery)
	l.wantLocked(slices.Collect(maps.Keys(l.tables)), []capture.KeyRange{{}})
}

// passLocked returns the pass of which a range is read next: the one under way, or
// that which has waited longest, but for those over tables that are being loaded.
func (l *loads) passLocked() (first *pass) {
	rank := func(p *pass) int {
		if p.Phase == capture.PassRunning {
			return 0
		}
		return 1
	}
	for _, p := range l.passes.newest {
		if p.given || p.Phase == capture.PassFailed || l.under[p.table] != nil {
			continue
		}
		if first == nil || cmp.Or(cmp.Compare(rank(p), rank(first)), p.RequestedAt.Compare(first.RequestedAt), cmp.Compare(p.table, first.table)) < 0 {
			first = p
		}
	}
	return first
}

// Passes returns the newest pass over each table, in the order of their names. One
// is done when all of it has been published and read back.
func (s *Source) Passes() []capture.PassStatus {
	confirmed := s.confirmedTick()
	s.loads.mu.Lock()
	defer s.loads.mu.Unlock()
	var all []capture.PassStatus
	for _, p := range s.loads.passes.newest {
		st := p.PassStatus
		// Its last entry stands at the position of the window before it, so only a
		// later one tells.
		if p.given && confirmed > p.tick {
			st.Phase = capture.PassDone
		}
		all = append(all, st)
	}
	slices.SortFunc(all, func(a, b capture.PassStatus) int { return cmp.Compare(a.Table, b.Table) })
	return all
}

// verify reads the next range of a pass, or all of a table whose keys the source
// does not sort as they are encoded, and makes its unit.
func (l *loads) verify(ctx context.Context, w *window, p *pass) (*millrace.Unit, error) {
	l.mu.Lock()
	if p.ID == 0 {
		l.passes.last = max(l.passes.last+1, uint64(time.Now().UnixMicro()))
		p.ID, p.Phase = l.passes.last, capture.PassRunning
	}
	l.mu.Unlock()
	r, err := l.reader(ctx, w, p.table)
	if err != nil {
		return nil, err
	}
	_, leaves, err := r.Join(ctx)
	if err != nil {
		return nil, err
	}
	of := p.ranges[0]
	sum := &l.passes.sum
	sum.Reset()
	plan := millrace.NewVerifyPlan(r.schema)
	next, err := verify.Read(ctx, w.conn, r.Reader, r.schema, of, l.c.verifyWhole, func(key []byte, columns []millrace.Datum) error {
		return sum.Add(plan, key, columns)
	})
	if err != nil {
		return nil, err
	}
	if another, err := attached(ctx, w.conn, p.table, leaves); err != nil || another {
		return nil, err // the next window begins a load
	}
	high := next
	if high == nil {
		high = of.High
	}
	l.out.Reset()
	entry := millrace.Entry{Kind: millrace.KindVerify, Table: p.table, Verify: &millrace.VerifyRange{
		ID: p.ID, Low: of.Low, High: high, Rows: sum.Rows, Hash: sum.Sum(), Snapshot: w.position.Snapshot,
	}}
	if err := l.out.Append(&entry); err != nil {
		return nil, fmt.Errorf("verify %s: %w", p.Table, err)
	}
	u, err := (&unitFile{out: &l.out}).unit(w)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	p.Ranges++
	p.Rows += sum.Rows
	if p.ranges[0].Low = next; next == nil {
		p.ranges = p.ranges[1:]
	}
	p.given, p.tick = len(p.ranges) == 0, w.position.Tick
	if rate := l.c.cfg.VerifyRate; rate > 0 {
		l.passes.next = time.Now().Add(time.Duration(sum.Rows) * time.Second / time.Duration(rate))
	}
	return u, nil
}

// attached reports whether a table has other partitions by now than in a snapshot.
// Whoever attaches one needs no lock against readers, and a query that is planned
// behind that reads it, also what was in it before.
func attached(ctx context.Context, q table.Querier, id millrace.TableID, leaves []chunk.Leaf) (bool, error) {
	if len(leaves) == 1 && leaves[0].ID == id {
		return false, nil
	}
	var now []uint32
	if err := q.QueryRow(ctx, "SELECT ARRAY(SELECT relid::oid FROM pg_partition_tree($1::oid) WHERE isleaf ORDER BY 1)", uint32(id)).Scan(&now); err != nil {
		return false, fmt.Errorf("look at the partitions: %w", err)
	}
	return !slices.EqualFunc(now, leaves, func(id uint32, l chunk.Leaf) bool { return id == uint32(l.ID) }), nil
}
