package relay

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace-db/millrace"
	edgelog "github.com/millrace-db/millrace/edge/log"
)

// Protocol names the version of the protocol in the header Upgrade.
const Protocol = "millrace-relay/1"

// Local is what an edge has of a stream.
type Local interface {
	// Log returns the log of an epoch, nil if none is kept; 0 stands for the epoch that
	// readers use. A log that was closed is asked for again.
	Log(epoch millrace.Epoch) *edgelog.Log
	// Epochs returns the epoch that readers use, and a newer one that has begun, 0 if
	// none is known.
	Epochs() (now, next millrace.Epoch)
	// Path returns the nodes above this one, the nearest first.
	Path() []string
}

// Rewriter makes of a record, as it stands in the topic, what a child with a filter
// gets. The result is valid until the next call, and may be the record itself.
type Rewriter func(record []byte) ([]byte, error)

// ServerConfig says what is served of one stream. Node and Local must be set.
type ServerConfig struct {
	// Node is this edge's name.
	Node  string
	Local Local
	// MaxPeers is the most children that are served at once. Default 64.
	MaxPeers int
	// MaxRate bounds the bytes of the log that one child gets in a second. 0 for no
	// bound.
	MaxRate int64
	// Stall is how long a child may take in nothing before it is cut off. Default 30 s.
	Stall time.Duration
	// Silence is how long a child may say nothing before it is cut off. Default 30 s.
	Silence time.Duration
	// Beat is how often a child is told where this node stands. Default 1 s.
	Beat time.Duration
	// Filter makes a Rewriter of a child's filter, or says why it cannot. It is asked
	// about children without a filter too: a nil Rewriter sends records as they are. nil
	// refuses all filters.
	Filter func(filter []byte) (Rewriter, error)
	// Reports takes what children report, by the name of the child; nil drops it. The
	// payload belongs to it. It must not block for long: the child's next frames wait.
	Reports func(childNode string, payload []byte)
	// Logger takes transitions; nil drops them.
	Logger *slog.Logger
	// Registerer takes metrics; nil drops them.
	Registerer prometheus.Registerer
}

// Server serves the log of one stream to other edges. It is an http.Handler, safe for
// concurrent use.
type Server struct {
	config  ServerConfig
	metrics *serverMetrics
	ctx     context.Context //nolint:containedctx // of all connections, until Close
	cancel  context.CancelFunc
	work    sync.WaitGroup

	mu     sync.Mutex
	closed bool
	feeds  map[*feed]struct{}
}

// NewServer returns a server. The caller calls Close.
func NewServer(c ServerConfig) (*Server, error) {
	if err := checkNode(c.Node); err != nil {
		return nil, fmt.Errorf("make relay: %w", err)
	}
	if c.Local == nil {
		return nil, errors.New("make relay: what is to be served must be given")
	}
	setDefault(&c.MaxPeers, 64)
	setDefault(&c.Stall, 30*time.Second)
	setDefault(&c.Silence, 30*time.Second)
	setDefault(&c.Beat, time.Second)
	if c.MaxPeers < 0 || c.MaxRate < 0 || c.Stall < 0 || c.Silence < 0 || c.Beat < 0 {
		return nil, errors.New("make relay: numbers and times must not be negative")
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{config: c, feeds: make(map[*feed]struct{})}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.metrics = newServerMetrics(s)
	return s, nil
}

// checkNode says what makes a name unusable.
func checkNode(name string) error {
	if name == "" || len(name) > maxNode || name != oneLine(name) {
		return fmt.Errorf("%q is no name of a node: want 1 to %d bytes of printable text", name, maxNode)
	}
	return nil
}

func setDefault[T comparable](v *T, value T) {
	var zero T
	if *v == zero {
		*v = value
	}
}

// Close ends all connections, and returns when nothing runs any more.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	s.work.Wait()
	s.metrics.unregister()
	return nil
}

// Peer is a child that is being served.
type Peer struct {
	// Node is its name, Address where it comes from.
	Node, Address string
	// Epoch and Index are where it stands, as it says.
	Epoch millrace.Epoch
	Index millrace.Index
	// Since is when it came.
	Since time.Time
}

// Peers returns the children that are being served, by their names.
func (s *Server) Peers() []Peer {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []Peer
	for f := range s.feeds {
		if p := f.peer(); p.Node != "" {
			all = append(all, p)
		}
	}
	slices.SortFunc(all, func(a, b Peer) int { return strings.Compare(a.Node, b.Node) })
	return all
}

// ServeHTTP upgrades a request, and serves the child until it goes or is cut off, or the
// context of the request ends.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet {
		w.Header().Set("Allow", http.MethodGet)
		s.refuse(w, http.StatusMethodNotAllowed, "the method is "+r.Method+"; mend: use GET")
		return
	}
	if !hasToken(r.Header, "Connection", "upgrade") || !hasToken(r.Header, "Upgrade", Protocol) {
		w.Header().Set("Upgrade", Protocol)
		w.Header().Set("Connection", "Upgrade")
		s.refuse(w, http.StatusUpgradeRequired, "this is for other edges; mend: ask with Connection: Upgrade and Upgrade: "+Protocol)
		return
	}
	f := &feed{s: s, since: time.Now(), address: r.RemoteAddr, life: r.Context()}
	if !s.admit(f) {
		w.Header().Set("Retry-After", "5")
		s.metrics.refused.WithLabelValues("busy").Inc()
		s.refuse(w, http.StatusServiceUnavailable, "as many edges follow this one as may: "+strconv.Itoa(s.config.MaxPeers)+"; mend: name another edge, or raise edge.relay.max_peers here")
		return
	}
	defer s.leave(f)
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		s.refuse(w, http.StatusInternalServerError, "the connection cannot be upgraded")
		s.config.Logger.Warn("a connection cannot be upgraded", "error", err)
		return
	}
	defer func() { _ = conn.Close() }() // nothing more is to be said
	if err := s.upgrade(conn, buffered); err != nil {
		return // the child is gone
	}
	f.conn, f.in = conn, buffered.Reader
	f.serve()
}

func (s *Server) upgrade(conn net.Conn, buffered *bufio.ReadWriter) error {
	// The deadlines of the request are over.
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return err
	}
	if err := conn.SetWriteDeadline(time.Now().Add(s.config.Stall)); err != nil {
		return err
	}
	if _, err := buffered.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + Protocol + "\r\n\r\n"); err != nil {
		return err
	}
	if err := buffered.Flush(); err != nil {
		return err
	}
	return conn.SetWriteDeadline(time.Time{}) // each frame gets its own
}

func (s *Server) refuse(w http.ResponseWriter, status int, text string) { http.Error(w, text, status) }

// hasToken looks for a token in a header that lists some.
func hasToken(h http.Header, name, token string) bool {
	for _, value := range h.Values(name) {
		for part := range strings.SplitSeq(value, ",") {
			if strings.EqualFold(strings.TrimSpace(part), token) {
				return true
			}
		}
	}
	return false
}

// admit enters a child, unless there are as many as may be.
func (s *Server) admit(f *feed) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || len(s.feeds) >= s.config.MaxPeers {
		return false
	}
	s.feeds[f] = struct{}{}
	s.work.Add(1)
	return true
}

func (s *Server) leave(f *feed) {
	s.mu.Lock()
	delete(s.feeds, f)
	s.mu.Unlock()
	s.work.Done()
}
