package wal

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/internal/finding"
)

// proofLimit bounds how long the source's history is read.
const proofLimit = 30 * time.Second

func (c *Capture) slotSubject() string { return "slot " + c.cfg.Slot }

// CheckAnew is Check for a stream that is to be copied anew: a slot that has lost
// what it held is no problem, because it is made anew too.
func (c *Capture) CheckAnew(ctx context.Context) ([]finding.Finding, error) {
	found, err := c.Check(ctx)
	return slices.DeleteFunc(found, func(f finding.Finding) bool { return f.Subject == c.slotSubject() }), err
}

// CheckPosition looks whether capture could go on at a position of the stream,
// without changing anything: it says which of the fences that Open has would stop
// it. position is called once the slot was looked at, so that a stream that is
// being published does not look as if its slot were ahead of it; the time is that
// of the newest unit. A zero position is that of a stream that has its first copy
// before it. What the slot holds is read where nobody else reads it.
func (c *Capture) CheckPosition(ctx context.Context, position func(context.Context) (millrace.Position, time.Time, error)) ([]finding.Finding, error) {
	conn, server, slot, err := c.slotNow(ctx)
	if err != nil {
		return nil, err
	}
	defer capture.Close(conn)
	p, at, err := position(ctx)
	if err != nil || p.IsZero() {
		return nil, err
	}
	repl, err := c.connectReplication(ctx)
	if err != nil {
		return nil, err
	}
	defer capture.Close(repl)
	s, err := identify(ctx, repl)
	if err != nil {
		return nil, err
	}
	var found []finding.Finding
	add := func(subject string, err error) error {
		if err == nil || !errors.Is(err, millrace.ErrStop) {
			return err
		}
		// The error says its mend behind the rest.
		text, mend, _ := strings.Cut(err.Error(), "; mend: ")
		text = strings.TrimPrefix(text, millrace.ErrStop.Error()+": ")
		found = append(found, finding.Finding{Level: finding.Problem, Subject: subject, Text: text, Mend: mend})
		return nil
	}
	if err := add("capture", c.fenceCapture(p)); err != nil {
		return nil, err
	}
	if err := add("source", fenceSystem(p, s, func() ([]byte, error) { return history(ctx, repl, s.timeline) })); err != nil {
		return nil, err
	}
	switch {
	case slot == nil:
		err = add(c.slotSubject(), c.slotMissing(p))
	case c.fenceSlot(slot, server) != nil: // Check tells of that
	case slot.ActivePID == 0 && len(found) == 0:
		limited, cancel := context.WithTimeout(ctx, proofLimit)
		defer cancel()
		err = add(c.slotSubject(), c.fencePosition(limited, slot, p, at))
	}
	return found, err
}

// ForeignSlot reports whether a slot of the stream's name is somebody else's.
func (c *Capture) ForeignSlot(ctx context.Context) (bool, error) {
	conn, server, slot, err := c.slotNow(ctx)
	if err != nil {
		return false, err
	}
	defer capture.Close(conn)
	return slot != nil && c.ownSlot(slot, server) != nil, nil
}

// DropSlot ends whoever reads from the stream's slot and drops it. The caller
// holds the stream. dropped is false if there is none, or it is somebody else's.
func (c *Capture) DropSlot(ctx context.Context) (dropped bool, err error) {
	conn, server, slot, err := c.slotNow(ctx)
	if err != nil {
		return false, err
	}
	defer capture.Close(conn)
	if slot == nil || c.ownSlot(slot, server) != nil {
		return false, nil
	}
	return true, c.dropSlot(ctx, conn)
}

// slotNow looks up server and slot, which is nil if there is none of our name, on
// a connection that the caller closes.
func (c *Capture) slotNow(ctx context.Context) (_ *pgx.Conn, server *serverInfo, slot *slotInfo, err error) {
	conn, err := c.connect(ctx, nil)
	if err != nil {
		return nil, nil, nil, err
	}
	if server, _, err = checkServer(ctx, conn); err == nil {
		slot, err = c.lookUpSlot(ctx, conn)
	}
	if err != nil {
		capture.Close(conn)
		return nil, nil, nil, err
	}
	return conn, server, slot, nil
}
