package transfer

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/control"
	"github.com/millrace-db/millrace/internal/kafkatest"
	"github.com/millrace-db/millrace/internal/topic"
)

// fleet is what edges have reported.
type fleet struct {
	mu      sync.Mutex
	readers []Reader
	err     error
}

func (f *fleet) set(readers ...Reader) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.readers = readers
}

func (f *fleet) read(context.Context) ([]Reader, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.readers, f.err
}

// trimming is the configuration of a publisher that writes a state record behind each
// batch, and lets go what is older than no time at all when it is asked to.
func (w *world) trimming(f *fleet) Config {
	config := w.config()
	config.StateEvery = time.Nanosecond
	config.Retain = Retain{Time: time.Nanosecond, Least: time.Nanosecond, Every: time.Hour, Readers: f.read}
	return config
}

// publish lets the source commit units, one after the other, so that there are about
// as many batches, state records and marks.
func (w *world) publish(n int) {
	w.t.Helper()
	for range n {
		w.commit(1)
		to := w.committed
		w.waitConfirmed(to)
		index := millrace.Index(0)
		for i := 1; i <= to; i++ {
			index += millrace.Index(w.make(i).Entries)
		}
		w.wait("a mark behind it", func() bool { return len(w.marks) > 0 && w.marks[len(w.marks)-1].Index >= index })
	}
}

// newestMark is the offset of the newest one. The lock is held.
func (w *world) newestMark() millrace.Offset {
	if len(w.marks) == 0 {
		return millrace.NoOffset
	}
	return w.marks[len(w.marks)-1].Offset
}

// place is where an edge stands: at the end of a batch.
type place struct {
	index  millrace.Index
	offset millrace.Offset
}

// places are those at which edges may stand, in the topic as it is.
func (w *world) places() []place {
	w.t.Helper()
	v := w.read()
	var all []place
	for i, r := range v.records {
		if r.Kind == millrace.RecordBatch {
			all = append(all, place{r.Last(), v.offsets[i]})
		}
	}
	return all
}

// start0 is where the topic begins.
func (w *world) start0() millrace.Offset {
	w.t.Helper()
	info, err := w.openTopic(w.stream.Topic).Info(testContext(w.t))
	if err != nil {
		w.t.Fatal(err)
	}
	return info.Start
}

// canGoOn tells whether an edge at a place finds the record that comes after it.
func (w *world) canGoOn(p place) error {
	w.t.Helper()
	reader, err := w.openTopic(w.stream.Topic).Read(testContext(w.t), p.offset+1)
	if err != nil {
		return err
	}
	defer reader.Close()
	_, err = reader.Next(testContext(w.t))
	return err
}

func trim(t testing.TB, r *running, request TrimRequest) *Trim {
	t.Helper()
	got, err := r.Trim(testContext(t), request)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// awaitMarks waits until the ledger has marks up to the topic's newest state record.
func (w *world) awaitMarks() {
	w.t.Helper()
	v := w.read()
	newest := v.notedStates[len(v.notedStates)-1]
	w.wait("marks", func() bool { return w.newestMark() >= newest })
}

// TestTrim: an edge that reports holds back what it needs; when it has come on, or is
// forgotten, records go, up to a state record that the ledger attests. A transfer that
// is started again on what is left goes on, and trims again.
func TestTrim(t *testing.T) {
	both(t, func(t *testing.T, brokers []string) {
		w := newWorld(t, brokers)
		f := new(fleet)
		r := w.start(w.trimming(f))
		w.publish(40)
		w.awaitMarks()
		all := w.places()
		behind, ahead := all[len(all)/2], all[len(all)-1]
		f.set(Reader{Name: "fra-1", Epoch: 1, Index: behind.index}, Reader{Name: "ams-1", Epoch: 1, Index: ahead.index + 1})

		if got := trim(t, r, TrimRequest{DryRun: true}); got.Done || !got.goes() || w.start0() != 0 || len(w.decided) != 0 {
			t.Errorf("dry run: %+v, topic begins at %v", got, w.start0())
		}
		got := trim(t, r, TrimRequest{})
		if !got.Done || got.To != w.start0() || !got.held() || len(got.Holders) != 1 || got.Holders[0].Edge != "fra-1" || got.ToIndex >= behind.index || got.Bytes == 0 {
			t.Errorf("trimmed to %v: %+v", w.start0(), got)
		}
		for _, p := range []place{behind, ahead} {
			if err := w.canGoOn(p); err != nil {
				t.Errorf("an edge at %v: %v", p, err)
			}
		}
		if s := r.Status(); s.Trim == nil || s.Trim.To != got.To || s.TrimProblem != "" {
			t.Errorf("status: %+v", s.Trim)
		}
		if got := trim(t, r, TrimRequest{}); got.Done || got.Start != w.start0() {
			t.Errorf("nothing more is to go: %+v", got)
		}
		w.checkEnd(40)

		// It is forgotten, and what stopped is known to be needed no more.
		f.set()
		w.publish(5)
		w.awaitMarks()
		got = trim(t, r, TrimRequest{})
		newest := w.rows[len(w.rows)-1].StateOffset
		if !got.Done || got.held() || w.start0() != got.To || got.To > newest || got.ToIndex <= behind.index {
			t.Errorf("trimmed to %v, the ledger attests %v: %+v", w.start0(), newest, got)
		}
		for _, m := range w.marks {
			if m.Offset < got.To {
				t.Errorf("a mark is left at %v", m.Offset)
			}
		}
		r.stop()

		w.commit(5)
		second := w.start(w.trimming(f))
		w.waitConfirmed(50)
		w.publish(5)
		w.awaitMarks()
		if again := trim(t, second, TrimRequest{}); !again.Done || again.To <= got.To || again.Start != got.To || again.StartIndex != got.ToIndex {
			t.Errorf("after a new start: %+v", again)
		}
		second.stop()
		w.checkEnd(55)
	})
}

// checkEnd compares the end of what is left of the topic with the source.
func (w *world) checkEnd(n int) {
	w.t.Helper()
	chain, index := millrace.NewChain(w.stream.ID, w.stream.Epoch), millrace.Index(0)
	for i := 1; i <= n; i++ {
		var u millrace.UnitHash
		var h millrace.Head
		for rest := w.payload(i); len(rest) > 0; index++ {
			var err error
			if rest, err = millrace.NextHead(rest, &h); err != nil {
				w.t.Fatal(err)
			}
			u.Add(h.Table, h.Raw)
		}
		chain = u.Chain(chain)
	}
	if v := w.read(); v.fold.Index() != index || v.fold.Chain() != chain {
		w.t.Errorf("topic ends at index %v chain %v, want %v %v", v.fold.Index(), v.fold.Chain().Short(), index, chain.Short())
	}
}

// TestTrimByItself: nobody has to ask, and edges that cannot be asked after hold
// everything.
func TestTrimByItself(t *testing.T) {
	w := newWorld(t, kafkatest.Fake(t))
	f := &fleet{err: errors.New("no reports")}
	config := w.trimming(f)
	config.Retain.Every = time.Millisecond
	r := w.start(config)
	w.publish(10)
	w.awaitMarks()
	w.wait("a look that fails", func() bool { return strings.Contains(r.Status().TrimProblem, "no reports") || !closeAndReopen(w) })
	if at := w.start0(); at != 0 {
		t.Errorf("the topic begins at %v although nobody knows what edges need", at)
	}
	f.mu.Lock()
	f.err = nil
	f.mu.Unlock()
	deadline := time.Now().Add(testLimit)
	for w.start0() == 0 && time.Now().Before(deadline) {
		w.publish(1)
	}
	if w.start0() == 0 {
		t.Errorf("topic begins at %v, %+v", w.start0(), r.Status())
	}
	// Records are deleted before the look that did it has ended.
	w.wait("a look that went well", func() bool {
		s := r.Status()
		return s.Trim != nil && s.Trim.At != nil && s.TrimProblem == "" || !closeAndReopen(w)
	})
}

// closeAndReopen wakes the world's waiters once more after a moment: what they wait for
// is not the world's own.
func closeAndReopen(w *world) bool {
	time.AfterFunc(10*time.Millisecond, func() { w.change(func() {}) })
	return true
}

// interrupted is a ledger whose decisions a test gets between.
type interrupted struct {
	memoryLedger
	decided func()
}

func (l interrupted) DecideTrim(ctx context.Context, t control.Trim) error {
	err := l.memoryLedger.DecideTrim(ctx, t)
	if err == nil {
		l.decided()
	}
	return err
}

// TestDeposedDoesNotTrim: a publisher that was stopped behind its decision, and whose
// successor has begun its reign meanwhile, deletes nothing; nor does one decide whose
// successor has written to the ledger.
func TestDeposedDoesNotTrim(t *testing.T) {
	both(t, func(t *testing.T, brokers []string) {
		w := newWorld(t, brokers)
		f := new(fleet)
		config := w.trimming(f)
		free(&config)
		var deleted atomic.Int64
		w.hook(&config, hooked{deleting: func() { deleted.Add(1) }})
		var second *running
		config.OpenLedger = func(context.Context) (Ledger, error) {
			return interrupted{memoryLedger{w}, func() {
				other := w.trimming(f)
				free(&other)
				second = w.start(other)
				w.wait("the successor", func() bool { return second.Ready() || !closeAndReopen(w) })
			}}, nil
		}
		first := w.start(config)
		w.publish(10)
		w.awaitMarks()
		got, err := first.Trim(testContext(t), TrimRequest{})
		if err == nil || got != nil && got.Done || deleted.Load() != 0 || w.start0() != 0 {
			t.Errorf("a deposed publisher trims: %+v, %v, %d deletions, topic begins at %v", got, err, deleted.Load(), w.start0())
		}
		if err := first.wait(); !errors.Is(err, ErrFenced) {
			t.Errorf("it ends with %v", err)
		}
		w.publish(5)
		w.awaitMarks()
		if got := trim(t, second, TrimRequest{}); !got.Done || w.start0() != got.To {
			t.Errorf("its successor does not trim: %+v", got)
		}
		second.stop()
		w.checkEnd(15)
		late := control.Trim{Stream: w.stream.Name, Epoch: 1, Term: 1, Offset: 1000}
		if err := (memoryLedger{w}).DecideTrim(testContext(t), late); !errors.Is(err, control.ErrDeposed) {
			t.Errorf("a late decision: %v", err)
		}
	})
}

// TestTrimCutOff: a publisher that dies between decision and deletion, or between the
// deletion and what follows, leaves nothing that is amiss.
func TestTrimCutOff(t *testing.T) {
	for name, after := range map[string]bool{"before the deletion": false, "after the deletion": true} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, kafkatest.Fake(t))
			f := new(fleet)
			config := w.trimming(f)
			cut := errors.New("the process was killed")
			w.hook(&config, hooked{delete: func(ctx context.Context, log *topic.Topic, offset millrace.Offset) (millrace.Offset, error) {
				if after {
					if _, err := log.DeleteBefore(ctx, offset); err != nil {
						return millrace.NoOffset, err
					}
				}
				return millrace.NoOffset, cut
			}})
			r := w.start(config)
			w.publish(10)
			w.awaitMarks()
			if _, err := r.Trim(testContext(t), TrimRequest{}); !errors.Is(err, cut) {
				t.Fatalf("got %v", err)
			}
			if s := r.Status(); !strings.Contains(s.TrimProblem, "Delete") {
				t.Errorf("status does not say what to look at: %q", s.TrimProblem)
			}
			marks := len(w.marks)
			r.stop()
			if marks < 5 || (w.start0() > 0) != after {
				t.Fatalf("%d marks, topic begins at %v", marks, w.start0())
			}
			second := w.start(w.trimming(f))
			w.publish(5)
			w.awaitMarks()
			if got := trim(t, second, TrimRequest{}); !got.Done || got.To != w.start0() {
				t.Errorf("%+v", got)
			}
			second.stop()
			w.checkEnd(15)
		})
	}
}

// TestForcedTrim: edges are passed over only where that is asked for, and then too the
// newest state record that the ledger attests stays.
func TestForcedTrim(t *testing.T) {
	w := newWorld(t, kafkatest.Fake(t))
	f := new(fleet)
	f.set(Reader{Name: "new", Epoch: 1})
	r := w.start(w.trimming(f))
	w.publish(10)
	w.awaitMarks()
	if got := trim(t, r, TrimRequest{}); got.Done || !got.held() {
		t.Errorf("a new edge does not hold what it reads: %+v", got)
	}
	got := trim(t, r, TrimRequest{Force: true})
	if newest := w.rows[len(w.rows)-1].StateOffset; !got.Done || !got.Forced || w.start0() != got.To || got.To > newest || !w.decided[0].Forced {
		t.Errorf("%+v, the ledger attests %v", got, newest)
	}
	f.set(Reader{Name: "ahead", Epoch: 2, Index: 1})
	if _, err := r.Trim(testContext(t), TrimRequest{}); !errors.Is(err, ErrNotReigning) {
		t.Errorf("an edge of a later epoch: %v", err)
	}
	r.stop()
	limited, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := r.Trim(limited, TrimRequest{}); !errors.Is(err, ErrNotReigning) {
		t.Errorf("a transfer that has ended: %v", err)
	}
}

// lagging is a ledger whose first answer is an old row.
type lagging struct {
	memoryLedger
	row  control.LedgerRow
	told *atomic.Bool
}

func (l lagging) Newest(ctx context.Context) (*control.LedgerRow, error) {
	if !l.told.Swap(true) {
		return &l.row, nil
	}
	return l.memoryLedger.Newest(ctx)
}

// TestTrimBesideRecovery: the ledger was read before the one who reigned has trimmed
// the topic past the state record that was the newest then.
func TestTrimBesideRecovery(t *testing.T) {
	w := newWorld(t, kafkatest.Fake(t))
	r := w.start(w.trimming(new(fleet)))
	w.publish(10)
	w.awaitMarks()
	old := w.rows[0]
	for _, row := range w.rows {
		if row.StateOffset != millrace.NoOffset {
			old = row
			break
		}
	}
	if got := trim(t, r, TrimRequest{}); !got.Done || got.To <= old.StateOffset {
		t.Fatalf("%+v, the old row attests %v", got, old.StateOffset)
	}
	r.stop()
	config := w.config()
	told := new(atomic.Bool)
	config.OpenLedger = func(context.Context) (Ledger, error) { return lagging{memoryLedger{w}, old, told}, nil }
	second := w.start(config)
	w.commit(5)
	w.waitConfirmed(15)
	second.stop()
	if !told.Load() {
		t.Error("the old row was not asked for")
	}
	w.checkEnd(15)

	// Records that are needed and gone still stop the stream.
	w.change(func() { w.rows, w.marks = []control.LedgerRow{old}, nil })
	if err := w.start(w.config()).wait(); !millrace.NeedsOperator(err) || !strings.Contains(err.Error(), fmt.Sprintf("needed from %v on", old.StateOffset)) {
		t.Errorf("got %v", err)
	}
}
