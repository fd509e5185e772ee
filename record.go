package millrace

import (
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/golang/snappy"
	"github.com/zeebo/blake3"
)

// RecordKind says what a record of the topic is.
type RecordKind uint8

// The kinds of records.
const (
	// RecordTerm begins a publisher's reign.
	RecordTerm RecordKind = 1
	// RecordState holds all that a reader needs to start at its place.
	RecordState RecordKind = 2
	// RecordBatch holds entries.
	RecordBatch RecordKind = 3
)

// String returns term, state or batch.
func (k RecordKind) String() string {
	switch k {
	case RecordTerm:
		return "term"
	case RecordState:
		return "state"
	case RecordBatch:
		return "batch"
	}
	return "record kind " + strconv.Itoa(int(k))
}

// Codec says how a payload is stored in a record.
type Codec uint8

// The codecs.
const (
	// CodecNone stores the payload as it is.
	CodecNone Codec = 0
	// CodecSnappy stores it as one snappy block.
	CodecSnappy Codec = 1
)

const (
	recordVersion = 1
	// signedSize is the size of the signed part of a header without its
	// Position, transportSize that of the transport part without its signature.
	signedSize    = 176
	transportSize = 16
	// signatureSize is a key ID of 8 bytes and an Ed25519 signature.
	signatureSize = 8 + ed25519.SignatureSize

	// MaxPayload bounds the uncompressed payload of a record in bytes: one
	// entry of the greatest size, or a State of many tables.
	MaxPayload = MaxEntry + 64<<10
	// MaxRecord bounds a whole record in bytes. It fits into the
	// max.message.bytes that init gives the topic.
	MaxRecord = MaxPayload + MaxPayload/6 + 4<<10
)

var (
	recordMagic = [3]byte{'M', 'L', 'R'}
	castagnoli  = crc32.MakeTable(crc32.Castagnoli)
)

// Header stands before the payload of every record.
type Header struct {
	Kind      RecordKind
	Stream    StreamID
	Epoch     Epoch
	Term      Term
	Publisher PublisherID
	// First is the index of the first entry (batch) or the next index to come
	// (state). Count is the number of entries. Both are 0 in a term record.
	First Index
	Count uint32
	// Prev is the chain at the end of the last unit that is complete before
	// this record. Chain is the chain after the record's last entry, as if its
	// unit ended there. In a state record both are the chain at its place.
	Prev, Chain Chain
	// Body is the BLAKE3 of a state record's payload, and zero otherwise: a
	// batch's entries are in its Chain.
	Body [32]byte
	// Position is that of the newest unit that is complete after this record;
	// zero in a term record.
	Position Position
	// Time is when that unit was committed at the source (batch, state), or when
	// the record was written (term). Order never depends on it.
	Time time.Time
	// KeyID and Signature are set if the record is signed.
	KeyID     KeyID
	Signature []byte
}

// Last returns the index of the batch's last entry.
func (h *Header) Last() Index { return h.First + Index(h.Count) - 1 }

// KeyID names a signing key: the first 8 bytes of the BLAKE3 of its public
// part.
type KeyID [8]byte

// NewKeyID returns the ID of a public key.
func NewKeyID(pub ed25519.PublicKey) (id KeyID) {
	sum := blake3.Sum256(pub)
	copy(id[:], sum[:])
	return id
}

// Record is one record of the topic, decoded.
type Record struct {
	Header
	// Payload is uncompressed: entries in payload form, or an encoded State.
	Payload []byte
	// Partial tells that the payload is in partial form: a batch of which an
	// upstream has left entries out. Record.Entries walks both forms.
	Partial bool
	// CRC is the record's own checksum. Byte-identical copies agree in it.
	CRC uint32
	// signed aliases the bytes under the signature.
	signed []byte
}

// AppendRecord appends the stored form of a record. The payload is compressed
// where that makes it smaller. With a non-nil key the header is signed;
// h.KeyID, h.Signature and h.Body are ignored and made anew. A header that
// DecodeRecord would refuse is refused here already.
func AppendRecord(dst []byte, h *Header, payload []byte, key ed25519.PrivateKey) ([]byte, error) {
	if len(payload) > MaxPayload {
		return dst, fmt.Errorf("encode %v record: payload of %d bytes: %w; the limit is %d", h.Kind, len(payload), ErrTooLarge, MaxPayload)
	}
	if err := h.validate(payload); err != nil {
		return dst, fmt.Errorf("encode: %w", err)
	}
	start := len(dst)
	dst = appendSigned(dst, h, payload)
	transport := len(dst)
	if transport-start-signedSize > math.MaxUint16 {
		return dst[:start], fmt.Errorf("encode %v record: position of %d bytes: %w", h.Kind, transport-start-signedSize, ErrTooLarge)
	}
	binary.BigEndian.PutUint16(dst[start+6:], uint16(transport-start-signedSize))
	var (
		id  KeyID
		sig []byte
	)
	if key != nil {
		id = NewKeyID(key.Public().(ed25519.PublicKey))
		sig = ed25519.Sign(key, dst[start:transport])
	}
	return appendTransport(dst, start, formWhole, id, sig, payload), nil
}

// appendPacked appends the payload in the form in which it is stored.
func appendPacked(dst, payload []byte) ([]byte, Codec) {
	if len(payload) < 64 {
		return append(dst, payload...), CodecNone
	}
	n := len(dst)
	dst = slices.Grow(dst, snappy.MaxEncodedLen(len(payload)))
	packed := snappy.Encode(dst[n:cap(dst)], payload)
	if len(packed) >= len(payload) {
		return append(dst[:n], payload...), CodecNone
	}
	return dst[:n+len(packed)], CodecSnappy
}

func appendSigned(dst []byte, h *Header, payload []byte) []byte {
	dst = append(dst, recordMagic[:]...)
	dst = append(dst, recordVersion, byte(h.Kind), 0)
	dst = append(dst, 0, 0) // length of the position
	dst = append(dst, h.Stream[:]...)
	dst = binary.BigEndian.AppendUint64(dst, uint64(h.Epoch))
	dst = binary.BigEndian.AppendUint64(dst, uint64(h.Term))
	dst = append(dst, h.Publisher[:]...)
	dst = binary.BigEndian.AppendUint64(dst, uint64(h.First))
	dst = binary.BigEndian.AppendUint32(dst, h.Count)
	dst = binary.BigEndian.AppendUint32(dst, 0)
	var us int64
	if !h.Time.IsZero() {
		us = h.Time.UnixMicro()
	}
	dst = binary.BigEndian.AppendUint64(dst, uint64(us))
	dst = append(dst, h.Prev[:]...)
	dst = append(dst, h.Chain[:]...)
	var body [32]byte
	if h.Kind == RecordState {
		body = blake3.Sum256(payload)
	}
	dst = append(dst, body[:]...)
	return AppendPosition(dst, h.Position)
}

// recordCRC is the CRC-32C of all of record but the four bytes at hole.
func recordCRC(record []byte, hole int) uint32 {
	crc := crc32.Update(0, castagnoli, record[:hole])
	return crc32.Update(crc, castagnoli, record[hole+4:])
}

// DecodeRecord reads a record's stored form. It checks version, lengths and
// CRC before it takes anything apart, and the length that a compressed payload
// claims before it makes room for it. The payload is decoded into buf where
// that is large enough, and may alias b; the record is valid as long as both
// stay unchanged.
func DecodeRecord(b, buf []byte) (*Record, error) {
	if len(b) < signedSize+transportSize || !bytes.Equal(b[:3], recordMagic[:]) {
		return nil, fmt.Errorf("%w: record of %d bytes does not begin as one of millrace", ErrMalformed, len(b))
	}
	if b[3] != recordVersion {
		return nil, fmt.Errorf("%w: record of format version %d, this process reads %d: upgrade it", ErrMalformed, b[3], recordVersion)
	}
	transport := signedSize + int(binary.BigEndian.Uint16(b[6:]))
	if len(b) < transport+transportSize {
		return nil, fmt.Errorf("%w: record is cut off", ErrMalformed)
	}
	t := b[transport:]
	sigSize := int(binary.BigEndian.Uint16(t[2:]))
	size := binary.BigEndian.Uint32(t[4:])
	stored := binary.BigEndian.Uint32(t[8:])
	crc := binary.BigEndian.Uint32(t[12:])
	if sigSize != 0 && sigSize != signatureSize {
		return nil, fmt.Errorf("%w: signature of %d bytes", ErrMalformed, sigSize)
	}
	if uint64(len(t)) != uint64(transportSize+sigSize)+uint64(stored) || size > MaxPayload {
		return nil, fmt.Errorf("%w: record of %d bytes says other lengths", ErrMalformed, len(b))
	}
	if got := recordCRC(b, transport+12); got != crc {
		return nil, fmt.Errorf("%w: record's CRC-32C is %08x, its bytes give %08x: it was altered on its way or at rest", ErrMalformed, crc, got)
	}
	r := &Record{CRC: crc, signed: b[:transport]}
	if err := r.decodeSigned(b, transport); err != nil {
		return nil, err
	}
	if sigSize > 0 {
		copy(r.KeyID[:], t[transportSize:])
		r.Signature = t[transportSize+8 : transportSize+sigSize]
	}
	var err error
	r.Payload, err = decompress(Codec(t[0]), t[transportSize+sigSize:], int(size), buf)
	if err != nil {
		return nil, err
	}
	if r.Partial = t[1] == formPartial; t[1] > formPartial || r.Partial && r.Kind != RecordBatch {
		return nil, fmt.Errorf("%w: %v record of unknown form %d: written by a newer version of millrace; upgrade this process", ErrMalformed, r.Kind, t[1])
	}
	if err := r.validate(r.Payload); err != nil {
		return nil, err
	}
	if r.Kind == RecordState && blake3.Sum256(r.Payload) != r.Body {
		return nil, fmt.Errorf("%w: state record: payload is not the one of the header", ErrMalformed)
	}
	if r.Kind != RecordState && r.Body != [32]byte{} {
		return nil, fmt.Errorf("%w: %v record: it names a state's payload", ErrMalformed, r.Kind)
	}
	return r, nil
}

func (r *Record) decodeSigned(b []byte, transport int) (err error) {
	r.Kind = RecordKind(b[4])
	if b[5] != 0 || binary.BigEndian.Uint32(b[68:]) != 0 {
		return fmt.Errorf("%w: reserved bytes are set", ErrMalformed)
	}
	copy(r.Stream[:], b[8:])
	r.Epoch = Epoch(binary.BigEndian.Uint64(b[24:]))
	r.Term = Term(binary.BigEndian.Uint64(b[32:]))
	copy(r.Publisher[:], b[40:])
	r.First = Index(binary.BigEndian.Uint64(b[56:]))
	r.Count = binary.BigEndian.Uint32(b[64:])
	if us := int64(binary.BigEndian.Uint64(b[72:])); us != 0 {
		r.Time = time.UnixMicro(us).UTC()
	}
	copy(r.Prev[:], b[80:])
	copy(r.Chain[:], b[112:])
	copy(r.Body[:], b[144:])
	r.Position, err = DecodePosition(b[signedSize:transport])
	return err
}

// validate says what a well-formed header of this kind before payload has too
// little or too much.
func (h *Header) validate(payload []byte) error {
	bad := func(what string) error { return fmt.Errorf("%w: %v record: %s", ErrMalformed, h.Kind, what) }
	if h.Stream.IsZero() || h.Epoch == 0 || h.Term == 0 || h.Publisher.IsZero() {
		return bad("stream, epoch, term and publisher must be set")
	}
	switch h.Kind {
	case RecordTerm:
		if h.First != 0 || h.Count != 0 || len(payload) != 0 {
			return bad("it carries entries")
		}
	case RecordState:
		if h.First == 0 || h.Count != 0 || h.Prev != h.Chain {
			return bad("bad place")
		}
	case RecordBatch:
		if h.First == 0 || h.Count == 0 || h.First+Index(h.Count) < h.First {
			return bad("bad index range")
		}
	default:
		return fmt.Errorf("%w: unknown %v: written by a newer version of millrace; upgrade this process", ErrMalformed, h.Kind)
	}
	if err := h.Position.Validate(); err != nil {
		return fmt.Errorf("%w: %v record: %w", ErrMalformed, h.Kind, err)
	}
	return nil
}

func decompress(codec Codec, stored []byte, size int, buf []byte) ([]byte, error) {
	switch codec {
	case CodecNone:
		if len(stored) != size {
			return nil, fmt.Errorf("%w: payload of %d bytes says %d", ErrMalformed, len(stored), size)
		}
		return stored, nil
	case CodecSnappy:
		n, err := snappy.DecodedLen(stored)
		if err != nil || n != size {
			return nil, fmt.Errorf("%w: compressed payload claims another length than the header's %d", ErrMalformed, size)
		}
		// No element of a block gives more than 64 bytes for three, so a few
		// bytes cannot ask for much memory.
		if size > len(stored)*64/3 {
			return nil, fmt.Errorf("%w: compressed payload of %d bytes claims %d", ErrMalformed, len(stored), size)
		}
		if cap(buf) < size {
			buf = make([]byte, size)
		}
		out, err := snappy.Decode(buf[:size], stored)
		if err != nil {
			return nil, fmt.Errorf("%w: decompress payload: %w", ErrMalformed, err)
		}
		return out, nil
	}
	return nil, fmt.Errorf("%w: unknown codec %d: written by a newer version of millrace; upgrade this process", ErrMalformed, codec)
}

// VerifySignature checks that the record is signed with the private part of
// pub. It must be called before the bytes it was decoded from change.
func (r *Record) VerifySignature(pub ed25519.PublicKey) error {
	if len(r.Signature) == 0 {
		return fmt.Errorf("%w: %v record at index %v is not signed, and a key is pinned", ErrSignature, r.Kind, r.First)
	}
	if r.KeyID != NewKeyID(pub) || !ed25519.Verify(pub, r.signed, r.Signature) {
		return fmt.Errorf("%w: %v record at index %v is signed by key %x, not by the pinned one", ErrSignature, r.Kind, r.First, r.KeyID)
	}
	return nil
}
