package edge

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/bmatsuo/lmdb-go/lmdb"

	"github.com/millrace-db/millrace"
)

// builder makes a store from contents and rows that come in order. Nothing of it
// is of use before finish has returned.
type builder struct {
	ctx      context.Context //nolint:containedctx // of the one call that it belongs to
	s        *Store          // of which only the environment is open
	contents *Contents
	cat      *catalog
	txn      *lmdb.Txn
	size     int

	// at is the set that rows come for, with its generation and table, last the
	// store key of the row before.
	at   int
	g    *generation
	t    *table
	cur  *lmdb.Cursor
	rows uint64
	last []byte
	// value is the ID of the newest value in pieces.
	value  uint64
	pieces *lmdb.Cursor

	row    Row
	stored []byte
	buf    []byte
	stub   []byte
}

// build makes a store in dir, which must not be there, and returns when it is
// durable but for the name of the directory. What is there after an error is to
// be removed.
func build(ctx context.Context, o Options, c *Contents, fill func(add func(set int, key, row []byte) error) error) error {
	cat, err := c.validate(o.Filter)
	if err != nil {
		return err
	}
	b := &builder{ctx: ctx, contents: c, cat: cat, at: -1, s: &Store{opts: o, dir: o.Dir, log: o.Logger}}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err = b.open()
	if err == nil {
		err = fill(b.add)
	}
	if err == nil {
		err = b.finish()
	}
	if err = errors.Join(err, b.close()); err != nil {
		return err
	}
	return syncDir(o.Dir)
}

func (b *builder) fail(err error) error { return b.s.fail("restore store", err) }

func (b *builder) open() error {
	if err := os.MkdirAll(b.s.dir, 0o700); err != nil {
		return fmt.Errorf("restore store: %w", err)
	}
	env, err := lmdb.NewEnv()
	if err != nil {
		return b.fail(err)
	}
	b.s.env = env
	// Without syncs between: only the whole store is of use, and it is synced.
	databases := max(b.s.opts.MaxDBs, len(b.contents.Sets)) + ownDBs
	if err := cmp.Or(env.SetMapSize(b.s.opts.MapSize), env.SetMaxDBs(databases), env.Open(b.s.dir, lmdb.NoSync, 0o600)); err != nil {
		return b.fail(err)
	}
	stat, err := env.Stat()
	if err != nil {
		return b.fail(err)
	}
	b.s.sizes = sizesOfPage(int(stat.PSize))
	if err := b.room(); err != nil {
		return err
	}
	if err := b.begin(); err != nil {
		return err
	}
	if b.s.meta, err = b.txn.CreateDBI(metaName); err == nil {
		b.cat.pieces, err = b.txn.CreateDBI(piecesName)
	}
	for i := 0; err == nil && i < len(b.contents.Sets); i++ {
		if g := b.contents.places[i]; g != nil {
			g.dbi, err = b.txn.CreateDBI(g.name)
		}
	}
	return b.fail(err)
}

// room refuses what the map or the disk has no room for.
func (b *builder) room() error {
	var need uint64
	for _, set := range b.contents.Sets {
		need += set.Bytes + set.Rows*(nodeHeader+crcSize)
	}
	if need > uint64(b.s.opts.MapSize) {
		return fmt.Errorf("restore store: %w: the rows take %d bytes or more, and map_size is %d; mend: raise it", ErrFull, need, b.s.opts.MapSize)
	}
	if free := b.s.diskFree(); need+littleDisk/4 > free {
		return fmt.Errorf("restore store: %w: the rows take %d bytes or more, and %d are free; mend: free space on the disk of %s", ErrFull, need, free, b.s.dir)
	}
	return nil
}

func (b *builder) begin() (err error) {
	b.size = 0
	b.txn, err = b.s.env.BeginTxn(nil, 0)
	return b.fail(err)
}

func (b *builder) commit() error {
	b.closeCursors()
	txn := b.txn
	b.txn = nil
	return b.fail(txn.Commit())
}

func (b *builder) closeCursors() {
	for _, cur := range []**lmdb.Cursor{&b.cur, &b.pieces} {
		if *cur != nil {
			(*cur).Close()
			*cur = nil
		}
	}
}

func (b *builder) close() error {
	if b.s.env == nil {
		return nil
	}
	if b.txn != nil {
		b.closeCursors()
		b.txn.Abort()
		b.txn = nil
	}
	return b.fail(b.s.env.Close())
}

// add takes the next row. Sets come in their order, and the rows of each in the
// order of their store keys.
func (b *builder) add(set int, key, row []byte) error {
	if set != b.at {
		if err := b.turnTo(set); err != nil {
			return err
		}
	}
	if b.size >= copyBytes {
		if err := b.ctx.Err(); err != nil {
			return fmt.Errorf("restore store: %w", err)
		}
		if err := b.commit(); err != nil {
			return err
		}
		if err := b.begin(); err != nil {
			return err
		}
	}
	if b.cur == nil && b.g != nil {
		var err error
		if b.cur, err = b.txn.OpenCursor(b.g.dbi); err != nil {
			return b.fail(err)
		}
	}
	if len(key) == 0 {
		return fmt.Errorf("restore table %s: %w: a row has no key", b.t.name(), ErrContents)
	}
	stored := storeKey(b.stored, key)
	if len(key) > maxWholeKey {
		b.stored = stored
	}
	if b.rows > 0 && bytes.Compare(b.last, stored) >= 0 {
		return fmt.Errorf("restore table %s: %w: key %s comes after a greater one", b.t.name(), ErrContents, b.t.describe(key))
	}
	b.last = append(b.last[:0], stored...)
	b.rows++
	if b.g == nil || !b.t.scope.Holds(key) {
		return nil // of an edge that holds more
	}
	b.size += len(key) + len(row)
	lacks, err := b.t.checkRow(row, b.g.usage == shadow || b.t.some(), &b.row)
	if err != nil {
		return fmt.Errorf("restore table %s key %s: %w: %w", b.t.name(), b.t.describe(key), ErrContents, err)
	}
	if lacks && b.g.usage == shadow {
		if err := b.txn.Put(b.s.meta, missingKey(b.g, stored), nil, 0); err != nil {
			return b.fail(err)
		}
		b.g.missing++
	}
	return b.put(stored, key, row)
}

// put writes a row.
func (b *builder) put(stored, key, row []byte) error {
	size := valueSize(stored, key, row)
	if len(stored)+size <= b.s.sizes.item {
		dst, err := b.cur.PutReserve(stored, size, lmdb.Append)
		if err != nil {
			return b.fail(err)
		}
		fillValue(dst, b.t.seed, stored, key, row)
		return nil
	}
	if b.pieces == nil {
		var err error
		if b.pieces, err = b.txn.OpenCursor(b.cat.pieces); err != nil {
			return b.fail(err)
		}
	}
	b.g.split = true
	size -= crcSize
	content := append(b.buf[:0], make([]byte, size)...)
	b.buf = content
	fillContent(content, stored, key, row)
	b.value++
	pieces, rest := b.s.sizes.cut(stored, size)
	p := stub{id: b.value, pieces: pieces, size: size, crc: contentCRC(b.value, content), rest: content[size-rest:]}
	left := content[:size-rest]
	var name [pieceKeySize]byte
	for n := range pieces {
		m := min(len(left), b.s.sizes.piece)
		if err := b.pieces.Put(appendPieceKey(name[:0], b.value, n), left[:m], lmdb.Append); err != nil {
			return b.fail(err)
		}
		left = left[m:]
	}
	value := p.append(append(b.stub[:0], 0, 0, 0, 0))
	b.stub = value
	sealValue(value, b.t.seed, stored)
	return b.fail(b.cur.Put(stored, value, lmdb.Append))
}

// turnTo ends the sets before one and begins with that.
func (b *builder) turnTo(set int) error {
	if set < b.at || set >= len(b.contents.Sets) {
		return fmt.Errorf("restore store: %w: rows of set %d come after those of set %d, of %d", ErrContents, set, b.at, len(b.contents.Sets))
	}
	for b.at < set {
		if err := b.endSet(); err != nil {
			return err
		}
		b.at++
		b.rows = 0
	}
	if b.cur != nil {
		b.cur.Close()
		b.cur = nil
	}
	b.g = b.contents.places[set]
	b.t = b.cat.tables[b.contents.Sets[set].Table]
	return nil
}

// endSet wants all rows of a set to have come.
func (b *builder) endSet() error {
	if b.at < 0 {
		return nil
	}
	if want := b.contents.Sets[b.at].Rows; b.rows != want {
		return fmt.Errorf("restore table %v: %w: %d rows came, %d were announced", b.contents.Sets[b.at].Table, ErrContents, b.rows, want)
	}
	return nil
}

// finish writes the records of the store and makes it durable.
func (b *builder) finish() error {
	if n := len(b.contents.Sets); n > 0 {
		if err := b.turnTo(n - 1); err != nil {
			return err
		}
	}
	if err := b.endSet(); err != nil {
		return err
	}
	c := b.contents.Checkpoint
	var err error
	put := func(key, value []byte) {
		if err == nil {
			err = b.txn.Put(b.s.meta, key, seal(key, value), 0)
		}
	}
	put(keyFormat, []byte{formatVersion})
	put(keyStream, bytes.Clone(c.Stream[:]))
	for _, s := range b.contents.Schemas {
		put(schemaKey(s.Table, s.Version), millrace.AppendSchema(nil, s))
	}
	for _, d := range b.contents.Diverged {
		if b.cat.table(d.Table).diverged != "" {
			put(divergedKey(d.Table), []byte(d.Reason))
		}
	}
	for name, g := range b.cat.generations {
		put(databaseKey(name), g.append(nil))
	}
	if err != nil {
		return b.fail(err)
	}
	if err := b.s.writeFilter(b.txn, b.cat.filter); err != nil {
		return err
	}
	// One that proves nothing is of no use to whoever takes an image from this store.
	if r, err := millrace.DecodeSignedHeader(b.contents.Header); err == nil && r.Proves(c) == nil {
		if err := b.s.writeHeader(b.txn, c.Index, b.contents.Header); err != nil {
			return err
		}
	}
	if err := b.s.writeUnproven(b.txn, unprovenOf(b.contents)); err != nil {
		return err
	}
	h := &head{index: c.Index, chain: c.Chain, time: c.Time, epoch: c.Epoch, term: c.Term, catalog: b.cat.number}
	if err := b.s.writePlace(b.txn, c, h); err != nil {
		return err
	}
	if err := b.commit(); err != nil {
		return err
	}
	return b.fail(b.s.env.Sync(true))
}
