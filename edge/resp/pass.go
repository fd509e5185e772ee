package resp

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"

	"github.com/millrace-db/millrace/edge/access"
)

// passed is what a successor is told of a connection.
type passed struct {
	Stream  string    `json:"stream"`
	Proto   int       `json:"proto"`
	Name    string    `json:"name,omitempty"`
	Library [2]string `json:"library"`
	// Token is the hash of the one that was shown.
	Token []byte `json:"token,omitempty"`
	// Unread is what has come and was not answered.
	Unread []byte `json:"unread,omitempty"`
}

// Leave gives the connections to a successor, which accepts on the same sockets: each
// when what it has sent was answered. give is called by several goroutines; it does not
// close the connection. Connections over TLS cannot be given, and are closed when Run's
// context ends.
func (s *Server) Leave(give func(c net.Conn, state []byte) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.give = give
	for _, l := range s.config.Plain {
		_ = l.Close() // the successor has its own
	}
	if s.config.Secure != nil {
		_ = s.config.Secure.Close() // as above
	}
	for c := range s.conns {
		if !c.secure {
			c.wake()
		}
	}
}

func (s *Server) isLeaving() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.give != nil
}

// canPass reports whether the connection can go on at a successor.
func (c *conn) canPass() bool { return !c.secure && c.s.isLeaving() }

// pass gives the connection to the successor, if there is one and the connection has
// not ended.
func (c *conn) pass() {
	if !c.canPass() || !c.woken.Load() || c.closing || c.gone {
		return
	}
	p := &passed{
		Stream: c.stream.name, Proto: c.out.proto, Name: c.name, Library: c.library, Unread: append(c.again, c.in[c.start:c.end]...),
	}
	if c.list != nil {
		p.Token = c.shown.Hash()
	}
	state, err := json.Marshal(p)
	if err == nil {
		c.s.mu.Lock()
		give := c.s.give
		c.s.mu.Unlock()
		err = give(c.net, state)
	}
	if err != nil {
		c.s.log.Warn("a client cannot go on at the successor, and is cut off", "client", c.remote, "error", err)
	}
}

// Adopt goes on with a connection that a predecessor gave. It is the server's from here
// on, also where an error is returned.
func (s *Server) Adopt(nc net.Conn, state []byte) error {
	p := new(passed)
	if err := json.Unmarshal(state, p); err != nil {
		return errors.Join(fmt.Errorf("take over the connection of %v: %w", nc.RemoteAddr(), err), nc.Close())
	}
	c := s.newConn(nc, s.gateOf(nc))
	for _, st := range s.streams {
		if st.name == p.Stream {
			c.stream = st
		}
	}
	if c.stream.name != p.Stream {
		return errors.Join(fmt.Errorf("take over the connection of %v: it has selected stream %s, which is not here any more", nc.RemoteAddr(), p.Stream), nc.Close())
	}
	if p.Token != nil && (s.config.Access == nil || !c.login(access.OfHash(p.Token))) {
		return errors.Join(fmt.Errorf("take over the connection of %v: the token that it has shown is nobody's any more", nc.RemoteAddr()), nc.Close())
	}
	c.out.proto, c.name, c.library = p.Proto, p.Name, p.Library
	if more := int64(len(p.Unread)) - freeBuffer; more > 0 {
		c.reservedIn = more
		s.buffered.Add(more)
	}
	if len(p.Unread) > len(c.in) {
		c.in = make([]byte, len(p.Unread))
	}
	c.end = copy(c.in, p.Unread)
	if !s.add(c) {
		c.releaseIn()
		c.turnAway()
		return nil
	}
	go c.run()
	return nil
}
