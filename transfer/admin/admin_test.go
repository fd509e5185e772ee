package admin

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace-db/millrace/transfer"
)

type stream struct {
	status transfer.Status
	ready  bool
}

func (s *stream) Status() transfer.Status { return s.status }
func (s *stream) Ready() bool             { return s.ready }

func get(t *testing.T, s *Server, path string) (int, string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+s.Address()+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(body)
}

func start(t *testing.T, config Config) *Server {
	t.Helper()
	s, err := New(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestServer(t *testing.T) {
	lag := 0.25
	bank := &stream{status: transfer.Status{Stream: "bank", Epoch: 1, Index: 12, Chain: "ab", LagSeconds: &lag, Phase: transfer.PhaseRetrying, Problem: "no broker"}}
	registry := prometheus.NewRegistry()
	registry.MustRegister(prometheus.NewGauge(prometheus.GaugeOpts{Name: "millrace_test"}))
	s := start(t, Config{Listen: "localhost:0", Streams: []Stream{bank}, Gatherer: registry})
	if code, body := get(t, s, "/livez"); code != 200 || body != "ok\n" {
		t.Errorf("livez: %d %q", code, body)
	}
	if code, body := get(t, s, "/readyz"); code != 503 || !strings.Contains(body, "bank is retrying") || !strings.Contains(body, "no broker") {
		t.Errorf("readyz: %d %q", code, body)
	}
	bank.ready = true
	if code, _ := get(t, s, "/readyz"); code != 200 {
		t.Errorf("readyz of a ready stream: %d", code)
	}
	if code, body := get(t, s, "/metrics"); code != 200 || !strings.Contains(body, "millrace_test 0") {
		t.Errorf("metrics: %d %q", code, body)
	}
	code, body := get(t, s, "/v1/streams")
	var got []map[string]any
	if err := json.Unmarshal([]byte(body), &got); err != nil || code != 200 || len(got) != 1 {
		t.Fatalf("streams: %d %q: %v", code, body, err)
	}
	if got[0]["stream"] != "bank" || got[0]["index"] != 12.0 || got[0]["lag_seconds"] != 0.25 || got[0]["chain"] != "ab" || got[0]["epoch"] != 1.0 {
		t.Errorf("streams: %s", body)
	}
	if code, _ := get(t, s, "/v1/other"); code != 404 {
		t.Errorf("unknown path: %d", code)
	}
}

func TestRefusedAddresses(t *testing.T) {
	for _, listen := range []string{"0.0.0.0:0", ":0", "[::]:0", "192.0.2.1:80", "7470", ""} {
		if _, err := New(t.Context(), Config{Listen: listen}); err == nil || !strings.Contains(err.Error(), "transfer.admin") {
			t.Errorf("listen on %q: %v, want it refused by name", listen, err)
		}
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	if _, err := New(t.Context(), Config{Listen: taken.Addr().String()}); err == nil || !strings.Contains(err.Error(), taken.Addr().String()) {
		t.Errorf("listen on a taken port: %v", err)
	}
}
