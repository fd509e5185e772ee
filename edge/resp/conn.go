package resp

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/millrace-db/millrace/edge"
	"github.com/millrace-db/millrace/edge/access"
)

const (
	// inSize is what a connection that waits holds for commands.
	inSize = 4 << 10
	// freeBuffer is how large commands and answers may be without being counted.
	freeBuffer = 64 << 10
	// flushAt is how much is gathered before it is written.
	flushAt = 64 << 10
	// viewCommands is how many commands are answered from one snapshot at most.
	viewCommands = 1000
	// loginArgs and loginBytes bound a command before it is known who sends it.
	loginArgs, loginBytes = 10, 16 << 10
)

// conn is one connection. But for wake, one goroutine uses it: its own, or while it waits
// for a command that of its loop.
type conn struct {
	s *Server
	// net is nil while it is fd that is used, by the loop.
	net           net.Conn
	fd            int
	loop          *loop
	local, remote net.Addr
	// parked tells that it is the loop's, answered that the loop answers it: of the
	// loop's lock. away tells that it has to go on in a goroutine, and stays how many
	// times it then waits there.
	parked, answered, away bool
	stays                  int

	gate   *gate
	secure bool
	id     int64
	since  time.Time

	// in[start:end] is what has come and was not answered. reservedIn is how much of
	// it, reservedOut how much of out, is counted.
	in          []byte
	start, end  int
	reservedIn  int64
	reservedOut int64
	parser      parser
	args        [][]byte
	// pending tells that args holds a command that was not run.
	pending bool
	out     reply
	// mark is where the answer begins that is being written to out.
	mark int
	// counted tells that the command which is run next was counted.
	counted bool

	stream  *stream
	who     *access.Identity
	shown   access.Credential
	list    *access.List // with which who was found out
	name    string
	library [2]string // name and version, as the client says
	closing bool

	reads readState
	// answer is readBatch, bound once.
	answer func(*edge.View) error
	ctx    context.Context //nolint:containedctx // that of the server's connections

	// passing tells that the connection goes on at a successor, with again as the
	// command to begin with.
	passing bool
	// gone tells that the client has closed the connection.
	gone  bool
	again []byte

	// deadline is when the one for writing ends that was set last.
	deadline time.Time

	// mu guards net, its deadline for reading against wake, and cut: that it was to be closed.
	mu  sync.Mutex
	cut bool
	// woken tells that the connection is to end.
	woken atomic.Bool
}

func (s *Server) newConn(nc net.Conn, g *gate) *conn {
	c := &conn{
		s: s, net: nc, fd: -1, local: nc.LocalAddr(), remote: nc.RemoteAddr(), gate: g, secure: g.secure, id: s.lastID.Add(1), since: time.Now(),
		in: make([]byte, inSize), out: reply{proto: 2}, stream: s.streams[0], ctx: s.life,
	}
	c.parser.reset()
	c.limit(c.secure)
	c.answer = c.readBatch
	if !c.secure {
		c.who = s.local
	}
	return c
}

// limit bounds commands, tighter for who has not shown who it is.
func (c *conn) limit(stranger bool) {
	c.parser.limits = limits{args: maxKeys + 16, bytes: c.s.config.MaxRequest}
	if stranger {
		c.parser.limits = limits{args: loginArgs, bytes: min(loginBytes, c.s.config.MaxRequest)}
	}
}

const turnAwayTimeout = 100 * time.Millisecond

// turnAway tells a client that there is no room.
func (c *conn) turnAway() {
	if !c.secure { // what is not encrypted would say nothing to it
		_ = c.net.SetWriteDeadline(time.Now().Add(turnAwayTimeout))
		_, _ = c.net.Write([]byte("-ERR max number of clients reached; connect again later\r\n"))
	}
	_ = c.net.Close() // it was told
}

// wake makes a connection that waits for a command end.
func (c *conn) wake() {
	c.mu.Lock()
	c.woken.Store(true)
	if c.net != nil {
		_ = c.net.SetReadDeadline(time.Unix(1, 0)) // a connection that is gone ends by itself
	}
	l := c.loop
	c.mu.Unlock()
	if l != nil {
		l.expel(c)
	}
}

// readBy sets until when a client may take; zero for any time.
func (c *conn) readBy(limit time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.woken.Load() || c.net == nil {
		return
	}
	var at time.Time
	if limit > 0 {
		at = time.Now().Add(limit)
	}
	_ = c.net.SetReadDeadline(at) // as in wake
}

// run answers until the client or the server ends it, or a loop goes on with it.
func (c *conn) run() {
	if !c.serve() {
		c.finish()
	}
}

// finish ends the connection.
func (c *conn) finish() {
	c.releaseIn()
	c.releaseOut()
	if c.net != nil {
		_ = c.net.Close() // what was to be said was written
	} else {
		_ = syscall.Close(c.fd) // as above
	}
	c.s.remove(c)
}

// serve answers, and reports whether a loop goes on with the connection.
func (c *conn) serve() bool {
	if c.secure && !c.handshake() {
		return false
	}
	for {
		for !c.closing && !c.passing && c.command() {
			c.execute()
			if len(c.out.b) >= flushAt && !c.flush() {
				return false
			}
		}
		if !c.flush() || c.closing {
			return false
		}
		if c.passing {
			break
		}
		if c.park() {
			return true
		}
		if !c.fill() {
			break
		}
	}
	c.pass()
	return false
}

// handshake finds out who a client is that shows a certificate. One that shows none
// has to send AUTH.
func (c *conn) handshake() bool {
	c.readBy(c.s.config.LoginTimeout)
	secure := tls.Server(c.net, c.s.config.TLS)
	ctx, cancel := context.WithTimeout(c.ctx, c.s.config.LoginTimeout)
	defer cancel()
	if err := secure.HandshakeContext(ctx); err != nil {
		c.s.log.Debug("TLS handshake failed", "client", c.remote, "error", err)
		return false
	}
	c.mu.Lock()
	c.net = secure
	c.mu.Unlock()
	if certs := secure.ConnectionState().PeerCertificates; len(certs) > 0 {
		c.login(access.OfCertificate(certs[0]))
	}
	return true
}

// login takes what a client shows, and reports whether it is anybody's.
func (c *conn) login(shown access.Credential) bool {
	list := c.s.config.Access()
	who := list.Find(shown)
	if who == nil {
		return false
	}
	c.who, c.shown, c.list = who, shown, list
	c.limit(false)
	c.readBy(0)
	return true
}

// command reads the next command into args, and reports whether there is one.
func (c *conn) command() bool {
	if c.pending {
		c.pending = false
		return true
	}
	for c.start < c.end {
		b := c.in[c.start:c.end]
		done, err := c.parser.next(b)
		if err != nil {
			c.out.fail("ERR " + err.Error())
			c.closing = true
			return false
		}
		if !done {
			return false
		}
		c.args = c.args[:0]
		for _, at := range c.parser.spans {
			c.args = append(c.args, b[at.start:at.end:at.end])
		}
		c.start += c.parser.at
		c.parser.reset()
		if len(c.args) > 0 {
			return true
		}
	}
	return false
}

// fill waits for more of what the client sends.
func (c *conn) fill() bool {
	if c.woken.Load() {
		return false
	}
	if !c.room() {
		c.flush()
		return false
	}
	begun := c.end > c.start
	switch {
	case c.secure && c.who == nil:
		// From the connection's begin.
	case begun:
		c.readBy(c.s.config.ReadTimeout)
	}
	n, err := c.net.Read(c.in[c.end:])
	c.end += n
	if begun && c.who != nil {
		c.readBy(0)
	}
	if n > 0 {
		return true // an error comes again
	}
	c.gone = !errors.Is(err, os.ErrDeadlineExceeded)
	if !c.gone && !c.woken.Load() {
		c.s.metrics.cutOff.Inc()
		c.s.log.Info("a client took too long for a command, and was cut off", "client", c.remote)
	}
	return false
}

// deadlineStep keeps the deadline for writing from being set at each write.
const deadlineStep = time.Second

// flush writes what was answered. A client that does not take it is cut off.
func (c *conn) flush() bool {
	if len(c.out.b) == 0 {
		return true
	}
	if now := time.Now(); c.deadline.Sub(now) < c.s.config.WriteTimeout {
		c.deadline = now.Add(c.s.config.WriteTimeout + deadlineStep)
		_ = c.net.SetWriteDeadline(c.deadline) // a connection that is gone fails below
	}
	_, err := c.net.Write(c.out.b)
	c.written()
	if errors.Is(err, os.ErrDeadlineExceeded) {
		c.s.metrics.cutOff.Inc()
		c.s.log.Info("a client did not take its answers, and was cut off", "client", c.remote)
	}
	return err == nil
}

// written forgets the answers.
func (c *conn) written() {
	c.out.b = c.out.b[:0]
	if cap(c.out.b) > freeBuffer {
		c.out.b = nil
		c.releaseOut()
	}
}

// execute runs the command in args.
func (c *conn) execute() {
	cmd := c.find()
	if cmd == nil {
		return
	}
	if cmd.read == nil {
		c.begin(cmd)
		cmd.run(c)
		return
	}
	c.reads.first = cmd
	c.reads.done = 0
	err := c.stream.reader.View(c.ctx, c.answer)
	if err != nil {
		c.failBatch(err)
	}
}

// failBatch answers with why there is no snapshot, or an end to it.
func (c *conn) failBatch(err error) {
	if c.reads.done == 0 {
		c.begin(c.reads.first)
	}
	c.failRead(err)
}

func (c *conn) begin(cmd *command) {
	if !c.counted {
		cmd.count.Inc()
	}
	c.counted = false
	c.mark = len(c.out.b)
}

// readBatch answers the command in args and those that follow it, as long as they
// read the same stream.
func (c *conn) readBatch(v *edge.View) error {
	cmd := c.reads.first
	c.reads.begin()
	for n := 1; ; n++ {
		c.begin(cmd)
		c.reads.done = n
		if err := cmd.read(c, v); errors.Is(err, errAway) {
			c.out.b = c.out.b[:c.mark]
			c.pending, c.counted = true, true
			break
		} else if err != nil {
			c.failRead(err)
		}
		if len(c.out.b) >= flushAt || n >= viewCommands || !c.command() {
			break
		}
		if cmd = c.look(); cmd == nil || cmd.read == nil || c.parked && cmd.takesTime(c.args) {
			c.pending = true
			break
		}
	}
	c.reads.end()
	return nil
}

// fail answers with an error, in place of what the command has written.
func (c *conn) fail(text string) {
	c.out.b = c.out.b[:c.mark]
	c.out.fail(text)
	c.s.metrics.errors.Inc()
}

// rights looks again at who the client is, where the list has changed.
func (c *conn) rights() bool {
	if c.list == nil {
		return c.who != nil
	}
	if list := c.s.config.Access(); list != c.list {
		c.list, c.who = list, list.Find(c.shown)
	}
	return c.who != nil
}

// look finds the command in args, or returns nil where it is not to be run.
func (c *conn) look() *command {
	var space [24]byte
	name := c.args[0]
	if len(name) > len(space) {
		return nil
	}
	upper := space[:len(name)]
	for i, b := range name {
		if b >= 'a' && b <= 'z' {
			b -= 'a' - 'A'
		}
		upper[i] = b
	}
	cmd := c.s.commands[string(upper)]
	if cmd == nil || cmd.write || !cmd.takes(len(c.args)) || !cmd.early && !c.rights() {
		return nil
	}
	return cmd
}

// find is look for a command that is next, and answers why it is not to be run.
func (c *conn) find() *command {
	cmd := c.look()
	if cmd != nil {
		return cmd
	}
	c.mark = len(c.out.b)
	name := strings.ToUpper(short(c.args[0]))
	known := c.s.commands[name]
	switch {
	case !c.rights() && (known == nil || !known.early):
		c.fail("NOAUTH Authentication required; send AUTH with a token, or connect with a client certificate")
		if c.list != nil { // its rights were taken away
			c.closing = true
		}
	case known == nil:
		c.s.metrics.unknown.Inc()
		c.fail("ERR unknown command '" + short(c.args[0]) + "'; COMMAND LIST names those that there are")
	case known.write:
		known.count.Inc()
		c.fail("READONLY an edge answers reads only; write to the database that it is a copy of")
	default:
		c.fail("ERR wrong number of arguments for '" + strings.ToLower(known.name) + "' command")
	}
	return nil
}

// short is the start of what a client has sent, for messages.
func short(b []byte) string {
	const most = 128
	if len(b) > most {
		return string(b[:most]) + "…"
	}
	return string(b)
}

// cutOff closes a connection that another goroutine uses.
func (c *conn) cutOff() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.woken.Store(true)
	c.cut = true
	if c.net != nil {
		_ = c.net.Close() // it was given its time
	}
}
