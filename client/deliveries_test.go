package client_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/client"
	"github.com/millrace-db/millrace/edge/event"
	edgelog "github.com/millrace-db/millrace/edge/log"
)

var (
	seedFlag     = flag.Uint64("seed", 0, "seed of the random tests; 0 takes another each time")
	watchersFlag = flag.Int("watchers", 20, "watchers of the test of deliveries")
	eventsFlag   = flag.Int("events", 2000, "events of the test of deliveries")
)

// cutter leads connections to an edge, and cuts each off after a random number of bytes.
type cutter struct {
	l     net.Listener
	to    string
	seed  uint64
	cuts  atomic.Int64
	conns atomic.Int64
	work  sync.WaitGroup
}

func newCutter(t *testing.T, to string, seed uint64) *cutter {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "c"))
	if err != nil {
		t.Fatal(err)
	}
	c := &cutter{l: l, to: to, seed: seed}
	c.work.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			c.work.Go(func() { c.lead(conn) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		c.work.Wait()
	})
	return c
}

func (c *cutter) lead(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	edge, err := new(net.Dialer).DialContext(context.Background(), "unix", c.to)
	if err != nil {
		return
	}
	defer func() { _ = edge.Close() }()
	rnd := rand.New(rand.NewPCG(c.seed, uint64(c.conns.Add(1)))) //nolint:gosec // a test that can be repeated
	most := int64(200 + rnd.IntN(40_000))
	if rnd.IntN(4) == 0 {
		most *= 20
	}
	c.work.Go(func() {
		_, _ = io.Copy(edge, conn) // until either end is closed
		_ = edge.Close()
	})
	if n, _ := io.CopyN(conn, edge, most); n == most {
		c.cuts.Add(1)
	}
}

// Every watcher is told every change once, in order, through connections that are cut off
// anywhere and an edge that restarts, and memory stays bounded. With -watchers 100 -events
// 10000 it is a million deliveries.
func TestDeliveries(t *testing.T) {
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("repeat with -seed %d", seed)
	e := newEdge(t, edgelog.Options{SegmentBytes: 256 << 10})
	cut := newCutter(t, e.unix, seed)
	c := newClient(t, client.Config{Unix: cut.l.Addr().String(), Patience: deadline})
	begin := e.fold.Index()
	want := make([]event.Event, 0, *eventsFlag)

	var peak atomic.Uint64
	sampled := make(chan struct{})
	end := make(chan struct{})
	go func() {
		defer close(sampled)
		var m runtime.MemStats
		for {
			runtime.ReadMemStats(&m)
			peak.Store(max(peak.Load(), m.HeapInuse))
			select {
			case <-end:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()

	type watcher struct {
		o    client.WatchOptions
		lets func(*event.Event) bool
		got  []millrace.Index
		err  error
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Minute)
	defer cancel()
	last := begin + millrace.Index(*eventsFlag)
	watchers := make([]*watcher, *watchersFlag)
	var work sync.WaitGroup
	rnd := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // a test that can be repeated
	began := time.Now()
	for i := range watchers {
		w := &watcher{o: client.WatchOptions{Progress: true, Heartbeat: time.Second}, lets: func(*event.Event) bool { return true }}
		w.o.From = &event.ID{Epoch: 1, Index: begin}
		switch i % 10 {
		case 8:
			w.o.Tables, w.lets = []string{"public.a"}, func(e *event.Event) bool { return e.Table == "public.a" }
		case 9:
			w.o.Tables, w.o.Prefix = []string{"public.b"}, "7"
			w.lets = func(e *event.Event) bool { return e.Table == "public.b" && e.Key[0] == "7" }
		}
		watchers[i] = w
		pauses := rand.New(rand.NewPCG(seed, uint64(i+1))) //nolint:gosec // a test that can be repeated
		work.Go(func() {
			got := c.Watch(w.o)
			defer func() { got.Close() }()
			for got.ID().Index < last {
				told, err := got.Next(ctx)
				if err != nil {
					w.err = err
					return
				}
				if told.Op != event.Progress {
					w.got = append(w.got, told.Index)
				}
				switch pauses.IntN(2000) {
				case 0: // a process that begins again with the place that it has kept
					id := got.ID()
					got.Close()
					w.o.From = &id
					got = c.Watch(w.o)
				case 1:
					time.Sleep(time.Duration(pauses.IntN(20)) * time.Millisecond)
				}
			}
		})
	}
	for len(want) < *eventsFlag {
		for range min(1+rnd.IntN(30), *eventsFlag-len(want)) {
			table, id := millrace.TableID(1+rnd.IntN(2)), 1+rnd.IntN(30)
			told := event.Event{Op: event.Put, Index: begin + millrace.Index(len(want)) + 1, Table: e.schemas[table].QualifiedName(), Key: []string{fmt.Sprint(id)}}
			e.put(table, id, note(rnd.IntN(1e6)))
			want = append(want, told)
		}
		e.commit()
		if rnd.IntN(*eventsFlag/40+1) == 0 {
			e.stop()
			e.serve()
		}
	}
	e.done()
	work.Wait()
	took := time.Since(began)
	close(end)
	<-sampled
	deliveries := 0
	for i, w := range watchers {
		if w.err != nil {
			t.Errorf("watcher %d: %v", i, w.err)
			continue
		}
		var all []millrace.Index
		for j := range want {
			if w.lets(&want[j]) {
				all = append(all, want[j].Index)
			}
		}
		if !slices.Equal(w.got, all) {
			t.Errorf("watcher %d of %v %s was told %d events, want %d", i, w.o.Tables, w.o.Prefix, len(w.got), len(all))
		}
		deliveries += len(w.got)
	}
	heap := float64(peak.Load()) / (1 << 20)
	t.Logf("%d events to %d watchers: %d deliveries in %v, %.0f/s; %d of %d connections cut off; heap in use at most %.0f MiB, watchers and edge together",
		len(want), len(watchers), deliveries, took.Round(time.Millisecond), float64(deliveries)/took.Seconds(), cut.cuts.Load(), cut.conns.Load(), heap)
	if most := 96 + 2*float64(len(watchers)); heap > most {
		t.Errorf("heap in use came to %.0f MiB, want at most %.0f", heap, most)
	}
	if cut.cuts.Load() == 0 {
		t.Error("no connection was cut off")
	}
}

// A watch ends with what the edge's log no longer has.
func TestWatchPruned(t *testing.T) {
	e := newEdge(t, edgelog.Options{MaxBytes: 8 << 10, SegmentBytes: 1 << 10})
	c := newClient(t, client.Config{Unix: e.unix})
	for i := range 200 {
		e.put(1, i, note(i))
		e.commit()
	}
	e.done()
	w := c.Watch(client.WatchOptions{From: &event.ID{Epoch: 1, Index: 1}})
	defer w.Close()
	_, err := w.Next(timeout(t))
	var pruned *client.PrunedError
	if !errors.Is(err, client.ErrPruned) || !errors.As(err, &pruned) || pruned.Oldest != (event.ID{Epoch: 1, Index: e.log.Status().Oldest - 1}) {
		t.Fatalf("got %v", err)
	}
	again := c.Watch(client.WatchOptions{From: &pruned.Oldest})
	defer again.Close()
	if told, err := again.Next(timeout(t)); err != nil || told.Index != pruned.Oldest.Index+1 {
		t.Fatalf("from the oldest place: %+v, %v", told, err)
	}
}
