package keylog

import (
	"strings"
	"testing"
	"time"
)

// A member of the capture role can do all that runs beside a stream, and no more; a
// member of the verifier role can read.
func TestRolesSuffice(t *testing.T) {
	r := newRig(t, "create table a (id int primary key); create table p (id int primary key) partition by range (id); create table p1 partition of p default", "a", "p")
	if missing, err := InstallRoles(r.ctx(), r.conn, r.cfg); err != nil || len(missing) > 0 { // with the tables
		t.Fatalf("roles: %v, missing %q", err, missing)
	}
	r.cfg.Period = time.Second
	r.install()
	transfer, role := r.as("transfer", "in role millrace_capture")
	verifier, _ := r.as("verifier", "in role millrace_verifier")
	r.Exec("insert into a values (1); insert into p values (1); insert into millrace.tick (stream, epoch, tick, before, snapshot, counts, taken_at) values ('s', 1, 1, '', '1:1:', '{}', now() - interval '2 hours')")
	logs, err := r.looker.Look(r.ctx(), transfer)
	if err != nil || len(logs) != 2 || len(logs[0].Problems)+len(logs[1].Problems) > 0 {
		t.Fatalf("look: %+v, %v", logs, err)
	}
	for emptied, deadline := 0, time.Now().Add(limit); emptied < 2 && time.Now().Before(deadline); r.String("select pg_sleep(0.1)") {
		rotation, err := Rotate(r.ctx(), transfer, "s", r.String("select pg_current_snapshot()"))
		if err != nil {
			t.Fatalf("rotate: %v", err)
		}
		emptied += len(rotation.Emptied)
		if emptied == 0 && time.Until(deadline) < time.Second {
			t.Errorf("rotate has emptied nothing: %+v", rotation)
		}
	}
	if n, err := Prune(r.ctx(), transfer, "s", 1, 2, time.Hour, 10); err != nil || n != 1 {
		t.Errorf("prune: %d, %v", n, err)
	}
	watch, err := NewWatch("s")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := watch.Look(r.ctx(), transfer); err != nil {
			t.Errorf("watch: %v", err)
		}
	}
	if _, err := EventTriggers(r.ctx(), transfer); err != nil {
		t.Errorf("event triggers: %v", err)
	}
	if _, err := Events(r.ctx(), transfer, logs[0].Table.ID, "1:1:"); err != nil {
		t.Errorf("events: %v", err)
	}
	may := strings.Split("select from public.a; select from public.p; select from millrace.log_1_0; select from millrace.tick; select from millrace.ledger; select from millrace.key_log", "; ")
	for _, statement := range may {
		mustExec(t, transfer, statement)
		mustExec(t, verifier, statement)
	}
	mayNot := strings.Split("insert into public.a values (5); truncate public.a; delete from millrace.log_1_0; insert into millrace.log_1_0 (txid) values (1); update millrace.key_log set mode = 'row'; "+
		"delete from millrace.key_log; alter table millrace.log_1_0 add x int; create table millrace.x (); drop function millrace.log_1_i(); set role millrace_owner; update millrace.tick set tick = 5; insert into millrace.ddl_event (txid) values (1)", "; ")
	for _, statement := range mayNot {
		if _, err := transfer.Exec(r.ctx(), statement); code(err) != "42501" {
			t.Errorf("transfer: %s: got %v", statement, err)
		}
	}
	for _, statement := range append(mayNot, "truncate millrace.log_1_0", "delete from millrace.tick", "insert into millrace.ledger (stream) values ('s')", "update millrace.key_log set mark = '{}'") {
		if _, err := verifier.Exec(r.ctx(), statement); code(err) != "42501" {
			t.Errorf("verifier: %s: got %v", statement, err)
		}
	}
	if got := r.String("select rolsuper or rolcreaterole or rolcreatedb or rolreplication or rolbypassrls from pg_roles where rolname = $1", role); got != "f" {
		t.Errorf("transfer's role can do more: %s", got)
	}
	if got := r.String("select count(*) from pg_roles where rolname like 'millrace\\_%' and (rolsuper or rolcanlogin or rolcreaterole or rolcreatedb or rolreplication or rolbypassrls)"); got != "0" {
		t.Errorf("%s roles of ours can do more", got)
	}
	r.intact()
}
