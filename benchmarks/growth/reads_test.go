package growth

import (
	"context"
	"math/rand/v2"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/bmatsuo/lmdb-go/lmdb"

	"github.com/millrace-db/millrace/edge"
)

// rusageThread is RUSAGE_THREAD of Linux.
const rusageThread = 1

// reader reads rows at random, each in a view of its own.
type reader struct {
	store *edge.Store
	m     *rowMaker
	order keyOrder
	rows  int
	rnd   *rand.Rand
	key   []byte
	row   edge.Row
}

func newReader(s *edge.Store, order keyOrder, rows int) *reader {
	return &reader{store: s, m: newRowMaker(), order: order, rows: rows, rnd: rand.New(rand.NewPCG(3, 4))}
}

// read reads one row, which must be there, and returns how long that took.
func (r *reader) read(ctx context.Context) (time.Duration, error) {
	r.key = r.m.appendKey(r.key[:0], r.order(r.rnd.IntN(r.rows)))
	began := time.Now()
	err := r.store.View(ctx, func(v *edge.View) error {
		t, err := v.Table(tableName)
		if err != nil {
			return err
		}
		return t.Get(r.key, &r.row)
	})
	return time.Since(began), err
}

// many reads n rows, one after the other, on a thread of its own.
func (r *reader) many(b *testing.B, n int) ([]time.Duration, cost) {
	b.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	taken := make([]time.Duration, n)
	c := spend(rusageThread, func() {
		for i := range taken {
			var err error
			if taken[i], err = r.read(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	})
	return taken, c
}

// reference is an environment of LMDB that does not grow: the same work over it tells
// what the machine is like at the time.
type reference struct {
	b   *testing.B
	env *lmdb.Env
	dbi lmdb.DBI
	// Reads are of one goroutine, and writes of another one.
	txn         *lmdb.Txn
	m, writing  *rowMaker
	rnd, random *rand.Rand
	key         []byte
	n           int
}

const referenceBatch = 1_000

func newReference(b *testing.B, dir string) *reference {
	b.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	r := &reference{b: b, m: newRowMaker(), writing: newRowMaker(), rnd: rand.New(rand.NewPCG(5, 6)), random: rand.New(rand.NewPCG(11, 12))}
	var err error
	r.env, err = lmdb.NewEnv()
	r.must(err)
	r.must(r.env.SetMapSize(16 << 30))
	r.must(r.env.SetMaxDBs(16))
	r.must(r.env.Open(dir, lmdb.NoSubdir|lmdb.NoTLS, 0o600))
	r.must(r.env.UpdateLocked(func(txn *lmdb.Txn) (err error) {
		if r.dbi, err = txn.CreateDBI("t"); err != nil {
			return err
		}
		for n := range *referenceFlag {
			key, row := r.m.make(sequential(n), 0)
			if err := txn.Put(r.dbi, key, row, 0); err != nil {
				return err
			}
		}
		return nil
	}))
	r.txn, err = r.env.BeginTxn(nil, lmdb.Readonly)
	r.must(err)
	r.txn.RawRead = true
	r.txn.Reset()
	b.Cleanup(func() {
		r.txn.Abort()
		r.must(r.env.Close())
	})
	return r
}

func (r *reference) must(err error) {
	r.b.Helper()
	if err != nil {
		r.b.Fatal(err)
	}
}

// write updates n rows at random, in synced batches.
func (r *reference) write(n int) cost {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	return spend(syscall.RUSAGE_SELF, func() {
		for range n / referenceBatch {
			r.n++
			r.must(r.env.UpdateLocked(func(txn *lmdb.Txn) error {
				for range referenceBatch {
					key, row := r.writing.make(uint32(r.random.IntN(*referenceFlag)), r.n)
					if err := txn.Put(r.dbi, key, row, 0); err != nil {
						return err
					}
				}
				return nil
			}))
		}
	})
}

// read reads one row in a renewed transaction and returns how long that took.
func (r *reference) read() (time.Duration, error) {
	r.key = r.m.appendKey(r.key[:0], uint32(r.rnd.IntN(*referenceFlag)))
	began := time.Now()
	err := r.txn.Renew()
	if err == nil {
		_, err = r.txn.Get(r.dbi, r.key)
		r.txn.Reset()
	}
	return time.Since(began), err
}

func (r *reference) many(n int) []time.Duration {
	taken := make([]time.Duration, n)
	for i := range taken {
		var err error
		taken[i], err = r.read()
		r.must(err)
	}
	return taken
}

// paced reads all the time, store and reference by turns, a thousand times a second some
// of each.
type paced struct {
	stop chan struct{}
	done sync.WaitGroup
	err  error
	mu   sync.Mutex
	now  readTimes
}

// readTimes are how long reads took.
type readTimes struct{ store, reference []time.Duration }

func (t *readTimes) add(o readTimes) {
	t.store, t.reference = append(t.store, o.store...), append(t.reference, o.reference...)
}

const (
	pacedPause = time.Millisecond
	pacedReads = 5 // of each, a pause
)

func startReading(b *testing.B, r *reader, ref *reference) *paced {
	ctx := b.Context()
	p := &paced{stop: make(chan struct{})}
	p.done.Go(func() {
		// The thread ends with the goroutine, so its priority is nobody else's.
		runtime.LockOSThread()
		if *firstFlag {
			if err := runFirst(); err != nil {
				p.err = err
				return
			}
		}
		t := time.NewTicker(pacedPause)
		defer t.Stop()
		for {
			select {
			case <-t.C:
			case <-p.stop:
				return
			}
			if err := p.some(ctx, r, ref); err != nil {
				p.err = err
				return
			}
		}
	})
	return p
}

func (p *paced) some(ctx context.Context, r *reader, ref *reference) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for range pacedReads {
		d, err := r.read(ctx)
		if err != nil {
			return err
		}
		p.now.store = append(p.now.store, d)
		if d, err = ref.read(); err != nil {
			return err
		}
		p.now.reference = append(p.now.reference, d)
	}
	return nil
}

// since returns the times since the last call.
func (p *paced) since() readTimes {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := p.now
	p.now = readTimes{}
	return t
}

func (p *paced) end(b *testing.B) {
	b.Helper()
	close(p.stop)
	p.done.Wait()
	if p.err != nil {
		b.Fatal(p.err)
	}
}
