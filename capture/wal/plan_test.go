package wal

import (
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/capture/table"
	"github.com/millrace-db/millrace/internal/pgtest"
)

func TestMakePlan(t *testing.T) {
	of := func(id millrace.TableID) *table.Info { return &table.Info{ID: id} }
	catalog := func(ids ...millrace.TableID) *millrace.Catalog {
		c := new(millrace.Catalog)
		for _, id := range ids {
			c.Schemas = append(c.Schemas, &millrace.Schema{Table: id})
		}
		return c
	}
	for name, c := range map[string]struct {
		catalog          *millrace.Catalog
		tables           []*table.Info
		joining, leaving []millrace.TableID
	}{
		"the same":   {catalog(1, 2), []*table.Info{of(2), of(1)}, nil, nil},
		"one more":   {catalog(1), []*table.Info{of(1), of(5)}, []millrace.TableID{5}, nil},
		"one less":   {catalog(1, 2), []*table.Info{of(1)}, nil, []millrace.TableID{2}},
		"made again": {catalog(1, 2), []*table.Info{of(1), of(7)}, []millrace.TableID{7}, []millrace.TableID{2}},
	} {
		p := makePlan(c.catalog, c.tables)
		if !slices.Equal(p.joining, c.joining) || !slices.Equal(p.leaving, c.leaving) || p.isEmpty() != (c.joining == nil && c.leaving == nil) {
			t.Errorf("%s: got %+v", name, p)
		}
	}
}

// reconfigure goes on with other tables, as init and a new transfer do.
func (r *rig) reconfigure(tables ...string) {
	r.t.Helper()
	r.close()
	r.cfg.Tables = nil
	for _, name := range tables {
		r.cfg.Tables = append(r.cfg.Tables, "public."+name)
	}
	r.renew()
	if err := r.c.Install(r.ctx()); err != nil {
		r.t.Fatal(err)
	}
}

// renew makes another capture of the same stream.
func (r *rig) renew() {
	r.t.Helper()
	old := r.c
	r.c = mustNew(r.t, r.cfg)
	r.c.watchInterval = old.watchInterval
}

func TestTablesJoinAndLeave(t *testing.T) {
	db := pgtest.New(t)
	db.Exec("create table a (id int primary key, v text); create table b (id int primary key, v text); insert into a values (1, 'x'); insert into b values (1, 'x')")
	r := newRig(t, db, nil, "a")
	r.open()
	r.copied()
	db.Exec("insert into b values (2, 'not published')")
	r.sync()
	r.close()
	cfg := r.cfg
	cfg.Tables = append(slices.Clone(cfg.Tables), "public.b")
	before := r.c
	r.c = mustNew(t, cfg)
	if err := r.openFails(ErrPublication); !strings.Contains(err.Error(), "millrace init") {
		t.Errorf("before init: %v", err)
	}
	r.c = before

	// b joins behind what was not published, and what was left out.
	r.reconfigure("a", "b")
	db.Exec("insert into b values (3, 'before it joins'); insert into a values (2, 'y')")
	r.open()
	units := r.sync()
	var kinds []string
	for _, u := range units {
		kinds = append(kinds, u.kinds())
	}
	if got, want := strings.Join(kinds, "; "), "put; schema load_begin"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got := r.load(); len(got) != 1 || got[0] != "b: it joined the stream" {
		t.Errorf("loads were begun because of %q", got)
	}
	db.Exec("insert into b values (4, 'after')")
	r.sync()
	r.equal()
	r.restart()
	db.Exec("update b set v = 'again'")
	if units := r.sync(); len(units) != 1 || units[0].kinds() != "put put put put" {
		t.Errorf("after a restart: %d units", len(units))
	}
	r.equal()

	// b leaves; what it still had to send is left out, even what could not be
	// followed.
	r.close()
	db.Exec("alter table b drop constraint b_pkey, add primary key (id, v); insert into b values (5, 'other key')")
	id := oidOf(t, db, "b")
	r.reconfigure("a")
	db.Exec("insert into a values (3, 'z')")
	r.open()
	kinds = nil
	for _, u := range r.sync() {
		kinds = append(kinds, u.kinds())
	}
	if got, want := strings.Join(kinds, "; "), "put; drop"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if r.edge.at.Catalog.Schema(id) != nil || r.edge.tables[id] != nil {
		t.Error("the table that left is still there")
	}
	r.equal()

	// It comes back, with the other key, while an earlier plan was not published.
	r.reconfigure("a", "b")
	r.open()
	r.close()
	r.open()
	r.sync()
	r.load()
	db.Exec("insert into b values (6, 'v')")
	r.sync()
	r.equal()
	if got := r.edge.at.Catalog.Schema(id); got == nil || len(got.KeyColumns()) != 2 {
		t.Errorf("schema of the table that came back: %+v", got)
	}

	// Made again under its name: another table.
	r.close()
	db.Exec("drop table b; create table b (id int primary key, n int); insert into b values (1, 1)")
	r.reconfigure("a", "b")
	r.open()
	kinds = nil
	for _, u := range r.sync() {
		kinds = append(kinds, u.kinds())
	}
	if got, want := strings.Join(kinds, "; "), "drop schema load_begin"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	r.load()
	r.equal()

	// Two streams' plans do not meet.
	db.Exec("select pg_logical_emit_message(true, 'millrace.plan', 'another')")
	r.sync()
	r.equal()
}

// A renamed table goes on under its new name; a start needs to be told of it.
func TestTableRenamed(t *testing.T) {
	db := pgtest.New(t)
	db.Exec("create table a (id int primary key); create schema other; insert into a values (1)")
	r := newRig(t, db, nil, "a")
	r.open()
	r.copied()
	db.Exec("alter table a rename to b; alter table b set schema other; insert into other.b values (2)")
	units := r.sync()
	if got := units[0].kinds(); len(units) != 1 || got != "schema put" {
		t.Errorf("got %s", got)
	}
	if got := r.edge.at.Catalog.Schemas[0].QualifiedName(); got != "other.b" || len(r.load()) > 0 {
		t.Errorf("the table is %s by now", got)
	}
	r.close()
	err := r.openFails(capture.ErrTables)
	for _, name := range []string{"public.a", "other.b", "source.tables"} {
		if !strings.Contains(err.Error(), name) {
			t.Errorf("the error does not name %s: %v", name, err)
		}
	}
	r.cfg.Tables = []string{"other.b"}
	r.renew()
	r.open()
	db.Exec("insert into other.b values (3)")
	r.sync()
	r.equal()
}

// What a new key needs: the table out of the stream and in again.
func TestKeyChangeIsMendedByCopyingAgain(t *testing.T) {
	db := pgtest.New(t)
	db.Exec("create table a (id int primary key, v text not null); create table b (id int primary key); insert into a values (1, 'x')")
	r := newRig(t, db, nil, "a", "b")
	r.c.watchInterval = 10 * time.Millisecond
	r.open()
	r.copied()
	db.Exec("alter table a drop constraint a_pkey, add primary key (v); insert into a values (1, 'y'); insert into b values (1)")
	err := r.fails(capture.ErrKeyChanged)
	if !strings.Contains(err.Error(), "out of source.tables") {
		t.Errorf("error names no mend: %v", err)
	}
	r.close()
	r.openAgainFails(capture.ErrKeyChanged)
	r.reconfigure("b")
	r.open()
	r.sync()
	r.equal()
	r.reconfigure("a", "b")
	r.open()
	r.sync()
	r.load()
	db.Exec("update a set v = 'z' where v = 'x'")
	r.sync()
	r.equal()
}

// openAgainFails opens a source, which fails when it comes to the change.
func (r *rig) openAgainFails(want error) {
	r.t.Helper()
	r.open()
	_ = r.fails(want)
	r.close()
}

func oidOf(t testing.TB, db *pgtest.DB, name string) millrace.TableID {
	t.Helper()
	n, err := strconv.ParseUint(db.String("select $1::regclass::oid::text", name), 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	return millrace.TableID(n)
}
