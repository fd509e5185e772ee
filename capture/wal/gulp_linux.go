package wal

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// gather waits until size bytes lie in the socket's buffer, for d at most. The
// low-water mark keeps the kernel from waking us for each segment meanwhile.
// Failures do not matter: then the next read simply finds less.
func gather(conn net.Conn, d time.Duration, size int) {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return
	}
	raw, err := tcp.SyscallConn()
	if err != nil || tcp.SetReadDeadline(time.Now().Add(d)) != nil {
		return
	}
	mark := func(n int) {
		_ = raw.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVLOWAT, n)
		})
	}
	mark(size)
	_ = raw.Read(func(fd uintptr) bool {
		n, err := unix.IoctlGetInt(int(fd), unix.SIOCINQ)
		return err != nil || n >= size
	})
	mark(1)
}
