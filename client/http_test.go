package client_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	edgelog "github.com/millrace-db/millrace/edge/log"
	"github.com/millrace-db/millrace/edge/serve"
	"github.com/millrace-db/millrace/edge/watch"
)

// answer is what an edge has answered, with a body that the test's end closes.
type answer struct {
	status int
	header http.Header
	body   io.Reader
}

// get asks an edge as any HTTP client does.
func get(t testing.TB, e *testEdge, path string, header ...string) answer {
	t.Helper()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", e.unix)
	}}
	t.Cleanup(transport.CloseIdleConnections)
	req, err := http.NewRequestWithContext(timeout(t), http.MethodGet, "http://edge/v1/streams/bank"+path, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	return answer{resp.StatusCode, resp.Header, resp.Body}
}

// lines reads the lines of an answer up to one that begins as given.
func lines(t testing.TB, r *bufio.Reader, until string) string {
	t.Helper()
	var all strings.Builder
	for {
		line, err := r.ReadString('\n')
		all.WriteString(line)
		if err != nil {
			t.Errorf("got %d bytes, then %v; want a line that begins %q", all.Len(), err, until)
			return all.String()
		}
		if strings.HasPrefix(line, until) {
			return all.String()
		}
	}
}

// What goes over the wire, byte for byte.
func TestWatchOverHTTP(t *testing.T) {
	e := newEdge(t, edgelog.Options{})
	e.put(2, 3, "x")
	e.commit()
	e.put(1, 7, "one\ntwo")
	e.delete(2, 3)
	e.commit()
	e.done()
	at := e.now.Format(time.RFC3339Nano)
	resp := get(t, e, "/watch?from=7&heartbeat=100ms")
	if got := resp.header.Get("Content-Type"); resp.status != 200 || got != "text/event-stream" || resp.header.Get("X-Millrace-Index") != "9" {
		t.Fatalf("%d %v", resp.status, resp.header)
	}
	r := bufio.NewReader(resp.body)
	const progress = "event: progress\nid: 1-%[1]d\ndata: {\"op\":\"progress\",\"epoch\":1,\"index\":%[1]d,\"unit_end\":%[1]d}\n\n"
	want := "retry: 500\n\n" + fmt.Sprintf(progress, 7) +
		"id: 1-8\ndata: {\"op\":\"put\",\"epoch\":1,\"index\":8,\"unit_end\":9,\"time\":\"" + at + "\",\"table\":\"public.a\",\"key\":[\"7\"],\"row\":{\"id\":7,\"note\":\"one\\ntwo\"}}\n\n" +
		"id: 1-9\ndata: {\"op\":\"delete\",\"epoch\":1,\"index\":9,\"unit_end\":9,\"time\":\"" + at + "\",\"table\":\"public.b\",\"key\":[\"3\"]}\n\n" +
		fmt.Sprintf(progress, 9)
	got := make([]byte, len(want))
	if _, err := io.ReadFull(r, got); err != nil || string(got) != want {
		t.Fatalf("got\n%s\n%v, want\n%s", got, err, want)
	}
	// Who resumes says how far it has come, with the query that it began with.
	resumed := bufio.NewReader(get(t, e, "/watch?from=6", "Last-Event-ID", "1-8").body)
	if got := lines(t, resumed, `data: {"op":"delete"`); strings.Contains(got, `"put"`) {
		t.Errorf("resumed: got %s", got)
	}
	for _, tt := range []struct {
		path, header string
		status       int
		code         string
	}{
		{"/watch?from=x", "", 400, "bad_index"},
		{"/watch", "1-2-3", 400, "bad_index"},
		{"/watch?table=public.nothing", "", 404, "no_table"},
		{"/watch?prefix=7", "", 400, "bad_prefix"},
		{"/watch?table=public.a&prefix=x", "", 400, "bad_prefix"},
		{"/watch?from=1&from=2", "", 400, "bad_query"},
		{"/watch?tabel=a", "", 400, "bad_query"},
		{"/watch?heartbeat=1h", "", 400, "bad_heartbeat"},
		{"/watch", "2-1", 503, "behind"},
		{"/watch/", "", 404, "no_route"},
	} {
		resp := get(t, e, tt.path, "Last-Event-ID", tt.header)
		var answer struct{ Error struct{ Code string } }
		if err := json.NewDecoder(resp.body).Decode(&answer); err != nil || resp.status != tt.status || answer.Error.Code != tt.code {
			t.Errorf("%s %s: %d %s, %v; want %d %s", tt.path, tt.header, resp.status, answer.Error.Code, err, tt.status, tt.code)
		}
	}
}

// A watcher that takes nothing is cut off, and costs others nothing meanwhile.
func TestSlowWatcherIsCutOff(t *testing.T) {
	e := newEdge(t, edgelog.Options{}, func(c *serve.Config) { c.WatchTimeout = 2 * time.Second })
	slow := get(t, e, "/watch?from=6&heartbeat=100ms")
	quick := bufio.NewReader(get(t, e, "/watch?from=6&heartbeat=100ms").body)
	var quicker sync.WaitGroup
	quicker.Go(func() { lines(t, quick, "id: 1-307") })
	text := strings.Repeat("x", 30<<10)
	for i := range 300 {
		e.put(1, i, text)
		e.commit()
	}
	e.put(1, 0, strings.Repeat("y", 1<<20)) // one that is sent from where it is shared
	if end := e.commit(); end != 307 {
		t.Fatalf("the last index is %v", end)
	}
	e.done()
	quicker.Wait()
	for began := time.Now(); e.watchers() > 1; {
		if time.Since(began) > deadline {
			t.Fatalf("there are %d watchers still", e.watchers())
		}
		time.Sleep(10 * time.Millisecond)
	}
	if n, err := io.Copy(io.Discard, slow.body); err == nil {
		t.Errorf("the slow one read %d bytes to a proper end", n)
	}
}

// A watcher that takes a large event a little at a time does not hold its place among the
// few for longer than that takes at the least rate.
func TestSlowlyTakenEventIsCutOff(t *testing.T) {
	const size = 15 << 20 // more than sockets hold
	e := newEdge(t, edgelog.Options{}, func(c *serve.Config) { c.WatchTimeout, c.WatchRate = 2*time.Second, 64<<20 })
	e.put(1, 0, strings.Repeat("y", size))
	e.commit()
	e.done()
	slow := get(t, e, "/watch?from=6&heartbeat=100ms")
	if e.watchers() != 1 {
		t.Fatalf("there are %d watchers, want 1", e.watchers())
	}
	buf := make([]byte, 16<<10)
	for read := 0; e.watchers() > 0; {
		n, err := slow.body.Read(buf)
		if read += n; read >= size {
			t.Fatal("all of the event was sent, and the watch goes on")
		}
		if err != nil {
			break
		}
		time.Sleep(20 * time.Millisecond) // never as long as the time-out for a piece
	}
}

// watchers counts those that the edge has, by what else could join.
func (e *testEdge) watchers() int {
	buf := make([]byte, 1<<20)
	return strings.Count(string(buf[:runtime.Stack(buf, true)]), "serve.(*eventSender).run(")
}

// Clients that come and go, whatever they ask for, leave nothing behind.
func TestCancelStorm(t *testing.T) {
	e := newEdge(t, edgelog.Options{})
	for i := range 50 {
		e.put(1, i, note(i))
		e.commit()
	}
	e.done()
	var work sync.WaitGroup
	for i := range 20 {
		work.Go(func() {
			for j := range 10 {
				conn, err := new(net.Dialer).DialContext(t.Context(), "unix", e.unix)
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = fmt.Fprintf(conn, "GET /v1/streams/bank/watch?from=%d HTTP/1.1\r\nHost: x\r\n\r\n", (i+j)%60)
				if j%2 == 0 {
					_, _ = conn.Read(make([]byte, 100*j+1))
				}
				_ = conn.Close()
			}
		})
	}
	work.Wait()
	e.stop()
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		w, err := e.hub.Watch(timeout(t), watch.Options{})
		if err != nil {
			t.Fatal(err)
		}
		w.Close()
		if e.watchers() == 0 {
			return
		}
		if time.Since(began) > deadline {
			t.Fatalf("%d watchers are left", e.watchers())
		}
	}
}
