package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace-db/millrace/internal/edgestatus"
	"github.com/millrace-db/millrace/transfer"
)

// publisher takes commands for the tables a and b.
type publisher struct {
	mu       sync.Mutex
	loads    []LoadStatus
	verified []VerifyStatus
}

func (p *publisher) known(table string) error {
	if table != "public.a" && table != "public.b" {
		return fmt.Errorf("table %s: %w: it has public.a, public.b", table, ErrUnknownTable)
	}
	return nil
}

func (p *publisher) Load(_ context.Context, table, reason string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if table == "public.broken" {
		return errors.New("no room for the spool")
	}
	switch table {
	case "public.busy":
		return fmt.Errorf("%w: %s", ErrLoading, table)
	case "public.soon":
		return ErrOpening
	}
	p.loads = append(p.loads, LoadStatus{Table: table, Reason: reason, Phase: PhaseWaiting, StartedAt: time.Unix(1, 0).UTC()})
	return p.known(table)
}

func (p *publisher) Loads() []LoadStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]LoadStatus(nil), p.loads...)
}

func (p *publisher) PauseLoads(pause bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.loads {
		p.loads[i].Paused = pause
	}
}

func (p *publisher) Verify(_ context.Context, tables []string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, table := range tables {
		if err := p.known(table); err != nil {
			return err
		}
		p.verified = append(p.verified, VerifyStatus{Table: table, Phase: PhaseRunning, ID: uint64(len(p.verified) + 1)})
	}
	return nil
}

func (p *publisher) Verifications() []VerifyStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]VerifyStatus(nil), p.verified...)
}

// trimmable is a stream whose topic can be trimmed.
type trimmable struct {
	stream
	asked []transfer.TrimRequest
	err   error
}

func (s *trimmable) Trim(_ context.Context, request transfer.TrimRequest) (*transfer.Trim, error) {
	s.asked = append(s.asked, request)
	return &transfer.Trim{Stream: "bank", To: 7, Done: !request.DryRun}, s.err
}

// TestTrimAndEdges: the listener passes on what is asked of a topic, and what edges have
// reported.
func TestTrimAndEdges(t *testing.T) {
	bank := &trimmable{stream: stream{status: transfer.Status{Stream: "bank", Phase: transfer.PhasePublishing}, ready: true}}
	mute := &stream{status: transfer.Status{Stream: "mute"}, ready: true}
	down := &trimmable{stream: stream{status: transfer.Status{Stream: "down", Phase: transfer.PhaseFenced}}}
	s := start(t, Config{
		Listen: "localhost:0", Streams: []Stream{bank, mute, down},
		Edges: map[string]func() *edgestatus.Summary{"bank": func() *edgestatus.Summary { return &edgestatus.Summary{Edges: 12} }},
	})
	ask := func(stream, body string) (int, string) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+s.Address()+"/v1/streams/"+stream+"/trim", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/json")
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(text)
	}
	want := func(stream, body string, status int, word string) {
		t.Helper()
		if code, text := ask(stream, body); code != status || !strings.Contains(text, word) {
			t.Errorf("trim %s %s: %d %s, want %d with %q", stream, body, code, text, status, word)
		}
	}
	want("bank", `{"dry_run": true}`, 200, `"done":false`)
	want("bank", `{"force": true}`, 200, `"to_offset":7`)
	if len(bank.asked) != 2 || bank.asked[0] != (transfer.TrimRequest{DryRun: true}) || bank.asked[1] != (transfer.TrimRequest{Force: true}) {
		t.Errorf("asked for %+v", bank.asked)
	}
	want("bank", `{"all": true}`, 400, CodeBadRequest)
	want("mute", `{}`, 501, CodeNoCommands)
	want("down", `{}`, 503, CodeNotPublishing)
	want("none", `{}`, 404, CodeNoStream)
	bank.err = fmt.Errorf("trim: %w", transfer.ErrNotReigning)
	want("bank", `{}`, 503, CodeNotPublishing)
	if len(bank.asked) != 3 || len(down.asked) != 0 {
		t.Errorf("asked for %+v and %+v", bank.asked, down.asked)
	}
	if code, body := get(t, s, "/v1/streams/bank/edges"); code != 200 || !strings.Contains(body, `"edges":12`) {
		t.Errorf("edges: %d %s", code, body)
	}
	if code, _ := get(t, s, "/v1/streams/none/edges"); code != 404 {
		t.Errorf("edges of no stream: %d", code)
	}
}

func TestCommands(t *testing.T) {
	bank := &stream{status: transfer.Status{Stream: "bank", Phase: transfer.PhasePublishing}, ready: true}
	mute := &stream{status: transfer.Status{Stream: "mute"}, ready: true}
	down := &stream{status: transfer.Status{Stream: "down", Phase: transfer.PhaseFenced, Problem: "term 4 reigns"}}
	halt := &stream{status: transfer.Status{Stream: "halt", Phase: transfer.PhaseStopped, Problem: "slot lost"}}
	p := new(publisher)
	s := start(t, Config{
		Listen: "localhost:0", Streams: []Stream{bank, mute, down, halt},
		Commands: map[string]Commands{"bank": p, "down": p, "halt": p},
	})
	ask := func(method, path, body string, change ...func(*http.Request)) (int, string) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, "http://"+s.Address()+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/json")
		for _, f := range change {
			f(r)
		}
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(text)
	}
	const loads, verify = "/v1/streams/bank/loads", "/v1/streams/bank/verify"
	for _, test := range []struct {
		method, path, body string
		status             int
		words              string
	}{
		{"GET", loads, "", 200, "[]"},
		{"GET", verify, "", 200, "[]"},
		{"POST", loads, `{"table": "public.a", "reason": "because"}`, 200, `"table":"public.a","reason":"because"`},
		{"GET", loads, "", 200, `"rows":0,"estimate":0,"blocks_done":0,"blocks":0,"phase":"waiting","started_at":"1970-01-01T00:00:01Z","eta":null,"paused":false`},
		{"POST", loads + "/pause", "", 200, `"paused":true`},
		{"POST", loads + "/resume", "", 200, `"paused":false`},
		{"POST", loads, `{"table": "public.busy"}`, 409, `"code":"loading"`},
		{"POST", loads, `{"table": "public.soon"}`, 503, `"code":"not_publishing"`},
		{"POST", loads, `{"table": "public.c"}`, 404, `"code":"no_table","message":"table public.c: the stream has no such table: it has public.a, public.b","mend":"correct the name`},
		{"POST", loads, `{"table": "public.broken"}`, 500, "no room for the spool"},
		{"POST", loads, `{}`, 400, "no table is named"},
		{"POST", loads, `{"table": 1}`, 400, CodeBadRequest},
		{"POST", loads, `{"tabel": "public.a"}`, 400, "tabel"},
		{"POST", loads, `{"table": "` + strings.Repeat("x", maxBody) + `"}`, 400, CodeBadRequest},
		{"POST", verify, `{"tables": ["public.a", "public.b"]}`, 200, `"table":"public.b","phase":"running"`},
		{"POST", verify, `{"tables": ["public.c"]}`, 404, CodeNoTable},
		{"GET", verify, "", 200, `"id":2`},
		{"POST", "/v1/streams/other/loads", `{"table": "public.a"}`, 404, CodeNoStream},
		{"POST", "/v1/streams/mute/loads", `{"table": "public.a"}`, 501, CodeNoCommands},
		{"POST", "/v1/streams/down/loads", `{"table": "public.a"}`, 503, "fenced since"},
		{"GET", "/v1/streams/down/loads", "", 503, "ask the transfer that publishes now"},
		{"POST", "/v1/streams/halt/verify", `{"tables": []}`, 503, `"code":"stopped"`},
		{"DELETE", loads, "", 405, ""},
	} {
		if status, text := ask(test.method, test.path, test.body); status != test.status || !strings.Contains(text, test.words) {
			t.Errorf("%s %s %.80s: %d %s, want %d with %s", test.method, test.path, test.body, status, text, test.status, test.words)
		}
	}

	// A web page cannot ask for anything.
	before := len(p.Loads())
	for name, change := range map[string]func(*http.Request){
		"as a form":          func(r *http.Request) { r.Header.Set("Content-Type", "application/x-www-form-urlencoded") },
		"as text":            func(r *http.Request) { r.Header.Set("Content-Type", "text/plain") },
		"with another name":  func(r *http.Request) { r.Host = "rebound.example" },
		"with a name like":   func(r *http.Request) { r.Host = "127.0.0.1.example:7470" },
		"without any at all": func(r *http.Request) { r.Header.Del("Content-Type") },
	} {
		if status, text := ask("POST", loads, `{"table": "public.a"}`, change); status != 415 && status != 421 {
			t.Errorf("%s: %d %s, want it refused", name, status, text)
		}
	}
	if len(p.Loads()) != before {
		t.Error("a command that was refused was carried out")
	}
	_, text := ask("POST", loads, `{}`)
	var problem struct{ Error Problem }
	if err := json.Unmarshal([]byte(text), &problem); err != nil || problem.Error.Mend == "" {
		t.Errorf("problem %s: %v", text, err)
	}
}
