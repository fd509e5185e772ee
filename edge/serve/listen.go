package serve

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strings"

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

// Listen takes the addresses and the socket, so that Run cannot fail for them any
// more. Errors name what is in the way. Further calls do nothing.
func (s *Server) Listen(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.listening {
		return nil
	}
	c := &s.config
	if c.Listen == "" && c.Unix == "" && c.Secure == "" {
		return errors.New("serve: neither a TCP address nor a unix socket is given")
	}
	for _, at := range []struct {
		address string
		listen  func() (net.Listener, error)
		to      *net.Listener
	}{
		{c.Listen, func() (net.Listener, error) { return c.Sockets.TCP(ctx, "edge.http.listen", c.Listen, true) }, &s.tcp},
		{c.Unix, func() (net.Listener, error) { return c.Sockets.Unix(ctx, "edge.http.unix", c.Unix) }, &s.unix},
		{c.Secure, func() (net.Listener, error) { return c.Sockets.TCP(ctx, "edge.tls.http", c.Secure, false) }, &s.secure},
	} {
		if at.address == "" {
			continue
		}
		l, err := at.listen()
		if err != nil {
			return errors.Join(err, s.closeListeners())
		}
		*at.to = newLimitListener(l, c.MaxConns)
	}
	if s.secure != nil {
		s.secure = tls.NewListener(s.secure, c.TLS)
	}
	s.listening = true
	return nil
}

// closeListeners gives up what is listened on.
func (s *Server) closeListeners() error {
	var errs []error
	for _, l := range []*net.Listener{&s.tcp, &s.unix, &s.secure} {
		if *l != nil {
			if err := (*l).Close(); !errors.Is(err, net.ErrClosed) {
				errs = append(errs, err)
			}
			*l = nil
		}
	}
	return errors.Join(errs...)
}

// Close gives up the listeners of a server whose Run is not called.
func (s *Server) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.endLife()
	s.metrics.unregister()
	return s.closeListeners()
}

// Addr returns the TCP address that is listened on, empty if there is none yet.
func (s *Server) Addr() string { return s.addr(&s.tcp) }

// SecureAddr is Addr of the listener for other hosts.
func (s *Server) SecureAddr() string { return s.addr(&s.secure) }

func (s *Server) addr(l *net.Listener) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if *l == nil {
		return ""
	}
	return (*l).Addr().String()
}
