package serve_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge/access"
	edgelog "github.com/millrace-db/millrace/edge/log"
	"github.com/millrace-db/millrace/edge/relay"
	"github.com/millrace-db/millrace/edge/serve"
	"github.com/millrace-db/millrace/internal/tlsfiles"
)

// relays serves the log of one stream with a handler.
type relays struct{ handler http.Handler }

func (relays) Upstream(string) *serve.UpstreamStatus {
	return &serve.UpstreamStatus{URL: "http://above"}
}
func (relays) Children(string) []serve.ChildStatus { return []serve.ChildStatus{{Node: "below"}} }
func (r relays) Handler(string) http.Handler       { return r.handler }

// noLog is an edge that has nothing yet.
type noLog struct{}

func (noLog) Log(millrace.Epoch) *edgelog.Log    { return nil }
func (noLog) Epochs() (now, next millrace.Epoch) { return 1, 0 }
func (noLog) Path() []string                     { return nil }

// An edge on another host follows over TLS with its right, and nobody else does.
func TestRelayOverTLS(t *testing.T) {
	server, err := relay.NewServer(relay.ServerConfig{Node: "upstream", Local: noLog{}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close() })
	s := newSecured(t, `
edge-2  cert:edge-2  relay:bank
reader  cert:reader  read:*
partly  cert:partly  read:bank/public.accounts
`, func(c *serve.Config) { c.Relays = relays{server} })
	for name, want := range map[string]int{"edge-2": http.StatusUpgradeRequired, "reader": http.StatusForbidden} {
		if a := s.as("", name)("GET", "/v1/streams/bank/relay", ""); a.status != want {
			t.Errorf("%s gets %d, want %d", name, a.status, want)
		}
	}
	if a := s.as("", "edge-2")("GET", "/v1/streams/dns/relay", ""); a.status != http.StatusForbidden {
		t.Errorf("edge-2 gets %d for another stream", a.status)
	}
	for name, want := range map[string]bool{"reader": true, "partly": false} {
		a := s.as("", name)("GET", "/v1/streams/bank/status", "")
		for _, word := range []string{"http://above", "below"} {
			if a.status != http.StatusOK || strings.Contains(a.body, word) != want {
				t.Errorf("%s gets %d: %s; want %s in it: %v", name, a.status, a.body, word, want)
			}
		}
	}
	up, err := relay.ParseUpstream(s.url)
	if err != nil {
		t.Fatal(err)
	}
	files := tlsfiles.ClientFiles{CA: s.ca.File}
	files.Cert, files.Key = s.ca.Issue("client-edge-2", "edge-2")
	peers, err := tlsfiles.NewClient(files, nil)
	if err != nil {
		t.Fatal(err)
	}
	client, err := relay.NewClient(relay.ClientConfig{
		Node: "edge-2", Stream: "bank", Upstreams: []relay.Upstream{up}, Applied: func() relay.Applied { return relay.Applied{} },
		TLS: peers.TLS, Authorize: peers.Authorize,
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = client.Open(t.Context(), relay.From{Epoch: 1})
	if err == nil || client.Status().Upstreams[0].Problem != "upstream refuses: "+s.url+": upstream has no log of the stream yet (no_log)" {
		t.Errorf("over TLS it is told %v", err)
	}
}

// An edge that loses its right is no longer served.
func TestRelayLosesItsRight(t *testing.T) {
	t.Parallel() // it waits for what is looked at every ten seconds
	var list atomic.Pointer[access.List]
	set := func(text string) {
		parsed, err := access.Parse([]byte(text))
		if err != nil {
			t.Error(err)
		}
		list.Store(parsed)
	}
	set("edge-2 cert:edge-2 relay:bank\n")
	s := newSecured(t, "", func(c *serve.Config) {
		c.Access = list.Load
		c.Relays = relays{http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			set("edge-2 cert:edge-2 images:bank\n")
			ctx, cancel := context.WithTimeout(r.Context(), time.Minute)
			defer cancel()
			<-ctx.Done()
			if errors.Is(ctx.Err(), context.Canceled) {
				w.WriteHeader(http.StatusGone)
			}
		})}
	})
	if a := s.as("", "edge-2")("GET", "/v1/streams/bank/relay", ""); a.status != http.StatusGone {
		t.Errorf("its request ends with %d", a.status)
	}
}
