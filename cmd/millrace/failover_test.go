package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millrace-db/millrace/internal/pgtest"
)

// TestFailover: the primary dies under a running transfer, and the standby that
// has its slot is promoted. Nobody touches millrace: the source URL names both
// hosts.
func TestFailover(t *testing.T) {
	primary := pgtest.Cluster(t, pgtest.Options{Version: 18})
	db := pgtest.On(t, primary)
	w := newWorldOn(t, db)
	standby := pgtest.Standby(t, primary, map[string]string{"sync_replication_slots": "on"})
	db.Pool.Reset()
	db.Exec("alter system set synchronized_standby_slots = 'standby'")
	db.Exec("select pg_reload_conf()")
	either := fmt.Sprintf("postgres://postgres@127.0.0.1:%d,127.0.0.1:%d/%s?sslmode=disable&target_session_attrs=primary", primary.Port(), standby.Port(), db.Name)
	file := w.write(t, "either.yaml", w.config(either, ""))
	program(t, w.dir, "init", "-c", file)
	if got := program(t, w.dir, "check", "-c", file); !strings.Contains(got, "no problems") || strings.Contains(got, "standby") {
		t.Errorf("check: %s", got)
	}
	spawn(t, w.dir, nil, "transfer", "-c", file)
	spawn(t, w.dir, nil, "edge", "-c", file)
	w.ready(t)
	pool, err := pgxpool.New(t.Context(), standby.URL(db.Name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	there := db.At(standby, pool)
	until(t, "the standby has the slot", func() error {
		db.Exec("checkpoint") // moves the slot on to where the standby can take it over
		if there.String("select count(*) from pg_replication_slots where slot_name = 'millrace_shop' and synced and not temporary") != "1" {
			return fmt.Errorf("not yet")
		}
		return nil
	})
	at := func(what, id, note string) {
		t.Helper()
		until(t, what+" is at the edge", func() error {
			if got := program(t, w.dir, "get", "-c", file, "public.items", id); !strings.Contains(got, note) {
				return fmt.Errorf("got %s", got)
			}
			return nil
		})
	}
	db.Exec("update items set note = 'before the failover' where id = 5")
	at("a change of the old primary", "s2,5", "before the failover")
	// The last change may be on its way in any place; that it was committed
	// means that the standby need not have it, so this waits until it has.
	db.Exec("update items set note = 'last' where id = 6")
	lsn := db.String("select pg_current_wal_flush_lsn()")
	until(t, "the standby has the last change", func() error {
		if there.String("select pg_last_wal_receive_lsn() >= $1::pg_lsn", lsn) != "t" {
			return fmt.Errorf("not yet")
		}
		return nil
	})
	if err := primary.Kill(); err != nil {
		t.Fatal(err)
	}
	if got := there.String("select pg_promote()"); got != "t" {
		t.Fatalf("promote: %s", got)
	}
	there.Exec("update items set note = 'after the failover' where id = 7")
	at("the last change of the old primary", "s0,6", "last")
	at("a change of the new primary", "s1,7", "after the failover")
	if got, want := strings.Count(program(t, w.dir, "scan", "-c", file, "public.items"), "\n"), 30; got != want {
		t.Errorf("scan: got %d rows, want %d", got, want)
	}
}
