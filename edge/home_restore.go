package edge

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/failpoint"
)

// restoringName is the directory within a home in which a store is restored. It
// gets the name of a store when it is whole; under this one it is of no use.
const restoringName = "restoring"

// Restored is a store that was made beside the one that readers use. Its methods
// are called by one goroutine; Switch or Drop ends it.
type Restored struct {
	h *Home
	s *Store
	// over tells that readers have gone over to it: it is the home's then.
	over bool
}

// Restore makes a store of contents beside the one that readers use, reads it
// through, and opens it. fill gives the rows: it calls add with those of each set
// of contents (by its place there), set after set, in the order of the store keys
// of their encoded keys. checking is called when all rows are written, and may be
// nil. Applying and reading go on meanwhile. After an error nothing has changed,
// and contents that are not what a store may hold are such an error: they may come
// from anywhere.
//
// Readers never go back: what is behind the store that they use, or has another
// history at the same index, is refused; and of a partial home contents of less than
// that holds. What they have beyond it is left out.
func (h *Home) Restore(ctx context.Context, c *Contents, fill func(add func(set int, key, row []byte) error) error, checking func()) (*Restored, error) {
	r, err := h.restore(ctx, c, fill, checking)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("restore store of %s: %w", h.opts.Dir, err), removeDir(filepath.Join(h.opts.Dir, restoringName)))
	}
	return r, nil
}

func (h *Home) restore(ctx context.Context, c *Contents, fill func(add func(set int, key, row []byte) error) error, checking func()) (*Restored, error) {
	if _, err := c.validate(h.Filter()); err != nil {
		return nil, err
	}
	if h.next.Load() != nil || h.compacted.Load() != nil {
		return nil, errors.New("another store is being made beside it; mend: wait until readers have gone over to that")
	}
	to := Place{Epoch: c.Checkpoint.Epoch, Index: c.Checkpoint.Index, Chain: c.Checkpoint.Chain}
	if err := h.follows(c.Checkpoint.Stream, to); err != nil {
		return nil, err
	}
	temp := filepath.Join(h.opts.Dir, restoringName)
	// What an earlier try has left.
	if err := removeDir(temp); err != nil {
		return nil, err
	}
	o := h.storeOptions(restoringName, nil)
	o.Stream = c.Checkpoint.Stream
	if err := build(ctx, o, c, fill); err != nil {
		return nil, err
	}
	failpoint.Hit("edge_restored")
	if checking != nil {
		checking()
	}
	if err := checkBuilt(ctx, o); err != nil {
		return nil, err
	}
	old := h.Store()
	name := copyDir(to.Epoch, 1)
	if old.Place().Epoch == to.Epoch {
		name = copyDir(to.Epoch, storeDirOf(h.dirName(old)).copy+1)
	} else if err := removeDir(filepath.Join(h.opts.Dir, epochDir(to.Epoch))); err != nil {
		return nil, err // an earlier process was filling it
	}
	// A copy has a number, so that Next does not go on with what nobody has confirmed.
	// What is there is one that readers have not come to.
	if err := removeDir(filepath.Join(h.opts.Dir, name)); err != nil {
		return nil, err
	}
	if err := os.Rename(temp, filepath.Join(h.opts.Dir, name)); err != nil {
		return nil, err
	}
	if err := syncDir(h.opts.Dir); err != nil {
		return nil, err
	}
	o = h.storeOptions(name, nil)
	o.Stream, o.Indexes = c.Checkpoint.Stream, *old.declared.Load()
	s, err := Open(o)
	if err != nil {
		return nil, errors.Join(err, removeDir(o.Dir))
	}
	return &Restored{h: h, s: s}, nil
}

// checkBuilt reads a restored store through.
func checkBuilt(ctx context.Context, o Options) error {
	s, err := Open(o)
	if err != nil {
		return err
	}
	return errors.Join(s.Check(ctx), s.Close())
}

// follows wants a place of a stream to be none behind the one that readers are at.
func (h *Home) follows(stream millrace.StreamID, to Place) error {
	from, have := h.Place(), h.Stream()
	switch {
	case !have.IsZero() && stream != have:
		return fmt.Errorf("%w: %v, and %s holds %v; mend: give each stream a directory of its own", ErrOtherStream, stream, h.opts.Dir, have)
	case to.Epoch < from.Epoch || to.Epoch == from.Epoch && to.Index < from.Index:
		return fmt.Errorf("it is at epoch %v, index %v, and readers are at %v, %v already; mend: nothing, or move the directory away to go back", to.Epoch, to.Index, from.Epoch, from.Index)
	case to.Epoch == from.Epoch && to.Index == from.Index && to.Chain != from.Chain:
		return fmt.Errorf("at index %v its chain is %v, and readers' is %v: one of the two is not this stream's history; mend: compare both with the topic (millrace tail), and move the directory away if it is the wrong one",
			to.Index, to.Chain, from.Chain)
	}
	return nil
}

// Store returns the restored store, which belongs to r until Switch.
func (r *Restored) Store() *Store { return r.s }

// Switch makes the restored store the one that readers use, as Home.Switch does
// with that of a newer epoch. The appliers of the store in use must have ended,
// one of the restored store may run. After an error nothing has changed.
//
// Where readers have tables, a store of a newer epoch whose first copy has not
// ended is refused.
func (r *Restored) Switch(ctx context.Context) error {
	h, old := r.h, r.h.Store()
	to := r.s.Place()
	fail := func(err error) error { return fmt.Errorf("go over to the restored store %s: %w", r.s.Dir(), err) }
	if h.next.Load() != nil || h.compacted.Load() != nil {
		return fail(errors.New("another store is being made beside it"))
	}
	if err := h.follows(r.s.Stream(), to); err != nil {
		return fail(err)
	}
	if from := old.Place(); from.Index > 0 && to.Epoch > from.Epoch {
		copied, err := r.s.Copied(ctx)
		if err != nil {
			return fail(err)
		}
		if !copied {
			return fail(fmt.Errorf("its first copy had not ended at index %v, and readers of epoch %v would lose tables; mend: take an image that is newer", to.Index, from.Epoch))
		}
	}
	for _, dir := range []string{r.s.Dir(), h.opts.Dir} {
		if err := syncDir(dir); err != nil {
			return fail(err)
		}
	}
	failpoint.Hit("edge_before_restored_switch")
	if err := writeCurrent(h.opts.Dir, filepath.Base(r.s.Dir())); err != nil {
		return err
	}
	failpoint.Hit("edge_after_restored_switch")
	r.over = true
	h.current.Store(r.s)
	old.metrics.unregister()
	r.s.metrics.register(h.opts.Registerer)
	h.leaving.Go(func() { h.leave(old) })
	return nil
}

// Drop gives the restored store up and removes it. Its applier must have ended. One that
// readers have gone over to stays.
func (r *Restored) Drop() error {
	if r.over {
		return nil
	}
	if err := errors.Join(r.s.Close(), removeDir(r.s.Dir())); err != nil {
		return fmt.Errorf("give up the restored store: %w", err)
	}
	return nil
}
