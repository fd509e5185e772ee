package edge

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"syscall"
	"time"

	"github.com/bmatsuo/lmdb-go/lmdb"

	"github.com/millrace-db/millrace"
)

// checkSize refuses a data file that is shorter than the pages in use, because
// reading behind its end kills the process. LMDB may leave free pages at the
// end unwritten, so a short file is looked at page by page; the writer makes up
// the length after every commit, so that is rare.
func (s *Store) checkSize() error {
	short, err := s.short()
	// Another process may be between its commit and making up the length.
	for i := 0; i < 20 && err == nil && short > 0 && s.opts.ReadOnly; i++ {
		time.Sleep(5 * time.Millisecond)
		short, err = s.short()
	}
	if err != nil || short == 0 {
		return err
	}
	if s.opts.ReadOnly {
		return s.corrupt("data.mdb is %d bytes shorter than its pages", short)
	}
	size, err := s.fileSize()
	if err != nil {
		return err
	}
	if err := s.extend(); err != nil {
		return err
	}
	lost, err := s.lostPages(size)
	if err == nil && lost == 0 {
		return nil
	}
	what := fmt.Sprintf("%d pages that are in use lie behind its end", lost)
	if err != nil {
		what = err.Error()
	}
	// Give it its length back, so that the next try finds the same.
	return errors.Join(s.corrupt("data.mdb was cut off at %d bytes: %s", size, what), s.truncate(size))
}

func (s *Store) fileSize() (int64, error) {
	fd, err := s.env.FD()
	if err != nil {
		return 0, s.fail("find data file", err)
	}
	var st syscall.Stat_t
	if err := syscall.Fstat(int(fd), &st); err != nil {
		return 0, fmt.Errorf("look at data file of %s: %w", s.dir, err)
	}
	return st.Size, nil
}

// fullSize returns the size that all pages have together.
func (s *Store) fullSize() (size int64, page int64, err error) {
	info, err := s.env.Info()
	if err != nil {
		return 0, 0, s.fail("read environment", err)
	}
	stat, err := s.env.Stat()
	if err != nil {
		return 0, 0, s.fail("read environment", err)
	}
	page = int64(stat.PSize)
	return (info.LastPNO + 1) * page, page, nil
}

// short returns how many bytes the data file lacks.
func (s *Store) short() (int64, error) {
	have, err := s.fileSize()
	if err != nil {
		return 0, err
	}
	want, _, err := s.fullSize()
	return max(0, want-have), err
}

// slack is what the data file has behind its last page. LMDB does not check
// where the items of a page lie; on a damaged one it may look a little behind
// the page, and there must be something to read.
const slack = 128 << 10

// extend gives the data file its full length. What is added takes no room on
// the disk.
func (s *Store) extend() error {
	have, err := s.fileSize()
	if err != nil {
		return err
	}
	want, _, err := s.fullSize()
	if err != nil || have >= want+slack {
		return err
	}
	// Some more at once, so that few commits have to do it.
	return s.truncate(want + 16*slack)
}

func (s *Store) truncate(size int64) error {
	fd, err := s.env.FD()
	if err != nil {
		return s.fail("find data file", err)
	}
	if err := syscall.Ftruncate(int(fd), size); err != nil {
		return fmt.Errorf("set length of data file of %s to %d: %w", s.dir, size, err)
	}
	return nil
}

// freeDBI is LMDB's own database of free pages.
const freeDBI = lmdb.DBI(0)

// lostPages counts the pages from the given size of the file on that LMDB does
// not list as free.
func (s *Store) lostPages(size int64) (int64, error) {
	full, page, err := s.fullSize()
	if err != nil {
		return 0, err
	}
	first := uint64(size / page)
	lost := full/page - size/page
	err = s.env.View(func(txn *lmdb.Txn) error {
		txn.RawRead = true
		cur, err := txn.OpenCursor(freeDBI)
		if err != nil {
			return err
		}
		defer cur.Close()
		for {
			_, v, err := cur.Get(nil, nil, lmdb.Next)
			if lmdb.IsNotFound(err) {
				return nil
			}
			if err != nil {
				return err
			}
			// A list of page numbers behind their count, in machine order.
			for i := 8; i+8 <= len(v); i += 8 {
				if binary.NativeEndian.Uint64(v[i:]) >= first {
					lost--
				}
			}
		}
	})
	return lost, s.fail("read free pages", err)
}

// openMeta opens all named databases, and makes a new store if there is none.
func (s *Store) openMeta() error {
	var names []string
	txn, err := s.env.BeginTxn(nil, lmdb.Readonly)
	if err != nil {
		return s.fail("begin transaction", err)
	}
	defer txn.Abort()
	if s.root, err = txn.OpenRoot(0); err != nil {
		return s.fail("open root database", err)
	}
	cur, err := txn.OpenCursor(s.root)
	if err != nil {
		return s.fail("read root database", err)
	}
	for {
		k, _, err := cur.Get(nil, nil, lmdb.Next)
		if lmdb.IsNotFound(err) {
			break
		}
		if err != nil {
			cur.Close()
			return s.fail("read root database", err)
		}
		names = append(names, string(k))
	}
	cur.Close()
	if len(names) == 0 {
		txn.Abort()
		return s.create()
	}
	if s.opts.growDBs && 2*len(names) > s.opts.MaxDBs {
		txn.Abort()
		return s.reopen(4 * len(names))
	}
	if len(names) > s.opts.MaxDBs+ownDBs {
		return fmt.Errorf("open store %s: it holds %d databases, the limit is %d; mend: raise the limit", s.dir, len(names)-ownDBs, s.opts.MaxDBs)
	}
	for _, name := range names {
		if s.handles[name], err = txn.OpenDBI(name, 0); lmdb.IsNotFound(err) {
			return s.corrupt("database %s is listed and cannot be found", name)
		} else if err != nil {
			return s.fail("open database "+name, err)
		}
	}
	meta, ok := s.handles[metaName]
	if !ok {
		return s.corrupt("it is an LMDB environment, but not one of millrace: it has no database %q", metaName)
	}
	s.meta = meta
	delete(s.handles, metaName)
	// Committing a read transaction is what keeps its handles.
	if err := s.fail("open databases", txn.Commit()); err != nil || s.opts.ReadOnly {
		return err
	}
	return s.upgrade()
}

// upgrade makes a store of an older format one of the newest. Its rows stay as
// they are: what is written from here on has the new form.
func (s *Store) upgrade() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	txn, err := s.env.BeginTxn(nil, 0)
	if err != nil {
		return s.fail("begin transaction", err)
	}
	defer txn.Abort()
	format, err := s.readRecord(txn, keyFormat, 1)
	if err != nil || format[0] != 1 {
		return err // load says what is wrong with another one
	}
	dbi, err := txn.CreateDBI(piecesName)
	if err == nil {
		err = txn.Put(s.meta, keyFormat, seal(keyFormat, []byte{formatVersion}), 0)
	}
	if err == nil {
		err = txn.Commit()
	}
	if err != nil {
		return s.fail("bring store to its newest format", err)
	}
	s.handles[piecesName] = dbi
	s.log.Info("store has been brought to the newest format", "dir", s.dir, "format", formatVersion)
	return s.extend()
}

// reopen opens the environment for more databases, which can only be said before
// it is opened.
func (s *Store) reopen(databases int) error {
	s.opts.MaxDBs = databases
	if err := s.env.Close(); err != nil {
		return s.fail("close environment", err)
	}
	s.env = nil
	if err := s.openEnv(); err != nil {
		return err
	}
	return s.openMeta()
}

// create makes an empty store, of the stream in the options if they name one.
func (s *Store) create() error {
	if s.opts.ReadOnly {
		return fmt.Errorf("open store %s: %w: the directory holds none; mend: start the edge that fills it", s.dir, ErrNoStore)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	txn, err := s.env.BeginTxn(nil, 0)
	if err != nil {
		return s.fail("begin transaction", err)
	}
	defer txn.Abort()
	if s.meta, err = txn.CreateDBI(metaName); err != nil {
		return s.fail("make meta", err)
	}
	if s.handles[piecesName], err = txn.CreateDBI(piecesName); err != nil {
		return s.fail("make database of pieces", err)
	}
	put := func(key, value []byte) {
		if err == nil {
			err = txn.Put(s.meta, key, seal(key, value), 0)
		}
	}
	put(keyFormat, []byte{formatVersion})
	if !s.opts.Stream.IsZero() {
		put(keyStream, s.opts.Stream[:])
	}
	put(keyHead, (&head{catalog: 1}).append(nil))
	if err != nil {
		return s.fail("make store", err)
	}
	if err := txn.Commit(); err != nil {
		return s.fail("make store", err)
	}
	return s.extend()
}

// load reads what the store is and where it stands.
func (s *Store) load() error {
	return s.env.View(func(txn *lmdb.Txn) error {
		txn.RawRead = true
		format, err := s.readRecord(txn, keyFormat, 1)
		if err != nil {
			return err
		}
		if format[0] < 1 || format[0] > formatPartial {
			return fmt.Errorf("open store %s: it has format version %d, this process reads up to %d; mend: upgrade it, or move the directory away and start the edge again",
				s.dir, format[0], formatPartial)
		}
		if err := s.loadStream(txn); err != nil {
			return err
		}
		if err := s.findMap(txn); err != nil {
			return err
		}
		h := new(head)
		if err := s.readHead(txn, h); err != nil {
			return err
		}
		cat, unknown, err := s.readCatalog(txn, h.catalog, s.handle)
		if err != nil {
			return err
		}
		if len(unknown) > 0 {
			return s.corrupt("databases %v are in use and do not exist", unknown)
		}
		c, err := s.readCheckpoint(txn, cat)
		if err != nil {
			return err
		}
		if c != nil && (c.Stream != s.Stream() || c.Index != h.index || c.Chain != h.chain || c.Epoch != h.epoch) {
			return s.corrupt("checkpoint (stream %v, index %v) and head (stream %v, index %v) do not agree", c.Stream, c.Index, s.Stream(), h.index)
		}
		s.catalog.Store(cat)
		s.place.Store(h)
		u, err := s.readUnproven(txn)
		if err != nil {
			return err
		}
		s.verifier.unproven = u
		return s.verifier.load(txn, cat)
	})
}

// loadStream reads which stream the store belongs to, and refuses another than
// the one that was asked for.
func (s *Store) loadStream(txn *lmdb.Txn) error {
	want := s.opts.Stream
	if _, err := txn.Get(s.meta, keyStream); lmdb.IsNotFound(err) {
		if !want.IsZero() {
			s.stream.Store(&want)
		}
		return nil
	}
	b, err := s.readRecord(txn, keyStream, len(want))
	if err != nil {
		return err
	}
	id := millrace.StreamID(b)
	s.stream.Store(&id)
	if !want.IsZero() && want != id {
		return fmt.Errorf("open store %s: %w: it holds stream %v, wanted is %v; mend: give each stream a directory of its own, or move this one away",
			s.dir, ErrOtherStream, id, want)
	}
	return nil
}

func (s *Store) readRecord(txn *lmdb.Txn, key []byte, size int) ([]byte, error) {
	sealed, err := txn.Get(s.meta, key)
	if lmdb.IsNotFound(err) {
		return nil, s.corrupt("meta record %q is missing", key)
	}
	if err != nil {
		return nil, s.fail("read meta", err)
	}
	b, err := unseal(key, sealed)
	if err != nil {
		return nil, s.corrupt("%v", err)
	}
	if len(b) != size {
		return nil, s.corrupt("meta record %q has %d bytes, want %d", key, len(b), size)
	}
	return b, nil
}

// handle returns the handle of a named database.
func (s *Store) handle(name string) (lmdb.DBI, bool) {
	s.handleMu.RLock()
	defer s.handleMu.RUnlock()
	dbi, ok := s.handles[name]
	return dbi, ok
}

// openHandles opens databases that another process has made. It begins a
// transaction of its own, because one that began earlier does not know of
// handles opened since and would use their places.
func (s *Store) openHandles(names []string) error {
	s.handleMu.Lock()
	defer s.handleMu.Unlock()
	txn, err := s.env.BeginTxn(nil, lmdb.Readonly)
	if err != nil {
		return s.fail("begin transaction", err)
	}
	defer txn.Abort()
	opened := make(map[string]lmdb.DBI, len(names))
	for _, name := range names {
		if _, ok := s.handles[name]; ok {
			continue
		}
		if opened[name], err = txn.OpenDBI(name, 0); err != nil {
			return s.fail("open database "+name, err)
		}
	}
	if err := txn.Commit(); err != nil {
		return s.fail("open databases", err)
	}
	for name, dbi := range opened {
		s.handles[name] = dbi
	}
	return nil
}
