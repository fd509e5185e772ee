package log

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sort"

	"github.com/millrace-db/millrace"
)

func bufferedSection(f io.ReaderAt, pos, end int64) io.Reader {
	return bufio.NewReaderSize(io.NewSectionReader(f, pos, end-pos), 64<<10)
}

// Reader gives the records of a log in their order, and waits for more at its end. It
// is used by one goroutine, by Next or by CopyTo: a reader that Next has led behind a
// batch cannot tell whether a unit ends there. It keeps one file open, and segments
// that are dropped meanwhile it reads to their end.
type Reader struct {
	log        *Log
	generation uint64
	from       place
	seg        *segment
	f          *os.File
	pos, end   int64
	track      track
	head       [frameHead]byte
	buf        []byte
	err        error
}

// Reader returns a reader of what comes after an index: it begins at the newest end of
// a unit, at or before that index, at which a batch ended too. From says which. The
// Term and State records that came between that and the next batch come first.
// Errors: PrunedError, ErrAhead, ErrDamaged, ErrClosed.
func (l *Log) Reader(after millrace.Index) (*Reader, error) {
	l.mu.Lock()
	r, err := l.readerLocked(after)
	l.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if err := r.seek(after); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

func (l *Log) readerLocked(after millrace.Index) (*Reader, error) {
	if l.closed || len(l.segments) == 0 {
		return nil, fmt.Errorf("read log after index %v: %w", after, ErrClosed)
	}
	if after > l.index {
		return nil, fmt.Errorf("read log after index %v: %w; it ends at index %v", after, ErrAhead, l.index)
	}
	i := sort.Search(len(l.segments), func(i int) bool { return l.segments[i].begin.index > after }) - 1
	if i < 0 {
		return nil, &PrunedError{After: after, Oldest: l.segments[0].begin.index}
	}
	r := &Reader{log: l, generation: l.generation}
	return r, r.openLocked(l.segments[i])
}

// openLocked goes to the beginning of a segment.
func (r *Reader) openLocked(s *segment) error {
	f, err := os.Open(s.path)
	if err != nil {
		return err
	}
	if r.f != nil {
		closeQuietly(r.f)
	}
	r.f, r.seg, r.pos, r.end = f, s, s.begin.pos, s.end
	return nil
}

// seek goes to the newest end of a unit in the segment that is not after an index.
func (r *Reader) seek(after millrace.Index) error {
	if err := r.index(); err != nil {
		return err
	}
	r.log.mu.Lock()
	from := r.seg.from(after)
	r.log.mu.Unlock()
	at := from
	err := places(r.f, r.seg.path, from, r.end, func(p place) bool {
		if p.index <= after {
			at = p
		}
		return p.index < after
	})
	if err != nil {
		return r.damaged(err)
	}
	r.from, r.pos, r.track = at, at.pos, trackFrom(at)
	return nil
}

// index makes the sparse index of the segment, if it was not made yet.
func (r *Reader) index() error {
	r.log.mu.Lock()
	whole, begin := r.seg.whole, r.seg.begin
	r.log.mu.Unlock()
	if whole {
		return nil
	}
	made := segment{sparse: []place{begin}, step: r.seg.step}
	err := places(r.f, r.seg.path, begin, r.end, func(p place) bool {
		made.note(p)
		return true
	})
	if err != nil {
		return r.damaged(err)
	}
	r.log.mu.Lock()
	defer r.log.mu.Unlock()
	if !r.seg.whole {
		r.seg.sparse, r.seg.whole = made.sparse, true
	}
	return nil
}

// damaged takes an error of reading, and tells the log where the bytes are to blame.
func (r *Reader) damaged(err error) error {
	l := r.log
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.generation != r.generation {
		return ErrRenewed // it was cut off under the reader
	}
	if errors.Is(err, ErrDamaged) && !r.seg.damaged {
		r.seg.damaged = true
		l.metrics.damaged.Inc()
		l.opts.Logger.Error("log is damaged; what lies up to there is dropped", "error", err, "mend", "look at the disk; edges that lack it follow another log or take an image")
	}
	return err
}

// From returns the index and chain of the place where the reader began: the first
// batch goes on from there.
func (r *Reader) From() (millrace.Index, millrace.Chain) { return r.from.index, r.from.chain }

// At returns the index and chain after the newest batch that was given.
func (r *Reader) At() (millrace.Index, millrace.Chain) { return r.track.last.index, r.track.last.chain }

// Next returns the next record, and waits for it. Its bytes are those that were
// written, and it continues what the reader gave before; otherwise the error is
// ErrDamaged. Other errors: ErrPruned where the reader was overtaken, ErrRenewed,
// ErrClosed, and that of ctx, after which it may be called again.
func (r *Reader) Next(ctx context.Context) (*Record, error) {
	if r.err != nil {
		return nil, r.err
	}
	if err := r.wait(ctx); err != nil {
		return nil, err
	}
	record, next, err := r.read()
	if err == nil {
		_, err = r.track.step(record.Header, next)
	}
	if err != nil {
		r.err = r.damaged(damage(r.seg.path, r.pos, err))
		return nil, r.err
	}
	r.pos = next
	return record, nil
}

func (r *Reader) read() (*Record, int64, error) {
	body := r.pos + frameHead
	if body > r.end {
		return nil, 0, io.ErrUnexpectedEOF
	}
	if err := readFull(r.f, r.head[:], r.pos); err != nil {
		return nil, 0, err
	}
	size, err := frameSize(r.head[:])
	if err != nil {
		return nil, 0, err
	}
	if body+int64(size) > r.end {
		return nil, 0, io.ErrUnexpectedEOF
	}
	if cap(r.buf) < size {
		r.buf = make([]byte, size)
	}
	r.buf = r.buf[:size]
	if err := readFull(r.f, r.buf, body); err != nil {
		return nil, 0, err
	}
	record, err := decodeFrame(r.head[:], r.buf)
	return record, body + int64(size), err
}

func readFull(f io.ReaderAt, b []byte, pos int64) error {
	n, err := f.ReadAt(b, pos)
	if n == len(b) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// wait returns when there is a record at pos.
func (r *Reader) wait(ctx context.Context) error {
	for r.pos >= r.end {
		changed, err := r.advance()
		if err != nil {
			r.err = err
			return err
		}
		if changed == nil {
			continue
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return ctx.Err()
}

// advance looks what more there is. It returns a channel to wait on if there is
// nothing.
func (r *Reader) advance() (<-chan struct{}, error) {
	l := r.log
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.closed:
		return nil, ErrClosed
	case l.generation != r.generation || len(l.segments) == 0:
		return nil, ErrRenewed
	}
	if r.end = r.seg.end; r.pos < r.end {
		return nil, nil
	}
	last := l.segments[len(l.segments)-1]
	if r.seg == last {
		return l.changed, nil
	}
	// The segment was ended, and may be gone.
	at := r.track.last
	i := sort.Search(len(l.segments), func(i int) bool { return l.segments[i].begin.index >= at.index })
	switch {
	case i < len(l.segments) && l.segments[i].begin.index == at.index && l.segments[i].begin.chain == at.chain:
	case l.segments[0].begin.index > at.index:
		return nil, &PrunedError{After: at.index, Oldest: l.segments[0].begin.index}
	default:
		return nil, fmt.Errorf("%w: no segment begins after index %v", ErrDamaged, at.index)
	}
	if err := r.openLocked(l.segments[i]); err != nil {
		return nil, err
	}
	r.track = trackFrom(l.segments[i].begin)
	return nil, nil
}

// CopyTo waits for records and writes their frames, as they are stored, to w: whole
// units, about most bytes of them, but at least one. Where the platform can, the bytes
// of the file go into a TCP connection without being copied. They are not looked at:
// a Decoder at the other end does that. It returns how many bytes were written. After
// an error of w the reader is of no more use.
func (r *Reader) CopyTo(ctx context.Context, w io.Writer, most int64) (int64, error) {
	if r.err != nil {
		return 0, r.err
	}
	if r.track.unit != r.track.last {
		return 0, fmt.Errorf("send log: Next has led the reader behind index %v, where a unit may go on", r.track.last.index)
	}
	if err := r.wait(ctx); err != nil {
		return 0, err
	}
	to, err := r.upTo(most)
	if err != nil {
		r.err = err
		return 0, err
	}
	if _, err := r.f.Seek(r.pos, io.SeekStart); err != nil {
		return 0, err
	}
	n, err := io.Copy(w, &io.LimitedReader{R: r.f, N: to.pos - r.pos})
	if err == nil && n < to.pos-r.pos {
		err = r.damaged(damage(r.seg.path, r.pos+n, io.ErrUnexpectedEOF))
	}
	if err != nil {
		r.err = err
		return n, err
	}
	r.pos, r.track = to.pos, trackFrom(to)
	return n, nil
}

// upTo returns where to end what begins at pos: the farthest place of the sparse index
// within most bytes, or else the nearest.
func (r *Reader) upTo(most int64) (place, error) {
	if err := r.index(); err != nil {
		return place{}, err
	}
	r.log.mu.Lock()
	if r.log.generation != r.generation {
		r.log.mu.Unlock()
		return place{}, ErrRenewed
	}
	sparse := r.seg.sparse
	if end := r.seg.end; end == r.end && r.seg == r.log.segments[len(r.log.segments)-1] && end <= r.pos+most {
		// All that is shown.
		to := place{r.log.index, r.log.chain, end}
		r.log.mu.Unlock()
		return to, nil
	}
	i := sort.Search(len(sparse), func(i int) bool { return sparse[i].pos > r.pos+most })
	var to place
	switch {
	case i > 0 && sparse[i-1].pos > r.pos:
		to = sparse[i-1]
	case i < len(sparse):
		to = sparse[i]
	}
	r.log.mu.Unlock()
	if to.pos > r.pos && to.pos <= r.end {
		return to, nil
	}
	// What is left is less than a step of the index.
	var last place
	err := places(r.f, r.seg.path, trackPlace(r), r.end, func(p place) bool {
		last = p
		return true
	})
	if err != nil {
		return place{}, r.damaged(err)
	}
	return last, nil
}

// trackPlace is where the reader stands: behind a unit, with what came behind it.
func trackPlace(r *Reader) place { return place{r.track.last.index, r.track.last.chain, r.pos} }

// Close gives the reader's file up.
func (r *Reader) Close() error {
	r.err = ErrClosed
	if r.f == nil {
		return nil
	}
	f := r.f
	r.f = nil
	return f.Close()
}
