package edge

import (
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/bmatsuo/lmdb-go/lmdb"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/failpoint"
)

// Writer brings entries into a store. There is one at a time. A write
// transaction of LMDB belongs to an OS thread, so the goroutine that calls
// NewWriter is locked to its thread until Close, and all methods are called by
// it.
//
// The writer gathers changes and brings them into the transaction in the order
// of their keys, one for each key: Flush and Commit do that. Nothing is visible
// to readers, or survives the process, before Commit.
type Writer struct {
	s   *Store
	txn *lmdb.Txn // nil between transactions
	// reader reads what was committed.
	reader reader

	// cat is the catalog as the transaction sees it; own tells that it is a
	// clone, which may be changed.
	cat *catalog
	own bool
	// fresh are the databases that the transaction made.
	fresh []string

	// changes are those not flushed, by generation.
	changes map[*generation]*changes
	touched []*changes
	spare   []*changes
	arena   arena
	ops     int
	bytes   int

	// verify are the Verify entries of the transaction, loaded the tables whose
	// load ended in it or that were dropped, renewed those of which no row is left
	// that came with an image.
	verify  verifying
	loaded  []millrace.TableID
	renewed []millrace.TableID

	// header is the signed header of the record that the transaction ends with.
	header []byte

	began time.Time
	row   millrace.Row
	base  millrace.Row
	cols  []millrace.Datum
	buf   []byte
	// content is that of a row on its way into pieces, joined one read from them.
	content, joined []byte
	// lastValue is the highest ID of a value in pieces, 0 while it is not known.
	lastValue uint64
	indexing  indexing
}

// NewWriter makes the writer of a store that was not opened with ReadOnly.
// ErrInUse tells that there is one already.
func (s *Store) NewWriter() (*Writer, error) {
	if s.opts.ReadOnly {
		return nil, fmt.Errorf("open writer of %s: the store was opened for reading only", s.dir)
	}
	if s.place.Load().superseded {
		return nil, fmt.Errorf("open writer of %s: %w", s.dir, ErrSuperseded)
	}
	if !s.writing.CompareAndSwap(false, true) {
		return nil, fmt.Errorf("open writer of %s: %w: this process has one already", s.dir, ErrInUse)
	}
	runtime.LockOSThread()
	return &Writer{s: s, cat: s.catalog.Load(), changes: make(map[*generation]*changes)}, nil
}

// Close gives up the open transaction, if any, and the writer.
func (w *Writer) Close() {
	if w.s == nil {
		return
	}
	w.Abort()
	if err := w.storeDifferences(); err != nil {
		w.s.log.Warn("store what verifying has found; the next pass finds it again", "dir", w.s.dir, "error", err)
	}
	w.endReader()
	runtime.UnlockOSThread()
	w.s.writing.Store(false)
	w.s = nil
}

// Begin begins a transaction.
func (w *Writer) Begin() error {
	if w.txn != nil {
		return errors.New("begin transaction: one is open")
	}
	txn, err := w.s.env.BeginTxn(nil, 0)
	if err != nil {
		return w.s.fail("begin transaction", err)
	}
	txn.RawRead = true
	w.txn, w.began = txn, time.Now()
	return nil
}

// Open reports whether a transaction is open.
func (w *Writer) Open() bool { return w.txn != nil }

// Buffered returns how many changes wait for Flush, and their size in bytes.
func (w *Writer) Buffered() (changes, bytes int) { return w.ops, w.bytes }

// Abort gives up everything since Begin. Without a transaction it does nothing.
func (w *Writer) Abort() {
	if w.txn != nil {
		w.txn.Abort()
		w.txn = nil
	}
	if len(w.fresh) > 0 {
		// LMDB has closed the handles of databases that the transaction made.
		w.s.handleMu.Lock()
		for _, name := range w.fresh {
			delete(w.s.handles, name)
		}
		w.s.handleMu.Unlock()
		w.fresh = w.fresh[:0]
	}
	w.reset()
	w.cat, w.own = w.s.catalog.Load(), false
}

// reset forgets what belongs to the transaction.
func (w *Writer) reset() {
	w.forget()
	w.fresh = w.fresh[:0]
	w.verify, w.loaded, w.renewed, w.header = verifying{}, nil, nil, nil
	w.lastValue = 0
	w.indexing.reset()
}

// Header gives the signed header (millrace.Record.SignedHeader) of the record that the
// transaction ends with; empty where that is not signed. Commit keeps it beside the
// checkpoint, for images.
func (w *Writer) Header(header []byte) { w.header = header }

// Commit brings all changes into the store together with the checkpoint, which
// must be the one after the last entry, and returns when they are on disk and
// visible. After an error everything since Begin is given up, and the caller
// begins again from the checkpoint of the store.
func (w *Writer) Commit(c *millrace.Checkpoint) error {
	if w.txn == nil {
		return errors.New("commit: no transaction is open")
	}
	if err := w.commit(c); err != nil {
		w.Abort()
		return err
	}
	return nil
}

func (w *Writer) commit(c *millrace.Checkpoint) error {
	start := time.Now()
	if err := c.Validate(); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	if id := w.s.Stream(); !id.IsZero() && c.Stream != id {
		return fmt.Errorf("commit: %w: checkpoint of stream %v, the store %s holds %v", ErrOtherStream, c.Stream, w.s.dir, id)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for g := range w.missing() {
		if err := w.writeGeneration(g); err != nil {
			return err
		}
	}
	if w.s.Index() == 0 {
		if err := w.txn.Put(w.s.meta, keyStream, seal(keyStream, append([]byte(nil), c.Stream[:]...)), 0); err != nil {
			return w.s.fail("write stream", err)
		}
	}
	h := &head{index: c.Index, chain: c.Chain, time: c.Time, epoch: c.Epoch, term: c.Term, catalog: w.cat.number}
	if err := w.s.writePlace(w.txn, c, h); err != nil {
		return err
	}
	if err := w.s.writeHeader(w.txn, c.Index, w.header); err != nil {
		return err
	}
	stored, err := w.s.verifier.write(w.txn, w.loaded)
	if err != nil {
		return err
	}
	verify, loaded, renewed := w.verify, w.loaded, w.renewed
	w.s.verifier.expect(verify, h.index)
	if err := w.finish(h); err != nil {
		w.s.verifier.done(h.index)
		return err
	}
	stored()
	w.s.verifier.loadedAt(loaded, h.index)
	w.s.verifier.renew(renewed)
	w.s.verifier.take(verify, h)
	if w.s.stream.Load() == nil {
		id := c.Stream
		w.s.stream.Store(&id)
	}
	w.s.metrics.commitSeconds.Observe(time.Since(start).Seconds())
	return nil
}

// finish commits the transaction and makes its outcome known.
func (w *Writer) finish(h *head) error {
	failpoint.Hit("edge_before_commit")
	id := w.announce()
	if err := w.commitTxn(); err != nil {
		w.s.coming.Store(nil)
		return w.s.fail("commit", err)
	}
	failpoint.Hit("edge_after_commit")
	w.reset()
	if w.own {
		w.s.catalog.Store(w.cat)
		w.own = false
	}
	w.leave(id)
	w.s.publish(h)
	w.s.metrics.commits.Inc()
	if err := w.s.extend(); err != nil {
		// The commit stands; the next one tries again.
		w.s.log.Warn("give the data file its full length", "dir", w.s.dir, "error", err)
	}
	return nil
}

// commitTxn ends the transaction. Where it made databases, LMDB makes their
// handles known to readers only after readers can see the commit, so none may
// begin in between.
func (w *Writer) commitTxn() error {
	txn := w.txn
	w.txn = nil
	if len(w.fresh) == 0 {
		return txn.Commit()
	}
	w.s.handleMu.Lock()
	defer w.s.handleMu.Unlock()
	return txn.Commit()
}

// catalog returns the catalog for changing.
func (w *Writer) catalog() *catalog {
	if !w.own {
		// Changes are kept by generation, and the clone has its own.
		old := w.changes
		w.cat, w.own = w.cat.clone(), true
		w.cat.number++
		w.changes = make(map[*generation]*changes, len(old))
		for g, c := range old {
			c.g, c.t = w.cat.generations[g.name], w.cat.tables[c.t.id]
			w.changes[c.g] = c
		}
	}
	return w.cat
}

func (w *Writer) writeGeneration(g *generation) error {
	key := databaseKey(g.name)
	return w.s.fail("write record of database "+g.name, w.txn.Put(w.s.meta, key, seal(key, g.append(nil)), 0))
}

// take returns an empty database for a use, making one if none is free.
func (w *Writer) take(u usage, table millrace.TableID, load millrace.LoadID) (*generation, error) {
	c := w.catalog()
	var g *generation
	if all := c.withUsage(free); len(all) > 0 {
		g = all[0]
	} else {
		if !w.roomForDatabase() {
			return nil, w.s.fail("make database", &lmdb.OpError{Op: "mdb_dbi_open", Errno: lmdb.DBsFull})
		}
		var err error
		if g, err = w.makeDatabase(fmt.Sprintf("t%06d", len(c.generations)+1)); err != nil {
			return nil, err
		}
		c.generations[g.name] = g
	}
	g.usage, g.table, g.load, g.missing, g.split = u, table, load, 0, false
	if u == indexed {
		return g, nil // the caller writes what index it is
	}
	return g, w.writeGeneration(g)
}

// roomForDatabase reports whether take can return a database.
func (w *Writer) roomForDatabase() bool {
	return len(w.cat.generations) < w.s.opts.MaxDBs || len(w.cat.withUsage(free)) > 0
}

func (w *Writer) makeDatabase(name string) (*generation, error) {
	dbi, err := w.txn.CreateDBI(name)
	if err != nil {
		return nil, w.s.fail("make database "+name, err)
	}
	w.s.handleMu.Lock()
	w.s.handles[name] = dbi
	w.s.handleMu.Unlock()
	w.fresh = append(w.fresh, name)
	return &generation{name: name, dbi: dbi}, nil
}

// discard makes a generation garbage.
func (w *Writer) discard(g *generation) error {
	if g == nil {
		return nil
	}
	if c := w.changes[g]; c != nil {
		w.drop(c)
	}
	delete(w.indexing.changes, g.name)
	for _, ix := range g.indexes {
		if err := w.discard(ix); err != nil {
			return err
		}
	}
	g.usage, g.table, g.load, g.index, g.indexes = garbage, 0, 0, nil, nil
	return w.writeGeneration(g)
}
