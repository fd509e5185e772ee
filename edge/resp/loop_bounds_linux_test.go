package resp

import (
	"context"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/millrace-db/millrace/edge"
)

// What a loop gathers for a client, before anything is written to it, has a bound, however
// long the answers to short commands are.
func TestLoopGathersWithABound(t *testing.T) {
	store, _ := newStore(t)
	s, err := New(Config{Streams: bank(store)})
	if err != nil {
		t.Fatal(err)
	}
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Close(fds[0]); _ = syscall.Close(fds[1]) }()
	c := s.newConn(new(fakeConn), new(gate))
	c.fd, c.parked = fds[0], true
	if _, err := syscall.Write(fds[1], []byte(strings.Repeat("COMMAND\n", inSize/8))); err != nil {
		t.Fatal(err)
	}
	c.receive()
	if n := len(c.out.b); n > flushAt+4096 {
		t.Errorf("%d bytes of answers are gathered for %d bytes of commands", n, inSize)
	}
	if !c.away {
		t.Error("the rest is not for a goroutine to answer")
	}
}

// running is a server whose Run is going, to be ended by the test.
func running(t *testing.T, config Config) (s *Server, dial func() net.Conn, end func(), ended <-chan error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	config.Plain = []net.Listener{l}
	if s, err = New(config); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	return s, func() net.Conn {
		c, err := new(net.Dialer).DialContext(t.Context(), "tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}, cancel, done
}

// untilAll waits until something holds for all connections of a server.
func untilAll(t *testing.T, s *Server, what string, holds func(*conn) bool) {
	t.Helper()
	until(t, what, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		for c := range s.conns {
			if !holds(c) {
				return false
			}
		}
		return true
	})
}

// endsWithin fails the test where a server does not end in a time.
func endsWithin(t *testing.T, limit time.Duration, ended <-chan error) {
	t.Helper()
	began := time.Now()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > limit {
		t.Errorf("the server has ended after %v, want %v at most", took, limit)
	}
}

// A client whose loop was answering when the server was to end does not wait for a place
// any more when it goes on in a goroutine.
func TestEndWhileALoopAnswers(t *testing.T) {
	store, _ := newStore(t)
	reader := &heldReader{Store: store, held: make(chan struct{}), leave: make(chan struct{})}
	s, dial, end, ended := running(t, Config{Streams: []Stream{{"bank", reader}}, ShutdownTimeout: 40 * time.Second})
	p := newPeer(t, dial())
	p.wants("PONG", "PING")
	if _, err := io.WriteString(p, encode("EXISTS", "public.accounts:1")+encode("WAITINDEX", "1000", "60000")); err != nil {
		t.Fatal(err)
	}
	<-reader.held
	end()
	untilAll(t, s, "the connection is to end", func(c *conn) bool { return c.woken.Load() })
	close(reader.leave)
	if got := p.answer(); got != "1" {
		t.Errorf("EXISTS is answered with %s", got)
	}
	if got := p.answer(); !strings.HasPrefix(got, "-CLOSED") {
		t.Errorf("WAITINDEX is answered with %s", got)
	}
	endsWithin(t, 20*time.Second, ended)
}

// A client that was to be cut off while its loop answered is cut off when it goes on in a
// goroutine, and not waited for until it takes its answer.
func TestCutOffWhileALoopAnswers(t *testing.T) {
	store, src := newStore(t)
	src.unit(put(t, accountsSchema(), "100", strings.Repeat("x", 16<<20), "NULL", "t"))
	reader := &heldReader{Store: store, held: make(chan struct{}), leave: make(chan struct{})}
	s, dial, end, ended := running(t, Config{Streams: []Stream{{"bank", reader}}, ShutdownTimeout: 100 * time.Millisecond, WriteTimeout: 40 * time.Second})
	nc := dial()
	_ = nc.(*net.TCPConn).SetReadBuffer(4096)
	p := newPeer(t, nc)
	p.wants("PONG", "PING")
	p.send("GET", "public.accounts:100")
	<-reader.held
	end()
	untilAll(t, s, "the connection is cut off", func(c *conn) bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.cut
	})
	close(reader.leave)
	endsWithin(t, 20*time.Second, ended)
}

// waitingReader gives snapshots once it is let.
type waitingReader struct {
	*edge.Store
	asked, let chan struct{}
}

func (r waitingReader) View(ctx context.Context, fn func(*edge.View) error) error {
	select {
	case r.asked <- struct{}{}:
	default:
	}
	select {
	case <-r.let:
	case <-ctx.Done():
		return fmt.Errorf("wait for a view: %w", ctx.Err())
	}
	return r.Store.View(ctx, fn)
}

// Where a stream gives no snapshot, as while another process takes it over, those who read
// another one do not wait for it.
func TestLoopDoesNotWaitForAStream(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2)) // one loop
	store, _ := newStore(t)
	reader := waitingReader{store, make(chan struct{}, 1), make(chan struct{})}
	dial, _ := start(t, Config{Streams: []Stream{{"bank", reader}, {"dns", store}}})
	var stuck []*peer
	for range 3 {
		p := newPeer(t, dial())
		p.wants("PONG", "PING")
		stuck = append(stuck, p)
	}
	q := newPeer(t, dial())
	q.wants("OK", "SELECT", "dns")
	for _, p := range stuck {
		_, _ = io.WriteString(p, encode("PING")+encode("EXISTS", "public.accounts:1")+encode("PING", "behind"))
	}
	<-reader.asked
	_ = q.SetDeadline(time.Now().Add(20 * time.Second))
	q.wants("1", "EXISTS", "public.accounts:1")
	close(reader.let)
	for _, p := range stuck {
		for _, want := range []string{"PONG", "1", "behind"} {
			if got := p.answer(); got != want {
				t.Errorf("%s is answered, want %s", got, want)
			}
		}
	}
}

// A large row is left to a goroutine before it is read, and not afterwards: whoever asks
// for nothing but such rows would have each of them read twice.
func TestLoopLeavesALargeRowUnread(t *testing.T) {
	store, src := newStore(t)
	src.unit(put(t, accountsSchema(), "100", strings.Repeat("x", freeBuffer), "NULL", "t"),
		put(t, accountsSchema(), "101", strings.Repeat("x", freeBuffer/2), "NULL", "t"))
	s, err := New(Config{Streams: bank(store)})
	if err != nil {
		t.Fatal(err)
	}
	for _, ask := range []string{"GET public.accounts:%d", "HGET public.accounts:%d owner", "STRLEN public.accounts:%d", "MGET public.accounts:%d"} {
		for key, large := range map[int]bool{100: true, 101: false} {
			ask := fmt.Sprintf(ask, key)
			c := s.newConn(new(fakeConn), new(gate))
			c.parked = true
			c.end = copy(c.in, ask+"\n")
			if !c.command() {
				t.Fatalf("%s is no command", ask)
			}
			c.execute()
			if read := c.reads.row.Columns != nil; c.pending != large || read == large {
				t.Errorf("%s: for a goroutine: %v, read: %v; answered is %.100q", ask, c.pending, read, c.out.b)
			}
		}
	}
}
