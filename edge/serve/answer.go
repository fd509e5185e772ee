package serve

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge"
	"github.com/millrace-db/millrace/edge/access"
	"github.com/millrace-db/millrace/edge/event"
)

// fault is an answer other than 200.
type fault struct {
	status int
	// Code is for programs, Message and Mend for people.
	Code    string `json:"code"`
	Message string `json:"message"`
	Mend    string `json:"mend"`
}

func (f *fault) Error() string { return f.Message }

func badRequest(code, mend, format string, args ...any) error {
	return &fault{http.StatusBadRequest, code, fmt.Sprintf(format, args...), mend}
}

func notFound(code, mend, format string, args ...any) error {
	return &fault{http.StatusNotFound, code, fmt.Sprintf(format, args...), mend}
}

func unavailable(code, mend, format string, args ...any) error {
	return &fault{http.StatusServiceUnavailable, code, fmt.Sprintf(format, args...), mend}
}

// asFault gives errors of the store their status.
func asFault(err error) *fault {
	var f *fault
	switch {
	case errors.As(err, &f):
		return f
	case errors.Is(err, edge.ErrCorrupt):
		return &fault{
			http.StatusInternalServerError, "corrupt", err.Error(),
			"move the store's directory away and start the edge again; it fills a new one from the topic",
		}
	case errors.Is(err, edge.ErrNotHeld):
		return &fault{http.StatusMisdirectedRequest, "not_held", err.Error(), "ask an edge that holds it, or widen edge.tables here"}
	case errors.Is(err, edge.ErrClosed):
		return &fault{http.StatusServiceUnavailable, "closed", "the edge is shutting down", "ask again, or another edge"}
	case errors.Is(err, edge.ErrExpired), errors.Is(err, context.DeadlineExceeded):
		return &fault{http.StatusServiceUnavailable, "busy", err.Error(), "ask again, for less at once"}
	case errors.Is(err, context.Canceled):
		// Nobody reads it; the status is for the metrics.
		return &fault{499, "canceled", "the client has gone", "ask again"}
	}
	return &fault{http.StatusInternalServerError, "internal", err.Error(), "see the edge's log; if it says no more, report it"}
}

// request is one request with all that answering it takes. It is used again for
// the next one.
type request struct {
	s *Server
	w http.ResponseWriter
	r *http.Request

	route  route
	stream *stream
	who    *access.Identity
	// place is that of the snapshot that was read, once there was one.
	place    edge.Place
	hasPlace bool
	now      time.Time

	// body is the answer. reserved is how much of it the server's bound on large
	// answers counts.
	body     []byte
	reserved int64

	// answered is the status of an answer that is no error, 0 for 200; contentType its form,
	// empty for JSON; tagged tells that it carries an entity tag.
	answered    int
	contentType string
	tagged      bool
	// covered is the epoch in which a token was found covered, 0 if none was given; least
	// is the place that the stream was found to have come to, zero if none was given.
	covered millrace.Epoch
	least   event.ID
	// bigInt tells that bigint is given as strings.
	bigInt bool

	rows rowReader
	// readRow is readOne, bound once.
	readRow func(*edge.View) error
}

func newRequest(s *Server) *request {
	q := &request{s: s}
	q.readRow = q.readOne
	return q
}

const (
	// freeBuffer is how large an answer may be without being counted.
	freeBuffer = 256 << 10
	// reserveStep is the least that is added to the count at once.
	reserveStep = 256 << 10
)

// reserve makes room for an answer of size bytes, or says that there is none.
func (q *request) reserve(size int) bool {
	more := int64(size) - freeBuffer - q.reserved
	if more <= 0 {
		return true
	}
	more = max(more, reserveStep)
	if q.s.buffered.Add(more) > q.s.config.MaxBuffered {
		q.s.buffered.Add(-more)
		return false
	}
	q.reserved += more
	return true
}

var errBusy = &fault{
	http.StatusServiceUnavailable, "busy", "too many large answers are being written at once",
	"ask again, for fewer rows at once",
}

// settle counts an answer that has become longer than what was reserved for it: what
// is there cannot be turned away.
func (q *request) settle() {
	if more := int64(len(q.body)) - freeBuffer - q.reserved; more > 0 {
		q.s.buffered.Add(more)
		q.reserved += more
	}
}

// release gives the request back for the next one.
func (q *request) release() {
	q.s.buffered.Add(-q.reserved)
	q.reserved = 0
	if cap(q.body) > freeBuffer {
		q.body = nil
	}
	q.w, q.r, q.stream, q.who = nil, nil, nil, nil
	q.hasPlace, q.tagged, q.bigInt = false, false, false
	q.answered, q.contentType, q.covered, q.least = 0, "", 0, event.ID{}
	q.rows.release()
	q.s.pool.Put(q)
}

// at notes the snapshot that is read.
func (q *request) at(v *edge.View) {
	q.place, q.hasPlace = v.Place(), true
}

// Headers under their canonical names.
const (
	headerEpoch = "X-Millrace-Epoch"
	headerIndex = "X-Millrace-Index"
	headerLag   = "X-Millrace-Lag"
)

var typeJSON = []string{"application/json"}

// send writes the answer and returns its status, which is another one where the client
// has it already.
func (q *request) send(status int) int {
	h := q.w.Header()
	h["Content-Type"] = typeJSON
	if q.contentType != "" {
		h["Content-Type"] = []string{q.contentType}
	}
	if q.stream != nil {
		if !q.hasPlace {
			q.place = q.stream.store.Place()
		}
		h[headerEpoch] = []string{q.place.Epoch.String()}
		h[headerIndex] = []string{q.place.Index.String()}
		h[headerLag] = []string{lagText(q.place.Time, q.now)}
	}
	if q.tagged && status == http.StatusOK {
		tag := q.tag()
		h["Etag"] = []string{tag}
		if unchanged(q.r.Header, tag) {
			delete(h, "Content-Type")
			q.w.WriteHeader(http.StatusNotModified)
			return http.StatusNotModified
		}
	}
	h["Content-Length"] = []string{strconv.Itoa(len(q.body))}
	q.w.WriteHeader(status)
	// A client that went away needs no answer, and there is nobody else to tell.
	_, _ = q.w.Write(q.body)
	return status
}

// lagText is the age of the newest unit in seconds, to the microsecond.
func lagText(newest, now time.Time) string {
	lag := lagSeconds(newest, now)
	if lag == nil {
		return "unknown"
	}
	var space [32]byte
	return string(strconv.AppendFloat(space[:0], *lag, 'f', 6, 64))
}

// lagSeconds is nil before the first unit. A source whose clock is ahead does
// not make an edge be ahead of it.
func lagSeconds(newest, now time.Time) *float64 {
	if newest.IsZero() {
		return nil
	}
	lag := max(0, now.Sub(newest).Seconds())
	return &lag
}

// fail writes an error.
func (q *request) fail(err error) int {
	f := asFault(err)
	if f.Code == "not_held" && q.stream != nil && !q.who.AllTables(q.stream.name) {
		// What it holds instead may be of tables that are not to be seen.
		f = &fault{f.status, f.Code, "this edge does not hold all that is asked for", "ask an edge that holds it"}
		err = f
	}
	status, shape := f.status, any(struct {
		Error *fault `json:"error"`
	}{f})
	if strings.HasPrefix(q.r.URL.Path, restPath) {
		status, shape = q.failRest(err)
	}
	if status == http.StatusInternalServerError {
		q.complain(err)
	}
	body, jsonErr := json.Marshal(shape)
	if jsonErr != nil {
		panic(jsonErr) // strings
	}
	q.body = append(append(q.body[:0], body...), '\n')
	if status == http.StatusServiceUnavailable {
		q.w.Header().Set("Retry-After", "1")
	}
	q.tagged, q.contentType = false, ""
	return q.send(status)
}

// complainEvery keeps a damaged row that is read often from filling the log.
const complainEvery = 60

// complain logs what the operator must know of, beside the client.
func (q *request) complain(err error) {
	if q.stream == nil {
		q.s.log.Error("request failed", "error", err)
		return
	}
	last := q.stream.complained.Load()
	if now := q.now.Unix(); now-last >= complainEvery && q.stream.complained.CompareAndSwap(last, now) {
		q.s.log.Error("read failed", "stream", q.stream.name, "error", err)
	}
}

// sendJSON writes v.
func (q *request) sendJSON(v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	q.body = append(append(q.body[:0], body...), '\n')
	return nil
}

// list joins names for a message, the first ones of many.
func list(names []string) string {
	const most = 20
	if len(names) == 0 {
		return "none"
	}
	if len(names) > most {
		return strings.Join(names[:most], ", ") + ", …"
	}
	return strings.Join(names, ", ")
}
