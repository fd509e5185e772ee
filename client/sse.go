package client

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
)

// eventLimit bounds one event in bytes: a row of the greatest size, escaped.
const eventLimit = 128 << 20

// scanner reads server-sent events.
type scanner struct {
	r    *bufio.Reader
	line []byte
	data []byte
}

func newScanner(r io.Reader) *scanner { return &scanner{r: bufio.NewReaderSize(r, 32<<10)} }

// next returns the data of the next event, nil where the edge has only shown that it is
// there. It is valid until the next call.
func (s *scanner) next() ([]byte, error) {
	const most = 1 << 20
	if cap(s.data) > most {
		s.data = nil
	}
	s.data = s.data[:0]
	for {
		line, err := s.read()
		if err != nil {
			return nil, err
		}
		if len(line) == 0 {
			if len(s.data) == 0 {
				return nil, nil
			}
			return s.data, nil
		}
		if rest, ok := bytes.CutPrefix(line, []byte("data:")); ok {
			rest = bytes.TrimPrefix(rest, []byte(" "))
			if len(s.data) > 0 {
				s.data = append(s.data, '\n')
			}
			s.data = append(s.data, rest...)
		}
		if len(s.data) > eventLimit {
			return nil, fmt.Errorf("event of more than %d bytes", eventLimit)
		}
	}
}

// read reads a line. What is before the end of the connection is none.
func (s *scanner) read() ([]byte, error) {
	line, err := s.r.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		s.line = append(s.line[:0], line...)
		for errors.Is(err, bufio.ErrBufferFull) {
			if len(s.line) > eventLimit {
				return nil, fmt.Errorf("event of more than %d bytes", eventLimit)
			}
			line, err = s.r.ReadSlice('\n')
			s.line = append(s.line, line...)
		}
		line = s.line
		const most = 1 << 20
		if cap(s.line) > most {
			s.line = nil
		}
	}
	if err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(line[:len(line)-1], []byte("\r")), nil
}
