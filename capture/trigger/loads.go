package trigger

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/capture/chunk"
	"github.com/millrace-db/millrace/capture/table"
)

// chunkLimits bound what one window reads of a load. Nothing is left out of a chunk
// and no row lacks columns, so nothing has to be noted of the changes.
func chunkLimits() chunk.Limits { return chunk.Limits{Blocks: 512} }

// loads are the loads under way, and the passes of verification. Windows carry
// them: a chunk or a range is read in the transaction of a window whose own rows
// have been read, and goes out as a unit behind it, at its Position. What its
// snapshot sees is what the stream has brought by then, so nothing of it is left
// out.
//
// One chunk or range is read in a window, so that changes wait no longer than that
// takes; loads take turns, and so do loads and verification.
//
// The methods that the Source's goroutine calls hold the Source's turn. All of it
// is under the lock, because others look and ask.
type loads struct {
	c      *Capture
	wake   func()
	limits chunk.Limits

	mu     sync.Mutex
	tables map[millrace.TableID]loadable
	under  map[millrace.TableID]*load
	last   millrace.LoadID
	paused bool
	turns  uint64
	// held is until when nothing is read for loads: replicas lag, or something
	// failed.
	held time.Time
	tick uint64 // of the window under way
	// requested are the loads that were asked for since the newest window.
	requested map[millrace.TableID]bool
	// recent are the loads that ended last, oldest first.
	recent []endedLoad
	passes passes

	// Of the Source's goroutine alone.
	lag     capture.LagGauge
	readers map[millrace.TableID]*tableReader
	out     millrace.UnitWriter
	row     []byte
}

// loadable is a table of the stream, as it is read.
type loadable struct {
	schema *millrace.Schema
	choice table.Choice
}

// endedLoad is what is shown of a load that has ended.
type endedLoad struct {
	status capture.LoadStatus
	tick   uint64 // at which its end stands
}

// keepEnded is how many ended loads are shown.
const keepEnded = 32

// resumeLoads takes up the loads of a catalog.
func (c *Capture) resumeLoads(catalog *millrace.Catalog, wake func()) (*loads, error) {
	l := &loads{
		c: c, wake: wake, limits: c.chunks, last: catalog.LastLoad, paused: c.holdLoads,
		tables: make(map[millrace.TableID]loadable), under: make(map[millrace.TableID]*load),
		requested: make(map[millrace.TableID]bool), readers: make(map[millrace.TableID]*tableReader),
		passes: newPasses(c.cfg.VerifyEvery),
	}
	for i := range catalog.Loads {
		of := &catalog.Loads[i]
		ld, err := resumeLoad(of, catalog.Schema(of.Table), l.limits)
		if err != nil {
			return nil, err
		}
		l.under[of.Table] = ld
	}
	return l, nil
}

// described tells that a table of the stream has another schema, or its first.
func (l *loads) described(t *captured) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tables[t.id] = loadable{t.schema, t.choice}
	if ld := l.under[t.id]; ld != nil {
		ld.name = t.schema.QualifiedName()
	}
}

// dropped tells that a table leaves the stream in the unit under way. Those of the
// first copy that waited for it end in the same unit.
func (l *loads) dropped(w *millrace.UnitWriter, id millrace.TableID) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.tables, id)
	delete(l.passes.newest, id)
	ld := l.under[id]
	delete(l.under, id)
	if ld == nil || !ld.initial {
		return nil
	}
	return l.endFinishedLocked(w)
}

// asked returns the tables that are to be loaded because somebody asked for it since
// the window with snapshot before, with the reasons.
func (l *loads) asked(w *window, before chunk.Snapshot) map[millrace.TableID]string {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tick = w.position.Tick
	clear(l.requested)
	wanted := make(map[millrace.TableID]string)
	for _, r := range w.wanted {
		if !before.Sees(r.by) {
			wanted[r.table] = r.reason
		}
	}
	return wanted
}

// begin writes the begin of a load into the unit under way. Where one of the table
// is under way already, the new one takes its place: rows may have gone without
// being logged, and nothing would remove them from what that one has brought.
// initial loads end together.
func (l *loads) begin(w *millrace.UnitWriter, t *captured, reason string, initial bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if before := l.under[t.id]; before != nil {
		initial = before.initial
	}
	l.last++
	ld := &load{
		id: l.last, table: t.id, name: t.schema.QualifiedName(), reason: capture.Text(reason), initial: initial,
		work: chunk.NewLoad(l.limits), started: time.Now(),
	}
	l.under[t.id] = ld
	l.c.metrics.loads.Inc()
	return ld.write(w, millrace.KindLoadBegin, &millrace.LoadInfo{Reason: ld.reason, Progress: ld.note()})
}

// due says when a window is wanted so that something can be read in it, if any is.
func (l *loads) due() (at time.Time, wanted bool) {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rotateLocked(now)
	at, wanted = l.loadDueLocked()
	if len(l.requested) > 0 {
		return time.Time{}, true
	}
	if pass := l.passLocked(); pass != nil && (!wanted || l.passes.next.Before(at)) {
		at, wanted = l.passes.next, true
	}
	return at, wanted
}

// loadDueLocked says when the next chunk may be read, if any is to be read.
func (l *loads) loadDueLocked() (at time.Time, wanted bool) {
	for _, ld := range l.turnsLocked() {
		if !wanted || ld.paced.Before(at) {
			at, wanted = ld.paced, true
		}
	}
	if at.Before(l.held) {
		at = l.held
	}
	return at, wanted
}

// turnsLocked returns the loads that are being read: the first so many that were
// begun.
func (l *loads) turnsLocked() []*load {
	if l.paused {
		return nil
	}
	all := slices.DeleteFunc(l.inOrderLocked(), func(ld *load) bool { return ld.work.Finished() })
	return all[:min(len(all), l.c.cfg.LoadWorkers)]
}

// inOrderLocked returns the loads in the order in which they began.
func (l *loads) inOrderLocked() []*load {
	return slices.SortedFunc(maps.Values(l.under), func(a, b *load) int { return cmp.Compare(a.id, b.id) })
}

// nextLoadLocked returns the load whose turn it is, or nil.
func (l *loads) nextLoadLocked(now time.Time) (next *load) {
	if now.Before(l.held) {
		return nil
	}
	for _, ld := range l.turnsLocked() {
		if !ld.paced.After(now) && (next == nil || ld.turn < next.turn) {
			next = ld
		}
	}
	return next
}

// endFinishedLocked writes the ends of the loads that are finished: of the initial
// ones only if all of them are.
func (l *loads) endFinishedLocked(w *millrace.UnitWriter) error {
	wait := false
	for _, ld := range l.under {
		wait = wait || ld.initial && !ld.work.Finished()
	}
	for _, ld := range l.inOrderLocked() {
		if !ld.work.Finished() || ld.initial && wait {
			continue
		}
		if err := ld.write(w, millrace.KindLoadEnd, &millrace.LoadInfo{Rows: ld.work.Rows()}); err != nil {
			return err
		}
		l.c.log.Info("load ended", "table", ld.name, "rows", ld.work.Rows(), "reason", ld.reason)
		l.recent = append(l.recent, endedLoad{ld.status(), l.tick})
		l.recent = l.recent[max(0, len(l.recent)-keepEnded):]
		delete(l.under, ld.table)
	}
	return nil
}
