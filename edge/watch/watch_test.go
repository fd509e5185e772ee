package watch

import (
	"context"
	"errors"
	"flag"
	"math/rand/v2"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge/event"
	edgelog "github.com/millrace-db/millrace/edge/log"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var seedFlag = flag.Uint64("seed", 0, "seed of the random tests; 0 takes another each time")

func seed(t testing.TB) uint64 {
	s := *seedFlag
	if s == 0 {
		s = uint64(time.Now().UnixNano())
	}
	t.Logf("repeat with -seed %d", s)
	return s
}

func newHub(t testing.TB, l *edgelog.Log, change ...func(*Config)) *Hub {
	t.Helper()
	c := Config{Log: func() *edgelog.Log { return l }}
	for _, f := range change {
		f(&c)
	}
	h, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Close() })
	return h
}

func watch(t testing.TB, h *Hub, o Options) *Watcher {
	t.Helper()
	w, err := h.Watch(timeout(t), o)
	if err != nil {
		t.Fatalf("Watch(%+v): %v", o, err)
	}
	t.Cleanup(w.Close)
	return w
}

// read reads events until one at or after an index has come.
func read(t testing.TB, w *Watcher, until millrace.Index) []event.Event {
	t.Helper()
	var all []event.Event
	for {
		items, err := w.Next(timeout(t))
		if err != nil {
			t.Fatalf("behind %v: %v", w.ID(), err)
		}
		for _, i := range items {
			e, err := i.Event()
			if err != nil {
				t.Fatal(err)
			}
			if e.Op != event.Progress {
				all = append(all, *e)
			}
			if e.Index >= until {
				return all
			}
		}
	}
}

func at(index millrace.Index) *event.ID { return &event.ID{Epoch: 1, Index: index} }

func compare(t testing.TB, what string, got, want []event.Event) {
	t.Helper()
	for i := range min(len(got), len(want)) {
		if !reflect.DeepEqual(got[i], want[i]) {
			t.Fatalf("%s: event %d is\n%+v, want\n%+v", what, i, got[i], want[i])
		}
	}
	if len(got) != len(want) {
		t.Fatalf("%s: got %d events, want %d", what, len(got), len(want))
	}
}

func after(all []event.Event, index millrace.Index, wanted func(*event.Event) bool) []event.Event {
	var some []event.Event
	for i := range all {
		if all[i].Index > index && (wanted == nil || wanted(&all[i])) {
			some = append(some, all[i])
		}
	}
	return some
}

// Whatever the place, the filter, the sizes of ring and segments, and the pauses: a
// watcher is told what the log has.
func TestModel(t *testing.T) {
	s := seed(t)
	rnd := rand.New(rand.NewPCG(s, 2)) //nolint:gosec // a test that can be repeated
	for _, ring := range []int64{1, 4 << 10, 1 << 20} {
		l := openLog(t, edgelog.Options{SegmentBytes: 3 << 10})
		f := newFeed(t, l, 1, s)
		f.first()
		for range 40 {
			f.some()
		}
		h := newHub(t, l, func(c *Config) { c.RingBytes = ring })
		var done sync.WaitGroup
		type run struct {
			what  string
			from  millrace.Index
			w     *Watcher
			lets  func(*event.Event) bool
			got   []event.Event
			pause bool
		}
		var runs []*run
		for i := range 12 {
			r := &run{from: millrace.Index(rnd.Uint64N(uint64(f.fold.Index()) + 1)), pause: i%3 == 0}
			o := Options{From: at(r.from), Beat: 50 * time.Millisecond}
			switch i % 4 {
			case 1:
				o.Tables, r.lets = []string{"public.a"}, func(e *event.Event) bool { return e.Table == "public.a" }
			case 2:
				o.Tables, o.Prefix = []string{"public.b"}, "7"
				r.lets = func(e *event.Event) bool { return e.Table == "public.b" && (e.Key == nil || e.Key[0] == "7") }
			}
			r.what, r.w = o.Prefix+"/"+r.from.String(), watch(t, h, o)
			runs = append(runs, r)
		}
		var end atomic.Uint64
		for _, r := range runs {
			done.Go(func() {
				for {
					if to := end.Load(); to != 0 && r.w.pos >= millrace.Index(to) && r.w.within == 0 {
						return
					}
					items, err := r.w.Next(timeout(t))
					if err != nil {
						t.Errorf("%s: %v", r.what, err)
						return
					}
					for _, i := range items {
						e, err := i.Event()
						if err != nil {
							t.Error(err)
							return
						}
						if e.Op != event.Progress {
							r.got = append(r.got, *e)
						}
					}
					if r.pause {
						time.Sleep(time.Millisecond)
					}
				}
			})
		}
		for range 80 {
			f.some()
		}
		end.Store(uint64(f.fold.Index()))
		done.Wait()
		for _, r := range runs {
			compare(t, r.what, r.got, after(f.want, r.from, r.lets))
		}
	}
}

// What is of a unit in parts names its end from the first event on, and a filter that
// keeps the last entry back is told where it has ended.
func TestUnitEnds(t *testing.T) {
	l := openLog(t, edgelog.Options{})
	f := newFeed(t, l, 1, 1)
	f.first()
	from := f.fold.Index()
	for i := range 7 {
		f.put(1, i+1, 0, "x")
	}
	f.put(2, 1, 0, "y")
	f.unit(3)
	f.commit()
	h := newHub(t, l)
	compare(t, "all", read(t, watch(t, h, Options{From: at(from)}), f.fold.Index()), after(f.want, from, nil))
	w := watch(t, h, Options{From: at(from), Tables: []string{"public.a"}, Beat: time.Hour})
	got := read(t, w, from+7)
	compare(t, "a", got, after(f.want, from, func(e *event.Event) bool { return e.Table == "public.a" }))
	if got[0].UnitEnd != from+8 {
		t.Errorf("the unit ends at %v, want %v", got[0].UnitEnd, from+8)
	}
	items, err := w.Next(timeout(t))
	if err != nil || len(items) != 1 || items[0].Op() != event.Progress || items[0].ID() != (event.ID{Epoch: 1, Index: from + 8}) {
		t.Fatalf("behind the unit come %v, %v, want its end", items, err)
	}
	// A place within the unit.
	compare(t, "within", read(t, watch(t, h, Options{From: at(from + 4)}), f.fold.Index()), after(f.want, from+4, nil))
}

// An edge that holds some tables has batches without the entries of others, and among
// them those that end units.
func TestPartial(t *testing.T) {
	filter, err := millrace.NewFilter([]string{"public.a"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	l := openLog(t, edgelog.Options{SegmentBytes: 2 << 10})
	f := newFeed(t, l, 1, seed(t))
	f.rewriter = millrace.NewRewriter(filter, nil)
	f.first()
	for range 100 {
		f.some()
	}
	h := newHub(t, l, func(c *Config) {
		c.RingBytes, c.Holds = 4<<10, func() *millrace.Filter { return filter }
	})
	for _, o := range []Options{{}, {Tables: []string{"public.b"}}, {Tables: []string{"public.a", "public.b"}}} {
		if _, err := h.Watch(timeout(t), o); !errors.Is(err, ErrNotHeld) {
			t.Errorf("Watch(%+v) of an edge without b: %v", o, err)
		}
	}
	for _, from := range []millrace.Index{2, f.fold.Index() / 3, f.fold.Index() - 20} {
		got := read(t, watch(t, h, Options{From: at(from), Tables: []string{"public.a"}, Beat: time.Millisecond}), f.fold.Index())
		want := after(f.want, from, func(e *event.Event) bool { return e.Table == "public.a" })
		for i := range got {
			if got[i].Time.IsZero() && i < len(want) {
				want[i].Time = time.Time{} // the entry that had it is not here
			}
		}
		compare(t, from.String(), got, want)
	}
}

// Tables are told as they were at each place, wherever reading begins.
func TestSchemas(t *testing.T) {
	l := openLog(t, edgelog.Options{})
	f := newFeed(t, l, 1, 1)
	f.first()
	f.put(1, 1, 0, "x")
	f.unit(1)
	f.schema(schema(3, 1, "renamed", "id", "note", "doc"))
	f.put(1, 2, 0, "x", "{\"a\":1}")
	f.unit(1)
	f.entry(&millrace.Entry{Kind: millrace.KindDrop, Table: 2}, &event.Event{Op: event.Drop})
	f.entry(&millrace.Entry{Kind: millrace.KindQuarantine, Table: 1, Key: f.key(1, 3), Quarantine: &millrace.Quarantined{Kind: millrace.KindPut, Reason: "too large"}},
		&event.Event{Op: event.Quarantine, Key: []string{"3"}, Reason: "too large"})
	f.unit(2)
	f.schema(schema(4, 3, "b", "id", "note"))
	f.entry(&millrace.Entry{Kind: millrace.KindLoadBegin, Table: 3, Load: 1}, nil)
	f.put(3, 5, 0, "live")
	row := millrace.AppendRow(nil, 4, []millrace.Datum{{Text: []byte("6")}, {Text: []byte("loaded")}})
	f.entry(&millrace.Entry{Kind: millrace.KindPut, Table: 3, Load: 1, Key: f.key(3, 6), Row: row}, nil)
	f.entry(&millrace.Entry{Kind: millrace.KindLoadEnd, Table: 3, Load: 1}, &event.Event{Op: event.Reload})
	f.unit(1)
	f.commit()
	h := newHub(t, l, func(c *Config) { c.RingBytes = 1 })
	// The first watcher keeps the hub's ring where it is.
	watch(t, h, Options{})
	for from := range f.fold.Index() {
		compare(t, from.String(), read(t, watch(t, h, Options{From: at(from)}), f.fold.Index()), after(f.want, from, nil))
	}
	// A name that is none any more is told what it became.
	was := func(e *event.Event) bool { return e.Table == "public.a" || e.Was == "public.a" }
	got := read(t, watch(t, h, Options{From: at(2), Tables: []string{"public.a", "public.renamed"}, Beat: time.Millisecond}), f.fold.Index())
	compare(t, "renamed", got, after(f.want, 2, func(e *event.Event) bool { return was(e) || e.Table == "public.renamed" }))
	for _, tt := range []struct {
		o    Options
		want error
	}{
		{Options{Tables: []string{"public.nothing"}}, ErrNoTable},
		{Options{Tables: []string{"public.a"}}, ErrNoTable},
		{Options{Prefix: "1"}, ErrPrefix},
		{Options{Tables: []string{"public.b"}, Prefix: "x"}, ErrPrefix},
		{Options{Tables: []string{"public.b"}, Prefix: "1,2"}, ErrPrefix},
		{Options{Tables: []string{"public.b"}, Prefix: "%zz"}, ErrPrefix},
		{Options{From: &event.ID{Epoch: 2}}, ErrEpochAhead},
	} {
		if _, err := h.Watch(timeout(t), tt.o); !errors.Is(err, tt.want) {
			t.Errorf("Watch(%+v): %v, want %v", tt.o, err, tt.want)
		}
	}
}

// json that was written over several lines comes on one.
func TestOneLine(t *testing.T) {
	l := openLog(t, edgelog.Options{})
	f := newFeed(t, l, 1, 1)
	f.schema(schema(1, 1, "a", "id", "doc"))
	f.put(1, 1, 0, "{\"a\":\r\n 1,\n\"b\": \"\\n\"}")
	f.unit(1)
	f.commit()
	h := newHub(t, l)
	w := watch(t, h, Options{From: at(1)})
	for {
		items, err := w.Next(timeout(t))
		if err != nil {
			t.Fatal(err)
		}
		if items[0].Op() == event.Progress {
			continue
		}
		text, err := items[0].JSON()
		if err != nil || slices.Contains(text, '\n') || slices.Contains(text, '\r') {
			t.Errorf("got %q, %v", text, err)
		}
		return
	}
}

// A watcher that waits is told when something comes, and where it stands when nothing
// does. One whose place is ahead is told nothing, and misses nothing.
func TestWaiting(t *testing.T) {
	l := openLog(t, edgelog.Options{})
	f := newFeed(t, l, 1, 1)
	f.first()
	h := newHub(t, l)
	w, ahead := watch(t, h, Options{Beat: time.Millisecond}), watch(t, h, Options{From: at(f.fold.Index() + 2), Beat: time.Millisecond})
	for range 3 {
		items, err := w.Next(timeout(t))
		if err != nil || len(items) != 1 || items[0].Op() != event.Progress || items[0].ID() != (event.ID{Epoch: 1, Index: f.fold.Index()}) {
			t.Fatalf("got %v, %v", items, err)
		}
	}
	if _, err := ahead.Next(timeout(t)); err != nil { // where it begins
		t.Fatal(err)
	}
	if items, err := ahead.Next(timeout(t)); err != nil || len(items) != 0 {
		t.Fatalf("ahead: got %v, %v", items, err)
	}
	from := f.fold.Index()
	for i := range 3 {
		f.put(1, i, 0, "x")
	}
	f.unit(1)
	f.commit()
	compare(t, "waiting", read(t, w, f.fold.Index()), after(f.want, from, nil))
	compare(t, "ahead", read(t, ahead, f.fold.Index()), after(f.want, from+2, nil))

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	idle := watch(t, h, Options{Beat: time.Hour})
	if _, err := idle.Next(timeout(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := idle.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	go func() { _ = h.Close() }()
	if _, err := idle.Next(timeout(t)); !errors.Is(err, ErrClosed) {
		t.Errorf("closed: %v", err)
	}
	if _, err := h.Watch(timeout(t), Options{}); !errors.Is(err, ErrClosed) {
		t.Errorf("Watch of a closed hub: %v", err)
	}
}

// What the log has dropped is told, at the start and in the middle of a watch.
func TestPruned(t *testing.T) {
	l := openLog(t, edgelog.Options{MaxBytes: 8 << 10, SegmentBytes: 1 << 10})
	f := newFeed(t, l, 1, 1)
	f.first()
	h := newHub(t, l, func(c *Config) { c.RingBytes = 1 })
	w := watch(t, h, Options{})
	slow := watch(t, h, Options{From: at(0)})
	if _, err := slow.Next(timeout(t)); err != nil {
		t.Fatal(err)
	}
	for range 200 {
		f.some()
	}
	compare(t, "end", read(t, watch(t, h, Options{From: at(f.want[len(f.want)-3].Index)}), f.fold.Index()), f.want[len(f.want)-2:])
	oldest := l.Status().Oldest - 1
	for _, err := range []error{
		func() error { _, err := h.Watch(timeout(t), Options{From: at(0)}); return err }(),
		func() error {
			for {
				if _, err := slow.Next(timeout(t)); err != nil {
					return err
				}
			}
		}(),
		func() error {
			for {
				if _, err := w.Next(timeout(t)); err != nil {
					return err
				}
			}
		}(),
	} {
		var pruned *edgelog.PrunedError
		if !errors.As(err, &pruned) || pruned.Oldest != oldest {
			t.Errorf("got %v, want that the log begins after %v", err, oldest)
		}
	}
	if _, err := h.Watch(timeout(t), Options{From: at(oldest)}); err != nil {
		t.Errorf("from the oldest place: %v", err)
	}
}

// When readers go over to a new epoch, watchers are told once, and go on there.
func TestEpoch(t *testing.T) {
	var current atomic.Pointer[edgelog.Log]
	dir := t.TempDir()
	l := openLog(t, edgelog.Options{Dir: dir})
	current.Store(l)
	f := newFeed(t, l, 1, 1)
	f.first()
	h := newHub(t, l, func(c *Config) { c.Log = current.Load })
	w, filtered := watch(t, h, Options{From: at(0)}), watch(t, h, Options{Tables: []string{"public.a"}, Beat: time.Millisecond})
	compare(t, "first epoch", read(t, w, f.fold.Index()), f.want)
	if _, err := filtered.Next(timeout(t)); err != nil {
		t.Fatal(err)
	}

	next := openLog(t, edgelog.Options{Dir: dir})
	g := newFeed(t, next, 2, 1)
	g.first()
	g.put(1, 1, 0, "anew")
	g.unit(1)
	g.commit()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if items, err := filtered.Next(timeout(t)); err != nil || len(items) > 1 || len(items) == 1 && items[0].Op() != event.Progress {
		t.Fatalf("without a log: %v, %v", items, err)
	}
	current.Store(next)
	begun := g.fold.Index()
	for _, w := range []*Watcher{w, filtered, watch(t, h, Options{From: at(1)})} {
		var got event.ID
		for got.Epoch != 2 {
			items, err := w.Next(timeout(t))
			if err != nil {
				t.Fatal(err)
			}
			if len(items) > 0 && items[0].Op() == event.Epoch {
				got = items[0].ID()
			}
		}
		if want := (event.ID{Epoch: 2, Index: begun}); got != want {
			t.Errorf("the epoch begins at %v, want %v", got, want)
		}
	}
	g.put(1, 2, 0, "more")
	g.unit(1)
	g.commit()
	want := after(g.want, begun, nil)
	compare(t, "second epoch", read(t, w, g.fold.Index()), want)
	compare(t, "second epoch, filtered", read(t, filtered, g.fold.Index()), want)
}

func TestLimits(t *testing.T) {
	l := openLog(t, edgelog.Options{})
	newFeed(t, l, 1, 1).first()
	h := newHub(t, l, func(c *Config) { c.MaxWatchers = 2 })
	w := watch(t, h, Options{})
	watch(t, h, Options{})
	if _, err := h.Watch(timeout(t), Options{}); !errors.Is(err, ErrTooMany) {
		t.Fatalf("a third of two: %v", err)
	}
	w.Close()
	watch(t, h, Options{})
	none := newHub(t, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if _, err := none.Watch(ctx, Options{}); !errors.Is(err, ErrNotReady) {
		t.Errorf("without a log: %v", err)
	}
	for _, c := range []Config{{}, {Log: func() *edgelog.Log { return l }, RingBytes: -1}} {
		if _, err := New(c); err == nil {
			t.Errorf("New(%+v) took it", c)
		}
	}
}
