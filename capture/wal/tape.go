package wal

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// blockSize is what a tape grows by in memory, in bytes.
const blockSize = 64 << 10

// tape holds the messages of one open transaction in the order in which they
// came: the older ones in a file, the newer ones in blocks of memory. Only its
// end can be cut off.
type tape struct {
	file   *spoolFile // nil until the first spill
	blocks [][]byte   // full ones, and the last
	size   int64      // of file and blocks
}

// blockPool counts the blocks that all tapes hold. Of those that came back it
// keeps so many that there are no more than limit in all.
type blockPool struct {
	limit int
	used  int
	spare [][]byte
}

func (p *blockPool) get() []byte {
	p.used++
	if n := len(p.spare); n > 0 {
		b := p.spare[n-1]
		p.spare = p.spare[:n-1]
		return b
	}
	return make([]byte, 0, blockSize)
}

func (p *blockPool) put(blocks [][]byte) {
	p.used -= len(blocks)
	for _, b := range blocks {
		if p.used+len(p.spare) >= p.limit {
			return
		}
		p.spare = append(p.spare, b[:0])
	}
}

// append writes one message, with its length before it.
func (t *tape) append(p *blockPool, kind byte, rest []byte) {
	var head [5]byte
	binary.BigEndian.PutUint32(head[:], uint32(1+len(rest)))
	head[4] = kind
	t.write(p, head[:])
	t.write(p, rest)
}

func (t *tape) write(p *blockPool, b []byte) {
	t.size += int64(len(b))
	for len(b) > 0 {
		last := len(t.blocks) - 1
		if last < 0 || len(t.blocks[last]) == blockSize {
			t.blocks = append(t.blocks, p.get())
			last++
		}
		n := min(len(b), blockSize-len(t.blocks[last]))
		t.blocks[last] = append(t.blocks[last], b[:n]...)
		b = b[n:]
	}
}

// spilled is how much of the tape is in the file.
func (t *tape) spilled() int64 {
	if t.file == nil {
		return 0
	}
	return t.file.size
}

// spill moves the blocks to the file.
func (t *tape) spill(p *blockPool, s *spool) (err error) {
	if t.file == nil {
		if t.file, err = s.create(); err != nil {
			return err
		}
	}
	for _, b := range t.blocks {
		if err := t.file.write(b); err != nil {
			return err
		}
	}
	p.put(t.blocks)
	clear(t.blocks)
	t.blocks = t.blocks[:0]
	return nil
}

// truncate cuts off what was written after the tape had the given size.
func (t *tape) truncate(p *blockPool, size int64) error {
	if size >= t.size {
		return nil
	}
	t.size = size
	held := size - t.spilled() // stays in blocks
	if held < 0 {
		held = 0
		if err := t.file.truncate(size); err != nil {
			return err
		}
	}
	keep := int((held + blockSize - 1) / blockSize)
	p.put(t.blocks[keep:])
	clear(t.blocks[keep:])
	t.blocks = t.blocks[:keep]
	if keep > 0 {
		t.blocks[keep-1] = t.blocks[keep-1][:held-int64(keep-1)*blockSize]
	}
	return nil
}

// play gives the messages to fn, in order. They are valid until fn returns.
func (t *tape) play(fn func(kind byte, rest []byte) error) error {
	readers := make([]io.Reader, 0, 1+len(t.blocks))
	if t.file != nil {
		r, err := t.file.reader()
		if err != nil {
			return err
		}
		readers = append(readers, r)
	}
	for _, b := range t.blocks {
		readers = append(readers, bytes.NewReader(b))
	}
	r := bufio.NewReaderSize(io.MultiReader(readers...), gulpSize)
	var long []byte // a message that does not fit into r's buffer
	for {
		head, err := r.Peek(4)
		if errors.Is(err, io.EOF) && len(head) == 0 {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read back an open transaction: %w", err)
		}
		size := 4 + int(binary.BigEndian.Uint32(head))
		msg := long
		if size <= r.Size() {
			msg, err = r.Peek(size)
		} else {
			if cap(long) < size {
				long = make([]byte, size)
			}
			msg = long[:size]
			_, err = io.ReadFull(r, msg)
		}
		if err != nil {
			return fmt.Errorf("read back an open transaction: %w", err)
		}
		if err := fn(msg[4], msg[5:]); err != nil {
			return err
		}
		if size <= r.Size() {
			if _, err := r.Discard(size); err != nil {
				return fmt.Errorf("read back an open transaction: %w", err)
			}
		}
	}
}

// release gives the blocks back and removes the file.
func (t *tape) release(p *blockPool) error {
	p.put(t.blocks)
	t.blocks, t.size = nil, 0
	if t.file == nil {
		return nil
	}
	err := t.file.remove()
	t.file = nil
	return err
}
