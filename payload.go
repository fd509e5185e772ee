package millrace

import (
	"bytes"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
)

// A payload is the protobuf message of a batch: a repeated field of entries.
// Its bytes are what the framer cuts, the chain hashes and the topic carries,
// so an entry is encoded once on its whole way.

// payloadTag is the byte before each entry's length.
const payloadTag = byte(payloadEntries)<<3 | byte(protowire.BytesType)

// Head is what continuity and accounting need of an entry; reading it does not
// decode the rest.
type Head struct {
	Kind    Kind
	Table   TableID
	Ordinal uint64
	Last    bool
	End     UnitEnd
	// Raw is the entry with its tag and length, as it is hashed. Body is the
	// encoded entry itself, for DecodeEntry. Both alias the payload.
	Raw, Body []byte
}

// NextHead reads the head of the entry at the start of payload and returns what
// follows it. It allocates nothing. A field or kind that this version does not
// know is an error, so that a fold stops before it and not after it.
func NextHead(payload []byte, h *Head) (rest []byte, err error) {
	if len(payload) == 0 || payload[0] != payloadTag {
		return nil, fmt.Errorf("%w: payload: want an entry", ErrMalformed)
	}
	body, n := protowire.ConsumeBytes(payload[1:])
	if n < 0 {
		return nil, fmt.Errorf("%w: payload: entry is cut off", ErrMalformed)
	}
	*h = Head{Raw: payload[:1+n], Body: body[:len(body):len(body)]}
	var last protowire.Number
	for b := body; len(b) > 0; {
		f := field{message: "entry"}
		m, err := f.consume(b, &last)
		if err != nil {
			return nil, err
		}
		switch f.num {
		case entryKind:
			err = decodeSmall(&f, &h.Kind)
		case entryTable:
			err = f.uint32((*uint32)(&h.Table))
		case entryOrdinal:
			err = f.varint(&h.Ordinal)
		case entryEnd:
			h.Last = true
			err = h.End.decode(&f)
		default:
			switch {
			case f.num > entryQuarantine:
				err = f.unknown()
			case f.again:
				err = f.bad("repeated")
			}
		}
		if err != nil {
			return nil, err
		}
		b = b[m:]
	}
	if h.Kind == 0 || int(h.Kind) >= NumKinds {
		return nil, fmt.Errorf("%w: unknown entry type %d: written by a newer version of millrace; upgrade this process", ErrMalformed, h.Kind)
	}
	return payload[1+n:], nil
}

// UnitWriter encodes the entries of one unit in payload form. It gives each
// entry its ordinal and flags the last one when the unit ends. The zero value
// is ready. It is not safe for concurrent use.
type UnitWriter struct {
	buf []byte
	// last is where the newest entry begins in buf; it stays in buf until the
	// unit ends, because the end flag is written into it.
	last    int
	ordinal uint64
	// spare is the buffer that the Take before gave out.
	spare []byte
}

const (
	// firstBuffer is the size in bytes of a writer's first buffer: most units
	// are one small transaction.
	firstBuffer = 512
	// keptBuffer is the largest buffer in bytes that a writer keeps for its next
	// unit.
	keptBuffer = 2 << 20
)

// Len returns the number of entries written.
func (w *UnitWriter) Len() uint64 { return w.ordinal }

// Buffered returns the number of bytes held.
func (w *UnitWriter) Buffered() int { return len(w.buf) }

// Put appends a row change. from may be nil, load 0. Like Delete and Append it
// fails with ErrTooLarge for an entry over MaxEntry and with ErrMalformed for
// one that no reader would take; then the unit is as it was before.
func (w *UnitWriter) Put(table TableID, key, from, row []byte, load LoadID) error {
	if table == 0 || len(key) == 0 || len(row) == 0 {
		return fmt.Errorf("write put entry of table %v: %w: table, key and row must be set", table, ErrMalformed)
	}
	size := sizeBytesField(key) + sizeBytesField(from) + sizeBytesField(row) + sizeVarintField(uint64(load))
	if err := w.begin(KindPut, table, size); err != nil {
		return err
	}
	w.buf = appendBytesField(w.buf, entryKey, key)
	w.buf = appendBytesField(w.buf, entryFrom, from)
	w.buf = appendBytesField(w.buf, entryRow, row)
	w.buf = appendVarintField(w.buf, entryLoad, uint64(load))
	return nil
}

// Delete appends the removal of a row.
func (w *UnitWriter) Delete(table TableID, key []byte) error {
	if table == 0 || len(key) == 0 {
		return fmt.Errorf("write delete entry of table %v: %w: table and key must be set", table, ErrMalformed)
	}
	if err := w.begin(KindDelete, table, sizeBytesField(key)); err != nil {
		return err
	}
	w.buf = appendBytesField(w.buf, entryKey, key)
	return nil
}

// Append appends an entry of any kind. It sets e.Ordinal and ignores e.Last.
func (w *UnitWriter) Append(e *Entry) error {
	c := *e
	c.Ordinal, c.Last = w.ordinal, false
	if err := c.Validate(); err != nil {
		return fmt.Errorf("write %v entry of table %v: %w", c.Kind, c.Table, err)
	}
	if c.Schema != nil {
		if err := c.Schema.Validate(); err != nil {
			return fmt.Errorf("write schema entry: %w", err)
		}
	}
	at := len(w.buf)
	w.buf = AppendEntry(append(w.buf, payloadTag), &c)
	if n := len(w.buf) - at - 1; n > MaxEntry {
		w.buf = w.buf[:at]
		return entryTooLarge(c.Table, n)
	}
	w.buf = prefixLength(w.buf, at+1)
	w.last = at
	w.ordinal++
	return nil
}

// begin writes what row changes begin with, up to the key. rest is the size of
// what the caller then writes: with it the entry's length is known before its
// content, which need not be moved to make room for it.
func (w *UnitWriter) begin(kind Kind, table TableID, rest int) error {
	size := 2 + sizeVarintField(uint64(table)) + sizeVarintField(w.ordinal) + rest
	if size > MaxEntry {
		return entryTooLarge(table, size)
	}
	if w.buf == nil {
		w.buf = make([]byte, 0, max(firstBuffer, size+32))
	}
	w.last = len(w.buf)
	w.buf = protowire.AppendVarint(append(w.buf, payloadTag), uint64(size))
	w.buf = append(w.buf, byte(entryKind)<<3, byte(kind))
	w.buf = appendVarintField(w.buf, entryTable, uint64(table))
	w.buf = appendVarintField(w.buf, entryOrdinal, w.ordinal)
	w.ordinal++
	return nil
}

func entryTooLarge(table TableID, size int) error {
	return fmt.Errorf("write entry of table %v: %w: %d bytes; the limit for a row is %d", table, ErrTooLarge, size, MaxEntry)
}

// sizeVarintField and sizeBytesField are the sizes of what the functions of
// wire.go append, for fields whose tag is one byte.
func sizeVarintField(v uint64) int {
	if v == 0 {
		return 0
	}
	return 1 + protowire.SizeVarint(v)
}

func sizeBytesField(v []byte) int {
	if len(v) == 0 {
		return 0
	}
	return 1 + protowire.SizeBytes(len(v))
}

// Take hands out everything but the newest entry, in payload form, and forgets
// it: a caller that holds a large unit moves it to a file with this. The bytes
// are valid until the next call of any method.
func (w *UnitWriter) Take() []byte {
	out := w.buf[:w.last:w.last]
	// The newest entry moves to the front of the other buffer, so that out
	// stays whole.
	w.buf, w.spare = append(w.spare[:0], w.buf[w.last:]...), w.buf
	w.last = 0
	return out
}

// Finish flags the newest entry as the unit's last and returns all bytes held.
// They belong to the caller; the writer is ready for another unit. A unit
// without entries cannot be finished.
func (w *UnitWriter) Finish(end UnitEnd) ([]byte, error) {
	if w.ordinal == 0 {
		return nil, fmt.Errorf("finish unit: it has no entries")
	}
	start := w.last + 1
	body, n := protowire.ConsumeBytes(w.buf[start:])
	if n < 0 {
		return nil, fmt.Errorf("finish unit: %w", ErrMalformed)
	}
	// The length prefix may grow by a byte, so the entry is written anew behind
	// its tag.
	copy(w.buf[start:], body)
	w.buf = appendEnd(w.buf[:start+len(body)], end)
	w.buf = prefixLength(w.buf, start)
	out := w.buf
	if cap(out) > keptBuffer {
		*w = UnitWriter{}
		return out, nil
	}
	// A copy of the right size costs less than a buffer that grew to it: units
	// wait in queues, and so would the rest of their buffers.
	*w = UnitWriter{buf: out[:0]}
	return bytes.Clone(out), nil
}

// Reset forgets the unit and keeps the buffer.
func (w *UnitWriter) Reset() { *w = UnitWriter{buf: w.buf[:0], spare: w.spare} }

var errShort = fmt.Errorf("%w: entry is cut off", ErrMalformed)

// entrySize returns the size of the entry at the start of b, with tag and
// length, or errShort where b ends within the length.
func entrySize(b []byte) (int, error) {
	if b[0] != payloadTag {
		return 0, fmt.Errorf("%w: payload: want an entry", ErrMalformed)
	}
	n, size := protowire.ConsumeVarint(b[1:])
	if size < 0 {
		if len(b) > 10 {
			return 0, fmt.Errorf("%w: payload: bad entry length", ErrMalformed)
		}
		return 0, errShort
	}
	if n > MaxEntry+64 {
		return 0, fmt.Errorf("payload: entry of %d bytes: %w", n, ErrTooLarge)
	}
	return 1 + size + int(n), nil
}
