package log

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/millrace-db/millrace"
)

// refillMost is how many entries a log may lack to be filled up from the topic. What
// was not synced when a system crashed is less; a store that came from an image may
// be far ahead.
const refillMost = 1 << 20

// Start opens the log of the stream and epoch of a checkpoint, which the store has
// committed, and gives up what was appended and not committed. What the log has
// beyond the checkpoint is cut off. It returns where the records come from that the
// log lacks: the checkpoint itself, or an earlier one, and then what is between the
// two is to be appended and committed first, or Renew called. A log of another history
// is set aside. Start may be called again at any time by the writer.
func (l *Log) Start(c *millrace.Checkpoint) *millrace.Checkpoint {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return c
	}
	if l.w.f != nil && l.stream == c.Stream && l.epoch == c.Epoch && l.index == c.Index && l.chain == c.Chain {
		s := l.segments[len(l.segments)-1]
		err := l.w.cut(s.end)
		if err == nil {
			l.w.batch, l.w.stray = place{l.index, l.chain, s.end}, false
			return c
		}
		l.failLocked(fmt.Errorf("cut log: %w", err))
	}
	from, err := l.startLocked(c)
	if err != nil {
		l.failLocked(fmt.Errorf("open log: %w", err))
		l.w.batch, l.w.stray = place{index: c.Index, chain: c.Chain}, false
		return c
	}
	return from
}

func (l *Log) startLocked(c *millrace.Checkpoint) (*millrace.Checkpoint, error) {
	if err := l.w.close(); err != nil {
		return nil, err
	}
	if err := l.enterLocked(c); err != nil {
		return nil, err
	}
	l.resetLocked()
	all, last, err := l.loadLocked(c)
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return c, l.renewLocked(c)
	}
	s := all[len(all)-1]
	f, err := os.OpenFile(s.path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	from, end, err := recoverSegment(f, s, last, c)
	if err == nil && from != nil && from.Index != c.Index {
		// Without an offset there is no place in the topic to begin at.
		if c.Index-from.Index > refillMost || from.Offset == millrace.NoOffset && from.Index > 0 {
			from = nil
		}
	}
	if err != nil || from == nil {
		closeQuietly(f)
	}
	switch {
	case errors.Is(err, errOtherHistory):
		if err := l.setAsideLocked(); err != nil {
			return nil, err
		}
		return c, l.renewLocked(c)
	case err != nil:
		return nil, err
	case from == nil:
		return c, l.renewLocked(c)
	}
	if err := l.w.use(f, end); err != nil {
		closeQuietly(f)
		return nil, err
	}
	s.end, s.whole = end.pos, true
	s.sparse = slices.DeleteFunc(s.sparse, func(p place) bool { return p.pos > end.pos })
	l.segments, l.fault = all, nil
	l.endLocked(from)
	l.tellLocked()
	return from, nil
}

// enterLocked makes the directory of an epoch, and makes it ours.
func (l *Log) enterLocked(c *millrace.Checkpoint) error {
	dir := epochDir(l.opts.Dir, c.Epoch)
	if l.lock != nil && l.dir != dir {
		closeQuietly(l.lock)
		l.lock = nil
	}
	l.stream, l.epoch, l.dir = c.Stream, c.Epoch, dir
	if l.lock != nil {
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("%w; mend: choose a directory that this user may write (edge.log.dir)", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "log.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	// The kernel's lock on an open file holds between containers, and is gone with
	// the process.
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if err == nil {
		l.lock = f
		return nil
	}
	closeQuietly(f)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return fmt.Errorf("%w: %s; mend: give each edge a directory of its own (edge.log.dir)", ErrInUse, dir)
	}
	return fmt.Errorf("lock %s: %w; mend: use a local file system", dir, err)
}

// loadLocked lists the segments that can hold what comes before a checkpoint, each
// going on where the one before it ends, and returns the checkpoint that the newest
// begins at. It removes those behind the checkpoint, and those before a hole.
func (l *Log) loadLocked(c *millrace.Checkpoint) (all []*segment, last *millrace.Checkpoint, err error) {
	files, err := segmentFiles(l.dir)
	if err != nil {
		return nil, nil, err
	}
	for i := len(files) - 1; i >= 0; i-- {
		s, begins, err := loadSegment(files[i], l.opts.indexStep)
		switch {
		case errors.Is(err, ErrDamaged):
			l.opts.Logger.Warn("a segment of the log is dropped", "error", err)
			if len(all) > 0 {
				return all, last, removeAll(files[:i+1])
			}
			if err := os.Remove(files[i]); err != nil {
				return nil, nil, err
			}
			continue
		case err != nil:
			return nil, nil, err
		case begins.Stream != c.Stream || begins.Epoch != c.Epoch:
			return nil, nil, l.setAsideLocked()
		case begins.Index > c.Index:
			if err := os.Remove(files[i]); err != nil {
				return nil, nil, err
			}
			continue
		}
		if len(all) == 0 {
			all, last = []*segment{s}, begins
			continue
		}
		if newer := all[0]; s.end < newer.before || newer.before < s.begin.pos {
			l.opts.Logger.Warn("segments of the log before a hole are dropped", "path", s.path, "bytes", s.end, "want", newer.before)
			return all, last, removeAll(files[:i+1])
		}
		s.end = all[0].before
		all = slices.Insert(all, 0, s)
	}
	return all, last, nil
}

func removeAll(files []string) error {
	var errs []error
	for _, path := range files {
		errs = append(errs, os.Remove(path))
	}
	return errors.Join(errs...)
}

// setAsideLocked moves all segments where nothing looks for them, for whoever wants to
// know. What was set aside before is removed.
func (l *Log) setAsideLocked() error {
	aside := filepath.Join(l.dir, "aside")
	if err := os.RemoveAll(aside); err != nil {
		return err
	}
	if err := os.Mkdir(aside, 0o700); err != nil {
		return err
	}
	files, err := segmentFiles(l.dir)
	if err != nil {
		return err
	}
	for _, path := range files {
		if err := os.Rename(path, filepath.Join(aside, filepath.Base(path))); err != nil {
			return err
		}
	}
	l.opts.Logger.Warn("log of another history is set aside", "dir", aside, "segments", len(files))
	return nil
}

// errOtherHistory tells that a log is not of the store's history.
var errOtherHistory = errors.New("log of another history")

// recoverSegment looks for the place in the newest segment, which begins at a
// checkpoint, where the store's checkpoint is: behind the batch that it ends with.
// Every byte before that place is checked. If the whole part of the segment ends
// earlier, it returns the checkpoint of the last unit that is complete there.
func recoverSegment(f *os.File, s *segment, begins, c *millrace.Checkpoint) (from *millrace.Checkpoint, end place, err error) {
	t := trackFrom(s.begin)
	r := newFrames(f, s.begin.pos, s.end)
	for {
		if t.last.index == c.Index && t.last.chain == c.Chain {
			return c, t.last, nil
		}
		if t.last.index >= c.Index {
			return nil, place{}, errOtherHistory
		}
		record, err := r.next()
		if torn(err) {
			break
		}
		if err != nil {
			return nil, place{}, err
		}
		ended, err := t.step(record.Header, r.pos)
		if err != nil {
			break
		}
		if ended {
			s.note(t.unit)
		}
	}
	return foldSegment(f, s, begins, c.TopicID)
}

// foldSegment folds the records of a segment up to the first that is not whole.
func foldSegment(f *os.File, s *segment, begins *millrace.Checkpoint, topic string) (from *millrace.Checkpoint, end place, err error) {
	from, end = begins, s.begin
	fold := millrace.FoldFrom(begins)
	r := newFrames(f, s.begin.pos, s.end)
	var buf []byte
	for {
		frame, err := r.next()
		if torn(err) {
			return from, end, nil
		}
		if err != nil {
			return nil, place{}, err
		}
		record, err := millrace.DecodeRecord(frame.Value, buf)
		if err != nil {
			return from, end, nil //nolint:nilerr // all from here on is fetched again
		}
		outcome, err := fold.Step(record)
		if err != nil {
			return from, end, nil //nolint:nilerr // as above
		}
		if cap(record.Payload) > cap(buf) && len(frame.Value) < len(record.Payload) {
			buf = record.Payload[:0]
		}
		if outcome == millrace.Accepted && !fold.Open() {
			at := fold.Checkpoint()
			at.TopicID, at.Offset = topic, frame.Offset
			from, end = &at, place{at.Index, at.Chain, r.pos}
		}
	}
}

// torn tells that bytes are not whole, as opposed to not readable now.
func torn(err error) bool {
	return errors.Is(err, ErrDamaged) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

// frames reads whole frames of a part of a file and checks them.
type frames struct {
	d *Decoder
	// pos is where the next frame begins.
	pos int64
}

func newFrames(f io.ReaderAt, pos, end int64) *frames {
	return &frames{d: NewDecoder(bufferedSection(f, pos, end)), pos: pos}
}

func (f *frames) next() (*Record, error) {
	r, err := f.d.Next()
	if err == nil {
		f.pos += int64(frameHead + len(r.Value))
	}
	return r, err
}
