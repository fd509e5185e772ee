package serve_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace-db/millrace/edge"
	"github.com/millrace-db/millrace/edge/serve"
	"github.com/millrace-db/millrace/internal/testdir"
)

// run starts a server and returns what ends it and gives Run's error.
func run(t *testing.T, s *serve.Server) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	if err := s.Listen(ctx); err != nil {
		cancel()
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop = sync.OnceValue(func() error {
		cancel()
		select {
		case err := <-done:
			return err
		case <-time.After(time.Minute):
			return errors.New("Run does not end")
		}
	})
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
	return stop
}

// client talks to one listener and keeps no connections.
func client(network, address string) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, address)
		},
	}}
}

func fetch(t *testing.T, c *http.Client, target string) answer {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, target, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }() // read to its end below
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, string(body)}
}

func TestRunOnTCPAndUnix(t *testing.T) {
	store, src := newStore(t)
	path := filepath.Join(testdir.For(t), "edge.sock")
	s := newServer(t, store, func(c *serve.Config) { c.Listen, c.Unix = "127.0.0.1:0", path })
	stop := run(t, s)
	for _, c := range []struct {
		name   string
		client *http.Client
		base   string
	}{{"tcp", client("tcp", s.Addr()), "http://" + s.Addr()}, {"localhost", client("tcp", s.Addr()), "http://localhost"}, {"unix", client("unix", path), "http://edge"}} {
		a := fetch(t, c.client, c.base+streamURL+"/tables/dns.records/rows/7,b%2Cc,t")
		if want := `{"name":"b,c","zone":7,"live":true,"data":"data of b,c"}` + "\n"; a.status != 200 || a.body != want {
			t.Errorf("%s: got %d %s, want %s", c.name, a.status, a.body, want)
		}
		checkPlace(t, c.name, a, src.index)
		a = fetch(t, c.client, c.base+streamURL+"/tables/dns.records/rows?prefix=7,a*&limit=1")
		if a.status != 200 || !strings.Contains(a.body, `"cursor":"`) {
			t.Errorf("%s: scan: got %d %s", c.name, a.status, a.body)
		}
		if a := fetch(t, c.client, c.base+"/metrics"); a.status != 200 || !strings.Contains(a.body, "millrace_serve") {
			t.Errorf("%s: metrics: got %d", c.name, a.status)
		}
	}
	// What a browser sends whose name for this host is a stranger's.
	if a := fetch(t, client("tcp", s.Addr()), "http://rebound.example"+streamURL+"/status"); a.status != 421 || a.code(t) != "bad_host" {
		t.Errorf("foreign host: got %d %s", a.status, a.body)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("socket: %v, %v", info.Mode(), err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left behind: %v", err)
	}
}

func TestRefusesAddresses(t *testing.T) {
	store, _ := newStore(t)
	for address, want := range map[string]string{
		"0.0.0.0:7480":     "only loopback addresses are served",
		":7480":            "only loopback addresses are served",
		"[::]:7480":        "only loopback addresses are served",
		"192.168.1.1:7480": "only loopback addresses are served",
		"example.com:7480": "only loopback addresses are served",
		"7480":             "give host and port",
	} {
		_, err := serve.New(serve.Config{Streams: map[string]serve.Reader{"bank": store}, Listen: address})
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "mend:") {
			t.Errorf("%s: got %v, want %q and a mend", address, err, want)
		}
	}
	s := newServer(t, store)
	if err := s.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "neither") {
		t.Errorf("nothing to listen on: got %v", err)
	}
}

func TestTakenPort(t *testing.T) {
	store, _ := newStore(t)
	first := newServer(t, store, func(c *serve.Config) { c.Listen = "127.0.0.1:0" })
	run(t, first)
	path := filepath.Join(testdir.For(t), "edge.sock")
	second := newServer(t, store, func(c *serve.Config) { c.Listen, c.Unix = first.Addr(), path })
	err := second.Run(t.Context())
	if want := "listen on " + first.Addr() + ": the port is taken"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %q", err, want)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket was made: %v", err)
	}
}

func TestUnixSocketInTheWay(t *testing.T) {
	store, _ := newStore(t)
	dir := testdir.For(t)
	on := func(path string) *serve.Server {
		return newServer(t, store, func(c *serve.Config) { c.Listen, c.Unix = "127.0.0.1:0", path })
	}
	// One of a process that died: listening socket closed, file left.
	stale := filepath.Join(dir, "stale.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	run(t, on(stale))
	if a := fetch(t, client("unix", stale), "http://edge/livez"); a.status != 200 {
		t.Errorf("after a stale socket: got %d", a.status)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		stale:                               "in use by another process",
		file:                                "is no socket",
		filepath.Join(dir, "none", "s"):     "its directory does not exist",
		"/" + strings.Repeat("x", 120):      "use a shorter path",
		filepath.Join(file, "under-a-file"): "listen on unix socket",
	} {
		err := on(path).Listen(t.Context())
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: got %v, want %q", path, err, want)
		}
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != "x" {
		t.Errorf("the file in the way was touched: %q, %v", text, err)
	}
	if a := fetch(t, client("unix", stale), "http://edge/livez"); a.status != 200 {
		t.Errorf("the first server after all that: got %d", a.status)
	}
}

// A client that reads slowly holds no snapshot.
func TestSlowClientHoldsNoSnapshot(t *testing.T) {
	store, src := newStoreOf(t, 1)
	large := strings.Repeat("x", 15<<20)
	src.unit(put(t, recordsSchema(), "large", "1", "t", large))
	s := newServer(t, store, func(c *serve.Config) { c.Listen, c.ShutdownTimeout = "127.0.0.1:0", time.Millisecond })
	stop := run(t, s)
	conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }() // cut off by the server
	if _, err := fmt.Fprintf(conn, "GET %s/tables/dns.records/rows/1,large,t HTTP/1.1\r\nHost: localhost\r\n\r\n", streamURL); err != nil {
		t.Fatal(err)
	}
	// The answer has begun, so the snapshot was given back; the rest fills the
	// socket's buffers and waits.
	if err := conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, make([]byte, 1024)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := store.View(ctx, func(*edge.View) error { return nil }); err != nil {
		t.Errorf("the one view that may be open is not free while the client reads: %v", err)
	}
	// It does not hold up the end either.
	if err := stop(); err != nil {
		t.Error(err)
	}
}

func TestCloseWithoutRun(t *testing.T) {
	store, _ := newStore(t)
	s := newServer(t, store, func(c *serve.Config) { c.Listen = "127.0.0.1:0" })
	if err := s.Listen(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
