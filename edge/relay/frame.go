package relay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// frameKind says what a frame is.
type frameKind uint8

const (
	// frameHello is a child's first frame.
	frameHello frameKind = 1
	// frameWelcome is the upstream's first frame: a State.
	frameWelcome frameKind = 2
	// frameClose is the upstream's last frame.
	frameClose frameKind = 3
	// frameRecords is a piece of the upstream's log. Pieces are cut anywhere.
	frameRecords frameKind = 4
	// frameState says where the upstream stands.
	frameState frameKind = 5
	// framePlace says where the child stands.
	framePlace frameKind = 6
	// frameReport is what the child has to tell, for whoever knows what it means.
	frameReport frameKind = 7
)

const (
	// frameHead is the size of what stands before the content of a frame.
	frameHead = 12
	// maxControl bounds the content of a frame that says something, in bytes.
	maxControl = 64 << 10
	// maxPiece bounds that of a piece of the log, MaxReport that of a report.
	maxPiece = 1 << 20
	// MaxReport bounds a report in bytes.
	MaxReport = 1 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// limit is the greatest content of a kind, -1 for one that is unknown.
func (k frameKind) limit() int {
	switch k {
	case frameHello, frameWelcome, frameClose, frameState, framePlace:
		return maxControl
	case frameRecords:
		return maxPiece
	case frameReport:
		return MaxReport
	}
	return -1
}

// appendFrameHead appends the head of a frame. That of a piece of the log covers itself
// only: the records in it have CRCs of their own, and its bytes go from file to socket
// unseen.
func appendFrameHead(dst []byte, kind frameKind, size int, content []byte) []byte {
	n := len(dst)
	dst = append(dst, byte(kind), 0, 0, 0)
	dst = binary.BigEndian.AppendUint32(dst, uint32(size))
	crc := crc32.Checksum(dst[n:], castagnoli)
	if kind != frameRecords {
		crc = crc32.Update(crc, castagnoli, content)
	}
	return binary.BigEndian.AppendUint32(dst, crc)
}

func appendFrame(dst []byte, kind frameKind, content []byte) []byte {
	return append(appendFrameHead(dst, kind, len(content), content), content...)
}

// frameReader reads frames. It is used by one goroutine.
type frameReader struct {
	r    io.Reader
	head [frameHead]byte
	buf  []byte
}

// next reads the head of the next frame and, unless it is a piece of the log, its
// content, which is valid until the next call. Of a piece it returns the size alone,
// and the caller reads the content. Between two frames the end is io.EOF.
func (f *frameReader) next() (kind frameKind, content []byte, size int, err error) {
	if _, err := io.ReadFull(f.r, f.head[:]); err != nil {
		return 0, nil, 0, err
	}
	kind = frameKind(f.head[0])
	if f.head[1]|f.head[2]|f.head[3] != 0 {
		return 0, nil, 0, fmt.Errorf("%w: reserved bytes are set", errFrame)
	}
	most := kind.limit()
	if most < 0 {
		return 0, nil, 0, fmt.Errorf("%w: kind %d is unknown", errFrame, kind)
	}
	n := binary.BigEndian.Uint32(f.head[4:])
	if n > uint32(most) {
		return 0, nil, 0, fmt.Errorf("%w: kind %d with %d bytes, at most %d are possible", errFrame, kind, n, most)
	}
	crc := crc32.Checksum(f.head[:8], castagnoli)
	if kind != frameRecords {
		if content, err = f.read(int(n)); err != nil {
			return 0, nil, 0, err
		}
		crc = crc32.Update(crc, castagnoli, content)
	}
	if want := binary.BigEndian.Uint32(f.head[8:]); crc != want {
		return 0, nil, 0, fmt.Errorf("%w: CRC-32C is %08x, the bytes give %08x", errFrame, want, crc)
	}
	return kind, content, int(n), nil
}

// read reads n bytes, making room for what has come, not for what is announced.
func (f *frameReader) read(n int) ([]byte, error) {
	const step = 64 << 10
	f.buf = f.buf[:0]
	for len(f.buf) < n {
		have := len(f.buf)
		more := min(n-have, max(step, cap(f.buf)-have))
		if cap(f.buf) < have+more {
			f.buf = append(make([]byte, 0, min(n, max(2*cap(f.buf), have+more))), f.buf...)
		}
		f.buf = f.buf[:have+more]
		if _, err := io.ReadFull(f.r, f.buf[have:]); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
	return f.buf, nil
}
