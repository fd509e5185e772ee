package wal

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/capture/table"
	"github.com/millrace-db/millrace/internal/finding"
	"github.com/millrace-db/millrace/internal/pgtest"
)

// equalWhere compares the rows of table a that are chosen.
func (r *rig) equalWhere(where string) {
	r.t.Helper()
	conn, err := r.c.connect(r.ctx(), nil)
	if err != nil {
		r.t.Fatal(err)
	}
	defer capture.Close(conn)
	if err := r.edge.equalTable(r.ctx(), conn, table.Name{Schema: "public", Name: "a"}, where); err != nil {
		r.t.Error(err)
	}
}

// choose goes on with other columns and rows of table a.
func (r *rig) choose(columns []string, where string) {
	r.t.Helper()
	r.kept("before columns and rows are chosen anew")
	r.close()
	r.cfg.Columns, r.cfg.Where = nil, nil
	if columns != nil {
		r.cfg.Columns = map[string][]string{"public.a": columns}
	}
	if where != "" {
		r.cfg.Where = map[string]string{"public.a": where}
	}
	r.renew()
	_ = r.openFails(ErrPublication)
	if err := r.c.Install(r.ctx()); err != nil {
		r.t.Fatal(err)
	}
	if findings, err := r.c.Check(r.ctx()); err != nil || slices.ContainsFunc(findings, func(f finding.Finding) bool { return f.Level == finding.Problem }) {
		r.t.Errorf("check after init: %v, %v", findings, err)
	}
	r.open()
	r.loadBegins()
	r.sync()
	if got := r.load(); len(got) != 1 || !strings.Contains(got[0], "chosen") && !strings.Contains(got[0], "column") {
		r.t.Errorf("after columns and rows were chosen anew, loads were begun because of %q", got)
	}
}

func TestChosenColumnsAndRows(t *testing.T) {
	db := since(t, 15)
	register(t, db)
	db.Exec(`create table a (id int, region text, v text, secret text, big text, n int, g int generated always as (n + 1) stored, primary key (region, id));
		insert into a select i, (array['eu', 'us'])[i % 2 + 1], 'v', 'secret', ` + outOfLine + `, i from generate_series(1, 20) i`)
	eu := "region = 'eu' and id > 3"
	r := newRig(t, db, func(c *Config) {
		c.Columns = map[string][]string{"public.a": {"v", "id", "region", "big"}}
		c.Where = map[string]string{"public.a": eu}
		c.Heartbeat = 20 * time.Millisecond
	}, "a")
	r.c.watchInterval = 20 * time.Millisecond
	findings, err := r.c.Check(r.ctx())
	if err != nil || len(findings) != 1 || !strings.Contains(findings[0].Text, "out of line") {
		t.Errorf("check: %v, %v", findings, err)
	}
	columns := func(want string) {
		t.Helper()
		var names []string
		for _, c := range r.edge.at.Catalog.Schemas[0].Columns {
			names = append(names, c.Name)
		}
		if got := strings.Join(names, " "); got != want {
			t.Errorf("columns are %s, want %s", got, want)
		}
	}
	r.open()
	r.copied()
	r.equalWhere(eu)
	columns("id region v big")
	db.Exec("insert into a (id, region, v, secret) values (100, 'eu', 'x', 's'), (101, 'us', 'x', 's'), (3, 'eu', 'x', 's'); update a set v = 'y', n = 7; delete from a where id in (5, 6)")
	r.sync()
	r.equalWhere(eu)
	// Rows leave what is chosen, and come in; those that come in lack what is
	// stored out of line.
	db.Exec("update a set region = 'us' where region = 'eu' and id = 7; update a set region = 'us' where region = 'eu' and id = 9")
	r.sync()
	r.equalWhere(eu)
	if got := r.load(); len(got) > 0 {
		t.Errorf("rows that leave: loads were begun because of %q", got)
	}
	db.Exec("update a set region = 'eu' where region = 'us' and id = 11")
	r.sync()
	if got := r.load(); len(got) != 1 || !strings.Contains(got[0], "column big") {
		t.Errorf("a row that comes in: loads were begun because of %q", got)
	}
	r.equalWhere(eu)
	db.Exec("alter table a add column later text default 'x'; alter table a drop column secret; update a set v = 'z'; truncate a; insert into a (id, region) values (50, 'eu'), (51, 'us')")
	r.sync()
	r.load()
	r.equalWhere(eu)
	columns("id region v big")
	r.kept("before a restart")
	r.restart()
	r.sync()
	r.equalWhere(eu)
	r.kept("after a restart")

	// Chosen anew, one after the other.
	r.choose([]string{"region", "id", "later"}, eu)
	columns("id region later")
	r.equalWhere(eu)
	r.choose(nil, "region = 'us'")
	columns("id region v big n later")
	r.equalWhere("region = 'us'")
	db.Exec("alter table a drop column g") // Postgres 18 refuses the next together with it
	db.Exec("alter table a replica identity full; insert into a (id, region, big) values (60, 'us', " + outOfLine + "), (61, 'us', 'small')")
	r.choose(nil, "n is null or n > 3")
	db.Exec("update a set n = 2 where id = 60; update a set n = 3 where id = 61")
	r.sync()
	r.equalWhere("n is null or n > 3")
	db.Exec("update a set n = 5 where id in (60, 61)")
	r.sync()
	if got := r.load(); len(got) > 0 {
		t.Errorf("a row that comes in under REPLICA IDENTITY FULL: loads were begun because of %q", got)
	}
	r.equalWhere("n is null or n > 3")
	r.choose(nil, "")
	r.equal()
	columns("id region v big n later")
}

// Rows that come in lacking values do not begin a load anew that is under way,
// which would never end where they come in all the time: it reads them by key.
func TestRowsComeInWhileLoaded(t *testing.T) {
	db := since(t, 15)
	db.Exec(`create table a (id int, region text, v text, big text, primary key (region, id)); alter table a alter big set storage external;
		insert into a select i, (array['eu', 'us'])[i % 2 + 1], repeat('v', 500), repeat('y', 3000) from generate_series(1, 120) i;
		create table b (id int primary key, v text); insert into b select i, repeat('v', 500) from generate_series(1, 100) i`)
	eu := "region = 'eu'"
	r := newRig(t, db, func(c *Config) { c.Where, c.LoadWorkers = map[string]string{"public.a": eu}, 1 }, "a", "b")
	r.c.chunks.Blocks = 4
	r.openHeld(true)
	r.sync() // the loads begin
	chunks, keys := 0, 0
	for id := 1; id < 24; id += 2 { // odd numbers are in the us
		before := r.src.Loads()[0]
		if before.Waiting {
			keys++
		}
		db.Exec(fmt.Sprintf("update a set region = 'eu' where region = 'us' and id = %d", id))
		r.sync()
		if l := r.src.Loads()[0]; l.BlocksDone < before.BlocksDone {
			t.Fatalf("the load has begun anew: %+v, and now %+v", before, l)
		}
		r.oneChunk("a")
		if r.src.Loads()[0].BlocksDone > before.BlocksDone {
			chunks++
		}
	}
	if chunks < 2 || keys < 2 {
		t.Errorf("rows came in before %d chunks of blocks and %d of keys, too few for this test", chunks, keys)
	}
	r.load()
	r.equalWhere(eu)
}

func TestUnfitChoices(t *testing.T) {
	db := since(t, 15)
	db.Exec("create table a (id int, region text, v text, g int generated always as (id + 1) stored, primary key (id)); create table f (id int primary key, v text); alter table f replica identity full")
	for _, c := range []struct {
		name    string
		columns []string
		where   string
		table   string
		want    error
		says    string
	}{
		{"no key", []string{"v"}, "", "a", capture.ErrTable, "leaves out column id"},
		{"unknown column", []string{"id", "x"}, "", "a", capture.ErrTable, "column x"},
		{"generated column", []string{"id", "g"}, "", "a", capture.ErrTable, "generated"},
		{"identity full", []string{"id"}, "", "f", capture.ErrTable, "FULL"},
		{"not of the key", nil, "region = 'eu'", "a", capture.ErrTable, "column region"},
		{"no condition", nil, "id +", "a", capture.ErrTable, "syntax error"},
		{"unknown column in the condition", nil, "x = 1", "a", capture.ErrTable, "does not exist"},
		{"volatile", nil, "id > random()", "a", capture.ErrTable, ""},
	} {
		cfg := Config{URL: db.URL, Stream: "s", Tables: []string{"public." + c.table}}
		if c.columns != nil {
			cfg.Columns = map[string][]string{"public." + c.table: c.columns}
		}
		if c.where != "" {
			cfg.Where = map[string]string{"public." + c.table: c.where}
		}
		err := mustNew(t, cfg).Install(t.Context())
		if !millrace.NeedsOperator(err) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: got %v", c.name, err)
		}
		if got := db.String("select count(*) from pg_publication"); got != "0" {
			t.Fatalf("%s: %s publications were made", c.name, got)
		}
	}
	for _, cfg := range []Config{
		{URL: db.URL, Stream: "s", Tables: []string{"public.a"}, Columns: map[string][]string{"public.b": {"id"}}},
		{URL: db.URL, Stream: "s", Tables: []string{"public.a"}, Where: map[string]string{"public.b": "true"}},
		{URL: db.URL, Stream: "s", Tables: []string{"public.a"}, Columns: map[string][]string{"public.a": {}}},
	} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%+v is taken", cfg)
		}
	}
	old := mustNew(t, Config{URL: db.URL, Stream: "s", Tables: []string{"public.a"}, Where: map[string]string{"public.a": "id > 1"}})
	if p := old.checkChoices(&serverInfo{version: 140010}); len(p) != 1 || !strings.Contains(p[0].Text, "Postgres 15") {
		t.Errorf("Postgres 14: %v", p)
	}
}

// Columns that are generated are left out, whatever the version would do with them
// by itself.
func TestGeneratedColumns(t *testing.T) {
	db := pgtest.New(t)
	register(t, db)
	db.Exec("create table a (id int primary key, v int, g int generated always as (v + 1) stored); insert into a values (1, 1)")
	r := newRig(t, db, func(c *Config) { c.Heartbeat = 20 * time.Millisecond }, "a")
	r.c.watchInterval = 20 * time.Millisecond
	r.open()
	r.copied()
	db.Exec("update a set v = 2; alter table a add column h int generated always as (v * 2) stored; insert into a values (2, 2)")
	r.sync()
	r.load() // the table was rewritten
	r.equal()
	if got := len(r.edge.at.Catalog.Schemas[0].Columns); got != 2 {
		t.Errorf("the schema has %d columns, want 2", got)
	}
	r.kept("columns that are generated")
	db.Exec("alter table a alter column h drop expression; update a set h = 9 where id = 1")
	r.loaded("a column that is generated no more", "was generated")
	r.kept("no more")
	r.close()

	newest := db.String("select current_setting('server_version_num')::int >= 180000") == "t"
	db.Exec("alter table a replica identity full")
	if err := r.c.Install(r.ctx()); newest != (err != nil) || newest && !errors.Is(err, capture.ErrTable) {
		t.Errorf("generated column under REPLICA IDENTITY FULL: %v", err)
	}
	db.Exec("alter table a replica identity default")
	if !newest {
		return
	}
	db.Exec("alter publication millrace_s set (publish_generated_columns = stored)")
	_ = r.openFails(ErrPublication)
	if err := r.c.Install(r.ctx()); err != nil {
		t.Fatal(err)
	}
	r.open()
	r.sync()
	r.equal()
}
