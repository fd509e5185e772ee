package relay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge"
	"github.com/millrace-db/millrace/internal/config"
	"github.com/millrace-db/millrace/internal/follow"
	"github.com/millrace-db/millrace/internal/testdir"
)

// forest is a source and edges of this process that follow it, and each other.
type forest struct {
	t       testing.TB
	brokers []string
	topic   string
	trusted *millrace.Keyring
	dir     string
	source  *source
	all     []*member
}

// member is an edge of a forest.
type member struct {
	t      testing.TB
	id     string
	level  int
	stream *follow.Stream
	http   *httptest.Server
	gate   *gate
	cancel context.CancelFunc
	ended  chan struct{}
	err    error

	mu sync.Mutex
	// seen are the times at which indexes were here, in their order.
	seen []seen
}

type seen struct {
	index millrace.Index
	at    time.Time
}

// gate lets bytes of a listener's connections through, or holds them.
type gate struct {
	mu     sync.Mutex
	open   chan struct{} // closed while bytes go through
	shut   chan struct{} // closed at the end
	closed bool
}

func newGate() *gate {
	g := &gate{open: make(chan struct{}), shut: make(chan struct{})}
	close(g.open)
	return g
}

func (g *gate) hold() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open = make(chan struct{})
}

func (g *gate) end() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.closed {
		g.closed = true
		close(g.shut)
	}
}

func (g *gate) pass() {
	g.mu.Lock()
	open := g.open
	g.mu.Unlock()
	select {
	case <-open:
	case <-g.shut:
	}
}

type gatedListener struct {
	net.Listener
	g *gate
}

func (l gatedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return gatedConn{c.(*net.TCPConn), l.g}, nil
}

type gatedConn struct {
	*net.TCPConn
	g *gate
}

func (c gatedConn) Write(b []byte) (int, error) {
	c.g.pass()
	return c.TCPConn.Write(b)
}

// serveGated serves a relay's log at the path that children ask for.
func serveGated(h http.Handler, g *gate) *httptest.Server {
	mux := http.NewServeMux()
	mux.Handle("/v1/streams/s/relay", h)
	s := httptest.NewUnstartedServer(mux)
	s.Listener = gatedListener{s.Listener, g}
	s.Start()
	return s
}

func newForest(t testing.TB, brokers []string, topic string) *forest {
	f := &forest{t: t, brokers: brokers, topic: topic, dir: testdir.For(t)}
	t.Cleanup(func() {
		for _, m := range f.all {
			m.stop()
		}
	})
	return f
}

// grow starts an edge of a level; without upstreams it follows Kafka.
func (f *forest) grow(id string, level int, upstreams ...string) *member {
	f.t.Helper()
	if len(upstreams) == 0 {
		return f.plant(id, level, fmt.Sprintf("kafka: {brokers: [%q], topic: %q}", f.brokers[0], f.topic), "upstream: kafka")
	}
	return f.plant(id, level, "", "upstream: "+list(upstreams...))
}

func list(urls ...string) string { return `["` + strings.Join(urls, `", "`) + `"]` }

// plant starts an edge with some lines of the configuration of stream and edge.
func (f *forest) plant(id string, level int, stream, more string) *member {
	f.t.Helper()
	text := fmt.Sprintf("streams:\n  - name: s\n    id: %v\n    %s\nedge:\n  id: %s\n  data_dir: %q\n  images: {dir: %q}\n  map_size: 64MiB\n  report: 1h\n  %s\n",
		streamID, stream, id, filepath.Join(f.dir, id), filepath.Join(f.dir, id, "images"), more)
	c, err := config.Parse("test.yaml", []byte(text), nil)
	if err != nil {
		f.t.Fatal(err)
	}
	m := &member{t: f.t, id: id, level: level, ended: make(chan struct{}), gate: newGate()}
	log := slog.New(slog.NewTextHandler(f.t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})).With("edge", id)
	m.stream, err = follow.New(follow.Config{Whole: c, Stream: c.Stream("s"), Trusted: f.trusted, Version: "test", Logger: log, Metrics: prometheus.NewRegistry()})
	if err != nil {
		f.t.Fatal(err)
	}
	m.http = serveGated(m.stream.Relay(), m.gate)
	ctx, cancel := context.WithCancel(context.Background())
	m.cancel = cancel
	var work sync.WaitGroup
	work.Go(func() {
		m.err = m.stream.Run(ctx)
		cancel()
	})
	work.Go(func() { m.watch(ctx) })
	go func() {
		work.Wait()
		close(m.ended)
	}()
	f.all = append(f.all, m)
	return m
}

// watch notes when indexes are here.
func (m *member) watch(ctx context.Context) {
	var last millrace.Index
	for ctx.Err() == nil {
		changed := m.stream.Home().Store().Changed()
		if index := m.stream.Home().Place().Index; index > last {
			last = index
			m.mu.Lock()
			m.seen = append(m.seen, seen{index, time.Now()})
			m.mu.Unlock()
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
}

// stop ends an edge as a killed one ends for others: its connections are gone.
func (m *member) stop() {
	if m.cancel == nil {
		return
	}
	m.gate.end()
	m.http.CloseClientConnections()
	m.cancel()
	<-m.ended
	if err := m.stream.Close(); err != nil {
		m.t.Errorf("close edge %s: %v", m.id, err)
	}
	m.http.Close()
	m.cancel = nil
	if m.err != nil {
		m.t.Errorf("edge %s stopped: %v", m.id, m.err)
	}
}

// upstream is the name of the edge that m follows.
func (m *member) upstream() string {
	if s := m.stream.UpstreamStatus(); s != nil {
		return s.Node
	}
	return ""
}

// equal waits until an edge is where the source is, and wants the same chain, every table
// readable, and no row that was forged.
func (f *forest) equal(m *member) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), 2*time.Minute)
	defer cancel()
	want := f.source.fold.Index()
	if err := m.stream.Home().WaitIndex(ctx, want); err != nil {
		f.t.Errorf("edge %s is at index %v, the source at %v: %v; it follows %+v; fault: %v", m.id, m.stream.Home().Place().Index, want, err, m.stream.UpstreamStatus(), m.stream.Fault())
		return
	}
	if p := m.stream.Home().Place(); p.Index != want || p.Chain != f.source.fold.Chain() {
		f.t.Errorf("edge %s is at index %v chain %v, the source at %v %v", m.id, p.Index, p.Chain.Short(), want, f.source.fold.Chain().Short())
	}
	err := m.stream.Home().View(ctx, func(v *edge.View) error {
		contents, err := v.Contents()
		if err != nil {
			return err
		}
		for _, set := range contents.Sets {
			err := v.EachRow(ctx, set, func(_, row []byte) error {
				if bytes.Contains(row, []byte(forgedText)) {
					return errors.New("a forged row is stored")
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		f.t.Errorf("edge %s: %v", m.id, err)
	}
}
