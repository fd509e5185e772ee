package wal

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/internal/pgtest"
)

// fill writes so many MiB of WAL, in whole segments of 16, to a database that
// nobody captures.
func fill(db *pgtest.DB, mib int) {
	for ; mib > 0; mib -= 16 {
		db.Exec("select pg_logical_emit_message(false, 'fill', repeat('x', 1 << 16)) from generate_series(1, 16); select pg_switch_wal()")
	}
}

// follow takes units and confirms them until the source ends, and returns a
// function that waits for that.
func (r *rig) follow() (ended func() error) {
	done := make(chan error, 1)
	src := r.src
	ctx := r.ctx()
	go func() {
		for {
			u, err := src.Next(ctx)
			if err != nil {
				done <- err
				return
			}
			if _, err := r.edge.apply(u); err != nil {
				done <- err
				return
			}
			src.Confirm(u.Position)
		}
	}()
	return sync.OnceValue(func() error { return <-done })
}

// restartLSN is where the WAL begins that the server keeps for the slot.
func (r *rig) restartLSN() millrace.LSN {
	r.t.Helper()
	lsn, err := millrace.ParseLSN(r.db.String("select restart_lsn from pg_replication_slots where slot_name = $1", r.cfg.Slot))
	if err != nil {
		r.t.Fatal(err)
	}
	return lsn
}

func (r *rig) slots() string {
	r.t.Helper()
	return r.db.String("select count(*) from pg_replication_slots where slot_name = $1", r.cfg.Slot)
}

// gathered reads the values of metrics with one value a stream.
func gathered(t testing.TB, reg *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := make(map[string]float64)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := strings.TrimPrefix(f.GetName(), "millrace_capture_")
			for _, l := range m.GetLabel() {
				if l.GetName() == "status" {
					name += " " + l.GetValue()
				}
			}
			values[name] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return values
}

// lines is a log that tests read while it is written.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lines) count(part string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), part)
}

// watched is a rig whose slot is looked at all the time. Its log and metrics are
// returned.
func watched(t *testing.T, db *pgtest.DB, change func(*Config)) (*rig, *lines, *prometheus.Registry) {
	t.Helper()
	db.Exec("create table a (id int primary key); insert into a values (1)")
	log, reg := &lines{}, prometheus.NewRegistry()
	r := newRig(t, db, func(c *Config) {
		c.Logger, c.Registerer = slog.New(slog.NewTextHandler(log, nil)), reg
		if change != nil {
			change(c)
		}
	}, "a")
	r.c.watchInterval = 20 * time.Millisecond
	r.open()
	r.copied()
	r.sync()
	return r, log, reg
}

// What the slot of an idle database holds while another database of the same
// server is busy, and what is done about it.
func TestSlotWAL(t *testing.T) {
	t.Parallel()
	server := pgtest.Cluster(t, pgtest.Options{Settings: map[string]string{"min_wal_size": "32MB", "max_wal_size": "64MB"}})
	busy := pgtest.On(t, server)
	const much, most = 80, 64 << 20 // MiB, and most of it in bytes: the first segment is begun already

	t.Run("idle with heartbeat", func(t *testing.T) {
		r, _, reg := watched(t, pgtest.On(t, server), func(c *Config) { c.Heartbeat = 20 * time.Millisecond })
		restart, confirmed := r.restartLSN(), r.slotLSN()
		ended := r.follow()
		fill(busy, much)
		until(t, "the slot lets go of WAL", func() bool {
			busy.Exec("checkpoint") // the server notes then what is running, from which the slot can start
			return r.restartLSN() > restart+most && r.slotLSN() > confirmed+most
		})
		until(t, "metrics say so", func() bool {
			m := gathered(t, reg)
			return m["slot_retained_bytes"] < much<<20/2 && m["slot_unconfirmed_bytes"] < much<<20/2 && m["slot_alarm"] == 0 &&
				m["slot_restart_lsn_bytes"] > float64(restart+most) && m["slot_confirmed_lsn_bytes"] > float64(confirmed+most) &&
				m["slot_wal_status reserved"]+m["slot_wal_status extended"] == 1 && m["slot_look_timestamp_seconds"] > 1e9
		})
		r.close()
		if err := ended(); !errors.Is(err, capture.ErrClosed) {
			t.Error(err)
		}
	})
	t.Run("idle without heartbeat", func(t *testing.T) {
		r, _, reg := watched(t, pgtest.On(t, server), nil)
		restart := r.restartLSN()
		r.follow()
		fill(busy, much)
		for range 3 {
			busy.Exec("checkpoint")
		}
		until(t, "metrics say so", func() bool { return gathered(t, reg)["slot_retained_bytes"] > most })
		if got := r.restartLSN(); got > restart+16<<20 {
			t.Errorf("the slot went from %v to %v without a heartbeat: what is tested beside it shows nothing", restart, got)
		}
	})
	t.Run("little is left", func(t *testing.T) {
		r, log, reg := watched(t, pgtest.On(t, server), nil)
		setting := func(value string) {
			busy.Exec("alter system set max_slot_wal_keep_size = '" + value + "'")
			busy.Exec("select pg_reload_conf()")
			until(t, "setting is in force", func() bool { return busy.String("show max_slot_wal_keep_size") == value })
		}
		defer setting("-1")
		setting("512MB")
		until(t, "limit is seen", func() bool { return gathered(t, reg)["slot_safe_bytes"] < 600<<20 })
		if got := r.c.Warning(); got != "" {
			t.Errorf("warning too early: %s", got)
		}
		fill(busy, 176) // of 192, as it is seen below; more might be too late
		setting("192MB")
		until(t, "warning", func() bool { return strings.Contains(r.c.Warning(), "max_slot_wal_keep_size") })
		setting("1GB")
		until(t, "all is well", func() bool { return r.c.Warning() == "" })
		setting("192MB")
		until(t, "warning again", func() bool { return gathered(t, reg)["slot_alarm"] == 1 })
		if got := log.count("the slot holds much WAL"); got != 2 {
			t.Errorf("warned %d times, want once a transition", got)
		}
		checked(t, r.c, "warning", "max_slot_wal_keep_size")
		// And then it is too late.
		setting("1MB")
		fill(busy, 32)
		busy.Exec("checkpoint")
		_, err := r.src.Next(r.ctx())
		if err == nil || millrace.NeedsOperator(err) {
			t.Fatalf("next after the slot was lost: %v", err)
		}
		r.close()
		_ = r.openFails(ErrSlotLost)
		watch, stop := context.WithCancel(r.ctx())
		done := make(chan error, 1)
		go func() { done <- r.c.Watch(watch) }()
		until(t, "alarm", func() bool {
			return gathered(t, reg)["slot_alarm"] == 3 && strings.Contains(r.c.Warning(), "given slot")
		})
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Run("alarm at the limit", func(t *testing.T) {
		r, log, reg := watched(t, pgtest.On(t, server), func(c *Config) { c.RetainLimit = 64 << 20 })
		fill(busy, much)
		until(t, "alarm", func() bool {
			return gathered(t, reg)["slot_alarm"] == 2 && strings.Contains(r.c.Warning(), "source.wal.limit")
		})
		if got := gathered(t, reg)["slot_limit_bytes"]; got != 64<<20 {
			t.Errorf("limit: %v", got)
		}
		checked(t, r.c, "problem", "source.wal.limit")
		unlimited := r.cfgWithout()
		unlimited.RetainLimit = 0
		checked(t, mustNew(t, unlimited), "warning", "there is no source.wal.limit")
		for range 5 {
			looked(t, r.c)
		}
		if got := log.count("level=ERROR"); got != 1 {
			t.Errorf("%d errors in the log, want one a transition", got)
		}
		r.db.Exec("insert into a values (2)")
		r.sync() // the stream goes on
		r.restart()
		r.sync()
		r.equal()
	})
	t.Run("dropped at the limit", func(t *testing.T) {
		r, _, _ := watched(t, pgtest.On(t, server), func(c *Config) { c.RetainLimit, c.DropAtLimit = 64<<20, true })
		r.db.Exec("insert into a values (2)")
		r.sync()
		r.equal()
		fill(busy, much)
		err := r.fails(ErrSlotGivenUp)
		if !millrace.NeedsOperator(err) || !strings.Contains(err.Error(), "mend:") {
			t.Errorf("error: %v", err)
		}
		if got := r.slots(); got != "0" {
			t.Errorf("slots: %s", got)
		}
		r.close()
		_ = r.openFails(ErrSlotMissing)
	})
	t.Run("dropped at the limit while nobody streams", func(t *testing.T) {
		r, _, _ := watched(t, pgtest.On(t, server), func(c *Config) { c.RetainLimit, c.DropAtLimit = 64<<20, true })
		// One that is streamed from is that stream's to give up.
		other := mustNew(t, r.cfgWithout())
		other.watchInterval = time.Millisecond
		done := make(chan error, 1)
		go func() { done <- other.Watch(r.ctx()) }()
		r.c.slot.mu.Lock()
		r.c.slot.drop = false
		r.c.slot.mu.Unlock()
		fill(busy, much)
		for range 5 {
			looked(t, other)
		}
		if got := r.slots(); got != "1" {
			t.Fatal("a slot was dropped that another process reads from")
		}
		r.close()
		if err := <-done; !errors.Is(err, ErrSlotGivenUp) || !millrace.NeedsOperator(err) {
			t.Errorf("watch: %v", err)
		}
		if got := r.slots(); got != "0" {
			t.Errorf("slots: %s", got)
		}
	})
	t.Run("dropped before opening", func(t *testing.T) {
		r, _, _ := watched(t, pgtest.On(t, server), func(c *Config) { c.RetainLimit, c.DropAtLimit = 64<<20, true })
		r.close()
		fill(busy, much)
		checked(t, r.c, "problem", "next start")
		if got := r.slots(); got != "1" {
			t.Fatal("check has dropped the slot")
		}
		_ = r.openFails(ErrSlotGivenUp)
		if got := r.slots(); got != "0" {
			t.Errorf("slots: %s", got)
		}
	})
	t.Run("by a role that may only replicate and read", func(t *testing.T) {
		db := pgtest.On(t, server)
		r, _, _ := watched(t, db, nil)
		r.close()
		db.Exec("create role reader login replication; grant select on a to reader")
		t.Cleanup(func() { db.Exec("drop owned by reader; drop role reader") })
		reg := prometheus.NewRegistry()
		cfg := r.cfgWithout()
		cfg.URL = strings.Replace(db.URL, "postgres@", "reader@", 1)
		cfg.RetainLimit, cfg.DropAtLimit, cfg.Registerer = 64<<20, true, reg
		r.c = mustNew(t, cfg)
		r.c.watchInterval = 20 * time.Millisecond
		r.open()
		db.Exec("insert into a values (2)")
		r.sync()
		looked(t, r.c)
		m := gathered(t, reg)
		if m["slot_look_failures_total"] != 0 || m["slot_restart_lsn_bytes"] == 0 {
			t.Errorf("metrics: %v", m)
		}
		fill(busy, much)
		_ = r.fails(ErrSlotGivenUp)
		if got := r.slots(); got != "0" {
			t.Errorf("slots: %s", got)
		}
	})
	t.Run("never by a look that failed", func(t *testing.T) {
		r, _, reg := watched(t, pgtest.On(t, server), func(c *Config) { c.RetainLimit, c.DropAtLimit = 64<<20, true })
		// The attendant's connection leads elsewhere, as after a failover.
		r.c.slot.mu.Lock()
		r.c.slot.system++
		r.c.slot.mu.Unlock()
		fill(busy, much)
		before := gathered(t, reg)["slot_look_failures_total"]
		until(t, "looks fail", func() bool { return gathered(t, reg)["slot_look_failures_total"] > before+10 })
		if got := r.slots(); got != "1" {
			t.Error("the slot was dropped by looks at another cluster")
		}
		// Neither does what an earlier look has found count on.
		r.c.slot.mu.Lock()
		r.c.slot.state, r.c.slot.over = slotOver, looksOver
		r.c.slot.mu.Unlock()
		until(t, "looks fail", func() bool { return gathered(t, reg)["slot_look_failures_total"] > before+30 })
		if got := r.slots(); got != "1" {
			t.Error("the slot was dropped because of an old look")
		}
		r.db.Exec("insert into a values (2)")
		r.sync()
	})
}

// cfgWithout is the rig's configuration for a second capture of the same slot.
func (r *rig) cfgWithout() Config {
	cfg := r.cfg
	cfg.Logger, cfg.Registerer = nil, nil
	return cfg
}

// checked wants a finding of check about the slot's WAL.
func checked(t *testing.T, c *Capture, level, part string) {
	t.Helper()
	findings, err := c.Check(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range findings {
		if string(f.Level) == level && strings.Contains(f.Text, part) && f.Mend != "" {
			return
		}
	}
	t.Errorf("check: %v, want a %s with %q", findings, level, part)
}

// looked waits for another look.
func looked(t *testing.T, c *Capture) {
	t.Helper()
	at := func() time.Time {
		c.slot.mu.Lock()
		defer c.slot.mu.Unlock()
		return c.slot.at
	}
	before := at()
	until(t, "another look", func() bool { return at().After(before) })
}

func TestJudge(t *testing.T) {
	const mib = 1 << 20
	look := func(held, keep, safe int64) *slotLook {
		l := &slotLook{now: 1 << 40, restart: millrace.LSN(1<<40 - held), keep: keep}
		if safe >= 0 {
			l.Safe = &safe
		}
		return l
	}
	lost := look(0, 100*mib, -1)
	lost.Status, lost.restart = "lost", 0
	l := slotLimits{warn: 0.25, own: 100 * mib}
	for i, c := range []struct {
		limits slotLimits
		look   *slotLook
		before slotState
		want   slotState
		text   string
	}{
		{slotLimits{warn: 0.25}, look(1<<39, -1, -1), slotFine, slotFine, ""},
		{slotLimits{warn: 0.25}, look(80*mib, 100*mib, 25*mib), slotFine, slotFine, ""},
		{slotLimits{warn: 0.25}, look(80*mib, 100*mib, 24*mib), slotFine, slotLow, "24 MiB (24 %) are left"},
		{slotLimits{warn: 0.25}, look(80*mib, 100*mib, 29*mib), slotLow, slotLow, "left"},
		{slotLimits{warn: 0.25}, look(80*mib, 100*mib, 31*mib), slotLow, slotFine, ""},
		{slotLimits{warn: 0}, look(80*mib, 100*mib, 0), slotFine, slotFine, ""},
		{l, look(74*mib, -1, -1), slotFine, slotFine, ""},
		{l, look(76*mib, -1, -1), slotFine, slotLow, "24 MiB (24 %) are left of source.wal.limit"},
		{l, look(100*mib, -1, -1), slotFine, slotOver, "holds 100 MiB"},
		{l, look(90*mib, -1, -1), slotOver, slotOver, "source.wal.limit is 100 MiB"},
		{l, look(80*mib, -1, -1), slotOver, slotLow, "left"},
		{l, look(100*mib, 1000*mib, 900*mib), slotLow, slotOver, ""},
		{l, lost, slotFine, slotGone, "wal_status is lost"},
		// A position beyond the end of the WAL is no amount.
		{l, &slotLook{now: 1, restart: 1 << 40, keep: -1}, slotFine, slotFine, ""},
	} {
		got, text := c.limits.judge("s", c.look, c.before)
		if got != c.want || !strings.Contains(text, c.text) || (text == "") != (got == slotFine) {
			t.Errorf("case %d: got %d %q, want %d %q", i, got, text, c.want, c.text)
		}
	}
	for n, want := range map[int64]string{0: "0 bytes", 1023: "1023 bytes", 3 << 30: "3 GiB", 1 << 40: "1 TiB", 5 << 50: strconv.Itoa(5<<10) + " TiB"} {
		if got := size(n); got != want {
			t.Errorf("size of %d: got %q, want %q", n, got, want)
		}
	}
}
