package serve

import (
	"net/http"
	"slices"
	"strings"

	"github.com/millrace-db/millrace/edge/access"
)

// serveSecure answers other hosts: who they are is found out, and what they may.
func (s *Server) serveSecure(w http.ResponseWriter, r *http.Request) {
	who := s.config.Access().Find(shown(r))
	if err := s.admit(who, r); err != nil {
		q := s.begin(w, r)
		s.end(q, q.fail(err))
		return
	}
	s.ServeHTTP(w, r.WithContext(access.With(r.Context(), who)))
}

// shown is what a request shows: a token where there is one, otherwise the
// certificate of its connection.
func shown(r *http.Request) access.Credential {
	if header := r.Header.Get("Authorization"); header != "" {
		scheme, token, _ := strings.Cut(header, " ")
		if !strings.EqualFold(scheme, "Bearer") {
			return access.Credential{}
		}
		return access.OfToken(strings.TrimSpace(token))
	}
	if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		return access.OfCertificate(r.TLS.PeerCertificates[0])
	}
	return access.Credential{}
}

// admit looks at what a path stands for. Tables are looked at where they are read
// (request.table), because queries name them too.
func (s *Server) admit(who *access.Identity, r *http.Request) error {
	if who == nil {
		return &fault{
			http.StatusUnauthorized, "unauthorized", "the request shows neither a token nor a certificate that is anybody's",
			"send the header Authorization: Bearer TOKEN, or connect with a client certificate; edge.tls.access lists both",
		}
	}
	path := r.URL.EscapedPath()
	for _, root := range []string{streamsPath + "/", "/rest/"} {
		rest, ok := strings.CutPrefix(path, root)
		if !ok {
			continue
		}
		name, rest, _ := strings.Cut(rest, "/")
		stream, err := unescape(name)
		if err != nil {
			return err
		}
		if name != "" && !mayStream(who, stream, root == "/rest/", rest) {
			return forbidden(who, "what is at "+path)
		}
		return nil
	}
	switch path {
	case streamsPath, "/livez", "/readyz":
		return nil
	case "/metrics":
		if !who.Admin() {
			return forbidden(who, "metrics")
		}
	}
	return nil
}

// mayStream reports whether what is at a path below a stream may be asked for.
func mayStream(who *access.Identity, stream string, rest bool, path string) bool {
	part, _, _ := strings.Cut(path, "/")
	switch {
	case !who.Stream(stream):
		return false
	case rest:
		return true
	}
	switch part {
	case "", "status", "tables", "token", "watch", "rows:get", "rows%3Aget", "rows%3aget":
		return true
	case "relay":
		return who.Relay(stream)
	case "images":
		return who.Images(stream)
	case "compact":
		return who.Admin()
	}
	return who.AllTables(stream)
}

func forbidden(who *access.Identity, what string) error {
	return &fault{http.StatusForbidden, "forbidden", who.Name() + " may not see " + what, "ask for what edge.tls.access allows, or have the right added there"}
}

// identity is who asks. Only serveSecure gives a request one of its own; all others
// come from this host.
func (s *Server) identity(r *http.Request) *access.Identity {
	if who := access.From(r.Context()); who != nil {
		return who
	}
	return s.local
}

// mayTable says why a table may not be read, nil if it may.
func (q *request) mayTable(name string) error {
	if q.who.Table(q.stream.name, name) {
		return nil
	}
	return forbidden(q.who, "table "+name+" of stream "+q.stream.name)
}

// veiled says that there is something, and not what.
func veiled(text string) string {
	if text == "" {
		return ""
	}
	return "there is one; who may read all of the stream is told more"
}

// seen are the streams of which the client may see anything.
func (q *request) seen() []string {
	return slices.DeleteFunc(slices.Clone(q.s.names), func(name string) bool { return !q.who.Stream(name) })
}

// named is a stream in a message.
func (q *request) named(stream string) string {
	if q.who.Stream(stream) {
		return "stream " + stream
	}
	return "a stream that is not shown here"
}

// visible takes out of a status what may not be seen.
func (q *request) visible(st *Status) *Status {
	if q.who.AllTables(st.Stream) {
		return st
	}
	st.Upstream, st.Children = nil, nil // where other edges are
	if b := st.Bootstrap; b != nil {
		st.Bootstrap = new(*b)
		st.Bootstrap.From, st.Bootstrap.Problem = "", veiled(b.Problem)
	}
	if l := st.Log; l != nil {
		st.Log = new(*l)
		st.Log.Fault = veiled(l.Fault)
	}
	st.Fault = veiled(st.Fault) // it may name any row
	holds := st.Holds
	st.Holds = nil
	for i := range holds {
		if q.who.Table(st.Stream, holds[i].Table) {
			st.Holds = append(st.Holds, holds[i])
		}
	}
	if st.Unproven != nil {
		st.Unproven.Tables = slices.DeleteFunc(st.Unproven.Tables, func(name string) bool { return !q.who.Table(st.Stream, name) })
	}
	tables := st.Tables
	st.Tables = []TableStatus{}
	for i := range tables {
		if q.who.Table(st.Stream, tables[i].Name) {
			st.Tables = append(st.Tables, tables[i])
		}
	}
	verify := st.Verify
	st.Verify = nil
	for i := range verify {
		if q.who.Table(st.Stream, verify[i].Table) {
			st.Verify = append(st.Verify, verify[i])
		}
	}
	st.Loading = nil
	return st
}
