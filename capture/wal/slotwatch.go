package wal

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/millrace-db/millrace/capture"
	"github.com/prometheus/client_golang/prometheus"
)

// looksOver is at how many looks in a row a slot has to be over its limit before
// it is given up. A look that failed says nothing, neither for nor against.
const looksOver = 2

// slotWatch watches how much WAL the source keeps for our slot, because a slot
// that nobody reads from fills the source's disk.
//
// While changes are streamed the attendant looks, over its own connection;
// at other times (the topic is away, another process publishes) Capture.Watch
// does. What it sees goes into metrics, into the log at each change of state,
// and into Warning. Where the configuration says so, a slot that is over its
// limit is dropped: only after looks that have succeeded, at the cluster that
// the stream is captured from, and with the limit asked for once more by the
// statement that drops it.
type slotWatch struct {
	c      *Capture
	limits slotLimits
	drop   bool // give the slot up at the limit

	mu       sync.Mutex
	looked   *slotLook // the newest; nil if there is none, or no slot
	at       time.Time // of the newest look that succeeded
	failures uint64
	system   uint64 // of the cluster; 0 until it is known
	state    slotState
	text     string // of the state
	over     int    // looks in a row over the limit
	streams  int    // streams whose attendants look
}

// attend counts the streams that look by themselves.
func (w *slotWatch) attend(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.streams += n
}

func (w *slotWatch) attended() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.streams > 0
}

// opening looks before changes are streamed from the cluster of the given
// identifier. A slot that is over its limit by then is given up at once: nobody
// has watched it.
func (w *slotWatch) opening(ctx context.Context, conn *pgx.Conn, system uint64) error {
	w.mu.Lock()
	w.system = system
	w.mu.Unlock()
	if state, err := w.look(ctx, conn); err == nil && state == slotOver && w.drop {
		return w.giveUp(ctx, conn, false)
	}
	return nil
}

// tend looks, and gives the slot up where it is time. free ends the connection
// that reads from the slot; without it a slot that is read from is left to who
// reads. An error that wraps ErrSlotGivenUp says that it was done.
func (w *slotWatch) tend(ctx context.Context, conn *pgx.Conn, free bool) (givenUp, err error) {
	state, err := w.look(ctx, conn)
	if err != nil {
		if conn.IsClosed() {
			return nil, err
		}
		return nil, nil // another look may succeed
	}
	w.mu.Lock()
	due := w.drop && state == slotOver && w.over >= looksOver
	w.mu.Unlock()
	if !due {
		return nil, nil
	}
	if err = w.giveUp(ctx, conn, free); errors.Is(err, ErrSlotGivenUp) {
		return err, nil
	}
	return nil, err
}

// look takes one look. A failure is counted and changes nothing.
func (w *slotWatch) look(ctx context.Context, conn *pgx.Conn) (slotState, error) {
	look, err := w.c.lookAtSlot(ctx, conn)
	w.mu.Lock()
	defer w.mu.Unlock()
	if err == nil && look != nil && w.system != 0 && look.system != w.system {
		err = fmt.Errorf("look at slot %s: the source URL led to system %d, the stream is captured from system %d", w.c.cfg.Slot, look.system, w.system)
	}
	if err != nil {
		w.failures++
		w.c.log.Debug("no look at the slot", "error", err)
		return w.state, err
	}
	w.looked, w.at = look, time.Now()
	if look == nil {
		w.state, w.text, w.over = slotFine, "", 0
		return w.state, nil
	}
	w.system = look.system
	state, text := w.limits.judge(w.c.cfg.Slot, look, w.state)
	w.over++
	if state != slotOver {
		w.over = 0
	}
	if before := w.state; before != state {
		w.tell(before, state, text)
	}
	w.state, w.text = state, text
	return state, nil
}

// tell logs a change of state.
func (w *slotWatch) tell(before, state slotState, text string) {
	switch state {
	case slotFine:
		w.c.log.Info("the slot holds little WAL again", "slot", w.c.cfg.Slot)
	case slotLow:
		if before == slotFine {
			w.c.log.Warn("the slot holds much WAL", "slot", w.c.cfg.Slot, "found", text, "mend", "find out why the position stands still (millrace status, open transactions at the source), or allow the slot more")
		} else {
			w.c.log.Info("the slot holds less WAL again", "slot", w.c.cfg.Slot, "found", text)
		}
	case slotOver:
		w.c.log.Error("the slot is over its limit", "slot", w.c.cfg.Slot, "found", text, "drop", w.drop)
	case slotGone:
		w.c.log.Error("the slot is lost", "slot", w.c.cfg.Slot, "found", text)
	}
}

// giveUpSlot drops the slot if it is still over the limit, still ours, and of the
// cluster that was looked at.
const giveUpSlot = `
SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint, pg_drop_replication_slot(slot_name)::text
FROM pg_replication_slots
WHERE slot_name = $1 AND slot_type = 'logical' AND plugin = 'pgoutput' AND database = current_database() AND NOT temporary
  AND active_pid IS NULL AND pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn) >= $2
  AND (SELECT system_identifier::text FROM pg_control_system()) = $3::text`

// giveUp drops the slot and returns ErrSlotGivenUp, or nil if it must not be
// dropped any more, or an error that says why it could not be.
func (w *slotWatch) giveUp(ctx context.Context, conn *pgx.Conn, free bool) error {
	// Once begun it is brought to its end: the stream, which ends with the
	// connection that is taken from it, must not cut this off.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), dutyLimit)
	defer cancel()
	w.mu.Lock()
	system, text := fmt.Sprint(w.system), w.text
	w.mu.Unlock()
	if free {
		if err := w.c.freeSlot(ctx, conn); err != nil {
			return err
		}
	}
	var held int64
	err := conn.QueryRow(ctx, giveUpSlot, w.c.cfg.Slot, w.limits.own, system).Scan(&held, nil)
	var pg *pgconn.PgError
	switch {
	case err == nil:
	case errors.Is(err, pgx.ErrNoRows):
		return nil
	case errors.As(err, &pg) && (pg.Code == "55006" || pg.Code == "42704"): // taken by another, or dropped by one
		return nil
	default:
		return fmt.Errorf("give up slot %s: %w", w.c.cfg.Slot, err)
	}
	w.c.log.Error("the slot was dropped to save the source's disk", "slot", w.c.cfg.Slot, "held_bytes", held)
	return fmt.Errorf("%w: %s, so it was dropped as source.wal.on_limit says, and the changes after it are gone; mend: %s", ErrSlotGivenUp, text, capture.NewEpoch)
}

// Warning says what is wrong with the WAL that the source keeps for the slot, or
// nothing. It may be called at any time.
func (c *Capture) Warning() string {
	c.slot.mu.Lock()
	defer c.slot.mu.Unlock()
	return c.slot.text
}

// Watch looks at the slot every few seconds as long as no Source of this Capture
// streams from it: while the topic is away or another process has the stream,
// the source goes on keeping WAL for it. It returns nil when ctx ends, or an
// error that wraps ErrSlotGivenUp after it has dropped the slot. A source that
// does not answer is asked again. A slot that somebody reads from is left alone.
func (c *Capture) Watch(ctx context.Context) error {
	tick := time.NewTicker(c.watchInterval)
	defer tick.Stop()
	a := &attendant{c: c}
	defer a.disconnect()
	for {
		if c.slot.attended() {
			a.disconnect()
		} else if err := c.watchOnce(ctx, a); err != nil {
			return fmt.Errorf("watch slot of stream %s: %w", c.cfg.Stream, err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (c *Capture) watchOnce(ctx context.Context, a *attendant) error {
	givenUp, err := a.do(ctx, func(ctx context.Context) (error, error) { return c.slot.tend(ctx, a.conn, false) })
	if errors.Is(givenUp, ErrSlotGivenUp) {
		return givenUp
	}
	if err != nil && ctx.Err() == nil {
		c.log.Debug("nobody could look at the slot", "error", err)
	}
	return nil
}

// What the watch shows. Nothing is shown of a slot before the first look at it.
type slotDescs struct {
	retained, unconfirmed, restart, confirmed, safe, limit *prometheus.Desc
	status, alarm, spilled, at, failures                   *prometheus.Desc
}

func newSlotDescs(stream string) *slotDescs {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("millrace_capture_"+name, help, labels, prometheus.Labels{"stream": stream})
	}
	return &slotDescs{
		retained:    desc("slot_retained_bytes", "Bytes of WAL that the source keeps for the slot."),
		unconfirmed: desc("slot_unconfirmed_bytes", "Bytes of WAL between what was confirmed to the slot and the end of the WAL."),
		restart:     desc("slot_restart_lsn_bytes", "Where the WAL begins that the source keeps for the slot, as a byte position in the WAL."),
		confirmed:   desc("slot_confirmed_lsn_bytes", "What the slot has as confirmed, as a byte position in the WAL."),
		safe:        desc("slot_safe_bytes", "Bytes that the source can write before it may give the slot up; +Inf where nothing limits it."),
		limit:       desc("slot_limit_bytes", "source.wal.limit: what the slot may hold; +Inf where there is none."),
		status:      desc("slot_wal_status", "1 for the wal_status that the slot has, 0 for the others.", "status"),
		alarm:       desc("slot_alarm", "0 while all is well with the slot's WAL, 1 when little is left of a limit, 2 above source.wal.limit, 3 when the slot is lost."),
		spilled:     desc("server_spill_bytes", "Bytes that the source has written to its own files while decoding for the slot, since its statistics were reset."),
		at:          desc("slot_look_timestamp_seconds", "When the slot was last looked at, in seconds since 1970."),
		failures:    desc("slot_look_failures_total", "Looks at the slot that have failed."),
	}
}

// slotCollector shows the newest look as metrics.
type slotCollector struct {
	w *slotWatch
	d *slotDescs
}

// Describe implements prometheus.Collector.
func (s slotCollector) Describe(ch chan<- *prometheus.Desc) {
	d := s.d
	for _, desc := range []*prometheus.Desc{d.retained, d.unconfirmed, d.restart, d.confirmed, d.safe, d.limit, d.status, d.alarm, d.spilled, d.at, d.failures} {
		ch <- desc
	}
}

// Collect implements prometheus.Collector.
func (s slotCollector) Collect(ch chan<- prometheus.Metric) {
	w, d := s.w, s.d
	w.mu.Lock()
	look, at, failures, state := w.looked, w.at, w.failures, w.state
	w.mu.Unlock()
	gauge := func(desc *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, v, labels...)
	}
	ch <- prometheus.MustNewConstMetric(d.failures, prometheus.CounterValue, float64(failures))
	if at.IsZero() {
		return
	}
	gauge(d.at, float64(at.UnixMilli())/1000)
	if look == nil {
		return
	}
	gauge(d.retained, float64(look.retained()))
	gauge(d.unconfirmed, float64(look.unconfirmed()))
	gauge(d.restart, float64(look.restart))
	gauge(d.confirmed, float64(look.confirmed))
	safe, limit := math.Inf(1), math.Inf(1)
	if n, limited := look.safe(); limited {
		safe = float64(n)
	}
	if w.limits.own > 0 {
		limit = float64(w.limits.own)
	}
	gauge(d.safe, safe)
	gauge(d.limit, limit)
	for _, status := range []string{"reserved", "extended", "unreserved", "lost"} {
		v := 0.0
		if look.Status == status {
			v = 1
		}
		gauge(d.status, v, status)
	}
	gauge(d.alarm, float64(state))
	gauge(d.spilled, float64(look.spilled))
}
