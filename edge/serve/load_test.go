package serve_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/millrace-db/millrace/edge/serve"
)

// FuzzHandler: no request makes the server panic, or answer with something that is not
// of the form that it says, or with a fault of the server's own.
func FuzzHandler(f *testing.F) {
	store, _ := newStore(f)
	s := newServer(f, store, func(c *serve.Config) { c.Compactor = &compactorOf{} })
	for _, seed := range []struct{ path, query, body, accept, prefer, tag, index string }{
		{path: streamURL + "/tables/dns.records/rows/7,a%2Cb,t"},
		{path: streamURL + "/tables/dns.records/rows", query: "prefix=7,a*&limit=2&cursor=AQ"},
		{path: streamURL + "/rows:get", query: "bigint=string", body: `{"keys":[{"table":"dns.records","key":[7,"ab",true]}]}`},
		{path: "/v1/streams"},
		{path: streamURL + "/status"},
		{path: streamURL + "/tables"},
		{path: streamURL + "/compact", body: "{}"},
		{path: streamURL + "/tables/public.accounts/rows/5", query: "min_index=40&wait=1ms&bigint=string", tag: `"x", *`, index: "7"},
		{path: restURL + "/accounts", query: "id=gt.3&or=(id.eq.4,balance.lt.9)&select=n:id::text,at&order=at.desc,id&limit=3", prefer: "count=exact, bigint=string", tag: `W/"0"`},
		{path: restURL + "/records", query: "name=like.a*&zone=in.(7,8)", accept: "text/csv", prefer: "handling=strict,timezone=UTC"},
		{path: restURL + "/accounts", query: "id=eq.5", accept: "application/vnd.pgrst.object+json;q=0.3, */*;q=0.1", index: "999999999"},
		{path: "/rest/bank"},
		{path: "/v1/openapi.json"},
		{path: "/readyz"},
	} {
		f.Add(seed.path, seed.query, seed.body, seed.accept, seed.prefer, seed.tag, seed.index)
	}
	f.Fuzz(func(t *testing.T, path, query, body, accept, prefer, tag, index string) {
		method := http.MethodGet
		if body != "" {
			method = http.MethodPost
		}
		// Whoever waits goes away soon.
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		r := httptest.NewRequestWithContext(ctx, method, "/", strings.NewReader(body))
		r.URL = &url.URL{Path: path, RawPath: path, RawQuery: query}
		if text, err := url.PathUnescape(path); err == nil {
			r.URL.Path = text
		}
		for name, value := range map[string]string{
			"Accept": accept, "Prefer": prefer, "If-None-Match": tag, "X-Millrace-Min-Index": index, "Accept-Profile": tag, "Range": index, "Content-Type": accept,
		} {
			if value != "" {
				r.Header.Set(name, value)
			}
		}
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		if kind, _, _ := strings.Cut(w.Header().Get("Content-Type"), ";"); strings.HasSuffix(kind, "json") && !json.Valid(w.Body.Bytes()) && w.Body.Len() > 0 {
			t.Fatalf("%s %q %q: answer %d %q is not JSON", method, path, query, w.Code, w.Body)
		}
		// On a slow machine whoever does not wait may have gone as well.
		if w.Code >= 500 && w.Code != http.StatusGatewayTimeout && ctx.Err() == nil {
			t.Fatalf("%s %q %q %q: answer %d %s", method, path, query, body, w.Code, w.Body)
		}
	})
}

// BenchmarkRow compares reading a row over a real connection with a server that
// does nothing.
func BenchmarkRow(b *testing.B) {
	store, _ := newStore(b)
	s := newServer(b, store)
	nothing := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"id":5,"balance":5.50,"at":"2024-01-02T03:04:05+00:00","note":null}`)
	})
	for _, bb := range []struct {
		name, path string
		h          http.Handler
	}{
		{"nothing", "/", nothing},
		{"row", streamURL + "/tables/public.accounts/rows/5", s},
		{"rest", restURL + "/accounts?id=eq.5", s},
		{"absent", restURL + "/accounts?id=eq.99", s},
	} {
		b.Run(bb.name, func(b *testing.B) {
			server := httptest.NewServer(bb.h)
			defer server.Close()
			client := server.Client()
			b.ReportAllocs()
			for b.Loop() {
				resp, err := client.Get(server.URL + bb.path) //nolint:noctx // a benchmark
				if err != nil {
					b.Fatal(err)
				}
				if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != 200 {
					b.Fatal(err, resp.Status)
				}
				_ = resp.Body.Close() // read to its end
			}
		})
	}
	for name, path := range map[string]string{
		"row": streamURL + "/tables/public.accounts/rows/5", "rest": restURL + "/accounts?id=eq.5", "absent": restURL + "/accounts?id=eq.99",
		"rest page": restURL + "/accounts?id=gt.5&order=id&limit=10&select=id,balance",
	} {
		b.Run("handler/"+name, func(b *testing.B) {
			r := httptest.NewRequestWithContext(b.Context(), http.MethodGet, path, http.NoBody)
			w := &discard{header: make(http.Header)}
			b.ReportAllocs()
			for b.Loop() {
				s.ServeHTTP(w, r)
			}
			if w.status != 200 {
				b.Fatal(w.status)
			}
		})
	}
}

// discard is a ResponseWriter that costs nothing.
type discard struct {
	header http.Header
	status int
}

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) Write(b []byte) (int, error) { return len(b), nil }
func (d *discard) WriteHeader(status int)      { d.status = status }
