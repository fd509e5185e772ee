package serve

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/net/netutil"
)

// checkLoopback refuses addresses that other hosts can reach.
func checkLoopback(address string) error {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("listen on %q: %w; mend: give host and port, as in 127.0.0.1:7480", address, err)
	}
	if !isLoopback(host) {
		return fmt.Errorf("listen on %s: only loopback addresses are served, because there is no encryption and there are no access tokens yet; "+
			"mend: use 127.0.0.1, [::1] or localhost, or the unix socket", address)
	}
	return nil
}

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	address, err := netip.ParseAddr(host)
	return err == nil && address.IsLoopback()
}

// isLoopbackHost holds the Host header of a request over TCP against the names
// of this host. A page from elsewhere whose name was made to lead here would
// otherwise make a browser read for it. Browsers always send the header; what
// does not is no browser.
func isLoopbackHost(host string) bool {
	if host == "" {
		return true
	}
	if rest, ok := strings.CutPrefix(host, "127.0.0.1"); ok && (rest == "" || rest[0] == ':') {
		return true
	}
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	return isLoopback(strings.TrimSuffix(strings.TrimPrefix(host, "["), "]"))
}

// Listen takes the address and the socket, so that Run cannot fail for them any
// more. Errors name what is in the way. Further calls do nothing.
func (s *Server) Listen(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.listening {
		return nil
	}
	if s.config.Listen == "" && s.config.Unix == "" {
		return errors.New("serve: neither a TCP address nor a unix socket is given")
	}
	if s.config.Listen != "" {
		l, err := listenTCP(ctx, s.config.Listen)
		if err != nil {
			return err
		}
		s.tcp = netutil.LimitListener(l, s.config.MaxConns)
	}
	if s.config.Unix != "" {
		l, err := listenUnix(ctx, s.config.Unix)
		if err != nil {
			if s.tcp != nil {
				err = errors.Join(err, s.tcp.Close())
				s.tcp = nil
			}
			return err
		}
		s.unix = netutil.LimitListener(l, s.config.MaxConns)
	}
	s.listening = true
	return nil
}

// Close gives up the listeners of a server whose Run is not called.
func (s *Server) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, l := range []net.Listener{s.tcp, s.unix} {
		if l != nil {
			if err := l.Close(); !errors.Is(err, net.ErrClosed) {
				errs = append(errs, err)
			}
		}
	}
	s.metrics.unregister()
	return errors.Join(errs...)
}

// Addr returns the TCP address that is listened on, empty if there is none yet.
func (s *Server) Addr() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tcp == nil {
		return ""
	}
	return s.tcp.Addr().String()
}

func listenTCP(ctx context.Context, address string) (net.Listener, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("listen on %s: the port is taken; mend: stop the process that has it, or configure another port", address)
	case err != nil:
		return nil, fmt.Errorf("listen on %s: %w", address, err)
	}
	// localhost is what the host's own files say it is.
	if a, ok := l.Addr().(*net.TCPAddr); !ok || !a.IP.IsLoopback() {
		return nil, errors.Join(fmt.Errorf("listen on %s: it leads to %v, which is not a loopback address; mend: use 127.0.0.1", address, l.Addr()), l.Close())
	}
	return l, nil
}

// maxSocketPath is what the kernel takes, without the ending zero.
const maxSocketPath = len(syscall.RawSockaddrUnix{}.Path) - 1

const socketProbe = time.Second

// listenUnix makes the socket. One that is left over from a process that died
// is taken away, one that somebody answers on is not.
func listenUnix(ctx context.Context, path string) (net.Listener, error) {
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
