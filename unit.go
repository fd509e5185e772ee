package millrace

import (
	"errors"
	"fmt"
	"io"
	"time"
)

// Unit is what must become visible at the edge at once: one transaction of the
// source, all that one snapshot window saw, or one chunk of a load. Capture
// makes it, transfer gives its entries their indexes.
type Unit struct {
	// Position is where capture stands after the unit; for a unit of a load,
	// where it stood before.
	Position Position
	// Time is when the source committed it.
	Time time.Time
	// Entries is the number of entries, at least 1.
	Entries uint64
	// Body holds the entries. Whoever takes the unit closes it.
	Body Body
}

// Body yields the entries of a unit in payload form. It is used by one
// goroutine.
type Body interface {
	// Next returns the next run of whole entries: as many as fit into max
	// bytes, and at least one. The bytes are valid until the next call. After
	// the last entry it returns io.EOF.
	Next(max int) ([]byte, error)
	// Close releases what the body holds.
	Close() error
}

// NewUnit makes a unit of entries that are held in memory, as UnitWriter.Finish
// returned them.
func NewUnit(pos Position, t time.Time, entries uint64, payload []byte) *Unit {
	u := &struct {
		Unit
		body memoryBody
	}{Unit{Position: pos, Time: t, Entries: entries}, memoryBody{rest: payload}}
	u.Body = &u.body
	return &u.Unit
}

type memoryBody struct{ rest []byte }

func (b *memoryBody) Next(max int) ([]byte, error) {
	if len(b.rest) == 0 {
		return nil, io.EOF
	}
	n, err := cutEntries(b.rest, max)
	if err != nil {
		return nil, err
	}
	run := b.rest[:n:n]
	b.rest = b.rest[n:]
	return run, nil
}

func (b *memoryBody) Close() error {
	b.rest = nil
	return nil
}

// cutEntries returns the size of the longest run of whole entries at the start
// of payload that fits into max bytes, and at least that of the first.
func cutEntries(payload []byte, max int) (int, error) {
	if len(payload) <= max {
		return len(payload), nil
	}
	n := 0
	for n < len(payload) {
		size, err := entrySize(payload[n:])
		if err != nil {
			return 0, err
		}
		if n > 0 && n+size > max {
			break
		}
		if n += size; n > len(payload) {
			return 0, errShort
		}
	}
	return n, nil
}

// NewReaderBody makes a Body of a stream of payload bytes, such as a spool
// file. It holds no more than one run in memory. closer may be nil.
func NewReaderBody(r io.Reader, closer func() error) Body {
	return &readerBody{r: r, closer: closer}
}

type readerBody struct {
	r      io.Reader
	closer func() error
	buf    []byte // bytes read ahead
	used   int    // of buf, given out by the last Next
	eof    bool
}

func (b *readerBody) Next(max int) ([]byte, error) {
	b.buf = b.buf[:copy(b.buf, b.buf[b.used:])]
	b.used = 0
	// Without a byte asked for, a stream cannot be told from an ended one.
	want := max
	if want < 1 {
		want = 1
	}
	for {
		if err := b.fill(want); err != nil {
			return nil, err
		}
		if len(b.buf) == 0 {
			return nil, io.EOF
		}
		n, need, err := wholeEntries(b.buf, max)
		if err != nil {
			return nil, err
		}
		if n > 0 {
			b.used = n
			return b.buf[:n:n], nil
		}
		if b.eof {
			return nil, fmt.Errorf("%w: unit body ends within an entry", ErrMalformed)
		}
		want = need
	}
}

// fill reads until buf has want bytes or the stream has ended.
func (b *readerBody) fill(want int) error {
	if b.eof || len(b.buf) >= want {
		return nil
	}
	have := len(b.buf)
	if cap(b.buf) < want {
		grown := make([]byte, have, want)
		copy(grown, b.buf)
		b.buf = grown
	}
	n, err := io.ReadFull(b.r, b.buf[have:want])
	b.buf = b.buf[:have+n]
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		b.eof = true
		return nil
	}
	if err != nil {
		return fmt.Errorf("read unit body: %w", err)
	}
	return nil
}

func (b *readerBody) Close() error {
	b.buf = nil
	if b.closer == nil {
		return nil
	}
	return b.closer()
}

// wholeEntries returns the size of the whole entries at the start of b within
// max bytes, at least the first; where not even the first is whole, the size
// that is needed to go on.
func wholeEntries(b []byte, max int) (n, need int, err error) {
	for n < len(b) {
		size, err := entrySize(b[n:])
		if errors.Is(err, errShort) {
			if n == 0 {
				need = len(b) + 16
			}
			break
		}
		if err != nil {
			return 0, 0, err
		}
		if n+size > len(b) {
			if n == 0 {
				need = size
			}
			break
		}
		if n > 0 && n+size > max {
			break
		}
		n += size
	}
	return n, need, nil
}
