package serve_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge"
	"github.com/millrace-db/millrace/edge/access"
	"github.com/millrace-db/millrace/edge/serve"
)

const restURL = "/rest/bank"

// askWith asks with headers: names and values in turn.
func askWith(t testing.TB, h http.Handler, method, target string, header ...string) answer {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, target, http.NoBody)
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return answer{w.Code, w.Result().Header, w.Body.String()}
}

func TestRest(t *testing.T) {
	store, src := newStore(t)
	s := newServer(t, store)
	const five = `{"id":5,"balance":5.50,"at":"2024-01-02T03:04:05+00:00","note":null}`
	for _, tt := range []struct {
		method, path string
		header       []string
		status       int
		body         string
		want         map[string]string
	}{
		{"GET", "/accounts?id=eq.5", nil, 200, "[" + five + "]", map[string]string{"Content-Range": "0-0/*", "Content-Type": "application/json; charset=utf-8"}},
		{"GET", "/%61ccounts?id=eq.5", nil, 200, "[" + five + "]", nil},
		{"GET", "/accounts?id=eq.5", []string{"Accept", "application/vnd.pgrst.object+json"}, 200, five, map[string]string{"Content-Type": "application/vnd.pgrst.object+json; charset=utf-8"}},
		{"GET", "/accounts?id=gt.22&order=id.desc&select=id", nil, 200, `[{"id":25},{"id":24},{"id":23}]`, map[string]string{"Content-Range": "0-2/*"}},
		{"GET", "/accounts?select=id", []string{"Range", "2-3", "Range-Unit", "items", "Prefer", "count=exact"}, 206, `[{"id":3},{"id":4}]`, map[string]string{"Content-Range": "2-3/25", "Preference-Applied": "count=exact"}},
		{"GET", "/accounts?select=id&id=lt.4&limit=2", []string{"Prefer", "count=planned"}, 206, `[{"id":1},{"id":2}]`, map[string]string{"Content-Range": "0-1/3"}},
		{"GET", "/accounts?id=eq.99", []string{"Prefer", "count=exact"}, 200, `[]`, map[string]string{"Content-Range": "*/0"}},
		{"GET", "/accounts?select=id,balance&id=in.(1,2)", []string{"Accept", "text/csv"}, 200, "id,balance\n1,1.50\n2,2.50", map[string]string{"Content-Type": "text/csv; charset=utf-8"}},
		{"GET", "/accounts?select=id&id=eq.3", []string{"Prefer", "bigint=string"}, 200, `[{"id":"3"}]`, map[string]string{"Preference-Applied": "bigint=string"}},
		{"GET", "/records?zone=eq.7&name=like.ab*&select=name", []string{"Accept-Profile", "dns"}, 200, `[{"name":"ab"},{"name":"abc"}]`, map[string]string{"Content-Profile": "dns"}},
		{"OPTIONS", "/accounts", nil, 200, "", map[string]string{"Allow": "OPTIONS,GET,HEAD"}},
		{"GET", "/accounts?offset=30", []string{"Prefer", "count=exact"}, 416, `{"code":"PGRST103","details":"An offset of 30 was requested, but there are only 25 rows.","hint":null,"message":"Requested range not satisfiable"}`, nil},
		{"GET", "/accounts?id=eq.x", nil, 400, `{"code":"22P02","details":null,"hint":null,"message":"invalid input syntax for type bigint: \"x\""}`, nil},
		{"POST", "/accounts", nil, 405, `{"code":"PGRST117","details":null,"hint":"An edge is read-only: write to the source's database.","message":"Unsupported HTTP method: POST"}`, map[string]string{"Allow": "OPTIONS,GET,HEAD"}},
		{"GET", "/nothing", nil, 404, `{"code":"PGRST205","details":null,"hint":null,"message":"Could not find the table 'public.nothing' in the schema cache"}`, nil},
		{"GET", "/records", nil, 404, `{"code":"PGRST205","details":null,"hint":null,"message":"Could not find the table 'public.records' in the schema cache"}`, nil},
		{"GET", "/records", []string{"Accept-Profile", "none"}, 406, `{"code":"PGRST106","details":null,"hint":"Only the following schemas are exposed: dns, public","message":"Invalid schema: none"}`, nil},
		{"GET", "", nil, 404, "PGRST125", nil},
		{"GET", "/", nil, 404, "PGRST125", nil},
		{"GET", "/a/b", nil, 404, "PGRST125", nil},
		{"GET", "/accounts", []string{"X-Millrace-Min-Index", "x"}, 400, `"code":"millrace.bad_index"`, nil},
	} {
		a := askWith(t, s, tt.method, restURL+tt.path, tt.header...)
		if a.status != tt.status || a.body != tt.body && a.body != tt.body+"\n" && (a.status < 400 || !strings.Contains(a.body, tt.body)) {
			t.Errorf("%s %s %v: got %d %s, want %d %s", tt.method, tt.path, tt.header, a.status, a.body, tt.status, tt.body)
		}
		for name, want := range tt.want {
			if got := a.header.Get(name); got != want {
				t.Errorf("%s %v: %s is %q, want %q", tt.path, tt.header, name, got, want)
			}
		}
		checkPlace(t, tt.path, a, src.index)
	}
	if a := get(t, s, "/rest/shop/accounts"); a.status != 404 || !strings.Contains(a.body, "PGRST125") || !strings.Contains(a.body, "bank") {
		t.Errorf("other stream: got %d %s", a.status, a.body)
	}
	if a := get(t, s, "/metrics"); !strings.Contains(a.body, `millrace_serve_answers_total{route="rest",status="2xx"}`) {
		t.Error("requests of /rest are not counted")
	}
}

// The only schema there is need not be named.
func TestRestOnlySchema(t *testing.T) {
	store := openStore(t, t.TempDir(), 0)
	src := newSource(t, store)
	schema := recordsSchema()
	s := newServer(t, store)
	if a := get(t, s, restURL+"/records"); a.status != 503 || !strings.Contains(a.body, `"millrace.not_copied"`) || a.header.Get("Retry-After") == "" {
		t.Errorf("before the copy: got %d %s", a.status, a.body)
	}
	src.unit(schemaEntry(schema), loadEntry(schema, millrace.KindLoadBegin, 1))
	src.unit(loadEntry(schema, millrace.KindLoadEnd, 1), put(t, schema, "a", "1", "t", "x"))
	if a := get(t, s, restURL+"/records?select=name"); a.body != `[{"name":"a"}]` {
		t.Errorf("got %d %s", a.status, a.body)
	}
	if a := get(t, s, restURL+"/accounts"); !strings.Contains(a.body, "Could not find the table 'dns.accounts'") {
		t.Errorf("got %d %s", a.status, a.body)
	}
}

// Declared indexes are used, and the limit on what is looked at names the one that is
// missing.
func TestRestIndexes(t *testing.T) {
	store, err := edge.Open(edge.Options{
		Dir: t.TempDir(), Stream: testStream, MapSize: 256 << 20, Indexes: map[string][][]string{records: {{"data"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	}()
	src := newSource(t, store)
	schema := recordsSchema()
	src.unit(schemaEntry(schema), loadEntry(schema, millrace.KindLoadBegin, 1))
	src.unit(loadEntry(schema, millrace.KindLoadEnd, 1))
	for n := range 50 {
		src.unit(put(t, schema, "name "+strconv.Itoa(n), "1", "t", "data "+strconv.Itoa(n)))
	}
	s := newServer(t, store, func(c *serve.Config) { c.MaxScan = 10 })
	if a := get(t, s, restURL+"/records?data=eq.data%207&select=name"); a.body != `[{"name":"name 7"}]` {
		t.Errorf("by the index: got %d %s", a.status, a.body)
	}
	a := get(t, s, restURL+"/records?name=eq.name%207&select=name")
	var body struct{ Code, Hint string }
	if err := json.Unmarshal([]byte(a.body), &body); err != nil || a.status != 400 || body.Code != "millrace.max_scan" ||
		!strings.Contains(body.Hint, `edge: {indexes: {bank: {dns.records: [[name]]}}}`) {
		t.Errorf("without an index: got %d %s", a.status, a.body)
	}
	src.w.Close()
}

func TestEntityTags(t *testing.T) {
	store, src := newStore(t)
	s := newServer(t, store)
	for _, path := range []string{
		streamURL + "/tables/public.accounts/rows/5", streamURL + "/tables/public.accounts/rows?limit=3", restURL + "/accounts?id=eq.5",
	} {
		first := get(t, s, path)
		tag := first.header.Get("Etag")
		if len(tag) != 34 || tag[0] != '"' {
			t.Errorf("%s: tag %q", path, tag)
		}
		for _, header := range []string{tag, "W/" + tag, `"x", ` + tag, "*"} {
			a := askWith(t, s, http.MethodGet, path, "If-None-Match", header)
			if a.status != 304 || a.body != "" || a.header.Get("Etag") != tag || a.header.Get("X-Millrace-Index") == "" {
				t.Errorf("%s: If-None-Match %s: got %d %q %v", path, header, a.status, a.body, a.header)
			}
		}
		if a := askWith(t, s, http.MethodGet, path, "If-None-Match", `"other"`); a.status != 200 || a.body != first.body {
			t.Errorf("%s: another tag: got %d", path, a.status)
		}
	}
	// The tag stays with the rows, whatever the index, and changes with them.
	path := streamURL + "/tables/public.accounts/rows/5"
	tag := get(t, s, path).header.Get("Etag")
	src.unit(put(t, accountsSchema(), "6", "0", "2024-01-02 03:04:05+00", "NULL"))
	if a := askWith(t, s, http.MethodGet, path, "If-None-Match", tag); a.status != 304 || a.header.Get("X-Millrace-Index") != src.index.String() {
		t.Errorf("after a change of another row: got %d at %s", a.status, a.header.Get("X-Millrace-Index"))
	}
	src.unit(put(t, accountsSchema(), "5", "0", "2024-01-02 03:04:05+00", "NULL"))
	if a := askWith(t, s, http.MethodGet, path, "If-None-Match", tag); a.status != 200 {
		t.Errorf("after a change of the row: got %d", a.status)
	}
	if a := get(t, s, streamURL+"/status"); a.header.Get("Etag") != "" {
		t.Error("a status has a tag")
	}
}

func TestBigInt(t *testing.T) {
	store, _ := newStore(t)
	s := newServer(t, store)
	for path, want := range map[string]string{
		"/tables/public.accounts/rows/5?bigint=string":               `{"id":"5","balance":5.50`,
		"/tables/public.accounts/rows/5?bigint=number":               `{"id":5,`,
		"/tables/public.accounts/rows?limit=1&bigint=string":         `{"rows":[{"id":"1",`,
		"/tables/public.accounts/rows/5?bigint=both":                 `"bad_bigint"`,
		"/tables/public.accounts/rows/5?bigint=string&bigint=string": `"bad_query"`,
		"/tables/public.accounts/rows/5":                             `{"id":5,`, // the next request is not told what the one before was
	} {
		if a := get(t, s, streamURL+path); !strings.Contains(a.body, want) {
			t.Errorf("%s: got %s, want %s", path, a.body, want)
		}
	}
	if a := ask(t, s, http.MethodPost, streamURL+"/rows:get?bigint=string", `{"keys":[{"table":"public.accounts","key":[3]}]}`); !strings.Contains(a.body, `"id":"3"`) {
		t.Errorf("rows:get: got %s", a.body)
	}
}

// Rights are those of tables, and errors have PostgREST's shape also before a table is
// looked at.
func TestRestRights(t *testing.T) {
	oneToken, oneShown := access.NewToken()
	allToken, allShown := access.NewToken()
	s := newSecured(t, "one "+oneShown+" read:bank/dns.records\nall "+allShown+" read:bank\n")
	one, all, nobody := s.as(oneToken, ""), s.as(allToken, ""), s.as("", "")
	for _, tt := range []struct {
		ask    func(method, path, body string) answer
		path   string
		status int
		want   string
	}{
		{all, "/rest/bank/accounts?id=eq.5&select=id", 200, `[{"id":5}]`},
		{one, "/rest/bank/records?zone=eq.8&select=name", 200, `[{"name":"a"}]`}, // the only schema that it may see
		{one, "/rest/bank/accounts", 403, `"code":"42501"`},
		{one, "/rest/dns/records", 403, `"code":"42501"`},
		{nobody, "/rest/bank/records", 401, `"code":"millrace.unauthorized"`},
	} {
		if a := tt.ask(http.MethodGet, tt.path, ""); a.status != tt.status || !strings.Contains(a.body, tt.want) {
			t.Errorf("%s: got %d %s, want %d %s", tt.path, a.status, a.body, tt.status, tt.want)
		}
	}
}

// What a partial store does not hold is told from what is not there.
func TestNotHeld(t *testing.T) {
	store, err := edge.Open(edge.Options{
		Dir: t.TempDir(), Stream: testStream, MapSize: 256 << 20,
		Filter: &millrace.Filter{Tables: []millrace.FilterTable{{Name: records, Prefixes: [][]string{{"7"}}}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	}()
	src := newSource(t, store)
	a, r := accountsSchema(), recordsSchema()
	src.unit(schemaEntry(a), schemaEntry(r), loadEntry(a, millrace.KindLoadBegin, 1), loadEntry(r, millrace.KindLoadBegin, 2))
	src.unit(loadEntry(a, millrace.KindLoadEnd, 1), loadEntry(r, millrace.KindLoadEnd, 2))
	src.unit(put(t, r, "a", "7", "t", "held"), put(t, r, "a", "8", "t", "not"))
	defer src.w.Close()
	s := newServer(t, store)
	for path, status := range map[string]int{
		streamURL + "/tables/dns.records/rows/7,a,t":    200,
		streamURL + "/tables/dns.records/rows/7,b,t":    404,
		streamURL + "/tables/dns.records/rows/8,a,t":    421,
		streamURL + "/tables/dns.records/rows?prefix=7": 200,
		streamURL + "/tables/dns.records/rows":          421,
		streamURL + "/tables/public.accounts/rows/1":    421,
		streamURL + "/watch":                            421,
		streamURL + "/watch?table=dns.records":          421,
		streamURL + "/watch?table=dns.records&prefix=8": 421,
		streamURL + "/watch?table=dns.records&prefix=7": 404, // no log is kept here
		restURL + "/records?zone=eq.7&select=name":      200,
		restURL + "/records?zone=eq.8&select=name":      421,
		restURL + "/records?name=eq.a":                  421,
		restURL + "/records?limit=0":                    200,
	} {
		got := askWith(t, s, http.MethodGet, path, "Accept-Profile", "dns")
		if got.status != status || status == 421 && !strings.Contains(got.body, "not_held") {
			t.Errorf("%s: got %d %s, want %d", path, got.status, got.body, status)
		}
	}
	// The only schema of which something is held need not be named.
	if got := get(t, s, restURL+"/records?zone=eq.7&select=name"); got.body != `[{"name":"a"}]` {
		t.Errorf("without the schema: got %d %s", got.status, got.body)
	}
	if got := get(t, s, restURL+"/accounts?id=eq.7"); got.status != 421 {
		t.Errorf("a table that is not held: got %d %s", got.status, got.body)
	}
	if got := askWith(t, s, http.MethodGet, restURL+"/records?limit=0", "Accept-Profile", "dns", "Prefer", "count=exact"); got.status != 421 {
		t.Errorf("a count of what is held in part: got %d %s %s", got.status, got.body, got.header.Get("Content-Range"))
	}
}
