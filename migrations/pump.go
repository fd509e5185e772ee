package migrations

import (
	"io"
)

// pump is a pipe in whose middle some buffers wait, so that neither side stops for the
// other at each of them.
type pump struct {
	full, free chan []byte
	out        []byte // is being filled
	in, rest   []byte // is being read, and what is left of it
	err        error  // how the writer ended; set before full is closed
}

const (
	pumpBuffer  = 128 << 10
	pumpBuffers = 4
)

func newPump() *pump {
	p := &pump{full: make(chan []byte, pumpBuffers), free: make(chan []byte, pumpBuffers)}
	for range pumpBuffers {
		p.free <- nil
	}
	return p
}

// Write implements io.Writer. It waits while all buffers are full, so somebody has to
// read up to the end.
func (p *pump) Write(b []byte) (int, error) {
	if len(p.out)+len(b) > pumpBuffer {
		p.flush()
	}
	if p.out == nil {
		if p.out = <-p.free; p.out == nil {
			p.out = make([]byte, 0, pumpBuffer)
		}
	}
	p.out = append(p.out, b...)
	return len(b), nil
}

func (p *pump) flush() {
	if len(p.out) > 0 {
		p.full <- p.out
		p.out = nil
	}
}

// end ends what is written; the reader gets err behind it, io.EOF for nil.
func (p *pump) end(err error) {
	if p.err = err; err == nil {
		p.flush()
		p.err = io.EOF
	}
	close(p.full)
}

// Read implements io.Reader.
func (p *pump) Read(b []byte) (int, error) {
	if len(p.rest) == 0 {
		if cap(p.in) > 0 {
			if cap(p.in) > 2*pumpBuffer { // of a large row
				p.in = nil
			}
			p.free <- p.in[:0]
			p.in = nil
		}
		var more bool
		if p.in, more = <-p.full; !more {
			return 0, p.err
		}
		p.rest = p.in
	}
	n := copy(b, p.rest)
	p.rest = p.rest[n:]
	return n, nil
}
