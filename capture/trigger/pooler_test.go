package trigger

import (
	"strconv"
	"testing"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/internal/pgtest"
)

// Through PgBouncer in transaction mode, with named prepared statements on and off,
// and whatever a URL says of them: each transaction may be another session's, whose
// settings somebody else has left there.
func TestPooler(t *testing.T) {
	for _, prepared := range pgtest.BouncerPrepared(t) {
		for _, mode := range []string{"cache_statement", "simple_protocol"} {
			t.Run(mode+" "+strconv.Itoa(prepared), func(t *testing.T) {
				db := pgtest.New(t)
				db.Exec("create table a (id int primary key, at timestamptz, f float8, b bytea, i interval)")
				pooled := pgtest.BouncerWith(t, db.Server, db.Name, pgtest.BouncerOptions{Prepared: prepared})
				r := newRig(t, db, func(c *Config) { c.URL = pooled + "&default_query_exec_mode=" + mode }, "a")
				r.c.heldBody = 16 << 10
				// What the role and the database set does not reach the rows.
				for _, setting := range []string{
					"datestyle = 'German'", "timezone = 'Asia/Tokyo'", "extra_float_digits = -10", "bytea_output = 'escape'", "intervalstyle = 'iso_8601'", "search_path = 'nowhere'",
					"default_transaction_read_only = on", "synchronous_commit = off", "idle_in_transaction_session_timeout = '2s'",
				} {
					db.Exec("alter database " + db.Name + " set " + setting)
				}
				db.Pool.Reset()
				insert := func(sql string) { db.Exec("begin read write; " + sql + "; commit") }
				r.begin()
				insert("insert into public.a select i, '2024-02-03 04:05:06.789+00', 0.1 + i, '\\x00ff', '1 day 2 hours' from generate_series(1, 500) i")
				if got := r.next().String(); got != "put:500" {
					t.Errorf("got %s", got)
				}
				r.equal()
				r.restart()
				insert("update public.a set f = f / 3 where id < 10")
				r.next()
				r.equal()
				insert("delete from public.a where id = 3")
				r.next()
				r.equal()
				if found, err := r.c.Check(r.ctx()); err != nil || len(found) > 0 {
					t.Errorf("check: %v, %v", found, err)
				}
			})
		}
	}
}

// So do loads, also one that is asked for, and verification.
func TestLoadsThroughPooler(t *testing.T) {
	t.Parallel()
	for _, prepared := range pgtest.BouncerPrepared(t) {
		db := pgtest.New(t)
		db.Exec(`create table a (id text collate "C", at timestamptz, f float8, v text, primary key (at, id));
			insert into a select 'k' || i, '2024-02-03 04:05:06.789+00', 0.1 + i, repeat('v', 400) from generate_series(1, 500) i`)
		pooled := pgtest.BouncerWith(t, db.Server, db.Name, pgtest.BouncerOptions{Prepared: prepared})
		r := newLoadRig(t, db, func(c *Config) { c.URL = pooled }, "a")
		for _, setting := range []string{"datestyle = 'German'", "timezone = 'Asia/Tokyo'", "extra_float_digits = -10", "search_path = 'nowhere'", "default_transaction_read_only = on", "idle_in_transaction_session_timeout = '2s'"} {
			db.Exec("alter database " + db.Name + " set " + setting)
		}
		db.Pool.Reset()
		r.open()
		r.loaded()
		if err := r.src.RequestLoad(r.ctx(), "public.a", ""); err != nil {
			t.Fatal(err)
		}
		db.Exec("begin read write; update public.a set f = f / 3 where v > ''; commit")
		for r.take().counts[millrace.KindLoadBegin] == 0 {
		}
		r.loaded()
		r.same()
		if p := r.verified(); len(p) != 1 || p[0].Phase != capture.PassDone || len(r.store.differing) > 0 {
			t.Errorf("passes %+v, differing: %q", p, r.store.differing)
		}
	}
}
