package edge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/bmatsuo/lmdb-go/lmdb"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace-db/millrace"
)

// Options of Open. Only Dir must be set.
type Options struct {
	// Dir is the directory of the store. It is made if need be, unless
	// ReadOnly. It must not be on a network file system.
	Dir string
	// Stream is the stream that the store must hold. Zero takes what is there; a
	// new store then belongs to the stream of the first checkpoint it is given.
	Stream millrace.StreamID
	// MapSize is the address space for the rows in bytes, and with it the
	// largest size of the store; the file grows as needed. Default 64 GiB.
	// More than about 100 stores of 1 TiB do not fit into one process.
	MapSize int64
	// MaxDBs is the largest number of table generations at once: one a table,
	// one more while it is loaded, one for each index of each of those, and those
	// that are being emptied. Each costs
	// every transaction about 60 bytes of memory, and a writing one 0.1 µs. Zero
	// takes 1,024, or four times what the store has when it is opened.
	MaxDBs int
	// MaxViews is the largest number of views open at once, at most 1,000;
	// further ones wait. A view is used by one goroutine, so this is also how
	// many reads there are at once, and how many threads they can hold while
	// pages come from the disk. Default 256.
	MaxViews int
	// MaxViewAge is how long a view may be open before its reads fail with
	// ErrExpired. A view keeps the pages of its snapshot from being used again,
	// so the file grows while it is open. Default 1 minute.
	MaxViewAge time.Duration
	// MaxVerifyAge is how long the rows of one Verify entry may take to be read
	// and compared, the wait for earlier ones included; what takes longer is
	// skipped. As with views, the file grows meanwhile. Default 1 minute.
	MaxVerifyAge time.Duration
	// Indexes are the secondary indexes that the store is to have: by the
	// qualified name of the table, the columns of each. They are made and dropped
	// by the writer, in the background; a column that is not there, or of a type
	// that cannot be indexed, leaves that index out. Readers need not set it.
	Indexes map[string][][]string
	// Filter is what the store is to hold. Nil takes what it does, a new one then
	// holds everything; a filter that holds everything asks for that. A store that
	// holds more removes the rest, one that holds less is refused (ErrWider).
	// Readers need not set it.
	Filter *millrace.Filter
	// ReadOnly opens a store that another process may be writing. It must run
	// as the same user and in the same PID namespace.
	ReadOnly bool
	// Logger takes what the store has to say in the background; nil drops it.
	Logger *slog.Logger
	// Registerer takes the store's metrics; nil drops them. The caller adds the
	// label that tells streams apart.
	Registerer prometheus.Registerer

	// slice is how many rows a chore handles; 0 takes what is sensible.
	slice int
	// growDBs tells that MaxDBs was left to Open.
	growDBs bool
	// exact tells that Dir is the store itself, whatever a CURRENT file in it
	// says.
	exact bool
}

const (
	// ownDBs are the databases besides those of generations: meta and pieces.
	ownDBs = 2

	defaultMapSize    = 64 << 30
	defaultMaxDBs     = 1024
	defaultMaxViews   = 256
	maxReaders        = 1024
	defaultMaxViewAge = time.Minute
)

func (o *Options) complete() error {
	if o.Dir == "" {
		return errors.New("open store: no directory given")
	}
	if o.MapSize == 0 {
		o.MapSize = defaultMapSize
	}
	if o.MaxDBs == 0 {
		o.MaxDBs, o.growDBs = defaultMaxDBs, true
	}
	if o.MaxViews == 0 {
		o.MaxViews = defaultMaxViews
	}
	if o.MaxViewAge == 0 {
		o.MaxViewAge = defaultMaxViewAge
	}
	if o.MaxVerifyAge == 0 {
		o.MaxVerifyAge = defaultVerifyAge
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.MapSize < 1<<20 || o.MaxDBs < 2 || o.MaxViews < 1 || o.MaxViews > maxReaders-24 || o.MaxViewAge < 0 || o.MaxVerifyAge < 0 {
		return fmt.Errorf("open store %s: map size %d (least 1 MiB), databases %d (least 2), views %d (1 to %d), view age %v or verify age %v is out of range",
			o.Dir, o.MapSize, o.MaxDBs, o.MaxViews, maxReaders-24, o.MaxViewAge, o.MaxVerifyAge)
	}
	return checkIndexes(o.Dir, o.Indexes)
}

// Store is an open store. Its methods may be called by any number of
// goroutines, unless they say otherwise.
type Store struct {
	opts  Options
	dir   string
	log   *slog.Logger
	lock  *os.File // nil if read-only
	claim *claim
	env   *lmdb.Env
	root  lmdb.DBI
	meta  lmdb.DBI
	// pages are those of the memory map, for reading what LMDB does not check.
	pages memoryMap
	// checked saves looking at the same pages again.
	checked checkedPages
	sizes   valueSizes

	// handleMu keeps transactions from beginning while handles are being made
	// known: held for reading to begin one, for writing to commit or open
	// handles. handles is changed by the writer, or by a read-only store's
	// refresh, and no handle is ever closed.
	handleMu sync.RWMutex
	handles  map[string]lmdb.DBI

	// catalog and place are the newest ones that were committed here or, in a
	// read-only store, seen.
	catalog atomic.Pointer[catalog]
	place   atomic.Pointer[head]
	// stream is nil while a new store belongs to none.
	stream atomic.Pointer[millrace.StreamID]
	// changed is closed at the next commit.
	changed atomic.Pointer[chan struct{}]

	readers readerPool
	// seen is what is known of the newest snapshot that was read, coming of the one that
	// is being committed.
	seen   atomic.Pointer[seen]
	coming atomic.Pointer[seen]
	watch  readerWatch
	space  spaceWatch
	// declared are the indexes that the store is to have, refused those of them
	// that are not kept.
	declared atomic.Pointer[map[string][][]string]
	refused  refusedIndexes
	verifier *verifier
	writing  atomic.Bool
	metrics  *metrics

	closing   chan struct{}
	closeOnce sync.Once
	closeErr  error
	janitor   sync.WaitGroup
}

// Open opens the store at a directory, or makes it. It does not read the rows,
// so it takes the same time whatever their number. The directory may be a Home:
// then the store is the one that its readers are to use.
//
// Errors that a caller may want to tell apart: ErrInUse, ErrOtherStream,
// ErrNoStore, ErrCorrupt.
func Open(opts Options) (*Store, error) {
	if err := opts.complete(); err != nil {
		return nil, err
	}
	if opts.exact {
		return open(opts)
	}
	home := opts.Dir
	for {
		name, err := readCurrent(home)
		if err != nil {
			return nil, err
		}
		opts.Dir = filepath.Join(home, name)
		s, err := open(opts)
		if err == nil || !errors.Is(err, ErrNoStore) {
			return s, err
		}
		// The home's edge may have gone over to another store, and removed this
		// one.
		if now, again := readCurrent(home); again != nil || now == name {
			return nil, err
		}
	}
}

func open(opts Options) (*Store, error) {
	s := &Store{opts: opts, dir: opts.Dir, log: opts.Logger, handles: make(map[string]lmdb.DBI), closing: make(chan struct{})}
	ch := make(chan struct{})
	s.changed.Store(&ch)
	s.declared.Store(&opts.Indexes)
	s.readers.init(s)
	s.watch.s = s
	s.verifier = newVerifier(s)
	if err := s.open(); err != nil {
		return nil, errors.Join(err, s.release())
	}
	s.lookAtSpace(time.Now())
	s.metrics = newMetrics(s)
	s.janitor.Add(1)
	go func() {
		defer s.janitor.Done()
		s.keepReaders()
	}()
	if !opts.ReadOnly {
		s.janitor.Add(1)
		go func() {
			defer s.janitor.Done()
			s.verifier.run()
		}()
	}
	return s, nil
}

func (s *Store) open() (err error) {
	if err := s.prepareDir(); err != nil {
		return err
	}
	if s.claim, err = claimDir(s.dir); err != nil {
		return err
	}
	if !s.opts.ReadOnly {
		if s.lock, err = lockDir(s.dir, lockName); err != nil {
			return err
		}
	}
	if err := s.openEnv(); err != nil {
		return err
	}
	if err := s.checkSize(); err != nil {
		return err
	}
	if err := s.openMeta(); err != nil {
		return err
	}
	if err := s.load(); err != nil {
		return err
	}
	return s.refilter()
}

func (s *Store) prepareDir() error {
	if s.opts.ReadOnly {
		if _, err := os.Stat(filepath.Join(s.dir, "data.mdb")); err != nil {
			return fmt.Errorf("open store %s: %w: %w", s.dir, ErrNoStore, err)
		}
		return nil
	}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return fmt.Errorf("make data directory %s: %w; mend: choose a directory that this user may write", s.dir, err)
	}
	return nil
}

func (s *Store) openEnv() error {
	env, err := lmdb.NewEnv()
	if err != nil {
		return fmt.Errorf("make environment: %w", err)
	}
	s.env = env
	if err := env.SetMaxReaders(maxReaders); err != nil {
		return fmt.Errorf("set readers: %w", err)
	}
	if err := env.SetMaxDBs(s.opts.MaxDBs + ownDBs); err != nil {
		return fmt.Errorf("set databases: %w", err)
	}
	var flags uint
	if s.opts.ReadOnly {
		flags = lmdb.Readonly // and the map size is the writer's
	} else if err := env.SetMapSize(s.opts.MapSize); err != nil {
		return fmt.Errorf("set map size: %w", err)
	}
	// Full synchronous commits: an edge that has shown an index must not be
	// found behind it after a power cut. Readahead stays on, because it makes
	// the first reads after a start cheaper.
	// LMDB opens one of its files without O_CLOEXEC. A successor would hold it.
	syscall.ForkLock.RLock()
	err = env.Open(s.dir, flags, 0o600)
	if err == nil {
		var fd uintptr
		if fd, err = env.FD(); err == nil {
			syscall.CloseOnExec(int(fd))
		}
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return s.openError(err)
	}
	stat, err := env.Stat()
	if err != nil {
		return s.fail("read environment", err)
	}
	s.sizes = sizesOfPage(int(stat.PSize))
	// A process that died in a transaction leaves its reader behind.
	if _, err := env.ReaderCheck(); err != nil {
		return s.fail("check readers", err)
	}
	return nil
}

func (s *Store) openError(err error) error {
	switch {
	case lmdb.IsErrnoSys(err, 12): // ENOMEM
		return fmt.Errorf("open store %s: %w: no room for a map of %d bytes; mend: lower map_size or raise the limit on address space", s.dir, err, s.opts.MapSize)
	case os.IsPermission(underlying(err)):
		return fmt.Errorf("open store %s: %w; mend: run as the user that owns its files", s.dir, err)
	case lmdb.IsErrno(err, lmdb.VersionMismatch):
		return fmt.Errorf("open store %s: %w; mend: it was written by another version of LMDB, use the program that wrote it", s.dir, err)
	}
	return s.fail("open store "+s.dir, err)
}

func underlying(err error) error {
	var op *lmdb.OpError
	if errors.As(err, &op) {
		return op.Errno
	}
	return err
}

func (s *Store) mapSize() int64 {
	info, err := s.env.Info()
	if err != nil {
		return s.opts.MapSize
	}
	return info.MapSize
}

// Dir returns the store's directory.
func (s *Store) Dir() string { return s.dir }

// Stream returns the ID of the stream that the store belongs to: zero for a new
// store that was opened without one and has not been given a checkpoint.
func (s *Store) Stream() millrace.StreamID {
	if id := s.stream.Load(); id != nil {
		return *id
	}
	return millrace.StreamID{}
}

// Close waits for open views and releases the store. The writer must have been
// closed before.
func (s *Store) Close() error {
	s.closeOnce.Do(func() {
		close(s.closing)
		if s.writing.Load() {
			s.closeErr = fmt.Errorf("close store %s: its writer is still open", s.dir)
			return
		}
		s.readers.close()
		s.janitor.Wait()
		s.metrics.unregister()
		s.closeErr = s.release()
	})
	return s.closeErr
}

// release gives up what open took, in reverse.
func (s *Store) release() error {
	var errs []error
	s.handleMu.Lock()
	if s.env != nil {
		errs = append(errs, s.env.Close())
		s.env = nil
	}
	s.handleMu.Unlock()
	if s.lock != nil {
		errs = append(errs, s.lock.Close())
	}
	if s.claim != nil {
		s.claim.release()
	}
	return errors.Join(errs...)
}

// Index returns the index of the newest unit that was committed. A read-only
// store may learn of it later.
func (s *Store) Index() millrace.Index { return s.place.Load().index }

// Place is where a store stands, as Status shows it.
type Place struct {
	Epoch millrace.Epoch
	Index millrace.Index
	Chain millrace.Chain
	Term  millrace.Term
	// Time is when the newest unit was committed at the source; zero if none
	// has been applied.
	Time time.Time
}

// Reaches reports whether p is at or behind an index of an epoch: everything up to there
// is in what is read at p. A later epoch began with a copy of what its source had, so it
// is behind every place of the epochs before. Epoch 0 stands for that of p.
func (p Place) Reaches(epoch millrace.Epoch, index millrace.Index) bool {
	if epoch != 0 && p.Epoch != epoch {
		return p.Epoch > epoch
	}
	return p.Index >= index
}

// Place returns where the store stands.
func (s *Store) Place() Place { return s.place.Load().place() }

func (h *head) place() Place {
	return Place{Epoch: h.epoch, Index: h.index, Chain: h.chain, Term: h.term, Time: h.time}
}

// Changed returns a channel that is closed at the next commit. A read-only
// store closes it when it sees that another process has committed, which it
// looks for while somebody waits in WaitIndex.
func (s *Store) Changed() <-chan struct{} { return *s.changed.Load() }

// readOnlyPoll is how often a read-only store looks for commits of another
// process while somebody waits for them.
const readOnlyPoll = 20 * time.Millisecond

// WaitIndex returns when the store has come to index, or with the context's
// error or ErrClosed.
func (s *Store) WaitIndex(ctx context.Context, index millrace.Index) error {
	return s.WaitPlace(ctx, 0, index)
}

// WaitPlace returns when the store has come to an index of an epoch, or is of a later
// epoch, or with the context's error or ErrClosed. Epoch 0 stands for whichever there is.
func (s *Store) WaitPlace(ctx context.Context, epoch millrace.Epoch, index millrace.Index) error {
	var poll <-chan time.Time
	if s.opts.ReadOnly {
		t := time.NewTicker(readOnlyPoll)
		defer t.Stop()
		poll = t.C
	}
	for {
		changed := s.Changed()
		if s.opts.ReadOnly {
			if err := s.View(ctx, func(*View) error { return nil }); err != nil {
				return err
			}
		}
		if at := s.place.Load(); at.place().Reaches(epoch, index) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for index %v, store is at %v: %w", index, s.Index(), ctx.Err())
		case <-s.closing:
			return ErrClosed
		case <-changed:
		case <-poll:
		}
	}
}

// publish makes a place known to those who wait.
func (s *Store) publish(h *head) {
	for {
		old := s.place.Load()
		if old != nil && old.catalog == h.catalog && old.index >= h.index {
			return
		}
		if s.place.CompareAndSwap(old, h) {
			break
		}
	}
	ch := make(chan struct{})
	close(*s.changed.Swap(&ch))
}
