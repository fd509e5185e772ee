// Package admin is the HTTP interface of a transfer process, for people and
// monitoring on the same machine.
//
// It owns its listener and promises to listen on loopback only: it has no
// authentication, so any other address is refused. What changes something is
// taken only as JSON and under a name of this host, so that no web page can ask
// for it. Commands are answered while the stream is being published here, with
// 503 and why otherwise.
//
//	GET  /livez       200 while the process runs
//	GET  /readyz      200 while every stream is being published, else 503 and why
//	GET  /metrics     Prometheus metrics
//	GET  /v1/streams  an array with the status of each stream
//	GET  /v1/streams/{stream}/edges         what edges report, summed up: edgestatus.Summary
//	GET  /v1/streams/{stream}/loads         an array of LoadStatus
//	POST /v1/streams/{stream}/loads         begins a load: LoadRequest
//	POST /v1/streams/{stream}/loads/pause   holds loads back
//	POST /v1/streams/{stream}/loads/resume  lets them go on
//	GET  /v1/streams/{stream}/verify        an array of VerifyStatus
//	POST /v1/streams/{stream}/verify        begins a pass: VerifyRequest
//	POST /v1/streams/{stream}/trim          looks at the topic: transfer.TrimRequest
package admin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/millrace-db/millrace/internal/edgestatus"
	"github.com/millrace-db/millrace/transfer"
)

const (
	headerLimit = 5 * time.Second
	answerLimit = 30 * time.Second
	idleLimit   = 2 * time.Minute
	closeLimit  = 3 * time.Second
)

// Stream is a stream that is published; *transfer.Transfer is one.
type Stream interface {
	Status() transfer.Status
	Ready() bool
}

// Config says what to show and where.
type Config struct {
	// Listen is a loopback address such as 127.0.0.1:7470 or localhost:7470.
	// Port 0 takes any.
	Listen string
	// Streams are shown in this order.
	Streams []Stream
	// Commands are those of the streams, by name; one without takes none.
	Commands map[string]Commands
	// Edges sum up what the edges of a stream report, by its name.
	Edges map[string]func() *edgestatus.Summary
	// Gatherer gives the metrics. Default: none are shown.
	Gatherer prometheus.Gatherer
	Logger   *slog.Logger
}

// Server answers over HTTP.
type Server struct {
	config   Config
	listener net.Listener
}

// New opens the listener, so that a wrong or taken address shows at once. Run
// or Close must follow.
func New(ctx context.Context, config Config) (*Server, error) {
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	if config.Gatherer == nil {
		config.Gatherer = prometheus.NewRegistry()
	}
	address, err := resolve(ctx, config.Listen)
	if err != nil {
		return nil, err
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen on transfer.admin %s: %w: end what uses the port, or choose another", config.Listen, err)
	}
	return &Server{config: config, listener: listener}, nil
}

// resolve returns the loopback address that listen names. A name must stand for
// loopback addresses only.
func resolve(ctx context.Context, listen string) (string, error) {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return "", fmt.Errorf("listen on transfer.admin %q: want host:port, as in 127.0.0.1:7470", listen)
	}
	refuse := fmt.Errorf("listen on transfer.admin %s: it is not a loopback address, and the interface has no authentication: use 127.0.0.1 or ::1", listen)
	if host == "" {
		return "", refuse
	}
	addresses, err := net.DefaultResolver.LookupIPAddr(ctx, host)
	if err != nil {
		return "", fmt.Errorf("listen on transfer.admin %s: %w", listen, err)
	}
	for _, a := range addresses {
		if !a.IP.IsLoopback() {
			return "", refuse
		}
	}
	if len(addresses) == 0 {
		return "", refuse
	}
	return net.JoinHostPort(addresses[0].String(), port), nil
}

// Address is where the server listens.
func (s *Server) Address() string { return s.listener.Addr().String() }

// Close ends a server that does not run.
func (s *Server) Close() error { return s.listener.Close() }

// Run answers until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	server := &http.Server{
		Handler: s.Handler(), ReadHeaderTimeout: headerLimit, ReadTimeout: headerLimit, WriteTimeout: answerLimit,
		IdleTimeout: idleLimit, MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(s.config.Logger.Handler(), slog.LevelDebug),
	}
	stopped := make(chan struct{})
	undo := context.AfterFunc(ctx, func() {
		defer close(stopped)
		limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeLimit)
		defer cancel()
		if err := server.Shutdown(limited); err != nil {
			_ = server.Close() // connections that would not end
		}
	})
	err := server.Serve(s.listener)
	if !undo() {
		<-stopped
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve transfer.admin: %w", err)
}

// Handler returns the interface itself, to be put behind another listener. The
// caller keeps strangers away from it.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { s.text(w, http.StatusOK, "ok\n") })
	mux.HandleFunc("GET /readyz", s.ready)
	mux.HandleFunc("GET /v1/streams", s.streams)
	mux.HandleFunc("GET /v1/streams/{stream}/edges", s.edges)
	s.commandRoutes(mux)
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.config.Gatherer, promhttp.HandlerOpts{}))
	return mux
}

func (s *Server) ready(w http.ResponseWriter, _ *http.Request) {
	code, text := http.StatusOK, ""
	for _, stream := range s.config.Streams {
		if stream.Ready() {
			continue
		}
		status := stream.Status()
		code = http.StatusServiceUnavailable
		text += fmt.Sprintf("stream %s is %s since %s", status.Stream, status.Phase, status.PhaseSince.Format(time.RFC3339))
		if status.Problem != "" {
			text += ": " + status.Problem
		}
		text += "\n"
	}
	if code == http.StatusOK {
		text = "ok\n"
	}
	s.text(w, code, text)
}

func (s *Server) streams(w http.ResponseWriter, _ *http.Request) {
	all := make([]transfer.Status, 0, len(s.config.Streams))
	for _, stream := range s.config.Streams {
		all = append(all, stream.Status())
	}
	s.json(w, http.StatusOK, all)
}

func (s *Server) edges(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("stream")
	edges := s.config.Edges[name]
	if edges == nil {
		s.problem(w, refuse(http.StatusNotFound, CodeNoStream, "name one that this transfer publishes; /v1/streams lists them", "this transfer has no stream %s", name))
		return
	}
	s.json(w, http.StatusOK, edges())
}

func (s *Server) text(w http.ResponseWriter, code int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	if _, err := w.Write([]byte(text)); err != nil {
		s.config.Logger.Debug("answer", "error", err)
	}
}
