package serve

import (
	"net/http"
	"net/url"
	"strings"
	"time"
)

// serveTCP refuses requests that name another host.
func (s *Server) serveTCP(w http.ResponseWriter, r *http.Request) {
	if isLoopbackHost(r.Host) {
		s.ServeHTTP(w, r)
		return
	}
	q := s.begin(w, r)
	status := q.fail(&fault{
		http.StatusMisdirectedRequest, "bad_host", "the request is for host " + r.Host,
		"ask for 127.0.0.1, [::1] or localhost; a proxy must set the Host header to one of them, or use the unix socket",
	})
	s.end(q, status)
}

// ServeHTTP answers one request. It does not look at the Host header.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// The escaped path, because a comma within a key value differs from one
	// between two.
	path := r.URL.EscapedPath()
	if h := s.relayOf(path); h != nil {
		s.serveRelay(h, w, r) // for as long as the other edge follows: no request to be measured
		return
	}
	if s.watches(w, r, path) {
		return
	}
	q := s.begin(w, r)
	if path == "/metrics" && s.scrape != nil && q.reads() {
		q.route = routeMetrics
		s.scrape.ServeHTTP(w, r)
		s.end(q, http.StatusOK)
		return
	}
	if h := s.imagesOf(path); h != nil {
		q.route = routeImages
		h.ServeHTTP(w, r)
		s.end(q, http.StatusOK)
		return
	}
	status := http.StatusOK
	err := q.dispatch(path)
	if moved := q.moved(); moved != nil {
		err = moved // that something is not there is an answer, too
	}
	if err != nil {
		status = q.fail(err)
	} else {
		if q.answered != 0 {
			status = q.answered
		}
		status = q.send(status)
	}
	s.end(q, status)
}

// imagesOf returns what answers requests for a stream's images, nil for other
// paths.
func (s *Server) imagesOf(path string) http.Handler {
	rest, ok := strings.CutPrefix(path, streamsPath+"/")
	if !ok || s.config.Images == nil {
		return nil
	}
	name, rest, _ := strings.Cut(rest, "/")
	if rest != "images" && !strings.HasPrefix(rest, "images/") {
		return nil
	}
	stream, err := unescape(name)
	if err != nil || s.streams[stream] == nil {
		return nil // dispatch says so
	}
	return http.StripPrefix(streamsPath+"/"+stream+"/images", s.config.Images(stream))
}

func (s *Server) begin(w http.ResponseWriter, r *http.Request) *request {
	q := s.pool.Get().(*request)
	q.w, q.r = w, r
	q.who = s.identity(r)
	q.route = routeOther
	q.now = time.Now()
	return q
}

func (s *Server) end(q *request, status int) {
	s.metrics.observe(q.route, status, time.Since(q.now))
	q.release()
}

const streamsPath = "/v1/streams"

// dispatch finds what the path stands for and fills the answer's body.
func (q *request) dispatch(path string) error {
	rest, ok := strings.CutPrefix(path, streamsPath)
	if !ok || rest != "" && rest[0] != '/' {
		return q.dispatchRoot(path)
	}
	if rest == "" || rest == "/" {
		q.route = routeStreams
		if err := q.wantGet(); err != nil {
			return err
		}
		return q.listStreams()
	}
	name, rest, _ := strings.Cut(rest[1:], "/")
	name, err := unescape(name)
	if err != nil {
		return err
	}
	if q.stream = q.s.streams[name]; q.stream == nil {
		return notFound("no_stream", "ask for one of: "+list(q.seen()), "this edge has no stream %s", name)
	}
	switch rest {
	case "status":
		q.route = routeStatus
		if err := q.wantGet(); err != nil {
			return err
		}
		return q.status()
	case "token":
		q.route = routeStatus
		if err := q.wantGet(); err != nil {
			return err
		}
		return q.token()
	case "compact":
		q.route = routeCompact
		return q.compact()
	case "tables":
		q.route = routeTables
		if err := q.wantGet(); err != nil {
			return err
		}
		return q.tables()
	case "rows:get", "rows%3Aget", "rows%3aget":
		q.route = routeRowsGet
		if q.r.Method != http.MethodPost {
			return q.wrongMethod(http.MethodPost)
		}
		return q.rowsGet()
	}
	if rest, ok = strings.CutPrefix(rest, "tables/"); !ok {
		return q.noRoute(path)
	}
	table, rest, ok := strings.Cut(rest, "/")
	if !ok {
		return q.noRoute(path)
	}
	if table, err = unescape(table); err != nil {
		return err
	}
	if rest == "rows" {
		q.route = routeScan
		if err := q.wantGet(); err != nil {
			return err
		}
		return q.scan(table)
	}
	key, ok := strings.CutPrefix(rest, "rows/")
	if !ok || strings.IndexByte(key, '/') >= 0 {
		return q.noRoute(path)
	}
	q.route = routeRow
	if err := q.wantGet(); err != nil {
		return err
	}
	return q.row(table, key)
}

func (q *request) dispatchRoot(path string) error {
	if rest, ok := strings.CutPrefix(path, restPath); ok {
		q.route = routeRest
		return q.rest(rest)
	}
	switch path {
	case openAPIPath:
		q.route = routeOpenAPI
		return q.describe()
	case "/livez":
		q.route = routeHealth
		if err := q.wantGet(); err != nil {
			return err
		}
		q.body = append(q.body[:0], "{\"live\":true}\n"...)
		return nil
	case "/readyz":
		q.route = routeHealth
		if err := q.wantGet(); err != nil {
			return err
		}
		return q.ready()
	case "/metrics":
		q.route = routeMetrics
		if err := q.wantGet(); err != nil {
			return err
		}
		return notFound("no_metrics", "configure a gatherer", "this server has no metrics")
	}
	return q.noRoute(path)
}

func (q *request) noRoute(path string) error {
	return notFound("no_route", "ask for /v1/streams, /v1/streams/{stream}/status, …/tables, …/tables/{schema.table}/rows/{key}, "+
		"…/tables/{schema.table}/rows, …/rows:get, /rest/{stream}/{table}, /v1/openapi.json, …/watch, /livez, /readyz or /metrics", "there is nothing at %s", path)
}

// reads reports whether the method is one that reads.
func (q *request) reads() bool {
	return q.r.Method == http.MethodGet || q.r.Method == http.MethodHead
}

func (q *request) wantGet() error {
	if q.reads() {
		return nil
	}
	return q.wrongMethod(http.MethodGet)
}

func (q *request) wrongMethod(want string) error {
	q.w.Header().Set("Allow", want)
	return &fault{http.StatusMethodNotAllowed, "wrong_method", "the method is " + q.r.Method, "use " + want}
}

// unescape takes the percent signs out of a path segment.
func unescape(segment string) (string, error) {
	if strings.IndexByte(segment, '%') < 0 {
		return segment, nil
	}
	text, err := url.PathUnescape(segment)
	if err != nil {
		return "", badRequest("bad_path", "write a percent sign as %25", "%q is not percent-encoded", segment)
	}
	return text, nil
}
