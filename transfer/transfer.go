// Package transfer brings the units of one stream from its capture into its
// topic.
//
// It owns the publisher's reign: it takes the hold of the source, folds the
// topic to its end, begins a term of its own there, opens capture at the folded
// place and publishes from then on. It gives entries their indexes and units
// their chain, frames them into batches, appends one batch at a time, reads the
// topic back with a fold of its own, and writes the ledger.
//
// It promises that the source is told a position only after the fold of the
// topic has accepted the unit there, that nothing is left out, repeated or
// reordered on the way, that a publisher whose reign has ended stops, and that
// memory is bounded: one batch gathers while one is in flight, and the bytes
// that are published and not yet read back have a limit.
//
// What is captured it leaves to the Source, what becomes of the records to the
// readers of the topic. An error that a new attempt can mend gives the reign up
// and begins again with a new term; one that needs a person ends Run.
package transfer

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/control"
	"github.com/millrace-db/millrace/internal/finding"
	"github.com/millrace-db/millrace/internal/topic"
)

// ErrFenced occurs when another publisher has begun a reign over the stream.
// Nothing is lost: what this one had not read back is captured anew by the
// other. Mend: none if the other is wanted; otherwise end it, then start this
// one again.
var ErrFenced = errors.New("fenced: another publisher reigns over the stream")

// Source is a capture that was opened at a place. Next and Close are called by
// one goroutine, Confirm beside them.
type Source interface {
	// Next returns the next unit as soon as it is whole. Transfer closes its
	// Body.
	Next(ctx context.Context) (*millrace.Unit, error)
	// Confirm tells that everything up to a position is in the topic for good:
	// that of a unit that Next returned, or the one the source was opened at. It
	// must not block.
	Confirm(p millrace.Position)
	// Close ends the capture and returns when it has ended.
	Close() error
}

// Hold is the exclusive right to publish, as internal/control gives it.
type Hold interface {
	// Lost is closed when the right has gone.
	Lost() <-chan struct{}
	Close(ctx context.Context) error
}

// Ledger is where rows about what was published are kept. It is used by one
// goroutine at a time.
type Ledger interface {
	// Newest returns the stream's newest row, or nil.
	Newest(ctx context.Context) (*control.LedgerRow, error)
	Insert(ctx context.Context, row *control.LedgerRow) error
	// Prune deletes rows older than keep and keeps the newest.
	Prune(ctx context.Context, keep time.Duration) error
	// Mark keeps a place where the topic may begin, Marks returns them in the order of
	// their offsets, ThinMarks and DropMarks delete those that are not needed.
	Mark(ctx context.Context, m control.Mark) error
	Marks(ctx context.Context) ([]control.Mark, error)
	ThinMarks(ctx context.Context) error
	DropMarks(ctx context.Context, before millrace.Offset) error
	// DecideTrim notes a decision, unless a later publisher has written anything: then
	// it gives control.ErrDeposed.
	DecideTrim(ctx context.Context, t control.Trim) error
	Close(ctx context.Context) error
}

// Log is the topic; *topic.Topic is one. A Log is opened for each reign,
// because it takes no appends after a failed one.
type Log interface {
	Info(ctx context.Context) (topic.Info, error)
	Check(ctx context.Context) ([]finding.Finding, error)
	Append(ctx context.Context, value []byte, first millrace.Index, count uint32) (millrace.Offset, error)
	Read(ctx context.Context, from millrace.Offset) (*topic.Reader, error)
	DeleteBefore(ctx context.Context, offset millrace.Offset) (millrace.Offset, error)
	Close() error
}

// Config says what to transfer. Stream, OpenSource, SourceURL and Topic are
// needed; SourceURL and Topic not where the functions that use them are given.
type Config struct {
	// Stream is the row of the registry.
	Stream control.Stream
	// SourceURL is where hold and ledger are kept.
	SourceURL string
	// Topic says how to reach the topic.
	Topic topic.Config
	// OpenSource opens capture after a checkpoint. The source may live until
	// the context ends.
	OpenSource func(ctx context.Context, after *millrace.Checkpoint) (Source, error)

	// Warning says what is amiss at the source while the stream goes on, or
	// nothing. Status shows it. It may be called at any time. Default: nothing.
	Warning func() string

	// AcquireHold, OpenLedger and OpenLog replace those of internal/control and
	// internal/topic.
	AcquireHold func(ctx context.Context, publisher millrace.PublisherID) (Hold, error)
	OpenLedger  func(ctx context.Context) (Ledger, error)
	OpenLog     func(ctx context.Context) (Log, error)

	// Lease is how long another holder may show no life before it is ended.
	// Default: 10 s.
	Lease time.Duration
	// StateEvery and StateBytes say how often a state record is written: after
	// that time or that many bytes, whichever is first. Defaults: 1 min and
	// 64 MiB.
	StateEvery time.Duration
	StateBytes int64
	// LedgerEvery is the least time between two ledger rows, LedgerKeep the age
	// at which they are deleted. Defaults: 1 s and 30 days.
	LedgerEvery time.Duration
	LedgerKeep  time.Duration
	// Unread bounds the bytes that are published and not yet read back. One
	// batch may always be. Default: 32 MiB.
	Unread int64
	// Accepted is told the end of each complete unit, or of the last of several, that the
	// publisher's own fold has accepted, and where a reign begins. It must not block.
	// Default: nothing.
	Accepted func(index millrace.Index, chain millrace.Chain)
	// Retain says which records of the topic may go. The zero value keeps all.
	Retain Retain
	// Grace is how long a clean end waits until what was published is read
	// back. Default: 5 s.
	Grace time.Duration
	// FirstPause and LongestPause bound the time between two attempts.
	// Defaults: 100 ms and 10 s.
	FirstPause, LongestPause time.Duration
	// Key signs the records, if it is set. Trusted are the keys that must have signed
	// what is in the topic; nil asks for no signatures.
	Key     ed25519.PrivateKey
	Trusted *millrace.Keyring

	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

const losses = 5 // of the race for a term, one after the other, before giving up

// Transfer publishes one stream. Status may be called beside Run.
type Transfer struct {
	config  Config
	log     *slog.Logger
	metrics *metrics

	// phase and current are what Status shows: where Run is, and what the
	// current or last reign has accepted.
	phase   atomic.Pointer[phase]
	current atomic.Pointer[accepted]

	// seen is the newest place that a fold of this process accepted: the topic
	// must never end before it.
	seen *witness
	// warned tells that the topic's warnings were logged.
	warned bool

	// trims are what Trim asks of the reign; trim is what trimming has come to.
	trims chan trimAsk
	trim  trimState
}

// New checks the configuration and registers the metrics.
func New(config Config) (*Transfer, error) {
	c := config
	s := c.Stream
	if s.Name == "" || s.ID.IsZero() || s.Epoch == 0 || s.TopicID == "" {
		return nil, fmt.Errorf("configure transfer: stream %q has no ID, epoch or topic: run millrace init", s.Name)
	}
	if c.OpenSource == nil {
		return nil, errors.New("configure transfer: no source")
	}
	if c.SourceURL == "" && (c.AcquireHold == nil || c.OpenLedger == nil) {
		return nil, errors.New("configure transfer: no source URL")
	}
	setDefault(&c.Lease, 10*time.Second)
	setDefault(&c.StateEvery, time.Minute)
	setDefault(&c.StateBytes, 64<<20)
	setDefault(&c.LedgerEvery, time.Second)
	setDefault(&c.LedgerKeep, 30*24*time.Hour)
	setDefault(&c.Unread, 32<<20)
	setDefault(&c.Grace, 5*time.Second)
	setDefault(&c.FirstPause, 100*time.Millisecond)
	setDefault(&c.LongestPause, 10*time.Second)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.AcquireHold == nil {
		c.AcquireHold = func(ctx context.Context, p millrace.PublisherID) (Hold, error) {
			return acquireHold(ctx, config.SourceURL, &s, p, c.Lease, c.Logger)
		}
	}
	if c.OpenLedger == nil {
		c.OpenLedger = func(context.Context) (Ledger, error) { return newPGLedger(config.SourceURL, s) }
	}
	if c.Accepted == nil {
		c.Accepted = func(millrace.Index, millrace.Chain) {}
	}
	if c.OpenLog == nil {
		if c.Topic.Topic == "" {
			c.Topic.Topic = s.Topic
		}
		c.OpenLog = func(ctx context.Context) (Log, error) { return topic.Open(ctx, c.Topic) }
	}
	if err := c.Retain.complete(); err != nil {
		return nil, err
	}
	t := &Transfer{config: c, log: c.Logger.With("stream", s.Name), trims: make(chan trimAsk)}
	t.setPhase(PhaseStarting)
	var err error
	if t.metrics, err = newMetrics(c.Registerer, t); err != nil {
		return nil, err
	}
	return t, nil
}

func setDefault[T int64 | time.Duration](v *T, d T) {
	if *v <= 0 {
		*v = d
	}
}

// Run publishes until ctx ends, and then returns nil; or until it is fenced
// (ErrFenced), finds that a new epoch was begun (ErrEpoch), or an operator has to act (millrace.NeedsOperator). All other
// errors end a reign; after a pause the next one begins.
func (t *Transfer) Run(ctx context.Context) error {
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = t.config.FirstPause, t.config.LongestPause
	said := "" // the newest warning; its repeats are not worth a line each
	for lost := 0; ; {
		r, err := t.reign(ctx)
		switch {
		case errors.Is(err, ErrFenced), errors.Is(err, ErrEpoch):
			t.fail(PhaseFenced, err)
			return err
		case millrace.NeedsOperator(err):
			t.fail(PhaseStopped, err)
			return err
		case ctx.Err() != nil:
			t.setPhase(PhaseStopped)
			return nil //nolint:nilerr // the clean end; what broke off with it is no error
		case errors.Is(err, errLostRace):
			if lost++; lost >= losses {
				err = fmt.Errorf("%w: lost the race for a term %d times: is a second transfer with another source configured for this topic? %w", ErrFenced, lost, err)
				t.fail(PhaseFenced, err)
				return err
			}
		default:
			lost = 0
		}
		if r.progress() {
			pause.Reset()
			said = ""
		}
		wait := pause.NextBackOff()
		level := slog.LevelWarn
		if err.Error() == said {
			level = slog.LevelDebug
		}
		said = err.Error()
		t.log.Log(ctx, level, "reign ended, another attempt follows", "error", err, "pause", wait)
		t.fail(PhaseRetrying, err)
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// closeLogged closes what failed on its way out: there is nobody to return the
// error to, and the reign has one of its own.
func (t *Transfer) closeLogged(what string, c io.Closer) {
	if err := c.Close(); err != nil {
		t.log.Debug("close", "what", what, "error", err)
	}
}
