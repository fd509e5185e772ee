package log

import (
	"fmt"
	"os"
	"sort"
	"time"

	"github.com/millrace-db/millrace"
)

// End returns the index at which what the log shows ends. Errors: ErrClosed.
func (l *Log) End() (millrace.Index, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || len(l.segments) == 0 {
		return 0, fmt.Errorf("find end of log: %w", ErrClosed)
	}
	return l.index, nil
}

// Around returns the checkpoint at which the segment begins that a reader of what comes
// after an index would begin in, and that of the segment behind it, nil if there is
// none. What changed the catalog between two such places lies in that segment. Errors:
// those of Reader.
func (l *Log) Around(after millrace.Index) (begin, next *millrace.Checkpoint, err error) {
	l.mu.Lock()
	r, err := l.readerLocked(after)
	var behind *os.File
	if err == nil {
		i := sort.Search(len(l.segments), func(i int) bool { return l.segments[i].begin.index > after })
		if i < len(l.segments) {
			behind, err = os.Open(l.segments[i].path)
		}
	}
	l.mu.Unlock()
	if r != nil && r.f != nil {
		defer closeQuietly(r.f)
	}
	if behind != nil {
		defer closeQuietly(behind)
	}
	if err != nil {
		return nil, nil, err
	}
	if begin, _, _, err = readSegmentHead(r.f); err == nil && behind != nil {
		next, _, _, err = readSegmentHead(behind)
	}
	if err != nil {
		return nil, nil, r.damaged(fmt.Errorf("%s: %w", r.seg.path, err))
	}
	return begin, next, nil
}

// Unit returns the index of the newest unit that is complete before the newest batch that
// Next gave, or before the place where the reader began.
func (r *Reader) Unit() millrace.Index { return r.track.unit.index }

// UnitEnd looks ahead, by headers alone, for the end of the unit in the middle of which
// Next has led the reader. It returns the index of the unit's last entry, and when the
// unit was committed at the source. Where the newest batch ended its unit, that is its
// own last index.
func (r *Reader) UnitEnd() (millrace.Index, time.Time, error) {
	if r.err != nil {
		return 0, time.Time{}, r.err
	}
	w := &window{f: r.f, end: r.end}
	t := r.track
	at := time.Time{}
	for pos := r.pos; pos < r.end; {
		h, next, err := w.header(pos)
		if err != nil {
			return 0, at, r.damaged(damage(r.seg.path, pos, err))
		}
		ended, err := t.step(h, next)
		if err != nil {
			return 0, at, r.damaged(damage(r.seg.path, pos, err))
		}
		if ended {
			return t.unit.index, at, nil
		}
		if h.Kind == millrace.RecordBatch {
			at = h.Time
		}
		pos = next
	}
	return t.last.index, at, nil
}
