package wal

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// rowsInMemory is how many bytes of a chunk's rows are held in memory. A chunk has
// about chunkBytes; but it ends only between two blocks of the heap, and a block
// can hold hundreds of rows that are stored out of line.
const rowsInMemory = 2 * chunkBytes

// rowBuffer holds encoded rows, each with its key: in memory, and where that
// becomes too much, in a file of the spool. Without a spool all is in memory.
type rowBuffer struct {
	spool *spool
	b     []byte
	n     int
	file  *spoolFile // what came before b
}

// reset forgets all rows.
func (r *rowBuffer) reset() error {
	r.b, r.n = r.b[:0], 0
	if cap(r.b) > 2*rowsInMemory {
		r.b = nil
	}
	file := r.file
	if r.file = nil; file == nil {
		return nil
	}
	return file.remove()
}

func (r *rowBuffer) add(key, row []byte) (err error) {
	r.b = append(binary.AppendUvarint(r.b, uint64(len(key))), key...)
	r.b = append(binary.AppendUvarint(r.b, uint64(len(row))), row...)
	r.n++
	if r.spool == nil || len(r.b) <= rowsInMemory {
		return nil
	}
	if r.file == nil {
		if r.file, err = r.spool.create(); err != nil {
			return err
		}
	}
	err = r.file.write(r.b)
	r.b = r.b[:0]
	return err
}

// each calls fn with every row, in the order in which they came; its bytes are
// valid during the call. No row can be added after it.
func (r *rowBuffer) each(fn func(key, row []byte) error) error {
	if r.file != nil {
		if err := r.fromFile(fn); err != nil {
			return err
		}
	}
	for b := r.b; len(b) > 0; {
		var key, row []byte
		key, b = cutBytes(b)
		row, b = cutBytes(b)
		if err := fn(key, row); err != nil {
			return err
		}
	}
	return nil
}

func (r *rowBuffer) fromFile(fn func(key, row []byte) error) error {
	in, err := r.file.reader()
	if err != nil {
		return err
	}
	var key, row []byte
	for b := bufio.NewReaderSize(in, 1<<20); ; {
		if key, err = readBytes(b, key); errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			row, err = readBytes(b, row)
		}
		if err != nil {
			return fmt.Errorf("read rows of a chunk: %w", err)
		}
		if err := fn(key, row); err != nil {
			return err
		}
	}
}

// readBytes reads a byte string into buf, which it may replace.
func readBytes(in *bufio.Reader, buf []byte) ([]byte, error) {
	n, err := binary.ReadUvarint(in)
	if err != nil {
		return buf, err
	}
	if uint64(cap(buf)) < n {
		buf = make([]byte, n)
	}
	buf = buf[:n]
	if _, err := io.ReadFull(in, buf); err != nil {
		return buf, io.ErrUnexpectedEOF
	}
	return buf, nil
}

func cutBytes(b []byte) (cut, rest []byte) {
	n, head := binary.Uvarint(b)
	return b[head : head+int(n)], b[head+int(n):]
}
