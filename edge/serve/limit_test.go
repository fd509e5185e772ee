package serve

import (
	"io"
	"net"
	"testing"
	"time"
)

// A listener takes no more connections than it may, one more when one is closed, and
// none when it is closed; what reads from a file gets to the connection below.
func TestLimitListener(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := newLimitListener(inner, 1)
	accepted := make(chan net.Conn)
	ended := make(chan error, 1)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				ended <- err
				return
			}
			accepted <- c
		}
	}()
	dial := func() {
		t.Helper()
		c, err := (&net.Dialer{Timeout: 10 * time.Second}).DialContext(t.Context(), "tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
	}
	dial()
	dial()
	first := <-accepted
	select {
	case <-accepted:
		t.Fatal("a second connection is accepted while the first is open")
	case <-time.After(50 * time.Millisecond):
	}
	if _, ok := first.(io.ReaderFrom); !ok {
		t.Error("ReadFrom is hidden")
	}
	for range 2 {
		if err := first.Close(); err != nil {
			t.Log(err) // twice, as http does
		}
	}
	second := <-accepted
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := <-ended; err == nil {
		t.Error("a closed listener accepts")
	}
	_ = second.Close()
}
