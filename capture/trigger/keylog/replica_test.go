package keylog

import (
	"fmt"
	"testing"
	"time"

	"github.com/millrace-db/millrace/internal/pgtest"
)

// What a subscription writes is logged, row by row; a table that one begins to write
// is not to be captured by statement any more.
func TestSubscription(t *testing.T) {
	server := pgtest.Cluster(t, pgtest.Options{Settings: map[string]string{"max_prepared_transactions": "10"}})
	from := pgtest.On(t, server)
	from.Exec("create table a (id int primary key, v text); insert into a select g, 'old' from generate_series(1, 9) g; create publication p for table a")
	from.Exec("select pg_create_logical_replication_slot('sub', 'pgoutput')")
	r := rigOn(t, pgtest.On(t, server), "create table a (id int primary key, v text); create table b (id int primary key, v text); insert into b values (1, 'x'), (2, 'x')", "a", "b")
	if mode := r.log("a").Mode; mode != Statement {
		t.Fatalf("mode %s", mode)
	}
	since := r.log("a").CompleteSince
	r.Exec(fmt.Sprintf("create subscription s connection 'host=127.0.0.1 port=%d user=postgres dbname=%s' publication p with (create_slot = false, slot_name = 'sub', copy_data = false)", server.Port(), from.Name))
	t.Cleanup(func() {
		r.Exec("alter subscription s disable; alter subscription s set (slot_name = none); drop subscription s")
	})
	if got := r.log("a").Problems; len(got) != 1 || got[0].Kind != WrittenElsewhere {
		t.Errorf("with a subscription: %v", got)
	}
	r.capture("a", "b")
	if l := r.log("a"); l.CompleteSince <= since || l.Mode != Row {
		t.Errorf("after init: %+v", l)
	}

	caughtUp := func(sql string) {
		t.Helper()
		for deadline := time.Now().Add(limit); r.String(sql) != "t"; r.String("select pg_sleep(0.02)") {
			if time.Now().After(deadline) {
				t.Fatalf("the subscription does not come on: %s", sql)
			}
		}
	}
	r.Exec("insert into a select g, 'old' from generate_series(1, 9) g")
	r.empty()
	r.exact(&exactCase{mode: "any"}, func() {
		r.Exec("insert into b values (100, 'here too')")
		from.Exec("insert into a values (10, 'new'); update a set v = 'new' where id = 2; update a set id = 33 where id = 3; delete from a where id = 4; insert into a values (99, 'last')")
		caughtUp("select count(*) = 1 from a where id = 99")
	})
	r.empty()
	from.Exec("truncate a; insert into a values (5, 'after')")
	caughtUp("select count(*) = 1 from a where v = 'after'")
	if keys, truncated := r.logged(r.log("a")); !truncated || keys["5"] != "I" {
		t.Errorf("after a truncate: logged %v, truncated %v", keys, truncated)
	}

	// DDL in a background process, where no statement is current, is noted too.
	if ok, err := InstallEventTriggers(r.ctx(), r.conn, r.cfg); err != nil || !ok {
		t.Fatalf("event triggers: %v, %v", ok, err)
	}
	r.Exec(`create function ddl() returns trigger language plpgsql as $$ begin alter table public.b alter v type text using v || 'y'; return null; end $$;
		create trigger ddl after insert on a for each row execute function ddl(); alter table a enable always trigger ddl`)
	before := r.String("select pg_current_snapshot()")
	from.Exec("insert into a values (6, 'ddl')")
	caughtUp("select count(*) = 1 from a where v = 'ddl'")
	if events, err := Events(r.ctx(), r.conn, r.log("b").Table.ID, before); err != nil || len(events) == 0 || !events[0].Rewritten {
		t.Errorf("of a rewrite in a background process: %+v, %v", events, err)
	}

	// A prepared transaction's keys come with its end, and hold its segment till then.
	r.empty()
	r.Exec("begin; update b set v = 'y' where id = 1; insert into b values (3, 'y'); prepare transaction 'p1'")
	r.Exec("begin; delete from b where id = 2; prepare transaction 'p2'")
	if keys, _ := r.logged(r.log("b")); len(keys) != 0 {
		t.Errorf("of prepared transactions: %v", keys)
	}
	r.Exec("commit prepared 'p1'")
	r.Exec("rollback prepared 'p2'")
	if keys, _ := r.logged(r.log("b")); fmt.Sprint(keys) != "map[1:U 3:I]" {
		t.Errorf("of ended transactions: %v", keys)
	}
	r.intact()
}
