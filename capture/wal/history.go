package wal

import (
	"context"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
)

// later is how much later than the newest unit's time the transaction at its
// position may be: a unit of a load need not have the time of the transaction
// that it follows.
const later = time.Minute

// proveHistory refuses a source in whose WAL no transaction ends at p, where the
// slot begins at from, before p.
//
// A server that was put back to an older state of its files keeps its identity
// and its timeline, and its slot stands at an old place, which is nothing unusual
// after a crash. As soon as it has written as much as it had before, our position
// lies within its WAL again, but in another history. What tells the two apart is
// the transaction that was published last: in the history that we know it ends
// at p, and was committed before the newest unit's time, at. So what the slot
// holds from before p is read once more, up to there.
//
// A slot that stands at p needs no proof: it was told so.
func (c *Capture) proveHistory(ctx context.Context, from millrace.LSN, p millrace.Position, at time.Time) error {
	if from >= p.LSN {
		return nil
	}
	repl, err := c.connectReplication(ctx)
	if err != nil {
		return err
	}
	defer capture.Close(repl)
	if err := c.startReplication(ctx, repl, from); err != nil {
		return err
	}
	// We stand where the slot begins, until the end of this.
	status := func(answer bool) error {
		begin := pglogrepl.LSN(from)
		update := pglogrepl.StandbyStatusUpdate{WALWritePosition: begin, WALFlushPosition: begin, WALApplyPosition: begin, ClientTime: time.Now(), ReplyRequested: answer}
		if err := pglogrepl.SendStandbyStatusUpdate(ctx, repl.PgConn, update); err != nil {
			return fmt.Errorf("send status to the source: %w", err)
		}
		return nil
	}
	for asked := false; ; {
		heard, cancel := context.WithTimeout(ctx, c.cfg.Silence/2)
		msg, err := repl.ReceiveMessage(heard)
		quiet := err != nil && heard.Err() != nil && ctx.Err() == nil && !repl.IsClosed()
		cancel()
		switch {
		case quiet && !asked:
			// It may be reading what is of no concern to us. Where it has no time-out
			// of its own it says nothing all the while.
			if err := status(true); err != nil {
				return err
			}
			asked = true
			continue
		case quiet:
			err = fmt.Errorf("%w: nothing came for %v", ErrSilent, c.cfg.Silence)
		}
		if err != nil {
			return c.replicationError(fmt.Errorf("read what the slot holds from before %v: %w", p.LSN, err))
		}
		asked = false
		data, ok := msg.(*pgproto3.CopyData)
		if !ok {
			continue
		}
		r, err := reached(data.Data)
		if err != nil {
			return err
		}
		const mend = "it was restored to an earlier state and has been written to since; mend: " + capture.NewEpoch
		if r.commit == p.LSN && !at.IsZero() && r.time.Sub(at) > later {
			return fmt.Errorf("%w: the transaction that ends at %v, where the stream ends, is of %v, and what was published from there of %v: "+mend, capture.ErrRewound, p.LSN, r.time, at)
		}
		if r.commit == p.LSN {
			return nil
		}
		if r.commit > p.LSN || r.idle >= p.LSN {
			return fmt.Errorf("%w: no transaction of its WAL ends at %v, where the stream ends: "+mend, capture.ErrRewound, p.LSN)
		}
		if r.ask {
			if err := status(false); err != nil {
				return err
			}
		}
	}
}

// place is how far a message shows that the source has come.
type place struct {
	commit millrace.LSN // the end of a transaction
	time   time.Time    // of its commit
	idle   millrace.LSN // all that ends up to there has been sent before
	ask    bool         // the source wants to be answered
}

func reached(b []byte) (place, error) {
	switch {
	case len(b) == keepaliveSize && b[0] == 'k':
		return place{idle: millrace.LSN(binary.BigEndian.Uint64(b[1:])), ask: b[keepaliveSize-1] == 1}, nil
	case len(b) > dataHead && b[0] == 'w':
		switch kind, rest := b[dataHead], b[dataHead+1:]; kind {
		case 'C':
			c, err := parseCommit(rest)
			return place{commit: c.end, time: c.time}, err
		case 'c':
			c, err := parseStreamCommit(rest)
			return place{commit: c.end, time: c.time}, err
		}
		return place{}, nil
	}
	return place{}, fmt.Errorf("%w: replication message of %d bytes", ErrProtocol, len(b))
}
