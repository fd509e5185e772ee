package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge"
)

// fixed is a home whose store stays.
type fixed struct{ s *edge.Store }

func (f fixed) Store() *edge.Store { return f.s }
func (f fixed) Place() edge.Place  { return f.s.Place() }

func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.NewTimer(time.Minute)
	defer deadline.Stop()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-deadline.C:
			t.Fatalf("wait until %s", what)
		case <-tick.C:
		}
	}
}

// A running edge makes an image when another one asks, one at a time over all
// streams, and none where one is new enough.
func TestMaker(t *testing.T) {
	dir := t.TempDir()
	images := filepath.Join(dir, "images")
	turns := NewTurns(1)
	empty := openStore(t, options(filepath.Join(dir, "empty")))
	none, err := NewMaker(MakerConfig{Home: fixed{empty}, Dir: images, Turns: turns})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := none.Ask(millrace.Place{}); err == nil || errors.Is(err, ErrBusy) {
		t.Errorf("image of an empty store: %v", err)
	}
	s := newSource(t, openStore(t, options(filepath.Join(dir, "store"))))
	s.unit(1)
	registry := prometheus.NewRegistry()
	m, err := NewMaker(MakerConfig{Home: fixed{s.store}, Dir: images, Turns: turns, Keep: 2, Registerer: registry})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.StripPrefix("/images", Handler(images, m)))
	defer server.Close()
	body := "{}"
	ask := func(contentType string) (int, Listing, string) {
		t.Helper()
		q, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL+"/images", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		q.Header.Set("Content-Type", contentType)
		r, err := server.Client().Do(q)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = r.Body.Close() }()
		var l Listing
		_ = json.NewDecoder(r.Body).Decode(&l)
		return r.StatusCode, l, r.Header.Get("Retry-After")
	}
	const asJSON = "application/json"
	if status, _, _ := ask("text/plain"); status != http.StatusUnsupportedMediaType {
		t.Errorf("a request that a page could make is answered with %d", status)
	}
	turns <- struct{}{} // another stream's
	if status, _, retry := ask(asJSON); status != http.StatusServiceUnavailable || retry == "" {
		t.Errorf("while another one is being made: %d, Retry-After %q", status, retry)
	}
	<-turns
	if status, l, _ := ask(asJSON); status != http.StatusAccepted || l.Making == nil {
		t.Errorf("asked for the first: %d, %+v", status, l)
	}
	if status, l, _ := ask(asJSON); status != http.StatusAccepted || l.Making == nil { // it has not begun
		t.Errorf("asked again: %d, %+v", status, l)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); m.Run(ctx) }()
	until(t, "the image is there", func() bool { return m.Making() == nil })
	status, l, _ := ask(asJSON)
	if status != http.StatusOK || len(l.Images) != 1 || l.Images[0].Index != uint64(s.index) {
		t.Errorf("there is one: %d, %+v", status, l)
	}
	s.unit(2)
	if status, l, _ := ask(asJSON); status != http.StatusOK || len(l.Images) != 1 || l.Making != nil {
		t.Errorf("there is one of a moment ago: %d, %+v", status, l)
	}
	// Who says that it is of no use gets a newer one.
	body = fmt.Sprintf(`{"epoch": 2, "newer_than": %d}`, l.Images[0].Index)
	if status, l, _ := ask(asJSON); status != http.StatusAccepted || l.Making == nil {
		t.Errorf("asked for a newer one: %d, %+v", status, l)
	}
	until(t, "the newer one is there", func() bool { all, _ := List(images); return m.Making() == nil && len(all) == 2 })
	body = "rubbish"
	if status, _, _ := ask(asJSON); status != http.StatusBadRequest {
		t.Errorf("rubbish is answered with %d", status)
	}
	cancel()
	<-ended
	if len(turns) != 0 {
		t.Error("a turn was not given back")
	}
	if all, err := registry.Gather(); err != nil || len(all) != 0 {
		t.Errorf("metrics are left: %v, %v", all, err)
	}
	// Nobody is told that one is being made which will never be.
	s.unit(3)
	body = `{"epoch": 9}`
	if status, l, _ := ask(asJSON); status != http.StatusConflict || l.Making != nil || m.Making() != nil || len(turns) != 0 {
		t.Errorf("asked after the end: %d, %+v, %d turns taken", status, l, len(turns))
	}

	// Unasked: the first at once, and while it can be no other at its time.
	own := filepath.Join(dir, "own")
	m, err = NewMaker(MakerConfig{Home: fixed{s.store}, Dir: own, Turns: turns, Keep: 2, Every: 2 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	ended = make(chan struct{})
	go func() { defer close(ended); m.Run(ctx) }()
	until(t, "the first is there", func() bool { all, _ := List(own); return len(all) == 1 })
	s.unit(4)
	until(t, "the second is there", func() bool { all, _ := List(own); return len(all) == 2 })
	cancel()
	<-ended
	if wait := m.wait(); wait <= 0 || wait > 5*time.Second {
		t.Errorf("the next one comes after %v", wait)
	}
}
