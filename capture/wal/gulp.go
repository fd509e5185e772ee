package wal

import (
	"errors"
	"io"
	"net"
	"os"
	"time"
)

// A walsender writes message by message as long as the socket takes them. A
// reader that takes each one at once makes it pay a system call and a wake-up
// for every row. So while data keeps coming a gulpConn lets the socket fill up
// for a moment; when little comes it reads at once. It stands below TLS, whose
// records are as small as the messages.
const (
	gulpSize = 256 << 10
	// gulpBusy is how much one read must bring for more to be on its way, and
	// gulpQuick how many small ones in a row, each within gulpPause of the one
	// before: an eager reader of a busy socket never sees much at once.
	gulpBusy  = 16 << 10
	gulpQuick = 8
	gulpPause = 250 * time.Microsecond
	// gulpIdle is the gulp below which it is over.
	gulpIdle = 4 << 10
	// gulpWait bounds the moment, unless Config.Patience does: what is added to the
	// latency of a row that comes at the end of a backlog.
	gulpWait = 2 * time.Millisecond
)

// errWake is what a read returns in place of data when the owner has something
// else to do first. The read can be tried again: it looks like a time-out, which
// TLS takes for an error that passes.
var errWake error = wakeError{}

type wakeError struct{}

func (wakeError) Error() string   { return "woken up" }
func (wakeError) Timeout() bool   { return true }
func (wakeError) Temporary() bool { return true }

// gulpConn is a connection whose reads belong to one goroutine. Until stream is
// called it passes them through.
type gulpConn struct {
	net.Conn
	before func() error // sets the read deadline, or returns errWake
	buf    []byte
	rp, wp int
	busy   bool
	quick  int
	gather func(net.Conn, time.Duration, int)
	wait   time.Duration
	// came is when bytes came last, and heard that, or when we began to listen
	// again after working on them; total counts them.
	came, heard time.Time
	worked      bool
	total       uint64
}

// stream begins to read in gulps, for each of which it waits as long as wait. before
// is called before each read of the socket.
func (g *gulpConn) stream(before func() error, gather func(net.Conn, time.Duration, int), wait time.Duration) {
	g.before, g.gather, g.wait = before, gather, wait
	g.buf = make([]byte, gulpSize)
	g.heard = time.Now()
}

func (g *gulpConn) Read(p []byte) (int, error) {
	if g.before == nil {
		return g.Conn.Read(p)
	}
	if g.rp == g.wp {
		if err := g.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, g.buf[g.rp:g.wp])
	g.rp += n
	return n, nil
}

func (g *gulpConn) fill() error {
	if g.worked {
		g.heard, g.worked = time.Now(), false
	}
	if g.busy {
		g.gather(g.Conn, g.wait, len(g.buf)/2)
	}
	// The deadline is set, and the wish to be woken looked at, after gathering:
	// both use the deadline.
	if err := g.before(); err != nil {
		return err
	}
	n, err := g.Conn.Read(g.buf)
	g.rp, g.wp = 0, n
	if n > 0 {
		now := time.Now()
		g.settle(n, now.Sub(g.came))
		g.came, g.heard, g.worked = now, now, true
		g.total += uint64(n)
		return nil
	}
	g.busy, g.quick = false, 0
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return errWake
	}
	if err == nil {
		return io.ErrNoProgress
	}
	return err
}

// settle decides from a read of n bytes, that long after the one before, how the
// next one is done.
func (g *gulpConn) settle(n int, pause time.Duration) {
	if pause < gulpPause {
		g.quick++
	} else {
		g.quick = 0
	}
	if g.busy {
		g.busy, g.quick = n >= gulpIdle, 0
		return
	}
	g.busy = n >= gulpBusy || g.quick >= gulpQuick
}
