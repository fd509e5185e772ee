package wal

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/millrace-db/millrace"
)

// spool makes the files of one stream's large transactions: those that are still
// open at the source, as messages, and those that were committed, as entries. A
// file lives until its transaction has ended or the body made of it is closed;
// those of a process that was killed are removed at the next start. They hold
// rows, so only the process's user may read them.
type spool struct {
	dir, prefix string
	metrics     *metrics
	number      atomic.Uint64
}

// openSpool makes the directory and clears away old files of the stream.
func openSpool(dir, stream string, m *metrics) (*spool, error) {
	s := &spool{dir: dir, prefix: "millrace-" + stream + "-", metrics: m}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, s.failed("make directory", err)
	}
	old, err := os.ReadDir(dir)
	if err != nil {
		return nil, s.failed("read directory", err)
	}
	for _, e := range old {
		number, found := strings.CutSuffix(strings.TrimPrefix(e.Name(), s.prefix), ".spool")
		// Another stream's name may begin with ours: what stands between must
		// be a number.
		if !found || !strings.HasPrefix(e.Name(), s.prefix) || strings.Trim(number, "0123456789") != "" {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, s.failed("remove old file", err)
		}
	}
	return s, nil
}

func (s *spool) failed(verb string, err error) error {
	return fmt.Errorf("%w: %s in %s: %w; mend: free space there or name another directory (spool), then start again", ErrSpool, verb, s.dir, err)
}

// spoolFile is one transaction on its way into a file.
type spoolFile struct {
	s    *spool
	f    *os.File
	size int64
}

// create makes a file that is nobody else's. A process that was stopped and goes
// on beside its successor writes into the same directory under the same names:
// what one of them writes must never be read by the other.
func (s *spool) create() (*spoolFile, error) {
	for {
		path := filepath.Join(s.dir, fmt.Sprintf("%s%d.spool", s.prefix, s.number.Add(1)))
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if errors.Is(err, os.ErrExist) {
			continue
		}
		if err != nil {
			return nil, s.failed("make file", err)
		}
		s.metrics.files.Inc()
		return &spoolFile{s: s, f: f}, nil
	}
}

func (f *spoolFile) write(b []byte) error {
	n, err := f.f.Write(b)
	f.size += int64(n)
	f.s.metrics.spool.Add(float64(n))
	if err != nil {
		return f.s.failed("write file", err)
	}
	return nil
}

// truncate cuts the file's end off; what is written next goes there.
func (f *spoolFile) truncate(size int64) error {
	if err := f.f.Truncate(size); err != nil {
		return f.s.failed("cut file", err)
	}
	if _, err := f.f.Seek(size, io.SeekStart); err != nil {
		return f.s.failed("cut file", err)
	}
	f.s.metrics.spool.Sub(float64(f.size - size))
	f.size = size
	return nil
}

// reader reads the file from its start.
func (f *spoolFile) reader() (io.Reader, error) {
	if _, err := f.f.Seek(0, io.SeekStart); err != nil {
		return nil, f.s.failed("read file", err)
	}
	return f.f, nil
}

// body hands the file over to a unit's body, which removes it when it is closed.
func (f *spoolFile) body() (millrace.Body, error) {
	r, err := f.reader()
	if err != nil {
		return nil, err
	}
	return millrace.NewReaderBody(r, sync.OnceValue(f.remove)), nil
}

// remove closes and deletes the file. A successor may have cleared it away.
func (f *spoolFile) remove() error {
	f.s.metrics.spool.Sub(float64(f.size))
	f.s.metrics.files.Dec()
	err := os.Remove(f.f.Name())
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	if err = errors.Join(f.f.Close(), err); err != nil {
		return fmt.Errorf("remove spool file: %w", err)
	}
	return nil
}
