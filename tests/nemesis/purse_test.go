package nemesis

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/millrace-db/millrace/tests/harness"
)

const (
	purse      = "public.purse"
	purses     = 8 * stripes
	auditPause = 3 * time.Millisecond
)

// balance moves amounts between the purses of a stripe with one statement, so
// that in every state that is ever committed all of them add up to nothing.
func (w *walker) balance() bool {
	s := w.some(false)
	if w.locked(s, "purse", false) {
		return false
	}
	if s.open {
		s.touched["purse"] = true
	}
	w.say(s, "UPDATE purse SET n = n + (CASE WHEN id / %d %% 2 = 0 THEN 1 ELSE -1 END) * %d WHERE id %% %d = %d", stripes, 1+w.r.IntN(1000), stripes, s.stripe)
	return true
}

// rewritePurses gives the table of purses new files and says the same in them.
func (w *walker) rewritePurses() bool {
	s := w.alone("purse", false)
	if s == nil {
		return false
	}
	w.say(s, "ALTER TABLE purse ALTER COLUMN n TYPE int USING n + 0")
	return true
}

// audit reads all purses at an edge again and again, over HTTP in one answer,
// until ctx ends. It returns an error when they do not add up, when they are
// there in part, or when the edge has gone back.
func audit(ctx context.Context, e *harness.Client) (audits int, err error) {
	var epoch, last uint64
	for ctx.Err() == nil {
		page, err := e.Scan(ctx, purse, "", purses+1, "")
		if err != nil || page.Epoch == epoch && page.Index == last {
			harness.Pass(ctx, auditPause) // it may be down, or not have the table yet
			continue
		}
		if page.Epoch < epoch || page.Epoch == epoch && page.Index < last {
			return audits, fmt.Errorf("the edge answered at epoch %d index %d after %d, %d", page.Epoch, page.Index, epoch, last)
		}
		epoch, last = page.Epoch, page.Index
		sum := 0
		for _, text := range page.Rows {
			var row struct {
				N int `json:"n"`
			}
			if err := json.Unmarshal(text, &row); err != nil {
				return audits, fmt.Errorf("read purse %s: %w", text, err)
			}
			sum += row.N
		}
		if sum != 0 || len(page.Rows) != purses {
			return audits, fmt.Errorf("at index %d there are %d of %d purses, which add up to %d: a torn unit", page.Index, len(page.Rows), purses, sum)
		}
		audits++
	}
	return audits, nil
}

// TestAudit gives the auditor answers of an edge that show a torn unit.
func TestAudit(t *testing.T) {
	for name, one := range map[string]struct {
		sums []int // of one purse after the other, all others 0
		want bool
	}{
		"balanced": {[]int{0}, false}, "torn": {[]int{0, 0, 5}, true},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			asked := 0
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				i := min(asked, len(one.sums)-1)
				asked++
				if asked > len(one.sums) {
					cancel()
				}
				rows := []map[string]int{{"n": one.sums[i]}}
				for range purses - 1 {
					rows = append(rows, map[string]int{"n": 0})
				}
				w.Header().Set("X-Millrace-Epoch", "1")
				w.Header().Set("X-Millrace-Index", itoa(asked))
				if err := json.NewEncoder(w).Encode(map[string]any{"rows": rows}); err != nil {
					t.Error(err)
				}
			}))
			defer server.Close()
			_, err := audit(ctx, harness.NewClient(strings.TrimPrefix(server.URL, "http://"), "walk"))
			if (err != nil) != one.want {
				t.Errorf("the auditor says %v, want an error: %v", err, one.want)
			}
		})
	}
}
