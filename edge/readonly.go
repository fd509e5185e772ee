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
//   - No view is begun within another one: files that were replaced are gone over to when
//     all views of the old ones have ended, and the inner one would wait for the outer one.
//     It ends with ErrViewsOpen, after Options.MaxViewAge.
//
// All methods may be called by anyone at any time. What View gives is what Store.View
// gives.
type ReadOnly struct {
	opts    Options
	current atomic.Pointer[Store]
	// looked is when the files were last looked at, in Unix nanoseconds.
	looked atomic.Int64

	mu     sync.Mutex
	closed bool
	// moving is the going over to another store that is under way; nil if none is.
	moving  *move
	leaving sync.WaitGroup
}

// move is a going over to another store. err is set when done is closed.
type move struct {
	done chan struct{}
	err  error
}

// ErrViewsOpen occurs when the files of a store were replaced and views of the old ones do
// not end, which have to before the new ones can be opened. Mend: end views within
// Options.MaxViewAge, and begin none within another one.
var ErrViewsOpen = errors.New("views of the store that was replaced are open")

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
		if err := r.look(ctx, s); err != nil {
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
		if err := r.reopen(ctx, s); err != nil {
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
func (r *ReadOnly) look(ctx context.Context, s *Store) error {
	last, now := r.looked.Load(), time.Now().UnixNano()
	if now-last < int64(readOnlyLook) || !r.looked.CompareAndSwap(last, now) {
		return nil
	}
	same, err := s.stillThere()
	if err != nil {
		return err
	}
	if !same {
		return r.reopen(ctx, s)
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

// reopen returns when a store that is no longer the one to read was gone over from, by
// whoever. That goes on in the background if the caller does not wait so long.
func (r *ReadOnly) reopen(ctx context.Context, old *Store) error {
	m, err := r.move(old)
	if m == nil {
		return err
	}
	limit := time.NewTimer(r.opts.MaxViewAge)
	defer limit.Stop()
	select {
	case <-m.done:
		return m.err
	case <-ctx.Done():
		return fmt.Errorf("go over to another store of %s: %w", r.opts.Dir, ctx.Err())
	case <-limit.C:
		return fmt.Errorf("go over to another store of %s: %w for more than %v; mend: end views within that time, and begin none within another one",
			r.opts.Dir, ErrViewsOpen, r.opts.MaxViewAge)
	}
}

// move begins to go over from a store, unless somebody has; nil where that is done.
func (r *ReadOnly) move(old *Store) (*move, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.closed:
		return nil, ErrClosed
	case r.moving != nil:
		return r.moving, nil
	case r.current.Load() != old:
		return nil, nil
	}
	m := &move{done: make(chan struct{})}
	r.moving = m
	go func() {
		defer close(m.done)
		m.err = r.goOver(old)
		r.mu.Lock()
		defer r.mu.Unlock()
		r.moving = nil
	}()
	return m, nil
}

// goOver goes over from a store. It is closed when its views have ended: before the new one
// is opened where both are in one directory, which a process opens once, and in the
// background otherwise.
func (r *ReadOnly) goOver(old *Store) error {
	name, err := readCurrent(r.opts.Dir)
	if err != nil {
		return err
	}
	if filepath.Join(r.opts.Dir, name) == old.Dir() {
		if err := old.Close(); err != nil {
			return err
		}
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
	m := r.moving
	r.mu.Unlock()
	if m != nil {
		<-m.done
	}
	err := r.current.Load().Close()
	r.leaving.Wait()
	return err
}
