package log

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/millrace-db/millrace"
)

// retryEvery is how long a log that cannot be written waits before it tries again.
const retryEvery = 10 * time.Second

// copyBelow is up to which size a record is copied behind its head, so that both are
// one write.
const copyBelow = 64 << 10

// writer is the state of the goroutine that writes.
type writer struct {
	// f is the segment in use; nil while the log cannot be written.
	f *os.File
	// pos is where the next frame goes. batch is the end of the newest whole batch.
	// What lies between what is shown and pos is not committed yet.
	pos   int64
	batch place
	// open tells that a unit has begun, at unitPos, and not ended.
	open    bool
	unitPos int64
	// stray tells that what came last was no whole batch, so the log cannot begin at
	// the end of the newest one.
	stray bool
	retry time.Time
	buf   []byte
}

func (w *writer) close() error {
	f := w.f
	w.f, w.open = nil, false
	if f == nil {
		return nil
	}
	return f.Close()
}

// use makes f, of which all up to p is kept, what is appended to.
func (w *writer) use(f *os.File, p place) error {
	if err := f.Truncate(p.pos); err != nil {
		return err
	}
	w.f, w.pos, w.batch, w.open, w.stray = f, p.pos, p, false, false
	return nil
}

// cut gives up what was written from pos on.
func (w *writer) cut(pos int64) error {
	w.open = false
	if w.pos == pos {
		return nil
	}
	if err := w.f.Truncate(pos); err != nil {
		return err
	}
	w.pos = pos
	return nil
}

func (w *writer) write(offset millrace.Offset, value []byte) error {
	w.buf = appendHead(w.buf[:0], offset, value)
	rest := value
	if len(value) < copyBelow {
		w.buf, rest = append(w.buf, value...), nil
	}
	if _, err := w.f.WriteAt(w.buf, w.pos); err != nil {
		return err
	}
	if len(rest) > 0 {
		if _, err := w.f.WriteAt(rest, w.pos+int64(len(w.buf))); err != nil {
			return err
		}
	}
	w.pos += int64(len(w.buf) + len(rest))
	return nil
}

// Append writes a record that the fold has accepted: r decoded from value. whole tells
// that a batch ends with its unit. It is not shown before Commit. A Term record makes
// the unit void that was begun and not ended. What keeps the log from being written
// is shown by Status and held against nobody.
func (l *Log) Append(offset millrace.Offset, value []byte, r *millrace.Record, whole bool) {
	w := &l.w
	batch := r.Kind == millrace.RecordBatch
	if w.f != nil {
		if err := w.append(offset, value, r, whole); err != nil {
			l.fail(fmt.Errorf("append to log: %w", err))
		}
	}
	w.stray = !batch || !whole
	if batch && whole {
		w.batch = place{r.Last(), r.Chain, w.pos}
	}
}

func (w *writer) append(offset millrace.Offset, value []byte, r *millrace.Record, whole bool) error {
	switch {
	case len(value) > millrace.MaxRecord || len(value) < millrace.HeaderRoom:
		return fmt.Errorf("record of %d bytes: %w", len(value), millrace.ErrTooLarge)
	case r.Kind == millrace.RecordTerm && w.open:
		if err := w.cut(w.unitPos); err != nil {
			return err
		}
	case r.Kind == millrace.RecordBatch && !w.open:
		w.open, w.unitPos = true, w.pos
	}
	if err := w.write(offset, value); err != nil {
		return err
	}
	if whole {
		w.open = false
	}
	return nil
}

// Commit shows what was appended up to the batch that ends at a checkpoint, which the
// store has committed. Then it begins a new segment where that is due, and drops old
// ones.
func (l *Log) Commit(at *millrace.Checkpoint) {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := &l.w
	switch {
	case l.closed:
		return
	case w.f == nil:
		l.retryLocked(at)
		return
	case w.batch.index != at.Index || w.batch.chain != at.Chain:
		l.failLocked(fmt.Errorf("the store has come to index %v, the log to %v", at.Index, w.batch.index))
		return
	}
	s := l.segments[len(l.segments)-1]
	s.end = w.batch.pos
	s.note(w.batch)
	if s.time.IsZero() {
		s.time = at.Time // of a stream that had no units yet
	}
	l.endLocked(at)
	l.tellLocked()
	if w.pos == s.end && l.rollDueLocked(s, at) {
		if err := l.rollLocked(at, s.end); err != nil {
			l.failLocked(fmt.Errorf("begin a segment: %w", err))
			return
		}
	}
	l.pruneLocked(time.Now())
}

// rollDueLocked tells whether the segment in use is to be ended. Its time is bounded
// too, so that what is too old can go.
func (l *Log) rollDueLocked(s *segment, at *millrace.Checkpoint) bool {
	if s.end == s.begin.pos {
		return false
	}
	return s.damaged || s.end >= l.opts.SegmentBytes ||
		!s.time.IsZero() && !at.Time.IsZero() && at.Time.Sub(s.time) >= l.opts.Retain/16
}

// rollLocked begins a segment behind one of the given size.
func (l *Log) rollLocked(at *millrace.Checkpoint, before int64) error {
	path := segmentPath(l.dir, at.Index)
	head := appendSegmentHead(nil, at, before)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	size := int64(len(head))
	if _, err = f.WriteAt(head, 0); err == nil {
		old := l.w.f
		if err = l.w.use(f, place{at.Index, at.Chain, size}); err == nil {
			if old != nil {
				closeQuietly(old) // nothing is buffered
			}
			s := newSegment(path, at, before, size, size, l.opts.indexStep)
			s.whole = true
			l.segments = append(l.segments, s)
			return nil
		}
	}
	closeQuietly(f)
	_ = os.Remove(path) // the next start drops it if this fails too
	return err
}

// pruneLocked drops the oldest segments while there is too much, or they are too old,
// or one that is damaged stands among them. The segment in use stays.
func (l *Log) pruneLocked(now time.Time) {
	damaged := -1
	for i, s := range l.segments {
		if s.damaged {
			damaged = i
		}
	}
	total := l.bytesLocked()
	for len(l.segments) > 1 {
		oldest, next := l.segments[0], l.segments[1]
		old := !next.time.IsZero() && now.Sub(next.time) > l.opts.Retain
		if damaged < 0 && total <= l.opts.MaxBytes && !old {
			return
		}
		if err := os.Remove(oldest.path); err != nil && !os.IsNotExist(err) {
			if !oldest.stuck {
				oldest.stuck = true
				l.opts.Logger.Warn("a segment of the log cannot be removed", "path", oldest.path, "error", err)
			}
			return
		}
		total -= oldest.end
		damaged--
		// The backing array is not kept: there are readers of the old one's items only.
		l.segments = append([]*segment(nil), l.segments[1:]...)
	}
}

// Renew drops what the log holds and begins anew at a checkpoint, which the store has
// committed and which ends a batch.
func (l *Log) Renew(at *millrace.Checkpoint) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || l.dir == "" {
		return
	}
	if err := l.renewLocked(at); err != nil {
		l.failLocked(fmt.Errorf("begin log anew: %w", err))
	}
}

func (l *Log) renewLocked(at *millrace.Checkpoint) error {
	if err := l.w.close(); err != nil {
		return err
	}
	files, err := segmentFiles(l.dir)
	if err != nil {
		return err
	}
	for _, path := range files {
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	if len(files) > 0 {
		l.opts.Logger.Warn("log begins anew", "dir", l.dir, "index", at.Index)
		l.metrics.renewed.Inc()
	}
	l.resetLocked()
	if err := l.rollLocked(at, 0); err != nil {
		return err
	}
	l.endLocked(at)
	l.fault = nil
	return nil
}

// endLocked notes where what is shown ends.
func (l *Log) endLocked(at *millrace.Checkpoint) {
	l.index, l.chain, l.time, l.topic = at.Index, at.Chain, at.Time, at.TopicID
}

// resetLocked forgets all segments; readers have to look up again.
func (l *Log) resetLocked() {
	l.generation++
	l.segments, l.index, l.chain = nil, 0, millrace.Chain{}
	l.tellLocked()
}

func (l *Log) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failLocked(err)
}

// failLocked leaves the log as it is to its readers, and not to the writer.
func (l *Log) failLocked(err error) {
	_ = l.w.close() // the error at hand says more
	l.w.retry = time.Now().Add(retryEvery)
	if l.fault == nil || l.fault.Error() != err.Error() {
		l.opts.Logger.Warn("log cannot be written; the store goes on without it", "dir", filepath.Clean(l.opts.Dir), "error", err)
	}
	l.fault = err
}

// retryLocked tries to make a log that could not be written one that can: it goes on
// where it has all up to the checkpoint, or begins anew there.
func (l *Log) retryLocked(at *millrace.Checkpoint) {
	w := &l.w
	if l.fault == nil || w.stray || w.batch.index != at.Index || w.batch.chain != at.Chain || time.Now().Before(w.retry) {
		return
	}
	from, err := l.startLocked(at)
	if err == nil && from.Index != at.Index {
		err = l.renewLocked(at)
	}
	if err != nil {
		l.failLocked(err)
		return
	}
	l.opts.Logger.Info("log is written again", "dir", l.dir, "index", at.Index)
}
