package migrations

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/zeebo/xxh3"
)

// sum adds up the hashes of rows that a COPY sends, over their first columns. It is an
// io.Writer.
type sum struct {
	columns int
	binary  bool
	rows    int64
	hi, lo  uint64
	part    []byte // of a row whose end has not come
	begun   bool   // behind the head of the binary form
}

func (m *mapping) newSum() *sum { return &sum{columns: len(m.carried), binary: m.binary} }

func (s *sum) reset() { *s = sum{columns: s.columns, binary: s.binary, part: s.part[:0]} }

// Write implements io.Writer. Errors: what comes is not COPY's form.
func (s *sum) Write(b []byte) (int, error) {
	n := len(b)
	if len(s.part) > 0 {
		s.part = append(s.part, b...)
		b = s.part
	}
	take := s.text
	if s.binary {
		take = s.tuple
	}
	for len(b) > 0 {
		size, err := take(b)
		if err != nil {
			return 0, err
		}
		if size == 0 {
			break
		}
		b = b[size:]
	}
	s.part = append(s.part[:0], b...) // b may be a part of it: append moves it
	return n, nil
}

// text takes a row in front of b, in the text form; it returns how long it is, 0 where
// its end is missing.
func (s *sum) text(b []byte) (int, error) {
	size := bytes.IndexByte(b, '\n')
	if size < 0 {
		return 0, nil
	}
	row, end := b[:size], 0
	for range s.columns {
		i := bytes.IndexByte(row[end:], '\t')
		if i < 0 {
			end = len(row) + 1
			break
		}
		end += i + 1
	}
	s.add(row[:end-1])
	return size + 1, nil
}

// What a COPY in the binary form begins with: a signature, flags and the length of an
// extension, which are zero.
const binaryHead = "PGCOPY\n\xff\r\n\x00\x00\x00\x00\x00\x00\x00\x00\x00"

var errForm = errors.New("the rows are not in COPY's binary form")

// tuple takes a row, or the head, or the tail, in front of b, in the binary form; it
// returns how long it is, 0 where its end is missing.
func (s *sum) tuple(b []byte) (int, error) {
	if !s.begun {
		if len(b) < len(binaryHead) {
			return 0, nil
		}
		if string(b[:len(binaryHead)]) != binaryHead {
			return 0, fmt.Errorf("%w: they begin with %x", errForm, b[:len(binaryHead)])
		}
		s.begun = true
		return len(binaryHead), nil
	}
	if len(b) < 2 {
		return 0, nil
	}
	fields := int(int16(binary.BigEndian.Uint16(b)))
	if fields == -1 { // the tail; another COPY may follow
		s.begun = false
		return 2, nil
	}
	if fields < s.columns {
		return 0, fmt.Errorf("%w: a row has %d columns, want %d", errForm, fields, s.columns)
	}
	at, end := 2, 2
	for i := range fields {
		if len(b) < at+4 {
			return 0, nil
		}
		size := int(int32(binary.BigEndian.Uint32(b[at:])))
		if at += 4; size > 0 { // -1 is NULL
			at += size
		}
		if i == s.columns-1 {
			end = at
		}
	}
	if len(b) < at {
		return 0, nil
	}
	s.add(b[2:end])
	return at, nil
}

// add adds the hash of a row.
func (s *sum) add(row []byte) {
	h := xxh3.Hash128(row)
	carry := s.lo + h.Lo
	if carry < s.lo {
		s.hi++
	}
	s.lo, s.hi = carry, s.hi+h.Hi
	s.rows++
}

func (s *sum) same(other *sum) bool {
	return s.rows == other.rows && s.hi == other.hi && s.lo == other.lo
}

func (s *sum) bytes() []byte {
	b := binary.BigEndian.AppendUint64(nil, s.hi)
	return binary.BigEndian.AppendUint64(b, s.lo)
}
