package millrace

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
)

// Index is the place of an Entry in its stream. Within an epoch it is dense:
// the first entry has index 1 and each next entry has the index before it
// plus one. Zero means "nothing yet".
type Index uint64

// ParseIndex reads the decimal form that String writes.
func ParseIndex(s string) (Index, error) {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("parse index %q: want a whole number from 0", s)
	}
	return Index(n), nil
}

// String returns the decimal form.
func (i Index) String() string { return strconv.FormatUint(uint64(i), 10) }

// Offset is the place of a record in the Kafka partition. Offsets may have
// holes; continuity is decided by Index alone. NoOffset stands for "none".
type Offset int64

// NoOffset is the Offset of a reader that has seen no record yet.
const NoOffset Offset = -1

// String returns the decimal form.
func (o Offset) String() string { return strconv.FormatInt(int64(o), 10) }

// LSN is a byte position in the write-ahead log of a Postgres cluster.
type LSN uint64

// ParseLSN reads the form that Postgres prints: two hexadecimal halves around
// a slash, such as 16/B374D848.
func ParseLSN(s string) (LSN, error) {
	hi, lo, ok := strings.Cut(s, "/")
	h, herr := strconv.ParseUint(hi, 16, 32)
	l, lerr := strconv.ParseUint(lo, 16, 32)
	if !ok || herr != nil || lerr != nil {
		return 0, fmt.Errorf("parse LSN %q: want two hexadecimal numbers around a slash, as in 16/B374D848", s)
	}
	return LSN(h<<32 | l), nil
}

// String returns the form that Postgres prints.
func (l LSN) String() string { return fmt.Sprintf("%X/%X", uint32(l>>32), uint32(l)) }

// Term numbers the reigns of publishers over a stream. The first reign is 1;
// zero means that no publisher has reigned yet.
type Term uint64

// String returns the decimal form.
func (t Term) String() string { return strconv.FormatUint(uint64(t), 10) }

// Epoch numbers the incarnations of a stream. The first is 1. A new epoch is
// begun by an operator's command only; it has a topic of its own and its
// indexes begin again at 1.
type Epoch uint64

// String returns the decimal form.
func (e Epoch) String() string { return strconv.FormatUint(uint64(e), 10) }

// StreamID is the random 128-bit identity of a stream, made once by init and
// kept for all its epochs. Data of one stream never enters a store of another.
type StreamID [16]byte

// ParseStreamID reads 32 hexadecimal digits.
func ParseStreamID(s string) (StreamID, error) {
	var id StreamID
	if err := parseID(s, id[:]); err != nil {
		return StreamID{}, fmt.Errorf("parse stream ID: %w", err)
	}
	return id, nil
}

// String returns 32 hexadecimal digits.
func (id StreamID) String() string { return hex.EncodeToString(id[:]) }

// IsZero reports whether id is the zero value, which names no stream.
func (id StreamID) IsZero() bool { return id == StreamID{} }

// PublisherID is the random 128-bit identity of one publisher process in one
// reign. Two publishers that claim the same Term are told apart by it.
type PublisherID [16]byte

// ParsePublisherID reads 32 hexadecimal digits.
func ParsePublisherID(s string) (PublisherID, error) {
	var id PublisherID
	if err := parseID(s, id[:]); err != nil {
		return PublisherID{}, fmt.Errorf("parse publisher ID: %w", err)
	}
	return id, nil
}

// String returns 32 hexadecimal digits.
func (id PublisherID) String() string { return hex.EncodeToString(id[:]) }

// IsZero reports whether id is the zero value, which names no publisher.
func (id PublisherID) IsZero() bool { return id == PublisherID{} }

func parseID(s string, dst []byte) error {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(dst) {
		return fmt.Errorf("%q is not %d hexadecimal digits", s, 2*len(dst))
	}
	copy(dst, b)
	return nil
}

// TableID names a table within a stream: the OID that the source gave it. A
// table that was dropped and made again is another table. Zero stands for
// entries that belong to no table.
type TableID uint32

// String returns the decimal form.
func (t TableID) String() string { return strconv.FormatUint(uint64(t), 10) }

// appendTo writes the four bytes, big-endian, that enter the chain.
func (t TableID) appendTo(dst []byte) []byte { return binary.BigEndian.AppendUint32(dst, uint32(t)) }

// LoadID names one load of one table: its LoadBegin, rows and LoadEnd carry
// it. Load IDs grow within a stream and are never used twice. Zero marks a
// live change, which belongs to no load.
type LoadID uint64

// String returns the decimal form.
func (l LoadID) String() string { return strconv.FormatUint(uint64(l), 10) }

// SchemaVersion numbers the schemas of a stream. Versions grow within a stream
// in the order in which capture first met the schemas; a row names the version
// it was written with.
type SchemaVersion uint64

// String returns the decimal form.
func (v SchemaVersion) String() string { return strconv.FormatUint(uint64(v), 10) }
