package watch

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge/event"
	edgelog "github.com/millrace-db/millrace/edge/log"
)

// Options of a Watcher.
type Options struct {
	// Tables are the qualified names of the tables whose changes are wanted; none for
	// all of the stream.
	Tables []string
	// Prefix are leading columns of the key, as millrace.ParseKeyPrefix takes them;
	// empty for all rows. It needs exactly one table. Events of a table as a whole
	// come whatever it is.
	Prefix string
	// From is the place behind which to begin; nil for now.
	From *event.ID
	// Beat is how long a watcher is told nothing at most. Default 15 s.
	Beat time.Duration
}

// Watcher is told what changes. Next and Close are called by one goroutine at a time.
type Watcher struct {
	h      *Hub
	filter *filter
	beat   time.Duration
	epoch  millrace.Epoch
	// pos is the index up to which everything was told.
	pos millrace.Index
	// base are the tables at baseAt, which is not after pos; nil if they are not known.
	base   tables
	baseAt millrace.Index
	// within is the end of the unit that the newest event was of, 0 if all of that was
	// told.
	within millrace.Index
	// begun tells that something was given.
	begun  bool
	closed bool
	page   []*Item
}

const (
	// pageItems and pageBytes bound what Next gives at once; one item may be larger.
	pageItems = 512
	pageBytes = 64 << 10
	// readyWait is how long Watch waits for the log of an edge that has just started.
	readyWait = 5 * time.Second
)

// Watch begins a watch, which the caller has to close. Errors: ErrNotReady,
// ErrEpochAhead, ErrNoTable, ErrNotHeld, ErrPrefix, ErrTooMany, ErrClosed, and a log.PrunedError
// with the oldest place that would do.
func (h *Hub) Watch(ctx context.Context, o Options) (*Watcher, error) {
	var holds *millrace.Filter
	if h.c.Holds != nil {
		holds = h.c.Holds()
	}
	f, err := newFilter(&o, holds)
	if err != nil {
		return nil, err
	}
	if err := h.join(); err != nil {
		return nil, err
	}
	w := &Watcher{h: h, filter: f, beat: o.Beat}
	if w.beat <= 0 {
		w.beat = 15 * time.Second
	}
	if err := w.begin(ctx, o.From); err != nil {
		h.leave()
		return nil, err
	}
	return w, nil
}

// begin finds the watcher's place, and waits a while for a log that has just been opened
// or exchanged.
func (w *Watcher) begin(ctx context.Context, from *event.ID) error {
	ctx, cancel := context.WithTimeout(ctx, readyWait)
	defer cancel()
	for {
		w.h.mu.Lock()
		changed := w.h.changed
		w.h.mu.Unlock()
		err := w.place(ctx, from)
		if !errors.Is(err, ErrNotReady) {
			return err
		}
		select {
		case <-changed:
		case <-time.After(retryMin):
		case <-ctx.Done():
			return err
		}
	}
}

func (w *Watcher) place(ctx context.Context, from *event.ID) error {
	h := w.h
	h.mu.Lock()
	l, epoch, first, at, t, closed := h.log, h.epoch, h.ring.first, h.ring.at, h.ring.tables, h.closed
	h.mu.Unlock()
	switch {
	case closed:
		return ErrClosed
	case l == nil:
		return ErrNotReady
	}
	w.epoch, w.pos, w.base = epoch, at, nil
	if from != nil {
		w.pos = from.Index
		if from.Epoch != 0 {
			w.epoch = from.Epoch
		}
	}
	switch {
	case w.epoch > epoch:
		return fmt.Errorf("%w: it is at epoch %v, asked for is %v", ErrEpochAhead, epoch, w.epoch)
	case w.epoch == epoch && w.pos < first:
		var err error
		if w.baseAt, w.base, err = h.tablesAt(ctx, l, epoch, w.pos); err != nil {
			return notReady(err)
		}
	}
	for _, name := range w.filter.names {
		one := t.named(name)
		if one == nil {
			one = w.base.named(name)
		}
		if one == nil {
			return fmt.Errorf("%w: %s", ErrNoTable, name)
		}
		if m := w.filter.of(one); m.err != nil {
			return m.err
		}
	}
	return nil
}

// notReady takes an error of a log that is being exchanged for what it means.
func notReady(err error) error {
	if errors.Is(err, edgelog.ErrClosed) || errors.Is(err, edgelog.ErrRenewed) || errors.Is(err, edgelog.ErrAhead) {
		return fmt.Errorf("%w: %w", ErrNotReady, err)
	}
	return err
}

// Close ends the watch.
func (w *Watcher) Close() {
	if !w.closed {
		w.closed = true
		w.h.leave()
	}
}

// Release forgets what Next gave before the next call does. Items are of records that
// others may be done with.
func (w *Watcher) Release() {
	clear(w.page)
	w.page = w.page[:0]
}

// CutOff counts the watch as one that was ended because it was slow.
func (w *Watcher) CutOff() { w.h.metrics.cutOff.Inc() }

// ID is the place up to which everything was told.
func (w *Watcher) ID() event.ID { return event.ID{Epoch: w.epoch, Index: w.pos} }

// Next waits for events and returns some, in their order. The first item, and one after
// each Beat in which there was nothing else, is a Progress, and so is one at the end of a
// unit whose last entry the filter did not let through. Where the watcher's place is one
// that the edge has not come to yet, there are no items after a Beat. The slice is valid
// until the next call.
//
// Errors end the watch: log.PrunedError where the log no longer reaches back to the
// watcher's place, ErrClosed, ErrPrefix, and that of ctx.
func (w *Watcher) Next(ctx context.Context) ([]*Item, error) {
	w.Release()
	if !w.begun {
		w.begun = true
		return w.progress(), nil
	}
	beat := time.NewTimer(w.beat)
	defer beat.Stop()
	for {
		changed, err := w.look(ctx)
		if err != nil {
			return nil, err
		}
		if len(w.page) > 0 {
			w.h.metrics.events.Add(float64(len(w.page)))
			return w.page, nil
		}
		if changed == nil {
			continue
		}
		if w.within != 0 && w.pos >= w.within {
			return w.progress(), nil
		}
		select {
		case <-changed:
		case <-beat.C:
			if ahead, err := w.ahead(); ahead || err != nil {
				return nil, err
			}
			return w.progress(), nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// ahead reports whether the watcher's place is one that the edge has not come to.
func (w *Watcher) ahead() (bool, error) {
	w.h.mu.Lock()
	defer w.h.mu.Unlock()
	if w.h.closed {
		return false, ErrClosed
	}
	return w.h.log == nil || w.h.epoch != w.epoch || w.pos > w.h.ring.at, nil
}

// progress gives the watcher's place.
func (w *Watcher) progress() []*Item {
	w.within = 0
	w.page = append(w.page, &Item{op: event.Progress, epoch: w.epoch, index: w.pos, unitEnd: w.pos})
	return w.page
}

// look takes what there is after the watcher's place. It returns a channel to wait on if
// there is nothing.
func (w *Watcher) look(ctx context.Context) (<-chan struct{}, error) {
	h := w.h
	h.mu.Lock()
	switch {
	case h.closed:
		h.mu.Unlock()
		return nil, ErrClosed
	case h.log == nil || h.epoch < w.epoch:
		changed := h.changed
		h.mu.Unlock()
		return changed, nil
	case h.epoch > w.epoch:
		// Readers have gone over before the log was exchanged.
		w.epoch, w.pos, w.base, w.baseAt, w.within = h.epoch, h.ring.at, h.ring.tables, h.ring.at, 0
		h.mu.Unlock()
		w.page = append(w.page, &Item{op: event.Epoch, epoch: w.epoch, index: w.pos, unitEnd: w.pos})
		return nil, nil
	case w.pos >= h.ring.at:
		changed := h.changed
		h.mu.Unlock()
		return changed, nil
	}
	var b *block
	if w.pos >= h.ring.first {
		b = h.ring.after(w.pos)
	} else {
		b = h.cache.after(w.pos)
	}
	h.mu.Unlock()
	if b == nil {
		var changed <-chan struct{}
		var err error
		if b, changed, err = w.read(ctx); b == nil {
			return changed, err
		}
	}
	return nil, w.take(b)
}

// take takes what the filter lets through of a block, as much as fits into a page.
func (w *Watcher) take(b *block) error {
	size := 0
	for i := sort.Search(len(b.items), func(i int) bool { return b.items[i].index > w.pos }); i < len(b.items); i++ {
		item := &b.items[i]
		if len(w.page) >= pageItems || size >= pageBytes {
			return nil
		}
		lets, err := w.filter.lets(item)
		if err != nil {
			return err
		}
		w.pos = item.index
		if !lets {
			continue
		}
		w.page = append(w.page, item)
		size += item.Size()
		if w.within = item.unitEnd; w.within == item.index {
			w.within = 0
		}
	}
	w.pos, w.base, w.baseAt = b.last, b.to, b.last
	return nil
}

// readAhead is about how many bytes of blocks a watcher behind the ring reads at once.
const readAhead = 1 << 20

// read reads what comes after the watcher's place from the log, for whoever else is about
// there too. It returns a channel to wait on if the log is being exchanged.
func (w *Watcher) read(ctx context.Context) (*block, <-chan struct{}, error) {
	h := w.h
	select {
	case h.behind <- struct{}{}:
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
	defer func() { <-h.behind }()
	h.mu.Lock()
	l, epoch, first, changed := h.log, h.epoch, h.ring.first, h.changed
	b := h.cache.after(w.pos)
	h.mu.Unlock()
	if b != nil || l == nil || epoch != w.epoch || w.pos >= first {
		return b, nil, nil // look again
	}
	blocks, err := w.blocks(ctx, l, first)
	if errors.Is(err, edgelog.ErrClosed) || errors.Is(err, edgelog.ErrRenewed) || errors.Is(err, edgelog.ErrAhead) {
		return nil, changed, nil
	}
	if err != nil {
		return nil, nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.epoch == epoch {
		for _, b := range blocks {
			h.cache.push(b, h.c.RingBytes)
		}
	}
	return blocks[0], nil, nil
}

// blocks reads at least one block after the watcher's place, none that begins at or after
// another one.
func (w *Watcher) blocks(ctx context.Context, l *edgelog.Log, until millrace.Index) ([]*block, error) {
	if w.base == nil {
		var err error
		if w.baseAt, w.base, err = w.h.tablesAt(ctx, l, w.epoch, w.pos); err != nil {
			return nil, err
		}
	}
	r, err := l.Reader(w.baseAt)
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }() // it was only read
	var all []*block
	var weight int64
	for at, t := w.baseAt, w.base; ; {
		b, err := w.h.next(ctx, r, at, t)
		if err != nil {
			return nil, err
		}
		if at, t = b.last, b.to; at > w.pos {
			all = append(all, b)
			weight += b.weight
		}
		if len(all) > 0 && (at >= until || weight >= readAhead) {
			return all, nil
		}
	}
}
