package edge

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/bmatsuo/lmdb-go/lmdb"

	"github.com/millrace-db/millrace"
)

// ReadOnly reads a stream's rows in a process beside its edge, straight from the store
// that the edge writes: what the edge itself pays for a read, and no request. It follows
// the edge from store to store: when readers go over to a new epoch, a compacted copy or a
// restored store, the next view is one of that.
//
// Rules, which OpenReadOnly looks at as far as they can be seen:
//
//   - The process runs as the user that owns the files. It writes into lock.mdb, where the
//     edge sees which snapshots are in use.
//   - It runs in the PID namespace of the edge: LMDB tells readers of dead processes by
//     their IDs, and would take those of another namespace for dead.
//   - The directory is on a local file system, and one ReadOnly (or Store) has it open in a
//     process; share it.
//   - A process that is stopped within a view, by a signal or a debugger, keeps the edge's
//     file growing; the edge tells of that in its log.
//
// All methods may be called by anyone at any time. What View gives is what Store.View
// gives.
type ReadOnly struct {
	opts    Options
	current atomic.Pointer[Store]
	// looked is when the files were last looked at, in Unix nanoseconds.
	looked atomic.Int64

	mu      sync.Mutex // held to exchange the store
	closed  bool
	leaving sync.WaitGroup
}

// readOnlyLook is how often it is looked whether the files are still those that are open,
// while there are views.
const readOnlyLook = time.Second

// OpenReadOnly opens the directory of an edge's stream (its data_dir, and the stream's name
// in it) for reading. The edge need not run. Errors: ErrNoStore, ErrForbidden, ErrInUse
// where this process has it open already or where process IDs collide, ErrOtherStream,
// ErrCorrupt.
func OpenReadOnly(o Options) (*ReadOnly, error) {
	o.ReadOnly, o.exact = true, false
	if err := o.complete(); err != nil {
		return nil, err
	}
	if o.growDBs {
		o.MaxDBs = 0 // each store has its own
	}
	r := &ReadOnly{opts: o}
	s, err := r.open()
	if err != nil {
		return nil, err
	}
	r.current.Store(s)
	r.looked.Store(time.Now().UnixNano())
	return r, nil
}

// open opens the store that the edge's readers use.
func (r *ReadOnly) open() (*Store, error) {
	s, err := Open(r.opts)
	if err != nil {
		return nil, err
	}
	if err := readable(s.Dir()); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// readable says why a store must not be read by this process.
func readable(dir string) error {
	info, err := os.Stat(filepath.Join(dir, "data.mdb"))
	if err != nil {
		return fmt.Errorf("open store %s: %w", dir, err)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("open store %s: %w: its files are of user %d, this process runs as %d; mend: run as the edge's user, or read through the edge",
			dir, ErrForbidden, st.Uid, os.Geteuid())
	}
	return sameNamespace(dir)
}

// sameNamespace refuses a store that was last opened for writing in another PID namespace.
// It asks for no lock, which an edge that starts just then would find taken.
func sameNamespace(dir string) error {
	note, err := os.ReadFile(filepath.Join(dir, lockName))
	if err != nil {
		return nil //nolint:nilerr // an edge of an older version, or none yet
	}
	own := pidNamespace()
	if _, theirs, ok := strings.Cut(string(note), noteNamespace); ok && own != "" && theirs != own {
		return fmt.Errorf("open store %s: %w: it is written by %s, this process is in %s; mend: let the containers share a PID namespace, or read through the edge",
			dir, ErrForbidden, note, own)
	}
	return nil
}

// pidNamespace names this process's PID namespace, empty where the system does not say.
func pidNamespace() string {
	name, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return ""
	}
	return name
}

// View is Store.View on the store that the edge's readers use. A view that has begun ends
// on its store.
func (r *ReadOnly) View(ctx context.Context, fn func(*View) error) error {
	for {
		s := r.current.Load()
		if err := r.look(s); err != nil {
			return err
		}
		if s != r.current.Load() {
			continue
		}
		begun := false
		err := s.View(ctx, func(v *View) error {
			begun = true
			return fn(v)
		})
		if begun || err == nil || !errors.Is(err, ErrSuperseded) && !errors.Is(err, ErrClosed) && !isResized(err) {
			return err
		}
		if err := r.reopen(s); err != nil {
			return err
		}
	}
}

// isResized tells that the edge has given the map another size since it was opened here.
func isResized(err error) bool {
	var op *lmdb.OpError
	return errors.As(err, &op) && errors.Is(op.Errno, lmdb.MapResized)
}

// look looks from time to time whether the directory still leads to the files that are
// open, and whether they may still be read: somebody may have moved them away and begun
// anew, or have started the edge in another container.
func (r *ReadOnly) look(s *Store) error {
	last, now := r.looked.Load(), time.Now().UnixNano()
	if now-last < int64(readOnlyLook) || !r.looked.CompareAndSwap(last, now) {
		return nil
	}
	same, err := s.stillThere()
	if err != nil {
		return err
	}
	if !same {
		return r.reopen(s)
	}
	return sameNamespace(s.Dir())
}

// stillThere reports whether the store's file is the one that its name leads to. A store
// that is gone is still there: the edge removes those that readers leave, and View says so.
func (s *Store) stillThere() (bool, error) {
	named, err := os.Stat(filepath.Join(s.dir, "data.mdb"))
	if err != nil {
		return true, nil // as above
	}
	s.handleMu.RLock()
	defer s.handleMu.RUnlock()
	if s.env == nil {
		return true, nil
	}
	fd, err := s.env.FD()
	if err != nil {
		return false, s.fail("find data file", err)
	}
	var open syscall.Stat_t
	if err := syscall.Fstat(int(fd), &open); err != nil {
		return false, fmt.Errorf("look at data file of %s: %w", s.dir, err)
	}
	st, ok := named.Sys().(*syscall.Stat_t)
	return !ok || st.Dev == open.Dev && st.Ino == open.Ino, nil
}

// reopen goes over from a store that is no longer the one to read. The old one is closed
// when its views have ended: before the new one is opened where both are in one directory,
// which a process opens once, and in the background otherwise.
func (r *ReadOnly) reopen(old *Store) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return ErrClosed
	}
	if r.current.Load() != old {
		return nil // somebody else has
	}
	name, err := readCurrent(r.opts.Dir)
	if err != nil {
		return err
	}
	if filepath.Join(r.opts.Dir, name) == old.Dir() {
		if err := old.Close(); err != nil {
			return err
		}
		// A view that comes now waits for mu, with whatever this ends.
	}
	s, err := r.open()
	if err != nil {
		return fmt.Errorf("go over to another store of %s: %w", r.opts.Dir, err)
	}
	r.current.Store(s)
	r.looked.Store(time.Now().UnixNano())
	r.opts.Logger.Info("reading goes on in another store", "dir", s.Dir(), "index", s.Index())
	r.leaving.Go(func() {
		if err := old.Close(); err != nil {
			r.opts.Logger.Warn("close the store that was read before", "dir", old.Dir(), "error", err)
		}
	})
	return nil
}

// Stream returns the ID of the stream.
func (r *ReadOnly) Stream() millrace.StreamID { return r.current.Load().Stream() }

// Place returns where the store stood at the newest view.
func (r *ReadOnly) Place() Place { return r.current.Load().Place() }

// WaitIndex returns when the store has come to an index of an epoch, or is of a later one,
// or with the context's error or ErrClosed. Epoch 0 stands for whichever there is.
func (r *ReadOnly) WaitIndex(ctx context.Context, epoch millrace.Epoch, index millrace.Index) error {
	poll := time.NewTicker(readOnlyPoll)
	defer poll.Stop()
	for {
		var at Place
		err := r.View(ctx, func(v *View) error {
			at = v.Place()
			return nil
		})
		if err != nil {
			return err
		}
		if at.Reaches(epoch, index) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for index %v, store is at %v: %w", index, at.Index, ctx.Err())
		case <-poll.C:
		}
	}
}

// Close waits for open views and gives the files up.
func (r *ReadOnly) Close() error {
	r.mu.Lock()
	r.closed = true
	s := r.current.Load()
	r.mu.Unlock()
	err := s.Close()
	r.leaving.Wait()
	return err
}
