package trigger

import (
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/internal/pgtest"
)

// The scenes of this file are each what some rule of the package is for. Every one
// is played right, and with that rule broken (plant_test.go).
var scenes = []struct {
	name  string
	plant string // the rule that it is for
	play  func(testing.TB)
}{
	{"late commit", "xip_ignored", lateCommit},
	{"late commit of a lower number", "id_cursor", lateCommit},
	{"long transaction", "xmin_bound", longTransaction},
	{"crash", "no_tick", crash},
	{"rewrite before the lock", "early_snapshot", rewriteBeforeLock},
	{"order inside a transaction", "row_log", order},
}

func TestScenes(t *testing.T) {
	t.Parallel()
	for _, s := range scenes {
		if s.plant != "id_cursor" { // it is another's scene
			t.Run(s.name, func(t *testing.T) { s.play(t) })
		}
	}
}

// client is a session of its own.
type client struct {
	t    testing.TB
	conn *pgx.Conn
}

func (r *rig) client() *client {
	r.t.Helper()
	conn, err := pgx.Connect(r.ctx(), r.db.URL)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { capture.Close(conn) })
	return &client{r.t, conn}
}

func (c *client) exec(sql string) {
	c.t.Helper()
	if _, err := c.conn.Exec(c.t.Context(), sql, pgx.QueryExecModeSimpleProtocol); err != nil {
		c.t.Fatalf("%s: %v", sql, err)
	}
}

// Transactions commit in another order than they got their numbers in.
func lateCommit(t testing.TB) {
	db := pgtest.New(t)
	db.Exec("create table a (id int primary key, v text)")
	r := newRig(t, db, nil, "a")
	r.begin()
	one, two, prepared := r.client(), r.client(), r.client()
	one.exec("begin; insert into a values (1, 'one')")
	two.exec("begin; insert into a values (2, 'two'); savepoint s; insert into a values (20, 'two'); rollback to s; savepoint u; insert into a values (21, 'two')")
	prepared.exec("begin; insert into a values (3, 'prepared')")
	r.exec("insert into a values (4, 'four')")
	two.exec("commit")
	r.next()
	r.equal()
	r.exec("insert into a values (5, 'five'); update a set v = 'more' where id = 21")
	one.exec("insert into a values (10, 'late'); commit")
	prepared.exec("rollback")
	r.next()
	r.equal()
}

// A transaction that is held open keeps its own changes back and nobody else's.
func longTransaction(t testing.TB) {
	db := pgtest.New(t)
	db.Exec("create table a (id int primary key, v text)")
	r := newRig(t, db, nil, "a")
	r.begin()
	long := r.client()
	long.exec("begin; insert into a values (1, 'long')")
	for i := range 5 {
		r.exec(fmt.Sprintf("insert into a values (%d, 'short')", i+10))
	}
	long.exec("commit")
	r.next()
	r.equal()
}

// What a crash takes back was never given out, and the numbers of transactions that
// the server gives out again after it are not taken for those before it.
func crash(t testing.TB) {
	// The writer of the log does not come to it by itself in the time of a test.
	server := pgtest.Cluster(t, pgtest.Options{Settings: map[string]string{"wal_writer_delay": "10s", "wal_writer_flush_after": "0", "autovacuum": "off"}})
	db := pgtest.On(t, server)
	db.Exec("create table a (id int primary key, v text)")
	r := newRig(t, db, nil, "a")
	r.begin()
	db.Exec("checkpoint")
	hasty := r.client()
	hasty.exec("set synchronous_commit = off; insert into a values (1, 'hasty')")
	r.next()
	r.equal()
	// Numbers that only transactions have which leave nothing behind.
	for range 5 {
		hasty.exec("begin; insert into a values (2, 'taken back'); rollback")
	}
	hasty.exec("insert into a values (3, 'hasty too')")
	r.next()
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := server.Restart(r.ctx()); err != nil {
		t.Fatal(err)
	}
	db.Pool.Reset()
	if _, err := r.tryNext(); err == nil || millrace.NeedsOperator(err) {
		t.Errorf("the server has crashed, next: got %v", err)
	}
	r.restart()
	for i := range 5 {
		r.exec(fmt.Sprintf("insert into a values (%d, 'after')", i+10))
	}
}

// A table is rewritten between the begin of a window and its lock: to a snapshot
// from before it has no rows.
func rewriteBeforeLock(t testing.TB) {
	db := pgtest.New(t)
	db.Exec("create table a (id int primary key, v int)")
	r := newRig(t, db, nil, "a")
	r.begin()
	r.c.lockTimeout = limit
	db.Exec("insert into a select i, i from generate_series(1, 100) i")
	altering := r.client()
	altering.exec("begin; alter table a alter column v type bigint")
	done := make(chan error, 1)
	go func() {
		_, err := r.tryNext()
		done <- err
	}()
	until(t, "the window waits for its lock", func() bool {
		return db.String("select count(*) from pg_locks where not granted and relation = 'a'::regclass") == "1"
	})
	altering.exec("commit")
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	r.equal()
	if got, want := r.edge.loads(), "a: first copy; a: column v has another type"; got != want {
		t.Errorf("loads: got %q, want %q", got, want)
	}
}

// The log's order within a transaction is not that of the changes.
func order(t testing.TB) {
	db := pgtest.New(t)
	db.Exec(`create table a (id int primary key, v text); create table b (id int primary key deferrable initially deferred, v text);
		create function again() returns trigger language plpgsql as $$ begin
			if new.v = 'twice' then delete from a where id = new.id; insert into a values (new.id, 'thrice'); end if;
			return null; end $$;
		create trigger aa_again after insert on a for each row execute function again()`)
	r := newRig(t, db, nil, "a", "b")
	r.begin()
	r.exec("insert into a select i, 'v' from generate_series(1, 5) i; insert into b select i, 'v' from generate_series(1, 5) i")
	r.exec("with d as (delete from a where id = 1 returning id) insert into a select id + 100, 'moved' from d")
	r.exec("with d as (delete from b where id < 4 returning id, v) insert into b select id, v || '!' from d")
	r.exec("insert into a values (7, 'twice')")
	r.exec("begin; insert into b values (5, 'second'); delete from b where id = 5 and v = 'v'; commit")
	r.exec("update b set id = 9 - id")
	// The new row is inserted by one transaction's half, and the old deleted by its other.
	one := r.client()
	one.exec("begin; insert into b values (4, 'new')")
	r.exec("insert into a values (8, 'v')")
	one.exec("delete from b where id = 4 and v <> 'new'; commit")
	r.next()
	r.equal()
}
