package applier

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge"
)

// stopError is an error that only an operator mends.
type stopError string

func (e stopError) Error() string { return string(e) }
func (stopError) Unwrap() error   { return millrace.ErrStop }

var (
	// ErrSourceGone occurs when the source no longer has the record that comes
	// after the checkpoint: the topic was emptied, trimmed, or is shorter than
	// what was applied. A Source wraps it. Mend: a store from an image or, where
	// records were lost, a new epoch.
	ErrSourceGone error = stopError("source lacks the records after the checkpoint")

	// ErrOtherTopic occurs when the topic is not the one that the checkpoint
	// was read from, although it has its name: it was deleted and made again, or
	// is a mirror. Mend: a new epoch, or a new store if the topic is the
	// stream's own.
	ErrOtherTopic error = stopError("another topic under the same name")

	// ErrOtherEpoch occurs when the store holds another epoch than the one that
	// is to be applied. Mend: move the store away and start the edge again.
	ErrOtherEpoch error = stopError("store of another epoch")
)

// Source gives the records of one topic from a place on. It is used by one
// goroutine. Its errors are taken for temporary, and it is opened anew, unless
// millrace.NeedsOperator says otherwise.
type Source interface {
	// TopicID returns the identity that Kafka gave the topic when it was made.
	TopicID() string
	// Next waits for the next record. The value belongs to the caller.
	Next(ctx context.Context) (millrace.Offset, []byte, error)
	// Close releases what the source holds.
	Close() error
}

// Log keeps the accepted records beside the store. Nothing that goes wrong with it
// reaches the applier: the store goes on without it. Its methods are called by one
// goroutine at a time.
type Log interface {
	// Start begins at the store's checkpoint, or at the beginning of an epoch, and
	// forgets what was appended and not committed. It returns the checkpoint after
	// which records are to be read: that one, or an earlier one of the same history
	// that the log ends at. Then what lies between is appended and committed first.
	Start(at *millrace.Checkpoint) *millrace.Checkpoint
	// Append takes a record that the fold has accepted, decoded and as it came; whole
	// tells that a batch ends with its unit. Nothing of it may be shown yet.
	Append(offset millrace.Offset, value []byte, r *millrace.Record, whole bool)
	// Commit tells that the store has committed the units up to at.
	Commit(at *millrace.Checkpoint)
	// Renew begins anew at the store's checkpoint: what lies between cannot be read.
	Renew(at *millrace.Checkpoint)
}

// Config of an Applier. Store and OpenSource must be set.
type Config struct {
	// Store is where the rows go; it is open for writing.
	Store *edge.Store
	// OpenSource opens the source at the record after the one that a checkpoint names;
	// nil stands for the first one, as NoOffset does where offsets count. It is called
	// again after every error.
	OpenSource func(ctx context.Context, after *millrace.Checkpoint) (Source, error)
	// Log takes the accepted records; nil for none.
	Log Log
	// Stream and Epoch are what the records must belong to. Zero takes what the
	// store holds or, if it is new, what the first record of the topic says.
	Stream millrace.StreamID
	Epoch  millrace.Epoch
	// Trusted are the keys that must have signed the records; nil asks for no
	// signatures.
	Trusted *millrace.Keyring
	// Stall is how long the rest of a unit may take before the transaction is
	// given up and reading begins again at the checkpoint. It doubles, up to 64
	// times, while nothing else is applied. Default 10 s.
	Stall time.Duration
	// RetryMin and RetryMax bound the time between two attempts after an error
	// that may pass. Default 100 ms and 10 s.
	RetryMin, RetryMax time.Duration
	// QueueBytes bounds what waits between reading and writing. Default 32 MiB;
	// one record may be larger by itself.
	QueueBytes int64
	// CommitBytes is how much is gathered into one commit, and FlushBytes how
	// much of it is held to be sorted, up to the record that goes over it.
	// Default 16 MiB and 8 MiB. LMDB itself holds up to 530 MB of changed pages
	// of a unit that is larger.
	CommitBytes, FlushBytes int64
	// Logger takes transitions; nil drops them.
	Logger *slog.Logger
	// Registerer takes metrics; nil drops them.
	Registerer prometheus.Registerer
}

// queueRecords bounds the number of records that wait.
const queueRecords = 256

func (c *Config) complete() error {
	if c.Store == nil || c.OpenSource == nil {
		return errors.New("make applier: store and source must be given")
	}
	setDefault(&c.Stall, 10*time.Second)
	setDefault(&c.RetryMin, 100*time.Millisecond)
	setDefault(&c.RetryMax, 10*time.Second)
	setDefault(&c.QueueBytes, 32<<20)
	setDefault(&c.CommitBytes, 16<<20)
	setDefault(&c.FlushBytes, 8<<20)
	if c.Stall < 0 || c.RetryMin < 0 || c.RetryMax < c.RetryMin || c.QueueBytes < 0 || c.CommitBytes < 0 || c.FlushBytes < 0 {
		return errors.New("make applier: times and sizes must not be negative, nor the longest retry shorter than the shortest")
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

func setDefault[T comparable](v *T, value T) {
	var zero T
	if *v == zero {
		*v = value
	}
}

// Applier applies one stream to one store. Run is called once; Status at any
// time by anyone.
type Applier struct {
	config  Config
	status  status
	metrics *metrics
}

// New makes an applier. It returns edge.ErrOtherStream if the store holds
// another stream than the one in the configuration.
func New(c Config) (*Applier, error) {
	if err := c.complete(); err != nil {
		return nil, err
	}
	if id := c.Store.Stream(); !id.IsZero() && !c.Stream.IsZero() && id != c.Stream {
		return nil, fmt.Errorf("make applier: %w: store %s holds %v, wanted is %v", edge.ErrOtherStream, c.Store.Dir(), id, c.Stream)
	}
	a := &Applier{config: c}
	a.metrics = newMetrics(a)
	return a, nil
}

// Run applies records until ctx ends, and then returns nil, or until something
// is wrong that only an operator mends, and then returns that. It commits what
// is complete before it returns. Errors that may pass are logged once and
// retried; Status shows them.
func (a *Applier) Run(ctx context.Context) error {
	defer a.metrics.unregister()
	p := policy{config: &a.config}
	for {
		began := a.config.Store.Index()
		err := a.runOnce(ctx, &p)
		if ctx.Err() != nil {
			a.status.stop(nil)
			return nil
		}
		wait, err := p.after(err, began, a.config.Store.Index())
		if err != nil {
			a.status.stop(err)
			return err
		}
		a.metrics.restarts.Inc()
		a.status.wait(p.last)
		if p.news {
			a.config.Logger.Warn("applier begins again at its checkpoint", "error", p.last, "index", a.config.Store.Index(), "wait", wait)
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// errStalled ends an attempt whose open unit does not go on.
var errStalled = errors.New("the rest of a unit does not come")

// policy decides what follows from the end of an attempt. It holds what earlier
// attempts have left to know.
type policy struct {
	config *Config
	// doubted is the index at which an error was met that is believed only when
	// it comes twice; second tells that it was.
	doubted millrace.Index
	second  bool
	// careful makes the next attempt commit batch by batch, so that it ends
	// right before the entry that cannot be applied.
	careful bool
	// fails and stalls count attempts in a row that brought nothing.
	fails, stalls int
	// last is the newest error, news whether it differs from the one before.
	last error
	news bool
}

// after takes the error of an attempt that went from one index to another. It
// returns how long to wait for the next one, or the error to stop with.
func (p *policy) after(err error, from, to millrace.Index) (time.Duration, error) {
	moved := to > from
	if moved {
		p.fails, p.stalls = 0, 0
	}
	p.news = p.last == nil || moved || p.last.Error() != err.Error()
	p.last = err
	switch {
	case errors.Is(err, errStalled):
		p.stalls++
		return 0, nil
	case errors.Is(err, edge.ErrInconsistent) && !p.careful:
		p.careful = true
		return 0, nil
	case errors.Is(err, errRefetch):
		// What was read may have been altered on its way: read it once more.
		if p.second && p.doubted == to {
			return 0, err
		}
		p.doubted, p.second = to, true
		return 0, nil
	case millrace.NeedsOperator(err):
		return 0, err
	}
	p.fails++
	wait := p.config.RetryMin << min(p.fails-1, 20)
	return min(max(wait, p.config.RetryMin), p.config.RetryMax), nil
}

// stall returns how long the rest of a unit may take in the next attempt.
func (p *policy) stall() time.Duration { return p.config.Stall << min(p.stalls, 6) }

// runOnce reads from the checkpoint on until something ends it. What was read
// until then and is complete has been committed.
func (a *Applier) runOnce(ctx context.Context, p *policy) error {
	a.status.connect()
	f := &fetcher{config: &a.config, metrics: a.metrics}
	if err := f.start(ctx); err != nil {
		return err
	}
	err := a.read(ctx, f, p)
	if f.refill != nil && ctx.Err() == nil && (unfit(err) || millrace.NeedsOperator(err)) {
		// The log alone wants these records.
		a.config.Log.Renew(f.refill)
		return fmt.Errorf("the log cannot be filled up and begins anew: %s", err.Error()) // not what it wraps: it stops nothing
	}
	return err
}

// unfit tells that an error is of the records that were read, or of their being gone.
func unfit(err error) bool {
	for _, kind := range []error{ErrSourceGone, errRefetch, millrace.ErrDiverged, millrace.ErrForeign, millrace.ErrSignature} {
		if errors.Is(err, kind) {
			return true
		}
	}
	return false
}

// read opens the source and reads it until something ends it.
func (a *Applier) read(ctx context.Context, f *fetcher, p *policy) error {
	src, err := a.config.OpenSource(ctx, f.after)
	if err != nil {
		return fmt.Errorf("open source after offset %v: %w", f.offset(), err)
	}
	err = a.pump(ctx, f, src, p)
	if s, ok := src.(Suspect); ok && ctx.Err() == nil && untrue(err, p) {
		err, p.careful = s.Reject(err), false
	}
	if cerr := src.Close(); err == nil && cerr != nil {
		err = fmt.Errorf("close source: %w", cerr)
	}
	return err
}

// pump runs both sides of the queue until both have ended.
func (a *Applier) pump(ctx context.Context, f *fetcher, src Source, p *policy) error {
	if err := f.meet(src); err != nil {
		return err
	}
	if f.fold != nil {
		a.status.following(f.loading)
	}
	fetchCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	q := newQueue(a.config.QueueBytes)
	written := make(chan error, 1)
	go func() {
		w := &writer{config: &a.config, status: &a.status, stall: p.stall(), careful: p.careful, full: errors.Is(p.last, edge.ErrFull)}
		err := w.run(q)
		if err != nil {
			cancel()
		}
		written <- err
	}()
	fetched := f.run(fetchCtx, src, q)
	q.close()
	if err := <-written; err != nil {
		return err
	}
	return fetched
}
