package watch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace-db/millrace"
	edgelog "github.com/millrace-db/millrace/edge/log"
)

// Config of a Hub. Log must be set.
type Config struct {
	// Log returns the log of readers' epoch, nil where there is none at the moment.
	// When that log is closed it is asked again. It must not show what readers cannot
	// see yet.
	Log func() *edgelog.Log
	// Checkpoint returns what the store has that readers use; nil for nothing. It saves
	// reading the log for schemas, and may be left out.
	Checkpoint func(ctx context.Context) (*millrace.Checkpoint, error)
	// Holds says which part of the stream the edge holds, nil for all of it; may be left
	// out.
	Holds func() *millrace.Filter
	// RingBytes is how much of the newest part of the log is held decoded, and again
	// for watchers that are behind it. The newest record is always held. Default 16 MiB.
	RingBytes int64
	// MaxWatchers is how many there may be. Default 1,000.
	MaxWatchers int
	// Behind is how many watchers that are behind the ring read the log at once.
	// Default 4.
	Behind int
	// Logger takes transitions; nil drops them.
	Logger *slog.Logger
	// Registerer takes metrics; nil drops them.
	Registerer prometheus.Registerer
}

func (c *Config) complete() error {
	if c.Log == nil {
		return errors.New("make watch: a log must be given")
	}
	if c.RingBytes == 0 {
		c.RingBytes = 16 << 20
	}
	if c.MaxWatchers == 0 {
		c.MaxWatchers = 1000
	}
	if c.Behind == 0 {
		c.Behind = 4
	}
	if c.RingBytes < 0 || c.MaxWatchers < 0 || c.Behind < 0 {
		return errors.New("make watch: sizes and numbers must not be negative")
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

// Hub is where watchers of one stream are told from. Its methods may be called by anyone
// at any time.
type Hub struct {
	c       Config
	forms   forms
	metrics *metrics
	// behind bounds the watchers that read the log; a place is taken by sending.
	behind chan struct{}

	mu     sync.Mutex
	closed bool
	// changed is closed, and made anew, when any of what follows changes.
	changed  chan struct{}
	watchers int
	// log is what is read, nil while there is none; epoch is that of ring and cache.
	log   *edgelog.Log
	epoch millrace.Epoch
	ring  ring
	cache cache
	// stop ends the reading of the tail, nil while there are no watchers; ended is
	// closed when it has ended.
	stop  context.CancelFunc
	ended chan struct{}
}

// New returns a hub, which reads nothing while it has no watchers.
func New(c Config) (*Hub, error) {
	if err := c.complete(); err != nil {
		return nil, err
	}
	h := &Hub{c: c, behind: make(chan struct{}, c.Behind), changed: make(chan struct{})}
	h.metrics = newMetrics(h)
	return h, nil
}

// Close ends all watches.
func (h *Hub) Close() error {
	h.mu.Lock()
	closed, stop, ended := h.closed, h.stop, h.ended
	h.closed = true
	if !closed {
		h.tellLocked()
	}
	h.mu.Unlock()
	if stop != nil {
		stop()
		<-ended
	}
	if !closed {
		h.metrics.unregister()
	}
	return nil
}

// tellLocked wakes those who wait for a change.
func (h *Hub) tellLocked() {
	close(h.changed)
	h.changed = make(chan struct{})
}

// join counts a watcher, and begins to read if it is the first one.
func (h *Hub) join() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.closed:
		return ErrClosed
	case h.watchers >= h.c.MaxWatchers:
		return fmt.Errorf("%w: there are %d", ErrTooMany, h.watchers)
	}
	h.watchers++
	if h.stop == nil {
		ctx, cancel := context.WithCancel(context.Background())
		before, ended := h.ended, make(chan struct{})
		h.stop, h.ended = cancel, ended
		go func() {
			defer close(ended)
			if before != nil {
				<-before
			}
			h.tail(ctx)
		}()
	}
	return nil
}

// leave takes a watcher out, and ends the reading with the last one.
func (h *Hub) leave() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.watchers--; h.watchers > 0 || h.closed {
		return
	}
	h.stop()
	h.stop = nil
	h.log, h.ring, h.cache = nil, ring{}, cache{}
}

// How long to wait for a log that is not to be had.
const (
	retryMin = 10 * time.Millisecond
	retryMax = time.Second
)

// tail reads the newest part of the log until ctx ends.
func (h *Hub) tail(ctx context.Context) {
	wait := retryMin
	var told string
	for {
		began := time.Now()
		err := h.follow(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > retryMax {
			wait = retryMin
		}
		// That a log is closed, begun anew or cut is its ordinary life.
		ordinary := errors.Is(err, edgelog.ErrClosed) || errors.Is(err, edgelog.ErrRenewed) || errors.Is(err, edgelog.ErrAhead) || errors.Is(err, edgelog.ErrPruned)
		if !ordinary && err.Error() != told {
			told = err.Error()
			h.c.Logger.Warn("watchers wait for the log", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		wait = min(2*wait, retryMax)
	}
}

// errNoLog tells that there is no log at the moment.
var errNoLog = fmt.Errorf("there is no log: %w", edgelog.ErrClosed)

// follow reads one log until an error.
func (h *Hub) follow(ctx context.Context) error {
	l := h.c.Log()
	if l == nil {
		return errNoLog
	}
	r, err := h.attach(ctx, l)
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }() // it was only read
	h.mu.Lock()
	at, t := h.ring.at, h.ring.tables
	h.mu.Unlock()
	for {
		b, err := h.next(ctx, r, at, t)
		if err != nil {
			return err
		}
		at, t = b.last, b.to
		h.mu.Lock()
		if ctx.Err() != nil {
			h.mu.Unlock()
			return ctx.Err()
		}
		h.ring.push(b, h.c.RingBytes)
		h.tellLocked()
		h.mu.Unlock()
	}
}

// next decodes the next batch that has anything after an index, at which there are the
// given tables or, if the reader stands before it, were a little later.
func (h *Hub) next(ctx context.Context, r *edgelog.Reader, after millrace.Index, t tables) (*block, error) {
	for {
		record, err := r.Next(ctx)
		if err != nil {
			return nil, err
		}
		if record.Header.Kind != millrace.RecordBatch || record.Header.Last() <= after {
			continue
		}
		b, err := h.forms.decode(record, r.Unit(), t, r.UnitEnd)
		if err != nil {
			return nil, err
		}
		h.metrics.records.Inc()
		b.cut(after)
		return b, nil
	}
}

// cut takes away what is not after an index.
func (b *block) cut(after millrace.Index) {
	if after <= b.before {
		return
	}
	b.before = after
	for len(b.items) > 0 && b.items[0].index <= after {
		b.items = b.items[1:]
	}
}

// attach makes a log the one that is told from, and returns a reader at the ring's end:
// where that was before, if the log goes on from there.
func (h *Hub) attach(ctx context.Context, l *edgelog.Log) (*edgelog.Reader, error) {
	epoch := l.Status().Epoch
	h.mu.Lock()
	at, same := h.ring.at, h.log != nil && h.epoch == epoch
	h.mu.Unlock()
	if same {
		r, err := l.Reader(at)
		if err == nil || !errors.Is(err, edgelog.ErrPruned) {
			h.use(ctx, l, epoch, nil)
			return r, err
		}
	}
	at, err := l.End()
	if err != nil {
		return nil, err
	}
	from, t, err := h.tablesAt(ctx, l, epoch, at)
	if err != nil {
		return nil, err
	}
	r, err := l.Reader(from)
	if err != nil {
		return nil, err
	}
	if l.Status().Epoch != epoch {
		return nil, errors.Join(edgelog.ErrRenewed, r.Close())
	}
	h.use(ctx, l, epoch, &ring{first: from, at: from, tables: t})
	return r, nil
}

// use makes a log the one that is told from, with another ring unless it is nil.
func (h *Hub) use(ctx context.Context, l *edgelog.Log, epoch millrace.Epoch, anew *ring) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if ctx.Err() != nil {
		return // the last watcher has left meanwhile, and taken the ring along
	}
	h.log = l
	if anew == nil {
		return
	}
	if h.epoch != epoch {
		h.cache = cache{}
	}
	h.epoch, h.ring = epoch, *anew
	h.tellLocked()
}

// tablesAt returns the tables at the newest end of a unit that is not after an index and
// at which a batch ended, and that place. Where nothing changed a schema in the segment,
// that is known from the catalogs on either side of it; else it is read.
func (h *Hub) tablesAt(ctx context.Context, l *edgelog.Log, epoch millrace.Epoch, after millrace.Index) (millrace.Index, tables, error) {
	begin, next, err := l.Around(after)
	if err != nil {
		return 0, nil, err
	}
	if begin.Epoch != epoch {
		return 0, nil, edgelog.ErrRenewed
	}
	t, err := h.forms.of(epoch, &begin.Catalog)
	if err != nil {
		return 0, nil, err
	}
	if next == nil && h.c.Checkpoint != nil {
		if next, err = h.c.Checkpoint(ctx); err != nil {
			return 0, nil, err
		}
		if next != nil && (next.Epoch != epoch || next.Index < after) {
			next = nil
		}
	}
	r, err := l.Reader(after)
	if err != nil {
		return 0, nil, err
	}
	from, _ := r.From()
	if err := r.Close(); err != nil {
		return 0, nil, err
	}
	if from == begin.Index || next != nil && sameSchemas(&begin.Catalog, &next.Catalog) {
		return from, t, nil
	}
	t, err = h.scan(ctx, l, epoch, begin.Index, from, t)
	return from, t, err
}

// scan reads a part of the log for what changes the tables, from one end of a unit to
// another.
func (h *Hub) scan(ctx context.Context, l *edgelog.Log, epoch millrace.Epoch, from, to millrace.Index, t tables) (tables, error) {
	r, err := l.Reader(from)
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }() // it was only read
	var buf []byte
	for {
		if at, _ := r.At(); at >= to {
			return t, nil
		}
		record, err := r.Next(ctx)
		if err != nil {
			return nil, err
		}
		if record.Header.Kind != millrace.RecordBatch {
			continue
		}
		batch, err := millrace.DecodeRecord(record.Value, buf)
		if err != nil {
			return nil, fmt.Errorf("%w: batch from index %v on: %w", errRecord, record.Header.First, err)
		}
		if t, err = h.forms.changes(batch, r.Unit(), t); err != nil {
			return nil, fmt.Errorf("%w: batch from index %v on: %w", errRecord, record.Header.First, err)
		}
		if cap(batch.Payload) > cap(buf) && len(record.Value) < len(batch.Payload) {
			buf = batch.Payload[:0]
		}
	}
}
