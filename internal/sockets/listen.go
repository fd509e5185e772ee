// Package sockets makes the sockets that an edge listens on, or takes over those that
// its predecessor or the system's service manager has made.
package sockets

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"
)

// CheckLoopback refuses addresses that other hosts can reach.
func CheckLoopback(address string) error {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("listen on %q: %w; mend: give host and port, as in 127.0.0.1:7480", address, err)
	}
	if !IsLoopback(host) {
		return fmt.Errorf("listen on %s: only loopback addresses are served without encryption; "+
			"mend: use 127.0.0.1, [::1] or localhost, or a unix socket; edge.tls is for other hosts", address)
	}
	return nil
}

// IsLoopback reports whether a host is this one, by its name or address.
func IsLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	address, err := netip.ParseAddr(host)
	return err == nil && address.IsLoopback()
}

// TCP listens on an address. Where loopback is set, no other is taken, whatever the
// host's own files make of a name.
func TCP(ctx context.Context, address string, loopback bool) (net.Listener, error) {
	if loopback {
		if err := CheckLoopback(address); err != nil {
			return nil, err
		}
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("listen on %s: the port is taken; mend: stop the process that has it, or configure another port", address)
	case err != nil:
		return nil, fmt.Errorf("listen on %s: %w", address, err)
	}
	if a, ok := l.Addr().(*net.TCPAddr); loopback && (!ok || !a.IP.IsLoopback()) {
		return nil, errors.Join(fmt.Errorf("listen on %s: it leads to %v, which is not a loopback address; mend: use 127.0.0.1", address, l.Addr()), l.Close())
	}
	return l, nil
}

// maxSocketPath is what the kernel takes, without the ending zero.
const maxSocketPath = len(syscall.RawSockaddrUnix{}.Path) - 1

const socketProbe = time.Second

// Unix makes a socket that its owner and group may use. One that is left over from a process that died
// is taken away, one that somebody answers on is not.
func Unix(ctx context.Context, path string) (net.Listener, error) {
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("listen on unix socket %s: the path has %d bytes, the system takes %d; mend: use a shorter path", path, len(path), maxSocketPath)
	}
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("listen on unix socket %s: %w", path, err)
	case info.Mode().Type() != fs.ModeSocket:
		return nil, fmt.Errorf("listen on unix socket %s: there is a file that is no socket; mend: move it away, or configure another path", path)
	default:
		if err := removeStale(ctx, path); err != nil {
			return nil, err
		}
	}
	l, err := new(net.ListenConfig).Listen(ctx, "unix", path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("listen on unix socket %s: its directory does not exist; mend: make it, or configure another path", path)
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, inUse(path)
	case err != nil:
		return nil, fmt.Errorf("listen on unix socket %s: %w", path, err)
	}
	// Owner and group; who else may come in is up to the directory's rights.
	if err := os.Chmod(path, 0o660); err != nil {
		return nil, errors.Join(fmt.Errorf("set mode of unix socket %s: %w", path, err), l.Close())
	}
	return l, nil
}

func removeStale(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, socketProbe)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	switch {
	case err == nil:
		_ = conn.Close() // nothing was sent
		return inUse(path)
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case !errors.Is(err, syscall.ECONNREFUSED):
		// A full queue or missing rights: somebody may well be there.
		return fmt.Errorf("listen on unix socket %s: there is one, and it cannot be told whether it is in use: %w; mend: stop the process that has it, or remove it", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("listen on unix socket %s: remove the one that a dead process left: %w", path, err)
	}
	return nil
}

func inUse(path string) error {
	return fmt.Errorf("listen on unix socket %s: it is in use by another process; mend: stop that one, or configure another path", path)
}
