package client_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace-db/millrace/client"
	"github.com/millrace-db/millrace/edge/event"
	edgelog "github.com/millrace-db/millrace/edge/log"
)

func TestReads(t *testing.T) {
	e := newEdge(t, edgelog.Options{})
	for i := range 10 {
		e.put(1, i, note(i))
	}
	e.put(2, 7, "with, comma and %")
	end := e.commit()
	e.done()
	ctx := timeout(t)
	for name, c := range map[string]*client.Client{"unix": newClient(t, client.Config{Unix: e.unix}), "tcp": newClient(t, client.Config{Peers: []string{e.url()}})} {
		row, place, err := c.Get(ctx, "public.a", "3")
		var got struct {
			ID   int
			Note string
		}
		if err == nil {
			err = row.Into(&got)
		}
		if err != nil || got.ID != 3 || got.Note != note(3) || place.Index != end || place.Epoch != 1 || place.Lag < 0 {
			t.Errorf("%s: Get: %+v at %+v, %v", name, got, place, err)
		}
		if _, place, err := c.Get(ctx, "public.a", "11"); !errors.Is(err, client.ErrNoRow) || place.Index != end {
			t.Errorf("%s: Get of nothing: %+v, %v", name, place, err)
		}
		var answer *client.Error
		if _, _, err := c.Get(ctx, "public.c", "1"); !errors.As(err, &answer) || answer.Code != "no_table" || errors.Is(err, client.ErrNoRow) || answer.Mend == "" {
			t.Errorf("%s: Get of no table: %v", name, err)
		}
		rows, place, err := c.GetAll(ctx, client.Key{Table: "public.b", Values: []string{"7"}}, client.Key{Table: "public.a", Values: []string{"12"}}, client.Key{Table: "public.a", Values: []string{"0"}})
		if err != nil || place.Index != end || len(rows) != 3 || string(rows[0].JSON) != `{"id":7,"note":"with, comma and %"}` || rows[1].Exists() || !rows[2].Exists() {
			t.Errorf("%s: GetAll: %v at %+v, %v", name, rows, place, err)
		}
		if err := rows[1].Into(&got); !errors.Is(err, client.ErrNoRow) {
			t.Errorf("%s: Into of nothing: %v", name, err)
		}
		for _, page := range []int{0, 1, 3, 10} {
			var ids []string
			for row, err := range c.Scan(ctx, client.Scan{Table: "public.a", Page: page}) {
				if err != nil {
					t.Fatal(err)
				}
				ids = append(ids, string(row.JSON[6:7]))
			}
			if got := strings.Join(ids, ""); got != "0123456789" {
				t.Errorf("%s: Scan in pages of %d: %s", name, page, got)
			}
		}
		for row, err := range c.Scan(ctx, client.Scan{Table: "public.b", Prefix: "x"}) {
			if err == nil || row.Exists() {
				t.Errorf("%s: Scan with a bad prefix gives %v, %v", name, row, err)
			}
		}
	}
}

// What is asked for at or after a place waits for it, and says so when it does not come.
func TestFresh(t *testing.T) {
	e := newEdge(t, edgelog.Options{})
	c := newClient(t, client.Config{Unix: e.unix})
	ctx := timeout(t)
	next := event.ID{Epoch: 1, Index: e.fold.Index() + 1}
	token := "1-1-0/" + "FFFF-1:1:" // of the made-up system, behind the next unit
	for what, fresh := range map[string]*client.Client{"index": c.Min(next, time.Millisecond), "token": c.After(token, time.Millisecond)} {
		if _, place, err := fresh.Get(ctx, "public.a", "1"); !errors.Is(err, client.ErrBehind) || place.Index != next.Index-1 {
			t.Errorf("%s that has not come: %v at %v", what, err, place)
		}
	}
	got := make(chan error, 1)
	go func() {
		_, place, err := c.Min(next, 30*time.Second).Get(ctx, "public.a", "1")
		if err == nil && place.Index < next.Index {
			err = errors.New("of index " + place.Index.String())
		}
		got <- err
	}()
	e.put(1, 1, "x")
	e.commit()
	e.done()
	if err := <-got; err != nil {
		t.Errorf("index that comes: %v", err)
	}
	if _, _, err := newClient(t, client.Config{Unix: e.unix, Patience: -1}).Min(event.ID{Epoch: 2, Index: 1}, 0).Get(ctx, "public.a", "1"); err == nil {
		t.Error("an answer of an older epoch was taken")
	}
	if _, _, err := newClient(t, client.Config{Unix: e.unix, Patience: -1}).Min(event.ID{Epoch: 2}, time.Millisecond).Get(ctx, "public.a", "1"); !errors.Is(err, client.ErrBehind) {
		t.Errorf("a place of a newer epoch: %v", err)
	}
	// That there is no row is an answer, too.
	_, _, err := newClient(t, client.Config{Unix: e.unix, Patience: -1}).Min(event.ID{Epoch: 2, Index: 1}, 0).Get(ctx, "public.a", "2")
	if err == nil || errors.Is(err, client.ErrNoRow) {
		t.Errorf("no row in an older epoch: %v", err)
	}
}

// While an edge restarts, requests are tried again, over the socket first and over peers.
func TestRestartsAreNotSeen(t *testing.T) {
	e := newEdge(t, edgelog.Options{})
	e.put(1, 1, "x")
	e.commit()
	e.done()
	c := newClient(t, client.Config{Unix: e.unix})
	var stop atomic.Bool
	var work sync.WaitGroup
	var reads atomic.Int64
	for range 4 {
		work.Go(func() {
			for !stop.Load() {
				if _, _, err := c.Get(timeout(t), "public.a", "1"); err != nil {
					t.Errorf("beside a restart: %v", err)
					return
				}
				reads.Add(1)
			}
		})
	}
	for range 10 {
		before := reads.Load()
		e.stop()
		e.serve()
		for began := time.Now(); reads.Load() == before && time.Since(began) < deadline; {
			time.Sleep(time.Millisecond)
		}
	}
	stop.Store(true)
	work.Wait()
}

func TestPeersAreFallBack(t *testing.T) {
	e, other := newEdge(t, edgelog.Options{}), newEdge(t, edgelog.Options{})
	for i, one := range []*testEdge{e, other} {
		one.put(1, 1, note(i))
		one.commit()
		one.done()
	}
	c := newClient(t, client.Config{Unix: e.unix, Peers: []string{"http://127.0.0.1:1", other.url()}})
	ask := func() string {
		t.Helper()
		row, _, err := c.Get(timeout(t), "public.a", "1")
		if err != nil {
			t.Fatal(err)
		}
		return string(row.JSON)
	}
	if got := ask(); !strings.Contains(got, note(0)) {
		t.Errorf("with the socket: %s", got)
	}
	w := c.Watch(client.WatchOptions{Progress: true})
	defer w.Close()
	if _, err := w.Next(timeout(t)); err != nil {
		t.Fatal(err)
	}
	e.stop()
	if got := ask(); !strings.Contains(got, note(1)) {
		t.Errorf("without the socket: %s", got)
	}
	other.put(1, 2, "more")
	end := other.commit()
	other.done()
	for {
		told, err := w.Next(timeout(t))
		if err != nil {
			t.Fatal(err)
		}
		if told.Op == event.Put && told.Index == end {
			break
		}
	}
	e.serve()
	for began := time.Now(); !strings.Contains(ask(), note(0)); time.Sleep(10 * time.Millisecond) {
		if time.Since(began) > deadline {
			t.Fatal("the socket is not asked again")
		}
	}
}

// What is not there is given up, within the patience that was asked for.
func TestUnreachable(t *testing.T) {
	nobody := filepath.Join(t.TempDir(), "s")
	c := newClient(t, client.Config{Unix: nobody, Patience: -1})
	if _, _, err := c.Get(timeout(t), "public.a", "1"); !errors.Is(err, client.ErrUnreachable) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without patience: %v", err)
	}
	patient := newClient(t, client.Config{Unix: nobody, Patience: time.Hour})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, _, err := patient.Get(ctx, "public.a", "1"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("with a context that ends: %v", err)
	}
	w := patient.Watch(client.WatchOptions{})
	if _, err := w.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("watch with a context that ends: %v", err)
	}
	patient.Close()
	if _, err := w.Next(t.Context()); !errors.Is(err, client.ErrClosed) {
		t.Errorf("watch of a closed client: %v", err)
	}
	for _, bad := range []client.Config{{}, {Stream: "x"}, {Stream: "x", Peers: []string{"ftp://x"}}, {Stream: "x", Peers: []string{"http://x/path"}}} {
		if _, err := client.New(bad); err == nil {
			t.Errorf("New(%+v) took it", bad)
		}
	}
}

// A token is shown to nobody over a plain connection to another process's port.
func TestTokenIsNotSentInTheClear(t *testing.T) {
	var got []string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = append(got, r.Header.Get("Authorization"))
		_, _ = w.Write([]byte("{}"))
	}))
	defer s.Close()
	secure := httptest.NewTLSServer(s.Config.Handler)
	defer secure.Close()
	ctx := timeout(t)
	plain := newClient(t, client.Config{Peers: []string{s.URL}, Token: "secret"})
	tls := newClient(t, client.Config{Peers: []string{secure.URL}, Token: "secret", TLS: secure.Client().Transport.(*http.Transport).TLSClientConfig})
	for _, c := range []*client.Client{plain, tls} {
		if _, _, err := c.Get(ctx, "public.a", "1"); err != nil {
			t.Fatal(err)
		}
	}
	if !slices.Equal(got, []string{"", "Bearer secret"}) {
		t.Errorf("got %q", got)
	}
}

// A connection that was idle, and that the edge closes as it is used again, is no failure:
// not of a request with a body either.
func TestClosedConnectionIsNotSeen(t *testing.T) {
	type count struct{ requests int }
	closed := 0
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Idempotency-Key") != "" {
			t.Error("the key is sent")
		}
		n := r.Context().Value(count{}).(*count)
		if n.requests++; n.requests > 1 {
			closed++
			panic(http.ErrAbortHandler)
		}
		_, _ = w.Write([]byte(`{"rows": [{"id": 1}]}`))
	}))
	s.Config.ConnContext = func(ctx context.Context, _ net.Conn) context.Context {
		return context.WithValue(ctx, count{}, new(count))
	}
	s.Start()
	defer s.Close()
	c := newClient(t, client.Config{Peers: []string{s.URL}, Patience: -1})
	for range 4 {
		if rows, _, err := c.GetAll(timeout(t), client.Key{Table: "public.a", Values: []string{"1"}}); err != nil || len(rows) != 1 {
			t.Fatalf("got %v, %v", rows, err)
		}
	}
	if closed == 0 {
		t.Error("no connection was used again")
	}
}

// An edge that has begun an answer and says no more is left.
func TestSilentEdgeIsLeft(t *testing.T) {
	e := newEdge(t, edgelog.Options{})
	e.done()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	var asked atomic.Int64
	silent := &http.Server{ReadHeaderTimeout: deadline, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if asked.Add(1) > 1 {
			panic(http.ErrAbortHandler) // it is found dead
		}
		w.Header().Set("Content-Type", "text/event-stream")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})}
	go func() { _ = silent.Serve(l) }()
	defer func() { _ = silent.Close() }()
	c := newClient(t, client.Config{Unix: l.Addr().String(), Peers: []string{e.url()}})
	w := c.Watch(client.WatchOptions{Progress: true, Heartbeat: 100 * time.Millisecond})
	defer w.Close()
	if told, err := w.Next(timeout(t)); err != nil || told.Op != event.Progress {
		t.Errorf("got %+v, %v", told, err)
	}
}

// The package and all that it needs are built without a C compiler: of the same files as
// with one, none of which needs it.
func TestNoCgo(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	files := func(cgo string) string {
		t.Helper()
		cmd := exec.CommandContext(ctx, "go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}} {{.GoFiles}} {{.CgoFiles}}{{end}}", ".", "../edge/event")
		cmd.Env = append(os.Environ(), "CGO_ENABLED="+cgo)
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	with, without := files("1"), files("0")
	if with != without {
		t.Errorf("with a C compiler it is built of\n%s, without of\n%s", with, without)
	}
	for line := range strings.Lines(with) {
		p, _, _ := strings.Cut(line, " ")
		if !strings.HasSuffix(line, " []\n") || strings.HasSuffix(p, "millrace/edge") || strings.Contains(p, "lmdb") || strings.Contains(p, "prometheus") {
			t.Errorf("it needs %s", line)
		}
	}
}
