package wal

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/internal/pgtest"
)

// A server that is shut down in good order waits until its walsenders have been
// told that everything is done, the idle ones too. We let go of it, so that it
// need not wait for us for ever; and go on after its restart.
func TestServerRestarted(t *testing.T) {
	t.Parallel()
	server := pgtest.Cluster(t, pgtest.Options{})
	db := pgtest.On(t, server)
	db.Exec("create table a (id int primary key)")
	r := newRig(t, db, func(c *Config) { c.Heartbeat = 100 * time.Millisecond }, "a")
	r.open()
	r.copied()
	db.Exec("insert into a values (1)")
	r.sync()
	// WAL that is no unit, so that no confirmation reaches its end.
	db.Exec("create table b (id int); insert into b values (1); checkpoint")
	ended := make(chan error, 1)
	begin := time.Now()
	ctx, cancel := context.WithTimeout(r.ctx(), limit)
	defer cancel()
	go func() { ended <- server.Restart(ctx) }()
	for {
		u, err := r.src.Next(r.ctx())
		if err != nil {
			if millrace.NeedsOperator(err) {
				t.Fatal(err)
			}
			t.Logf("next: %v", err)
			break
		}
		if _, err := r.edge.apply(u); err != nil {
			t.Fatal(err)
		}
		r.src.Confirm(u.Position)
	}
	if err := <-ended; err != nil {
		t.Fatalf("restart: %v", err)
	}
	t.Logf("restart took %v", time.Since(begin))
	db.Pool.Reset()
	db.Exec("insert into a values (2)")
	r.restart()
	r.sync()
	r.equal()
}

// A slot that is dropped under a running stream: the connection is lost like any
// other, and the next one finds out why. Between the look at the slot and the
// start it may go as well.
func TestSlotDroppedWhileStreaming(t *testing.T) {
	r := started(t, nil)
	until(t, "slot is dropped", func() bool {
		r.db.Exec("select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = '" + r.cfg.Slot + "' and active")
		r.db.Exec("select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = '" + r.cfg.Slot + "' and not active")
		return r.slots() == "0"
	})
	r.drained()
	r.close()
	repl, err := r.c.connectReplication(r.ctx())
	if err != nil {
		t.Fatal(err)
	}
	defer capture.Close(repl)
	if err := r.c.startReplication(r.ctx(), repl, r.edge.at.Position.LSN); !errors.Is(err, ErrSlotMissing) || !millrace.NeedsOperator(err) {
		t.Errorf("start from a slot that is gone: %v", err)
	}
	_ = r.openFails(ErrSlotMissing)
}
