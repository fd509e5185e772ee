package transfer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/kafkatest"
	"github.com/millrace-db/millrace/internal/topic"
)

// appendFunc stands before a topic's Append.
type appendFunc func(ctx context.Context, log *topic.Topic, value []byte, first millrace.Index, count uint32) (millrace.Offset, error)

// hooked is a Log whose appends and reads a test sees.
type hooked struct {
	*topic.Topic
	append appendFunc
	read   func(from millrace.Offset)
	// deleting sees deletions, delete does them.
	deleting func()
	delete   func(ctx context.Context, log *topic.Topic, offset millrace.Offset) (millrace.Offset, error)
}

func (h *hooked) DeleteBefore(ctx context.Context, offset millrace.Offset) (millrace.Offset, error) {
	if h.deleting != nil {
		h.deleting()
	}
	if h.delete != nil {
		return h.delete(ctx, h.Topic, offset)
	}
	return h.Topic.DeleteBefore(ctx, offset)
}

func (h *hooked) Append(ctx context.Context, value []byte, first millrace.Index, count uint32) (millrace.Offset, error) {
	if h.append == nil {
		return h.Topic.Append(ctx, value, first, count)
	}
	return h.append(ctx, h.Topic, value, first, count)
}

func (h *hooked) Read(ctx context.Context, from millrace.Offset) (*topic.Reader, error) {
	if h.read != nil {
		h.read(from)
	}
	return h.Topic.Read(ctx, from)
}

// hook puts h's functions between a publisher and its topic.
func (w *world) hook(c *Config, h hooked) {
	c.OpenLog = func(ctx context.Context) (Log, error) {
		log, err := topic.Open(ctx, topic.Config{Brokers: w.brokers, Topic: w.stream.Topic})
		if err != nil {
			return nil, err
		}
		opened := h
		opened.Topic = log
		return &opened, nil
	}
}

// free lets every publisher have the hold.
func free(c *Config) {
	c.AcquireHold = func(context.Context, millrace.PublisherID) (Hold, error) {
		return &hold{lost: make(chan struct{})}, nil
	}
}

func TestWaitsForTheHold(t *testing.T) {
	w := newWorld(t, kafkatest.Fake(t))
	w.commit(5)
	first := w.start(w.config())
	w.waitConfirmed(5)
	second := w.start(w.config())
	w.commit(5)
	w.waitConfirmed(10)
	if s := second.Status(); s.Term != 0 || s.Phase != PhaseWaiting && s.Phase != PhaseStarting {
		t.Errorf("second publisher beside the first: %+v", s)
	}
	first.stop()
	w.commit(5)
	w.waitConfirmed(15)
	second.stop()
	if v := w.check(15); v.fold.Index() == 0 || len(v.firstBatchOfEachTerm) != 2 {
		t.Errorf("terms with batches: %v", v.firstBatchOfEachTerm)
	}
}

// TestZombie stops a publisher just before it appends, lets a second one take
// over, and lets the first one go on: its record gets into the topic and is
// acknowledged, and is void; it confirms nothing and ends fenced.
func TestZombie(t *testing.T) {
	both(t, func(t *testing.T, brokers []string) {
		w := newWorld(t, brokers)
		w.commit(20)
		config := w.config()
		free(&config)
		registry := prometheus.NewRegistry()
		config.Registerer = registry
		stopped, resume := make(chan struct{}), make(chan struct{})
		var once sync.Once
		var acknowledged atomic.Int64
		acknowledged.Store(-1)
		w.hook(&config, hooked{append: func(ctx context.Context, log *topic.Topic, value []byte, first millrace.Index, count uint32) (millrace.Offset, error) {
			w.mu.Lock()
			zombie := w.confirmed >= 20 && count > 0
			w.mu.Unlock()
			if zombie {
				once.Do(func() {
					close(stopped)
					<-resume
				})
			}
			// A process that was stopped does not know that it is fenced yet.
			offset, err := log.Append(context.WithoutCancel(ctx), value, first, count)
			if zombie && err == nil {
				acknowledged.Store(int64(offset))
			}
			return offset, err
		}})
		first := w.start(config)
		w.waitConfirmed(20)
		w.commit(1)
		<-stopped
		config = w.config()
		free(&config)
		second := w.start(config)
		w.commit(9)
		w.waitConfirmed(30)
		close(resume)
		if err := first.wait(); !errors.Is(err, ErrFenced) {
			t.Errorf("the zombie ends with %v, want ErrFenced", err)
		}
		if s := first.Status(); s.Phase != PhaseFenced || s.Problem == "" {
			t.Errorf("status of the zombie: %+v", s)
		}
		w.commit(5)
		w.waitConfirmed(35)
		second.stop()
		v := w.check(35)
		if n := acknowledged.Load(); n < 0 || v.outcomes[millrace.Stale] == 0 {
			t.Errorf("the zombie's append was acknowledged at %d, %d records are stale: want its record in the topic and void", n, v.outcomes[millrace.Stale])
		}
	})
}

// TestReadBeforeAcknowledged: a record can be read while replicas that must have
// it lack it, and is not confirmed to the source until the brokers say that they
// have it.
func TestReadBeforeAcknowledged(t *testing.T) {
	w := newWorld(t, kafkatest.Fake(t))
	config := w.config()
	acknowledge := make(chan struct{})
	var once sync.Once
	w.hook(&config, hooked{append: func(ctx context.Context, log *topic.Topic, value []byte, first millrace.Index, count uint32) (millrace.Offset, error) {
		offset, err := log.Append(ctx, value, first, count)
		if count > 0 {
			once.Do(func() { <-acknowledge })
		}
		return offset, err
	}})
	w.commit(3)
	r := w.start(config)
	// The ledger has what the publisher's own fold has accepted.
	w.wait("the batch to be read back", func() bool { return len(w.rows) > 0 && w.rows[len(w.rows)-1].Last > 0 })
	w.mu.Lock()
	early := w.confirmed
	w.mu.Unlock()
	close(acknowledge)
	if early != 0 {
		t.Errorf("unit %d was confirmed before the brokers had acknowledged it", early)
	}
	w.waitConfirmed(3)
	r.stop()
	w.check(3)
}

// TestRepeatedTermRecord: a record that the network repeats is no other
// publisher's, neither while the reign is prepared nor later.
func TestRepeatedTermRecord(t *testing.T) {
	w := newWorld(t, kafkatest.Fake(t))
	config := w.config()
	var term []byte
	var batches int
	w.hook(&config, hooked{append: func(ctx context.Context, log *topic.Topic, value []byte, first millrace.Index, count uint32) (millrace.Offset, error) {
		offset, err := log.Append(ctx, value, first, count)
		switch {
		case err != nil:
			return offset, err
		case first == 0:
			term = slices.Clone(value)
		case count > 0:
			if batches++; batches > 1 {
				return offset, err
			}
		default:
			return offset, err
		}
		_, err = log.Append(ctx, term, 0, 0)
		return offset, err
	}})
	w.commit(3)
	r := w.start(config)
	w.waitConfirmed(3)
	w.commit(3)
	w.waitConfirmed(6)
	r.stop()
	if v := w.check(6); v.outcomes[millrace.Stale] != 2 || v.outcomes[millrace.Reign] != 1 {
		t.Errorf("outcomes: %v, want one reign and two repeats", v.outcomes)
	}
}

// TestLateZombieState: a state record that a fenced publisher leaves behind
// everything else is in the topic, and nobody starts from it.
func TestLateZombieState(t *testing.T) {
	w := newWorld(t, kafkatest.Fake(t))
	w.commit(10)
	first := w.start(w.config())
	w.waitConfirmed(10)
	first.stop()
	old := w.read()
	second := w.start(w.config())
	w.commit(10)
	w.waitConfirmed(20)
	second.stop()
	// The first publisher's state of the same index but another history, as a
	// zombie would write it.
	fake := old.records[len(old.records)-1].Header
	fake.Kind, fake.First, fake.Count = millrace.RecordState, w.check(20).fold.Index()+1, 0
	fake.Prev, fake.Chain = millrace.Chain{1}, millrace.Chain{1}
	fake.Position = position(15)
	value, err := millrace.AppendRecord(nil, &fake, millrace.AppendState(nil, &millrace.State{}), nil)
	if err != nil {
		t.Fatal(err)
	}
	at, err := w.openTopic(w.stream.Topic).Append(testContext(t), value, fake.First, 0)
	if err != nil {
		t.Fatal(err)
	}
	attested := w.rows[len(w.rows)-1].StateOffset
	if attested >= at || attested == millrace.NoOffset {
		t.Fatalf("the ledger attests the state at %v, the zombie's is at %v", attested, at)
	}
	var read []millrace.Offset
	config := w.config()
	w.hook(&config, hooked{read: func(from millrace.Offset) { w.change(func() { read = append(read, from) }) }})
	third := w.start(config)
	w.commit(10)
	w.waitConfirmed(30)
	third.stop()
	w.check(30)
	if read[0] != attested {
		t.Errorf("the third publisher reads from offset %v, want the attested state at %v", read[0], attested)
	}
}

func TestStates(t *testing.T) {
	w := newWorld(t, kafkatest.Fake(t))
	w.make = func(n int) *millrace.Unit {
		if n%10 == 0 {
			return unitOf(n, slices.Repeat([]int{200_000}, 20))
		}
		return smallUnit(n)
	}
	config := w.config()
	config.StateBytes = 500_000
	r := w.start(config)
	for n := 1; n <= 50; n++ {
		w.commit(1)
		w.waitConfirmed(n)
	}
	r.stop()
	v := w.check(50)
	if v.parts == 0 {
		t.Error("no unit was cut in parts")
	}
	if len(v.states) < 5 || !slices.Equal(v.states, v.notedStates) {
		t.Errorf("states at %v, of which noted %v", v.states, v.notedStates)
	}
	if got := w.rows[len(w.rows)-1].StateOffset; got != v.states[len(v.states)-1] {
		t.Errorf("the ledger attests the state at %v, the newest is at %v", got, v.states[len(v.states)-1])
	}
}

func TestTimedStates(t *testing.T) {
	w := newWorld(t, kafkatest.Fake(t))
	config := w.config()
	config.StateEvery = time.Nanosecond
	r := w.start(config)
	for n := 1; n <= 5; n++ {
		w.commit(1)
		w.waitConfirmed(n)
	}
	r.stop()
	if v := w.check(5); len(v.notedStates) < 5 {
		t.Errorf("%d states, want one after each batch", len(v.notedStates))
	}
}

// TestLargeUnitIsVoidWhenCut ends a publisher in the middle of a unit of many
// parts: the next one publishes it anew from its first entry.
func TestLargeUnitIsVoidWhenCut(t *testing.T) {
	w := newWorld(t, kafkatest.Fake(t))
	w.make = func(n int) *millrace.Unit { return unitOf(n, slices.Repeat([]int{300_000}, 30)) }
	config := w.config()
	var parts atomic.Int64
	w.hook(&config, hooked{append: func(ctx context.Context, log *topic.Topic, value []byte, first millrace.Index, count uint32) (millrace.Offset, error) {
		if count > 0 && parts.Add(1) == 3 {
			return millrace.NoOffset, errors.New("planted: the connection broke")
		}
		return log.Append(ctx, value, first, count)
	}})
	w.commit(3)
	r := w.start(config)
	w.waitConfirmed(3)
	r.stop()
	v := w.check(3)
	if v.firstBatchOfEachTerm[2] != 1 {
		t.Errorf("the second reign begins with index %v, want 1: the first unit was cut", v.firstBatchOfEachTerm[2])
	}
}

func TestHoldLost(t *testing.T) {
	w := newWorld(t, kafkatest.Fake(t))
	config := w.config()
	var mu sync.Mutex
	var newest *hold
	config.AcquireHold = func(ctx context.Context, me millrace.PublisherID) (Hold, error) {
		h, err := w.acquire(ctx, me)
		mu.Lock()
		defer mu.Unlock()
		newest = h.(*hold)
		return h, err
	}
	w.commit(5)
	r := w.start(config)
	w.waitConfirmed(5)
	mu.Lock()
	close(newest.lost)
	mu.Unlock()
	w.wait("a second reign", func() bool { return w.opened >= 2 })
	w.commit(5)
	w.waitConfirmed(10)
	r.stop()
	w.check(10)
	if got := r.Status().Term; got != 2 {
		t.Errorf("term after the hold was lost: %v", got)
	}
}

func TestLedgerFails(t *testing.T) {
	w := newWorld(t, kafkatest.Fake(t))
	config := w.config()
	registry := prometheus.NewRegistry()
	config.Registerer = registry
	r := w.start(config)
	w.commit(5)
	w.wait("a ledger row", func() bool { return len(w.rows) > 0 && w.rows[len(w.rows)-1].Position == position(5) })
	w.change(func() { w.ledgerErr = errors.New("planted: the database is away") })
	w.commit(100)
	w.waitConfirmed(105)
	deadline := time.Now().Add(testLimit)
	for metric(t, registry, "millrace_transfer_ledger_failures_total") == 0 && time.Now().Before(deadline) {
		w.commit(1)
	}
	w.change(func() { w.ledgerErr = nil })
	w.commit(5)
	n := w.committed
	w.waitConfirmed(n)
	r.stop()
	v := w.check(n)
	next := millrace.Index(1)
	for _, row := range w.rows {
		if row.First != next || row.Captured.Total() != uint64(row.Last-row.First+1) || !row.Captured.Equal(row.ReadBack) {
			t.Errorf("row from %v to %v counts %d entries, want from %v", row.First, row.Last, row.Captured.Total(), next)
		}
		next = row.Last + 1
	}
	if next != v.fold.Index()+1 {
		t.Errorf("the ledger ends before index %v, the topic at %v", next, v.fold.Index())
	}
	if got := metric(t, registry, "millrace_transfer_index"); got != float64(v.fold.Index()) {
		t.Errorf("metric of the index is %v, want %v", got, v.fold.Index())
	}
	if got := metric(t, registry, "millrace_transfer_entries_total"); got != float64(v.fold.Index()) {
		t.Errorf("metric of entries is %v, want %v", got, v.fold.Index())
	}
}

// metric returns the value of a counter or gauge.
func metric(t *testing.T, registry *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			m := f.GetMetric()[0]
			return m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

// TestBrokerKilled kills the only broker while a publisher is at work, and lets
// it come back.
func TestBrokerKilled(t *testing.T) {
	cluster := kafkatest.Start(t, 1)
	w := newWorld(t, cluster.Brokers())
	r := w.start(w.config())
	total := 0
	for round := range 3 {
		w.commit(200)
		total += 200
		w.waitConfirmed(total - 150)
		w.commit(200)
		total += 200
		if err := cluster.Kill(0); err != nil {
			t.Fatal(err)
		}
		if err := cluster.Restart(); err != nil {
			t.Fatal(err)
		}
		w.waitConfirmed(total)
		t.Logf("round %d: term %v", round, r.Status().Term)
	}
	r.stop()
	w.check(total)
}

// TestSourceFails: a capture that fails for a while ends reigns and no more.
func TestSourceFails(t *testing.T) {
	w := newWorld(t, kafkatest.Fake(t))
	config := w.config()
	var failures atomic.Int64
	config.OpenSource = func(ctx context.Context, after *millrace.Checkpoint) (Source, error) {
		if failures.Add(1) < 3 {
			return nil, errors.New("planted: the database is away")
		}
		s, err := w.openSource(ctx, after)
		if failures.Load() == 3 {
			return &brokenSource{Source: s, left: 7}, err
		}
		return s, err
	}
	w.commit(20)
	r := w.start(config)
	w.waitConfirmed(20)
	r.stop()
	w.check(20)

	config.OpenSource = func(context.Context, *millrace.Checkpoint) (Source, error) {
		return nil, fmt.Errorf("%w: planted: the slot was recreated", millrace.ErrStop)
	}
	if err := w.start(config).wait(); !millrace.NeedsOperator(err) || !strings.Contains(err.Error(), "slot was recreated") {
		t.Errorf("a source that needs the operator: %v", err)
	}
}

type brokenSource struct {
	Source
	left int
}

func (s *brokenSource) Next(ctx context.Context) (*millrace.Unit, error) {
	if s.left--; s.left < 0 {
		return nil, errors.New("planted: connection reset")
	}
	return s.Source.Next(ctx)
}

// TestReplacedWhileStopped stops a publisher, as SIGSTOP does, until its hold was
// taken away and its successor reigns. It must not wait for the hold like one
// that lost its connection: it is fenced.
func TestReplacedWhileStopped(t *testing.T) {
	w := newWorld(t, kafkatest.Fake(t))
	w.commit(5)
	config := w.config()
	lost := make(chan struct{})
	config.AcquireHold = func(context.Context, millrace.PublisherID) (Hold, error) { return &hold{lost: lost}, nil }
	var gate atomic.Pointer[chan struct{}]
	config.Topic.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, address)
		return &gatedConn{Conn: conn, gate: &gate}, err
	}
	first := w.start(config)
	w.waitConfirmed(5)
	closed := make(chan struct{})
	gate.Store(&closed)
	config = w.config()
	free(&config)
	second := w.start(config)
	w.commit(5)
	w.waitConfirmed(10)
	close(lost)
	close(closed)
	if err := first.wait(); !errors.Is(err, ErrFenced) {
		t.Errorf("the publisher that stood still ends with %v, want ErrFenced", err)
	}
	second.stop()
	w.check(10)
}

// gatedConn delivers nothing while there is a gate that is not closed.
type gatedConn struct {
	net.Conn
	gate *atomic.Pointer[chan struct{}]
}

func (c *gatedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if gate := c.gate.Load(); gate != nil {
		<-*gate
	}
	return n, err
}

// TestEndWhileTheBrokerIsSilent: a clean end does not wait for an append that
// hangs longer than its grace.
func TestEndWhileTheBrokerIsSilent(t *testing.T) {
	w := newWorld(t, kafkatest.Fake(t))
	config := w.config()
	config.Grace = 50 * time.Millisecond
	hangs := make(chan struct{})
	w.hook(&config, hooked{append: func(ctx context.Context, log *topic.Topic, value []byte, first millrace.Index, count uint32) (millrace.Offset, error) {
		if count == 0 {
			return log.Append(ctx, value, first, count)
		}
		close(hangs)
		<-ctx.Done()
		return millrace.NoOffset, context.Cause(ctx)
	}})
	w.commit(1)
	r := w.start(config)
	<-hangs
	started := time.Now()
	r.stop()
	if took := time.Since(started); took > 20*time.Second {
		t.Errorf("a clean end took %s", took)
	}
	if w.confirmed != 0 {
		t.Errorf("unit %d was confirmed", w.confirmed)
	}
}
