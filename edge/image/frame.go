package image

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"github.com/klauspost/compress/zstd"
)

// frameSize is the size before compression that a frame has at most, unless a
// single row is larger.
const frameSize = 1 << 20

// appendRow appends a row as it stands in a frame.
func appendRow(dst, key, row []byte) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(key)))
	dst = append(dst, key...)
	dst = binary.AppendUvarint(dst, uint64(len(row)))
	return append(dst, row...)
}

// rowSize is the size that appendRow gives a row.
func rowSize(key, row []byte) int {
	var b [2 * binary.MaxVarintLen64]byte
	return len(binary.AppendUvarint(binary.AppendUvarint(b[:0], uint64(len(key))), uint64(len(row)))) + len(key) + len(row)
}

// eachRow calls fn with the rows of a frame.
func eachRow(raw []byte, fn func(key, row []byte) error) (rows uint64, err error) {
	part := func() ([]byte, error) {
		size, n := binary.Uvarint(raw)
		if n <= 0 || size > uint64(len(raw)-n) {
			return nil, malformed("row %d of a frame is cut off", rows)
		}
		b := raw[n : n+int(size) : n+int(size)]
		raw = raw[n+int(size):]
		return b, nil
	}
	for ; len(raw) > 0; rows++ {
		key, err := part()
		if err != nil {
			return rows, err
		}
		row, err := part()
		if err != nil {
			return rows, err
		}
		if err := fn(key, row); err != nil {
			return rows, err
		}
	}
	return rows, nil
}

// unpacker reads frames. It is used by one goroutine.
type unpacker struct {
	decoder *zstd.Decoder
	raw     []byte
}

func newUnpacker() (*unpacker, error) {
	// The room for a frame's rows is given to the decoder, which takes no more.
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(MaxFrame), zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderLowmem(true))
	if err != nil {
		return nil, fmt.Errorf("make decoder: %w", err)
	}
	return &unpacker{decoder: d}, nil
}

func (u *unpacker) close() { u.decoder.Close() }

// checkSum compares a frame as it is stored with its hash.
func (f *Frame) checkSum(stored []byte) error {
	if len(stored) != f.Stored {
		return malformed("a frame has %d bytes, the manifest says %d", len(stored), f.Stored)
	}
	if sum := sha256.Sum256(stored); sum != f.Sum {
		return malformed("the hash of a frame is %x, the manifest says %x", sum, f.Sum)
	}
	return nil
}

// unpack checks a frame's hash and returns its rows, valid until the next call.
func (u *unpacker) unpack(f *Frame, stored []byte) ([]byte, error) {
	if err := f.checkSum(stored); err != nil {
		return nil, err
	}
	if cap(u.raw) < f.Raw {
		u.raw = make([]byte, 0, max(f.Raw, min(frameSize, 2*f.Raw)))
	}
	raw, err := u.decoder.DecodeAll(stored, u.raw[:0:f.Raw])
	if err != nil {
		return nil, malformed("a frame cannot be unpacked: %v", err)
	}
	if len(raw) != f.Raw {
		return nil, malformed("a frame holds %d bytes, the manifest says %d", len(raw), f.Raw)
	}
	return raw, nil
}
