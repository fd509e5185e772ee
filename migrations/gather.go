package migrations

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture/chunk"
)

// gathered waits for the batch that is being gathered, or gathers one. When ctx ends
// first, that goes on until the follower is closed.
func (f *follower) gathered(ctx context.Context) (*gathered, error) {
	if f.ahead == nil {
		f.gather(ctx)
	}
	if f.free != nil {
		close(f.free)
		f.free = nil
	}
	select {
	case t := <-f.ahead:
		f.ahead = nil
		return t, t.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// gather begins to gather a batch.
func (f *follower) gather(ctx context.Context) {
	if f.shown != nil {
		f.pending.Show(*f.shown)
		f.shown = nil
	}
	into := f.spare
	if f.spare = nil; into == nil {
		into = newBatch(f.byID)
	}
	interval := f.m.cfg.BatchInterval
	if f.hot {
		interval = 0
	}
	f.gatherer.mend = f.mend
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	ahead, free := make(chan *gathered, 1), make(chan struct{})
	f.ahead, f.free, f.stop = ahead, free, stop
	go func() {
		defer stop()
		ahead <- f.gatherer.gather(ctx, into, interval, free)
	}()
}

// mayGather reports whether a batch may be gathered while the one that ends at a place
// is committed. Not so where missing rows are read and put between the two, and where
// all that there is comes at once.
func (f *follower) mayGather(at *millrace.Checkpoint) bool {
	return !f.pausing && f.from.Gathers() && (f.sink.exact || f.horizon == 0 || at.Position.Token() < f.horizon)
}

// gatherer takes units from the capture and makes batches of them. While one batch is
// committed it gathers the next, so at most two are held. It is used by one goroutine
// at a time: gather is called by another one than all else is, and nothing of it is
// touched until that has ended.
type gatherer struct {
	m    *Migration
	from changes
	sink *sink
	at   *millrace.Checkpoint // behind the last unit that was taken
	hash millrace.UnitHash
	// pending and mend are told which transactions change what.
	pending *chunk.Pending
	mend    *mend
	adopt   adoption
	fence   atomic.Pointer[fence] // what is waited for, if anything
}

// gathered is a batch, and where it ends.
type gathered struct {
	batch  *batch
	at     *millrace.Checkpoint // behind its last unit
	units  int64
	passed *fence            // the one that it ends behind, if any
	single bool              // it is of one unit, whatever there is
	verify []*millrace.Entry // ranges to compare behind its commit
	err    error
}

const (
	// quietShare is the part of the batch interval without a change after which a
	// batch is not waited with that has as much as a commit is worth: a backlog has
	// come to its end. worthShare is how much that is, as a part of what a batch may
	// hold.
	quietShare = 10
	worthShare = 256
)

// gather takes units into an empty batch until the interval has passed since the first
// and the sink is free, there are enough, or one states what the source has: that is
// compared behind it. It waits for the first no longer than tendInterval.
func (g *gatherer) gather(ctx context.Context, into *batch, interval time.Duration, free <-chan struct{}) *gathered {
	t := &gathered{batch: into, at: g.at, single: g.adopt.single}
	idle, cancel := context.WithTimeout(ctx, tendInterval)
	defer cancel()
	more, err := g.next(ctx, idle, t, free)
	if err != nil || !more || t.single || !g.from.Gathers() {
		t.err = err
		return t
	}
	rest, over := context.WithCancel(ctx)
	defer over()
	timer := time.AfterFunc(interval, func() {
		select {
		case <-free:
		case <-rest.Done():
		}
		over()
	})
	defer timer.Stop()
	for rest.Err() == nil && !g.enough(t) {
		if more, t.err = g.stretch(ctx, rest, t, free); t.err != nil {
			return t
		}
		if !more && t.batch.size >= g.m.cfg.BatchBytes/worthShare {
			return t
		}
	}
	for more := interval == 0; more && !g.enough(t); { // what is there needs no time
		if more, t.err = g.next(ctx, rest, t, free); t.err != nil {
			return t
		}
	}
	return t
}

func (g *gatherer) enough(t *gathered) bool {
	return t.batch.size >= g.m.cfg.BatchBytes || len(t.verify) > 0 || t.passed != nil
}

// stretch takes what comes in a part of the interval. It reports whether anything did.
func (g *gatherer) stretch(ctx, rest context.Context, t *gathered, free <-chan struct{}) (some bool, err error) {
	until, cancel := context.WithTimeout(rest, g.m.cfg.BatchInterval/quietShare)
	defer cancel()
	for until.Err() == nil && !g.enough(t) {
		more, err := g.next(ctx, until, t, free)
		if err != nil || !more {
			return some, err
		}
		some = true
	}
	return some, nil
}

// next takes the next unit; it returns false where none comes before until ends.
func (g *gatherer) next(ctx, until context.Context, t *gathered, free <-chan struct{}) (bool, error) {
	u, err := g.from.Next(ctx, until)
	if err != nil || u == nil {
		return false, err
	}
	err = g.take(ctx, u, t, free)
	if closing := u.Body.Close(); err == nil {
		err = closing
	}
	return err == nil, err
}

// maxRun is how many bytes of a unit are read at once.
const maxRun = 1 << 20

// take takes a unit into the batch. What is too much for memory goes into the target's
// transaction once the sink is free; it ends no sooner than the unit does.
func (g *gatherer) take(ctx context.Context, u *millrace.Unit, t *gathered, free <-chan struct{}) error {
	at := *g.at
	g.hash.Reset()
	var keys [][]byte
	var all bool
	var end millrace.UnitEnd
	for last := false; !last; {
		run, err := u.Body.Next(maxRun)
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("%w: a unit has no end", millrace.ErrMalformed)
		}
		if err != nil {
			return err
		}
		for len(run) > 0 {
			var h millrace.Head
			if run, err = millrace.NextHead(run, &h); err != nil {
				return err
			}
			g.hash.Add(h.Table, h.Raw)
			at.Index++
			if h.Last {
				last, end = true, h.End
			}
			var e millrace.Entry
			switch h.Kind {
			case millrace.KindHeartbeat:
				continue
			case millrace.KindMessage:
				fence := g.fence.Load()
				is, err := fence.passedBy(&h)
				if err != nil {
					return err
				}
				if is {
					t.passed = fence
				}
				continue
			default:
				if err := millrace.DecodeEntry(h.Body, &e); err != nil {
					return err
				}
			}
			if h.Kind == millrace.KindVerify {
				t.verify = append(t.verify, cloneVerify(&e))
				continue
			}
			if h.Kind == millrace.KindSchema {
				if err := g.described(&at, e.Schema, t); err != nil {
					return err
				}
				continue
			}
			if err := t.batch.add(&e); err != nil {
				return err
			}
			if g.mend != nil {
				all = all || e.Kind == millrace.KindTruncate
				keys = append(keys, mendKey(e.Table, e.Key))
				if len(e.From) > 0 {
					keys = append(keys, mendKey(e.Table, e.From))
				}
			}
		}
		g.hash.Absorb()
		if !last && t.batch.size >= g.m.cfg.BatchBytes {
			select {
			case <-free:
			case <-ctx.Done():
				return ctx.Err()
			}
			if err := g.sink.apply(ctx, t.batch); err != nil {
				return err
			}
			t.batch.clear()
		}
	}
	if x := end.XID; x != 0 {
		xid := g.pending.Emitted(x)
		if g.mend != nil {
			g.mend.note(xid, keys, all)
		}
	}
	at.Chain = g.hash.Chain(g.at.Chain)
	at.Position, at.Time = u.Position, u.Time
	if fence := g.fence.Load(); fence != nil && g.from.Behind(fence) {
		t.passed = fence
	}
	g.at, t.at = &at, &at
	t.units++
	return nil
}
