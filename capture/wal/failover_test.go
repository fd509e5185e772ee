package wal

import (
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/internal/pgserver"
	"github.com/millrace-db/millrace/internal/pgtest"
)

// eitherOf is a URL that leads to whichever of the servers is the primary.
func eitherOf(db *pgtest.DB, a, b *pgserver.Server) string {
	return fmt.Sprintf("postgres://postgres@127.0.0.1:%d,127.0.0.1:%d/%s?sslmode=disable&target_session_attrs=primary", a.Port(), b.Port(), url.PathEscape(db.Name))
}

// onStandby is the database on the standby.
func onStandby(t *testing.T, db *pgtest.DB, standby *pgserver.Server) *pgtest.DB {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), standby.URL(db.Name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return db.At(standby, pool)
}

// caughtUp waits until the standby has written what the primary has now.
func caughtUp(t *testing.T, primary *pgtest.DB) {
	t.Helper()
	lsn := primary.String("select pg_current_wal_flush_lsn()")
	until(t, "the standby has it", func() bool {
		return primary.String("select count(*) from pg_stat_replication where application_name = 'walreceiver' and flush_lsn >= $1::pg_lsn", lsn) == "1"
	})
}

// A promoted standby without the slot, as all are before Postgres 17: refused,
// and for what it is. Where it has less than was published, for that.
func TestPromotedWithoutSlot(t *testing.T) {
	t.Parallel()
	primary := pgtest.Cluster(t, pgtest.Options{})
	db := pgtest.On(t, primary)
	db.Exec("create table a (id int primary key); insert into a values (1)")
	standby := pgtest.Standby(t, primary, nil)
	db.Pool.Reset()
	r := newRig(t, db, func(c *Config) { c.URL = eitherOf(db, primary, standby) }, "a")
	r.open()
	r.copied()
	db.Exec("insert into a values (2)")
	r.sync()
	had := r.edge.at // the standby will have this
	checked(t, r.c, "warning", "standby")
	caughtUp(t, db)
	if err := standby.Stop(r.ctx()); err != nil {
		t.Fatal(err)
	}
	db.Exec("insert into a values (3)")
	r.sync()
	if err := primary.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.src.Next(r.ctx()); err == nil || millrace.NeedsOperator(err) {
		t.Fatalf("next: %v, want an error that a retry mends", err)
	}
	r.close()
	if err := standby.Restart(r.ctx()); err != nil {
		t.Fatal(err)
	}
	if _, err := r.c.Open(r.ctx(), &r.edge.at); err == nil || millrace.NeedsOperator(err) {
		t.Fatalf("open while there is no primary: %v, want an error that a retry mends", err)
	}
	promoted := onStandby(t, db, standby)
	if got := promoted.String("select pg_promote()"); got != "t" {
		t.Fatalf("promote: %s", got)
	}
	promoted.Exec("insert into a values (4)")
	if err := r.openFails(capture.ErrTimeline); !strings.Contains(err.Error(), "failover") {
		t.Errorf("error: %v", err)
	}
	r.edge.at = had
	_ = r.openFails(ErrSlotMissing)
}

// A promoted standby with the slot: the stream goes on there by itself, under
// the same URL, with nothing lost or doubled.
func TestPromotedWithSlot(t *testing.T) {
	t.Parallel()
	primary := pgtest.Cluster(t, pgtest.Options{Version: 18, Settings: map[string]string{"wal_sender_timeout": "5s"}})
	db := pgtest.On(t, primary)
	db.Exec("create table a (id int primary key, v text); insert into a select i, 'first' from generate_series(1, 100) i")
	standby := pgtest.Standby(t, primary, map[string]string{"sync_replication_slots": "on"})
	db.Pool.Reset()
	r := newRig(t, db, func(c *Config) { c.URL, c.Heartbeat = eitherOf(db, primary, standby), 50*time.Millisecond }, "a")
	r.open()
	r.copied()
	if got := db.String("select failover from pg_replication_slots where slot_name = $1", r.cfg.Slot); got != "t" {
		t.Fatalf("failover of the slot: %s", got)
	}
	checked(t, r.c, "warning", "there are standbys")
	db.Exec("alter system set synchronized_standby_slots = 'standby'")
	db.Exec("select pg_reload_conf()")
	until(t, "setting is in force", func() bool {
		findings, err := r.c.Check(r.ctx())
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range findings {
			if f.Subject == "synchronized_standby_slots" {
				return false
			}
		}
		return true
	})
	there := onStandby(t, db, standby)
	id := 1000
	write := func() {
		for range 20 {
			id++
			db.Exec(fmt.Sprintf("insert into a values (%d, 'new'); update a set v = v || 'x' where id %% 10 = %d; delete from a where id = %d", id, id%10, id-1000))
		}
	}
	write()
	r.sync()
	r.equal()
	r.src.Confirm(r.edge.at.Position)
	until(t, "the standby has the slot", func() bool {
		// Each checkpoint notes where decoding can start, and moves the slot on
		// to there.
		db.Exec("checkpoint")
		r.src.Confirm(r.next().position)
		return there.String("select count(*) from pg_replication_slots where slot_name = $1 and synced and not temporary and failover and invalidation_reason is null", r.cfg.Slot) == "1"
	})
	// More than the standby's slot knows of, published and confirmed; and some
	// that is not published yet.
	write()
	r.sync()
	r.src.Confirm(r.edge.at.Position)
	before := r.edge.at.Position
	write()
	caughtUp(t, db)
	if err := primary.Kill(); err != nil {
		t.Fatal(err)
	}
	r.drained()
	r.close()
	if got := there.String("select pg_promote()"); got != "t" {
		t.Fatalf("promote: %s", got)
	}
	there.Exec("insert into a values (-1, 'after')")
	r.db = there
	r.open() // apply refuses what comes twice
	r.sync()
	r.equal()
	if got := r.edge.at.Position.Timeline; got != before.Timeline+1 {
		t.Errorf("timeline %d after %d", got, before.Timeline)
	}
	there.Exec("insert into a values (-2, 'and on'); delete from a where id < 50")
	r.restart()
	r.sync()
	r.equal()
}
