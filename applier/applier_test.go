package applier

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge"
	"github.com/millrace-db/millrace/internal/kafkatest"
)

func TestMain(m *testing.M) {
	code := m.Run()
	err := kafkatest.StopShared()
	if err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), deadline)
		// The meters of sarama's metrics tick for as long as the process lives.
		err = kafkatest.Leaks(ctx, goleak.IgnoreTopFunction("github.com/rcrowley/go-metrics.(*meterArbiter).tick"))
		cancel()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = max(code, 1)
	}
	os.Exit(code)
}

// deadline bounds every wait; the machine may be busy with other tests.
const deadline = time.Minute

func openStore(t testing.TB, dir string) *edge.Store {
	t.Helper()
	s, err := edge.Open(edge.Options{Dir: dir, MapSize: 1 << 30, MaxDBs: 16})
	if err != nil {
		t.Fatalf("edge.Open: %v", err)
	}
	t.Cleanup(func() { closeStore(t, s) })
	return s
}

func closeStore(t testing.TB, s *edge.Store) {
	t.Helper()
	if err := s.Check(context.Background()); err != nil && !errors.Is(err, edge.ErrClosed) {
		t.Errorf("Check: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
}

// running is an Applier that runs.
type running struct {
	*Applier
	t    testing.TB
	s    *edge.Store
	done chan struct{}
	err  error
	stop context.CancelFunc
}

func run(t testing.TB, s *edge.Store, topic *memoryTopic, change ...func(*Config)) *running {
	t.Helper()
	c := Config{Store: s, OpenSource: topic.open, RetryMin: time.Millisecond, RetryMax: 10 * time.Millisecond}
	if _, bench := t.(*testing.B); !bench { // whose output is always shown
		c.Logger = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	for _, f := range change {
		f(&c)
	}
	a, err := New(c)
	if err != nil {
		t.Fatalf("New: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{Applier: a, t: t, s: s, done: make(chan struct{}), stop: cancel}
	go func() {
		defer close(r.done)
		r.err = a.Run(ctx)
	}()
	t.Cleanup(func() { cancel(); <-r.done })
	return r
}

// reached waits for an index, and fails if the applier stops before.
func (r *running) reached(index millrace.Index) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	go func() {
		select {
		case <-r.done:
			cancel()
		case <-ctx.Done():
		}
	}()
	if err := r.s.WaitIndex(ctx, index); err != nil {
		select {
		case <-r.done:
			r.t.Fatalf("applier stopped at index %v, want %v: %v", r.s.Index(), index, r.err)
		default:
			r.t.Fatalf("wait for index %v: %v (status %+v)", index, err, r.Status())
		}
	}
}

// ended waits for Run to return, and checks why.
func (r *running) ended(want error, words ...string) {
	r.t.Helper()
	select {
	case <-r.done:
	case <-time.After(deadline):
		r.t.Fatalf("applier still runs, want it to stop with %v", want)
	}
	if !errors.Is(r.err, want) {
		r.t.Fatalf("Run returned %v, want %v", r.err, want)
	}
	if !millrace.NeedsOperator(r.err) {
		r.t.Errorf("error does not need an operator: %v", r.err)
	}
	for _, w := range append(words, "mend:") {
		if !strings.Contains(r.err.Error(), w) {
			r.t.Errorf("error %q does not say %q", r.err, w)
		}
	}
	if s := r.Status(); s.Phase != PhaseStopped || s.Err == nil {
		r.t.Errorf("status after the stop is %+v", s)
	}
}

// quit stops the applier and waits.
func (r *running) quit() {
	r.t.Helper()
	r.stop()
	<-r.done
	if r.err != nil {
		r.t.Fatalf("Run: %v", r.err)
	}
}

// content returns the rows as "id=v".
func content(t testing.TB, s *edge.Store) string {
	t.Helper()
	var rows []string
	err := s.View(context.Background(), func(v *edge.View) error {
		table, err := v.Table("public.t")
		if err != nil {
			return err
		}
		return table.Scan(nil, nil, 0, func(_ []byte, row *edge.Row) error {
			rows = append(rows, fmt.Sprintf("%s=%s", row.Columns[0].Text, row.Columns[1].Text))
			return nil
		})
	})
	if err != nil {
		t.Fatalf("read rows: %v", err)
	}
	return strings.Join(rows, " ")
}

func wantContent(t testing.TB, s *edge.Store, want string) {
	t.Helper()
	if got := content(t, s); got != want {
		t.Errorf("rows are %q, want %q", got, want)
	}
}

func TestApplyAndGoOn(t *testing.T) {
	topic := newMemoryTopic()
	p := newPublisher(t, topic, 1)
	p.reign()
	p.copied(3, "a")
	dir := t.TempDir()
	s := openStore(t, dir)
	r := run(t, s, topic)
	r.reached(p.index)
	wantContent(t, s, "1=a 2=a 3=a")
	p.unit(p.put(2, "b"), p.delete(1))
	r.reached(p.index)
	if st := r.Status(); st.Phase != PhaseStream || st.Index != p.index || st.Chain != p.chain || st.StreamID != testStream || st.Epoch != 1 || st.Term != 1 || st.LagSeconds == nil || st.Err != nil {
		t.Errorf("status is %+v", st)
	}
	r.quit()
	closeStore(t, s)

	p.unit(p.put(4, "c"))
	s = openStore(t, dir)
	if s.Stream() != testStream {
		t.Errorf("store belongs to stream %v", s.Stream())
	}
	r = run(t, s, topic, func(c *Config) { c.Stream, c.Epoch = testStream, 1 })
	r.reached(p.index)
	wantContent(t, s, "2=b 3=a 4=c")
}

// A unit in many batches is visible whole or not at all, in the middle of a
// stream of small ones.
func TestUnitIsNeverTorn(t *testing.T) {
	const rows, units = 50, 60
	topic := newMemoryTopic()
	p := newPublisher(t, topic, 1)
	p.reign()
	p.copied(rows, "0")
	s := openStore(t, t.TempDir())
	// Everything is flushed at once, so parts reach the transaction early.
	r := run(t, s, topic, func(c *Config) { c.FlushBytes = 1 })
	r.reached(p.index)

	stop := make(chan struct{})
	torn := make(chan string, 1)
	go func() {
		defer close(torn)
		for {
			select {
			case <-stop:
				return
			default:
			}
			err := s.View(context.Background(), func(v *edge.View) error {
				table, err := v.Table("public.t")
				if err != nil {
					return err
				}
				first := ""
				return table.Scan(nil, nil, 0, func(_ []byte, row *edge.Row) error {
					v := string(row.Columns[1].Text)
					if first == "" {
						first = v
					}
					if v != first {
						return fmt.Errorf("rows hold %s and %s", first, v)
					}
					return nil
				})
			})
			if err != nil {
				torn <- err.Error()
				return
			}
		}
	}()
	for i := 1; i <= units; i++ {
		next := p.parts(1+i%7, p.rows(rows, fmt.Sprint(i))...)
		for range rows {
			next(1)
		}
	}
	r.reached(p.index)
	close(stop)
	for text := range torn {
		t.Errorf("a reader saw part of a unit: %s", text)
	}
}

// A reign that begins within a unit makes the part void; what is complete stays.
func TestReignWithinUnit(t *testing.T) {
	topic := newMemoryTopic()
	p := newPublisher(t, topic, 1)
	p.reign()
	p.copied(3, "a")
	p.unit(p.put(1, "b"))
	next := p.successor()
	part := p.parts(1, p.put(2, "void"), p.put(3, "void"), p.put(9, "void"))
	part(2)
	next.reign()
	next.unit(next.put(3, "c"))
	part(1)                    // a zombie's: stale
	p.unit(p.put(1, "zombie")) // so is this
	next.unit(next.put(4, "d"))
	s := openStore(t, t.TempDir())
	r := run(t, s, topic)
	r.reached(next.index)
	wantContent(t, s, "1=b 2=a 3=c 4=d")
	if st := r.Status(); st.Term != 2 || st.Chain != next.chain {
		t.Errorf("status is %+v, want term 2 and chain %v", st, next.chain)
	}
}

// A unit whose rest does not come keeps nobody from reading, and is applied
// when it does come.
func TestRestOfUnitComesLate(t *testing.T) {
	topic := newMemoryTopic()
	p := newPublisher(t, topic, 1)
	p.reign()
	p.copied(2, "a")
	before := p.index
	part := p.parts(1, p.put(1, "b"), p.put(2, "b"))
	part(1)
	s := openStore(t, t.TempDir())
	r := run(t, s, topic, func(c *Config) { c.Stall = 5 * time.Millisecond })
	r.reached(before)
	for end := time.Now().Add(deadline); topic.timesOpened() < 3; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the transaction was not given up")
		}
	}
	wantContent(t, s, "1=a 2=a")
	part(1)
	r.reached(p.index)
	wantContent(t, s, "1=b 2=b")
}

func TestFaultsThatPass(t *testing.T) {
	for name, strike := range map[string]func([]byte) ([]byte, error){
		"connection lost": lost, "record cut off": ended, "record altered": altered, "record left out": left,
	} {
		t.Run(name, func(t *testing.T) {
			topic := newMemoryTopic()
			p := newPublisher(t, topic, 1)
			p.reign()
			p.copied(2, "a")
			p.unit(p.put(1, "b"))
			p.unit(p.put(2, "c"))
			topic.setFault(once(4, strike))
			s := openStore(t, t.TempDir())
			run(t, s, topic).reached(p.index)
			wantContent(t, s, "1=b 2=c")
		})
	}
}

func TestFaultsThatStay(t *testing.T) {
	for _, c := range []struct {
		name   string
		strike func([]byte) ([]byte, error)
		want   error
	}{
		{"record altered", altered, millrace.ErrMalformed},
		{"record left out", left, millrace.ErrGap},
	} {
		t.Run(c.name, func(t *testing.T) {
			topic := newMemoryTopic()
			p := newPublisher(t, topic, 1)
			p.reign()
			p.copied(2, "a")
			before := p.index
			p.unit(p.put(1, "b"))
			p.unit(p.put(2, "c"))
			topic.setFault(always(4, c.strike))
			s := openStore(t, t.TempDir())
			run(t, s, topic).ended(c.want, "offset")
			if s.Index() != before {
				t.Errorf("store is at index %v, want %v", s.Index(), before)
			}
			wantContent(t, s, "1=a 2=a")
		})
	}
}

// A lasting error of the source is shown, and goes away by itself.
func TestSourceIsAway(t *testing.T) {
	topic := newMemoryTopic()
	p := newPublisher(t, topic, 1)
	p.reign()
	p.copied(1, "a")
	topic.setFault(always(0, lost))
	s := openStore(t, t.TempDir())
	r := run(t, s, topic)
	for end := time.Now().Add(deadline); ; time.Sleep(time.Millisecond) {
		if st := r.Status(); st.Phase == PhaseRetry && errors.Is(st.Err, errLost) {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("status is %+v, want the error", r.Status())
		}
	}
	topic.setFault(nil)
	r.reached(p.index)
}

// A full store stops applying and nothing else, and goes on once it has room.
func TestFullStore(t *testing.T) {
	topic := newMemoryTopic()
	p := newPublisher(t, topic, 1)
	p.reign()
	p.copied(1, "a")
	p.unit(p.put(2, "x"))
	dir := t.TempDir()
	s, err := edge.Open(edge.Options{Dir: dir, MapSize: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	r := run(t, s, topic)
	r.reached(p.index) // or all of it may be gathered into one commit, which does not fit
	for id := 3; id < 200; id++ {
		p.unit(p.put(id, strings.Repeat("x", 20_000)))
	}
	for end := time.Now().Add(deadline); !errors.Is(r.Status().Err, edge.ErrFull); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("status is %+v, want ErrFull", r.Status())
		}
	}
	if rows := content(t, s); !strings.HasPrefix(rows, "1=a 2=x") {
		t.Errorf("the full store answers %.20q", rows)
	}
	r.quit()
	closeStore(t, s)
	s = openStore(t, dir)
	run(t, s, topic).reached(p.index)
}

// A store that is full of what is gone makes room by itself.
func TestFullStoreMakesRoom(t *testing.T) {
	topic := newMemoryTopic()
	p := newPublisher(t, topic, 1)
	p.reign()
	p.copied(1, "a")
	for range 4 {
		for id := 1; id < 60; id++ {
			p.unit(p.put(id, strings.Repeat("x", 20_000)))
		}
		p.unit(&millrace.Entry{Kind: millrace.KindTruncate, Table: testTable})
	}
	p.unit(p.put(7, "last"))
	s, err := edge.Open(edge.Options{Dir: t.TempDir(), MapSize: 3 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeStore(t, s) })
	run(t, s, topic).reached(p.index)
	wantContent(t, s, "7=last")
}

// A change that does not fit stops the applier right before it.
func TestChangeThatDoesNotFit(t *testing.T) {
	topic := newMemoryTopic()
	p := newPublisher(t, topic, 1)
	p.reign()
	p.copied(2, "a")
	p.unit(p.put(1, "b"))
	before := p.index
	p.unit(p.put(2, "c"), p.delete(3))
	s := openStore(t, t.TempDir())
	run(t, s, topic).ended(edge.ErrInconsistent, "public.t", "key 3", fmt.Sprintf("index %v", p.index))
	if s.Index() != before {
		t.Errorf("store is at index %v, want %v", s.Index(), before)
	}
	wantContent(t, s, "1=b 2=a")
}

func TestOtherStreamEpochTopic(t *testing.T) {
	topic := newMemoryTopic()
	p := newPublisher(t, topic, 1)
	p.reign()
	p.copied(1, "a")
	dir := t.TempDir()
	s := openStore(t, dir)
	r := run(t, s, topic)
	r.reached(p.index)
	r.quit()

	if _, err := New(Config{Store: s, OpenSource: topic.open, Stream: millrace.StreamID{1}}); !errors.Is(err, edge.ErrOtherStream) {
		t.Errorf("New for another stream: %v, want ErrOtherStream", err)
	}
	run(t, s, topic, func(c *Config) { c.Epoch = 2 }).ended(ErrOtherEpoch, "epoch 1", "wanted is 2")

	again := newMemoryTopic()
	again.id = "topic-2"
	run(t, s, again).ended(ErrOtherTopic, "topic-1", "topic-2")

	p.epoch = 2
	p.unit(p.put(1, "foreign"))
	run(t, s, topic).ended(millrace.ErrForeign, "epoch 2")
	wantContent(t, s, "1=a")
}

func TestPinnedKey(t *testing.T) {
	pub, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	topic := newMemoryTopic()
	p := newPublisher(t, topic, 1)
	p.reign()
	p.copied(1, "a")
	from := p.index + 1
	p.key = key
	p.unit(p.put(1, "signed"))
	p.key = nil
	p.unit(p.put(1, "unsigned"))
	s := openStore(t, t.TempDir())
	ring, err := millrace.NewKeyring([]millrace.TrustedKey{{Key: pub, From: millrace.Place{Epoch: 1, Index: from}}})
	if err != nil {
		t.Fatal(err)
	}
	run(t, s, topic, func(c *Config) { c.Trusted = ring }).ended(millrace.ErrSignature)
	wantContent(t, s, "1=signed")
	// The store keeps the signed header that its checkpoint is proven by.
	err = s.View(t.Context(), func(v *edge.View) error {
		c, err := v.Contents()
		if err != nil {
			return err
		}
		return ring.CheckHeader(c.Header, c.Checkpoint)
	})
	if err != nil {
		t.Error(err)
	}
}

// A new store cannot begin at a topic whose beginning was trimmed: it is told so, and not
// that records are missing.
func TestTrimmedBeginning(t *testing.T) {
	topic := newMemoryTopic()
	p := newPublisher(t, topic, 1)
	p.reign()
	p.copied(2, "a")
	rest := newMemoryTopic()
	p.topic = rest
	p.unit(p.put(1, "b"))
	s := openStore(t, t.TempDir())
	run(t, s, rest).ended(ErrSourceGone, "begins at index", "edge.images.from")
	if s.Index() != 0 {
		t.Errorf("the store is at %v", s.Index())
	}
}
