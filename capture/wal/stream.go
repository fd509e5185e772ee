package wal

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/capture/table"
)

// stream is a replication connection that sends changes. One goroutine, run,
// reads and writes it; the only thing that others do is to wake it.
type stream struct {
	conn     net.Conn
	frontend *pgproto3.Frontend
	gulp     *gulpConn
	d        *decoder
	q        *queue
	metrics  *metrics

	// confirmed is what the caller has confirmed.
	confirmed *atomic.Uint64
	woken     atomic.Bool
	nudged    atomic.Bool // a confirmation has woken run and is not in a status yet

	statusInterval, confirmDelay, silence time.Duration

	sent       millrace.LSN // in the newest status
	lastStatus time.Time
	// asked is when the source was asked for an answer, since it was last heard, and
	// relented when it had not given one in time and was listened to once more.
	asked, relented time.Time
	counted         uint64
}

// beginStream runs the fences over the source as it is now and starts the
// replication from p. at is the time of the newest unit before.
func (c *Capture) beginStream(ctx context.Context, conn *pgx.Conn, server *serverInfo, p millrace.Position, at time.Time) (*replication, millrace.Position, error) {
	fail := func(err error) (*replication, millrace.Position, error) { return nil, p, err }
	if err := c.fenceCapture(p); err != nil {
		return fail(err)
	}
	whole := ctx // what may take long is not bounded
	ctx, cancel := context.WithTimeout(whole, c.stepLimit)
	defer cancel()
	repl, err := c.connectReplication(ctx)
	if err != nil {
		return fail(err)
	}
	fail = func(err error) (*replication, millrace.Position, error) {
		capture.Close(repl)
		return nil, p, err
	}
	s, err := identify(ctx, repl)
	if err != nil {
		return fail(err)
	}
	if err := fenceSystem(p, s, func() ([]byte, error) { return history(ctx, repl, s.timeline) }); err != nil {
		return fail(err)
	}
	// Who may still read from the slot is ended first, so that the place where
	// it stands is looked at afterwards.
	if err := c.freeSlot(ctx, conn); err != nil {
		return fail(err)
	}
	slot, err := c.lookUpSlot(ctx, conn)
	if err != nil {
		return fail(err)
	}
	if slot == nil {
		return fail(c.slotMissing(p))
	}
	if err := c.fenceSlot(slot, server); err != nil {
		return fail(err)
	}
	if err := c.fencePosition(whole, slot, p, at); err != nil {
		return fail(err)
	}
	ctx, cancel = context.WithTimeout(whole, c.stepLimit)
	defer cancel()
	if err := c.freeSlot(ctx, conn); err != nil { // from our own look at its history
		return fail(err)
	}
	if err := c.slot.opening(ctx, conn, s.id); err != nil {
		return fail(err)
	}
	if err := c.startReplication(ctx, repl, p.LSN); err != nil {
		return fail(err)
	}
	p.Timeline = s.timeline
	return repl, p, nil
}

func history(ctx context.Context, repl *replication, timeline uint32) ([]byte, error) {
	h, err := pglogrepl.TimelineHistory(ctx, repl.PgConn, int32(timeline))
	if err != nil {
		return nil, fmt.Errorf("read history of timeline %d: %w", timeline, err)
	}
	return h.Content, nil
}

func (c *Capture) startReplication(ctx context.Context, repl *replication, from millrace.LSN) error {
	err := pglogrepl.StartReplication(ctx, repl.PgConn, table.Quote(c.cfg.Slot), pglogrepl.LSN(from), pglogrepl.StartReplicationOptions{
		Mode: pglogrepl.LogicalReplication,
		PluginArgs: []string{
			"proto_version '2'",
			"publication_names '" + table.Quote(c.cfg.Publication) + "'",
			"messages 'true'",
			"streaming 'on'",
		},
	})
	if err == nil {
		return nil
	}
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == "42704" { // undefined_object; publications are not looked at before the first change
		return fmt.Errorf("%w: start from slot %s at %v: %w; mend: %s", ErrSlotMissing, c.cfg.Slot, from, err, capture.NewEpoch)
	}
	return c.replicationError(fmt.Errorf("start replication from slot %s at %v: %w", c.cfg.Slot, from, err))
}

// replicationError tells what the server says on a replication connection that
// no retry mends.
func (c *Capture) replicationError(err error) error {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return err
	}
	switch pg.Code {
	case "42704": // undefined_object
		return fmt.Errorf("%w: %w; mend: millrace init, and if rows were changed meanwhile, %s", ErrPublication, err, capture.NewEpoch)
	case "55000": // object_not_in_prerequisite_state
		return fmt.Errorf("%w: %w; mend: %s", ErrSlotLost, err, capture.NewEpoch)
	}
	return err
}

// newStream takes the connection over from pgconn.
func (s *Source) newStream(repl *replication, p millrace.Position) (*stream, error) {
	h, err := repl.Hijack()
	if err != nil {
		return nil, fmt.Errorf("take over the replication connection: %w", err)
	}
	st := &stream{
		conn: h.Conn, frontend: h.Frontend, gulp: repl.gulp, q: s.queue, metrics: s.c.metrics, confirmed: &s.confirmed,
		statusInterval: s.c.statusInterval, confirmDelay: s.c.confirmDelay, silence: s.c.cfg.Silence,
		sent: p.LSN, lastStatus: time.Now(),
	}
	if s.senderTimeout > 0 {
		st.statusInterval = min(st.statusInterval, s.senderTimeout/4)
	}
	st.gulp.stream(st.beforeRead, s.c.gather, s.c.cfg.Patience)
	return st, nil
}

// wake makes run look at what else there is to do. It may be called from any
// goroutine.
func (st *stream) wake() {
	st.woken.Store(true)
	_ = st.gulp.SetReadDeadline(time.Unix(1, 0)) // a closed connection is awake
}

// nudge tells run that more is confirmed.
func (st *stream) nudge() {
	if st.nudged.CompareAndSwap(false, true) {
		st.wake()
	}
}

// due says when something else than reading must be done.
func (st *stream) due() time.Time {
	t := st.lastStatus.Add(st.statusInterval)
	if st.confirmedLSN() > st.sent {
		t = earlier(t, st.lastStatus.Add(st.confirmDelay))
	}
	return earlier(t, st.quietUntil())
}

// lastListen is how long a source that has not answered in time is listened to once
// more. A process that stood still comes upon its deadline before it comes upon what
// has arrived meanwhile.
const lastListen = 250 * time.Millisecond

// quietUntil says until when the source may be quiet before something is done about it:
// it is asked after half of the silence, and has the other half for the answer, however
// late it was asked.
func (st *stream) quietUntil() time.Time {
	switch {
	case st.asked.IsZero():
		return st.gulp.heard.Add(st.silence / 2)
	case st.relented.IsZero():
		return st.asked.Add(st.silence / 2)
	}
	return st.relented.Add(lastListen)
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

func (st *stream) confirmedLSN() millrace.LSN { return millrace.LSN(st.confirmed.Load()) }

// beforeRead lets a read of the socket go on until something is due. The
// deadline is set before the flag is looked at, and wake does it the other way
// round, so a call of wake is never missed.
func (st *stream) beforeRead() error {
	due := st.due()
	if !time.Now().Before(due) {
		return errWake
	}
	if err := st.gulp.SetReadDeadline(due); err != nil {
		return err
	}
	if st.woken.Load() {
		return errWake
	}
	return nil
}

// run receives until ctx ends or something fails. It always returns an error.
func (st *stream) run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, st.wake)
	defer stop()
	for {
		msg, err := st.frontend.Receive()
		if errors.Is(err, errWake) {
			if err := st.service(ctx); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			var large *pgproto3.ExceededMaxBodyLenErr
			if errors.As(err, &large) {
				return fmt.Errorf("receive from the source: %w: a change of %d bytes; mend: remove the value at the source, then %s", millrace.ErrTooLarge, large.ActualBodyLen, capture.NewEpoch)
			}
			return fmt.Errorf("receive from the source: %w", err)
		}
		if data, ok := msg.(*pgproto3.CopyData); ok {
			err = st.copyData(ctx, data.Data)
		} else {
			err = st.other(msg)
		}
		if err != nil {
			return err
		}
	}
}

func (st *stream) other(msg pgproto3.BackendMessage) error {
	switch msg := msg.(type) {
	case *pgproto3.NoticeResponse:
		// Postgres 18 warns of a publication that did not exist when a change
		// was made, and leaves the change out; before, that was an error.
		if msg.Code == "55000" {
			return fmt.Errorf("%w: the source leaves changes out: %s: %s; mend: millrace init, then %s", ErrPublication, msg.Message, msg.Detail, capture.NewEpoch)
		}
		return nil
	case *pgproto3.ParameterStatus:
		return nil
	case *pgproto3.ErrorResponse:
		return fmt.Errorf("source ended the replication: %w", pgconn.ErrorResponseToPgError(msg))
	case *pgproto3.CopyDone, *pgproto3.CommandComplete, *pgproto3.ReadyForQuery:
		return errors.New("source ended the replication")
	default:
		return fmt.Errorf("%w: protocol message %T", ErrProtocol, msg)
	}
}

// Heads of the messages inside CopyData, in bytes, with their type.
const (
	dataHead      = 1 + 8 + 8 + 8
	keepaliveSize = 1 + 8 + 8 + 1
)

func (st *stream) copyData(ctx context.Context, b []byte) error {
	switch {
	case len(b) >= dataHead && b[0] == 'w':
		return st.d.message(b[dataHead:])
	case len(b) == keepaliveSize && b[0] == 'k':
		st.heard()
		if b[keepaliveSize-1] == 1 {
			return st.status(false)
		}
		return nil
	}
	return fmt.Errorf("%w: replication message of %d bytes", ErrProtocol, len(b))
}

// service does what is due beside reading.
func (st *stream) service(ctx context.Context) error {
	st.woken.Store(false)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	st.count()
	now := time.Now()
	quiet := now.Sub(st.gulp.heard)
	if quiet < st.silence/2 {
		st.heard()
	}
	if now.Before(st.quietUntil()) {
		return st.report()
	}
	switch {
	case st.asked.IsZero():
		st.asked = now
		return st.status(true)
	case st.relented.IsZero():
		st.relented = now
	default:
		return fmt.Errorf("%w: nothing came for %v", ErrSilent, quiet.Round(time.Millisecond))
	}
	return st.report()
}

// heard notes that the source lives.
func (st *stream) heard() { st.asked, st.relented = time.Time{}, time.Time{} }

func (st *stream) count() {
	st.metrics.bytes.Add(float64(st.gulp.total - st.counted))
	st.counted = st.gulp.total
}

// status tells the source what is done: what was confirmed, never more, and all
// three positions, because a server takes a missing one for another's value.
func (st *stream) status(answer bool) error {
	st.nudged.Store(false) // before the look, so that none is missed
	lsn := max(st.confirmedLSN(), st.sent)
	b := make([]byte, 0, 64)
	b = append(b, 'r')
	for range 3 { // written, flushed, applied
		b = binary.BigEndian.AppendUint64(b, uint64(lsn))
	}
	b = binary.BigEndian.AppendUint64(b, uint64(time.Now().UnixMicro()-pgEpoch))
	if answer {
		b = append(b, 1)
	} else {
		b = append(b, 0)
	}
	if err := st.conn.SetWriteDeadline(time.Now().Add(st.silence)); err != nil {
		return fmt.Errorf("send status to the source: %w", err)
	}
	st.frontend.Send(&pgproto3.CopyData{Data: b})
	if err := st.frontend.Flush(); err != nil {
		return fmt.Errorf("send status to the source: %w", err)
	}
	st.sent, st.lastStatus = lsn, time.Now()
	st.metrics.confirmed.Set(float64(lsn))
	return nil
}

// push waits until the queue has room. Meanwhile nothing is read, which holds
// the source back, but it goes on being told where we stand: a walsender that
// cannot write still listens, and ends a connection that has fallen silent.
func (st *stream) push(ctx context.Context, u *millrace.Unit, size int64) error {
	if st.q.tryPush(u, size) {
		return nil
	}
	tick := time.NewTicker(max(st.statusInterval/4, time.Millisecond))
	defer tick.Stop()
	for !st.q.tryPush(u, size) {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-st.q.notFull:
		case <-tick.C:
		}
		if err := st.report(); err != nil {
			return err
		}
	}
	return nil
}

// breathe goes on telling the source where we stand in work that takes long.
func (st *stream) breathe(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return st.report()
}

// report sends a status if one is due.
func (st *stream) report() error {
	if since := time.Since(st.lastStatus); since >= st.statusInterval ||
		st.confirmedLSN() > st.sent && since >= st.confirmDelay {
		return st.status(false)
	}
	return nil
}

// close tells the source once more what is done and ends the connection.
func (st *stream) close() {
	if st.confirmedLSN() > st.sent {
		_ = st.status(false) // the source hears it again at the next start
	}
	_ = st.conn.SetWriteDeadline(time.Now().Add(time.Second))
	st.frontend.Send(&pgproto3.CopyDone{})
	st.frontend.Send(&pgproto3.Terminate{})
	_ = st.frontend.Flush()
	_ = st.conn.Close()
}
