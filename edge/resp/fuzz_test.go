package resp

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"testing"
	"time"
)

// FuzzCommands gives what comes from the network to a connection: every answer is one
// of the protocol, and the pieces in which a command comes make no difference.
func FuzzCommands(f *testing.F) {
	for _, seed := range []string{
		encode("GET", "public.accounts:1") + encode("MGET", "public.accounts:1", "dns.records:7,a%2C"),
		encode("SCAN", "0", "MATCH", `dns.records:7,\**`, "COUNT", "2", "TYPE", "hash"),
		encode("HELLO", "3", "SETNAME", "x") + encode("HGETALL", "public.accounts:1") + encode("COMMAND"),
		encode("HMGET", "public.accounts:1", "id", "nope") + encode("HGET", "dns.records:7,a", "data") + encode("STRLEN", "public.accounts:3"),
		encode("CLIENT", "SETINFO", "LIB-NAME", "y") + encode("CLIENT", "LIST") + encode("AUTH", "a", "b") + encode("SELECT", "bank"),
		encode("WAITINDEX", "1", "0") + encode("WAITINDEX", "99999", "1") + encode("DBSIZE") + encode("SET", "a", "b") + encode("QUIT"),
		"PING\r\nget public.accounts:1\n*2\r\n$3\r\nGET\r\n$-1\r\n", "*0\r\n*-1\r\n*1\r\n$4\r\nPI",
	} {
		f.Add([]byte(seed), byte(3))
	}
	store, _ := newStore(f)
	s, err := New(Config{Streams: bank(store), MaxRequest: 4096, MaxWait: time.Millisecond})
	if err != nil {
		f.Fatal(err)
	}
	answers := func(t *testing.T, input []byte, piece int) []byte {
		fake := &fakeConn{in: input, piece: piece}
		c := s.newConn(fake, new(gate))
		c.id, c.since = 1, time.Now()
		if !s.add(c) {
			t.Fatal("there is no room")
		}
		c.run()
		if n := s.buffered.Load(); n != 0 {
			t.Errorf("%d bytes of buffers are still counted", n)
		}
		if !fake.closed {
			t.Error("the connection is not closed")
		}
		return fake.out.Bytes()
	}
	f.Fuzz(func(t *testing.T, input []byte, piece byte) {
		whole := answers(t, input, len(input))
		p := newPeer(t, &fakeConn{in: whole, piece: len(whole)})
		for {
			if _, err := p.read(); errors.Is(err, io.EOF) && p.r.Buffered() == 0 {
				break
			} else if err != nil {
				t.Fatalf("%q is answered with %q: %v", input, whole, err)
			}
		}
		// Cursors are random, and INFO tells the time.
		upper := bytes.ToUpper(input)
		if bytes.Contains(upper, []byte("SCAN")) || bytes.Contains(upper, []byte("INFO")) {
			return
		}
		if pieces := answers(t, input, int(piece)+1); !bytes.Equal(pieces, whole) {
			t.Errorf("%q in pieces of %d is answered with\n%q, whole with\n%q", input, int(piece)+1, pieces, whole)
		}
	})
}

// fakeConn gives its input in pieces and takes what is written.
type fakeConn struct {
	in     []byte
	piece  int
	out    bytes.Buffer
	closed bool
	past   atomic.Bool // the deadline for reading
}

func (c *fakeConn) Read(b []byte) (int, error) {
	if c.past.Load() {
		return 0, os.ErrDeadlineExceeded
	}
	if len(c.in) == 0 {
		return 0, io.EOF
	}
	n := copy(b, c.in[:min(c.piece, len(c.in))])
	c.in = c.in[n:]
	return n, nil
}

func (c *fakeConn) Write(b []byte) (int, error) { return c.out.Write(b) }
func (c *fakeConn) Close() error                { c.closed = true; return nil }
func (*fakeConn) LocalAddr() net.Addr           { return &net.UnixAddr{Name: "here"} }
func (*fakeConn) RemoteAddr() net.Addr          { return &net.UnixAddr{Name: "there"} }
func (*fakeConn) SetDeadline(time.Time) error   { return nil }

func (*fakeConn) SetWriteDeadline(time.Time) error { return nil }

func (c *fakeConn) SetReadDeadline(t time.Time) error {
	c.past.Store(!t.IsZero() && t.Before(time.Now()))
	return nil
}
