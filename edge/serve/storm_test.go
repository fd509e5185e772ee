package serve_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace-db/millrace/edge"
	"github.com/millrace-db/millrace/edge/serve"
)

// heap is how many bytes are in use once what is no longer needed is given back.
func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func dial(t *testing.T, address string) net.Conn {
	t.Helper()
	conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() }) // some are closed before
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// Many that ask for large answers of every kind and do not read them hold no snapshot,
// and no more memory than the server has for them: the others are turned away, until
// they are gone.
func TestSlowReaders(t *testing.T) {
	store, src := newStoreOf(t, 2)
	const rowSize, most = 8 << 20, 24 << 20
	src.unit(put(t, recordsSchema(), "large", "1", "t", strings.Repeat("x", rowSize)))
	s := newServer(t, store, func(c *serve.Config) { c.Listen, c.MaxBuffered, c.ShutdownTimeout = "127.0.0.1:0", most, time.Second })
	run(t, s)
	before := heap()
	paths := []string{
		streamURL + "/tables/dns.records/rows/1,large,t", streamURL + "/tables/dns.records/rows?prefix=1", restURL + "/records?zone=eq.1",
		restURL + "/records?zone=eq.1&order=live.desc&select=name,data",
	}
	served, turned := 0, 0
	var conns []net.Conn
	for i := range 24 {
		conn := dial(t, s.Addr())
		conns = append(conns, conn)
		if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: localhost\r\nAccept-Profile: dns\r\n\r\n", paths[i%len(paths)]); err != nil {
			t.Fatal(err)
		}
		// The status and no more. The socket's buffers fill, and the answer waits.
		line, err := bufio.NewReaderSize(conn, 16).ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case strings.Contains(line, " 200 "):
			served++
		case strings.Contains(line, " 503 "):
			turned++
		default:
			t.Errorf("%s: %s", paths[i%len(paths)], line)
		}
	}
	if served == 0 || turned == 0 || served > most/rowSize+1 {
		t.Errorf("%d were answered and %d turned away", served, turned)
	}
	// An answer is made with room to grow, so it may take twice its size for a moment.
	if grown := int64(heap()) - int64(before); grown > 2*most {
		t.Errorf("%d slow readers take %d bytes", len(conns), grown)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for range 2 {
		if err := store.View(ctx, func(*edge.View) error { return nil }); err != nil {
			t.Errorf("no view is free: %v", err)
		}
	}
	for _, conn := range conns {
		_ = conn.Close() // with what was not read
	}
	deadline := time.Now().Add(time.Minute)
	for {
		if a := fetch(t, client("tcp", s.Addr()), "http://"+s.Addr()+paths[0]); a.status == 200 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("what slow readers took is not given back")
		}
	}
}

// Headers have a bound, and those that are sent piece by piece hold little.
func TestHugeHeaders(t *testing.T) {
	store, _ := newStore(t)
	s := newServer(t, store, func(c *serve.Config) { c.Listen, c.ShutdownTimeout = "127.0.0.1:0", time.Second })
	run(t, s)
	before := heap()
	long := strings.Repeat("x", 1<<20)
	for _, request := range []string{
		"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: " + long + "\r\n\r\n",
		"GET /rest/bank/accounts?id=eq." + long + " HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"GET /livez HTTP/1.1\r\nHost: localhost\r\n" + strings.Repeat("X: y\r\n", 1<<17) + "\r\n",
	} {
		conn := dial(t, s.Addr())
		go func() { _, _ = io.WriteString(conn, request) }() // it is cut off
		line, err := bufio.NewReader(conn).ReadString('\n')
		if err != nil || !strings.Contains(line, " 431 ") {
			t.Errorf("%.60s…: %q, %v, want 431", request, line, err)
		}
		_ = conn.Close()
	}
	// A query as long as may be is answered.
	var list strings.Builder
	for i := range 1900 {
		fmt.Fprintf(&list, "%d,", 1_000_000+i)
	}
	if a := fetch(t, client("tcp", s.Addr()), "http://"+s.Addr()+restURL+"/accounts?id=in.("+list.String()+"5)&select=id"); a.body != `[{"id":5}]` {
		t.Errorf("a long list: got %d %.200s", a.status, a.body)
	}
	if a := fetch(t, client("tcp", s.Addr()), "http://"+s.Addr()+restURL+"/accounts?id=in.("+list.String()+list.String()+"5)"); a.status != 400 || !strings.Contains(a.body, "PGRST127") {
		t.Errorf("a longer list: got %d %.200s", a.status, a.body)
	}
	for range 100 {
		conn := dial(t, s.Addr())
		if _, err := io.WriteString(conn, "GET /livez HTTP/1.1\r\nHost: localhost\r\nX: "+long[:100<<10]); err != nil {
			t.Fatal(err)
		}
	}
	if grown := int64(heap()) - int64(before); grown > 64<<20 {
		t.Errorf("100 headers of 100 KiB that do not end take %d bytes", grown)
	}
	if a := fetch(t, client("tcp", s.Addr()), "http://"+s.Addr()+"/livez"); a.status != 200 {
		t.Errorf("beside them: got %d", a.status)
	}
}

// Clients that go away at any moment leave nothing behind: no view, no waiter, no memory
// that is counted. That no goroutine is left is looked at when all tests have run.
func TestCancelStorm(t *testing.T) {
	store, src := newStoreOf(t, 2)
	src.unit(put(t, recordsSchema(), "large", "1", "t", strings.Repeat("x", 1<<20)))
	s := newServer(t, store, func(c *serve.Config) { c.Listen, c.MaxBuffered, c.MaxWaiters = "127.0.0.1:0", 64<<20, 50 })
	run(t, s)
	paths := []string{
		streamURL + "/tables/public.accounts/rows/5", streamURL + "/tables/dns.records/rows", streamURL + "/tables/dns.records/rows/1,large,t",
		streamURL + "/tables/public.accounts/rows/5?wait=30s&min_index=999999", restURL + "/accounts?order=balance.desc", restURL + "/accounts?id=eq.3",
		streamURL + "/status", "/v1/openapi.json",
	}
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	c := &http.Client{Transport: transport}
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for i := range 60 {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rand.IntN(3000))*time.Microsecond)
				r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.Addr()+paths[i%len(paths)], http.NoBody)
				if err == nil {
					var resp *http.Response
					if resp, err = c.Do(r); err == nil {
						_, _ = io.CopyN(io.Discard, resp.Body, int64(rand.IntN(1<<20))) // part of it, or all
						_ = resp.Body.Close()
					}
				}
				cancel()
			}
		})
	}
	all.Wait()
	deadline := time.Now().Add(time.Minute)
	for !strings.Contains(get(t, s, "/metrics").body, "\nmillrace_serve_waiting 0\n") {
		if time.Now().After(deadline) {
			t.Fatal("waiters are left")
		}
	}
	for _, path := range paths[:3] {
		if a := fetch(t, client("tcp", s.Addr()), "http://"+s.Addr()+path); a.status != 200 {
			t.Errorf("%s after the storm: got %d %.200s", path, a.status, a.body)
		}
	}
}
