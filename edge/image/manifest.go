package image

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge"
)

// Limits of the format. A reader refuses what is beyond them.
const (
	// MaxManifest is the largest size of a manifest in bytes: that of the image of
	// about 1.5 TB of rows.
	MaxManifest = 64 << 20
	// MaxFrame is the largest size of a frame before compression, and of a row with
	// its key. Only a row that is larger than frameSize makes such a frame.
	MaxFrame = 256 << 20
	// maxStored is the largest size of a frame as it is stored.
	maxStored = MaxFrame + MaxFrame/256 + 1024
	// maxHeader is the largest size of a batch's signed header: its position has at
	// most 64 KiB.
	maxHeader = 66 << 10
)

const (
	magic   = "MLI"
	version = 1
	// headSize is magic, version and the size of the body; after the body comes
	// the hash of all before it.
	headSize = len(magic) + 1 + 4
)

// ErrMalformed occurs when files are not those of an image, or not whole. Mend:
// take another image.
var ErrMalformed = errors.New("not a whole image")

// Manifest says what an image is of, and which frames hold its rows.
type Manifest struct {
	edge.Contents
	// Created is when the image was begun.
	Created time.Time
	// Frames are those of the file of rows, in its order, which is that of Sets.
	Frames []Frame
}

// Frame is a part of the file of rows.
type Frame struct {
	// Set is the place in Sets of the rows that it holds, Rows their number.
	Set  int
	Rows uint64
	// Raw is its size in bytes before compression, Stored as it is stored.
	Raw, Stored int
	// Sum is the SHA-256 of it as it is stored.
	Sum [sha256.Size]byte
}

// Rows returns the number of rows.
func (m *Manifest) Rows() (n uint64) {
	for _, s := range m.Sets {
		n += s.Rows
	}
	return n
}

// Stored returns the size of the file of rows in bytes.
func (m *Manifest) Stored() (n int64) {
	for i := range m.Frames {
		n += int64(m.Frames[i].Stored)
	}
	return n
}

// Proven returns nil where the signed header in the manifest proves the image's index
// and chain under the keys that are trusted; the nil Keyring asks for nothing. The rows
// are proven when the next pass of verification compares them with the source.
func (m *Manifest) Proven(keys *millrace.Keyring) error {
	if err := keys.CheckHeader(m.Header, m.Checkpoint); err != nil {
		return fmt.Errorf("image %s: %w; mend: take it from another edge, and find out who made it; if the publisher has a new key, name it in signing.trusted here", m.Name(), err)
	}
	return nil
}

// Sum is a hash of all that the manifest says, and so of all that the image holds: two
// edges may give images of one name, and one of them an untrue one.
func (m *Manifest) Sum() ([sha256.Size]byte, error) {
	b, err := AppendManifest(nil, m)
	return sha256.Sum256(b), err
}

// Name returns the name of the image's directory.
func (m *Manifest) Name() string { return imageName(m.Checkpoint.Epoch, m.Checkpoint.Index) }

const (
	manifestCheckpoint protowire.Number = 1
	manifestSchema     protowire.Number = 2
	manifestDiverged   protowire.Number = 3
	manifestSet        protowire.Number = 4
	manifestFrame      protowire.Number = 5
	manifestCreated    protowire.Number = 6
	manifestHeader     protowire.Number = 7
	manifestFilter     protowire.Number = 8

	divergedTable  protowire.Number = 1
	divergedReason protowire.Number = 2

	setTable protowire.Number = 1
	setLoad  protowire.Number = 2
	setRows  protowire.Number = 3
	setBytes protowire.Number = 4

	frameSet    protowire.Number = 1
	frameRows   protowire.Number = 2
	frameRaw    protowire.Number = 3
	frameStored protowire.Number = 4
	frameSum    protowire.Number = 5
)

// AppendManifest appends the encoded form of m. It fails for one beyond the limits.
func AppendManifest(dst []byte, m *Manifest) ([]byte, error) {
	start := len(dst)
	dst = append(dst, magic...)
	dst = append(dst, version, 0, 0, 0, 0)
	bare := *m.Checkpoint
	bare.Catalog.Schemas = nil
	dst = appendBytes(dst, manifestCheckpoint, millrace.AppendCheckpoint(nil, &bare))
	for _, s := range m.Schemas {
		dst = appendBytes(dst, manifestSchema, millrace.AppendSchema(nil, s))
	}
	var b []byte
	for _, d := range m.Diverged {
		b = appendNumber(b[:0], divergedTable, uint64(d.Table))
		b = appendBytes(b, divergedReason, []byte(d.Reason))
		dst = appendBytes(dst, manifestDiverged, b)
	}
	for _, s := range m.Sets {
		b = appendNumber(b[:0], setTable, uint64(s.Table))
		b = appendNumber(b, setLoad, uint64(s.Load))
		b = appendNumber(b, setRows, s.Rows)
		b = appendNumber(b, setBytes, s.Bytes)
		dst = appendBytes(dst, manifestSet, b)
	}
	for i := range m.Frames {
		f := &m.Frames[i]
		b = appendNumber(b[:0], frameSet, uint64(f.Set))
		b = appendNumber(b, frameRows, f.Rows)
		b = appendNumber(b, frameRaw, uint64(f.Raw))
		b = appendNumber(b, frameStored, uint64(f.Stored))
		b = appendBytes(b, frameSum, f.Sum[:])
		dst = appendBytes(dst, manifestFrame, b)
	}
	if !m.Created.IsZero() {
		dst = appendNumber(dst, manifestCreated, uint64(m.Created.UnixMicro()))
	}
	if len(m.Header) > 0 {
		dst = appendBytes(dst, manifestHeader, m.Header)
	}
	if !m.Filter.All() {
		dst = appendBytes(dst, manifestFilter, millrace.AppendFilter(nil, m.Filter))
	}
	body := len(dst) - start - headSize
	if len(dst)-start+sha256.Size > MaxManifest {
		return nil, fmt.Errorf("write manifest: it takes %d bytes, at most %d are possible", len(dst)-start+sha256.Size, MaxManifest)
	}
	binary.BigEndian.PutUint32(dst[start+len(magic)+1:], uint32(body))
	sum := sha256.Sum256(dst[start:])
	return append(dst, sum[:]...), nil
}

func appendNumber(dst []byte, num protowire.Number, v uint64) []byte {
	if v == 0 {
		return dst
	}
	return protowire.AppendVarint(protowire.AppendTag(dst, num, protowire.VarintType), v)
}

func appendBytes(dst []byte, num protowire.Number, b []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(dst, num, protowire.BytesType), b)
}

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrMalformed, fmt.Sprintf(format, args...))
}

// DecodeManifest reads what AppendManifest wrote, and checks that it is one of
// frames that can be. The result does not alias b.
func DecodeManifest(b []byte) (*Manifest, error) {
	if len(b) > MaxManifest {
		return nil, malformed("manifest has %d bytes, at most %d are possible", len(b), MaxManifest)
	}
	if len(b) < headSize+sha256.Size || string(b[:len(magic)]) != magic {
		return nil, malformed("manifest does not begin as one, or is cut off")
	}
	if v := b[len(magic)]; v != version {
		return nil, fmt.Errorf("%w: manifest has format version %d, this process reads %d; mend: upgrade it", ErrMalformed, v, version)
	}
	end := len(b) - sha256.Size
	if size := binary.BigEndian.Uint32(b[len(magic)+1:]); uint64(size) != uint64(end-headSize) {
		return nil, malformed("manifest has a body of %d bytes, and says %d", end-headSize, size)
	}
	if sum := sha256.Sum256(b[:end]); sum != [sha256.Size]byte(b[end:]) {
		return nil, malformed("the hash of the manifest is not that of its bytes")
	}
	m := new(Manifest)
	if err := m.decode(b[headSize:end]); err != nil {
		return nil, err
	}
	if err := m.validate(); err != nil {
		return nil, err
	}
	return m, nil
}

func (m *Manifest) decode(b []byte) error {
	return eachField(b, "manifest", func(f *field) (err error) {
		switch f.num {
		case manifestCheckpoint:
			if err = f.once(); err == nil {
				m.Checkpoint, err = millrace.DecodeCheckpoint(f.bytes)
			}
		case manifestSchema:
			var s *millrace.Schema
			if s, err = millrace.DecodeSchema(f.bytes); err == nil {
				m.Schemas = append(m.Schemas, s)
			}
		case manifestDiverged:
			var d edge.Divergence
			err = eachField(f.bytes, "divergence", func(f *field) error {
				switch f.num {
				case divergedTable:
					return number(f, &d.Table, math.MaxUint32)
				case divergedReason:
					d.Reason = string(f.bytes)
					return f.once()
				}
				return f.unknown()
			})
			m.Diverged = append(m.Diverged, d)
		case manifestSet:
			var s edge.RowSet
			err = eachField(f.bytes, "set of rows", func(f *field) error {
				switch f.num {
				case setTable:
					return number(f, &s.Table, math.MaxUint32)
				case setLoad:
					return number(f, &s.Load, math.MaxUint64)
				case setRows:
					return number(f, &s.Rows, 1<<48)
				case setBytes:
					return number(f, &s.Bytes, 1<<60)
				}
				return f.unknown()
			})
			m.Sets = append(m.Sets, s)
		case manifestFrame:
			var fr Frame
			fr, err = decodeFrameRecord(f.bytes)
			m.Frames = append(m.Frames, fr)
		case manifestCreated:
			var us uint64
			err = number(f, &us, math.MaxInt64)
			m.Created = time.UnixMicro(int64(us)).UTC()
		case manifestHeader:
			m.Header = append([]byte(nil), f.bytes...)
			if err = f.once(); err == nil && len(m.Header) > maxHeader {
				err = malformed("the header of the batch has %d bytes, at most %d are possible", len(m.Header), maxHeader)
			}
		case manifestFilter:
			if err = f.once(); err == nil {
				m.Filter, err = decodeFilter(f.bytes)
			}
		default:
			err = f.unknown()
		}
		return err
	})
}

func decodeFrameRecord(b []byte) (fr Frame, err error) {
	err = eachField(b, "frame", func(f *field) error {
		switch f.num {
		case frameSet:
			return number(f, &fr.Set, math.MaxInt32)
		case frameRows:
			return number(f, &fr.Rows, MaxFrame)
		case frameRaw:
			return number(f, &fr.Raw, MaxFrame)
		case frameStored:
			return number(f, &fr.Stored, maxStored)
		case frameSum:
			if len(f.bytes) != sha256.Size {
				return malformed("a frame's hash has %d bytes", len(f.bytes))
			}
			copy(fr.Sum[:], f.bytes)
			return f.once()
		}
		return f.unknown()
	})
	return fr, err
}

// validate wants sets and frames to agree.
func (m *Manifest) validate() error {
	if m.Checkpoint == nil || m.Checkpoint.Index == 0 {
		return malformed("manifest has no checkpoint")
	}
	left := make([]edge.RowSet, len(m.Sets))
	for i, s := range m.Sets {
		left[i] = s
		if i > 0 && (m.Sets[i-1].Table > s.Table || m.Sets[i-1].Table == s.Table && m.Sets[i-1].Load >= s.Load) {
			return malformed("sets of rows are not in the order of table and load")
		}
	}
	at := 0
	for i := range m.Frames {
		f := &m.Frames[i]
		if f.Set < at || f.Set >= len(m.Sets) {
			return malformed("frame %d is of set %d, after one of set %d, of %d", i, f.Set, at, len(m.Sets))
		}
		at = f.Set
		// A row takes four bytes at least: its sizes, a key and a version.
		if f.Rows == 0 || f.Stored == 0 || uint64(f.Raw)/4 < f.Rows {
			return malformed("frame %d says that it has %d rows in %d bytes, and %d stored", i, f.Rows, f.Raw, f.Stored)
		}
		if left[at].Rows < f.Rows {
			return malformed("the frames of set %d have more rows than it, which says %d", at, m.Sets[at].Rows)
		}
		left[at].Rows -= f.Rows
	}
	for i, s := range left {
		if s.Rows > 0 {
			return malformed("the frames of set %d have %d rows less than it, which says %d", i, s.Rows, m.Sets[i].Rows)
		}
	}
	return nil
}
