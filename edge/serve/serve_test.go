package serve_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge"
	"github.com/millrace-db/millrace/edge/serve"
)

func TestRow(t *testing.T) {
	store, src := newStore(t)
	s := newServer(t, store)
	for path, want := range map[string]string{
		"/tables/public.accounts/rows/5":                  `{"id":5,"balance":5.50,"at":"2024-01-02T03:04:05+00:00","note":null}`,
		"/tables/public.accounts/rows/%35":                `{"id":5,"balance":5.50,"at":"2024-01-02T03:04:05+00:00","note":null}`,
		"/tables/public%2eaccounts/rows/05":               `{"id":5,"balance":5.50,"at":"2024-01-02T03:04:05+00:00","note":null}`,
		"/tables/dns.records/rows/7,ab,t":                 `{"name":"ab","zone":7,"live":true,"data":"data of ab"}`,
		"/tables/dns.records/rows/7,b%2Cc,true":           `{"name":"b,c","zone":7,"live":true,"data":"data of b,c"}`,
		"/tables/dns.records/rows/7,b%2Fc,t":              `{"name":"b/c","zone":7,"live":true,"data":"data of b/c"}`,
		"/tables/dns.records/rows/7,%C3%A9,t":             `{"name":"é","zone":7,"live":true,"data":"data of é"}`,
		"/tables/dns.records/rows/7,*,t":                  `{"name":"*","zone":7,"live":true,"data":"data of *"}`,
		"/tables/dns.records/rows/7,50%25,t":              `{"name":"50%","zone":7,"live":true,"data":"data of 50%"}`,
		"/tables/dns.records/rows/8,a,false":              `{"name":"a","zone":8,"live":false,"data":"\"quoted\""}`,
		"/tables/dns.records/rows/8,a,false?unknown=here": `{"name":"a","zone":8,"live":false,"data":"\"quoted\""}`,
	} {
		a := get(t, s, streamURL+path)
		if a.status != http.StatusOK || a.body != want+"\n" {
			t.Errorf("%s: got %d %s, want %s", path, a.status, a.body, want)
		}
		if got := a.header.Get("Content-Type"); got != "application/json" {
			t.Errorf("%s: Content-Type %q", path, got)
		}
		checkPlace(t, path, a, src.index)
	}
	if a := ask(t, s, http.MethodHead, streamURL+"/tables/public.accounts/rows/5", ""); a.status != http.StatusOK {
		t.Errorf("HEAD: got %d", a.status)
	}
}

func checkPlace(t *testing.T, what string, a answer, index millrace.Index) {
	t.Helper()
	if got := a.header.Get("X-Millrace-Index"); got != index.String() {
		t.Errorf("%s: X-Millrace-Index %q, want %v", what, got, index)
	}
	if lag, err := strconv.ParseFloat(a.header.Get("X-Millrace-Lag"), 64); err != nil || lag < 2 || lag > 600 {
		t.Errorf("%s: X-Millrace-Lag %q, want 2 seconds and a little", what, a.header.Get("X-Millrace-Lag"))
	}
}

func TestErrors(t *testing.T) {
	store, src := newStore(t)
	s := newServer(t, store)
	many := `{"keys":[` + strings.Repeat(`{"table":"public.accounts","key":["1"]},`, 1000) + `{"table":"public.accounts","key":["1"]}]}`
	for _, tt := range []struct {
		method, path, body string
		status             int
		code               string
	}{
		{"GET", "/", "", 404, "no_route"},
		{"GET", "/v1", "", 404, "no_route"},
		{"GET", "/v1/streamsx", "", 404, "no_route"},
		{"GET", "/v1/streams/shop/status", "", 404, "no_stream"},
		{"GET", "/v1/streams/shop/tables/public.accounts/rows/1", "", 404, "no_stream"},
		{"GET", streamURL, "", 404, "no_route"},
		{"GET", streamURL + "/", "", 404, "no_route"},
		{"GET", streamURL + "/tables/public.accounts", "", 404, "no_route"},
		{"GET", streamURL + "/tables/public.accounts/rows/1/2", "", 404, "no_route"},
		{"GET", streamURL + "/tables/public.nothing/rows/1", "", 404, "no_table"},
		{"GET", streamURL + "/tables/accounts/rows/1", "", 404, "no_table"},
		{"GET", streamURL + "/tables/public.nothing/rows", "", 404, "no_table"},
		{"GET", streamURL + "/tables/public.accounts/rows/26", "", 404, "no_row"},
		{"GET", streamURL + "/tables/public.accounts/rows/one", "", 400, "bad_key"},
		{"GET", streamURL + "/tables/public.accounts/rows/", "", 400, "bad_key"},
		{"GET", streamURL + "/tables/public.accounts/rows/1,2", "", 400, "bad_key"},
		{"GET", streamURL + "/tables/dns.records/rows/7,b,c,t", "", 400, "bad_key"},
		{"POST", streamURL + "/tables/public.accounts/rows/1", "", 405, "wrong_method"},
		{"DELETE", streamURL + "/tables/public.accounts/rows", "", 405, "wrong_method"},
		{"GET", streamURL + "/rows:get", "", 405, "wrong_method"},
		{"POST", "/livez", "", 405, "wrong_method"},
		{"TRACE", "/metrics", "", 405, "wrong_method"},
		{"GET", streamURL + "/tables/public.accounts/rows?limit=0", "", 400, "bad_limit"},
		{"GET", streamURL + "/tables/public.accounts/rows?limit=10001", "", 400, "bad_limit"},
		{"GET", streamURL + "/tables/public.accounts/rows?limit=x", "", 400, "bad_limit"},
		{"GET", streamURL + "/tables/public.accounts/rows?limt=1", "", 400, "bad_query"},
		{"GET", streamURL + "/tables/public.accounts/rows?limit=1&limit=2", "", 400, "bad_query"},
		{"GET", streamURL + "/tables/public.accounts/rows?limit=%zz", "", 400, "bad_query"},
		{"GET", streamURL + "/tables/public.accounts/rows?prefix=%25zz", "", 400, "bad_prefix"},
		{"GET", streamURL + "/tables/public.accounts/rows?prefix=1*", "", 400, "bad_prefix"},
		{"GET", streamURL + "/tables/dns.records/rows?prefix=x", "", 400, "bad_prefix"},
		{"GET", streamURL + "/tables/dns.records/rows?prefix=7,a,t,t", "", 400, "bad_prefix"},
		{"GET", streamURL + "/tables/dns.records/rows?cursor=x", "", 400, "bad_cursor"},
		{"GET", streamURL + "/tables/dns.records/rows?cursor=AQAAAAAAAAAAAA", "", 400, "bad_cursor"},
		{"POST", streamURL + "/rows:get", "", 400, "bad_body"},
		{"POST", streamURL + "/rows:get", "[]", 400, "bad_body"},
		{"POST", streamURL + "/rows:get", `{"keys":[]} {}`, 400, "bad_body"},
		{"POST", streamURL + "/rows:get", `{"keys":[{"tabel":"x"}]}`, 400, "bad_body"},
		{"POST", streamURL + "/rows:get", `{"keys":[{"table":"public.accounts","key":[null]}]}`, 400, "bad_body"},
		{"POST", streamURL + "/rows:get", `{"keys":[{"table":"public.accounts","key":[[1]]}]}`, 400, "bad_body"},
		{"POST", streamURL + "/rows:get", `{"keys":[{"table":"public.accounts","key":[]}]}`, 400, "bad_key"},
		{"POST", streamURL + "/rows:get", `{"keys":[{"table":"public.accounts","key":["x"]}]}`, 400, "bad_key"},
		{"POST", streamURL + "/rows:get", `{"keys":[{"table":"public.x","key":["x"]}]}`, 404, "no_table"},
		{"POST", streamURL + "/rows:get", many, 413, "too_large"},
		{"POST", streamURL + "/rows:get", `{"keys":[{"table":"` + strings.Repeat("x", 1<<20) + `"}]}`, 413, "too_large"},
	} {
		a := ask(t, s, tt.method, tt.path, tt.body)
		what := fmt.Sprintf("%s %s %.60s", tt.method, tt.path, tt.body)
		if code := a.code(t); a.status != tt.status || code != tt.code {
			t.Errorf("%s: got %d %s, want %d %s", what, a.status, a.body, tt.status, tt.code)
		}
		if strings.HasPrefix(tt.path, streamURL) {
			checkPlace(t, what, a, src.index)
		}
	}
	// httptest refuses paths that it cannot parse; the server sees them as
	// escaped paths all the same.
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", http.NoBody)
	r.URL = &url.URL{Path: streamURL + "/tables/public.accounts/rows/%zz", RawPath: streamURL + "/tables/public.accounts/rows/%zz"}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	if a := (answer{w.Code, w.Header(), w.Body.String()}); a.status != 400 || a.code(t) != "bad_key" {
		t.Errorf("bad escape: got %d %s", a.status, a.body)
	}
}

func TestScan(t *testing.T) {
	store, _ := newStore(t)
	s := newServer(t, store)
	names := func(query string) string {
		t.Helper()
		a := get(t, s, streamURL+"/tables/dns.records/rows?"+query)
		var page struct {
			Rows   []struct{ Name string }
			Cursor *string
		}
		if err := json.Unmarshal([]byte(a.body), &page); err != nil || a.status != 200 {
			t.Fatalf("%s: %d %s: %v", query, a.status, a.body, err)
		}
		if page.Cursor != nil {
			t.Errorf("%s: there is a cursor at the end: %s", query, a.body)
		}
		var all []string
		for _, r := range page.Rows {
			all = append(all, r.Name)
		}
		return strings.Join(all, " ")
	}
	for query, want := range map[string]string{
		"":                              "* 50% a ab abc b,c b/c é a",
		"prefix=&limit=&cursor=":        "* 50% a ab abc b,c b/c é a",
		"prefix=7":                      "* 50% a ab abc b,c b/c é",
		"prefix=8":                      "a",
		"prefix=9":                      "",
		"prefix=*":                      "* 50% a ab abc b,c b/c é a",
		"prefix=7,*":                    "* 50% a ab abc b,c b/c é",
		"prefix=7,a":                    "a",
		"prefix=7,a*":                   "a ab abc",
		"prefix=7%2Ca%2A":               "a ab abc", // as form encoders write it
		"prefix=7,b%252C*":              "b,c",
		"prefix=7,%252A":                "*",
		"prefix=7,a,t":                  "a",
		"prefix=7,a,f":                  "",
		"limit=9":                       "* 50% a ab abc b,c b/c é a",
		"limit=10000&prefix=7,%C3%A9,t": "é",
	} {
		if got := names(query); got != want {
			t.Errorf("%s: got %q, want %q", query, got, want)
		}
	}
	if a := get(t, s, streamURL+"/tables/dns.records/rows?prefix=9"); a.body != `{"rows":[]}`+"\n" {
		t.Errorf("no rows: got %s", a.body)
	}
}

func TestScanPages(t *testing.T) {
	store, _ := newStore(t)
	for _, tt := range []struct {
		limit, page, want int
	}{{10, 0, 10}, {25, 0, 25}, {1, 0, 1}, {1000, 300, 5}} {
		s := newServer(t, store, func(c *serve.Config) { c.MaxPage = tt.page })
		var ids []string
		cursor := ""
		for pages := 0; ; pages++ {
			a := get(t, s, fmt.Sprintf("%s/tables/public.accounts/rows?limit=%d&cursor=%s", streamURL, tt.limit, cursor))
			var page struct {
				Rows   []struct{ ID json.Number }
				Cursor string
			}
			if err := json.Unmarshal([]byte(a.body), &page); err != nil || a.status != 200 {
				t.Fatalf("%d %s: %v", a.status, a.body, err)
			}
			for _, r := range page.Rows {
				ids = append(ids, r.ID.String())
			}
			if cursor = page.Cursor; cursor == "" {
				break
			}
			if len(page.Rows) != tt.want || pages > 25 {
				t.Fatalf("limit %d, page size %d: page %d has %d rows, want %d", tt.limit, tt.page, pages, len(page.Rows), tt.want)
			}
			if url.QueryEscape(cursor) != cursor {
				t.Errorf("cursor %s is not safe in URLs", cursor)
			}
		}
		if len(ids) != 25 || ids[0] != "1" || ids[24] != "25" {
			t.Errorf("limit %d, page size %d: got ids %v", tt.limit, tt.page, ids)
		}
	}
}

func TestCursorIsBound(t *testing.T) {
	store, _ := newStore(t)
	s := newServer(t, store)
	var page struct{ Cursor string }
	a := get(t, s, streamURL+"/tables/dns.records/rows?limit=2&prefix=7")
	if err := json.Unmarshal([]byte(a.body), &page); err != nil || page.Cursor == "" {
		t.Fatalf("%s: %v", a.body, err)
	}
	if a := get(t, s, streamURL+"/tables/dns.records/rows?limit=2&prefix=7&cursor="+page.Cursor); a.status != 200 {
		t.Errorf("own cursor: got %d %s", a.status, a.body)
	}
	flipped := page.Cursor[:len(page.Cursor)-2] + "AA"
	for _, path := range []string{
		"/tables/public.accounts/rows?cursor=" + page.Cursor,
		"/tables/dns.records/rows?cursor=" + page.Cursor,
		"/tables/dns.records/rows?prefix=7,a*&cursor=" + page.Cursor,
		"/tables/dns.records/rows?prefix=7&cursor=" + flipped,
	} {
		if a := get(t, s, streamURL+path); a.status != 400 || a.code(t) != "bad_cursor" {
			t.Errorf("%s: got %d %s, want 400 bad_cursor", path, a.status, a.body)
		}
	}
}

func TestRowsGet(t *testing.T) {
	store, src := newStore(t)
	s := newServer(t, store)
	a := ask(t, s, http.MethodPost, streamURL+"/rows:get", `{"keys":[
		{"table":"dns.records","key":[7,"ab",true]},
		{"table":"public.accounts","key":["26"]},
		{"table":"dns.records","key":["8","a","f"]},
		{"table":"public.accounts","key":[3]}]}`)
	want := fmt.Sprintf(`{"index":%d,"rows":[{"name":"ab","zone":7,"live":true,"data":"data of ab"},null,{"name":"a","zone":8,"live":false,"data":"\"quoted\""},`+
		`{"id":3,"balance":3.50,"at":"2024-01-02T03:04:05+00:00","note":null}]}`, src.index)
	if a.status != 200 || a.body != compact(t, want) {
		t.Errorf("got %d %s, want %s", a.status, a.body, want)
	}
	checkPlace(t, "rows:get", a, src.index)
	if a := ask(t, s, http.MethodPost, streamURL+"/rows%3Aget", `{"keys":[]}`); a.body != fmt.Sprintf("{\"index\":%d,\"rows\":[]}\n", src.index) {
		t.Errorf("no keys: got %d %s", a.status, a.body)
	}
	small := newServer(t, store, func(c *serve.Config) { c.MaxPage = 100 })
	a = ask(t, small, http.MethodPost, streamURL+"/rows:get", `{"keys":[{"table":"public.accounts","key":[3]},{"table":"public.accounts","key":[4]}]}`)
	if a.status != 413 || a.code(t) != "too_large" {
		t.Errorf("large answer: got %d %s", a.status, a.body)
	}
}

func TestStatus(t *testing.T) {
	store, src := newStore(t)
	s := newServer(t, store, func(c *serve.Config) {
		c.Fault = func(stream string) error { return fmt.Errorf("gap in %s", stream) }
	})
	a := get(t, s, streamURL+"/status")
	var status serve.Status
	if err := json.Unmarshal([]byte(a.body), &status); err != nil {
		t.Fatal(err)
	}
	if status.Stream != "bank" || status.StreamID != testStream.String() || status.Epoch != 1 || status.Index != src.index ||
		status.Chain != millrace.NewChain(testStream, 1).String() || status.Term != 3 || status.Token != 4711 || *status.Offset != 5 ||
		status.Fault != "gap in bank" || status.LagSeconds == nil || *status.LagSeconds < 2 || len(status.Tables) != 2 ||
		!reflect.DeepEqual(status.Tables, []serve.TableStatus{{Name: records, ID: 12, Rows: 9}, {Name: accounts, ID: 11, Rows: 25}}) {
		t.Errorf("got %s", a.body)
	}
	checkPlace(t, "status", a, src.index)
	var all []serve.Status
	if err := json.Unmarshal([]byte(get(t, s, "/v1/streams").body), &all); err != nil || len(all) != 1 || all[0].Index != src.index {
		t.Errorf("streams: got %v, %v", all, err)
	}
	var tables []serve.TableDescription
	if err := json.Unmarshal([]byte(get(t, s, streamURL+"/tables").body), &tables); err != nil {
		t.Fatal(err)
	}
	if len(tables) != 2 || strings.Join(tables[0].Key, " ") != "zone name live" || tables[0].Columns[0] != (serve.ColumnDescription{Name: "name", Type: "text", NotNull: true}) {
		t.Errorf("tables: got %+v", tables)
	}
}

// TestBeforeTheCopy walks a store from empty to ready.
func TestBeforeTheCopy(t *testing.T) {
	store := openStore(t, t.TempDir(), 0)
	s := newServer(t, store)
	a := get(t, s, streamURL+"/status")
	var status serve.Status
	if err := json.Unmarshal([]byte(a.body), &status); err != nil || status.Index != 0 || status.LagSeconds != nil || status.StreamID != testStream.String() {
		t.Errorf("status: got %s, %v", a.body, err)
	}
	if index, lag := a.header.Get("X-Millrace-Index"), a.header.Get("X-Millrace-Lag"); index != "0" || lag != "unknown" {
		t.Errorf("headers: got index %q, lag %q", index, lag)
	}
	if a := get(t, s, "/livez"); a.status != 200 {
		t.Errorf("livez: got %d %s", a.status, a.body)
	}
	notYet := func(when string) {
		t.Helper()
		if a := get(t, s, "/readyz"); a.status != 503 || a.code(t) != "not_ready" {
			t.Errorf("%s: readyz: got %d %s", when, a.status, a.body)
		}
		if a := get(t, s, streamURL+"/tables/public.accounts/rows/1"); a.status != 503 || a.code(t) != "not_copied" || a.header.Get("Retry-After") == "" {
			t.Errorf("%s: row: got %d %s", when, a.status, a.body)
		}
	}
	notYet("empty store")
	src := newSource(t, store)
	schema := accountsSchema()
	src.unit(schemaEntry(schema), loadEntry(schema, millrace.KindLoadBegin, 1))
	notYet("during the copy")
	src.unit(loadEntry(schema, millrace.KindLoadEnd, 1))
	if a := get(t, s, "/readyz"); a.status != 200 {
		t.Errorf("readyz: got %d %s", a.status, a.body)
	}
	if a := get(t, s, streamURL+"/tables/public.accounts/rows/1"); a.status != 404 || a.code(t) != "no_row" {
		t.Errorf("row: got %d %s", a.status, a.body)
	}
}

// Rows from before a column was added have it as null, as at the source.
func TestOldRowsHaveNewColumns(t *testing.T) {
	store, src := newStore(t)
	s := newServer(t, store)
	schema := accountsSchema()
	schema.Version = 3
	schema.Columns = append(schema.Columns[:2:2], column("flag", oidBool, 0))
	src.unit(schemaEntry(schema), put(t, schema, "2", "9", "t"))
	for key, want := range map[string]string{"1": `{"id":1,"balance":1.50,"flag":null}`, "2": `{"id":2,"balance":9,"flag":true}`} {
		if a := get(t, s, streamURL+"/tables/public.accounts/rows/"+key); a.body != want+"\n" {
			t.Errorf("row %s: got %s, want %s", key, a.body, want)
		}
	}
}

func TestLargeAnswersAreBounded(t *testing.T) {
	store, src := newStore(t)
	large := strings.Repeat("x", 600<<10)
	src.unit(put(t, recordsSchema(), "large", "1", "t", large), put(t, recordsSchema(), "larger", "1", "t", large))
	s := newServer(t, store, func(c *serve.Config) { c.MaxBuffered = 700 << 10 })
	for range 3 { // what was counted is given back
		if a := get(t, s, streamURL+"/tables/dns.records/rows/1,large,t"); a.status != 200 || len(a.body) < len(large) {
			t.Errorf("one row: got %d, %d bytes", a.status, len(a.body))
		}
		a := get(t, s, streamURL+"/tables/dns.records/rows?prefix=1")
		var page struct {
			Rows   []json.RawMessage
			Cursor string
		}
		if err := json.Unmarshal([]byte(a.body), &page); err != nil || len(page.Rows) != 1 || page.Cursor == "" {
			t.Errorf("scan: got %d, %d rows, cursor %q, %v", a.status, len(page.Rows), page.Cursor, err)
		}
		a = ask(t, s, http.MethodPost, streamURL+"/rows:get", `{"keys":[{"table":"dns.records","key":[1,"large",true]},{"table":"dns.records","key":[1,"larger",true]}]}`)
		if a.status != 503 || a.code(t) != "busy" {
			t.Errorf("rows:get: got %d", a.status)
		}
	}
}

// A row that was damaged on disk is an error that says so; the others are there
// as before.
func TestDamagedRow(t *testing.T) {
	dir := t.TempDir()
	t.Run("fill", func(t *testing.T) {
		store := openStore(t, dir, 0)
		src := newSource(t, store)
		schema := recordsSchema()
		src.unit(schemaEntry(schema), loadEntry(schema, millrace.KindLoadBegin, 1))
		src.unit(loadEntry(schema, millrace.KindLoadEnd, 1), put(t, schema, "a", "1", "t", "stays"), put(t, schema, "b", "1", "t", "is damaged"))
	})
	path := filepath.Join(dir, "data.mdb")
	pages, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(pages, []byte("is damaged")) {
		t.Fatal("the row is not in the file")
	}
	if err := os.WriteFile(path, bytes.ReplaceAll(pages, []byte("is damaged"), []byte("is altered")), 0o600); err != nil {
		t.Fatal(err)
	}
	store, err := edge.Open(edge.Options{Dir: dir, MapSize: 256 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = store.Close() }() // it is damaged
	var log bytes.Buffer
	s := newServer(t, store, func(c *serve.Config) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
	if a := get(t, s, streamURL+"/tables/dns.records/rows/1,a,t"); a.status != 200 {
		t.Errorf("whole row: got %d %s", a.status, a.body)
	}
	for range 2 {
		for _, path := range []string{"/tables/dns.records/rows/1,b,t", "/tables/dns.records/rows"} {
			a := get(t, s, streamURL+path)
			if a.status != 500 || a.code(t) != "corrupt" || !strings.Contains(a.body, "dns.records key 1,b,t") {
				t.Errorf("%s: got %d %s", path, a.status, a.body)
			}
		}
	}
	if got := strings.Count(log.String(), "read failed"); got != 1 {
		t.Errorf("logged %d times, want once: %s", got, log.String())
	}
}

func TestMetrics(t *testing.T) {
	store, _ := newStore(t)
	s := newServer(t, store)
	get(t, s, streamURL+"/tables/public.accounts/rows/1")
	get(t, s, streamURL+"/tables/public.accounts/rows/99")
	a := get(t, s, "/metrics")
	for _, want := range []string{
		`millrace_serve_answers_total{route="row",status="2xx"} 1`,
		`millrace_serve_answers_total{route="row",status="4xx"} 1`,
		`millrace_serve_request_seconds_count{route="row"} 2`,
	} {
		if !strings.Contains(a.body, want) {
			t.Errorf("metrics lack %s", want)
		}
	}
}

// compactorOf plays the edge process.
type compactorOf struct{ now *serve.Compaction }

func (c *compactorOf) Compact(string) error {
	if c.now != nil && c.now.Running() {
		return serve.ErrCompacting
	}
	c.now = &serve.Compaction{State: serve.CompactionWaiting}
	return nil
}

func (c *compactorOf) Compaction(string) *serve.Compaction { return c.now }

func TestCompactRoute(t *testing.T) {
	store, _ := newStore(t)
	c := &compactorOf{}
	s := newServer(t, store, func(config *serve.Config) { config.Compactor = c })
	ask := func(method, kind string) (int, string) {
		t.Helper()
		r := httptest.NewRequestWithContext(t.Context(), method, streamURL+"/compact", strings.NewReader("{}"))
		r.Header.Set("Content-Type", kind)
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		return w.Code, w.Body.String()
	}
	for _, step := range []struct {
		method, kind string
		code         int
		says         string
	}{
		{http.MethodGet, "", http.StatusNotFound, "has not been compacted"},
		{http.MethodPost, "text/plain", http.StatusUnsupportedMediaType, "application/json"},
		{http.MethodPost, "application/json", http.StatusOK, `"state":"waiting"`},
		{http.MethodPost, "application/json", http.StatusConflict, "under way"},
		{http.MethodGet, "", http.StatusOK, `"state":"waiting"`},
		{http.MethodDelete, "", http.StatusMethodNotAllowed, "use POST, GET"},
	} {
		if code, body := ask(step.method, step.kind); code != step.code || !strings.Contains(body, step.says) {
			t.Errorf("%s %s: got %d %s, want %d that says %q", step.method, step.kind, code, body, step.code, step.says)
		}
	}
	s = newServer(t, store)
	if code, body := ask(http.MethodPost, "application/json"); code != http.StatusNotFound || !strings.Contains(body, "does not compact") {
		t.Errorf("server that does not compact: got %d %s", code, body)
	}
}

// Requests for a stream's images go to what has them, with the path behind.
func TestImagesRoute(t *testing.T) {
	store, _ := newStore(t)
	s := newServer(t, store, func(config *serve.Config) {
		config.Images = func(stream string) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = fmt.Fprint(w, stream, " ", r.URL.Path) })
		}
	})
	ask := func(path string) string {
		t.Helper()
		w := httptest.NewRecorder()
		s.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
		return w.Body.String()
	}
	for path, want := range map[string]string{
		streamURL + "/images": "bank ", streamURL + "/images/": "bank /", streamURL + "/images/a/rows": "bank /a/rows",
		"/v1/streams/other/images": "no_stream", streamURL + "/imagesof": "no_route",
	} {
		if got := ask(path); got != want && (!strings.HasPrefix(want, "no_") || !strings.Contains(got, want)) {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
	s = newServer(t, store)
	if got := ask(streamURL + "/images"); !strings.Contains(got, "no_route") {
		t.Errorf("a server without images: %s", got)
	}
}
