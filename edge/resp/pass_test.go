package resp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/millrace-db/millrace/edge/access"
)

// TestConnectionsGoOnAtTheSuccessor gives connections of every kind to another server,
// while clients ask over them without a pause: no command fails, or is answered twice.
func TestConnectionsGoOnAtTheSuccessor(t *testing.T) {
	store, src := newStore(t)
	token, shown := access.NewToken()
	list, err := access.Parse([]byte("billing " + shown + " read:bank/public.accounts"))
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	config := Config{Streams: []Stream{{"bank", store}, {"dns", store}}, Access: func() *access.List { return list }}
	old := config
	old.Plain = []net.Listener{l}
	first, err := New(old)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- first.Run(ctx) }()
	second, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	later, end := context.WithCancel(context.Background())
	secondDone := make(chan error, 1)
	go func() { secondDone <- second.Run(later) }()

	dial := func() *peer {
		t.Helper()
		c, err := new(net.Dialer).DialContext(t.Context(), "tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return newPeer(t, c)
	}
	idle, half, waits, knows, long := dial(), dial(), dial(), dial(), dial()
	idle.wants("OK", "SELECT", "dns")
	idle.wants("OK", "CLIENT", "SETNAME", "me")
	if got := idle.ask("HELLO", "3"); !strings.HasPrefix(got, "{server") {
		t.Fatal(got)
	}
	knows.wants("OK", "AUTH", token)
	half.wants("PONG", "PING")
	if _, err := io.WriteString(half, "*2\r\n$4\r\nECHO\r\n$5\r\nhe"); err != nil {
		t.Fatal(err)
	}
	// More than goes in one message.
	if _, err := fmt.Fprintf(long, "*2\r\n$4\r\nECHO\r\n$200000\r\n%s", strings.Repeat("x", 150_000)); err != nil {
		t.Fatal(err)
	}
	waits.send("WAITINDEX", "1-"+strconv.Itoa(int(src.index)+1), "60000")
	waits.send("PING", "behind")

	var busy sync.WaitGroup
	stop := make(chan struct{})
	asked := make([]atomic.Int64, 8)
	for i := range asked {
		p := dial()
		busy.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				// Some at once, some alone.
				size := n%3*4 + 1
				var all strings.Builder
				for k := range size {
					all.WriteString(encode("ECHO", fmt.Sprint(i, n, k)) + encode("GET", "public.accounts:7"))
				}
				if _, err := io.WriteString(p, all.String()); err != nil {
					t.Errorf("client %d: %v", i, err)
					return
				}
				for k := range size {
					echo, err := p.read()
					row, err2 := p.read()
					if err := errors.Join(err, err2); err != nil || echo != fmt.Sprint(i, n, k) || !strings.HasPrefix(row, `{"id":7,`) {
						t.Errorf("client %d: %q, %q, %v", i, echo, row, err)
						return
					}
				}
				asked[i].Add(1)
			}
		})
	}
	until(t, "all connections are taken in", func() bool {
		first.mu.Lock()
		defer first.mu.Unlock()
		return len(first.conns) == len(asked)+5
	})
	first.Leave(func(c net.Conn, state []byte) error {
		rc, err := c.(syscall.Conn).SyscallConn()
		if err != nil {
			return err
		}
		var copied net.Conn
		if e := rc.Control(func(fd uintptr) {
			var own int
			if own, err = syscall.Dup(int(fd)); err != nil {
				return
			}
			f := os.NewFile(uintptr(own), "copy")
			defer func() { _ = f.Close() }()
			copied, err = net.FileConn(f)
		}); e != nil || err != nil {
			return errors.Join(e, err)
		}
		return second.Adopt(copied, state)
	})
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if idle.ask("CLIENT", "GETNAME") != "me" {
		t.Error("a connection has lost its name")
	}
	if got := idle.ask("CLIENT", "INFO"); !strings.Contains(got, "db=1 resp=3") {
		t.Errorf("a connection goes on as %s", got)
	}
	if _, err := io.WriteString(half, "llo\r\n"); err != nil {
		t.Fatal(err)
	}
	if got := half.answer(); got != "hello" {
		t.Errorf("a command in two halves gives %s", got)
	}
	if _, err := io.WriteString(long, strings.Repeat("x", 50_000)+"\r\n"); err != nil {
		t.Fatal(err)
	}
	if got := long.answer(); len(got) != 200_000 {
		t.Errorf("a long command in two halves gives %d bytes", len(got))
	}
	knows.wants("-NOPERM billing", "GET", "dns.records:7,a")
	src.unit(put(t, accountsSchema(), "26", "new", "NULL", "t"))
	if got := waits.answer() + waits.answer(); got != strconv.Itoa(int(src.index))+"behind" {
		t.Errorf("a client that waited is told %s", got)
	}
	for i := range asked {
		before := asked[i].Load()
		until(t, fmt.Sprintf("client %d has asked more of the successor", i), func() bool { return t.Failed() || asked[i].Load() > before+1 })
	}
	close(stop)
	busy.Wait()
	end()
	if err := <-secondDone; err != nil {
		t.Error(err)
	}
	for _, s := range []*Server{first, second} {
		if n := s.buffered.Load(); n != 0 {
			t.Errorf("%d bytes of buffers are still counted", n)
		}
	}
}
