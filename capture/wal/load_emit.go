package wal

import (
	"fmt"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/capture/chunk"
)

// beginLoad puts the begin of a load of a table into the unit under way. Where
// one is under way it begins its pass anew: the shadow generation stays, because
// the stream has kept it up, and the new pass reads every row again. If rows have
// gone without being sent, another load takes its place, since nothing would
// remove them from that generation.
func (d *decoder) beginLoad(table millrace.TableID, c cause, initial bool) error {
	schema := d.schemas[table]
	if err := d.see(schema, d.read); err != nil {
		return err
	}
	l := d.loads
	l.mu.Lock()
	defer l.mu.Unlock()
	reason := capture.Text(c.text)
	ld := l.byTable[table]
	if ld != nil && c.gone {
		initial = ld.initial
		l.removeLocked(ld)
		ld = nil
	}
	d.loaded[table] = true
	if ld != nil {
		ld.work.Restart()
		ld.reason = reason
		l.wakeLocked() // it may have been read to its end, and nobody be at it
		return d.loadEntry(ld, millrace.KindLoadProgress, &millrace.LoadInfo{Progress: ld.note()})
	}
	l.lastLoad++
	ld = &load{
		id: l.lastLoad, table: table, name: schema.QualifiedName(), reason: reason, initial: initial, schema: schema,
		work: chunk.NewLoad(l.limits), started: time.Now(),
	}
	l.addLocked(ld)
	d.metrics.loads.Inc()
	return d.loadEntry(ld, millrace.KindLoadBegin, &millrace.LoadInfo{Reason: reason, Progress: ld.note()})
}

func (l *loads) addLocked(ld *load) {
	l.byTable[ld.table] = ld
	l.count.Add(1)
	l.wakeLocked()
}

func (d *decoder) loadEntry(ld *load, kind millrace.Kind, info *millrace.LoadInfo) error {
	if err := d.w.Append(&millrace.Entry{Kind: kind, Table: ld.table, Load: ld.id, LoadInfo: info}); err != nil {
		return fmt.Errorf("load of %s: %w", ld.name, err)
	}
	return nil
}

// noteLoads puts into the unit under way what a successor has to know of the
// loads because of its changes, and the end of a load that they have finished: of
// which the last row that lacked columns is gone, or has them now.
func (d *decoder) noteLoads() error {
	if d.loads.count.Load() == 0 {
		return nil
	}
	d.loads.mu.Lock()
	defer d.loads.mu.Unlock()
	for _, ld := range d.loads.byTable {
		more, void := ld.work.Added()
		info := &millrace.LoadInfo{Added: more}
		switch {
		case void:
			info = &millrace.LoadInfo{Progress: ld.head()}
		case len(more) == 0:
			continue
		}
		if err := d.loadEntry(ld, millrace.KindLoadProgress, info); err != nil {
			return err
		}
	}
	for _, ld := range d.loads.byTable {
		if !ld.ending && ld.work.Finished() && d.mayEndLocked(ld) {
			if err := d.endLoadsLocked(ld); err != nil {
				return err
			}
		}
	}
	return nil
}

// arrive emits what waited for a message that has passed. One that is not known
// is that of a reader before us, or of one that gave up.
func (d *decoder) arrive(message string, at time.Time) error {
	l := d.loads
	l.mu.Lock()
	a := l.arrivals[message]
	if a == nil {
		l.mu.Unlock()
		return nil
	}
	delete(l.arrivals, message)
	l.mu.Unlock()
	if err := a.emit(d); err != nil {
		return err
	}
	clear(d.loaded)
	if err := d.give(at); err != nil {
		return err
	}
	close(a.passed)
	return nil
}

// give gives out the entries that are no transaction's as a unit, if there are
// any.
func (d *decoder) give(at time.Time) error {
	if d.w.Len() == 0 {
		return nil
	}
	if err := d.handOver(millrace.UnitEnd{Time: at, Token: d.position.Token()}); err != nil {
		return err
	}
	d.endLoads()
	return nil
}

// emitChunk emits the rows of a chunk but for those that the stream has changed
// itself, and the end of the load if they were the last.
func (d *decoder) emitChunk(ld *load, c chunk.Chunk, schema *millrace.Schema, rows *rowBuffer) error {
	d.loads.mu.Lock()
	defer d.loads.mu.Unlock()
	w := ld.window
	ld.window = nil
	d.loads.closeLocked(ld.table, w)
	if w.Overflown() {
		ld.overflows++
	}
	if ld.ended || w.Overflown() || schema != ld.schema {
		return nil // the worker reads it again
	}
	err := rows.each(func(key, row []byte) error {
		if w.LeavesOut(key) && !d.planted.windowless() {
			return nil
		}
		ld.work.Row(key)
		if err := d.w.Put(ld.table, key, nil, row, ld.id); err != nil {
			return err
		}
		return d.wrote()
	})
	if err != nil {
		return fmt.Errorf("load of %s: %w", ld.name, err)
	}
	d.metrics.copied.Add(float64(rows.n))
	for _, key := range ld.work.Done(w, c) {
		if err := d.w.Delete(ld.table, key); err != nil {
			return fmt.Errorf("load of %s: %w", ld.name, err)
		}
	}
	if !ld.work.Finished() || !d.mayEndLocked(ld) {
		return d.loadEntry(ld, millrace.KindLoadProgress, &millrace.LoadInfo{Progress: ld.note()})
	}
	return d.endLoadsLocked(ld)
}

// mayEndLocked reports whether a finished load ends now: an initial one waits for
// the others.
func (d *decoder) mayEndLocked(ld *load) bool {
	if !ld.initial {
		return true
	}
	for _, other := range d.loads.byTable {
		if other.initial && !other.work.Finished() {
			return false
		}
	}
	return true
}

// endLoadsLocked puts the end of a finished load into the unit under way; with
// an initial one, of all those.
func (d *decoder) endLoadsLocked(ld *load) error {
	for _, other := range d.loads.inOrderLocked() {
		if other != ld && (!ld.initial || !other.initial) {
			continue
		}
		if err := d.loadEntry(other, millrace.KindLoadEnd, &millrace.LoadInfo{Rows: other.work.Rows()}); err != nil {
			return err
		}
		other.ending, d.ending = true, true
	}
	return nil
}

// endLoads forgets the loads whose ends have been given out.
func (d *decoder) endLoads() {
	if !d.ending {
		return
	}
	d.ending = false
	l := d.loads
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, ld := range l.inOrderLocked() {
		if ld.ending {
			d.log.Info("load ended", "table", ld.name, "rows", ld.work.Rows(), "reason", ld.reason)
			l.recent = append(l.recent, endedLoad{ld.statusLocked(), d.position.LSN})
			l.recent = l.recent[max(0, len(l.recent)-keepEnded):]
			l.removeLocked(ld)
		}
	}
}

// removeLocked takes a load out.
func (l *loads) removeLocked(ld *load) {
	ld.ended = true
	if ld.window != nil {
		l.closeLocked(ld.table, ld.window)
	}
	delete(l.byTable, ld.table)
	l.count.Add(-1)
	l.wakeLocked()
}

// described tells a load that the stream has a newer schema of its table.
func (l *loads) described(s *millrace.Schema) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.schemas[s.Table] = s
	if ld := l.byTable[s.Table]; ld != nil {
		ld.schema, ld.name = s, s.QualifiedName()
	}
}

// redescribe describes a table that a worker found altered. Its changes under the
// schema before have all passed: the alteration waited for them, and the message came
// after it. The catalogs are asked here, and not by the worker before it wrote the
// message: what was altered in between may have passed already, and must not be taken
// back.
func (d *decoder) redescribe(id millrace.TableID) error {
	before := d.schemas[id]
	if before == nil {
		return nil // it has left the stream since
	}
	info, err := d.lookUp(id, nil)
	if err != nil || info == nil {
		return err // one that was dropped meanwhile the worker will not find again
	}
	s, err := info.Schema(millrace.ModeWAL)
	if err != nil {
		return err
	}
	_, err = d.adopt(before, s, info, cause{})
	return err
}

// dropLoad ends the load of a table that has just left the stream; those that
// waited for it end in the same unit.
func (d *decoder) dropLoad(table millrace.TableID) error {
	d.loads.mu.Lock()
	defer d.loads.mu.Unlock()
	delete(d.loads.schemas, table)
	ld := d.loads.byTable[table]
	if ld == nil {
		return nil
	}
	d.loads.removeLocked(ld)
	for _, other := range d.loads.inOrderLocked() {
		if ld.initial && other.initial && !other.ending {
			if !d.mayEndLocked(other) {
				return nil
			}
			return d.endLoadsLocked(other)
		}
	}
	return nil
}
