package resp

import (
	"errors"
	"syscall"

	"github.com/millrace-db/millrace/edge"
)

// answer reads what has come, answers it, and writes the answers: in this order for all
// together, so that each command is answered from a snapshot that is not older than it,
// and no snapshot is held over a write.
func (l *loop) answer() {
	l.asking = l.asking[:0]
	for _, c := range l.batch {
		if c.receive(); c.pending && !c.away {
			l.asking = append(l.asking, c)
		}
	}
	for len(l.asking) > 0 {
		l.read()
	}
	for _, c := range l.batch {
		c.transmit()
	}
}

// read answers commands that read rows, from one snapshot of the first one's stream. Where
// that is not to be had at once, they wait for it in goroutines, and the others do not.
func (l *loop) read() {
	st := l.asking[0].stream
	var current *conn // the one that is answered, or was last
	commands := 0
	err := st.reader.View(&l.patience, func(v *edge.View) error {
		for i, c := range l.asking {
			if c == nil || c.stream != st || commands >= viewCommands {
				continue
			}
			current, l.asking[i] = c, nil
			c.pending = false
			c.reads.done = 0
			if err := c.readBatch(v); err != nil {
				return err
			}
			commands += c.reads.done
		}
		return nil
	})
	switch c := current; {
	case l.patience.renew() && err != nil && c == nil:
		for i, c := range l.asking {
			if c.stream == st {
				l.asking[i] = nil
			}
		}
	case err != nil:
		if c == nil { // there was no snapshot
			c, l.asking[0] = l.asking[0], nil
			c.pending, c.reads.done = false, 0
		}
		c.failBatch(err)
	}
	left := l.asking[:0]
	for _, c := range l.asking {
		if c != nil {
			left = append(left, c)
		}
	}
	clear(l.asking[len(left):])
	l.asking = left
}

// receive reads what has come, and answers the commands that it begins with, up to one
// that reads rows.
func (c *conn) receive() {
	c.start, c.end = 0, 0
	n, err := syscall.Read(c.fd, c.in)
	switch {
	case err != nil && (errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EINTR)):
		return
	case err != nil || n == 0:
		c.gone = true
		return
	}
	c.end = n
	// What is gathered has the bound that it has in a goroutine, which goes on with the rest.
	for !c.closing && len(c.out.b) < flushAt && c.command() {
		cmd := c.find()
		switch {
		case cmd == nil:
		case cmd.takesTime(c.args):
			c.pending, c.away = true, true
			return
		case cmd.read != nil:
			c.reads.first, c.pending = cmd, true
			return
		default:
			c.begin(cmd)
			cmd.run(c)
		}
	}
	c.away = c.start < c.end
}

// transmit writes the answers.
func (c *conn) transmit() {
	c.away = c.away || c.pending || c.start < c.end
	if c.gone || len(c.out.b) == 0 {
		return
	}
	n, err := syscall.Write(c.fd, c.out.b)
	switch {
	case err != nil && !errors.Is(err, syscall.EAGAIN) && !errors.Is(err, syscall.EINTR):
		c.gone = true
	case n < len(c.out.b):
		c.out.b = c.out.b[:copy(c.out.b, c.out.b[max(n, 0):])]
		c.away = true // a goroutine waits until there is room
	default:
		c.written()
	}
}
