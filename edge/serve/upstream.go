package serve

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge/access"
)

// Relays says whom a stream follows at this edge, and who follows it, and serves those.
type Relays interface {
	// Upstream is nil where the stream is read from Kafka alone.
	Upstream(stream string) *UpstreamStatus
	// Children are the edges that follow the stream here.
	Children(stream string) []ChildStatus
	// Handler serves the stream's log to other edges; nil where none is kept.
	Handler(stream string) http.Handler
}

// UpstreamStatus says which edge a stream follows.
type UpstreamStatus struct {
	// URL is that of the edge, empty while none is followed, and Node its name.
	URL  string `json:"url"`
	Node string `json:"node"`
	// Path are the names of the edges above this one, the nearest first; Depth is how
	// many there are.
	Path  []string `json:"path"`
	Depth int      `json:"depth"`
	// Index is where the upstream stands; Behind is how many entries of that are not
	// applied here, and BehindSeconds by how much they are younger, by the source's
	// clock.
	Index         millrace.Index `json:"index"`
	Behind        millrace.Index `json:"behind"`
	BehindSeconds float64        `json:"behind_seconds"`
	// Upstreams are all that may be followed, in the order in which they are tried.
	Upstreams []UpstreamCandidate `json:"upstreams"`
}

// UpstreamCandidate is an edge that may be followed.
type UpstreamCandidate struct {
	URL       string `json:"url"`
	Secondary bool   `json:"secondary,omitempty"`
	// Epoch, Oldest and Newest are what its log holds, as it said at HeardAt.
	Epoch   millrace.Epoch `json:"epoch"`
	Oldest  millrace.Index `json:"oldest"`
	Newest  millrace.Index `json:"newest"`
	HeardAt *time.Time     `json:"heard_at"`
	// Problem is why it does not serve; Untrue is what it gave that is not of the
	// stream's history, for which it is left alone.
	Problem string `json:"problem,omitempty"`
	Untrue  string `json:"untrue,omitempty"`
}

// ChildStatus is an edge that follows a stream here.
type ChildStatus struct {
	Node    string `json:"node"`
	Address string `json:"address"`
	// Epoch and Index are where it stands.
	Epoch millrace.Epoch `json:"epoch"`
	Index millrace.Index `json:"index"`
	Since time.Time      `json:"since"`
}

// relayOf returns what serves a stream's log to other edges, nil for other paths.
func (s *Server) relayOf(path string) http.Handler {
	rest, ok := strings.CutPrefix(path, streamsPath+"/")
	if !ok || s.config.Relays == nil {
		return nil
	}
	name, ok := strings.CutSuffix(rest, "/relay")
	if !ok || strings.Contains(name, "/") {
		return nil
	}
	stream, err := unescape(name)
	if err != nil || s.streams[stream] == nil {
		return nil // dispatch says so
	}
	return s.config.Relays.Handler(stream)
}

// serveRelay serves an edge that follows this one, for as long as it has the right to: it
// outlives many a token.
func (s *Server) serveRelay(h http.Handler, w http.ResponseWriter, r *http.Request) {
	if access.From(r.Context()) == nil {
		h.ServeHTTP(w, r)
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	var work sync.WaitGroup
	defer work.Wait()
	defer cancel()
	work.Go(func() {
		tick := time.NewTicker(rightsEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if s.admit(s.config.Access().Find(shown(r)), r) != nil {
				cancel() // who asks again is told why
				return
			}
		}
	})
	h.ServeHTTP(w, r.WithContext(ctx))
}
