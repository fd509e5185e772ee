package trigger

import (
	"errors"
	"fmt"
	"os"

	"github.com/millrace-db/millrace"
)

// unitMemory is how many bytes of a chunk's rows are held in memory. A chunk has
// about chunkBytes; but it ends only between two blocks of the heap, and a block can
// hold hundreds of rows that are stored out of line.
const unitMemory = 2 * chunkBytes

// unitFile makes a unit whose rows go into a file where they are too many bytes. The
// file has no name once it is open, so nothing stays of it when the process ends.
type unitFile struct {
	dir  string
	out  *millrace.UnitWriter
	file *os.File
}

// reset makes the writer ready.
func (u *unitFile) reset() error {
	u.out.Reset()
	return u.remove()
}

// spill moves what was written to the file if it is much.
func (u *unitFile) spill() error {
	if u.out.Buffered() <= unitMemory {
		return nil
	}
	if u.file == nil {
		if err := os.MkdirAll(u.dir, 0o700); err != nil {
			return u.failed(err)
		}
		f, err := os.CreateTemp(u.dir, "millrace-chunk-*")
		if err != nil {
			return u.failed(err)
		}
		u.file = f
		if err := os.Remove(f.Name()); err != nil {
			return u.failed(err)
		}
	}
	return u.write(u.out.Take())
}

func (u *unitFile) write(b []byte) error {
	if _, err := u.file.Write(b); err != nil {
		return u.failed(err)
	}
	return nil
}

func (u *unitFile) failed(err error) error {
	return fmt.Errorf("%w: in %s: %w; mend: free space there or name another directory (spool), then start again", ErrSpool, u.dir, err)
}

// unit ends the unit, at the position of a window.
func (u *unitFile) unit(w *window) (*millrace.Unit, error) {
	entries := u.out.Len()
	payload, err := u.out.Finish(millrace.UnitEnd{Time: w.at, Token: w.position.Tick})
	if err != nil {
		return nil, errors.Join(err, u.remove())
	}
	if u.file == nil {
		return millrace.NewUnit(w.position, w.at, entries, payload), nil
	}
	err = u.write(payload)
	if err == nil {
		if _, seekErr := u.file.Seek(0, 0); seekErr != nil {
			err = u.failed(seekErr)
		}
	}
	if err != nil {
		return nil, errors.Join(err, u.remove())
	}
	file := u.file
	u.file = nil
	return &millrace.Unit{Position: w.position, Time: w.at, Entries: entries, Body: millrace.NewReaderBody(file, file.Close)}, nil
}

// remove forgets the file.
func (u *unitFile) remove() error {
	if u.file == nil {
		return nil
	}
	file := u.file
	u.file = nil
	return file.Close()
}
