package resp

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/millrace-db/millrace/edge"
	"github.com/millrace-db/millrace/edge/event"
)

// waitIndex waits until the stream has come to a place: WAITINDEX index milliseconds, or
// WAITINDEX epoch-index milliseconds. A client that goes away meanwhile ends it.
func (c *conn) waitIndex() {
	want, err := event.ParseID(string(c.args[1]))
	if err != nil {
		c.fail("ERR '" + short(c.args[1]) + "' is not an index; give one, or epoch and index as in 1-4711")
		return
	}
	text := string(c.args[1])
	limit, err := strconv.ParseUint(string(c.args[2]), 10, 32)
	if err != nil || time.Duration(limit)*time.Millisecond > c.s.config.MaxWait {
		c.fail(fmt.Sprintf("ERR '%s' is not a number of milliseconds from 0 to %d", short(c.args[2]), c.s.config.MaxWait.Milliseconds()))
		return
	}
	if !c.who.Stream(c.stream.name) {
		c.fail("NOPERM " + c.who.Name() + " may not see stream " + c.stream.name)
		return
	}
	begun := time.Now()
	switch come := c.stream.reader.Place().Reaches(want.Epoch, want.Index); {
	case come:
	case limit == 0:
		// A store that another process writes, before or after a handover, learns where it
		// stands by being read.
		err = c.stream.reader.View(c.ctx, func(*edge.View) error { return nil })
	default:
		// What was answered before goes out before the wait.
		if !c.flush() {
			c.closing = true
			return
		}
		c.mark = 0
		err = c.await(func(ctx context.Context) error {
			ctx, cancel := context.WithTimeout(ctx, time.Duration(limit)*time.Millisecond)
			defer cancel()
			return c.stream.reader.WaitPlace(ctx, want.Epoch, want.Index)
		})
	}
	now := c.stream.reader.Place()
	switch {
	case now.Reaches(want.Epoch, want.Index):
		c.out.int(int64(now.Index))
	case c.closing:
	case c.woken.Load() && c.canPass():
		left := max(0, time.Until(begun.Add(time.Duration(limit)*time.Millisecond)))
		c.passing = true
		c.again = fmt.Appendf(nil, "WAITINDEX %s %d\r\n", text, left.Milliseconds())
	case err == nil || errors.Is(err, context.DeadlineExceeded):
		c.fail(fmt.Sprintf("TIMEOUT stream %s is at index %v of epoch %v, not at %s yet", c.stream.name, now.Index, now.Epoch, text))
	case errors.Is(err, edge.ErrClosed), errors.Is(err, context.Canceled):
		c.fail("CLOSED the edge is shutting down; ask again, or another edge")
	default:
		c.fail("ERR " + err.Error())
	}
}

// await runs wait beside a look at the connection: when the client goes, or the
// server ends, the context ends. What the client sends meanwhile stays in the
// buffer, until that is full.
func (c *conn) await(wait func(context.Context) error) error {
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		err := wait(ctx)
		c.mu.Lock()
		if !c.woken.Load() {
			_ = c.net.SetReadDeadline(time.Unix(1, 0)) // the look below ends
		}
		c.mu.Unlock()
		done <- err
	}()
	for {
		if c.start > 0 {
			c.end = copy(c.in, c.in[c.start:c.end])
			c.start = 0
		}
		if c.end == len(c.in) {
			break
		}
		n, err := c.net.Read(c.in[c.end:])
		c.end += n
		if err == nil {
			continue
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			c.closing = true // the client has gone
		}
		break
	}
	if c.closing || c.woken.Load() {
		cancel()
	}
	err := <-done
	c.readBy(0)
	return err
}
