package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/transfer"
)

// Commands are what the publisher of a stream can be asked to do. They are given
// to it only while it publishes, and may be called concurrently.
type Commands interface {
	// Load begins a load of a table at the next occasion, and returns when it is
	// noted durably enough to be begun. reason is for people and may be empty. It
	// gives ErrUnknownTable if the stream has no such table.
	Load(ctx context.Context, table, reason string) error
	// Loads returns the loads that wait, are under way, or have ended lately.
	Loads() []LoadStatus
	// PauseLoads holds all loads back, or lets them go on.
	PauseLoads(pause bool)
	// Verify begins a pass over the tables, all if none is named, at the next
	// occasion. It gives ErrUnknownTable as Load does.
	Verify(ctx context.Context, tables []string) error
	// Verifications returns the newest pass over each table, whether it waits, is
	// under way or has ended.
	Verifications() []VerifyStatus
}

// ErrUnknownTable occurs when a command names a table that the stream does not
// have. Mend: add it to source.tables and run millrace init, or correct the name.
var ErrUnknownTable = errors.New("the stream has no such table")

// ErrLoading occurs when a load is asked for of a table that is being loaded. Mend:
// none is needed, or wait for it and ask again.
var ErrLoading = errors.New("the table is being loaded already")

// ErrOpening occurs when a command comes before the capture of a new reign is
// open. Mend: ask again.
var ErrOpening = errors.New("the capture is being opened")

// The phases of loads and passes. Implementations may have further ones for what
// is between waiting and done.
const (
	// PhaseWaiting: others come first.
	PhaseWaiting = "waiting"
	// PhaseRunning: rows are read at the source.
	PhaseRunning = "running"
	// PhaseDone: everything has been published and read back.
	PhaseDone = "done"
	// PhaseFailed: it was given up; Problem says why.
	PhaseFailed = "failed"
)

// LoadStatus says how far the load of a table is.
type LoadStatus struct {
	// Table is schema.table.
	Table string `json:"table"`
	// Reason says why it was begun, for people.
	Reason string `json:"reason"`
	// Rows have been read so far, Estimate is how many there may be.
	Rows     uint64 `json:"rows"`
	Estimate uint64 `json:"estimate"`
	// BlocksDone of Blocks of the table's file have been read.
	BlocksDone uint64    `json:"blocks_done"`
	Blocks     uint64    `json:"blocks"`
	Phase      string    `json:"phase"`
	StartedAt  time.Time `json:"started_at"`
	// ETA is when it may have ended; nil where that cannot be said.
	ETA *time.Time `json:"eta"`
	// Paused tells that it is held back.
	Paused bool `json:"paused"`
	// Problem is the newest error, if it keeps the load from going on.
	Problem string `json:"problem,omitempty"`
}

// VerifyStatus says how far the newest pass over a table is.
type VerifyStatus struct {
	// ID is that of the pass's Verify entries; 0 while it waits. IDs grow within
	// the stream.
	ID    uint64 `json:"id"`
	Table string `json:"table"`
	Phase string `json:"phase"`
	// Ranges and Rows have been published so far.
	Ranges uint64 `json:"ranges"`
	Rows   uint64 `json:"rows"`
	// Index is that of the newest of the pass's entries that was read back.
	Index       millrace.Index `json:"index"`
	RequestedAt time.Time      `json:"requested_at"`
	// Problem says why it failed.
	Problem string `json:"problem,omitempty"`
}

// LoadRequest is the body of POST /v1/streams/{stream}/loads.
type LoadRequest struct {
	Table  string `json:"table"`
	Reason string `json:"reason"`
}

// VerifyRequest is the body of POST /v1/streams/{stream}/verify.
type VerifyRequest struct {
	Tables []string `json:"tables"`
}

// The codes in the answers to what cannot be done.
const (
	CodeNoStream      = "no_stream"
	CodeNotPublishing = "not_publishing"
	CodeStopped       = "stopped"
	CodeNoTable       = "no_table"
	CodeLoading       = "loading"
	CodeNoCommands    = "no_commands"
	CodeBadRequest    = "bad_request"
	CodeFailed        = "failed"
)

// Problem is the body of such an answer, under the key error.
type Problem struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Mend    string `json:"mend,omitempty"`
}

// maxBody bounds the body of a command.
const maxBody = 1 << 20

// problemError is a Problem with its HTTP status.
type problemError struct {
	Problem
	status int
}

func (e *problemError) Error() string { return e.Message }

func refuse(status int, code, mend, format string, args ...any) error {
	return &problemError{Problem{Code: code, Message: fmt.Sprintf(format, args...), Mend: mend}, status}
}

// commandRoutes adds the routes that need a running publisher.
func (s *Server) commandRoutes(mux *http.ServeMux) {
	for pattern, answer := range map[string]func(c Commands, r *http.Request) (any, error){
		"POST /v1/streams/{stream}/loads": func(c Commands, r *http.Request) (any, error) {
			var q LoadRequest
			if err := body(r, &q); err != nil {
				return nil, err
			}
			if q.Table == "" {
				return nil, refuse(http.StatusBadRequest, CodeBadRequest, `send {"table": "schema.table"}`, "no table is named")
			}
			if err := c.Load(r.Context(), q.Table, q.Reason); err != nil {
				return nil, err
			}
			return list(c.Loads()), nil
		},
		"GET /v1/streams/{stream}/loads": func(c Commands, _ *http.Request) (any, error) {
			return list(c.Loads()), nil
		},
		"POST /v1/streams/{stream}/loads/pause": func(c Commands, _ *http.Request) (any, error) {
			c.PauseLoads(true)
			return list(c.Loads()), nil
		},
		"POST /v1/streams/{stream}/loads/resume": func(c Commands, _ *http.Request) (any, error) {
			c.PauseLoads(false)
			return list(c.Loads()), nil
		},
		"POST /v1/streams/{stream}/verify": func(c Commands, r *http.Request) (any, error) {
			var q VerifyRequest
			if err := body(r, &q); err != nil {
				return nil, err
			}
			if err := c.Verify(r.Context(), q.Tables); err != nil {
				return nil, err
			}
			return list(c.Verifications()), nil
		},
		"GET /v1/streams/{stream}/verify": func(c Commands, _ *http.Request) (any, error) {
			return list(c.Verifications()), nil
		},
	} {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) { s.command(w, r, answer) })
	}
	mux.HandleFunc("POST /v1/streams/{stream}/trim", s.trim)
}

// Trimmer is a Stream whose topic can be trimmed; *transfer.Transfer is one.
type Trimmer interface {
	Trim(ctx context.Context, request transfer.TrimRequest) (*transfer.Trim, error)
}

// trim answers with what goes, or would go, of a topic.
func (s *Server) trim(w http.ResponseWriter, r *http.Request) {
	found, err := func() (*transfer.Trim, error) {
		stream, err := s.published(r)
		if err != nil {
			return nil, err
		}
		trimmer, ok := stream.(Trimmer)
		if !ok {
			return nil, refuse(http.StatusNotImplemented, CodeNoCommands, "", "the topic of stream %s cannot be trimmed", r.PathValue("stream"))
		}
		var request transfer.TrimRequest
		if err := body(r, &request); err != nil {
			return nil, err
		}
		// The connection is given up after answerLimit.
		ctx, cancel := context.WithTimeout(r.Context(), answerLimit-time.Second)
		defer cancel()
		return trimmer.Trim(ctx, request)
	}()
	if err != nil {
		s.problem(w, err)
		return
	}
	s.json(w, http.StatusOK, found)
}

// list keeps an empty list from being null.
func list[T any](all []T) []T {
	if all == nil {
		return []T{}
	}
	return all
}

func body(r *http.Request, into any) error {
	decoder := json.NewDecoder(io.LimitReader(r.Body, maxBody))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		return refuse(http.StatusBadRequest, CodeBadRequest, "", "the body cannot be read: %v", err)
	}
	return nil
}

func (s *Server) command(w http.ResponseWriter, r *http.Request, answer func(c Commands, r *http.Request) (any, error)) {
	c, err := s.commands(r)
	var result any
	if err == nil {
		result, err = answer(c, r)
	}
	if err != nil {
		s.problem(w, err)
		return
	}
	s.json(w, http.StatusOK, result)
}

// commands returns the commands of the stream that a request is for.
func (s *Server) commands(r *http.Request) (Commands, error) {
	if _, err := s.published(r); err != nil {
		return nil, err
	}
	name := r.PathValue("stream")
	c := s.config.Commands[name]
	if c == nil {
		return nil, refuse(http.StatusNotImplemented, CodeNoCommands, "", "the capture of stream %s takes no commands", name)
	}
	return c, nil
}

// published returns the stream that a request is for, which is being published here.
// What changes something is taken only from a client that can have meant it: a web
// page cannot send this type of content here, nor under this host's name.
func (s *Server) published(r *http.Request) (Stream, error) {
	if !loopbackHost(r.Host) {
		return nil, refuse(http.StatusMisdirectedRequest, CodeBadRequest, "ask for 127.0.0.1 or localhost", "the host %q is not this one", r.Host)
	}
	if kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); r.Method != http.MethodGet && kind != "application/json" {
		return nil, refuse(http.StatusUnsupportedMediaType, CodeBadRequest, "send Content-Type: application/json", "the content is %q", kind)
	}
	name := r.PathValue("stream")
	for _, stream := range s.config.Streams {
		status := stream.Status()
		if status.Stream != name {
			continue
		}
		if !stream.Ready() {
			return nil, notPublishing(&status)
		}
		return stream, nil
	}
	return nil, refuse(http.StatusNotFound, CodeNoStream, "name one that this transfer publishes; /v1/streams lists them", "this transfer has no stream %s", name)
}

// notPublishing says why a stream takes no commands now.
func notPublishing(status *transfer.Status) error {
	what := fmt.Sprintf("stream %s is not being published here: it is %s since %s", status.Stream, status.Phase, status.PhaseSince.Format(time.RFC3339))
	if status.Problem != "" {
		what += ": " + status.Problem
	}
	switch status.Phase {
	case transfer.PhaseStopped:
		return refuse(http.StatusServiceUnavailable, CodeStopped, "mend what has stopped it and start transfer again", "%s", what)
	case transfer.PhaseFenced:
		return refuse(http.StatusServiceUnavailable, CodeNotPublishing, "ask the transfer that publishes now", "%s", what)
	case transfer.PhaseWaiting:
		return refuse(http.StatusServiceUnavailable, CodeNotPublishing, "ask the transfer that publishes, or wait until this one does", "%s", what)
	}
	return refuse(http.StatusServiceUnavailable, CodeNotPublishing, "wait until it is, and try again", "%s", what)
}

func loopbackHost(host string) bool {
	name, _, err := net.SplitHostPort(host)
	if err != nil {
		name = host
	}
	ip := net.ParseIP(name)
	return name == "localhost" || ip != nil && ip.IsLoopback()
}

func (s *Server) problem(w http.ResponseWriter, err error) {
	var p *problemError
	if !errors.As(err, &p) {
		p = &problemError{Problem{Code: CodeFailed, Message: err.Error()}, http.StatusInternalServerError}
		if errors.Is(err, ErrUnknownTable) {
			p.Code, p.status, p.Mend = CodeNoTable, http.StatusNotFound, "correct the name, or add the table to source.tables and run millrace init"
		}
		if errors.Is(err, ErrLoading) {
			p.Code, p.status, p.Mend = CodeLoading, http.StatusConflict, "wait until it has ended, and ask again if it is still wanted"
		}
		if errors.Is(err, transfer.ErrNotReigning) {
			p.Code, p.status, p.Mend = CodeNotPublishing, http.StatusServiceUnavailable, "ask again in a moment, or ask the transfer that publishes"
		}
		if errors.Is(err, ErrOpening) {
			p.Code, p.status, p.Mend = CodeNotPublishing, http.StatusServiceUnavailable, "ask again in a moment"
		}
	}
	s.json(w, p.status, struct {
		Error Problem `json:"error"`
	}{p.Problem})
}

func (s *Server) json(w http.ResponseWriter, status int, value any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(value); err != nil {
		s.config.Logger.Debug("answer", "error", err)
	}
}
