package loopback

import (
	"fmt"
	"os"
	"syscall"
)

// hold takes a port of 127.0.0.1 until this process ends, by a socket that is bound to
// it and does not listen. Servers share an address with such a socket (they set
// SO_REUSEADDR, so as to come back at once) and listen as often as they like. Who looks
// for a free port does not share, and passes over it.
func hold(port int) error {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("hold port %d: %w", port, os.NewSyscallError("socket", err))
	}
	err = os.NewSyscallError("bind", syscall.Bind(fd, &syscall.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}))
	if err == nil { // only now: before, it would have been shared with another holder
		err = os.NewSyscallError("setsockopt", syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1))
	}
	if err != nil {
		_ = syscall.Close(fd) // the failure is told
		return fmt.Errorf("hold port %d: %w", port, err)
	}
	return nil // the descriptor stays open, on purpose
}
