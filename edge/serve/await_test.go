package serve_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge"
	"github.com/millrace-db/millrace/edge/event"
	"github.com/millrace-db/millrace/edge/serve"
	"github.com/millrace-db/millrace/internal/edgetest"
)

func TestMinIndex(t *testing.T) {
	store, src := newStore(t)
	s := newServer(t, store)
	path := streamURL + "/tables/public.accounts/rows/5"
	at := func(index millrace.Index, more string) string {
		return fmt.Sprintf("%s?min_index=%d%s", path, index, more)
	}
	if a := get(t, s, at(src.index, "")); a.status != 200 {
		t.Errorf("what is there: got %d %s", a.status, a.body)
	}
	for _, more := range []string{"", "&wait=0s", "&wait=10ms"} {
		a := get(t, s, at(src.index+1, more))
		if a.status != 504 || a.code(t) != "behind" || a.header.Get("X-Millrace-Index") != src.index.String() {
			t.Errorf("%q: got %d %s at %s", more, a.status, a.body, a.header.Get("X-Millrace-Index"))
		}
	}
	if a := askWith(t, s, http.MethodGet, restURL+"/accounts", "X-Millrace-Min-Index", "999999", "X-Millrace-Wait", "1ms"); a.status != 504 || !strings.Contains(a.body, `"code":"millrace.behind"`) {
		t.Errorf("rest: got %d %s", a.status, a.body)
	}
	// With its epoch. That of the store is 1: an older one is behind it whatever the index.
	for id, want := range map[string]int{
		event.ID{Epoch: 1, Index: src.index}.String(): 200, event.ID{Epoch: 1, Index: src.index + 1}.String(): 504, "2-0": 504, "2-1": 504,
	} {
		if a := get(t, s, path+"?min_index="+id); a.status != want || want == 504 && a.code(t) != "behind" {
			t.Errorf("%s: got %d %s, want %d", id, a.status, a.body, want)
		}
		if a := askWith(t, s, http.MethodGet, restURL+"/accounts", "X-Millrace-Min-Index", id); a.status != want {
			t.Errorf("rest, %s: got %d %s, want %d", id, a.status, a.body, want)
		}
	}
	for more, want := range map[string]string{
		"?min_index=0-1": "bad_index", "?min_index=1-2-3": "bad_index",
		"?min_index=x": "bad_index", "?min_index=-1": "bad_index", "?wait=1s": "bad_wait",
		"?min_index=1&wait=x": "bad_wait", "?min_index=1&wait=31s": "bad_wait", "?min_index=1&wait=-1s": "bad_wait",
	} {
		if a := get(t, s, path+more); a.status != 400 || a.code(t) != want {
			t.Errorf("%s: got %d %s, want %s", more, a.status, a.body, want)
		}
	}
	// Whoever waits gets the answer of the index, and nothing of before.
	var all sync.WaitGroup
	results := make(chan answer, 8)
	want := src.index + 1
	for i := range cap(results) {
		all.Go(func() {
			if i%2 == 0 {
				results <- get(t, s, at(want, "&wait=30s"))
				return
			}
			results <- ask(t, s, http.MethodPost, fmt.Sprintf("%s/rows:get?min_index=%d&wait=30", streamURL, want), `{"keys":[{"table":"public.accounts","key":[5]}]}`)
		})
	}
	src.unit(put(t, accountsSchema(), "5", "77", "2024-01-02 03:04:05+00", "NULL"))
	all.Wait()
	close(results)
	for a := range results {
		if a.status != 200 || !strings.Contains(a.body, `"balance":77`) {
			t.Errorf("waited: got %d %s", a.status, a.body)
		}
	}
}

// movedReader says that it is further than the store that it reads: readers have gone over to
// another one between the look at its place and the read.
type movedReader struct{ *edge.Store }

func (m movedReader) Place() edge.Place {
	p := m.Store.Place()
	p.Index += 100
	return p
}

// An answer, also that there is no row, is of the index that was asked for.
func TestMinIndexOfAnotherStore(t *testing.T) {
	store, src := newStore(t)
	s := newServer(t, store, func(c *serve.Config) { c.Streams["bank"] = movedReader{store} })
	for _, path := range []string{
		streamURL + "/tables/public.accounts/rows/5", streamURL + "/tables/public.accounts/rows/999", streamURL + "/tables/public.accounts/rows",
	} {
		if a := get(t, s, fmt.Sprintf("%s?min_index=%d", path, src.index+1)); a.status != 503 || a.code(t) != "moved" {
			t.Errorf("%s: got %d %s", path, a.status, a.body)
		}
		if a := get(t, s, fmt.Sprintf("%s?min_index=%d", path, src.index)); a.status == 503 {
			t.Errorf("%s: got %d %s of what is there", path, a.status, a.body)
		}
	}
	for _, path := range []string{restURL + "/accounts", restURL + "/accounts?id=eq.999"} {
		if a := askWith(t, s, http.MethodGet, path, "X-Millrace-Min-Index", (src.index + 1).String()); a.status != 503 || !strings.Contains(a.body, "millrace.moved") {
			t.Errorf("%s: got %d %s", path, a.status, a.body)
		}
	}
}

// What is there is answered without a wait, also while another process writes the store and
// nobody has read it since.
func TestMinIndexOfAStoreThatAnotherProcessWrites(t *testing.T) {
	store, src := newStore(t)
	s := newServer(t, store, func(c *serve.Config) { c.Streams["bank"] = &edgetest.LateReader{Store: store} })
	if a := get(t, s, fmt.Sprintf("%s/tables/public.accounts/rows/5?min_index=%d", streamURL, src.index)); a.status != 200 {
		t.Errorf("got %d %s", a.status, a.body)
	}
}

// aged says that it is of a later epoch than its rows were written in.
type aged struct{ *edge.Store }

func (a aged) Place() edge.Place {
	p := a.Store.Place()
	p.Epoch += 2
	return p
}

// What was of an older epoch is in a newer one, whatever its index was.
func TestMinIndexOfAnOlderEpoch(t *testing.T) {
	store, src := newStore(t)
	s := newServer(t, store, func(c *serve.Config) { c.Streams["bank"] = aged{store} })
	at := event.ID{Epoch: 2, Index: src.index + 1000}
	newer := openStore(t, t.TempDir(), 0)
	next := newSource(t, newer)
	next.epoch = 3
	a := accountsSchema()
	next.unit(schemaEntry(a), loadEntry(a, millrace.KindLoadBegin, 1))
	next.unit(loadEntry(a, millrace.KindLoadEnd, 1), put(t, a, "5", "9", "2024-01-02 03:04:05+00", "NULL"))
	if a := get(t, newServer(t, newer), streamURL+"/tables/public.accounts/rows/5?min_index="+at.String()); a.status != 200 || a.header.Get("X-Millrace-Epoch") != "3" {
		t.Errorf("from a store of a newer epoch: got %d %s", a.status, a.body)
	}
	// The row is then read from the store of epoch 1, and that is not passed off as the answer.
	if a := get(t, s, streamURL+"/tables/public.accounts/rows/5?min_index="+at.String()); a.status != 503 || a.code(t) != "moved" {
		t.Errorf("got %d %s", a.status, a.body)
	}
	at.Epoch = 4
	if a := get(t, s, streamURL+"/tables/public.accounts/rows/5?min_index="+at.String()); a.status != 504 {
		t.Errorf("of a newer epoch: got %d %s", a.status, a.body)
	}
}

// Those who wait are a bounded number. They end with their client, and with the server.
func TestWaitersAreBounded(t *testing.T) {
	store, src := newStore(t)
	s := newServer(t, store, func(c *serve.Config) { c.Listen, c.MaxWaiters = "127.0.0.1:0", 2 })
	stop := run(t, s)
	url := fmt.Sprintf("http://%s%s/tables/public.accounts/rows/5?min_index=%d&wait=30s", s.Addr(), streamURL, src.index+1)
	status := make(chan int, 3)
	wait := func(ctx context.Context) {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
		if err != nil {
			t.Error(err)
		}
		resp, err := client("tcp", s.Addr()).Do(r)
		if err != nil {
			status <- 0
			return
		}
		_ = resp.Body.Close() // only its status matters
		status <- resp.StatusCode
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var all sync.WaitGroup
	all.Go(func() { wait(ctx) })
	all.Go(func() { wait(t.Context()) })
	deadline := time.Now().Add(time.Minute)
	waiting := func(want int) {
		t.Helper()
		for !strings.Contains(get(t, s, "/metrics").body, fmt.Sprintf("\nmillrace_serve_waiting %d\n", want)) {
			if time.Now().After(deadline) {
				t.Fatalf("there are not %d that wait", want)
			}
		}
	}
	waiting(2)
	busy := func() bool {
		a := fetch(t, client("tcp", s.Addr()), fmt.Sprintf("http://%s%s/tables/public.accounts/rows/5?min_index=%d&wait=1ms", s.Addr(), streamURL, src.index+1))
		return a.status == 503 && a.code(t) == "busy"
	}
	if !busy() {
		t.Error("a third one may wait beside two")
	}
	cancel() // its client goes away
	if got := <-status; got != 0 {
		t.Errorf("the client that went away got %d", got)
	}
	waiting(1)
	if busy() {
		t.Error("a second one may not wait beside one")
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	if got := <-status; got != 503 {
		t.Errorf("at the end of the server: got %d, want 503", got)
	}
	all.Wait()
}

// A cursor goes on across restarts, and is gone where its rows were replaced.
func TestCursorAndRows(t *testing.T) {
	store, src := newStore(t)
	page := func(cursor string) answer {
		t.Helper()
		return get(t, newServer(t, store), streamURL+"/tables/public.accounts/rows?limit=2&cursor="+cursor) // another server each time
	}
	cursorOf := func(a answer) string {
		t.Helper()
		_, rest, ok := strings.Cut(a.body, `"cursor":"`)
		if !ok {
			t.Fatalf("no cursor in %d %s", a.status, a.body)
		}
		return rest[:strings.IndexByte(rest, '"')]
	}
	cursor := cursorOf(page(""))
	if a := page(cursor); a.status != 200 || !strings.Contains(a.body, `{"id":3,`) {
		t.Errorf("next page: got %d %s", a.status, a.body)
	}
	src.unit(put(t, accountsSchema(), "3", "1", "2024-01-02 03:04:05+00", "NULL"))
	if a := page(cursor); a.status != 200 || !strings.Contains(a.body, `{"id":3,`) {
		t.Errorf("after a change: got %d %s", a.status, a.body)
	}
	s := accountsSchema()
	src.unit(&millrace.Entry{Kind: millrace.KindTruncate, Table: s.Table})
	if a := page(cursor); a.status != 410 || a.code(t) != "cursor_gone" || !strings.Contains(a.body, "truncation") {
		t.Errorf("after a truncation: got %d %s", a.status, a.body)
	}
	var rows []*millrace.Entry
	for i := range 5 {
		rows = append(rows, put(t, s, fmt.Sprint(i), "1", "2024-01-02 03:04:05+00", "NULL"))
	}
	src.unit(rows...)
	cursor = cursorOf(page(""))
	src.unit(loadEntry(s, millrace.KindLoadBegin, 3))
	if a := page(cursor); a.status != 200 {
		t.Errorf("while a load is under way: got %d %s", a.status, a.body)
	}
	src.unit(loadEntry(s, millrace.KindLoadEnd, 3))
	if a := page(cursor); a.status != 410 {
		t.Errorf("after a load: got %d %s", a.status, a.body)
	}
}
