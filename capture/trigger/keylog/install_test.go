package keylog

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/millrace-db/millrace/internal/control"
	"github.com/millrace-db/millrace/internal/pgtest"
)

func TestInstallIsIdempotent(t *testing.T) {
	r := newRig(t, `create table a (id int primary key, v text); create table "We ird" ("Key ""1" text, b date, v text, primary key (b, "Key ""1"))`, "a", "We ird")
	before := r.look()
	r.install()
	after := r.look()
	if len(before) != 2 || len(after) != 2 || before[0].CompleteSince != after[0].CompleteSince {
		t.Errorf("second install: got %+v, before it %+v", after, before)
	}
	r.Exec(`insert into a values (1, 'x'); update a set id = 2; insert into "We ird" values ('k', '2024-01-01', 'v')`)
	for name, want := range map[string]string{"a": "map[1:DI 2:U]", "We ird": "map[2024-01-01|k:I]"} {
		if got, _ := r.logged(r.log(name)); fmt.Sprint(got) != want {
			t.Errorf("%s: got %v, want %v", name, got, want)
		}
	}
}

// What is written out is what is run: a database that the script was run in has
// nothing left to do.
func TestScriptIsWhatIsRun(t *testing.T) {
	const tables = "create table a (id int primary key, v text); create table r (id int primary key) partition by range (id); create table r1 partition of r for values from (0) to (10)"
	r := newRig(t, tables)
	r.cfg.Tables = []Table{r.table("a"), r.table("r")}
	for range 2 {
		script, err := Script(r.ctx(), r.conn, r.cfg)
		if err != nil {
			t.Fatal(err)
		}
		r.Exec(script)
		r.intact()
		if len(r.look()) != len(r.cfg.Tables) {
			t.Fatalf("after the script: %+v", r.look())
		}
		before := r.look()
		r.install()
		if after := r.look(); fmt.Sprint(before) != fmt.Sprint(after) {
			t.Errorf("install after the script: got %+v, before it %+v", after, before)
		}
		if script, err = Script(r.ctx(), r.conn, r.cfg); err != nil || strings.Contains(script, "CREATE OR REPLACE TRIGGER") || !strings.Contains(script, "Nothing to do for table public.r") {
			t.Errorf("second script: %v %s", err, script)
		}
		r.cfg.Tables = r.cfg.Tables[1:] // a leaves
	}
	if got := r.String("select count(*) from pg_trigger where tgname like 'millrace%' and tgrelid = 'a'::regclass"); got != "0" {
		t.Errorf("%s triggers are left on a", got)
	}
}

// Before the control schema is there, the script is what will be run.
func TestScriptBeforeTheControlSchema(t *testing.T) {
	db := pgtest.New(t)
	db.Exec("create table a (id int primary key)")
	r := &rig{DB: db, t: t, cfg: Config{Stream: "s", Period: time.Hour}}
	r.conn = r.connect(db.URL)
	r.cfg.Tables = []Table{r.table("a")}
	script, err := Script(r.ctx(), r.conn, r.cfg)
	if err != nil || !strings.Contains(script, "CREATE OR REPLACE TRIGGER millrace_1_i") {
		t.Errorf("got %v, %s", err, script)
	}
	if err := Uninstall(r.ctx(), r.conn, "s", nil); err != nil { // nothing is there
		t.Error(err)
	}
}

func TestUninstallLeavesNothing(t *testing.T) {
	r := newRig(t, "create table a (id int primary key); create table b (id int primary key); create table r (id int primary key) partition by range (id); create table r1 partition of r for values from (0) to (10)", "a", "b", "r")
	if ok, err := InstallEventTriggers(r.ctx(), r.conn, r.cfg); err != nil || !ok {
		t.Fatalf("event triggers: %v, %v", ok, err)
	}
	r.Exec("insert into millrace.tick (stream, epoch, tick, before, snapshot, counts) values ('s', 1, 1, '', '1:1:', '{}'); drop table b; alter table a rename to c; drop function millrace.log_1_i() cascade")
	for range 2 {
		if err := Uninstall(r.ctx(), r.conn, "s", nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := UninstallEventTriggers(r.ctx(), r.conn); err != nil {
		t.Fatal(err)
	}
	for query, want := range map[string]string{
		`select count(*) from pg_trigger where tgname like 'millrace%'`:                                                      "0",
		`select count(*) from pg_proc where pronamespace = 'millrace'::regnamespace and proname NOT IN ('segment', 'token')`: "0",
		`select count(*) from pg_class where relnamespace = 'millrace'::regnamespace and relname like 'log\_%'`:              "0",
		`select (select count(*) from millrace.key_log) + (select count(*) from millrace.tick)`:                              "0",
		`select count(*) from pg_event_trigger`:                                                                              "0",
	} {
		if got := r.String(query); got != want {
			t.Errorf("%s: got %s, want %s", query, got, want)
		}
	}
	r.Exec("insert into c values (1); insert into r values (1)")
}

// A table that a long transaction has locked holds nobody up for long, and is done
// in the end.
func TestInstallWaitsItsTurn(t *testing.T) {
	r := newRig(t, "create table a (id int primary key)")
	r.cfg.Tables = []Table{r.table("a")}
	tx, err := r.connect(r.URL).Begin(r.ctx())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(r.ctx(), "insert into a values (1)"); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- Install(r.ctx(), r.conn, r.cfg) }()
	// It asks for the lock, and gives up again.
	for _, want := range []string{"1", "0"} {
		for r.String("select count(*) from pg_locks where not granted and relation = 'a'::regclass") != want {
			select {
			case err := <-done:
				t.Fatalf("install ended early: %v", err)
			default:
			}
		}
	}
	if _, err := r.Pool.Exec(r.ctx(), "set lock_timeout = '20s'; insert into a values (2)"); err != nil {
		t.Error(err)
	}
	if err := tx.Commit(r.ctx()); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	r.intact()
}

// An owner of tables who is neither superuser nor may make roles can install.
func TestInstallByAnOwner(t *testing.T) {
	r := newRig(t, "")
	r.Exec("drop schema millrace cascade")
	owner, role := r.as("owner", "")
	r.Exec("grant create on database " + quote(r.Name) + " to " + role + "; grant create on schema public to " + role)
	mustExec(t, owner, "create table mine (id int primary key)")
	if err := control.Migrate(r.ctx(), owner); err != nil {
		t.Fatal(err)
	}
	r.Exec("create table theirs (id int primary key)")
	r.cfg.Tables = []Table{r.table("mine")}
	r.Exec("revoke usage on schema public from public; grant usage on schema public to " + role)
	// The roles are there already; what they need of the table its owner can give.
	missing, err := InstallRoles(r.ctx(), owner, r.cfg)
	if err != nil || len(missing) != 1 || !strings.Contains(missing[0], "GRANT USAGE ON SCHEMA") {
		t.Errorf("roles: %v, missing %q", err, missing)
	}
	if err := Install(r.ctx(), owner, r.cfg); err != nil {
		t.Fatal(err)
	}
	r.intact()
	if ok, err := InstallEventTriggers(r.ctx(), owner, r.cfg); err != nil || ok {
		t.Errorf("event triggers: got %v, %v, want that it may not", ok, err)
	}
	mustExec(t, owner, "insert into mine values (1)")
	if keys, _ := r.logged(r.log("mine")); keys["1"] != "I" {
		t.Errorf("logged %v", keys)
	}
	r.cfg.Tables = append(r.cfg.Tables, r.table("theirs"))
	if err := Install(r.ctx(), owner, r.cfg); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "public.theirs") || !strings.Contains(err.Error(), "mend: ") {
		t.Errorf("install on another's table: %v", err)
	}
}

// A session that has changed millions of rows in one statement keeps the plan that
// was made for them, and would compile it at each of its statements after that.
func TestFunctionsAreNotCompiled(t *testing.T) {
	r := newRig(t, "create table a (id int primary key)", "a")
	for _, kind := range []string{"i", "u", "d"} {
		got := r.String("select proconfig::text from pg_proc where oid = $1::text::regprocedure", fmt.Sprintf("millrace.%s()", functionName(r.log("a").ID, kind)))
		if !strings.Contains(got, "jit=off") {
			t.Errorf("function %s: settings %s, want jit=off", kind, got)
		}
	}
}

// What takes triggers away waits for writers of a partitioned table in the order in
// which they lock: while it waits for the table it has no partition, which the writer's
// statement needs next.
func TestUninstallDoesNotDeadlockWriters(t *testing.T) {
	r := newRig(t, "create table p (id int primary key) partition by range (id); create table p1 partition of p default", "p")
	mustExec(t, r.conn, "begin; lock table only p in row exclusive mode") // as a statement does when it is parsed
	other := r.connect(r.URL)
	done := make(chan error, 1)
	go func() { done <- Uninstall(r.ctx(), other, "s", nil) }()
	waits := "from pg_locks l where l.relation = 'p'::regclass and l.mode = 'AccessExclusiveLock' and not l.granted"
	for deadline := time.Now().Add(limit); r.String("select count(*) "+waits) == "0"; r.String("select pg_sleep(0.01)") {
		if time.Now().After(deadline) {
			t.Fatal("nothing waits for the table")
		}
	}
	if got := r.String("select count(*) from pg_locks where relation = 'p1'::regclass and mode = 'AccessExclusiveLock' and granted"); got != "0" {
		t.Error("it has the partition and waits for the table")
	}
	mustExec(t, r.conn, "insert into p values (1); commit")
	if err := <-done; err != nil {
		t.Error(err)
	}
}
