package wal

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/internal/control"
	"github.com/millrace-db/millrace/internal/finding"
	"github.com/millrace-db/millrace/internal/pgtest"
)

func TestMessageAbout(t *testing.T) {
	schemas := map[millrace.TableID]*millrace.Schema{
		1: {Table: 1, Types: []millrace.TypeDesc{{OID: 20}, {OID: 5000, Kind: millrace.TypeEnum, Name: "mood"}, {OID: 6000, Kind: millrace.TypeDomain, Name: "d"}}},
		2: {Table: 2, Types: []millrace.TypeDesc{{OID: 20}}},
	}
	for _, c := range []struct {
		name string
		m    ddlMessage
		want map[millrace.TableID]cause
	}{
		{"another stream's", ddlMessage{Tag: "X", Tables: []millrace.TableID{9}, Types: []uint32{6}, Rewritten: []millrace.TableID{8}}, map[millrace.TableID]cause{}},
		{"a table", ddlMessage{Tag: "X", Tables: []millrace.TableID{2, 9}}, map[millrace.TableID]cause{2: {}}},
		{"a type", ddlMessage{Tag: "X", Types: []uint32{5000}}, map[millrace.TableID]cause{1: {ahead: "type mood was altered"}}},
		{"a domain", ddlMessage{Tag: "X", Types: []uint32{6000}}, map[millrace.TableID]cause{1: {}}},
		{"a type and a domain", ddlMessage{Tag: "X", Types: []uint32{5000, 6000}}, map[millrace.TableID]cause{1: {ahead: "type mood was altered"}}},
		{"rewritten", ddlMessage{Tag: "X", Tables: []millrace.TableID{2}, Rewritten: []millrace.TableID{2}}, map[millrace.TableID]cause{2: {text: "it was rewritten (X)"}}},
		{"a partition", ddlMessage{Tag: "X", Partitions: []millrace.TableID{1}, Rewritten: []millrace.TableID{1}, Tables: []millrace.TableID{2}}, map[millrace.TableID]cause{1: {text: "a partition came or went (X)", gone: true}, 2: {}}},
		{"doubt", ddlMessage{Tag: "X", Doubt: true}, map[millrace.TableID]cause{1: {text: "what X did to it is not known", gone: true}, 2: {text: "what X did to it is not known", gone: true}}},
		{"asked for", ddlMessage{Stream: "s", Load: []millrace.TableID{1, 9}, Reason: "be\ncause"}, map[millrace.TableID]cause{1: {text: "because", gone: true}}},
		{"asked for without a reason", ddlMessage{Stream: "s", Load: []millrace.TableID{1}, Reason: "\n"}, map[millrace.TableID]cause{1: {text: "somebody asked for it", gone: true}}},
		{"asked for by another", ddlMessage{Stream: "t", Load: []millrace.TableID{1}, Reason: "because"}, map[millrace.TableID]cause{}},
		{"endless", ddlMessage{Tag: strings.Repeat("ä", 300), Rewritten: []millrace.TableID{1}}, map[millrace.TableID]cause{1: {text: "it was rewritten (" + strings.Repeat("ä", 100) + ")"}}},
	} {
		if got := c.m.altered("s", schemas); !maps.Equal(got, c.want) {
			t.Errorf("%s: got %v, want %v", c.name, got, c.want)
		}
	}
}

func TestMarksDiffer(t *testing.T) {
	plain := func(published string) *mark { return &mark{Published: published} }
	root := func(triggers string, leaves ...string) *mark {
		m := &mark{Published: "p", Triggers: triggers, Leaves: map[string]leafMark{}}
		for i, since := range leaves {
			m.Leaves[fmt.Sprint(i)] = leafMark{Since: since, File: 7}
		}
		return m
	}
	truncated := root("e", "a")
	truncated.Leaves["0"] = leafMark{Since: "a", File: 8}
	noted := func(m *mark, file uint32) *mark {
		m.noted = make(map[string]uint32)
		for oid := range m.Leaves {
			m.noted[oid] = file
		}
		return m
	}
	for _, c := range []struct {
		name      string
		seen, now *mark
		want      string
	}{
		{"plain, first seen", nil, plain("p"), "not known"},
		{"plain, the same", plain("p"), plain("p"), ""},
		{"a column is generated no more", &mark{Published: "p", Generated: []int16{2, 3}}, &mark{Published: "p", Generated: []int16{2}, Columns: []int16{1, 2, 3}}, "number 3 was generated"},
		{"a generated column is dropped", &mark{Published: "p", Generated: []int16{2, 3}}, &mark{Published: "p", Generated: []int16{2}, Columns: []int16{1, 2}}, ""},
		{"a generated column is added", plain("p"), &mark{Published: "p", Generated: []int16{2}, Columns: []int16{1, 2}}, ""},
		{"rewritten", &mark{Columns: []int16{1}, File: 7}, &mark{Columns: []int16{1}, File: 8}, ""},
		{"a column came", &mark{Columns: []int16{1}, File: 7}, &mark{Columns: []int16{1, 3}, File: 7, filled: []int16{3}}, ""},
		{"a column came, rewritten", &mark{Columns: []int16{1}, File: 7}, &mark{Columns: []int16{1, 3}, File: 8}, "number 3 came"},
		{"a column came, rewritten, told of", &mark{Columns: []int16{1}, File: 7, Triggers: "e"}, &mark{Columns: []int16{1, 3}, File: 8, Triggers: "e"}, ""},
		{"a generated column came, rewritten", &mark{Columns: []int16{1}, File: 7}, &mark{Columns: []int16{1, 3}, Generated: []int16{3}, File: 8}, ""},
		{"rewritten, marked by an older version", &mark{}, &mark{Columns: []int16{1}, File: 8}, ""},
		{"taken out and put back", plain("p"), plain("q"), "publication"},
		{"root, first seen", nil, root("e", "a"), "not known"},
		{"root without partitions, first seen", nil, root(""), "not known"},
		{"the same", root("", "a", "b"), root("", "a", "b"), ""},
		{"came", root("", "a"), root("", "a", "b"), "a partition came"},
		{"gone", root("", "a", "b"), root("", "a"), "is gone"},
		{"detached and attached", root("", "a"), root("", "c"), "a partition came"},
		{"truncated", root("e", "a"), truncated, "truncated"},
		{"came, and was told", root("e", "a"), noted(root("e", "a", "b"), 7), ""},
		{"came and was truncated, and only the first was told", root("e", "a"), noted(root("e", "a", "b"), 6), "truncated"},
		{"came, and was not noted", root("e", "a"), root("e", "a", "b"), "a partition came"},
		{"detached and attached, and was told", root("e", "a"), noted(root("e", "c"), 7), ""},
		{"detached, truncated and attached, and was told", root("e", "a"), noted(root("e", "c"), 7), ""},
		{"attached, then truncated, and only the first was told", root("e", "a"), noted(root("e", "c"), 5), "truncated"},
		{"gone, and was told", root("e", "a", "b"), root("e", "a"), ""},
		{"came while triggers were made again", root("d", "a"), noted(root("e", "a", "b"), 7), "came"},
		{"came after the triggers went", root("e", "a"), root("", "a", "b"), "came"},
		{"triggers alone", root("", "a"), root("e", "a"), ""},
	} {
		if got := c.now.differs(c.seen); (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
	// A column that came with values is not kept, so that a later rewrite tells of it.
	seen, now := &mark{Columns: []int16{1}, File: 7}, &mark{Columns: []int16{1, 3}, File: 7, filled: []int16{3}}
	if now.doubt(seen); !now.equal(seen) {
		t.Errorf("a column came with values: %+v is kept, want %+v", *now, *seen)
	}
}

// register makes the control schema and enters the rig's stream, as init does
// before and after Install.
func register(t testing.TB, db *pgtest.DB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	conn, err := pgx.Connect(ctx, db.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer capture.Close(conn)
	if err := control.Migrate(ctx, conn); err != nil {
		t.Fatal(err)
	}
	_, err = control.CreateStream(ctx, conn, control.Stream{Name: "s", Capture: "wal", Topic: "s", TopicID: "x", Publication: "millrace_s", Slot: "s"})
	if err != nil {
		t.Fatal(err)
	}
}

// With event triggers, tables that nobody writes to are seen to as well, and what
// no change can tell of.
func TestEventTriggers(t *testing.T) {
	db := pgtest.New(t)
	register(t, db)
	db.Exec(`create type e as enum ('a', 'b'); create type p as (x int, y text); create domain d as e;
		create table a (id int primary key, v text, n int, e e, p p, d d);
		create table idle (id int primary key, ee e[], dd d, q numeric(10, 2));
		create table other (id int primary key, v text, p p);
		insert into a select i, 'v', i, 'a', row(i, 'y')::p, 'b' from generate_series(1, 3) i; insert into idle values (1, '{a,b}', 'a', 1.5)`)
	r := newRig(t, db, func(c *Config) { c.Heartbeat = 20 * time.Millisecond }, "a", "idle")
	r.c.watchInterval = 20 * time.Millisecond
	r.open()
	r.copied()
	r.sync()
	// alter runs DDL and compares the units that come of it, and the reasons.
	alter := func(sql, kinds string, reasons ...string) {
		t.Helper()
		db.Exec(sql)
		var got []string
		for _, u := range r.sync() {
			if u.kinds() != "heartbeat" {
				got = append(got, u.kinds())
			}
		}
		if got := strings.Join(got, "; "); got != kinds {
			t.Errorf("%s: got %s, want %s", sql, got, kinds)
		}
		asked := r.load()
		slices.Sort(asked)
		if !slices.EqualFunc(asked, reasons, func(a, b string) bool { return strings.HasPrefix(a, b) }) {
			t.Errorf("%s: loads were begun because of %q, want %q", sql, asked, reasons)
		}
		r.equal()
	}
	alter("alter type e rename value 'a' to 'z'", "schema load_begin schema load_begin", "a: a label of enum e was renamed", "idle: a label of enum e was renamed")
	alter("alter type e add value 'c'", "schema schema")
	alter("begin; alter type e add value 'd'; alter type e add value 'f'; commit", "schema schema")
	alter("insert into a values (9); delete from a where id = 9", "put delete")
	alter("alter type e add value if not exists 'f'; alter type e owner to current_user; alter domain d set default 'b'; alter domain d drop default", "")
	alter("alter type p add attribute z int cascade", "schema load_begin", "a: type p was altered")
	alter("alter type p rename attribute x to xx cascade", "schema load_begin", "a: type p was altered")
	alter("alter table idle alter column q type numeric(12, 4)", "schema load_begin", "idle: column q has another type")
	alter("alter table idle alter column q type numeric(12, 4) using q * 2", "load_begin", "idle: it was rewritten (ALTER TABLE)")
	alter("alter table idle add column w float default random()", "schema load_begin", "idle: column w came with a value")
	alter("alter table idle add column g float default 1; alter table idle alter column g drop default", "schema load_begin", "idle: column g came with a value")
	alter("alter table idle drop column w", "schema load_begin", "idle: column w was dropped")
	alter("alter table idle rename column q to r", "schema load_begin", "idle: column q was renamed to r")
	alter("alter table idle add column nullable text", "schema")
	alter("alter table idle rename to idle2; alter table idle2 rename to idle", "")
	// The key is gone in between.
	alter("alter table idle drop constraint idle_pkey; alter table idle add primary key (id)", "")
	// A command of the transaction that changes rows too: one load.
	alter("begin; insert into a values (10); alter table a alter column n type bigint; insert into a values (11); update a set n = 1; commit",
		"put schema load_begin put put put put put put", "a: column n has another type")
	// Rolled back, of another table, of none: nothing.
	alter("begin; alter table a drop column v; rollback; alter table other alter column v type int using 1; create table more (id int); drop table more; alter table other drop column p;"+
		"create schema sch create table t (id int); drop schema sch cascade; create temp table tt (id int); alter table a set (fillfactor = 90); create index on a (n); truncate other", "")
	alter("vacuum full a", "")
	// A role of no rights, and one that silences triggers.
	db.Exec("create role nobody_" + db.Name + "; grant create on schema public to nobody_" + db.Name)
	alter("set role nobody_"+db.Name+"; create table mine (id int primary key); alter table mine add column v int; drop table mine; reset role", "")
	alter("set session_replication_role = replica; alter table idle add column silent int default 1; reset session_replication_role", "schema load_begin", "idle: column silent came")
	db.Exec("drop owned by nobody_" + db.Name + "; drop role nobody_" + db.Name)
	// The trigger fails: the command does not, and all tables are loaded.
	db.Exec("alter table millrace.stream rename column publication to gone")
	r.sync()
	r.load()
	alter("alter table other add column x int", "load_begin load_begin", "a: what ALTER TABLE did to it is not known", "idle: what ALTER TABLE did")
	db.Exec("alter table millrace.stream rename column gone to publication")
	r.sync()
	r.load()
	r.kept("before a restart")
	r.restart()
	r.sync()
	if got := r.load(); len(got) > 0 {
		t.Errorf("after a restart, loads were begun because of %q", got)
	}
	r.equal()

	// With the last stream all of it goes.
	r.close()
	conn, err := pgx.Connect(r.ctx(), db.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer capture.Close(conn)
	if dropped, err := control.DropStream(r.ctx(), conn, "s"); err != nil || !dropped {
		t.Fatalf("drop stream: %v, %v", dropped, err)
	}
	if got := db.String("select count(*) from pg_event_trigger"); got != "0" {
		t.Errorf("%s event triggers are left", got)
	}
	db.Exec("alter table a add column y int")
}

// Without the right to make event triggers, init goes on and check warns.
func TestNoEventTriggers(t *testing.T) {
	db := pgtest.New(t)
	register(t, db)
	db.Exec("create table a (id int primary key)")
	role := "plain_" + db.Name
	db.Exec("create role " + role + " login replication password 'x'; grant create on database " + db.Name + " to " + role + "; alter table a owner to " + role +
		"; grant usage, create on schema millrace to " + role + "; alter table millrace.leaf owner to " + role)
	t.Cleanup(func() { db.Exec("drop owned by " + role + " cascade; drop role " + role) })
	r := newRig(t, db, func(c *Config) { c.URL = strings.Replace(db.URL, "postgres://postgres@", "postgres://"+role+":x@", 1) }, "a")
	warned := func(when string, want bool) {
		t.Helper()
		findings, err := r.c.Check(r.ctx())
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(findings, func(f finding.Finding) bool { return f.Subject == "event triggers" })
		if (i >= 0) != want {
			t.Errorf("%s: check says %v", when, findings)
		} else if want && (!strings.Contains(findings[i].Text, "every few seconds") || !strings.Contains(findings[i].Mend, "superuser")) {
			t.Errorf("%s: check says %v", when, findings[i])
		}
	}
	warned("after init as another role", true)
	if got := db.String("select count(*) from pg_event_trigger"); got != "0" {
		t.Errorf("%s event triggers were made", got)
	}
	r.c = mustNew(t, Config{URL: db.URL, Stream: "s", Slot: r.cfg.Slot, Tables: r.cfg.Tables, SpoolDir: t.TempDir(), RetainLimit: 1 << 40})
	if err := r.c.Install(r.ctx()); err != nil {
		t.Fatal(err)
	}
	warned("after init as a superuser", false)
	db.Exec("alter event trigger millrace_ddl_drop disable")
	warned("with a trigger that is turned off", true)
	if err := r.c.Install(r.ctx()); err != nil {
		t.Fatal(err)
	}
	warned("after init once more", false)
}

const partitionedTables = `create table p (id int, region text, v text, primary key (region, id)) partition by list (region);
	create table p_eu partition of p for values in ('eu');
	create table p_us partition of p for values in ('us');
	create table p_rest partition of p default partition by range (id);
	create table p_low partition of p_rest for values from (minvalue) to (100);
	create table p_high partition of p_rest for values from (100) to (maxvalue);
	insert into p select i, (array['eu', 'us', 'asia'])[i % 3 + 1], 'v' || i from generate_series(1, 300) i`

// loaded takes units until the table was asked to be loaded, and ends the load.
func (r *rig) loaded(what, want string) {
	r.t.Helper()
	r.loadBegins()
	r.sync()
	if got := r.load(); len(got) != 1 || !strings.Contains(got[0], want) {
		r.t.Errorf("%s: loads were begun because of %q, want one because of %q", what, got, want)
	}
	r.equal()
}

// kept publishes what was taken, and waits until the marks are kept as they are
// by now.
func (r *rig) kept(what string) {
	r.t.Helper()
	conn, err := r.c.connect(r.ctx(), nil)
	if err != nil {
		r.t.Fatal(err)
	}
	defer capture.Close(conn)
	var ids []millrace.TableID
	for _, s := range r.edge.at.Catalog.Schemas {
		ids = append(ids, s.Table)
	}
	now, err := r.c.marks(r.ctx(), conn, ids)
	if err != nil {
		r.t.Fatal(err)
	}
	until(r.t, what+": the marks are kept", func() bool {
		r.sync()
		r.src.Confirm(r.edge.at.Position)
		f := r.src.newFollower(nil)
		if err := f.read(r.ctx(), conn); err != nil {
			r.t.Fatal(err)
		}
		return maps.EqualFunc(now, f.known, func(a, b *mark) bool { return a.equal(b) })
	})
	if got := r.load(); len(got) > 0 {
		r.t.Errorf("%s: loads were begun because of %q", what, got)
	}
}

func TestPartitionsByTriggers(t *testing.T) {
	db := pgtest.New(t)
	register(t, db)
	db.Exec(partitionedTables)
	r := newRig(t, db, func(c *Config) { c.Heartbeat = 20 * time.Millisecond }, "p")
	r.c.watchInterval = 20 * time.Millisecond
	r.open()
	r.copied()
	none := func(what, sql string) {
		t.Helper()
		db.Exec(sql)
		r.sync()
		if got := r.load(); len(got) > 0 {
			t.Errorf("%s: loads were begun because of %q", what, got)
		}
		r.equal()
	}
	all := func(what, sql, want string) {
		t.Helper()
		db.Exec(sql)
		r.loaded(what, want)
	}
	none("a new partition", "create table p_af partition of p for values in ('af'); insert into p values (1, 'af', 'x')")
	none("an empty table is attached", "create table p_oc (like p including all); alter table p attach partition p_oc for values in ('oc'); insert into p values (1, 'oc', 'x')")
	none("a column", "alter table p add column w int; update p set w = 1 where id = 5")
	all("a table with rows is attached", "create table p_sa (like p including all); insert into p_sa values (1, 'sa', 'x'); alter table p attach partition p_sa for values in ('sa')", "came or went (ALTER TABLE)")
	all("one is filled in the transaction", "begin; create table p_na (like p including all); insert into p_na values (1, 'na', 'x'); alter table p attach partition p_na for values in ('na'); update p set v = 'y' where region = 'na'; commit", "came or went (ALTER TABLE)")
	all("detached", "alter table p detach partition p_sa", "came or went (ALTER TABLE)")
	none("two new ones", "create table p_d1 partition of p for values in ('d1'); create table p_d2 partition of p for values in ('d2'); insert into p values (1, 'd1', 'x'), (1, 'd2', 'x')")
	// Both are detached, and the second is written to between: what was put since the
	// first load was begun has gone, too.
	db.Exec("begin; alter table p detach partition p_d1; insert into p values (2, 'd2', 'x'); alter table p detach partition p_d2; commit")
	r.loadBegins()
	r.sync()
	if got := r.load(); len(got) != 2 {
		t.Errorf("both are detached: loads were begun because of %q, want one for each", got)
	}
	r.equal()
	none("an empty one is detached", "delete from p_oc; truncate p_oc; alter table p detach partition p_oc")
	all("dropped", "drop table p_us", "came or went (DROP TABLE)")
	all("one below another is dropped", "drop table p_low", "came or went (DROP TABLE)")
	all("truncated", "truncate p_eu", "was truncated or rewritten")
	all("a new partition is truncated at once", "create table p_br partition of p for values in ('br'); insert into p values (1, 'br', 'x'); commit; truncate p_br", "was truncated or rewritten")
	// The comparison cannot tell a rewrite from TRUNCATE, and asks a second time.
	db.Exec("alter table p alter column v type varchar using 'rewritten'")
	for asked := []string(nil); len(asked) < 2; asked = append(asked, r.load()...) {
		r.loadBegins()
		r.sync()
	}
	r.equal()
	// What TRUNCATE of the root has done to its partitions is seen by comparison
	// all the same.
	all("the root is truncated", "insert into p values (7, 'eu', 'x'); truncate p", "was truncated or rewritten")
}

// unseen reports whether the server is one on which partitions cannot be followed
// without event triggers; TestAttachedAfterItWasWritten wants that to be refused.
func unseen(t *testing.T, db *pgtest.DB) bool {
	t.Helper()
	return db.String("select current_setting('server_version_num')::int < 150000") == "t"
}

// Without event triggers partitions are compared, over restarts too.
func TestPartitionsByComparison(t *testing.T) {
	db := pgtest.New(t)
	register(t, db)
	if unseen(t, db) {
		return
	}
	db.Exec(partitionedTables + "; create table plain (id int primary key)")
	r := newRig(t, db, func(c *Config) { c.Heartbeat = 20 * time.Millisecond }, "p", "plain")
	db.Exec("drop event trigger millrace_ddl_end; drop event trigger millrace_ddl_drop; drop event trigger millrace_ddl_rewrite")
	r.c.watchInterval = 20 * time.Millisecond
	r.open()
	r.copied()
	r.kept("first copy")
	r.equal()
	r.restart()
	r.kept("restart")
	db.Exec("insert into p values (1000, 'eu', 'x'); update p set v = 'y' where id < 10; insert into plain values (1); truncate plain")
	db.Exec("vacuum")
	db.Exec("vacuum full plain")
	r.sync()
	r.equal()
	r.kept("nothing")

	// Behind the rewrite nothing tells that the column came with a value.
	db.Exec("insert into plain values (2); alter table plain add column c int default 5; alter table plain alter column c drop default")
	db.Exec("vacuum full plain")
	r.loaded("a column came with a value", "column number 2 came, and the table was rewritten")
	db.Exec("alter table plain add column d int")
	r.sync()
	r.kept("a column came without")

	db.Exec("create table p_sa (like p including all); insert into p_sa values (1, 'sa', 'x'); alter table p attach partition p_sa for values in ('sa')")
	r.loaded("attached", "a partition came")
	db.Exec("truncate p_eu")
	r.loaded("truncated", "was truncated")
	// While nobody looks. The same partition, with other rows, is another one.
	r.kept("before")
	r.close()
	db.Exec("alter table p detach partition p_sa; insert into p_sa values (2, 'sa', 'y'); alter table p attach partition p_sa for values in ('sa')")
	r.open()
	r.loaded("detached and attached", "a partition came")
	// A begin that was not published does not count.
	r.close()
	r.open()
	r.loaded("detached and attached, not confirmed", "a partition came")
	r.kept("after")
	r.close()
	db.Exec("drop table p_sa")
	r.open()
	r.loaded("dropped", "is gone")
	r.kept("dropped")

	// Out of the publication and back in, while nobody looks.
	r.close()
	db.Exec("alter publication millrace_s drop table plain; insert into plain values (77); alter publication millrace_s add table plain")
	r.open()
	r.loaded("taken out and put back", "taken out of the publication")
	r.kept("at the end")
	r.restart()
	r.kept("at the very end")
	r.equal()
}

// Without event triggers, the first change of a partition that nobody has looked at
// begins the load: it may be of a row that was never sent.
func TestPartitionIsMet(t *testing.T) {
	db := pgtest.New(t)
	register(t, db)
	if unseen(t, db) {
		return
	}
	db.Exec(partitionedTables)
	r := newRig(t, db, func(c *Config) { c.Heartbeat = 20 * time.Millisecond }, "p")
	db.Exec("drop event trigger millrace_ddl_end; drop event trigger millrace_ddl_drop; drop event trigger millrace_ddl_rewrite")
	r.c.watchInterval = 20 * time.Millisecond
	r.open()
	r.copied()
	r.kept("first copy")
	r.close()
	r.c.watchInterval, r.c.cfg.Heartbeat = time.Hour, time.Hour
	r.open()
	r.sync()
	db.Exec("insert into p values (1, 'eu', 'x') on conflict do nothing; update p set v = 'y' where id < 10")
	r.sync()
	if got := r.load(); len(got) > 0 {
		t.Errorf("partitions that are known: loads were begun because of %q", got)
	}
	db.Exec("create table p_sa (like p including all); insert into p_sa select i, 'sa', " + outOfLine + " from generate_series(1, 9) i; alter table p attach partition p_sa for values in ('sa')")
	db.Exec("delete from p where region = 'sa' and id = 1; update p set id = 10 where region = 'sa' and id = 2")
	units := r.sync()
	if len(units) != 1 || !strings.HasPrefix(units[0].kinds(), "load_begin delete") {
		t.Errorf("changes of rows that were never sent: %d units, the first %s", len(units), units[0].kinds())
	}
	r.load()
	r.equal()
}

// A partition goes after some of its rows were loaded: what brought them must not
// end with them.
func TestPartitionGoesDuringLoad(t *testing.T) {
	db := pgtest.New(t)
	register(t, db)
	db.Exec(`create table p (id int, region text, v text, primary key (region, id)) partition by list (region);
		create table p_a partition of p for values in ('a'); create table p_b partition of p for values in ('b');
		insert into p select i, (array['a', 'b'])[i % 2 + 1], repeat('v', 100) from generate_series(1, 2000) i`)
	r := newRig(t, db, nil, "p")
	r.c.chunks.Blocks = 4
	r.open()
	r.copied()
	r.sync()
	if err := r.src.RequestLoad(r.ctx(), "public.p", "test"); err != nil {
		t.Fatal(err)
	}
	r.sync()
	r.src.PauseLoads(false)
	for a := r.next(); !a.has(millrace.KindPut); {
		a = r.next()
	}
	r.src.PauseLoads(true)
	db.Exec("alter table p detach partition p_a")
	r.sync()
	if got := r.load(); len(got) != 2 || !strings.Contains(got[1], "came or went") {
		t.Errorf("loads were begun because of %q", got)
	}
	r.equal()
}

// A table that has been written to becomes a partition. What is changed in it from
// then on has to come, from old servers too.
func TestAttachedAfterItWasWritten(t *testing.T) {
	for _, version := range []int{14, 0} {
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			var db *pgtest.DB
			if version == 0 {
				db = pgtest.New(t)
			} else {
				db = pgtest.On(t, pgtest.Cluster(t, pgtest.Options{Version: version}))
			}
			register(t, db)
			db.Exec(partitionedTables)
			r := newRig(t, db, nil, "p")
			r.open()
			r.copied()
			db.Exec("create table p_sa (like p including all)")
			db.Exec("insert into p_sa select i, 'sa', 'v' from generate_series(1, 9) i")
			db.Exec("create table p_oc (like p including all)")
			db.Exec("insert into p_oc values (1, 'oc', 'v')")
			db.Exec("truncate p_oc; update p set v = 'y' where id < 10")
			r.sync()
			db.Exec("alter table p attach partition p_sa for values in ('sa')")
			db.Exec("alter table p attach partition p_oc for values in ('oc')")
			r.sync()
			r.load()
			r.equal()
			db.Exec("insert into p values (100, 'sa', 'x'), (7, 'oc', 'x'); delete from p where region = 'sa' and id = 1; update p set v = 'y' where region = 'sa' and id = 2")
			r.sync()
			r.equal()
			db.Exec("alter table p detach partition p_sa")
			r.sync()
			r.load()
			db.Exec("insert into p_sa select i, 'sa', 'v' from generate_series(1000, 1009) i; delete from p_sa where id = 5; update p set v = 'z' where id < 10")
			r.sync()
			r.equal()
			if got := db.String("select count(*) from pg_publication"); got != "1" {
				t.Errorf("there are %s publications", got)
			}

			// Without event triggers nothing could be done about it.
			r.close()
			db.Exec("drop event trigger millrace_ddl_end")
			findings, err := r.c.Check(r.ctx())
			if err != nil {
				t.Fatal(err)
			}
			refused := slices.ContainsFunc(findings, func(f finding.Finding) bool {
				return f.Level == finding.Problem && strings.Contains(f.Text, "Postgres 14")
			})
			if old := db.String("select current_setting('server_version_num')::int < 150000") == "t"; refused != old {
				t.Errorf("check without event triggers: %v", findings)
			}
		})
	}
}
