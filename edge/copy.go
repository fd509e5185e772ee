package edge

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/bmatsuo/lmdb-go/lmdb"
)

// CopyProgress says how far a copy of a store is.
type CopyProgress struct {
	// Items are copied, of Of: rows, pieces of large rows, entries of indexes and
	// records.
	Items, Of uint64
	// Checking tells that all are copied and the copy is being read through.
	Checking bool
}

const (
	// copyBytes is how much one transaction of a copy takes.
	copyBytes = 16 << 20
	// copyReport is how many items pass between two reports of progress.
	copyReport = 16 << 10
)

// CopyTo writes a copy of the store into dir, which must be empty or not be
// there, with its items packed in the order of their keys and no page free. It
// reads from one snapshot, which it holds to the end whatever MaxViewAge says, so
// the file of the store grows while it is written to meanwhile. The copy is
// durable when CopyTo returns; what is there after an error is to be removed.
// progress is called now and then, and may be nil.
//
// It is not a copy of the pages, as LMDB makes one: that would carry damage
// along, and begins with the lock of the writer, who may be in a long
// transaction.
func (s *Store) CopyTo(ctx context.Context, dir string, progress func(CopyProgress)) error {
	if progress == nil {
		progress = func(CopyProgress) {}
	}
	return s.Snapshot(ctx, func(v *View) error {
		c := &copier{ctx: ctx, s: s, from: v.txn, progress: progress}
		if err := c.open(dir); err != nil {
			return errors.Join(err, c.close())
		}
		err := c.databases()
		return errors.Join(err, c.close())
	})
}

// copier copies one store.
type copier struct {
	ctx      context.Context //nolint:containedctx // of the one call that it belongs to
	s        *Store
	from     *lmdb.Txn
	env      *lmdb.Env
	txn      *lmdb.Txn
	size     int
	progress func(CopyProgress)
	at       CopyProgress
}

func (c *copier) fail(err error) error {
	if err == nil {
		return nil
	}
	return c.s.fail("copy store", err)
}

func (c *copier) open(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("copy store: %w", err)
	}
	env, err := lmdb.NewEnv()
	if err != nil {
		return c.fail(err)
	}
	c.env = env
	// Without syncs between: only the whole copy is of use, and it is synced.
	if err := cmp.Or(env.SetMapSize(max(c.s.opts.MapSize, c.s.mapSize())), env.SetMaxDBs(c.s.opts.MaxDBs+ownDBs), env.Open(dir, lmdb.NoSync, 0o600)); err != nil {
		return c.fail(err)
	}
	runtime.LockOSThread()
	return nil
}

func (c *copier) close() error {
	if c.env == nil {
		return nil
	}
	if c.txn != nil {
		c.txn.Abort()
		c.txn = nil
	}
	defer runtime.UnlockOSThread()
	return c.fail(c.env.Close())
}

// databases copies all named databases.
func (c *copier) databases() error {
	dbis := map[string]lmdb.DBI{metaName: c.s.meta}
	names := []string{metaName}
	cur, err := c.from.OpenCursor(c.s.root)
	if err != nil {
		return c.fail(err)
	}
	defer cur.Close()
	for k, _, err := cur.Get(nil, nil, lmdb.First); ; k, _, err = cur.Get(nil, nil, lmdb.Next) {
		if lmdb.IsNotFound(err) {
			break
		}
		if err != nil {
			return c.fail(err)
		}
		name := string(k)
		if name == metaName {
			continue
		}
		dbi, known := c.s.handle(name)
		if !known {
			return c.s.corrupt("database %s is listed and not known", name)
		}
		dbis[name] = dbi
		names = append(names, name)
	}
	var pages uint64
	for _, name := range names {
		stat, err := c.from.Stat(dbis[name])
		if err != nil {
			return c.fail(err)
		}
		c.at.Of += stat.Entries
		pages += stat.BranchPages + stat.LeafPages + stat.OverflowPages
	}
	if err := c.room(pages); err != nil {
		return err
	}
	c.progress(c.at)
	for _, name := range names {
		if err := c.database(name, dbis[name]); err != nil {
			return err
		}
	}
	if err := c.commit(); err != nil {
		return err
	}
	c.progress(c.at)
	return c.fail(c.env.Sync(true))
}

// room refuses a copy that the disk has no room for: the store would be the first
// to miss it.
func (c *copier) room(pages uint64) error {
	need, free := pages*uint64(c.s.sizes.piece+pageHeader), c.s.diskFree()
	if need+littleDisk/4 > free {
		return fmt.Errorf("copy store: %w: the copy takes up to %d bytes, and %d are free; mend: free space on the disk of %s", ErrFull, need, free, c.s.dir)
	}
	return nil
}

func (c *copier) begin() (err error) {
	c.size = 0
	c.txn, err = c.env.BeginTxn(nil, 0)
	return c.fail(err)
}

func (c *copier) commit() error {
	if c.txn == nil {
		return nil
	}
	txn := c.txn
	c.txn = nil
	return c.fail(txn.Commit())
}

func (c *copier) database(name string, from lmdb.DBI) error {
	if c.txn == nil {
		if err := c.begin(); err != nil {
			return err
		}
	}
	to, err := c.txn.CreateDBI(name)
	if err != nil {
		return c.fail(err)
	}
	src, err := c.from.OpenCursor(from)
	if err != nil {
		return c.fail(err)
	}
	defer src.Close()
	for {
		dst, err := c.txn.OpenCursor(to)
		if err != nil {
			return c.fail(err)
		}
		more, err := c.items(src, dst)
		dst.Close()
		if err != nil || !more {
			return err
		}
		if err := c.commit(); err != nil {
			return err
		}
		if err := c.begin(); err != nil {
			return err
		}
	}
}

// items copies until a transaction is full or the database ends.
func (c *copier) items(src, dst *lmdb.Cursor) (more bool, err error) {
	for c.size < copyBytes {
		k, v, err := src.Get(nil, nil, lmdb.Next)
		if lmdb.IsNotFound(err) {
			return false, nil
		}
		if err != nil {
			return false, c.fail(err)
		}
		if err := dst.Put(k, v, lmdb.Append); err != nil {
			return false, c.fail(err)
		}
		c.size += len(k) + len(v)
		if c.at.Items++; c.at.Items%copyReport == 0 {
			c.progress(c.at)
			if err := c.ctx.Err(); err != nil {
				return false, fmt.Errorf("copy store: %w", err)
			}
		}
	}
	return true, nil
}

// removeDir removes what a copy has left, and says what keeps it from that.
func removeDir(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove %s: %w; mend: remove it by hand", dir, err)
	}
	return nil
}
