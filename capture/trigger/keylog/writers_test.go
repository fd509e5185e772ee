package keylog

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace/internal/pgtest"
)

// as connects as another role, which goes away with the test.
func (r *rig) as(name, attributes string) (conn *pgx.Conn, role string) {
	r.t.Helper()
	role = name + "_" + strings.SplitN(r.Name, "_", 2)[0]
	r.Exec("create role " + role + " login " + attributes)
	u, err := url.Parse(r.URL)
	if err != nil {
		r.t.Fatal(err)
	}
	u.User = url.User(role)
	conn = r.connect(u.String())
	r.t.Cleanup(func() {
		_ = conn.Close(context.Background())
		// Its end drops what was temporary, under locks.
		for deadline := time.Now().Add(limit); r.String("select count(*) from pg_stat_activity where usename = $1", role) != "0" && time.Now().Before(deadline); {
			r.String("select pg_sleep(0.01)")
		}
		r.Exec("reassign owned by " + role + " to postgres; drop owned by " + role + "; drop role " + role)
	})
	return conn, role
}

func mustExec(t testing.TB, conn *pgx.Conn, statements string) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), statements, pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatalf("%s: %v", statements, err)
	}
}

// A writer needs no rights beyond those on its table, and nothing that it sets
// changes what is logged.
func TestWritersNeedNoRights(t *testing.T) {
	r := newRig(t, "create table a (id int primary key, v int)", "a")
	writer, role := r.as("writer", "")
	r.Exec("grant all on a to " + role + "; grant create on schema public to " + role)
	mustExec(t, writer, `
		create function pg_temp.txid_current() returns bigint language sql as 'select 1::bigint';
		create function public.txid_current() returns bigint language sql as 'select 2::bigint';
		create temp table millrace_rows (id int); create temp table log_1_0 (k1 int);
		set search_path = pg_temp, public, pg_catalog; set standard_conforming_strings = off; set transform_null_equals = on;
		set datestyle = 'SQL, DMY'; set timezone = 'Asia/Kathmandu'; set bytea_output = escape`)
	mustExec(t, writer, "insert into public.a values (1, 1), (2, 2); update public.a set id = 3 where id = 1; delete from public.a where id = 2; truncate public.a")
	got, truncated := r.logged(r.log("a"))
	if fmt.Sprint(got) != "map[1:DI 2:DI 3:U]" || !truncated {
		t.Errorf("logged %v, truncated %v", got, truncated)
	}
	l := r.log("a")
	for i := range Segments {
		if n := r.String("select count(*) from "+l.Segment(i)+" where changed_by <> $1 or txid < 100 or abs(extract(epoch from now() - changed_at)) > 1000", role); n != "0" {
			t.Errorf("%s rows have another name, transaction or time", n)
		}
	}
	for _, statement := range []string{
		"select * from millrace.key_log", "insert into " + l.Segment(0) + " values (1, 'I', now(), 'me', 1)", "select millrace.segment(1)",
		fmt.Sprintf("create trigger mine after insert on public.a for each row execute function millrace.log_%d_i()", l.ID),
	} {
		if _, err := writer.Exec(r.ctx(), statement); code(err) != "42501" {
			t.Errorf("%s: got %v, want insufficient_privilege", statement, err)
		}
	}
	if got := r.String(`select string_agg(distinct concat_ws(' ', rolname, rolsuper, rolcanlogin), ', ') from pg_proc p join pg_roles r on r.oid = p.proowner where proname like 'log\_%'`); got != "millrace_owner f f" {
		t.Errorf("functions run as %s", got)
	}
}

// No name of a key column fails writers, or is taken for one of the functions' own.
func TestKeyColumnsOfAnyName(t *testing.T) {
	const columns = `k2 int, k1 int, "key" int, changed int, renamed int, r int, n int, written int, "new" int, "old" int, few int, run int, millrace_rows int, "session_user" int, "a%b'c""d{{x}}\e" int`
	var names []string
	for _, c := range strings.Split(columns, ", ") {
		names = append(names, strings.TrimSuffix(c, " int"))
	}
	key := "(" + strings.Join(names, ", ") + ")"
	r := newRig(t, "create table a ("+columns+", primary key "+key+"); create table p (like a including all) partition by hash (k1); create table p1 partition of p for values with (modulus 1, remainder 0)", "a")
	r.cfg.Tables = append(r.cfg.Tables, r.table("p"))
	for i := range r.cfg.Tables {
		r.cfg.Tables[i].Key = nil
		for _, n := range names {
			r.cfg.Tables[i].Key = append(r.cfg.Tables[i].Key, strings.ReplaceAll(strings.Trim(n, `"`), `""`, `"`))
		}
	}
	r.install()
	for _, table := range []string{"a", "p"} {
		mustExec(t, r.conn, "insert into "+table+" values (2, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); update "+table+" set k1 = -1; delete from "+table)
		got, _ := r.logged(r.log(table))
		if want := "map[2|-1|3|4|5|6|7|8|9|10|11|12|13|14|15:DU 2|1|3|4|5|6|7|8|9|10|11|12|13|14|15:DI]"; fmt.Sprint(got) != want {
			t.Errorf("table %s: logged %v, want %s", table, got, want)
		}
	}
}

// A key column that is renamed does not fail writers. (It stops the stream.)
func TestWritersGoOnWithoutTheKeyColumn(t *testing.T) {
	r := newRig(t, `create table a (id int, at date, v int, primary key (id, at)); insert into a values (1, '2024-01-01', 1), (2, '2024-01-01', 1);
		create table p (id int primary key, v int) partition by range (id); create table p1 partition of p for values from (0) to (100); insert into p values (1, 1), (2, 2)`, "a", "p")
	old := r.connect(r.URL) // has used the functions before
	mustExec(t, old, "update a set v = 2; update p set v = 2")
	r.Exec("alter table a rename id to number; alter table p rename id to number; alter table p add more int; alter table a add more int")
	for _, conn := range []*pgx.Conn{old, r.connect(r.URL)} {
		for _, table := range []string{"a", "p"} {
			mustExec(t, conn, strings.ReplaceAll("update T set v = 3 where number = 1; update T set number = 50 where number = 2; delete from T where number = 50; truncate T", "T", table))
		}
		mustExec(t, conn, "insert into a values (1, '2024-01-01', 1), (2, '2024-01-01', 1); insert into p values (1, 1), (2, 2)")
	}
	for _, l := range r.look() {
		if len(l.Problems) != 1 || l.Problems[0].Kind != KeyChanged {
			t.Errorf("table %v: %v", &l.Table, l.Problems)
		}
	}
}

// The server refuses what would make a logged key another, while it is captured.
func TestKeyColumnsAreHeld(t *testing.T) {
	r := newRig(t, "create table a (id int primary key, v int)", "a")
	for _, statement := range []string{"alter table a alter id type bigint", "alter table a drop column id"} {
		if _, err := r.Pool.Exec(r.ctx(), statement); code(err) != "0A000" && code(err) != "2BP01" { // feature_not_supported, dependent_objects_still_exist
			t.Errorf("%s: got %v", statement, err)
		}
	}
	r.Exec("alter table a alter v type bigint; alter table a drop column v")
	r.intact()
}

// What a session's first, small statements made it remember serves large ones too.
func TestBulkAfterSmallStaysLinear(t *testing.T) {
	r := newRig(t, "create table a (id int primary key, v int)", "a")
	for i := range 10 {
		mustExec(t, r.conn, fmt.Sprintf("insert into a values (%d, 1); update a set v = 2 where id = %d; update a set id = id + 1000000 where id = %d; delete from a where id > 1000", -i, -i, -i))
	}
	mustExec(t, r.conn, "delete from a")
	// Linear work takes a fraction of a second; 1,600,000,000 meetings of rows, or
	// one look at the whole of something for each row, more than a minute.
	mustExec(t, r.conn, "set statement_timeout = '25s'")
	for _, statement := range []string{"insert into a select g, 1 from generate_series(1, 40000) g", "update a set v = 3", "update a set id = -id", "delete from a"} {
		mustExec(t, r.conn, statement)
	}
}

// Writers and init go through a PgBouncer in transaction mode, with named prepared
// statements (made and used within a transaction, as that mode allows) and without.
func TestThroughPgBouncer(t *testing.T) {
	r := newRig(t, "create table a (id int primary key, v int); create table b (id int primary key)")
	bouncer := pgtest.Bouncer(t, r.Server, r.Name, "extra_float_digits")
	r.cfg.Tables = []Table{r.table("a"), r.table("b")}
	config, err := pgx.ParseConfig(bouncer)
	if err != nil {
		t.Fatal(err)
	}
	config.DefaultQueryExecMode = pgx.QueryExecModeExec // no named statements
	connect := func() *pgx.Conn {
		conn, err := pgx.ConnectConfig(r.ctx(), config)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close(context.Background()) })
		return conn
	}
	installer := connect()
	if _, err := InstallRoles(r.ctx(), installer, r.cfg); err != nil {
		t.Fatal(err)
	}
	if err := Install(r.ctx(), installer, r.cfg); err != nil {
		t.Fatal(err)
	}
	r.intact()
	var conns []*pgx.Conn
	for range 3 {
		conns = append(conns, connect())
	}
	for i := range 30 {
		conn := conns[i%len(conns)]
		if _, err := conn.Exec(r.ctx(), "insert into a values ($1, 0)", i); err != nil {
			t.Fatal(err)
		}
		err := pgx.BeginFunc(r.ctx(), conn, func(tx pgx.Tx) error {
			name := fmt.Sprintf("named_%d", i)
			if _, err := tx.Prepare(r.ctx(), name, "update a set v = v + 1 where id = $1"); err != nil {
				return err
			}
			if _, err := tx.Exec(r.ctx(), name, pgx.QueryExecModeCacheStatement, i); err != nil {
				return err
			}
			return conn.Deallocate(r.ctx(), name)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	logs, err := r.looker.Look(r.ctx(), connect())
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := r.logged(&logs[0]); len(got) != 30 || got["29"] != "IU" {
		t.Errorf("logged %v", got)
	}
	if _, err := Rotate(r.ctx(), connect(), "s", r.String("select pg_current_snapshot()")); err != nil {
		t.Error(err)
	}
	if err := Uninstall(r.ctx(), installer, "s", nil); err != nil {
		t.Error(err)
	}
}
