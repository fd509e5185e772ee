package trigger

import (
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/internal/pgtest"
)

// A load waits while a physical standby replays late, and goes on when it has come
// up, or receives no more over a connection that stays.
func TestLoadWaitsForReplica(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec("create table a (id int primary key, v text); insert into a select i, repeat('x', 300) from generate_series(1, 600) i")
	r := newLoadRig(t, db, func(c *Config) { c.LoadMaxLag, c.LoadRate = 100*time.Millisecond, 400 }, "a")
	// To the server this is a standby.
	cfg, err := pgconn.ParseConfig(db.URL)
	if err != nil {
		t.Fatal(err)
	}
	cfg.RuntimeParams["replication"], cfg.RuntimeParams["wal_sender_timeout"] = "true", "0" // it reports when the test wants
	standby, err := pgconn.ConnectConfig(r.ctx(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer capture.Close(standby)
	// It keeps what the standby has to be sent: others' checkpoints would remove it.
	t.Cleanup(func() {
		until(t, "the standby is gone", func() bool {
			return db.String("select active from pg_replication_slots where slot_name = 'trigger_load'") == "f"
		})
		db.Exec("select pg_drop_replication_slot('trigger_load')")
	})
	now, err := pglogrepl.ParseLSN(db.String("select lsn from pg_create_physical_replication_slot('trigger_load', true)"))
	if err == nil {
		err = pglogrepl.StartReplication(r.ctx(), standby, "trigger_load", now, pglogrepl.StartReplicationOptions{Mode: pglogrepl.PhysicalReplication})
	}
	if err != nil {
		t.Fatal(err)
	}
	replayed := func(lsn pglogrepl.LSN) {
		t.Helper()
		// The slot moves to what is flushed. Before the server's first segment it would have the next checkpoint
		// remove all segments, and ahead of the end those that are still to be sent.
		if err := pglogrepl.SendStandbyStatusUpdate(r.ctx(), standby, pglogrepl.StandbyStatusUpdate{WALWritePosition: now, WALFlushPosition: now, WALApplyPosition: lsn}); err != nil {
			t.Fatal(err)
		}
	}
	stands := func() {
		t.Helper()
		replayed(1)
		until(t, "the standby is seen", func() bool {
			return db.String("select string_agg(replay_lsn::text, ' ') from pg_stat_replication") == "0/1"
		})
	}
	stands()
	r.open()
	held := func() bool {
		r.src.loads.mu.Lock()
		defer r.src.loads.mu.Unlock()
		return time.Now().Before(r.src.loads.held)
	}
	waits := func() {
		t.Helper()
		late := r.bounded("the load is held")
		for !held() {
			late()
			r.take()
			if len(r.store.at.Catalog.Loads) == 0 {
				t.Fatal("the load has ended while the standby stood still")
			}
		}
		for range 5 {
			if a := r.take(); len(a.loads) > 0 && held() {
				t.Error("a load went on while the standby stood still")
			}
		}
	}
	r.take() // the load has begun
	waits()
	replayed(1 << 62)
	r.loaded()
	stands()
	if err := r.src.RequestLoad(r.ctx(), "public.a", ""); err != nil {
		t.Fatal(err)
	}
	late := r.bounded("the load has begun")
	for len(r.store.at.Catalog.Loads) == 0 {
		late()
		r.take()
	}
	waits()
	if _, err := pglogrepl.SendStandbyCopyDone(r.ctx(), standby); err != nil {
		t.Fatal(err)
	}
	r.loaded()
	if got := db.String("select state || ' ' || replay_lsn from pg_stat_replication"); got != "startup 0/1" {
		t.Errorf("the connection without streaming is %q", got)
	}
	r.settle()
}
