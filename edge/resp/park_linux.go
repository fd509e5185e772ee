package resp

import (
	"net"
	"os"
	"syscall"
	"time"
)

// stay is how many times a connection waits in its goroutine before it goes back to its
// loop: who sends what is not for that will do so again, and each change costs some
// microseconds.
const stay = 64

// park has the connection's loop wait for it, and ends its goroutine's part in it. It
// returns false where that is not to be.
func (c *conn) park() bool {
	if c.stays > 0 {
		c.stays--
		return false
	}
	if c.secure || c.woken.Load() || c.pending || c.start < c.end {
		return false
	}
	sc, ok := c.net.(syscall.Conn)
	if !ok {
		return false
	}
	l := c.s.loops.of(c)
	c.room() // gives back what a large command took
	if l == nil || !c.detach(sc, l) {
		c.stays = stay
		return false
	}
	if l.take(c) {
		return true
	}
	c.attach()
	return false
}

// detach takes the descriptor out of what Go's runtime waits for.
func (c *conn) detach(sc syscall.Conn, l *loop) bool {
	rc, err := sc.SyscallConn()
	if err != nil {
		return false
	}
	fd := -1
	err = rc.Control(func(of uintptr) {
		if n, _, e := syscall.Syscall(syscall.SYS_FCNTL, of, syscall.F_DUPFD_CLOEXEC, 0); e == 0 {
			fd = int(n)
		}
	})
	if err != nil || fd < 0 {
		return false
	}
	if syscall.SetNonblock(fd, true) != nil {
		_ = syscall.Close(fd) // it is a copy
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = c.net.Close() // the connection goes on in the copy
	c.net, c.fd, c.loop = nil, fd, l
	return true
}

// attach makes a connection of the descriptor again, without a call that may fail.
func (c *conn) attach() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.net = &fileConn{os.NewFile(uintptr(c.fd), "connection"), c.local, c.remote}
	c.fd, c.deadline, c.away = -1, time.Time{}, false
	// What was to be done to it meanwhile.
	if c.woken.Load() {
		_ = c.net.SetReadDeadline(time.Unix(1, 0)) // as in wake
	}
	if c.cut {
		_ = c.net.Close() // as in cutOff
	}
}

// resume goes on with a connection that its loop has let go, in a goroutine.
func (c *conn) resume() {
	c.attach()
	c.stays = stay
	c.run()
}

// fileConn is a connection that was made of a descriptor.
type fileConn struct {
	*os.File
	local, remote net.Addr
}

// LocalAddr implements net.Conn.
func (f *fileConn) LocalAddr() net.Addr { return f.local }

// RemoteAddr implements net.Conn.
func (f *fileConn) RemoteAddr() net.Addr { return f.remote }
