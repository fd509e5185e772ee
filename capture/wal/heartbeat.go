package wal

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/capture/chunk"
)

// watchInterval is how often the publication is looked at while changes are
// streamed.
const watchInterval = 5 * time.Second

// settleMarks is how often it is looked whether the begin of a load is published.
const settleMarks = 100 * time.Millisecond

// attendant does what goes on beside a stream, over a connection of its own.
//
// It writes a logical message every now and then. That comes back through the
// slot as a unit like any other: so our position moves on, and the server can
// let go of WAL, while only other databases are busy; and so the stream shows
// that all of it is alive.
//
// It watches the publication and the tables' partitions: a table that somebody
// takes out of the publication sends its changes no more, nor do rows come or go
// with a partition by changes, and nothing in the stream would tell. And it
// watches how much WAL the slot holds.
type attendant struct {
	c           *Capture
	loads       *loads
	publication string // its fingerprint when the stream was opened
	follow      *follower
	conn        *pgx.Conn
}

// run works until ctx ends, or returns what must stop the stream.
func (a *attendant) run(ctx context.Context) error {
	defer a.disconnect()
	a.c.slot.attend(1)
	defer a.c.slot.attend(-1)
	beat := time.NewTicker(a.c.cfg.Heartbeat)
	defer beat.Stop()
	watch := time.NewTicker(a.c.watchInterval)
	defer watch.Stop()
	settle := time.NewTicker(settleMarks)
	defer settle.Stop()
	beats := duty{a.beat, "heartbeat fails; the position stands still while the captured tables are idle", "heartbeat is back", false}
	watches := duty{a.watch, "publication, partitions and slot cannot be looked at", "publication, partitions and slot are looked at again", false}
	settles := duty{a.settle, "what tables look like cannot be noted in the control schema", "what tables look like is noted again", false}
	for d := &watches; ; {
		altered, err := a.do(ctx, d.work)
		if altered != nil {
			return altered // also where the stream has ended because of it
		}
		if ctx.Err() != nil {
			return nil
		}
		if failed := err != nil; failed != d.failing {
			d.failing = failed
			if failed {
				a.c.log.Warn(d.fails, "error", err)
			} else {
				a.c.log.Info(d.back)
			}
		}
		var settled <-chan time.Time
		if a.follow.waits() {
			settled = settle.C
		}
		select {
		case <-ctx.Done():
			return nil
		case <-beat.C:
			d = &beats
		case <-watch.C:
			d = &watches
		case <-settled:
			d = &settles
		}
	}
}

// settle notes in the control schema what tables looked like when the loads began
// that are published by now.
func (a *attendant) settle(ctx context.Context) (altered, err error) {
	return nil, a.follow.settle(ctx, a.conn)
}

// duty is one thing that the attendant does, and what it says when that begins to
// fail and when it works again.
type duty struct {
	work        func(context.Context) (altered, err error)
	fails, back string
	failing     bool
}

// dutyLimit bounds one heartbeat or look.
const dutyLimit = 30 * time.Second

// do runs a duty. Its first result stops the stream; the second is a failure
// that passes.
func (a *attendant) do(ctx context.Context, duty func(context.Context) (error, error)) (altered, err error) {
	ctx, cancel := context.WithTimeout(ctx, dutyLimit)
	defer cancel()
	if a.conn == nil {
		// It need not wait for standbys: a heartbeat is no data.
		if a.conn, err = a.c.connect(ctx, map[string]string{"synchronous_commit": "local"}); err != nil {
			a.conn = nil
			return a.ending(err), err
		}
	}
	if altered, err = duty(ctx); err != nil {
		a.disconnect()
	}
	return altered, err
}

// ending returns an error if the source cannot be connected to because it is
// being shut down, which goes on for as long as we stay: a server waits for its
// walsenders until all that it has ever written is confirmed to them, also what
// is no unit and never will be.
func (a *attendant) ending(err error) error {
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == "57P03" { // cannot_connect_now
		return fmt.Errorf("%w: %s", ErrShutdown, pg.Message)
	}
	return nil
}

func (a *attendant) disconnect() {
	if a.conn != nil {
		capture.Close(a.conn)
		a.conn = nil
	}
}

func (a *attendant) beat(ctx context.Context) (altered, err error) {
	if _, err := a.conn.Exec(ctx, "SELECT pg_logical_emit_message(true, $1, $2::text)", heartbeatPrefix, a.c.cfg.Stream); err != nil {
		return nil, err
	}
	s, err := chunk.CurrentSnapshot(ctx, a.conn)
	if err == nil {
		a.loads.show(s)
	}
	return nil, err
}

func (a *attendant) watch(ctx context.Context) (altered, err error) {
	now, err := a.c.publicationFingerprint(ctx, a.conn)
	if err != nil {
		return nil, err
	}
	if now != a.publication {
		return fmt.Errorf("%w: publication %s was altered while the stream was open, so changes may not have been sent; mend: millrace init if that was not by init itself, then start transfer again, which loads the tables that it concerns",
			ErrPublication, a.c.cfg.Publication), nil
	}
	if altered, err = a.c.slot.tend(ctx, a.conn, true); altered != nil || err != nil {
		return altered, err
	}
	return nil, a.follow.run(ctx, a.conn)
}
