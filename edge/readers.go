package edge

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bmatsuo/lmdb-go/lmdb"
)

// reader is a read transaction that is renewed for one view after the other:
// beginning a new one would take a place in LMDB's reader table each time.
type reader struct {
	txn  *lmdb.Txn
	view View
	// walk is used again by one look-up after the other. missed tells that the newest
	// one found nothing.
	walk   walk
	missed bool
	// tree is that of the database that was read last, asked the last snapshot in which
	// LMDB was asked for a row.
	tree  treeAt
	asked uintptr
	// since is when the view began, in nanoseconds since the pool's; 0 while idle.
	since atomic.Int64
	// expired is since of the newest view that was open for too long: of that one alone,
	// for the next may have begun by the time that this is noted. 0 for none.
	expired atomic.Int64
}

// expire ends the view that began at since, and reports whether that is news.
func (r *reader) expire(since int64) bool { return r.expired.Swap(since) != since }

// isExpired reports whether the view was open for too long.
func (r *reader) isExpired() bool {
	since := r.expired.Load()
	return since != 0 && since == r.since.Load()
}

// readerPool hands out readers, the most recently used first.
type readerPool struct {
	s *Store
	// began is when the pool was made.
	began time.Time
	// slots bounds the readers in use; a place is taken by sending.
	slots chan struct{}

	mu   sync.Mutex
	idle []*reader
	all  []*reader
}

func (p *readerPool) init(s *Store) {
	p.s, p.began = s, time.Now()
	p.slots = make(chan struct{}, s.opts.MaxViews)
}

// await takes a slot.
func (p *readerPool) await(ctx context.Context) error {
	select {
	case p.slots <- struct{}{}:
	default:
		select {
		case p.slots <- struct{}{}:
		case <-ctx.Done():
			return fmt.Errorf("wait for one of %d views: %w", cap(p.slots), ctx.Err())
		case <-p.s.closing:
			return ErrClosed
		}
	}
	return nil
}

// apart returns a reader that is not of the pool: its age has no limit.
func (p *readerPool) apart(ctx context.Context) (*reader, error) {
	if err := p.await(ctx); err != nil {
		return nil, err
	}
	r := new(reader)
	err := ErrClosed
	select {
	case <-p.s.closing:
	default:
		err = p.s.fail("begin snapshot", p.begin(r))
	}
	if err != nil {
		<-p.slots
		return nil, err
	}
	return r, nil
}

// end ends a reader that apart gave.
func (p *readerPool) end(r *reader) {
	r.txn.Abort()
	<-p.slots
}

// acquire returns a reader whose transaction sees the newest commit.
func (p *readerPool) acquire(ctx context.Context) (*reader, error) {
	if err := p.await(ctx); err != nil {
		return nil, err
	}
	r, err := p.take()
	if err != nil {
		<-p.slots
		return nil, err
	}
	return r, nil
}

func (p *readerPool) take() (*reader, error) {
	select {
	case <-p.s.closing:
		return nil, ErrClosed
	default:
	}
	var r *reader
	p.mu.Lock()
	if n := len(p.idle); n > 0 {
		r, p.idle = p.idle[n-1], p.idle[:n-1]
	}
	p.mu.Unlock()
	if r != nil {
		if err := p.renew(r); err != nil {
			p.drop(r)
			return nil, p.s.fail("begin view", err)
		}
	} else {
		r = new(reader)
		if err := p.begin(r); err != nil {
			return nil, p.s.fail("begin view", err)
		}
		p.mu.Lock()
		p.all = append(p.all, r)
		p.mu.Unlock()
	}
	r.since.Store(p.now())
	return r, nil
}

// now is the time as reader.since has it.
func (p *readerPool) now() int64 { return int64(time.Since(p.began)) + 1 }

func (p *readerPool) begin(r *reader) (err error) {
	p.s.handleMu.RLock()
	defer p.s.handleMu.RUnlock()
	if r.txn, err = p.s.env.BeginTxn(nil, lmdb.Readonly); err == nil {
		r.txn.RawRead = true
	}
	return err
}

func (p *readerPool) renew(r *reader) error {
	p.s.handleMu.RLock()
	defer p.s.handleMu.RUnlock()
	return r.txn.Renew()
}

// put takes a reader back.
func (p *readerPool) put(r *reader) {
	r.since.Store(0)
	r.txn.Reset()
	p.mu.Lock()
	p.idle = append(p.idle, r)
	p.mu.Unlock()
	<-p.slots
}

func (p *readerPool) drop(r *reader) {
	r.txn.Abort()
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.all {
		if p.all[i] == r {
			p.all = append(p.all[:i], p.all[i+1:]...)
			return
		}
	}
}

// close waits for the readers in use and ends all.
func (p *readerPool) close() {
	for range cap(p.slots) {
		p.slots <- struct{}{}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range p.all {
		r.txn.Abort()
	}
	p.all, p.idle = nil, nil
}

// oldest returns the age of the view that has been open for longest.
func (p *readerPool) oldest(now time.Time) (age time.Duration) {
	p.each(now, func(_ *reader, _ int64, open time.Duration) { age = max(age, open) })
	return age
}

// expire ends the views that are over the limit, and returns how many these are that were
// not before.
func (p *readerPool) expire(now time.Time) (n int) {
	p.each(now, func(r *reader, since int64, open time.Duration) {
		if open > p.s.opts.MaxViewAge && r.expire(since) {
			n++
		}
	})
	return n
}

// each calls fn with the readers in use, and since when and for how long they are.
func (p *readerPool) each(now time.Time, fn func(r *reader, since int64, open time.Duration)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range p.all {
		if since := r.since.Load(); since != 0 {
			fn(r, since, now.Sub(p.began)-time.Duration(since))
		}
	}
}

const (
	janitorInterval = time.Second
	// readerCheckEvery is how many intervals pass between two looks for readers
	// of dead processes.
	readerCheckEvery = 5
)

// keepReaders bounds the age of views, clears readers of processes that died, and
// watches what room there is.
func (s *Store) keepReaders() {
	t := time.NewTicker(janitorInterval)
	defer t.Stop()
	for n := 1; ; n++ {
		select {
		case <-s.closing:
			return
		case now := <-t.C:
			if n := s.readers.expire(now); n > 0 {
				s.log.Warn("views were open for too long, their reads fail from here on", "dir", s.dir, "views", n, "age", s.readers.oldest(now), "limit", s.opts.MaxViewAge)
			}
			if err := s.watch.look(now); err != nil {
				s.log.Error("list readers", "dir", s.dir, "error", err)
			}
			if n%int(spaceEvery/janitorInterval) == 0 {
				s.lookAtSpace(now)
			}
			if n%readerCheckEvery != 0 {
				continue
			}
			if dead, err := s.env.ReaderCheck(); err != nil {
				s.log.Error("check readers", "dir", s.dir, "error", err)
			} else if dead > 0 {
				s.log.Info("cleared readers of dead processes", "dir", s.dir, "readers", dead)
			}
		}
	}
}
