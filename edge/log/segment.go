package log

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"github.com/millrace-db/millrace"
)

const (
	segmentSuffix  = ".mlog"
	segmentVersion = 1
	// segmentHead is the size of a segment's header without its checkpoint.
	segmentHead = 24
	// maxCheckpoint bounds a checkpoint in bytes: its catalog fits into a State.
	maxCheckpoint = millrace.MaxPayload + 64<<10
	// indexStep is how far apart in bytes places of the sparse index are at least, if
	// the log does not say otherwise.
	indexStep = 256 << 10
)

var segmentMagic = [4]byte{'M', 'L', 'R', 'L'}

// segment is one file of the log. Its fields but sparse change only under the log's
// mutex.
type segment struct {
	path string
	// begin is where its records begin: the end of the unit before them.
	begin place
	// time is when that unit was committed at the source, or the first one in it.
	time time.Time
	// before is the size of the segment before it; 0 if it is the first of its log.
	before int64
	// end is where what is shown ends, which is behind a batch or behind the header.
	end int64
	// sparse are places in order, from begin on. whole tells that they go up to end;
	// those of a segment that an earlier process wrote are looked up when first
	// needed.
	sparse []place
	step   int64
	whole  bool
	// damaged tells that a reader found it so, stuck that it could not be removed.
	damaged, stuck bool
}

func segmentPath(dir string, after millrace.Index) string {
	return filepath.Join(dir, fmt.Sprintf("%020d", uint64(after))+segmentSuffix)
}

// appendSegmentHead appends the header of a segment that begins at a checkpoint.
func appendSegmentHead(dst []byte, c *millrace.Checkpoint, before int64) []byte {
	n := len(dst)
	dst = append(dst, segmentMagic[:]...)
	dst = append(dst, segmentVersion, 0, 0, 0)
	dst = binary.BigEndian.AppendUint64(dst, uint64(before))
	dst = append(dst, 0, 0, 0, 0, 0, 0, 0, 0) // length of the checkpoint, CRC
	dst = millrace.AppendCheckpoint(dst, c)
	binary.BigEndian.PutUint32(dst[n+16:], uint32(len(dst)-n-segmentHead))
	binary.BigEndian.PutUint32(dst[n+20:], headCRC(dst[n:]))
	return dst
}

// headCRC is the CRC-32C of a segment's header but its CRC.
func headCRC(b []byte) uint32 {
	return crc32.Update(crc32.Checksum(b[:20], castagnoli), castagnoli, b[segmentHead:])
}

// readSegmentHead reads a segment's header. It returns the checkpoint that the segment
// begins at, the size of the segment before it, and where its records begin.
func readSegmentHead(r io.Reader) (c *millrace.Checkpoint, before, size int64, err error) {
	head := make([]byte, segmentHead)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, 0, 0, fmt.Errorf("%w: segment's header: %w", ErrDamaged, err)
	}
	if !bytes.Equal(head[:4], segmentMagic[:]) || head[4] != segmentVersion {
		return nil, 0, 0, fmt.Errorf("%w: it does not begin as a segment of version %d", ErrDamaged, segmentVersion)
	}
	n := binary.BigEndian.Uint32(head[16:])
	if n > maxCheckpoint {
		return nil, 0, 0, fmt.Errorf("%w: a checkpoint of %d bytes cannot be", ErrDamaged, n)
	}
	body, err := readGrowing(r, nil, int(n))
	if err != nil {
		return nil, 0, 0, fmt.Errorf("%w: segment's checkpoint: %w", ErrDamaged, err)
	}
	if got, want := headCRC(append(head, body...)), binary.BigEndian.Uint32(head[20:]); got != want {
		return nil, 0, 0, fmt.Errorf("%w: CRC-32C of the header is %08x, the bytes give %08x", ErrDamaged, want, got)
	}
	if before = int64(binary.BigEndian.Uint64(head[8:])); before < 0 || [3]byte(head[5:]) != [3]byte{} {
		return nil, 0, 0, fmt.Errorf("%w: segment's header", ErrDamaged)
	}
	if c, err = millrace.DecodeCheckpoint(body); err != nil {
		return nil, 0, 0, fmt.Errorf("%w: segment's checkpoint: %w", ErrDamaged, err)
	}
	return c, before, segmentHead + int64(n), nil
}

// loadSegment opens what an earlier process has left. All that the file holds counts
// as shown.
func loadSegment(path string, step int64) (*segment, *millrace.Checkpoint, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer closeQuietly(f)
	c, before, size, err := readSegmentHead(f)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	if filepath.Base(segmentPath("", c.Index)) != filepath.Base(path) {
		return nil, nil, fmt.Errorf("%s: %w: it begins after index %v", path, ErrDamaged, c.Index)
	}
	info, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	return newSegment(path, c, before, size, info.Size(), step), c, nil
}

func newSegment(path string, c *millrace.Checkpoint, before, size, end, step int64) *segment {
	begin := place{c.Index, c.Chain, size}
	return &segment{path: path, begin: begin, time: c.Time, before: before, end: end, sparse: []place{begin}, step: step}
}

// segmentFiles lists the segments in a directory, oldest first.
func segmentFiles(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var all []string
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), segmentSuffix) && !e.IsDir() {
			all = append(all, filepath.Join(dir, e.Name()))
		}
	}
	return all, nil
}

// note enters the end of a unit into the sparse index.
func (s *segment) note(p place) {
	if p.pos >= s.sparse[len(s.sparse)-1].pos+s.step {
		s.sparse = append(s.sparse, p)
	}
}

// from returns the newest place of the sparse index at or before an index. The segment
// must begin there or before.
func (s *segment) from(after millrace.Index) place {
	i := sort.Search(len(s.sparse), func(i int) bool { return s.sparse[i].index > after })
	return s.sparse[i-1]
}

// window reads a file a piece at a time, for walking from head to head.
type window struct {
	f   io.ReaderAt
	end int64
	at  int64
	buf []byte
}

const windowSize = 32 << 10

// bytes returns n bytes at pos, valid until the next call.
func (w *window) bytes(pos int64, n int) ([]byte, error) {
	if pos+int64(n) > w.end {
		return nil, io.ErrUnexpectedEOF
	}
	if pos < w.at || pos+int64(n) > w.at+int64(len(w.buf)) {
		size := int(min(int64(max(n, windowSize)), w.end-pos))
		if cap(w.buf) < size {
			w.buf = make([]byte, size)
		}
		w.at, w.buf = pos, w.buf[:size]
		if got, err := w.f.ReadAt(w.buf, pos); got < size {
			w.buf = w.buf[:0]
			if err == nil || errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
	return w.buf[pos-w.at:][:n], nil
}

// header reads the header of the record whose frame stands at pos, and where that
// frame ends. It believes the bytes.
func (w *window) header(pos int64) (*millrace.Header, int64, error) {
	b, err := w.bytes(pos, frameHead+millrace.HeaderRoom)
	if err != nil {
		return nil, 0, err
	}
	size, err := frameSize(b)
	if err != nil {
		return nil, 0, err
	}
	if pos+int64(frameHead+size) > w.end {
		return nil, 0, io.ErrUnexpectedEOF
	}
	room := min(size, millrace.HeaderRoom+int(binary.BigEndian.Uint16(b[frameHead+6:])))
	if b, err = w.bytes(pos, frameHead+room); err != nil {
		return nil, 0, err
	}
	h, err := millrace.DecodeHeader(b[frameHead:])
	if err != nil {
		return nil, 0, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return h, pos + int64(frameHead+size), nil
}

// damage makes an error of a segment's bytes one that names the place.
func damage(path string, pos int64, err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = fmt.Errorf("%w: it is cut off", ErrDamaged)
	}
	return fmt.Errorf("read %s at byte %d: %w", path, pos, err)
}

// places walks the units from one place up to end, without looking at payloads, and
// calls fn for the end of each until it returns false. What ends at end is complete.
func places(f io.ReaderAt, path string, from place, end int64, fn func(place) bool) error {
	w := &window{f: f, end: end}
	t := trackFrom(from)
	for pos := from.pos; pos < end; {
		h, next, err := w.header(pos)
		if err != nil {
			return damage(path, pos, err)
		}
		ended, err := t.step(h, next)
		if err != nil {
			return damage(path, pos, err)
		}
		if ended && !fn(t.unit) {
			return nil
		}
		pos = next
	}
	fn(t.last)
	return nil
}

func closeQuietly(f *os.File) { _ = f.Close() } // it was only read
