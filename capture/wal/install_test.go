package wal

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/internal/finding"
	"github.com/millrace-db/millrace/internal/pgtest"
)

func TestUnfitTables(t *testing.T) {
	db := pgtest.New(t)
	for _, c := range []struct{ name, sql, mend string }{
		{"nokey", "create table nokey (id int)", "ADD PRIMARY KEY"},
		{"unique_nullable", "create table unique_nullable (id int unique)", "ADD PRIMARY KEY"},
		{"candidate", "create table candidate (id int not null unique)", `REPLICA IDENTITY USING INDEX "candidate_id_key"`},
		{"later", "create table later (id int primary key deferrable)", `DROP CONSTRAINT "later_pkey", ADD PRIMARY KEY ("id")`},
		{"nothing", "create table nothing (id int primary key); alter table nothing replica identity nothing", "REPLICA IDENTITY DEFAULT"},
		{"fullnokey", "create table fullnokey (id int); alter table fullnokey replica identity full", "ADD PRIMARY KEY"},
		{"lostindex", "create table lostindex (id int not null unique); alter table lostindex replica identity using index lostindex_id_key; alter table lostindex drop constraint lostindex_id_key", "ADD PRIMARY KEY"},
		{"unlogged", "create unlogged table unlogged (id int primary key)", "SET LOGGED"},
		{"aview", "create view aview as select 1 as id", "capture the tables"},
		{"parent", "create table parent (id int primary key); create table child (primary key (id)) inherits (parent)", "partitioned"},
		{"child", "select 1", "partitioned"},
		{"jsonkey", "create table jsonkey (id interval primary key)", "interval"},
		{"regs", "create table regs (id int primary key, c regclass[])", "TYPE text"},
		{"genkey", "create table genkey (a int, id int generated always as (a) stored primary key)", "not generated"},
		{"nowhere", "select 1", "create it"},
		{"part", "create table part (id int primary key) partition by range (id); create unlogged table part1 partition of part for values from (1) to (9)", "SET LOGGED"},
		{"part2", "create table part2 (id int primary key, u int not null) partition by range (id); create table part2a partition of part2 for values from (1) to (9); create unique index part2u on part2a (u); alter table part2a replica identity using index part2u", "REPLICA IDENTITY DEFAULT"},
		{`Odd"Name`, `create table "Odd""Name" (id int)`, `"public"."Odd""Name"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			db.Exec(c.sql)
			captured := mustNew(t, Config{URL: db.URL, Stream: "s", Slot: "unfit", Tables: []string{"public." + c.name}})
			findings, err := captured.Check(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			found := false
			for _, f := range findings {
				found = found || f.Level == finding.Problem && strings.Contains(f.Mend+f.Text, c.mend)
			}
			if !found {
				t.Errorf("check: got %v, want a problem whose mend has %q", findings, c.mend)
			}
			if err := captured.Install(t.Context()); !errors.Is(err, capture.ErrTable) && !errors.Is(err, capture.ErrTables) {
				t.Errorf("install: %v", err)
			}
			if got := db.String("select count(*) from pg_publication"); got != "0" {
				t.Errorf("publications after a refused install: %s", got)
			}
		})
	}
}

// The mends do what they say.
func TestMendsWork(t *testing.T) {
	db := pgtest.New(t)
	db.Exec("create table c (id int not null unique); create table d (id int primary key deferrable)")
	for _, name := range []string{"c", "d"} {
		captured := mustNew(t, Config{URL: db.URL, Stream: name, Tables: []string{"public." + name}})
		findings, err := captured.Check(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		db.Exec(findings[0].Mend)
		if err := captured.Install(t.Context()); err != nil {
			t.Errorf("install after %s: %v", findings[0].Mend, err)
		}
		db.Exec("delete from " + name) // publishing it did not break its clients
	}
}

func TestPartitionOfCapturedTable(t *testing.T) {
	db := pgtest.New(t)
	db.Exec("create table p (id int primary key) partition by range (id); create table p1 partition of p for values from (1) to (9)")
	both := mustNew(t, Config{URL: db.URL, Stream: "s", Tables: []string{"public.p", "public.p1"}})
	if err := both.Install(t.Context()); !errors.Is(err, capture.ErrTable) || !strings.Contains(err.Error(), "partition of public.p") {
		t.Errorf("install of root and leaf: %v", err)
	}
	leaf := newRig(t, db, nil, "p1")
	leaf.open()
	leaf.copied()
	db.Exec("insert into p values (3)")
	leaf.sync()
	leaf.equal()
}

func TestInstallAltersAndUninstalls(t *testing.T) {
	db := pgtest.New(t)
	db.Exec("create table a (id int primary key); create table b (id int primary key); create table c (id int primary key)")
	r := newRig(t, db, nil, "a", "c")
	members := func() string {
		return db.String("select string_agg(tablename, ',' order by tablename) from pg_publication_tables where pubname = $1", r.c.cfg.Publication)
	}
	if err := r.c.Install(r.ctx()); err != nil {
		t.Fatalf("install again: %v", err)
	}
	db.Exec("alter publication " + r.c.cfg.Publication + " set (publish = 'insert')")
	findings, err := r.c.Check(r.ctx())
	if err != nil || len(findings) != 1 || !strings.Contains(findings[0].String(), "operations") {
		t.Errorf("check: %v, %v", findings, err)
	}

	// A writer is at work: the table is added after it has ended.
	tx, err := db.Pool.Begin(r.ctx())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(r.ctx(), "insert into b values (1)"); err != nil {
		t.Fatal(err)
	}
	cfg := r.cfg
	cfg.Tables = []string{"public.a", "public.b"}
	r.c = mustNew(t, cfg)
	done := make(chan error, 1)
	go func() { done <- r.c.Install(r.ctx()) }()
	until(t, "install waits for the lock", func() bool {
		return db.String("select count(*) from pg_locks where relation = 'b'::regclass and mode = 'ShareRowExclusiveLock' and not granted") == "1"
	})
	select {
	case err := <-done:
		t.Fatalf("install beside an open writer: %v", err)
	default:
	}
	if err := tx.Commit(r.ctx()); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(limit):
		t.Fatal("install does not end")
	}
	if got := members(); got != "a,b" {
		t.Errorf("tables of the publication: %s", got)
	}
	if findings, err := r.c.Check(r.ctx()); err != nil || len(findings) != 0 {
		t.Errorf("check: %v, %v", findings, err)
	}
	r.open()
	r.copied()
	// Uninstall ends the stream that is still open.
	if err := r.c.Uninstall(r.ctx()); err != nil {
		t.Fatal(err)
	}
	if got := db.String("select count(*) from pg_publication") + db.String("select count(*) from pg_replication_slots where slot_name = $1", r.cfg.Slot); got != "00" {
		t.Errorf("publication and slot after uninstall: %s", got)
	}
	if err := r.c.Uninstall(r.ctx()); err != nil {
		t.Errorf("uninstall again: %v", err)
	}
}

func TestUnfitPublications(t *testing.T) {
	db := pgtest.New(t)
	db.Exec("create table a (id int primary key, v int)")
	c := mustNew(t, Config{URL: db.URL, Stream: "s", Slot: "unfit2", Tables: []string{"public.a"}})
	for _, sql := range []string{
		"create publication millrace_s for all tables",
		"create publication millrace_s for tables in schema public",
	} {
		if db.String("select current_setting('server_version_num')::int < 150000") == "t" && !strings.Contains(sql, "all tables") {
			continue
		}
		db.Exec(sql)
		if err := c.Install(t.Context()); !errors.Is(err, ErrPublication) || !strings.Contains(err.Error(), "mend:") {
			t.Errorf("%s: install: %v", sql, err)
		}
		if findings, err := c.Check(t.Context()); err != nil || finding.Error(findings) == nil {
			t.Errorf("%s: check: %v, %v", sql, findings, err)
		}
		db.Exec("drop publication millrace_s")
	}
}

func TestPrivileges(t *testing.T) {
	db := pgtest.New(t)
	role := "reader_" + db.Name[:strings.IndexByte(db.Name, '_')]
	db.Exec("create schema inner_s; create table inner_s.a (id int primary key); create role " + role + " login replication")
	t.Cleanup(func() { db.Exec("drop owned by " + role + "; drop role " + role) })
	c := mustNew(t, Config{URL: strings.Replace(db.URL, "postgres@", role+"@", 1), Stream: "s", Slot: "priv", Tables: []string{"inner_s.a"}})
	findings, err := c.Check(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	text := ""
	for _, f := range findings {
		text += f.String() + "\n"
	}
	if !strings.Contains(text, "GRANT USAGE") || !strings.Contains(text, "GRANT SELECT") {
		t.Errorf("check: %s", text)
	}
	db.Exec("grant usage on schema inner_s to " + role + "; grant select on inner_s.a to " + role + "; alter table inner_s.a enable row level security")
	if err := c.Install(t.Context()); !errors.Is(err, ErrPublication) || !strings.Contains(err.Error(), "owns the tables") {
		t.Errorf("install without ownership: %v", err)
	}
	// Rows that a policy hides are an error, not missing rows.
	db.Exec("create publication millrace_s for table inner_s.a with (publish_via_partition_root = true); insert into inner_s.a values (1)")
	r := &rig{t: t, db: db, c: c, cfg: c.cfg, edge: newEdge()}
	t.Cleanup(r.close)
	r.open()
	_ = r.fails(capture.ErrTable)
}

func TestConfig(t *testing.T) {
	good := Config{URL: "postgres://h/d", Stream: "s", Tables: []string{"public.a"}}
	if c := mustNew(t, good); c.cfg.Slot != "millrace_s" || c.cfg.MemoryBudget != DefaultMemoryBudget || c.cfg.Heartbeat != time.Second {
		t.Errorf("defaults: %+v", c.cfg)
	}
	for name, change := range map[string]func(*Config){
		"no stream":     func(c *Config) { c.Stream = "" },
		"no URL":        func(c *Config) { c.URL = "" },
		"bad slot":      func(c *Config) { c.Slot = "Bad-Slot" },
		"no tables":     func(c *Config) { c.Tables = nil },
		"bare name":     func(c *Config) { c.Tables = []string{"accounts"} },
		"twice":         func(c *Config) { c.Tables = []string{"public.a", "public.a"} },
		"own schema":    func(c *Config) { c.Tables = []string{"millrace.ledger"} },
		"catalog":       func(c *Config) { c.Tables = []string{"pg_catalog.pg_class"} },
		"small budget":  func(c *Config) { c.MemoryBudget = 10 },
		"bad heartbeat": func(c *Config) { c.Heartbeat = -1 },
		"bad silence":   func(c *Config) { c.Silence = time.Millisecond },
	} {
		cfg := good
		change(&cfg)
		if _, err := New(cfg); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
