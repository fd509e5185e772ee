package edge

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/failpoint"
)

// homeLockName is the file that lets one process keep a home. Each store within
// has a lock of its own beside it, for those who open a store by itself.
const homeLockName = "home.lock"

// Home is the directory in which an edge keeps a stream through its epochs: the
// store that readers use, and, while a new epoch is copied, the store that is to
// follow it. Readers go over from one to the other at once (Switch). Its methods
// may be called concurrently, but for Next, DropNext, Switch, Compact, DropCompacted,
// SwitchCompacted, Restore and Close, which one goroutine calls at a time.
//
//	<dir>/data.mdb, lock.mdb, writer.lock   the store of the first epoch kept here
//	<dir>/epoch-2/…                         the store of a later epoch
//	<dir>/epoch-2-1/…                       a compacted copy that took its place, or
//	                                        is being made
//	<dir>/restoring/…                       a store that is being restored
//	<dir>/CURRENT                           names the one that readers use, if it is
//	                                        not the first
//	<dir>/home.lock                         one process keeps the home
//
// What CURRENT names decides, whatever else is there after a crash: a store of a
// higher epoch is one that was being filled, and goes on being filled; any other
// is one that readers have left, or a copy that they have not come to, and is
// removed.
type Home struct {
	opts Options
	lock *os.File

	current atomic.Pointer[Store]
	next    atomic.Pointer[Store]
	// compacted is a copy of current that is to take its place.
	compacted atomic.Pointer[Store]
	// nextEpoch is that of next.
	nextEpoch millrace.Epoch
	metrics   []prometheus.Collector
	// exchanging is closed when the store is open again that is being closed and
	// opened; nil while none is.
	exchanging atomic.Pointer[chan struct{}]
	exchangeMu mutex // held to do that
	// foreign tells that another process keeps the home.
	foreign atomic.Bool
	// leaving are stores that are closed once no reader is left: those that readers have
	// gone over from are then removed, and one of another process is opened.
	leaving sync.WaitGroup
}

// OpenHome opens the home at o.Dir and its current store, or makes them. o holds
// for every store of the home; ReadOnly cannot be set. Errors: those of Open, and
// ErrInUse where another process keeps the home.
func OpenHome(o Options) (*Home, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	if o.ReadOnly {
		return nil, fmt.Errorf("open home %s: an edge writes it; mend: Open it for reading", o.Dir)
	}
	if o.growDBs {
		o.MaxDBs = 0 // each store has its own
	}
	h := &Home{opts: o, exchangeMu: newMutex()}
	if err := h.open(); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	h.register()
	return h, nil
}

func (h *Home) open() (err error) {
	dir := h.opts.Dir
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make data directory %s: %w; mend: choose a directory that this user may write", dir, err)
	}
	if h.lock, err = lockDir(dir, homeLockName); err != nil {
		return err
	}
	name, err := readCurrent(dir)
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(dir, name, "data.mdb")); name != "" && err != nil {
		return &CorruptError{Dir: dir, Text: fmt.Sprintf("file %s names %s, and there is no store: %v", currentName, name, err)}
	}
	s, err := Open(h.storeOptions(name, h.opts.Registerer))
	if err != nil {
		return err
	}
	h.current.Store(s)
	h.clear()
	return nil
}

// clear removes what an earlier process has left behind.
func (h *Home) clear() {
	// What readers have left is removed now if it was not before.
	for _, left := range h.leftBehind() {
		if err := removeStore(h.opts, left); err != nil {
			h.opts.Logger.Warn("a store that is no longer read cannot be removed", "dir", filepath.Join(h.opts.Dir, left), "error", err)
		}
	}
	// A store that was being restored is begun anew.
	if err := removeDir(filepath.Join(h.opts.Dir, restoringName)); err != nil {
		h.opts.Logger.Warn("a store that was being restored is left", "error", err)
	}
}

func (h *Home) storeOptions(name string, r prometheus.Registerer) Options {
	o := h.opts
	o.Dir, o.Registerer, o.exact = filepath.Join(h.opts.Dir, name), r, true
	// What is made beside the store that readers use holds what that holds.
	if current := h.current.Load(); current != nil {
		o.Filter = current.Filter()
	}
	return o
}

// leftBehind returns the directories of stores other than the current one, but for those
// of a higher epoch that are being filled.
func (h *Home) leftBehind() []string {
	current := h.dirName(h.Store())
	var left []string
	if _, err := os.Stat(filepath.Join(h.opts.Dir, "data.mdb")); err == nil && current != "" {
		left = append(left, "")
	}
	epoch := h.Store().Place().Epoch
	for _, d := range h.storeDirs() {
		if d.name != current && (d.epoch <= epoch || d.copy > 0) {
			left = append(left, d.name)
		}
	}
	return left
}

// dirName returns the directory of a store within the home, empty for the home
// itself.
func (h *Home) dirName(s *Store) string {
	if s.Dir() == h.opts.Dir {
		return ""
	}
	return filepath.Base(s.Dir())
}

// storeDirs returns the directories of stores within the home.
func (h *Home) storeDirs() []storeDir {
	entries, err := os.ReadDir(h.opts.Dir)
	if err != nil {
		h.opts.Logger.Warn("look for stores", "dir", h.opts.Dir, "error", err)
	}
	var all []storeDir
	for _, entry := range entries {
		if d, ok := parseStoreDir(entry.Name()); ok && entry.IsDir() {
			all = append(all, d)
		}
	}
	return all
}

func (h *Home) register() {
	gauge := func(name, help string, value func(Place) float64) {
		h.metrics = append(h.metrics, prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "millrace_edge_" + name, Help: help}, func() float64 {
			epoch, place := h.Following()
			place.Epoch = epoch
			return value(place)
		}))
	}
	gauge("next_epoch", "Epoch that is being copied while readers use an older one; 0 if none is.", func(p Place) float64 { return float64(p.Epoch) })
	gauge("next_index", "Index of the newest unit committed of the epoch that is being copied.", func(p Place) float64 { return float64(p.Index) })
	if h.opts.Registerer == nil {
		return
	}
	for _, c := range h.metrics {
		h.opts.Registerer.MustRegister(c)
	}
}

// Dir returns the home's directory.
func (h *Home) Dir() string { return h.opts.Dir }

// Store returns the store that readers use now. Switch closes it once its views
// have ended: read through View to be led to its successor.
func (h *Home) Store() *Store { return h.current.Load() }

// Stream returns the ID of the stream, as Store.Stream does.
func (h *Home) Stream() millrace.StreamID { return h.Store().Stream() }

// Place returns where the store stands that readers use.
func (h *Home) Place() Place { return h.Store().Place() }

// Space returns the room of the store that readers use.
func (h *Home) Space() Space { return h.Store().Space() }

// Verified is that of the store that readers use, as Verifying and VerifyNews are.
func (h *Home) Verified() []TableVerify { return h.Store().Verified() }

// Verifying is Store.Verifying of the store that readers use.
func (h *Home) Verifying() millrace.Index { return h.Store().Verifying() }

// VerifyNews is Store.VerifyNews of the store that readers use.
func (h *Home) VerifyNews() uint64 { return h.Store().VerifyNews() }

// Following returns the epoch that is being copied and how far it is; 0 if none
// is.
func (h *Home) Following() (millrace.Epoch, Place) {
	s := h.next.Load()
	if s == nil {
		return 0, Place{}
	}
	return storeDirOf(filepath.Base(s.Dir())).epoch, s.Place()
}

// View is Store.View on the store that readers use. A view that has begun ends
// on its store, also if readers go over to another one meanwhile.
func (h *Home) View(ctx context.Context, fn func(*View) error) error {
	for {
		s := h.Store()
		err := s.View(ctx, fn)
		if err == nil {
			return nil
		}
		if err := h.moved(ctx, s, err); err != nil {
			return err
		}
	}
}

// Next opens, or makes, the store of a higher epoch beside the one that readers
// use. That of another epoch that was being filled is given up: its applier must
// have ended. The caller fills the store and then calls Switch; the store is the
// home's to close.
func (h *Home) Next(epoch millrace.Epoch) (*Store, error) {
	if s := h.next.Load(); s != nil && h.nextEpoch == epoch {
		return s, nil
	}
	if now := h.Place().Epoch; epoch <= now {
		return nil, fmt.Errorf("prepare epoch %v: the store %s is at epoch %v, and an edge never goes back", epoch, h.Store().Dir(), now)
	}
	if err := h.DropNext(); err != nil {
		return nil, err
	}
	// Those that an earlier process was filling.
	for _, d := range h.storeDirs() {
		if d.epoch > h.Place().Epoch && d.name != epochDir(epoch) && d.name != h.dirName(h.Store()) {
			if err := os.RemoveAll(filepath.Join(h.opts.Dir, d.name)); err != nil {
				return nil, fmt.Errorf("give up epoch %v: %w", d.epoch, err)
			}
		}
	}
	o := h.storeOptions(epochDir(epoch), nil)
	if id := h.Stream(); !id.IsZero() {
		o.Stream = id
	}
	s, err := Open(o)
	if err != nil {
		return nil, fmt.Errorf("prepare epoch %v: %w", epoch, err)
	}
	h.nextEpoch = epoch
	h.next.Store(s)
	return s, nil
}

// DropNext gives up the store that is being filled and removes it. Its applier
// must have ended.
func (h *Home) DropNext() error {
	s := h.next.Swap(nil)
	if s == nil {
		return nil
	}
	if err := errors.Join(s.Close(), os.RemoveAll(s.Dir())); err != nil {
		return fmt.Errorf("give up epoch %v: %w", h.nextEpoch, err)
	}
	return nil
}

// Switch makes the store that was filled the one that readers use, durably and
// at once: a view that begins afterwards is one of it. The store of the old epoch
// is marked as superseded, for processes that have it open, and is closed and
// removed in the background once no view of it is left. Both appliers must have
// ended. It refuses while the copy is not complete, and a store of another
// stream or of an epoch that is not higher; after any error nothing has changed.
func (h *Home) Switch(ctx context.Context) error {
	next, old := h.next.Load(), h.Store()
	if next == nil {
		return fmt.Errorf("go over to another store of %s: none is being filled", h.opts.Dir)
	}
	copied, err := next.Copied(ctx)
	if err != nil {
		return fmt.Errorf("go over to epoch %v: %w", h.nextEpoch, err)
	}
	from, to := old.Place(), next.Place()
	switch {
	case !copied:
		return fmt.Errorf("go over to epoch %v: its first copy has not ended", h.nextEpoch)
	case !old.Stream().IsZero() && next.Stream() != old.Stream():
		return fmt.Errorf("go over to epoch %v: %w: %v, and %s holds %v", h.nextEpoch, ErrOtherStream, next.Stream(), h.opts.Dir, old.Stream())
	case to.Epoch != h.nextEpoch || to.Epoch <= from.Epoch:
		return fmt.Errorf("go over to epoch %v: the store %s holds epoch %v, and readers are at %v", h.nextEpoch, next.Dir(), to.Epoch, from.Epoch)
	}
	// LMDB makes rows durable, not the names of its files.
	for _, dir := range []string{next.Dir(), h.opts.Dir} {
		if err := syncDir(dir); err != nil {
			return fmt.Errorf("go over to epoch %v: %w", to.Epoch, err)
		}
	}
	failpoint.Hit("edge_before_switch")
	if err := writeCurrent(h.opts.Dir, filepath.Base(next.Dir())); err != nil {
		return err
	}
	failpoint.Hit("edge_after_switch")
	h.current.Store(next)
	h.next.Store(nil)
	old.metrics.unregister()
	next.metrics.register(h.opts.Registerer)
	h.leaving.Go(func() { h.leave(old) })
	return nil
}

// leave closes and removes a store that readers have left.
func (h *Home) leave(old *Store) {
	name := h.dirName(old)
	// Marked at once, so that readers in other processes go over too. Where that
	// fails for want of room, removeStore makes some.
	if err := old.supersede(); err != nil {
		h.opts.Logger.Warn("a store that is no longer read cannot be marked yet", "dir", old.Dir(), "error", err)
	}
	err := old.Close() // waits for its views
	if err == nil {
		err = removeStore(h.opts, name)
	}
	if err != nil {
		h.opts.Logger.Warn("a store that is no longer read cannot be removed; the next start tries again", "dir", old.Dir(), "error", err)
	}
}

// supersede marks a store as one that readers have left.
func (s *Store) supersede() error {
	if s.place.Load().superseded {
		return nil
	}
	w, err := s.NewWriter()
	if err != nil {
		return err
	}
	defer w.Close()
	if err := w.Begin(); err != nil {
		return err
	}
	mark := *s.place.Load()
	mark.superseded = true
	if err := s.writeHead(w.txn, &mark); err != nil {
		return err
	}
	if err := w.finish(&mark); err != nil {
		return err
	}
	s.place.Store(&mark)
	return nil
}

// markRoom is how much more map a store gets that has no room for its mark.
const markRoom = 16 << 20

// removeStore removes a closed store of a home that readers have left. Other
// processes may have it open: it is marked for them first, and the files stay
// theirs until they close them.
func removeStore(o Options, name string) error {
	failpoint.Hit("edge_before_remove")
	home := o.Dir
	o.Dir, o.Registerer, o.Stream, o.exact = filepath.Join(home, name), nil, millrace.StreamID{}, true
	if info, err := os.Stat(filepath.Join(o.Dir, "data.mdb")); err == nil {
		o.MapSize = max(o.MapSize, info.Size()) + markRoom
		s, err := Open(o)
		if err != nil && !errors.Is(err, ErrCorrupt) { // a damaged one cannot be read either
			return err
		}
		if err == nil {
			if err := errors.Join(s.supersede(), s.Close()); err != nil {
				return err
			}
		}
	}
	if name != "" {
		return os.RemoveAll(o.Dir)
	}
	// The home itself is the first epoch's store. The data goes first: without
	// it there is none.
	for _, file := range []string{"data.mdb", "lock.mdb", lockName} {
		if err := os.Remove(filepath.Join(home, file)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// Close closes the stores, when the views of them have ended, and gives the home
// up. Writers must have been closed before.
func (h *Home) Close() error {
	h.leaving.Wait()
	if h.opts.Registerer != nil {
		for _, c := range h.metrics {
			h.opts.Registerer.Unregister(c)
		}
	}
	var errs []error
	for _, s := range []*Store{h.next.Load(), h.compacted.Load()} {
		if s != nil {
			errs = append(errs, s.Close())
		}
	}
	if s := h.Store(); s != nil {
		errs = append(errs, s.Close())
	}
	if h.lock != nil {
		errs = append(errs, h.lock.Close())
	}
	return errors.Join(errs...)
}

// Copied reports whether readers can use the store: the first copy has ended, so
// every table of the stream that is held can be read, and there is one.
func (s *Store) Copied(ctx context.Context) (bool, error) {
	live, wanting := 0, 0
	err := s.View(ctx, func(v *View) error {
		for _, t := range v.cat.tables {
			switch {
			case t.live != nil:
				live++
			case t.schema != nil && !t.scope.None():
				wanting++
			}
		}
		return nil
	})
	if plantedEarly() && err == nil {
		return s.Index() > 0, nil
	}
	return live > 0 && wanting == 0 && err == nil, err
}
