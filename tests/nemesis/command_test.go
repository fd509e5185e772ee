package nemesis

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/millrace-db/millrace/tests/harness"
)

const (
	commandLimit = 30 * time.Second
	// askLimit is how long a walk waits for a transfer that publishes.
	askLimit    = 3 * time.Second
	verifyLimit = 3 * time.Minute
)

// errRefused is the answer of a transfer that does not publish at the moment, or
// whose stream has the table under another name for the moment.
var errRefused = errors.New("transfer does not take the command now")

// pass is what transfer says of the newest verification of a table.
type pass struct {
	ID      uint64 `json:"id"`
	Table   string `json:"table"`
	Phase   string `json:"phase"`
	Ranges  uint64 `json:"ranges"`
	Problem string `json:"problem"`
}

// command asks the running transfer, whose answer is read into into. One that
// has just been started, or that waits for its turn, refuses.
func (r *run) command(ctx context.Context, method, path string, body, into any) error {
	ctx, cancel := context.WithTimeout(ctx, commandLimit)
	defer cancel()
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+r.transfer.Admin+"/v1/streams/"+r.s.Stream+path, bytes.NewReader(text))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("%w: %w", errRefused, err)
	}
	defer func() { _ = resp.Body.Close() }() // read to its end below
	answer, err := io.ReadAll(resp.Body)
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", errRefused, err)
	case resp.StatusCode == http.StatusServiceUnavailable || resp.StatusCode == http.StatusConflict || resp.StatusCode == http.StatusNotFound:
		return fmt.Errorf("%w: %s", errRefused, bytes.TrimSpace(answer))
	case bytes.Contains(answer, []byte("is being loaded already")):
		return fmt.Errorf("%w: %s", errRefused, bytes.TrimSpace(answer))
	case resp.StatusCode >= http.StatusBadRequest:
		return fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, bytes.TrimSpace(answer))
	case into == nil:
		return nil
	}
	return json.Unmarshal(answer, into)
}

// load begins a load of a table beside the walk; verify begins a pass.
func (r *run) load(table string) error {
	return r.ask("load", "/loads", map[string]string{"table": "public." + table, "reason": "walk"})
}

func (r *run) verify(table string) error {
	return r.ask("verify", "/verify", map[string][]string{"tables": {"public." + table}})
}

// ask gives a transfer that has just been started a moment to take a command.
func (r *run) ask(what, path string, body any) error {
	var failed error
	err := harness.Wait(r.t.Context(), askLimit, func(ctx context.Context) error {
		err := r.command(ctx, http.MethodPost, path, body, nil)
		if err != nil && !errors.Is(err, errRefused) {
			failed, err = err, nil
		}
		return err
	})
	if err != nil {
		r.counts[what+" refused"]++
	}
	return failed
}

// agree wants no edge to have found a difference so far.
func (r *run) agree(ctx context.Context, e *harness.Edge) error {
	status, err := e.Status(ctx)
	if err != nil {
		return err
	}
	for _, v := range status.Verify {
		if v.Different > 0 || len(v.Differences) > 0 {
			return fmt.Errorf("%s has found %d ranges of %s to differ: %s", e.ID, v.Different, v.Table, v.Differences)
		}
	}
	return nil
}

// verifyAll has all tables verified, at rest, and wants every edge to have
// compared every range and found it equal.
func (r *run) verifyAll() error {
	var before []pass
	old := map[string]uint64{}
	err := harness.Wait(r.t.Context(), verifyLimit, func(ctx context.Context) error {
		if err := r.command(ctx, http.MethodGet, "/verify", nil, &before); err != nil {
			return err
		}
		for _, p := range before {
			old[p.Table] = p.ID
		}
		return r.command(ctx, http.MethodPost, "/verify", map[string][]string{"tables": r.s.Tables}, nil)
	})
	if err != nil {
		return fmt.Errorf("begin verification: %w", err)
	}
	done := map[string]pass{}
	err = harness.Wait(r.t.Context(), verifyLimit, func(ctx context.Context) error {
		if err := r.keepUp(); err != nil {
			return err
		}
		var all []pass
		if err := r.command(ctx, http.MethodGet, "/verify", nil, &all); err != nil {
			return err
		}
		// A reign that began meanwhile knows nothing of what the one before was asked for.
		forgotten := slices.DeleteFunc(slices.Clone(r.s.Tables), func(table string) bool {
			return done[table].ID > 0 || slices.ContainsFunc(all, func(p pass) bool { return p.Table == table })
		})
		if len(forgotten) > 0 {
			r.counts["verifications forgotten"]++
			if err := r.command(ctx, http.MethodPost, "/verify", map[string][]string{"tables": forgotten}, nil); err != nil {
				return err
			}
		}
		for _, p := range all {
			if p.ID > old[p.Table] && p.Phase == "done" {
				done[p.Table] = p
			}
			if p.ID > old[p.Table] && p.Phase == "failed" {
				return fmt.Errorf("verification of %s has failed: %s", p.Table, p.Problem)
			}
		}
		if len(done) < len(r.s.Tables) {
			return harness.NotYet("%d of %d tables: %v", len(done), len(r.s.Tables), all)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("verify: %w", err)
	}
	for _, e := range r.edges {
		err := harness.Wait(r.t.Context(), verifyLimit, func(ctx context.Context) error {
			return r.compared(ctx, e, done)
		})
		if err != nil {
			return err
		}
		if err := r.agree(r.t.Context(), e); err != nil {
			return err
		}
	}
	r.counts["tables verified"] += len(done) * len(r.edges)
	return nil
}

// compared reports whether e is through with the passes.
func (r *run) compared(ctx context.Context, e *harness.Edge, passes map[string]pass) error {
	status, err := e.Status(ctx)
	if err != nil {
		return err
	}
	var rest []string
	for _, p := range passes {
		var got uint64
		for _, v := range status.Verify {
			if v.Table == p.Table && v.Pass.ID == p.ID {
				got = v.Pass.Equal + v.Pass.Different
			}
		}
		if got < p.Ranges {
			rest = append(rest, fmt.Sprintf("%s: %d of %d ranges", p.Table, got, p.Ranges))
		}
	}
	if len(rest) > 0 {
		return harness.NotYet("%s has still to compare %s", e.ID, strings.Join(rest, ", "))
	}
	return nil
}
