package trigger

import (
	"context"
	"errors"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/internal/finding"
	"github.com/millrace-db/millrace/internal/pgserver"
	"github.com/millrace-db/millrace/internal/pgtest"
)

func TestFence(t *testing.T) {
	t.Parallel()
	p := millrace.Position{Mode: millrace.ModeTrigger, SystemID: 7, Tick: 5, Snapshot: "10:20:12"}
	f := facts{System: 7, Database: 3, Snapshot: snapshot(t, "20:30:"), Tick: "10:20:12", TickDatabase: 3}
	for _, c := range []struct {
		name   string
		change func(*millrace.Position, *facts)
		want   error
	}{
		{"it goes on", func(*millrace.Position, *facts) {}, nil},
		{"first start", func(p *millrace.Position, f *facts) { *p = millrace.Position{}; *f = facts{} }, nil},
		{"standby", func(_ *millrace.Position, f *facts) { f.Recovery = true }, capture.ErrStandby},
		{"first start at a standby", func(p *millrace.Position, f *facts) { *p = millrace.Position{}; f.Recovery = true }, capture.ErrStandby},
		{"other mode", func(p *millrace.Position, _ *facts) { p.Mode = millrace.ModeWAL }, capture.ErrMode},
		{"other cluster", func(_ *millrace.Position, f *facts) { f.System = 8 }, capture.ErrOtherSystem},
		{"no tick", func(_ *millrace.Position, f *facts) { f.Tick, f.TickDatabase = "", 0 }, capture.ErrRewound},
		{"another tick of the number", func(_ *millrace.Position, f *facts) { f.Tick = "10:20:" }, capture.ErrRewound},
		{"a copy of the tick", func(_ *millrace.Position, f *facts) { f.Database = 4 }, capture.ErrRewound},
		{"numbers begin anew", func(_ *millrace.Position, f *facts) { f.Snapshot = snapshot(t, "5:19:") }, capture.ErrRewound},
	} {
		p, f := p, f
		c.change(&p, &f)
		err := fence(p, &f, planted{})
		if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
			t.Errorf("%s: got %v, want %v", c.name, err, c.want)
		}
		if err != nil && (!millrace.NeedsOperator(err) || !strings.Contains(err.Error(), "mend:")) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// at is the rig's stream over another database.
func (r *rig) at(url string) {
	r.t.Helper()
	r.close()
	cfg := r.c.cfg
	cfg.URL, cfg.Registerer = url, nil
	r.configure(cfg)
}

// finds wants check to find one problem with the position.
func (r *rig) finds(part string) {
	r.t.Helper()
	r.db.Exec("insert into millrace.stream (name, id, epoch, capture, topic, topic_id) values ('s', gen_random_uuid(), 1, 'trigger', 't', 'i') on conflict do nothing")
	found, err := r.c.CheckPosition(r.ctx(), r.position())
	if err != nil {
		r.t.Fatal(err)
	}
	if part == "" && len(found) > 0 || part != "" && (len(found) != 1 || found[0].Level != finding.Problem || !strings.Contains(found[0].Text, part) || found[0].Mend == "") {
		r.t.Errorf("check finds %+v, want %q", found, part)
	}
}

// A logical dump has the ticks, and is refused where it was restored: in another
// cluster, and beside the database in its own.
func TestRestoredDump(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec("create table a (id int primary key, v text)")
	r := newRig(t, db, nil, "a")
	r.begin()
	r.exec("insert into a values (1, 'v')")
	r.finds("")
	r.close()
	dump := dumpOf(t, db)
	same, other := pgtest.On(t, db.Server), pgtest.On(t, pgtest.Cluster(t, pgtest.Options{}))
	for _, c := range []struct {
		to   *pgtest.DB
		want error
		text string
	}{{same, capture.ErrRewound, "it was restored from a dump"}, {other, capture.ErrOtherSystem, "system"}} {
		restore(t, c.to, dump)
		r.at(c.to.URL)
		if err := r.openFails(c.want); !strings.Contains(err.Error(), c.text) {
			t.Errorf("got %v, want %q", err, c.text)
		}
		r.db = c.to
		r.finds(c.text)
	}
	// The database that it was dumped from goes on.
	r.db = db
	r.at(db.URL)
	r.restart()
	r.exec("insert into a values (2, 'v')")
	// Other data in its place, restored over it.
	r.close()
	db.Exec("truncate millrace.tick")
	_ = r.openFails(capture.ErrRewound)
	r.finds("it does not have tick")
}

func dumpOf(t testing.TB, db *pgtest.DB) string {
	t.Helper()
	program, err := program(db.Server, "pg_dump")
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), program, "--no-owner", "--no-privileges", "--dbname="+db.URL).Output()
	if err != nil {
		t.Fatalf("pg_dump: %v", err)
	}
	return string(out)
}

func restore(t testing.TB, db *pgtest.DB, dump string) {
	t.Helper()
	program, err := program(db.Server, "psql")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), program, "--dbname="+db.URL, "--set=ON_ERROR_STOP=1", "--quiet")
	cmd.Stdin = strings.NewReader(dump)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("psql: %v: %s", err, out)
	}
}

func program(server *pgserver.Server, name string) (string, error) {
	path, err := server.Binaries().Program(name)
	if err != nil {
		return exec.LookPath(name)
	}
	return path, nil
}

// A standby is refused, and so is one that was promoted before it had what was
// published; one that had it goes on, wherever the stream was.
func TestPromotedStandby(t *testing.T) {
	t.Parallel()
	primary := pgtest.Cluster(t, pgtest.Options{})
	db := pgtest.On(t, primary)
	db.Exec("create table a (id int primary key, v text)")
	r := newRig(t, db, nil, "a")
	standby := pgtest.Standby(t, primary, nil)
	db.Pool.Reset()
	pool, err := pgxpool.New(r.ctx(), standby.URL(db.Name))
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	there := db.At(standby, pool)
	replayed := func(what string) {
		lsn := db.String("select pg_current_wal_flush_lsn()")
		until(t, what, func() bool { return there.String("select pg_last_wal_replay_lsn() >= $1::pg_lsn", lsn) == "t" })
	}
	r.begin()
	open := r.client()
	open.exec("begin; insert into a values (10, 'not committed before it is promoted')")
	r.exec("insert into a values (1, 'v')")
	replayed("the standby has the tick")
	r.close()
	r.at(standby.URL(db.Name))
	_ = r.openFails(capture.ErrStandby)

	had := r.edge.at
	r.at(db.URL)
	r.restart()
	there.Exec("alter system set primary_conninfo = ''")
	there.Exec("select pg_reload_conf()")
	until(t, "the standby receives no more", func() bool { return there.String("select count(*) from pg_stat_wal_receiver") == "0" })
	r.exec("insert into a values (2, 'lost')")
	lost := r.edge.at
	if err := primary.Kill(); err != nil {
		t.Fatal(err)
	}
	there.Exec("select pg_promote()")
	until(t, "it is promoted", func() bool { return there.String("select pg_is_in_recovery()") == "f" })
	if there.String("select count(*) from a where id = 2") != "0" {
		t.Fatal("the standby has what was to be lost")
	}
	r.at(standby.URL(db.Name))
	r.edge.at = lost
	_ = r.openFails(capture.ErrRewound)
	r.edge.at = had
	r.db = there
	r.restart()
	r.edge.tables[r.edge.at.Catalog.Schemas[0].Table] = map[string]string{}
	there.Exec("update a set v = v || '!'")
	r.next()
	r.equal()
}

// A source that goes on from an earlier state behind a pooler, with no connection
// lost, is seen by the next window.
func TestWindowIsFenced(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec("create table a (id int primary key, v text)")
	r := newRig(t, db, nil, "a")
	r.begin()
	db.Exec("delete from millrace.tick; insert into a values (1, 'v')")
	_ = r.fails(capture.ErrRewound)
}

// Another process that publishes the stream has its ticks; neither takes one of the
// other's for its own.
func TestTwoSources(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec("create table a (id int primary key, v text)")
	r := newRig(t, db, nil, "a")
	r.begin()
	zombie := r.src
	r.src = nil
	r.open()
	db.Exec("insert into a values (1, 'v')")
	r.next()
	_, err := zombie.Next(r.ctx())
	if err == nil || millrace.NeedsOperator(err) {
		t.Errorf("a source whose tick is taken: got %v, want an error that passes", err)
	}
	if err := zombie.Close(); err != nil {
		t.Error(err)
	}
	// The other way round: the newer source finds ticks of one that went on.
	zombie, at := r.src, r.edge.at
	db.Exec("insert into a values (2, 'v')")
	u, err := zombie.Next(r.ctx())
	if err != nil {
		t.Fatal(err)
	}
	if u.Position.Tick != at.Position.Tick+1 {
		t.Errorf("tick %d after %d", u.Position.Tick, at.Position.Tick)
	}
	r.src = nil
	r.open()
	r.next()
	if got := r.edge.at.Position.Tick; got != u.Position.Tick+1 {
		t.Errorf("tick %d, and %d is void", got, u.Position.Tick)
	}
	r.equal()
	if err := zombie.Close(); err != nil {
		t.Error(err)
	}
}

// position is what CheckPosition is given.
func (r *rig) position() func(context.Context) (millrace.Position, time.Time, error) {
	return func(context.Context) (millrace.Position, time.Time, error) {
		return r.edge.at.Position, r.edge.at.Time, nil
	}
}
