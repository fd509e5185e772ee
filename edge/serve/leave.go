package serve

import (
	"context"
	"net"
	"net/http"
	"time"
)

// leaveTimeout is how long connections may stay unused when a successor answers.
const leaveTimeout = 10 * time.Second

// Leave stops accepting connections, because a successor does on the same sockets.
// Those that are open are closed with the next answer that goes over them, which says
// so: a client that is told never sees a request fail. Run, when its context ends, then
// waits for that, for 10 seconds.
func (s *Server) Leave() {
	s.leaving.Store(true)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range []net.Listener{s.tcp, s.unix, s.secure} {
		if l != nil {
			_ = l.Close() // the successor has its own
		}
	}
}

// last lets an answer say that it is the last one of its connection, when it is.
func (s *Server) last(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.leaving.Load() {
			w.Header().Set("Connection", "close")
		}
		h.ServeHTTP(w, r)
	})
}

// connState counts the connections that are open.
func (s *Server) connState(_ net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		s.open.Add(1)
	case http.StateClosed, http.StateHijacked:
		s.open.Add(-1)
	}
}

// awaitLast waits until the connections of a server that leaves are closed.
func (s *Server) awaitLast(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, leaveTimeout)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for s.open.Load() > 0 {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
