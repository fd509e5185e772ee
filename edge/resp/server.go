// Package resp answers reads of an edge's stores to clients of Redis, over the
// protocol of Redis in its versions 2 and 3.
//
// It owns the commands, the form of keys and values, and what one client may take
// up. As in package serve, rows are read in one snapshot of a store and written to
// a buffer, and the network is written to only when the snapshot has been given
// back. What reads, among the commands that a client has sent at once, is answered
// from one snapshot and in one write, up to some limits.
//
// # Keys and values
//
// The key SCHEMA.TABLE:KEY stands for a row. KEY is the values of the key's
// columns, with commas between them, as in the paths of package serve: a comma or a
// percent sign within a value is written %2C and %25. All else stands for itself;
// a colon or a percent sign in the name of a table is written %3A and %25.
//
//	public.accounts:4711
//	dns.records:7,www.example.com
//
// The value of a key is the row as a JSON object, equal to Postgres's to_jsonb, and
// also a hash of its columns' texts, in which those that are NULL are absent. A
// stream is a database: they are numbered in the order of Config.Streams, and
// SELECT takes a name too. Nothing expires, and nothing is written: commands that
// write are refused with READONLY.
//
// Two commands differ. SCAN finds keys of a prefix in their order; its MATCH is a
// key, or the start of one with a star behind it. WAITINDEX index milliseconds
// returns when the stream has come to an index here, and fails with TIMEOUT when
// it has not; epoch-index in place of index names the epoch as well.
package resp

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge"
	"github.com/millrace-db/millrace/edge/access"
	"github.com/millrace-db/millrace/internal/rowjson"
)

// Reader is what is read of a stream: an *edge.Store, or the *edge.Home that leads
// to the store in use.
type Reader interface {
	View(ctx context.Context, fn func(*edge.View) error) error
	Place() edge.Place
	WaitPlace(ctx context.Context, epoch millrace.Epoch, index millrace.Index) error
}

// Stream is a stream under its name.
type Stream struct {
	Name   string
	Reader Reader
}

// Config of a Server. Streams and a listener must be set.
type Config struct {
	// Streams are those that are read: SELECT 0 is the first. The caller closes them
	// after Run has returned.
	Streams []Stream
	// Plain are listeners whose clients may read everything: of loopback addresses,
	// and unix sockets. Run closes them.
	Plain []net.Listener
	// Secure is the listener whose clients speak TLS and show a certificate, or a
	// token with AUTH; nil for none. Run closes it.
	Secure net.Listener
	// TLS is how they do.
	TLS *tls.Config
	// Access returns who may read what, of those who show a token or a certificate.
	// It is asked again and again, so that changed rights count at once. Must be set
	// where Secure is.
	Access func() *access.List
	// Version is what INFO and HELLO say.
	Version string
	// Registerer takes the server's metrics; nil drops them.
	Registerer prometheus.Registerer
	// Logger takes what clients are not told; nil drops it.
	Logger *slog.Logger
	// MaxConns is the largest number of connections of each listener; further ones are
	// told so and closed. Default 4,096.
	MaxConns int
	// MaxRequest is the largest size of a command in bytes. Default 1 MiB.
	MaxRequest int
	// MaxAnswer is the size in bytes from which on no more rows are added to an
	// answer: MGET then fails, and SCAN ends its page. Default 8 MiB.
	MaxAnswer int
	// MaxBuffered bounds the bytes of all commands and answers of more than 64 KiB
	// that are being read or written at once; beyond it they fail with BUSY. Default
	// 256 MiB.
	MaxBuffered int64
	// MaxWait is the longest time that WAITINDEX waits. Default 1 minute.
	MaxWait time.Duration
	// WriteTimeout is how long a client may take for what is written to it at once,
	// 64 KiB or a larger answer, before it is cut off; ReadTimeout how long for a
	// command that it has begun. Default 30 seconds each.
	WriteTimeout, ReadTimeout time.Duration
	// LoginTimeout is how long a client may take to show who it is. Default 10
	// seconds.
	LoginTimeout time.Duration
	// ShutdownTimeout is how long Run waits for what is being answered when it is to
	// end. Default 5 seconds.
	ShutdownTimeout time.Duration
}

func (c *Config) complete() error {
	preset := func(v *int, to int) {
		if *v == 0 {
			*v = to
		}
	}
	preset(&c.MaxConns, 4096)
	preset(&c.MaxRequest, 1<<20)
	preset(&c.MaxAnswer, 8<<20)
	if c.MaxBuffered == 0 {
		c.MaxBuffered = 256 << 20
	}
	for _, d := range []struct {
		v  *time.Duration
		to time.Duration
	}{{&c.MaxWait, time.Minute}, {&c.WriteTimeout, 30 * time.Second}, {&c.ReadTimeout, 30 * time.Second}, {&c.LoginTimeout, 10 * time.Second}, {&c.ShutdownTimeout, 5 * time.Second}} {
		if *d.v == 0 {
			*d.v = d.to
		}
		if *d.v < 0 {
			return fmt.Errorf("resp: a time-out of %v; all must be positive", *d.v)
		}
	}
	if c.MaxConns < 1 || c.MaxRequest < 1 || c.MaxAnswer < 1 || c.MaxBuffered < 1 {
		return fmt.Errorf("resp: connections %d, command %d bytes, answer %d bytes, buffered %d bytes: all must be positive",
			c.MaxConns, c.MaxRequest, c.MaxAnswer, c.MaxBuffered)
	}
	if len(c.Streams) == 0 {
		return errors.New("resp: there are no streams")
	}
	if c.Secure != nil && (c.TLS == nil || c.Access == nil) {
		return errors.New("resp: a listener for other hosts needs TLS, and a list of who may read what")
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

// Server answers clients. Its methods may be called concurrently.
type Server struct {
	config   Config
	log      *slog.Logger
	streams  []*stream
	commands map[string]*command
	metrics  *metrics
	cursors  cursors
	local    *access.Identity
	started  time.Time
	// buffered is what large commands and answers take up of Config.MaxBuffered.
	buffered atomic.Int64
	lastID   atomic.Int64

	// life is that of connections: they outlive Run's context for as long as they are
	// let finish.
	life    context.Context //nolint:containedctx // of all connections
	endLife context.CancelFunc

	mu     sync.Mutex
	conns  map[*conn]struct{}
	gates  []*gate
	ending bool
	// give hands a connection to a successor; nil while there is none.
	give  func(net.Conn, []byte) error
	work  sync.WaitGroup
	loops loops
}

// gate is a listener with the number of its connections. Each has its own, so that those
// who come over one cannot take the places of those of another.
type gate struct {
	net.Listener
	secure bool
	conns  int
}

// stream is one of the streams with the encoders of its rows.
type stream struct {
	name     string
	number   int
	reader   Reader
	encoders rowjson.Encoders
	// complained is when damage was last logged, in Unix seconds.
	complained atomic.Int64
}

// New returns a server that does not answer yet.
func New(config Config) (*Server, error) {
	if err := config.complete(); err != nil {
		return nil, err
	}
	s := &Server{
		config: config, log: config.Logger, commands: commands(), local: access.Local(),
		started: time.Now(), conns: make(map[*conn]struct{}),
	}
	for i, st := range config.Streams {
		s.streams = append(s.streams, &stream{name: st.Name, number: i, reader: st.Reader})
	}
	for _, l := range config.Plain {
		s.gates = append(s.gates, &gate{Listener: l})
	}
	if config.Secure != nil {
		s.gates = append(s.gates, &gate{Listener: config.Secure, secure: true})
	}
	s.life, s.endLife = context.WithCancel(context.Background())
	var err error
	s.metrics, err = newMetrics(config.Registerer, s.commands)
	return s, err
}

// Run answers until the context ends; it then lets what is being answered be
// finished, and returns nil.
func (s *Server) Run(ctx context.Context) error {
	defer s.endLife()
	failed := make(chan error, len(s.gates))
	for _, g := range s.gates {
		go func() { failed <- s.accept(g) }()
	}
	var err error
	ended := 0
	for going := true; going; {
		select {
		case <-ctx.Done():
			going = false
		case err = <-failed:
			ended++
			if going = s.isLeaving(); going {
				err = nil // its listener was closed
			}
		}
	}
	for _, g := range s.gates {
		_ = g.Close() // one that has failed is closed already
	}
	for ; ended < len(s.gates); ended++ {
		if e := <-failed; e != nil && !errors.Is(e, net.ErrClosed) && err == nil {
			err = e
		}
	}
	s.drain()
	s.loops.end()
	s.metrics.unregister()
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	return err
}

// Close gives up the listeners of a server whose Run is not called.
func (s *Server) Close() error {
	var errs []error
	for _, g := range s.gates {
		if err := g.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	s.endLife()
	s.loops.end()
	s.metrics.unregister()
	return errors.Join(errs...)
}

// acceptPause is how long accepting pauses when there are no descriptors.
const acceptPause = 50 * time.Millisecond

func (s *Server) accept(g *gate) error {
	for {
		nc, err := g.Accept()
		if err != nil {
			var passing interface{ Temporary() bool }
			if errors.As(err, &passing) && passing.Temporary() {
				s.log.Warn("cannot accept a connection", "address", g.Addr(), "error", err)
				select {
				case <-s.life.Done():
					return nil
				case <-time.After(acceptPause):
				}
				continue
			}
			return fmt.Errorf("accept connections at %v: %w", g.Addr(), err)
		}
		c := s.newConn(nc, g)
		if !s.add(c) {
			s.metrics.refused.Inc()
			c.turnAway()
			continue
		}
		go c.run()
	}
}

// add takes a connection in, if there is room.
func (s *Server) add(c *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ending || c.gate.conns >= s.config.MaxConns {
		return false
	}
	s.conns[c] = struct{}{}
	c.gate.conns++
	s.work.Add(1)
	if s.give != nil && !c.secure {
		c.wake() // it goes on at the successor
	}
	s.metrics.connections.Set(float64(len(s.conns)))
	return true
}

func (s *Server) remove(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	c.gate.conns--
	s.metrics.connections.Set(float64(len(s.conns)))
	s.work.Done()
}

// gateOf finds the listener that a connection without TLS came over, at a predecessor.
func (s *Server) gateOf(nc net.Conn) *gate {
	at := nc.LocalAddr()
	var found *gate
	for _, g := range s.gates {
		switch {
		case g.secure || g.Addr().Network() != at.Network():
		case g.Addr().String() == at.String():
			return g
		case found == nil:
			found = g
		}
	}
	if found == nil {
		found = &gate{} // that listener is not here any more
	}
	return found
}

// drain lets connections finish what they answer, and returns when all are closed.
func (s *Server) drain() {
	s.mu.Lock()
	s.ending = true
	for c := range s.conns {
		c.wake()
	}
	s.mu.Unlock()
	done := make(chan struct{})
	go func() {
		s.work.Wait()
		close(done)
	}()
	limit := time.NewTimer(s.config.ShutdownTimeout)
	defer limit.Stop()
	select {
	case <-done:
		return
	case <-limit.C:
	}
	s.mu.Lock()
	s.log.Warn("connections were cut off at the end", "connections", len(s.conns))
	for c := range s.conns {
		c.cutOff()
	}
	s.mu.Unlock()
	s.endLife()
	<-done
}

// reserve takes room for large commands and answers.
func (s *Server) reserve(n int64) bool {
	if s.buffered.Add(n) > s.config.MaxBuffered {
		s.buffered.Add(-n)
		return false
	}
	return true
}
