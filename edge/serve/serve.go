// Package serve answers reads of an edge's stores over HTTP, on a loopback TCP
// address, on a unix socket, and over TLS.
//
// It owns the routes, the JSON that goes over them, the limits on what one
// client can ask for, and the listeners. Rows are read in one snapshot of the
// store and written to a buffer there; the network is written to only after the
// snapshot was given back, so a slow client never holds pages of the store.
// What is stored and whether it is whole is package edge's business.
//
//	GET  /v1/streams                                        status of every stream
//	GET  /v1/streams/{stream}/status                        how far the stream has come here
//	GET  /v1/streams/{stream}/tables                        its tables with columns and keys
//	GET  /v1/streams/{stream}/tables/{table}/rows/{key}     one row
//	GET  /v1/streams/{stream}/tables/{table}/rows           rows in key order: prefix, limit, cursor
//	POST /v1/streams/{stream}/rows:get                      several rows in one snapshot
//	GET  /v1/streams/{stream}/token                         which index covers a token of the source
//	GET  /v1/streams/{stream}/watch                         what changes, as server-sent events
//	GET  /v1/streams/{stream}/images/…                      images of its store, as files
//	GET  /v1/streams/{stream}/relay                         its log, for other edges (package relay)
//	GET  /rest/{stream}/{table}                             rows in PostgREST's dialect (package postgrest)
//	GET  /v1/openapi.json                                   all of these, for programs
//	GET  /livez /readyz /metrics
//
// Every answer about a stream carries X-Millrace-Epoch and X-Millrace-Index, the
// epoch and the index in it that it is true for, and X-Millrace-Lag, the age in
// seconds of the newest unit here ("unknown" before the first). An answer that is an error has the body
//
//	{"error":{"code":"…","message":"…","mend":"…"}}
//
// and under /rest that of PostgREST. docs/API.md describes all of it for readers.
//
// On loopback and on the socket there is no encryption and no authentication: any
// user of the host can read over TCP, and whoever may open the socket over that.
// Other hosts come over TLS, and show a bearer token or a certificate; what they may
// is said by package access.
package serve

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge"
	"github.com/millrace-db/millrace/edge/access"
	"github.com/millrace-db/millrace/edge/watch"
	"github.com/millrace-db/millrace/internal/sockets"
)

// Reader is what is read of a stream: an *edge.Store, or the *edge.Home that leads
// to the store in use.
type Reader interface {
	View(ctx context.Context, fn func(*edge.View) error) error
	Place() edge.Place
	Stream() millrace.StreamID
	Verified() []edge.TableVerify
	Verifying() millrace.Index
	Space() edge.Space
	Unproven() edge.Unproven
	WaitPlace(ctx context.Context, epoch millrace.Epoch, index millrace.Index) error
}

// Config of a Server. Streams and one of Listen and Unix must be set.
type Config struct {
	// Streams are where each stream is read, by name. The caller closes them
	// after Run has returned.
	Streams map[string]Reader
	// Listen is the TCP address, of a loopback interface; empty for none. Port 0
	// takes a free one.
	Listen string
	// Unix is the path of the unix socket; empty for none.
	Unix string
	// Secure is the TCP address, of any interface, where clients speak TLS and show
	// who they are, with a token or a certificate; empty for none.
	Secure string
	// TLS is how they do, and Access says who may read what; both are needed with
	// Secure. Access is asked for each request, so that changed rights count at once.
	TLS    *tls.Config
	Access func() *access.List
	// Sockets hands out the listeners; nil makes them.
	Sockets *sockets.Set
	// Fault says what keeps a stream from going on, nil if nothing does. It is
	// shown in the stream's status. May be nil.
	Fault func(stream string) error
	// Next says which newer epoch of a stream is being copied beside the one that
	// is read, and where that copy stands; epoch 0 if none is. It is shown in the
	// stream's status. May be nil.
	Next func(stream string) (millrace.Epoch, edge.Place)
	// Log says what the edge's own log of a stream holds; nil where it keeps none. It
	// is shown in the stream's status. May be nil.
	Log func(stream string) *LogStatus
	// Bootstrap says how far the taking of an image of a stream is; nil if none was. It
	// is shown in the stream's status. May be nil.
	Bootstrap func(stream string) *Bootstrap
	// Compactor compacts stores when it is asked to; nil for never.
	Compactor Compactor
	// Images answers requests for the images of a stream, with the path behind
	// …/images; nil for none.
	Images func(stream string) http.Handler
	// Behind says how many entries of a stream are published and not in its store yet; nil
	// where that is not known. It may take a moment.
	Behind func(ctx context.Context, stream string) (uint64, error)
	// Watch is where watchers of a stream are told from; nil, or one that returns nil,
	// where no log is kept. The caller closes it after Run has returned.
	Watch func(stream string) *watch.Hub
	// WatchTimeout is how long a watcher may take nothing of what it is sent before it is
	// cut off. Default 10 seconds.
	WatchTimeout time.Duration
	// WatchRate is how many bytes of an event of more than 256 KiB a watcher has to take
	// in a second, once WatchTimeout is over, before it is cut off: few such events are
	// sent at once, and others wait for their turn. Default 256 KiB.
	WatchRate int
	// Relays says whom streams follow, and serves who follows them; nil for none.
	Relays Relays
	// Gatherer gives what /metrics shows; nil for nothing.
	Gatherer prometheus.Gatherer
	// Registerer takes the server's own metrics; nil drops them.
	Registerer prometheus.Registerer
	// Logger takes what a client's answer does not reach; nil drops it.
	Logger *slog.Logger
	// MaxRows is the largest number of rows in one answer. Default 10,000.
	MaxRows int
	// MaxScan is the largest number of rows that a query of /rest may look at.
	// Default 50,000.
	MaxScan int
	// MaxWaiters is how many requests may wait for an index at once. Default 1,000.
	MaxWaiters int
	// MaxPage is the size in bytes from which on a page of a scan is ended, and
	// the largest answer of rows:get. Default 8 MiB.
	MaxPage int
	// MaxBuffered bounds the bytes of all answers of more than 256 KiB that are
	// being written at once; beyond it requests are turned away with 503.
	// Default 256 MiB.
	MaxBuffered int64
	// MaxConns is the largest number of connections of each listener; further
	// ones wait. Default 1,024.
	MaxConns int
	// ShutdownTimeout is how long Run waits for requests under way when it is to
	// end. Default 5 seconds.
	ShutdownTimeout time.Duration
}

// Server answers reads. It is an http.Handler, safe for concurrent use.
type Server struct {
	config  Config
	log     *slog.Logger
	streams map[string]*stream
	names   []string
	metrics *metrics
	scrape  http.Handler
	// local is who asks from this host.
	local *access.Identity
	pool  sync.Pool // of *request
	// buffered is what large answers take up of Config.MaxBuffered.
	buffered atomic.Int64
	// waiting is how many requests wait for an index. They end with life.
	waiting  atomic.Int64
	life     context.Context //nolint:containedctx // it is the server's own
	endLife  context.CancelFunc
	watching watching
	// watchLife is that of watches: they go on at a successor as soon as there is one.
	watchLife  context.Context //nolint:containedctx // it is the watches' own
	endWatches context.CancelFunc

	// leaving tells that a successor answers: connections are closed with the next
	// answer that goes over them.
	leaving atomic.Bool
	// open are the connections.
	open atomic.Int64

	mu        sync.Mutex
	listening bool
	// Each is nil if there is none.
	tcp, unix, secure net.Listener
}

// stream is one of the streams with the encoders of its rows.
type stream struct {
	name      string
	store     Reader
	encoders  encoders
	positions positions
	tables    tables
	// complained is when damage was last logged, in Unix seconds.
	complained atomic.Int64
}

// New returns a server that does not listen yet.
func New(config Config) (*Server, error) {
	if config.Listen != "" {
		if err := sockets.CheckLoopback(config.Listen); err != nil {
			return nil, err
		}
	}
	if config.Secure != "" && (config.TLS == nil || config.Access == nil) {
		return nil, fmt.Errorf("serve: listen on %s: other hosts are answered with TLS and a list of who may read what only", config.Secure)
	}
	if config.MaxRows == 0 {
		config.MaxRows = 10_000
	}
	if config.MaxScan == 0 {
		config.MaxScan = 50_000
	}
	if config.MaxWaiters == 0 {
		config.MaxWaiters = 1000
	}
	if config.MaxPage == 0 {
		config.MaxPage = 8 << 20
	}
	if config.MaxBuffered == 0 {
		config.MaxBuffered = 256 << 20
	}
	if config.MaxConns == 0 {
		config.MaxConns = 1024
	}
	if config.WatchTimeout == 0 {
		config.WatchTimeout = 10 * time.Second
	}
	if config.WatchRate == 0 {
		config.WatchRate = 256 << 10
	}
	if config.ShutdownTimeout == 0 {
		config.ShutdownTimeout = 5 * time.Second
	}
	if config.MaxScan < 1 || config.MaxWaiters < 1 || config.WatchRate < 1 {
		return nil, fmt.Errorf("serve: scans of %d rows, %d waiters, watchers taking %d bytes a second: all must be positive", config.MaxScan, config.MaxWaiters, config.WatchRate)
	}
	if config.MaxRows < 1 || config.MaxPage < 1 || config.MaxBuffered < 1 || config.MaxConns < 1 || config.ShutdownTimeout < 0 {
		return nil, fmt.Errorf("serve: rows %d, page %d bytes, buffered %d bytes, connections %d: all must be positive",
			config.MaxRows, config.MaxPage, config.MaxBuffered, config.MaxConns)
	}
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{
		config:  config,
		log:     config.Logger,
		local:   access.Local(),
		streams: make(map[string]*stream, len(config.Streams)),
		names:   slices.Sorted(maps.Keys(config.Streams)),
	}
	for name, store := range config.Streams {
		if store == nil {
			return nil, fmt.Errorf("serve: stream %s has no store", name)
		}
		s.streams[name] = &stream{name: name, store: store}
	}
	s.pool.New = func() any { return newRequest(s) }
	s.life, s.endLife = context.WithCancel(context.Background())
	s.watchLife, s.endWatches = context.WithCancel(s.life)
	s.watching.init()
	var err error
	if s.metrics, err = newMetrics(config.Registerer, func() float64 { return float64(s.waiting.Load()) }); err != nil {
		return nil, err
	}
	if config.Gatherer != nil {
		s.scrape = promhttp.HandlerFor(config.Gatherer, promhttp.HandlerOpts{ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelError)})
	}
	return s, nil
}

const (
	headerTimeout = 10 * time.Second
	readTimeout   = 30 * time.Second
	writeTimeout  = time.Minute
	idleTimeout   = 2 * time.Minute
	maxHeader     = 128 << 10
)

// Run listens, unless Listen was called before, and answers until the context
// ends; it then lets the requests under way finish and returns nil.
func (s *Server) Run(ctx context.Context) error {
	if err := s.Listen(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	tcp, unix, secure := s.tcp, s.unix, s.secure
	s.mu.Unlock()
	var servers []*http.Server
	failed := make(chan error, 3)
	start := func(l net.Listener, h http.Handler) {
		if l == nil {
			return
		}
		server := &http.Server{
			Handler:           s.last(h),
			ReadHeaderTimeout: headerTimeout,
			ReadTimeout:       readTimeout,
			WriteTimeout:      writeTimeout,
			IdleTimeout:       idleTimeout,
			MaxHeaderBytes:    maxHeader,
			ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
			ConnState:         s.connState,
		}
		servers = append(servers, server)
		go func() { failed <- server.Serve(l) }()
	}
	start(tcp, http.HandlerFunc(s.serveTCP))
	start(unix, s)
	start(secure, http.HandlerFunc(s.serveSecure))

	var err error
	ended := 0
	for going := true; going; {
		select {
		case <-ctx.Done():
			going = false
		case err = <-failed:
			ended++
			if s.leaving.Load() {
				err = nil // its listener was closed
				continue
			}
			err = fmt.Errorf("serve HTTP: %w", err)
			going = false
		}
	}
	s.endWatches()
	if s.leaving.Load() {
		for ; ended < len(servers); ended++ {
			if e := <-failed; !errors.Is(e, net.ErrClosed) {
				s.log.Warn("a listener has failed while the server leaves", "error", e)
			}
		}
		s.awaitLast(context.WithoutCancel(ctx))
	}
	s.endLife()
	// The context has ended; this one bounds the end.
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.config.ShutdownTimeout)
	defer cancel()
	for _, server := range servers {
		if shutdown := server.Shutdown(grace); shutdown != nil {
			s.log.Warn("requests were cut off at the end", "error", shutdown)
			_ = server.Close() // they were given their time
		}
	}
	for ; ended < len(servers); ended++ {
		if serve := <-failed; !errors.Is(serve, http.ErrServerClosed) && err == nil {
			err = fmt.Errorf("serve HTTP: %w", serve)
		}
	}
	s.metrics.unregister()
	return err
}
