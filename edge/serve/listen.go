package serve

import (
	"context"
	"errors"
	"net"
	"strings"

	"golang.org/x/net/netutil"

	"github.com/millrace-db/millrace/internal/sockets"
)

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
	return sockets.IsLoopback(strings.TrimSuffix(strings.TrimPrefix(host, "["), "]"))
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
		l, err := sockets.TCP(ctx, s.config.Listen, true)
		if err != nil {
			return err
		}
		s.tcp = netutil.LimitListener(l, s.config.MaxConns)
	}
	if s.config.Unix != "" {
		l, err := sockets.Unix(ctx, s.config.Unix)
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
	s.endLife()
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
