package wal

import (
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/prometheus/client_golang/prometheus"
)

// A process that stood still for longer than the source may be silent asks it first,
// and listens to what has come meanwhile, before it takes the connection for dead.
func TestSilenceOfAStoppedProcess(t *testing.T) {
	m, err := newMetrics(prometheus.NewRegistry(), "s")
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := net.Pipe()
	defer func() { _ = ours.Close() }()
	defer func() { _ = theirs.Close() }()
	go func() { _, _ = io.Copy(io.Discard, theirs) }()
	const silence = time.Minute
	fresh := func() *stream {
		now := time.Now()
		return &stream{
			conn: ours, frontend: pgproto3.NewFrontend(ours, ours), gulp: &gulpConn{Conn: ours, heard: now}, metrics: m, confirmed: new(atomic.Uint64),
			statusInterval: time.Hour, confirmDelay: time.Hour, silence: silence, lastStatus: now,
		}
	}
	serve := func(st *stream, what string, until time.Duration) {
		t.Helper()
		before := time.Now()
		if err := st.service(t.Context()); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if got := st.due().Sub(before); got < until || got > until+time.Minute {
			t.Errorf("%s: the next deadline is in %v, want %v", what, got, until)
		}
	}
	st := fresh()
	st.gulp.heard = st.gulp.heard.Add(-10 * silence)
	serve(st, "stopped before it asked", silence/2)
	if st.asked.IsZero() {
		t.Error("the source was not asked")
	}
	st.asked = st.asked.Add(-10 * silence)
	serve(st, "stopped before the answer", lastListen)
	st.relented = st.relented.Add(-10 * silence)
	if err := st.service(t.Context()); !errors.Is(err, ErrSilent) {
		t.Errorf("nothing has come: %v", err)
	}
	st.gulp.heard = time.Now()
	serve(st, "something has come", silence/4)
	if !st.asked.IsZero() || !st.relented.IsZero() {
		t.Error("what has come counts for nothing")
	}
	st = fresh()
	serve(st, "nothing is due", silence/4)
	if !st.asked.IsZero() {
		t.Error("a source was asked that was heard just now")
	}
}
