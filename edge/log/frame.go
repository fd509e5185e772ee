package log

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/millrace-db/millrace"
)

// frameHead is the size of what stands before each record: its length, its offset in
// the topic, and a CRC-32C of both and the record.
const frameHead = 16

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Record is one record of the log.
type Record struct {
	// Offset is where the record stood in the topic; NoOffset if it came another way.
	Offset millrace.Offset
	// Header is the record's, without its signature. Value is all of the record as
	// the topic has it, valid until the next call.
	Header *millrace.Header
	Value  []byte
}

// appendHead appends the head of the frame of a record.
func appendHead(dst []byte, offset millrace.Offset, value []byte) []byte {
	n := len(dst)
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(value)))
	dst = binary.BigEndian.AppendUint64(dst, uint64(offset))
	crc := crc32.Update(crc32.Checksum(dst[n:], castagnoli), castagnoli, value)
	return binary.BigEndian.AppendUint32(dst, crc)
}

// AppendFrame appends the frame of a record, as a Decoder reads it.
func AppendFrame(dst []byte, offset millrace.Offset, value []byte) []byte {
	return append(appendHead(dst, offset, value), value...)
}

// frameSize reads from a head how long the record is, and whether it can be.
func frameSize(head []byte) (int, error) {
	size := binary.BigEndian.Uint32(head)
	if size < millrace.HeaderRoom || size > millrace.MaxRecord {
		return 0, fmt.Errorf("%w: a record of %d bytes cannot be", ErrDamaged, size)
	}
	return int(size), nil
}

// checkFrame checks head and record against their CRC.
func checkFrame(head, value []byte) (millrace.Offset, error) {
	want := binary.BigEndian.Uint32(head[12:])
	if got := crc32.Update(crc32.Checksum(head[:12], castagnoli), castagnoli, value); got != want {
		return 0, fmt.Errorf("%w: CRC-32C is %08x, the bytes give %08x", ErrDamaged, want, got)
	}
	offset := millrace.Offset(binary.BigEndian.Uint64(head[4:]))
	if offset < millrace.NoOffset {
		return 0, fmt.Errorf("%w: offset %d", ErrDamaged, offset)
	}
	return offset, nil
}

// Decoder reads the frames that Reader.CopyTo has sent. It is used by one goroutine.
type Decoder struct {
	r    io.Reader
	head [frameHead]byte
	buf  []byte
}

// NewDecoder returns a decoder of r.
func NewDecoder(r io.Reader) *Decoder { return &Decoder{r: r} }

// Next returns the next record. Its bytes are those that were written into the log, or
// the error is ErrDamaged; that the records follow each other is for the fold to say.
// At the end between two frames the error is io.EOF, within one io.ErrUnexpectedEOF.
func (d *Decoder) Next() (*Record, error) {
	if _, err := io.ReadFull(d.r, d.head[:]); err != nil {
		return nil, err
	}
	size, err := frameSize(d.head[:])
	if err != nil {
		return nil, err
	}
	if d.buf, err = readGrowing(d.r, d.buf, size); err != nil {
		return nil, err
	}
	return decodeFrame(d.head[:], d.buf)
}

// readStep bounds how much room is made for bytes that have not come yet.
const readStep = 1 << 20

// readGrowing reads size bytes into buf, which grows as they come: a length that a
// peer merely claims costs nothing.
func readGrowing(r io.Reader, buf []byte, size int) ([]byte, error) {
	buf = buf[:0]
	for len(buf) < size {
		n := len(buf)
		step := min(size-n, max(readStep, cap(buf)-n))
		if cap(buf) < n+step {
			grown := make([]byte, n, min(size, max(2*cap(buf), n+step)))
			copy(grown, buf)
			buf = grown
		}
		if _, err := io.ReadFull(r, buf[n:n+step]); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return buf[:0], err
		}
		buf = buf[:n+step]
	}
	return buf, nil
}

func decodeFrame(head, value []byte) (*Record, error) {
	offset, err := checkFrame(head, value)
	if err != nil {
		return nil, err
	}
	h, err := millrace.DecodeHeader(value)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return &Record{Offset: offset, Header: h, Value: value}, nil
}
