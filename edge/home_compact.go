package edge

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/millrace-db/millrace/internal/failpoint"
)

// Compact makes a copy of the store that readers use, in which nothing is free,
// beside it, reads it through, and opens it. Both stores are whole; the caller
// brings the copy up to date, as an applier does from its checkpoint on, and then
// calls SwitchCompacted, or DropCompacted where it does not come to that. The
// copy is the home's to close. Applying and reading go on meanwhile. After an
// error nothing has changed.
func (h *Home) Compact(ctx context.Context, progress func(CopyProgress)) (*Store, error) {
	old := h.Store()
	if h.compacted.Load() != nil {
		return nil, fmt.Errorf("compact store %s: a copy is being made already", old.Dir())
	}
	place := old.Place()
	if place.Index == 0 {
		return nil, fmt.Errorf("compact store %s: nothing has been applied yet", old.Dir())
	}
	name := h.dirName(old)
	name = copyDir(place.Epoch, storeDirOf(name).copy+1)
	dir := filepath.Join(h.opts.Dir, name)
	s, err := h.copyTo(ctx, old, name, progress)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("compact store %s: %w", old.Dir(), err), removeDir(dir))
	}
	failpoint.Hit("edge_compacted")
	h.compacted.Store(s)
	return s, nil
}

func (h *Home) copyTo(ctx context.Context, old *Store, name string, progress func(CopyProgress)) (*Store, error) {
	dir := filepath.Join(h.opts.Dir, name)
	// What an earlier try has left.
	if err := removeDir(dir); err != nil {
		return nil, err
	}
	var at CopyProgress
	err := old.CopyTo(ctx, dir, func(p CopyProgress) {
		if at = p; progress != nil {
			progress(p)
		}
	})
	if err != nil {
		return nil, err
	}
	o := h.storeOptions(name, nil)
	o.Stream, o.Indexes = old.Stream(), *old.declared.Load()
	s, err := Open(o)
	if err != nil {
		return nil, err
	}
	if at.Checking = true; progress != nil {
		progress(at)
	}
	// A copy that is not whole shows what is wrong with the store.
	if err := s.Check(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// DropCompacted gives the copy up. Its applier must have ended.
func (h *Home) DropCompacted() error {
	s := h.compacted.Swap(nil)
	if s == nil {
		return nil
	}
	if err := errors.Join(s.Close(), removeDir(s.Dir())); err != nil {
		return fmt.Errorf("give up the copy of %s: %w", h.Store().Dir(), err)
	}
	return nil
}

// SwitchCompacted makes the copy the store that readers use, as Switch does with
// that of a newer epoch, and returns the bytes that the old one takes, which is
// removed in the background. The copy must not be behind: readers never go back.
// The applier of the old store must have ended, that of the copy may run.
func (h *Home) SwitchCompacted() (was int64, err error) {
	next, old := h.compacted.Load(), h.Store()
	if next == nil {
		return 0, fmt.Errorf("go over to a copy of %s: none has been made", old.Dir())
	}
	from, to := old.Place(), next.Place()
	if to.Epoch != from.Epoch || next.Stream() != old.Stream() || to.Index < from.Index {
		return 0, fmt.Errorf("go over to the copy %s: it is at epoch %v, index %v, and readers are at %v, %v", next.Dir(), to.Epoch, to.Index, from.Epoch, from.Index)
	}
	if was, _, err = old.fullSize(); err != nil {
		return 0, err
	}
	for _, dir := range []string{next.Dir(), h.opts.Dir} {
		if err := syncDir(dir); err != nil {
			return 0, fmt.Errorf("go over to the copy %s: %w", next.Dir(), err)
		}
	}
	failpoint.Hit("edge_before_compact_switch")
	if err := writeCurrent(h.opts.Dir, filepath.Base(next.Dir())); err != nil {
		return 0, err
	}
	failpoint.Hit("edge_after_compact_switch")
	h.current.Store(next)
	h.compacted.Store(nil)
	old.metrics.unregister()
	next.metrics.register(h.opts.Registerer)
	h.leaving.Go(func() { h.leave(old) })
	return was, nil
}
