package edge

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// A home goes from one process to another without a read that fails:
//
//	old process                        new process
//	OpenHome                           OpenHomeStandby: reads the same store
//	Yield: reads on, holds no lock     TakeOver: waits for the lock, then writes
//	Close
//
// LMDB breaks its locks where one process opens an environment twice, so each of them
// closes its store and opens it in the other manner. Views that come meanwhile wait,
// for about a millisecond.

// OpenHomeStandby opens a home that another process keeps, for reading: it makes and
// removes nothing until TakeOver. Errors: those of Open, and those that TakeOver would meet
// for the sake of o.Filter.
func OpenHomeStandby(o Options) (*Home, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	if o.ReadOnly {
		return nil, fmt.Errorf("open home %s: an edge is to write it; mend: Open it for reading", o.Dir)
	}
	if o.growDBs {
		o.MaxDBs = 0 // each store has its own
	}
	h := &Home{opts: o, exchangeMu: newMutex()}
	h.foreign.Store(true)
	s, err := h.openReading()
	if err != nil {
		return nil, err
	}
	// What cannot be had is told before the other process has given the home up.
	if _, err := s.refiltered(o.Filter); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	h.current.Store(s)
	h.register()
	return h, nil
}

// openReading opens the store that CURRENT names for reading.
func (h *Home) openReading() (*Store, error) {
	o := h.opts
	o.ReadOnly, o.exact = true, false
	return Open(o)
}

// lockPoll is how often it is looked whether another process has given a home up.
const lockPoll = time.Millisecond

// TakeOver makes the home of OpenHomeStandby this process's to write, as soon as the
// other one has given it up; that of Yield too, to take it back from a process that has
// ended. After an error nothing can be read any more, unless ctx has ended.
func (h *Home) TakeOver(ctx context.Context) error {
	for h.lock == nil {
		lock, err := lockDir(h.opts.Dir, homeLockName)
		if errors.Is(err, ErrInUse) {
			select {
			case <-ctx.Done():
				return fmt.Errorf("wait for the process that keeps %s: %w", h.opts.Dir, ctx.Err())
			case <-time.After(lockPoll):
			}
			continue
		}
		if err != nil {
			return err
		}
		h.lock = lock
	}
	err := h.exchange(ctx, nil, func() (*Store, error) {
		name, err := readCurrent(h.opts.Dir)
		if err != nil {
			return nil, err
		}
		o := h.storeOptions(name, h.opts.Registerer)
		o.Filter = h.opts.Filter // which may be narrower than what was read
		return Open(o)
	})
	if err == nil {
		// Not before: a view of a store that the other process has left last is led on.
		h.foreign.Store(false)
		h.clear()
	}
	return err
}

// Yield lets another process keep the home, and goes on reading it. Writers must have
// been closed, and Snapshots have ended; copies that were being made are closed, for
// the other one to go on with.
func (h *Home) Yield() error {
	var errs []error
	for _, s := range []*Store{h.next.Swap(nil), h.compacted.Swap(nil)} {
		if s != nil {
			errs = append(errs, s.Close())
		}
	}
	errs = append(errs, h.exchange(context.Background(), nil, h.openReading))
	h.foreign.Store(true)
	if h.lock != nil {
		errs = append(errs, h.lock.Close())
		h.lock = nil
	}
	return errors.Join(errs...)
}

// exchange closes the store that readers use and opens another, unless that was done
// since only was read. Those who read meanwhile wait. Once it has begun it is done to its
// end: ctx ends the wait for another one that is under way.
func (h *Home) exchange(ctx context.Context, only *Store, open func() (*Store, error)) error {
	if err := h.exchangeMu.lock(ctx); err != nil {
		return fmt.Errorf("wait until the store of %s is open again: %w", h.opts.Dir, err)
	}
	defer h.exchangeMu.unlock()
	if only != nil && h.Store() != only {
		return nil
	}
	done := make(chan struct{})
	h.exchanging.Store(&done)
	defer func() {
		h.exchanging.Store(nil)
		close(done)
	}()
	if err := h.Store().Close(); err != nil {
		return err
	}
	s, err := open()
	if err != nil {
		return err
	}
	h.current.Store(s)
	return nil
}

// moved returns nil where readers are to ask again, because the store that they have asked
// has been left, and otherwise what they are answered with.
func (h *Home) moved(ctx context.Context, s *Store, err error) error {
	if !errors.Is(err, ErrSuperseded) && !errors.Is(err, ErrClosed) {
		return err
	}
	if h.Store() != s {
		return nil
	}
	var done <-chan struct{}
	if exchanging := h.exchanging.Load(); exchanging != nil {
		done = *exchanging
	} else if errors.Is(err, ErrSuperseded) && h.foreign.Load() {
		// The process that keeps the home has gone over to another store. The old one is
		// closed when its last view has ended, which who reads may not want to wait for.
		done = h.openAnother(s)
	}
	if done != nil {
		select {
		case <-done:
		case <-ctx.Done():
			return fmt.Errorf("wait until the store of %s is open again: %w", h.opts.Dir, ctx.Err())
		}
	}
	if h.Store() != s {
		return nil
	}
	return err
}

// openAnother goes over to the store that the process which keeps the home has gone over to, and
// closes what it returns when that was done.
func (h *Home) openAnother(s *Store) <-chan struct{} {
	done := make(chan struct{})
	h.leaving.Go(func() {
		defer close(done)
		if err := h.exchange(context.Background(), s, h.openReading); err != nil {
			h.opts.Logger.Warn("the store that took the place of another cannot be opened", "dir", h.opts.Dir, "error", err)
		}
	})
	return done
}

// mutex is one whose wait can be given up.
type mutex chan struct{}

func newMutex() mutex { return make(mutex, 1) }

func (m mutex) lock(ctx context.Context) error {
	select {
	case m <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (m mutex) unlock() { <-m }
