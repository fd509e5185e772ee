package wal

import (
	"errors"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/capture/table"
	"github.com/millrace-db/millrace/internal/finding"
	"github.com/millrace-db/millrace/internal/pgtest"
)

// TestVersions goes through what differs between the versions of Postgres: how
// slots are made, what the catalogs and publications have, how transactions are
// streamed. The versions that are not here have all tests run on them: 15, the
// one that is installed, and 18, by scripts/test. `make matrix` runs all tests on
// all versions.
func TestVersions(t *testing.T) {
	t.Parallel()
	for _, version := range []int{14, 16, 17} {
		t.Run(strconv.Itoa(version), func(t *testing.T) { smoke(t, version) })
	}
}

// since is a database on a server of at least a version: what older ones refuse
// is tested on that version where the tests run on an older one.
func since(t *testing.T, version int) *pgtest.DB {
	t.Helper()
	server := pgtest.Server(t)
	if server.Binaries().Version < version {
		server = pgtest.Cluster(t, pgtest.Options{Version: version})
	}
	return pgtest.On(t, server)
}

func smoke(t *testing.T, version int) {
	t.Parallel()
	server := pgtest.Cluster(t, pgtest.Options{Version: version, Settings: map[string]string{"logical_decoding_work_mem": "64kB", "max_prepared_transactions": "5"}})
	db := pgtest.On(t, server)
	db.Exec(tableA + `create type mood as enum ('sad');
		create table b (id bigint generated always as identity primary key, m mood, n numeric[], double_id bigint generated always as (id * 2) stored, big text);
		create table p (id int primary key, v text) partition by range (id);
		create table p1 partition of p for values from (0) to (1000); create table p2 partition of p for values from (1000) to (100000);
		insert into a select i, 'first ' || i from generate_series(1, 3000) i;
		insert into b (m, n, big) values ('sad', '{1.50,NULL}', ` + outOfLine + `);
		insert into p select i, 'p' from generate_series(1, 2000) i`)
	r := newRig(t, db, func(c *Config) { c.MemoryBudget, c.RetainLimit = 1<<20, 1<<40 }, "a", "b", "p")
	r.c.watchInterval = 20 * time.Millisecond
	r.open()
	r.copied()
	r.equal()

	db.Exec("insert into b (m) values ('sad'); update b set m = null where id = 1; update a set id = -id where id < 10; delete from a where id = 20; update p set id = id + 50000 where id = 5")
	if units := r.sync(); len(units) != 1 {
		t.Errorf("one transaction came as %d units", len(units))
	}
	r.equal()
	// Streamed before they end, in part taken back, prepared.
	one, two := r.client(), r.client()
	one.exec("begin; " + insert(10001, 13000) + "savepoint s; " + insert(13001, 14000) + "rollback to s; savepoint u; delete from a where id < 100")
	two.exec("begin; " + insert(20001, 23000) + "prepare transaction 'two'")
	r.streams(2)
	db.Exec("insert into a values (0, 'between')")
	one.exec("commit")
	two.exec("commit prepared 'two'")
	two.exec("begin; " + insert(30001, 33000) + "rollback")
	if units := r.sync(); len(units) != 3 {
		t.Errorf("3 transactions came as %d units", len(units))
	}
	r.ended()
	// Tables that change their shape.
	db.Exec("alter table a add column w int; insert into a values (-100, 'altered', 8)")
	db.Exec("alter type mood add value 'glad'")
	db.Exec("insert into b (m) values ('glad'); truncate p; insert into p values (1, 'again')")
	r.sync()
	r.equal()
	r.src.Confirm(r.edge.at.Position)
	until(t, "confirmation reaches the slot", func() bool { return r.slotLSN() == r.edge.at.Position.LSN })
	looked(t, r.c)
	if text := r.c.Warning(); text != "" {
		t.Errorf("warning: %s", text)
	}

	// The server is killed and comes back.
	db.Exec("insert into a values (-102, 'x', 10)")
	r.sync()
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	r.drained()
	r.close()
	if err := server.Restart(r.ctx()); err != nil {
		t.Fatal(err)
	}
	db.Pool.Reset()
	db.Exec("insert into a values (-103, 'x', 11)")
	r.open()
	r.sync()
	r.restart()
	db.Exec("delete from a where id = -103")
	r.sync()
	r.equal()

	// Column lists and row filters came with 15.
	if version < 15 {
		cfg := r.cfgWithout()
		cfg.Where = map[string]string{"public.a": "id > 0"}
		if err := mustNew(t, cfg).Install(r.ctx()); !errors.Is(err, capture.ErrVersion) || !strings.Contains(err.Error(), "source.where") {
			t.Errorf("install with a row filter: %v", err)
		}
	}
	// Slots that standbys take over came with 17.
	failover := version >= 17
	if got := db.String("select coalesce(to_jsonb(s)->>'failover', 'false') from pg_replication_slots s where slot_name = $1", r.cfg.Slot); got != strconv.FormatBool(failover) {
		t.Errorf("failover of the slot: %s", got)
	}
	findings, err := r.c.Check(r.ctx())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range findings {
		if f.Level == finding.Problem || strings.Contains(f.Text, "failover") {
			t.Errorf("check: %v", f)
		}
	}
	r.close()
	if failover {
		// One that was made without, by an older millrace or by hand.
		conn, err := r.c.connectReplication(r.ctx())
		if err != nil {
			t.Fatal(err)
		}
		alter := func(value string) {
			t.Helper()
			if _, err := conn.Exec(r.ctx(), "ALTER_REPLICATION_SLOT "+table.Quote(r.cfg.Slot)+" (FAILOVER "+value+")").ReadAll(); err != nil {
				t.Fatal(err)
			}
		}
		alter("false")
		checked(t, r.c, "warning", "failover is off")
		alter("true") // the mend that check names
		capture.Close(conn)
	}
	if err := r.c.Uninstall(r.ctx()); err != nil {
		t.Fatal(err)
	}
	if got := r.slots(); got != "0" {
		t.Errorf("slots after uninstall: %s", got)
	}
}

// Postgres 18 can be told to give slots up that nobody reads from. It also has
// generated columns that are stored nowhere, and refuses to update published
// tables with some of them.
func TestPostgres18(t *testing.T) {
	t.Parallel()
	server := pgtest.Cluster(t, pgtest.Options{Version: 18, Settings: map[string]string{"idle_replication_slot_timeout": "1s"}})
	db := pgtest.On(t, server)
	db.Exec("create table a (id int primary key, v text, w int generated always as (id * 2) virtual); insert into a values (1)")
	r := newRig(t, db, nil, "a")
	r.open()
	r.copied()
	db.Exec("insert into a values (2, 'two'); update a set v = 'one' where id = 1")
	r.sync()
	for _, s := range r.edge.at.Catalog.Schemas {
		if len(s.Columns) != 2 {
			t.Errorf("columns: %+v", s.Columns)
		}
	}
	r.equal()
	checked(t, r.c, "warning", "it is 1 s")
	for _, c := range []struct{ name, sql string }{
		{"u", "create table u (id int primary key, g int generated always as (id + 1) stored); alter table u replica identity full"},
		{"v", "create table v (id int primary key, g int generated always as (id + 1) virtual) partition by range (id); create table v1 partition of v for values from (0) to (9); alter table v1 replica identity full"},
	} {
		db.Exec(c.sql + "; insert into " + c.name + " values (1)")
		unfit := mustNew(t, Config{URL: db.URL, Stream: "unfit", Tables: []string{"public." + c.name}})
		checked(t, unfit, "problem", "column g is generated")
		err := unfit.Install(r.ctx())
		if !errors.Is(err, capture.ErrTable) {
			t.Errorf("install with table %s: %v", c.name, err)
		}
		db.Exec("update " + c.name + " set id = 2") // it goes on being possible
		_, mend, _ := strings.Cut(err.Error(), "mend: ")
		mend, _, _ = strings.Cut(mend, ",")
		db.Exec(mend)
		if err := unfit.Install(r.ctx()); err != nil {
			t.Errorf("install after %s: %v", mend, err)
		}
		db.Exec("update " + c.name + " set id = 3; drop publication millrace_unfit")
	}
	r.close()
	until(t, "slot is given up", func() bool {
		db.Exec("checkpoint")
		return db.String("select invalidation_reason from pg_replication_slots where slot_name = $1", r.cfg.Slot) == "idle_timeout"
	})
	if err := r.openFails(ErrSlotLost); !strings.Contains(err.Error(), "raise idle_replication_slot_timeout") {
		t.Errorf("error: %v", err)
	}
}

// Large transactions that had been rolled back before they were decoded, which
// Postgres 18 sees while it decodes them: it throws them away half-way and may
// send the abort of one that it has never begun to stream.
func TestAbortedBeforeDecoded(t *testing.T) {
	r := streamedRig(t, nil, tableA+"create table elsewhere (id int, v text)", "a")
	r.close()
	for _, sql := range []string{
		insert(1, 3000),
		"savepoint s; " + insert(1, 3000) + "release s; " + insert(3001, 6000),
		"savepoint s; " + insert(1, 3000) + "rollback to s; " + insert(1, 3000),
		"insert into elsewhere select i, repeat('x', 100) from generate_series(1, 3000) i; insert into a values (1)",
		"insert into elsewhere select i, repeat('x', 100) from generate_series(1, 3000) i; " + insert(1, 3000),
		"create table made (id int); insert into made select generate_series(1, 3000); " + insert(1, 3000) + "alter table a add column w int; " + strings.Replace(insert(4000, 7000), "insert into a", "insert into a (id, v)", 1),
	} {
		r.db.Exec("begin; " + sql + "; rollback")
		r.db.Exec("begin; savepoint outside; " + sql + "; rollback to outside; insert into a select least(min(id), 0) - 1 from a; commit")
	}
	r.open()
	if units := r.sync(); len(units) != 6 {
		t.Errorf("got %d units, want 6", len(units))
	}
	r.ended()
	if got := r.db.String("select count(*) from a"); got != "6" {
		t.Fatalf("rows: %s", got)
	}
}
