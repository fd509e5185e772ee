package serve_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/millrace-db/millrace/edge"
	"github.com/millrace-db/millrace/edge/access"
	"github.com/millrace-db/millrace/edge/serve"
	"github.com/millrace-db/millrace/internal/certtest"
	"github.com/millrace-db/millrace/internal/tlsfiles"
)

// secured is a server for other hosts, with who may do what, and how it is asked.
type secured struct {
	t   *testing.T
	ca  *certtest.Authority
	url string
}

func newSecured(t *testing.T, list string, change ...func(*serve.Config)) *secured {
	t.Helper()
	store, _ := newStore(t)
	ca := certtest.New(t)
	cert, key := ca.Issue("server", "edge")
	config, err := tlsfiles.NewServer(tlsfiles.ServerFiles{Cert: cert, Key: key, ClientCA: ca.File}, nil)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := access.Parse([]byte(list))
	if err != nil {
		t.Fatal(err)
	}
	s := newServer(t, store, append(change, func(c *serve.Config) {
		c.Streams["dns"] = store
		c.Secure, c.TLS = "127.0.0.1:0", config
		if c.Access == nil {
			c.Access = func() *access.List { return parsed }
		}
		c.Images = func(stream string) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("images of " + stream)) })
		}
	})...)
	run(t, s)
	return &secured{t: t, ca: ca, url: "https://" + s.SecureAddr()}
}

// as returns what asks with a token and a certificate, either of which may be empty.
func (s *secured) as(token, name string) func(method, path, body string) answer {
	s.t.Helper()
	files := tlsfiles.ClientFiles{CA: s.ca.File}
	if name != "" {
		files.Cert, files.Key = s.ca.Issue("client-"+name, name)
	}
	if token != "" {
		files.Token = filepath.Join(s.t.TempDir(), "token")
		if err := os.WriteFile(files.Token, []byte(token), 0o600); err != nil {
			s.t.Fatal(err)
		}
	}
	c, err := tlsfiles.NewClient(files, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	h := c.HTTP()
	s.t.Cleanup(h.CloseIdleConnections)
	return func(method, path, body string) answer {
		s.t.Helper()
		r, err := http.NewRequestWithContext(s.t.Context(), method, s.url+path, strings.NewReader(body))
		if err != nil {
			s.t.Fatal(err)
		}
		resp, err := h.Do(r)
		if err != nil {
			s.t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		var b strings.Builder
		if _, err := io.Copy(&b, resp.Body); err != nil {
			s.t.Fatal(err)
		}
		return answer{resp.StatusCode, resp.Header, b.String()}
	}
}

func TestOtherHostsHaveTheirRightsOnly(t *testing.T) {
	token, shown := access.NewToken()
	s := newSecured(t, `
billing  `+shown+`       read:bank/public.accounts
edge-2   cert:edge-2    relay:bank images:bank
operator cert:operator  read:* admin
`)
	nobody, wrong, stranger := s.as("", ""), s.as("wrong", ""), s.as("", "edge-3")
	billing, edge2, operator := s.as(token, ""), s.as("", "edge-2"), s.as("", "operator")
	const (
		account = "/v1/streams/bank/tables/public.accounts/rows/1"
		record  = "/v1/streams/bank/tables/dns.records/rows/7,a,t"
		several = `{"keys":[{"table":"public.accounts","key":["1"]},{"table":"dns.records","key":["7","a"]}]}`
	)
	for _, c := range []struct {
		what         string
		as           func(method, path, body string) answer
		method, path string
		body         string
		want         int
		has, hasNot  string
	}{
		{"nobody", nobody, "GET", account, "", 401, "unauthorized", ""},
		{"nobody", nobody, "GET", "/livez", "", 401, "", ""},
		{"wrong", wrong, "GET", account, "", 401, "", ""},
		{"stranger", stranger, "GET", account, "", 401, "", ""},
		{"billing", billing, "GET", account, "", 200, `"id":1,`, ""},
		{"billing", billing, "GET", record, "", 403, "billing may not see table dns.records", ""},
		{"billing", billing, "GET", "/v1/streams/bank/tables/public.nope/rows/1", "", 403, "", ""},
		{"billing", billing, "POST", "/v1/streams/bank/rows:get", several, 403, "dns.records", ""},
		{"billing", billing, "GET", "/v1/streams/dns/tables/public.accounts/rows/1", "", 403, "", ""},
		{"billing", billing, "GET", "/v1/streams", "", 200, "public.accounts", "dns"},
		{"billing", billing, "GET", "/v1/streams/bank/status", "", 200, "public.accounts", "dns.records"},
		{"billing", billing, "GET", "/v1/streams/bank/tables", "", 200, "public.accounts", "dns.records"},
		{"billing", billing, "GET", "/v1/streams/nope/status", "", 403, "", ""},
		{"billing", billing, "GET", "/v1/streams//status", "", 404, "bank", "dns"},
		{"billing", billing, "GET", "/rest//accounts", "", 404, "bank", "dns"},
		{"billing", billing, "GET", "/readyz?max_lag=10m", "", 200, "bank", "dns"},
		{"billing", billing, "GET", "/readyz?max_lag=1ms", "", 503, "bank", "dns"},
		{"operator", operator, "GET", "/readyz?max_lag=1ms", "", 503, "dns", ""},
		{"billing", billing, "GET", "/v1/streams/bank/images", "", 403, "", ""},
		{"billing", billing, "GET", "/v1/streams/bank/relay", "", 403, "", ""},
		{"billing", billing, "GET", "/v1/streams/bank/anything/else", "", 403, "", ""},
		{"billing", billing, "POST", "/v1/streams/bank/compact", "", 403, "", ""},
		{"billing", billing, "GET", "/metrics", "", 403, "", ""},
		{"billing", billing, "GET", "/livez", "", 200, "", ""},
		{"edge-2", edge2, "GET", account, "", 403, "", ""},
		{"edge-2", edge2, "GET", "/v1/streams/bank/images", "", 200, "images of bank", ""},
		{"edge-2", edge2, "GET", "/v1/streams/dns/images", "", 403, "", ""},
		{"operator", operator, "GET", record, "", 200, "", ""},
		{"operator", operator, "GET", "/metrics", "", 200, "millrace_serve", ""},
		{"operator", operator, "POST", "/v1/streams/bank/compact", "", 404, "", ""},
		{"operator", operator, "GET", "/v1/streams/bank/images", "", 403, "", ""},
		{"operator", operator, "GET", "/v1/streams/bank/tables", "", 200, "dns.records", ""},
	} {
		got := c.as(c.method, c.path, c.body)
		if got.status != c.want || !strings.Contains(got.body, c.has) || c.hasNot != "" && strings.Contains(got.body, c.hasNot) {
			t.Errorf("%s %s %s: %d %s; want %d, with %q and without %q", c.what, c.method, c.path, got.status, got.body, c.want, c.has, c.hasNot)
		}
	}
}

// A status shows who may read some tables nothing of others, nor where other edges are.
func TestStatusOfSomeTables(t *testing.T) {
	token, shown := access.NewToken()
	boot := &serve.Bootstrap{State: serve.BootstrapFailed, From: "https://edge-3", Problem: "https://edge-3 is away"}
	s := newSecured(t, "billing "+shown+" read:bank/public.accounts\noperator cert:operator read:*\n", func(c *serve.Config) {
		c.Fault = func(string) error { return errors.New("row 7 of dns.records is not right") }
		c.Bootstrap = func(string) *serve.Bootstrap { return boot }
		c.Log = func(string) *serve.LogStatus { return &serve.LogStatus{Fault: "no room in /srv"} }
	})
	for _, path := range []string{"/v1/streams", streamURL + "/status"} {
		if a := s.as(token, "")("GET", path, ""); a.status != 200 || !strings.Contains(a.body, `"fault":`) || !strings.Contains(a.body, serve.BootstrapFailed) ||
			strings.Contains(a.body, "dns") || strings.Contains(a.body, "edge-3") || strings.Contains(a.body, "/srv") {
			t.Errorf("%s: got %d %s", path, a.status, a.body)
		}
		if a := s.as("", "operator")("GET", path, ""); a.status != 200 || !strings.Contains(a.body, "row 7 of dns.records") || !strings.Contains(a.body, "edge-3 is away") {
			t.Errorf("%s of the operator: got %d %s", path, a.status, a.body)
		}
	}
}

// partReader reads a part, and says what else the edge holds.
type partReader struct{ *edge.Store }

func (partReader) View(context.Context, func(*edge.View) error) error {
	return fmt.Errorf("read public.accounts: %w; it holds dns.records (keys under 7)", edge.ErrNotHeld)
}

// What an edge holds of tables that somebody may not read is not told either.
func TestNotHeldNamesNoOthers(t *testing.T) {
	token, shown := access.NewToken()
	s := newSecured(t, "billing "+shown+" read:bank/public.accounts\noperator cert:operator read:*\n", func(c *serve.Config) {
		store, _ := newStore(t)
		c.Streams["bank"] = partReader{store}
	})
	for _, path := range []string{streamURL + "/tables/public.accounts/rows/5", restURL + "/accounts", streamURL + "/watch?table=public.accounts"} {
		if a := s.as(token, "")("GET", path, ""); a.status != 421 || !strings.Contains(a.body, "not_held") || strings.Contains(a.body, "dns") {
			t.Errorf("%s: got %d %s", path, a.status, a.body)
		}
		if a := s.as("", "operator")("GET", path, ""); a.status != 421 || !strings.Contains(a.body, "dns.records (keys under 7)") {
			t.Errorf("%s of the operator: got %d %s", path, a.status, a.body)
		}
	}
}

func TestOtherHostsNeedTLS(t *testing.T) {
	store, _ := newStore(t)
	if _, err := serve.New(serve.Config{Streams: map[string]serve.Reader{"bank": store}, Secure: "127.0.0.1:0"}); err == nil {
		t.Error("a listener for other hosts was made without TLS")
	}
}
