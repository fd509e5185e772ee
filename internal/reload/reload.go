// Package reload keeps what was read from files, and reads them again when they
// have changed: certificates and tokens are replaced without a restart.
//
// It promises that what was read last and was right stays in use until something
// right takes its place. There is no goroutine and no watch on the file system:
// whoever asks looks, at most once a second.
package reload

import (
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// every is how old what was looked at may be.
const every = time.Second

// File is what files hold. It is safe for concurrent use.
type File[T any] struct {
	paths []string
	read  func() (T, error)
	log   *slog.Logger

	value atomic.Pointer[T]
	// next is when the files are looked at again, in nanoseconds of Unix time.
	next atomic.Int64

	mu    sync.Mutex // held to look
	stamp string
	told  string // the complaint that was logged last
}

// New reads the files for the first time. paths are all that read reads.
func New[T any](read func() (T, error), log *slog.Logger, paths ...string) (*File[T], error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	f := &File[T]{paths: paths, read: read, log: log}
	f.stamp = f.look()
	v, err := read()
	if err != nil {
		return nil, err
	}
	f.value.Store(&v)
	f.next.Store(time.Now().Add(every).UnixNano())
	return f, nil
}

// Get returns what the files hold, as of a second ago at most. Where they cannot
// be read, or hold what is not right, that is logged once, and it is what they
// held before.
func (f *File[T]) Get() T {
	now := time.Now().UnixNano()
	if next := f.next.Load(); now >= next && f.next.CompareAndSwap(next, now+int64(every)) {
		f.Look()
	}
	return *f.value.Load()
}

// Look looks at the files now.
func (f *File[T]) Look() {
	f.mu.Lock()
	defer f.mu.Unlock()
	stamp := f.look()
	if stamp == f.stamp {
		return
	}
	v, err := f.read()
	if err != nil {
		// The stamp stays the old one, so the next look tries again: what is being
		// written is right in a moment.
		if f.told != err.Error() {
			f.told = err.Error()
			f.log.Error("a changed file is not taken over; what it held before stays in use", "files", f.paths, "error", err)
		}
		return
	}
	f.stamp, f.told = stamp, ""
	f.value.Store(&v)
	f.log.Info("a changed file was taken over", "files", f.paths)
}

// look says what the files look like from outside.
func (f *File[T]) look() string {
	stamp := ""
	for _, path := range f.paths {
		info, err := os.Stat(path)
		if err != nil {
			stamp += fmt.Sprintf("%v;", err)
			continue
		}
		var inode uint64
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			inode = st.Ino
		}
		stamp += fmt.Sprintf("%d %d %d;", info.ModTime().UnixNano(), info.Size(), inode)
	}
	return stamp
}
