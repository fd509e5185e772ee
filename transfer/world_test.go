package transfer

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/control"
	"github.com/millrace-db/millrace/internal/kafkatest"
	"github.com/millrace-db/millrace/internal/pgtest"
	"github.com/millrace-db/millrace/internal/topic"
)

func TestMain(m *testing.M) { kafkatest.Main(m, pgtest.StopShared) }

const testLimit = 2 * time.Minute // a broker that comes back takes long on a loaded machine

func testContext(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testLimit)
	t.Cleanup(cancel)
	return ctx
}

// world is all that one stream has to do with: a source whose units are made
// from their number, a hold, a ledger, and a topic on real or in-process
// brokers. Publishers may be many.
type world struct {
	t       testing.TB
	brokers []string
	stream  control.Stream

	mu        sync.Mutex
	changed   chan struct{} // closed and replaced at each change
	committed int           // units that the source has
	confirmed int           // the highest unit that was confirmed
	opened    int           // times that the source was opened
	make      func(n int) *millrace.Unit
	rows      []control.LedgerRow
	marks     []control.Mark
	marked    map[millrace.Offset]time.Time // when
	decided   []control.Trim
	ledgerErr error
	held      bool
}

func newWorld(t testing.TB, brokers []string) *world {
	t.Helper()
	w := &world{t: t, brokers: brokers, changed: make(chan struct{}), make: smallUnit}
	name := kafkatest.Topic(t)
	log := w.openTopic(name)
	if err := log.Create(testContext(t), 1); err != nil {
		t.Fatal(err)
	}
	info, err := log.Info(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	w.stream = control.Stream{Name: "bank", ID: millrace.StreamID{1, 2, 3}, Epoch: 1, Capture: "wal", Topic: name, TopicID: info.ID, Slot: "millrace_bank"}
	return w
}

func (w *world) openTopic(name string) *topic.Topic {
	w.t.Helper()
	log, err := topic.Open(testContext(w.t), topic.Config{Brokers: w.brokers, Topic: name})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = log.Close() })
	return log
}

// change alters the world and wakes whoever waits for it.
func (w *world) change(do func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	do()
	close(w.changed)
	w.changed = make(chan struct{})
}

// wait returns when the world is as cond, which is called with the lock held,
// wants it.
func (w *world) wait(what string, cond func() bool) {
	w.t.Helper()
	if err := w.await(testContext(w.t), cond); err != nil {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.t.Fatalf("wait for %s: %v; committed %d, confirmed %d, opened %d, %d ledger rows", what, err, w.committed, w.confirmed, w.opened, len(w.rows))
	}
}

func (w *world) await(ctx context.Context, cond func() bool) error {
	for {
		w.mu.Lock()
		ok, changed := cond(), w.changed
		w.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (w *world) commit(n int) { w.change(func() { w.committed += n }) }
func (w *world) waitConfirmed(n int) {
	w.t.Helper()
	w.wait(fmt.Sprintf("unit %d to be confirmed", n), func() bool { return w.confirmed >= n })
}

func position(n int) millrace.Position {
	return millrace.Position{Mode: millrace.ModeWAL, SystemID: 7, Timeline: 1, Slot: "millrace_bank", LSN: millrace.LSN(n)}
}

func unitTime(n int) time.Time { return time.Unix(1_700_000_000+int64(n), 0).UTC() }

// unitOf makes a unit with the given sizes of rows. Its content follows from its
// number.
func unitOf(n int, sizes []int) *millrace.Unit {
	var w millrace.UnitWriter
	random := rand.New(rand.NewPCG(uint64(n), 1))
	for i, size := range sizes {
		row := binary.BigEndian.AppendUint64(nil, uint64(n))
		for len(row) < size {
			row = binary.BigEndian.AppendUint64(row, random.Uint64())
		}
		table := millrace.TableID(16384 + random.IntN(3))
		key := binary.BigEndian.AppendUint64(nil, uint64(i))
		var err error
		if random.IntN(5) == 0 {
			err = w.Delete(table, key)
		} else {
			err = w.Put(table, key, nil, row, 0)
		}
		if err != nil {
			panic(err)
		}
	}
	payload, err := w.Finish(millrace.UnitEnd{Time: unitTime(n), Token: uint64(n), XID: uint32(n)})
	if err != nil {
		panic(err)
	}
	return millrace.NewUnit(position(n), unitTime(n), uint64(len(sizes)), payload)
}

func smallUnit(n int) *millrace.Unit {
	sizes := make([]int, 1+n%4)
	for i := range sizes {
		sizes[i] = 50
	}
	return unitOf(n, sizes)
}

// source is a capture of the world's units.
type source struct {
	w    *world
	next int
}

func (w *world) openSource(_ context.Context, after *millrace.Checkpoint) (Source, error) {
	if after.TopicID != w.stream.TopicID {
		return nil, fmt.Errorf("checkpoint names topic %q", after.TopicID)
	}
	var err error
	w.change(func() {
		w.opened++
		if n := int(after.Position.LSN); n < w.confirmed {
			err = fmt.Errorf("%w: asked to start after unit %d, and %d is confirmed: what is between is lost", millrace.ErrStop, n, w.confirmed)
		}
	})
	return &source{w: w, next: int(after.Position.LSN) + 1}, err
}

func (s *source) Next(ctx context.Context) (*millrace.Unit, error) {
	if err := s.w.await(ctx, func() bool { return s.w.committed >= s.next }); err != nil {
		return nil, err
	}
	s.next++
	return s.w.make(s.next - 1), nil
}

func (s *source) Confirm(p millrace.Position) {
	s.w.change(func() { s.w.confirmed = max(s.w.confirmed, int(p.LSN)) })
}

func (s *source) Close() error { return nil }

// memoryLedger keeps the world's rows.
type memoryLedger struct{ w *world }

func (l memoryLedger) Newest(context.Context) (*control.LedgerRow, error) {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	if len(l.w.rows) == 0 {
		return nil, nil
	}
	row := l.w.rows[len(l.w.rows)-1]
	return &row, nil
}

func (l memoryLedger) Insert(_ context.Context, row *control.LedgerRow) (err error) {
	l.w.change(func() {
		if err = l.w.ledgerErr; err == nil {
			l.w.rows = append(l.w.rows, *row)
		}
	})
	return err
}

func (memoryLedger) Prune(context.Context, time.Duration) error { return nil }
func (memoryLedger) ThinMarks(context.Context) error            { return nil }

func (l memoryLedger) Mark(_ context.Context, m control.Mark) error {
	l.w.change(func() {
		if l.w.marked == nil {
			l.w.marked = map[millrace.Offset]time.Time{}
		}
		l.w.marks, l.w.marked[m.Offset] = append(l.w.marks, m), time.Now()
	})
	return nil
}

func (l memoryLedger) Marks(context.Context) ([]control.Mark, error) {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	all := slices.Clone(l.w.marks)
	for i := range all {
		all[i].Age = time.Since(l.w.marked[all[i].Offset])
	}
	return all, nil
}

func (l memoryLedger) DropMarks(_ context.Context, before millrace.Offset) error {
	l.w.change(func() {
		l.w.marks = slices.DeleteFunc(l.w.marks, func(m control.Mark) bool { return m.Offset < before })
	})
	return nil
}

func (l memoryLedger) DecideTrim(_ context.Context, t control.Trim) (err error) {
	l.w.change(func() {
		for _, row := range l.w.rows {
			if row.Term > t.Term {
				err = control.ErrDeposed
				return
			}
		}
		l.w.decided = append(l.w.decided, t)
	})
	return err
}

func (memoryLedger) Close(context.Context) error { return nil }

// hold is the world's exclusive hold, or, if it is nothing's, one that every
// publisher gets.
type hold struct {
	w    *world
	lost chan struct{}
}

func (h *hold) Lost() <-chan struct{} { return h.lost }

func (h *hold) Close(context.Context) error {
	if h.w != nil {
		h.w.change(func() { h.w.held = false })
	}
	return nil
}

func (w *world) acquire(ctx context.Context, _ millrace.PublisherID) (Hold, error) {
	taken := false
	err := w.await(ctx, func() bool {
		if !w.held {
			w.held, taken = true, true
		}
		return taken
	})
	return &hold{w: w, lost: make(chan struct{})}, err
}

// config is that of a publisher in the world.
func (w *world) config() Config {
	return Config{
		Stream: w.stream, Topic: topic.Config{Brokers: w.brokers}, OpenSource: w.openSource,
		AcquireHold: w.acquire, OpenLedger: func(context.Context) (Ledger, error) { return memoryLedger{w}, nil },
		LedgerEvery: 10 * time.Millisecond, FirstPause: time.Millisecond, LongestPause: 100 * time.Millisecond,
		Logger: slog.New(slog.NewTextHandler(w.t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo})),
	}
}

// running is a publisher that runs.
type running struct {
	*Transfer
	t    testing.TB
	end  context.CancelFunc
	done chan error
}

func (w *world) start(config Config) *running {
	w.t.Helper()
	tr, err := New(config)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{Transfer: tr, t: w.t, end: cancel, done: make(chan error, 1)}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		r.done <- tr.Run(ctx)
	}()
	w.t.Cleanup(func() {
		cancel()
		<-ended
	})
	return r
}

// stop ends the publisher in order.
func (r *running) stop() {
	r.t.Helper()
	r.end()
	if err := r.wait(); err != nil {
		r.t.Errorf("clean end: %v", err)
	}
}

// wait returns Run's error.
func (r *running) wait() error {
	r.t.Helper()
	select {
	case err := <-r.done:
		return err
	case <-time.After(testLimit):
		r.t.Fatal("Run does not return")
		return nil
	}
}

// verdict is what a fold of the whole topic says.
type verdict struct {
	fold                 *millrace.Fold
	outcomes             map[millrace.Outcome]int
	batches, parts       int
	states, notedStates  []millrace.Offset
	records              []*millrace.Record
	offsets              []millrace.Offset
	firstBatchOfEachTerm map[millrace.Term]millrace.Index
}

// check folds the topic from its start and compares it with the source: the
// units 1 to n, each once, whole and in order.
func (w *world) check(n int) *verdict {
	w.t.Helper()
	v := w.read()
	var want []byte
	chain := millrace.NewChain(w.stream.ID, w.stream.Epoch)
	index := millrace.Index(0)
	for i := 1; i <= n; i++ {
		payload := w.payload(i)
		var u millrace.UnitHash
		var h millrace.Head
		for rest := payload; len(rest) > 0; {
			var err error
			if rest, err = millrace.NextHead(rest, &h); err != nil {
				w.t.Fatal(err)
			}
			u.Add(h.Table, h.Raw)
			index++
		}
		chain = u.Chain(chain)
		want = append(want, payload...)
	}
	if v.fold.Index() != index || v.fold.Chain() != chain || v.fold.Open() {
		w.t.Errorf("topic ends at index %v chain %v (open %v), want %v %v", v.fold.Index(), v.fold.Chain().Short(), v.fold.Open(), index, chain.Short())
	}
	if got := w.accepted(v); !bytes.Equal(got, want) {
		w.t.Errorf("topic holds %d bytes of accepted entries, the source gave %d, and they differ", len(got), len(want))
	}
	return v
}

func (w *world) payload(n int) []byte {
	u := w.make(n)
	var payload []byte
	for {
		run, err := u.Body.Next(1 << 20)
		if errors.Is(err, io.EOF) {
			return payload
		}
		if err != nil {
			w.t.Fatal(err)
		}
		payload = append(payload, run...)
	}
}

// accepted returns the entries of the history, without those of voided parts.
func (w *world) accepted(v *verdict) []byte {
	var all, open []byte
	fold := millrace.NewFold(w.stream.ID, w.stream.Epoch)
	for _, r := range v.records {
		o, err := fold.Step(r)
		if err != nil {
			w.t.Fatal(err)
		}
		if o == millrace.Reign {
			open = nil
		}
		if o == millrace.Accepted {
			open = append(open, r.Payload...)
			if !fold.Open() {
				all, open = append(all, open...), nil
			}
		}
	}
	return all
}

func (w *world) read() *verdict {
	w.t.Helper()
	ctx := testContext(w.t)
	log := w.openTopic(w.stream.Topic)
	info, err := log.Info(ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	reader, err := log.Read(ctx, info.Start)
	if err != nil {
		w.t.Fatal(err)
	}
	defer reader.Close()
	v := &verdict{
		fold: millrace.NewFold(w.stream.ID, w.stream.Epoch), outcomes: map[millrace.Outcome]int{},
		firstBatchOfEachTerm: map[millrace.Term]millrace.Index{},
	}
	for {
		m, err := reader.Until(ctx, info.End)
		if errors.Is(err, io.EOF) {
			return v
		}
		if err != nil {
			w.t.Fatal(err)
		}
		r, err := millrace.DecodeRecord(m.Value, nil)
		if err != nil {
			w.t.Fatalf("offset %v: %v", m.Offset, err)
		}
		if m.Offset == info.Start && r.Kind == millrace.RecordState { // it was trimmed
			if v.fold, err = millrace.FoldFromState(r); err != nil {
				w.t.Fatal(err)
			}
		}
		o, err := v.fold.Step(r)
		if err != nil {
			w.t.Fatalf("offset %v: %v", m.Offset, err)
		}
		v.outcomes[o]++
		v.records, v.offsets = append(v.records, r), append(v.offsets, m.Offset)
		switch {
		case r.Kind == millrace.RecordState:
			v.states = append(v.states, m.Offset)
			if o == millrace.Noted {
				v.notedStates = append(v.notedStates, m.Offset)
			}
		case o == millrace.Accepted:
			v.batches++
			if v.fold.Open() {
				v.parts++
			}
			if _, ok := v.firstBatchOfEachTerm[r.Term]; !ok {
				v.firstBatchOfEachTerm[r.Term] = r.First
			}
		}
	}
}
