package wal

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/capture/chunk"
)

// A load brings all rows of a table into the stream while the table is written
// to: the first copy, and every later one. It has two sides.
//
// The decoder's goroutine owns the stream. It begins and ends loads, tells them
// of every change, and emits the rows of a chunk at the place in the stream where
// that is right (package chunk says which that is).
//
// Workers read chunks, each over a connection of its own, and wait there for
// locks and snapshots without holding the stream up.
//
// Both meet in loads, under its lock. A worker may come by in the middle of a
// transaction: that one counts as emitted from its begin on, so a window that
// opens within it wants a snapshot that sees all of it.

// chunkLimits bound what one load holds in memory and writes into the stream.
func chunkLimits() chunk.Limits {
	return chunk.Limits{Blocks: 512, Window: 8 << 20, Missing: 8 << 20, Progress: 64 << 10}
}

// loads are those under way in one stream.
type loads struct {
	mu      sync.Mutex
	pending *chunk.Pending
	// first is a snapshot from the begin of the reign.
	first chunk.Snapshot
	// schemas are the newest of the stream's tables.
	schemas map[millrace.TableID]*millrace.Schema
	// waiting is how many transactions the newest snapshot of relieve did not see.
	waiting int
	xid     chunk.XID // of the transaction under way
	byTable map[millrace.TableID]*load
	// taps hear of each change of a table: the windows that are open.
	taps map[millrace.TableID][]*chunk.Window
	// arrivals wait for their message to pass in the stream, by its content.
	arrivals map[string]*arrival
	paused   bool
	// passes are the newest over each table.
	passes map[millrace.TableID]*pass
	// changed is closed, and made anew, when there may be something to do for a
	// worker that waits.
	changed chan struct{}

	limits chunk.Limits
	// spool takes the rows of a chunk that are too large for memory.
	spool *spool

	// recent are the loads that ended last, oldest first.
	recent []endedLoad
	// count is the number of loads and taps: streams without any pay nothing.
	count atomic.Int32
	// lastLoad is the highest ID used; of the decoder's goroutine alone.
	lastLoad millrace.LoadID
}

// load is one table's. All of it is under the lock of loads.
type load struct {
	id     millrace.LoadID
	table  millrace.TableID
	name   string
	reason string
	// initial loads end together: the tables that the stream began with appear
	// at once.
	initial bool
	work    *chunk.Load
	window  *chunk.Window // of the chunk under way
	// overflows counts windows in which more changed than they could note.
	overflows int
	// schema is the stream's newest of the table.
	schema *millrace.Schema
	taken  bool // a worker reads it
	ending bool // its LoadEnd is in a unit that is not given out yet
	ended  bool

	started time.Time
	// sizes are the lengths of the heaps in blocks, as of so many restarts.
	sizes    []int64
	measured int
	restarts int
	before   uint64 // blocks that were read when this process took the load up
}

// endedLoad is what is shown of a load that has ended.
type endedLoad struct {
	status capture.LoadStatus
	at     millrace.LSN // where the stream stood
}

// keepEnded is how many ended loads are shown.
const keepEnded = 32

// arrival is what a worker has found at the source and the stream has not passed
// yet.
type arrival struct {
	// emit brings it into the unit that is begun for it, when its message has
	// passed. It is called by the decoder's goroutine.
	emit func(d *decoder) error
	// passed is closed when that has been done and the unit was given out.
	passed chan struct{}
}

// newLoads takes a snapshot from the begin of the reign.
func newLoads(s chunk.Snapshot, limits chunk.Limits) *loads {
	return &loads{
		limits: limits, first: s, pending: chunk.NewPending(s), schemas: make(map[millrace.TableID]*millrace.Schema),
		byTable: make(map[millrace.TableID]*load), taps: make(map[millrace.TableID][]*chunk.Window),
		arrivals: make(map[string]*arrival), passes: make(map[millrace.TableID]*pass), changed: make(chan struct{}),
	}
}

// resumeLoads takes up the loads that the stream has under way. It is called when
// the reign has begun: what its predecessors emitted may still run.
func resumeLoads(ctx context.Context, conn *pgx.Conn, catalog *millrace.Catalog, limits chunk.Limits) (*loads, error) {
	s, err := chunk.CurrentSnapshot(ctx, conn)
	if err != nil {
		return nil, err
	}
	l := newLoads(s, limits)
	l.lastLoad = catalog.LastLoad
	for _, schema := range catalog.Schemas {
		l.schemas[schema.Table] = schema
	}
	for i := range catalog.Loads {
		ld, err := resumeLoad(&catalog.Loads[i], catalog.Schema(catalog.Loads[i].Table), limits)
		if err != nil {
			return nil, err
		}
		l.addLocked(ld)
	}
	return l, nil
}

// wakeLocked tells the workers that something has changed.
func (l *loads) wakeLocked() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// show tells of a snapshot of the source.
func (l *loads) show(s chunk.Snapshot) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pending.Show(s)
}

// maxPending is how many transactions are kept in mind before the source is asked
// what it sees: 1 MiB of them.
const maxPending = 1 << 17

// burdened reports whether more transactions are kept in mind than need be.
func (l *loads) burdened() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.pending.Len() >= max(maxPending, 2*l.waiting)
}

// relieve tells of a snapshot, and notes how many transactions it did not see.
func (l *loads) relieve(s chunk.Snapshot) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pending.Show(s)
	l.waiting = l.pending.Len()
}

// begin notes that a transaction is being emitted.
func (l *loads) begin(xid uint32) {
	l.mu.Lock()
	l.xid = l.pending.Emitted(xid)
	l.mu.Unlock()
}

// emitted notes a change of the transaction under way.
func (l *loads) emitted(table millrace.TableID, c chunk.Change) {
	if l.count.Load() == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, w := range l.taps[table] {
		if c.Kind == millrace.KindTruncate {
			w.NoteAll(l.xid)
			continue
		}
		w.Note(l.xid, c.Key)
		if len(c.From) > 0 {
			w.Note(l.xid, c.From)
		}
	}
	if ld := l.byTable[table]; ld != nil {
		finished := ld.work.Finished()
		if ld.work.Emitted(c); finished && !ld.work.Finished() {
			l.wakeLocked()
		}
	}
}

// loading reports whether a load of a table is under way.
func (l *loads) loading(table millrace.TableID) bool {
	if l.count.Load() == 0 {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.byTable[table] != nil
}

// openLocked opens a window for a table's changes.
func (l *loads) openLocked(table millrace.TableID, w *chunk.Window) {
	l.taps[table] = append(l.taps[table], w)
	l.count.Add(1)
}

// closeLocked ends what openLocked began. A window that is not open is no error.
func (l *loads) closeLocked(table millrace.TableID, w *chunk.Window) {
	open := len(l.taps[table])
	taps := slices.DeleteFunc(l.taps[table], func(other *chunk.Window) bool { return other == w })
	l.count.Add(int32(len(taps) - open))
	if l.taps[table] = taps; len(taps) == 0 {
		delete(l.taps, table)
	}
}

// inOrderLocked returns the loads in the order in which they began.
func (l *loads) inOrderLocked() []*load {
	return slices.SortedFunc(maps.Values(l.byTable), func(a, b *load) int { return cmp.Compare(a.id, b.id) })
}
