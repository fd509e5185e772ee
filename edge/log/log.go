package log

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace-db/millrace"
)

// Options of a Log. Dir must be set.
type Options struct {
	// Dir is where the logs of one stream are kept, one directory an epoch within
	// it. It is made if it is missing.
	Dir string
	// Retain is how old, by the source's clock, records grow before they are
	// dropped. They are dropped by segments, so some stay up to a sixteenth of it
	// longer. Default 168 h.
	Retain time.Duration
	// MaxBytes is how much the log may hold. The segment in use is never dropped, and
	// no unit is cut, so a unit that is larger takes more while it is the newest.
	// Default 10 GiB.
	MaxBytes int64
	// SegmentBytes is from which size on a segment is ended. Default a 32nd of
	// MaxBytes, at most 64 MiB.
	SegmentBytes int64
	// indexStep is smaller in tests.
	indexStep int64
	// Logger takes transitions; nil drops them.
	Logger *slog.Logger
	// Registerer takes metrics; nil drops them.
	Registerer prometheus.Registerer
}

func (o *Options) complete() error {
	if o.Dir == "" {
		return errors.New("open log: a directory must be given")
	}
	if o.Retain == 0 {
		o.Retain = 168 * time.Hour
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = 10 << 30
	}
	if o.SegmentBytes == 0 {
		o.SegmentBytes = max(1, min(o.MaxBytes/32, 64<<20))
	}
	if o.indexStep == 0 {
		o.indexStep = indexStep
	}
	if o.Retain < 0 || o.MaxBytes < 0 || o.SegmentBytes < 0 {
		return errors.New("open log: times and sizes must not be negative")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

// Log is the log of one epoch of a stream. Start, Append, Commit and Renew are the
// writer's, one goroutine at a time; everything else may be called by anyone at any
// time.
type Log struct {
	opts Options

	mu     sync.Mutex
	closed bool
	// changed is closed, and made anew, when something is shown, and at the end.
	changed chan struct{}
	// generation counts how often the log was begun anew or cut back.
	generation uint64
	// stream, epoch and dir are those of the newest Start; lock holds dir.
	stream millrace.StreamID
	epoch  millrace.Epoch
	dir    string
	lock   *os.File
	// segments are in order, each going on where the one before it ends. The last is
	// appended to.
	segments []*segment
	// index and chain are where what is shown ends.
	index millrace.Index
	chain millrace.Chain
	// time and topic are of the checkpoint there.
	time  time.Time
	topic string
	// fault is why the log cannot be written; nil if it can.
	fault error

	w       writer
	metrics *metrics
}

// Open returns a log that Start opens the files of.
func Open(o Options) (*Log, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	l := &Log{opts: o, changed: make(chan struct{})}
	l.metrics = newMetrics(l)
	return l, nil
}

// epochPrefix begins the names of the directories of epochs.
const epochPrefix = "epoch-"

func epochDir(root string, epoch millrace.Epoch) string {
	return filepath.Join(root, epochPrefix+strconv.FormatUint(uint64(epoch), 10))
}

// Forget removes the logs in a directory of epochs before the given one, of which no
// Log may be open.
func Forget(root string, before millrace.Epoch) error {
	entries, err := os.ReadDir(root)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("forget logs before epoch %v: %w", before, err)
	}
	var errs []error
	for _, e := range entries {
		text, ok := strings.CutPrefix(e.Name(), epochPrefix)
		epoch, err := strconv.ParseUint(text, 10, 64)
		if ok && err == nil && e.IsDir() && millrace.Epoch(epoch) < before {
			errs = append(errs, os.RemoveAll(filepath.Join(root, e.Name())))
		}
	}
	return errors.Join(errs...)
}

// Status says what a log holds.
type Status struct {
	Stream millrace.StreamID
	Epoch  millrace.Epoch
	// Oldest is the first index held and Newest the last; both 0 if there is none.
	Oldest, Newest millrace.Index
	// Begin is the index that the log begins behind, End the one that it ends at, of
	// which Chain is the chain and Time the source's time; all are zero if there is no
	// segment. TopicID is Kafka's identity of the topic that the records came from.
	Begin, End millrace.Index
	Chain      millrace.Chain
	Time       time.Time
	TopicID    string
	// Bytes is the size of the segments, and Segments how many there are.
	Bytes    int64
	Segments int
	// Fault is why the log cannot be written; nil if it can.
	Fault error
}

// Status returns what the log holds.
func (l *Log) Status() Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := Status{Stream: l.stream, Epoch: l.epoch, Segments: len(l.segments), Bytes: l.bytesLocked(), Fault: l.fault}
	if s.Segments > 0 {
		s.Begin, s.End, s.Chain, s.Time, s.TopicID = l.segments[0].begin.index, l.index, l.chain, l.time, l.topic
	}
	if s.Segments > 0 && l.index > l.segments[0].begin.index {
		s.Oldest, s.Newest = l.segments[0].begin.index+1, l.index
	}
	return s
}

func (l *Log) bytesLocked() int64 {
	var n int64
	for _, s := range l.segments {
		n += s.end
	}
	return n
}

// Changed returns a channel that is closed when something more is shown, or the log is
// closed.
func (l *Log) Changed() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.changed
}

// tellLocked wakes those who wait for a change.
func (l *Log) tellLocked() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// Close gives the files up. Readers get ErrClosed. The writer must have ended.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	l.closed = true
	close(l.changed)
	l.metrics.unregister()
	err := l.w.close()
	if l.lock != nil {
		err = errors.Join(err, l.lock.Close())
	}
	l.lock = nil
	return err
}
