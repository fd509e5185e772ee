package migrations

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"
)

// recorder is a log that can be looked through, and goes into the test's output too.
type recorder struct {
	testWriter
	mu    sync.Mutex
	lines []string
}

func (w *recorder) Write(b []byte) (int, error) {
	w.mu.Lock()
	w.lines = append(w.lines, string(b))
	w.mu.Unlock()
	return w.testWriter.Write(b)
}

// count tells how many lines have all of some words.
func (w *recorder) count(words ...string) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
lines:
	for _, line := range w.lines {
		for _, word := range words {
			if !strings.Contains(line, word) {
				continue lines
			}
		}
		n++
	}
	return n
}

// record has what the migration logs recorded, from now on.
func (r *rig) record() *recorder {
	log := &recorder{testWriter: testWriter{r.t}}
	r.cfg.Logger = slog.New(slog.NewTextHandler(log, nil))
	r.renew()
	return log
}

// TestInTurn begins a verification, a second cutover and an abort while writers go over:
// they wait, say so, and then find what is so by then.
func TestInTurn(t *testing.T) {
	r := newRig(t, 15, "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT n FROM generate_series(1, 100) n", tablesOf("t")...)
	r.cfg.PauseBudget = 20 * time.Second
	log := r.record()
	r.follow()
	_, err := r.m.Rehearse(r.ctx())
	r.must("rehearse", err)
	if n := log.count("step is done", "step=armed"); n != 1 {
		t.Errorf("a rehearsal says %d times that the way back is armed, want once", n)
	}
	type result struct {
		what string
		err  error
	}
	results := make(chan result, 3)
	going := *r.m
	going.passed = func(step string) {
		if step != "armed" {
			return
		}
		for what, do := range map[string]func(context.Context) error{
			"verify":  func(ctx context.Context) error { _, err := r.m.Verify(ctx); return err },
			"cutover": func(ctx context.Context) error { _, err := r.m.Cutover(ctx); return err },
			"abort":   r.m.Abort,
		} {
			ctx := r.ctx()
			go func() { results <- result{what, do(ctx)} }()
		}
		waitFor(t, "all three to wait", func() bool { return log.count("waiting for another process") == 3 })
	}
	_, err = going.Cutover(r.ctx())
	r.must("cutover", err)
	for range cap(results) {
		got := <-results
		if refused := errors.Is(got.err, ErrStep); refused != (got.what == "abort") || got.err != nil && !refused {
			t.Errorf("%s while writers go over: %v", got.what, got.err)
		}
	}
	if open := r.open(); open[source] || !open[target] {
		t.Errorf("open: %v, want the target alone", open)
	}
}
