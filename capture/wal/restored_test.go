package wal

import (
	"errors"
	"os"
	"testing"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/internal/pgtest"
)

// A source that was put back to an older state of its files: refused while its
// WAL is shorter than what was published, and refused when it has grown beyond
// that again, which only its history shows.
func TestRestored(t *testing.T) {
	t.Parallel()
	server := pgtest.Cluster(t, pgtest.Options{})
	db := pgtest.On(t, server)
	db.Exec("create table a (id int primary key, v text); insert into a values (1, 'before')")
	r := newRig(t, db, nil, "a")
	r.open()
	r.copied()
	db.Exec("insert into a values (2, 'before')")
	r.sync()
	r.src.Confirm(r.edge.at.Position)
	r.close()
	if err := server.Stop(r.ctx()); err != nil {
		t.Fatal(err)
	}
	backup := server.Dir() + ".backup"
	pgtest.CopyData(t, server.Dir(), backup)
	t.Cleanup(func() { _ = os.RemoveAll(backup) })
	if err := server.Restart(r.ctx()); err != nil {
		t.Fatal(err)
	}
	db.Pool.Reset()
	r.open() // nothing was lost yet
	db.Exec("insert into a select i, 'published' from generate_series(10, 2000) i")
	r.sync()
	r.equal()
	r.src.Confirm(r.edge.at.Position)
	r.close()

	if err := server.Stop(r.ctx()); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.RemoveAll(server.Dir()), os.Rename(backup, server.Dir())); err != nil {
		t.Fatal(err)
	}
	if err := server.Restart(r.ctx()); err != nil {
		t.Fatal(err)
	}
	db.Pool.Reset()
	_ = r.openFails(capture.ErrRewound)
	// Transactions of the same size may well end at the same place. The test
	// does not wait until they are later than the stream by more than a minute.
	r.edge.at.Time = r.edge.at.Time.Add(-time.Hour)
	for grown := false; !grown; {
		db.Exec("insert into a select max(id) + 1, 'other history' from a")
		grown = db.String("select pg_current_wal_flush_lsn() > $1::pg_lsn", r.edge.at.Position.LSN.String()) == "t"
	}
	_ = r.openFails(capture.ErrRewound)
	db.Exec("checkpoint") // whatever else it writes
	_ = r.openFails(capture.ErrRewound)
}

// What is read to prove the history takes nothing away: after a crash of the
// server, whose slot then stands where it stood at its last checkpoint, and with
// transactions of all kinds between there and our position.
func TestHistoryIsProven(t *testing.T) {
	t.Parallel()
	server := pgtest.Cluster(t, pgtest.Options{Settings: map[string]string{"logical_decoding_work_mem": "64kB", "max_prepared_transactions": "5"}})
	db := pgtest.On(t, server)
	db.Exec(tableA)
	r := newRig(t, db, nil, "a")
	r.open()
	r.copied()
	for _, sql := range []string{
		insert(1, 10),
		"begin; " + insert(11, 3000) + "commit", // streamed
		"begin; " + insert(4000, 4001) + "prepare transaction 'p'",
		"commit prepared 'p'",
		"begin; savepoint s; insert into a values (5000, 'x'); rollback to s; insert into a values (5001, 'x'); commit",
		"truncate a",
		"insert into a values (1, 'last')",
	} {
		db.Exec(sql)
		r.sync()
		r.src.Confirm(r.edge.at.Position)
		until(t, "confirmation reaches the slot", func() bool { return r.slotLSN() == r.edge.at.Position.LSN })
		if err := server.Kill(); err != nil {
			t.Fatal(err)
		}
		r.drained()
		r.close()
		if err := server.Restart(r.ctx()); err != nil {
			t.Fatal(err)
		}
		db.Pool.Reset()
		if r.slotLSN() >= r.edge.at.Position.LSN {
			t.Error("the slot has kept its place over the crash: nothing is tested")
		}
		r.open()
		if units := r.sync(); len(units) != 0 {
			t.Errorf("after %q: %d units came again", sql, len(units))
		}
		r.equal()
	}
}

// A server that has nothing to say for long, because it reads what is of no concern to
// us or, here, waits for a standby, is asked whether it lives while history is proven.
func TestHistoryOfASlowServer(t *testing.T) {
	t.Parallel()
	server := pgtest.Cluster(t, pgtest.Options{Version: 18, Settings: map[string]string{"wal_sender_timeout": "0"}})
	db := pgtest.On(t, server)
	db.Exec("create table a (id int primary key); select pg_create_physical_replication_slot('nobody', true)")
	r := newRig(t, db, func(c *Config) { c.Silence = 2 * time.Second }, "a")
	r.open()
	r.copied()
	db.Exec("insert into a values (1)")
	r.sync() // and the slot knows nothing of it
	r.close()
	setting := func(value string) {
		t.Helper()
		db.Exec("alter system set synchronized_standby_slots = '" + value + "'")
		db.Exec("select pg_reload_conf()")
		until(t, "setting is in force", func() bool { return db.String("show synchronized_standby_slots") == value })
	}
	setting("nobody")
	opened := make(chan error, 1)
	begin := time.Now()
	go func() {
		src, err := r.c.Open(r.ctx(), &r.edge.at)
		r.src = src
		opened <- err
	}()
	until(t, "more time passes than the source may be silent", func() bool {
		select {
		case err := <-opened:
			t.Fatalf("open beside a server that waits for a standby: %v", err)
		default:
		}
		return db.String("select count(*) from pg_stat_replication where reply_time > $1::timestamptz", begin.Add(2*r.cfg.Silence)) == "1"
	})
	setting("")
	if err := <-opened; err != nil {
		t.Fatal(err)
	}
	db.Exec("insert into a values (2)")
	r.sync()
	r.equal()
}

func TestReached(t *testing.T) {
	keepalive := append([]byte{'k', 0, 0, 0, 0, 0, 0, 1, 0}, make([]byte, 9)...)
	keepalive[17] = 1
	if got, err := reached(keepalive); err != nil || got != (place{idle: 256, ask: true}) {
		t.Errorf("keepalive: %+v, %v", got, err)
	}
	data := func(b []byte) []byte { return append(append([]byte{'w'}, make([]byte, dataHead-1)...), b...) }
	if got, err := reached(data(commitMsg(8))); err != nil || got != (place{commit: 16, time: pgTime(1)}) {
		t.Errorf("commit: %+v, %v", got, err)
	}
	if got, err := reached(data(insertMsg("1", "a"))); err != nil || got != (place{}) {
		t.Errorf("insert: %+v, %v", got, err)
	}
	for _, bad := range [][]byte{nil, {'k'}, {'x', 1, 2}, data(nil), data([]byte{'C', 1}), data([]byte{'c'})} {
		if _, err := reached(bad); !errors.Is(err, ErrProtocol) || !millrace.NeedsOperator(err) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
