package wal

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/millrace-db/millrace"
)

type closer struct {
	millrace.Body
	closed *int
}

func (c closer) Close() error { *c.closed++; return nil }

func TestQueue(t *testing.T) {
	closed := 0
	unit := func() *millrace.Unit { return &millrace.Unit{Body: closer{closed: &closed}} }
	q := newQueue(1000)
	first, second := unit(), unit()
	if !q.tryPush(first, 5000) {
		t.Error("an empty queue has no room for a large unit")
	}
	if q.tryPush(second, 1) {
		t.Error("a full queue has room")
	}
	if u, err := q.take(t.Context()); u != first || err != nil {
		t.Errorf("take: %v, %v", u, err)
	}
	select {
	case <-q.notFull:
	default:
		t.Error("no signal after a unit was taken")
	}
	if !q.tryPush(second, 1) || q.bytes != 1+unitOverhead {
		t.Errorf("%d bytes are queued", q.bytes)
	}
	end := errors.New("end")
	q.close(end)
	if u, err := q.take(t.Context()); u != second || err != nil {
		t.Errorf("take: %v, %v", u, err)
	}
	for range 2 {
		if _, err := q.take(t.Context()); !errors.Is(err, end) {
			t.Errorf("take at the end: %v", err)
		}
	}
	q = newQueue(2000)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := q.take(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("take: %v", err)
	}
	q.tryPush(unit(), 1)
	q.tryPush(unit(), 1)
	if err := q.drain(); err != nil || closed != 2 {
		t.Errorf("drain: %v, %d bodies closed", err, closed)
	}
}

// A gulp ends when enough has come, when the time is over, or when the owner is
// woken; the bytes are the same in all cases.
func TestGulpConn(t *testing.T) {
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		b := make([]byte, 1000)
		for i := range 2000 {
			for j := range b {
				b[j] = byte(i + j)
			}
			if _, err := c.Write(b); err != nil {
				return
			}
		}
		_ = c.Close()
	}()
	var d net.Dialer
	conn, err := d.DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	g := &gulpConn{Conn: conn}
	head := make([]byte, 500)
	if _, err := io.ReadFull(g, head); err != nil { // before streaming
		t.Fatal(err)
	}
	calls := 0
	g.stream(func() error {
		if calls++; calls%3 == 0 {
			return errWake
		}
		return conn.SetReadDeadline(time.Now().Add(time.Minute))
	}, gather, gulpWait)
	total := 500
	b := make([]byte, 8192)
	for {
		n, err := g.Read(b)
		for _, c := range b[:n] {
			if want := byte(total/1000 + total%1000); c != want {
				t.Fatalf("byte %d: got %d, want %d", total, c, want)
			}
			total++
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil && !errors.Is(err, errWake) {
			t.Fatal(err)
		}
	}
	if total != 2_000_000 || g.total != 2_000_000-500 {
		t.Errorf("read %d bytes, counted %d", total, g.total)
	}
	// A deadline is a wake-up, not an error.
	g = &gulpConn{Conn: late{conn}}
	g.stream(func() error { return nil }, gather, gulpWait)
	if _, err := g.Read(b); !errors.Is(err, errWake) {
		t.Errorf("read past the deadline: %v", err)
	}
}

// late is a connection past its read deadline.
type late struct{ net.Conn }

func (late) Read([]byte) (int, error) { return 0, os.ErrDeadlineExceeded }

func TestGulpsBeginAndEnd(t *testing.T) {
	var g gulpConn
	g.settle(100, time.Second)
	if g.busy {
		t.Error("one small read begins gulps")
	}
	for range gulpQuick {
		g.settle(100, gulpPause/2)
	}
	if !g.busy {
		t.Error("many small reads in a row do not begin gulps")
	}
	g.settle(gulpIdle, time.Millisecond)
	if !g.busy {
		t.Error("a full gulp ends them")
	}
	g.settle(gulpIdle-1, 0)
	if g.busy {
		t.Error("a small gulp does not end them")
	}
	g.settle(gulpBusy, time.Second)
	if !g.busy {
		t.Error("a large read does not begin gulps")
	}
}
