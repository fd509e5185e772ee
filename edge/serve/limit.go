package serve

import (
	"io"
	"net"
	"sync"
)

// limitListener bounds how many connections of a listener are open at once; further ones
// wait to be accepted. Its connections pass ReadFrom on, so that what is sent out of a
// file goes into a TCP connection without being copied.
type limitListener struct {
	net.Listener
	room chan struct{}
	done chan struct{}
	once sync.Once
}

func newLimitListener(l net.Listener, most int) net.Listener {
	return &limitListener{Listener: l, room: make(chan struct{}, most), done: make(chan struct{})}
}

// Accept waits for room, and for a connection.
func (l *limitListener) Accept() (net.Conn, error) {
	select {
	case l.room <- struct{}{}:
	case <-l.done:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.room
		return nil, err
	}
	return &limitConn{Conn: c, l: l}, nil
}

// Close closes the listener; connections stay.
func (l *limitListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return l.Listener.Close()
}

type limitConn struct {
	net.Conn
	l    *limitListener
	once sync.Once
}

func (c *limitConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() { <-c.l.room })
	return err
}

// ReadFrom implements io.ReaderFrom.
func (c *limitConn) ReadFrom(r io.Reader) (int64, error) {
	if to, ok := c.Conn.(io.ReaderFrom); ok {
		return to.ReadFrom(r)
	}
	return io.Copy(struct{ io.Writer }{c.Conn}, r)
}
