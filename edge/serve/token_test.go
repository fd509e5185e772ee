package serve_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/millrace-db/millrace/edge/serve"
)

// An answer covers the token that it is asked for, or says that it does not; what is no
// token of the source is refused.
func TestToken(t *testing.T) {
	store, src := newStore(t)
	s := newServer(t, store)
	for _, tt := range []struct {
		token, wait string
		status      int
		says        string
	}{
		{"0/1267", "", 200, `"id":5`}, // 4711: just there
		{"0/1268", "", 504, "behind"},
		{"0/1268", "20ms", 504, "behind"},
		{"1-1-0/1267-1:1:", "", 200, `"id":5`},
		{"1-2-0/1-1:1:", "", 400, "bad_token"},
		{"x", "", 400, "bad_token"},
		{"0/1", "1h", 400, "bad_wait"},
		{"", "1s", 400, "bad_wait"},
	} {
		query := "?after_token=" + tt.token + "&wait=" + tt.wait
		a := get(t, s, streamURL+"/tables/public.accounts/rows/5"+query)
		if a.status != tt.status || !strings.Contains(a.body, tt.says) {
			t.Errorf("%s: got %d %s, want %d %s", query, a.status, a.body, tt.status, tt.says)
		}
		checkPlace(t, query, a, src.index)
	}
	if a := get(t, s, streamURL+"/token?after_token=0/1267"); a.status != http.StatusOK || a.body != `{"epoch":1,"index":`+src.index.String()+"}\n" {
		t.Errorf("token: got %d %s", a.status, a.body)
	}
	if a := get(t, s, streamURL+"/token"); a.status != http.StatusBadRequest {
		t.Errorf("token without one: got %d %s", a.status, a.body)
	}
	// What comes while it is waited for.
	got := make(chan answer, 1)
	go func() { got <- get(t, s, streamURL+"/token?after_token=0/1268&wait=30s") }()
	src.lsn = 0x1268
	src.unit(put(t, accountsSchema(), "5", "6", "2024-01-02 03:04:05+00", "NULL"))
	if a := <-got; a.status != http.StatusOK || !strings.Contains(a.body, src.index.String()) {
		t.Errorf("a token that comes: got %d %s", a.status, a.body)
	}
}

func TestReadyByLag(t *testing.T) {
	store, _ := newStore(t)
	var behind uint64
	var fault error
	s := newServer(t, store, func(c *serve.Config) {
		c.Behind = func(context.Context, string) (uint64, error) { return behind, fault }
	})
	for _, tt := range []struct {
		query  string
		behind uint64
		fault  error
		status int
		says   string
	}{
		{"", 99, nil, 200, `{"ready":true}`},
		{"?max_lag=10m", 99, nil, 200, `"lag_seconds":`},
		{"?max_lag=600", 99, nil, 200, `"lag_entries":null`},
		{"?max_lag=1s", 0, nil, 503, "seconds behind at index"},
		{"?max_lag_entries=5", 5, nil, 200, `"lag_entries":5`},
		{"?max_lag_entries=5", 6, nil, 503, "6 entries behind at index"},
		{"?max_lag_entries=5", 0, errors.New("the topic is away"), 503, "the topic is away"},
		{"?max_lag=-1", 0, nil, 400, "bad_lag"},
		{"?max_lag_entries=x", 0, nil, 400, "bad_lag"},
		{"?max-lag=5", 0, nil, 400, "bad_query"},
	} {
		behind, fault = tt.behind, tt.fault
		if a := get(t, s, "/readyz"+tt.query); a.status != tt.status || !strings.Contains(a.body, tt.says) {
			t.Errorf("%s with %d: got %d %s, want %d %s", tt.query, tt.behind, a.status, a.body, tt.status, tt.says)
		}
	}
}
