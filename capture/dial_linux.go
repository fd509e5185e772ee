package capture

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// boundUnanswered bounds how long what was sent may stay without the peer's
// acknowledgement. The kernel's keepalives find a dead peer only while nothing is
// on its way; with a query on its way it would go on for a quarter of an hour.
func boundUnanswered(_, _ string, raw syscall.RawConn) error {
	// A kernel without the option is no reason not to connect.
	return raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(Unanswered.Milliseconds()))
	})
}
