package keylog

import (
	"fmt"
	"strings"
	"testing"
)

func TestEventsNameTheCulprit(t *testing.T) {
	r := newRig(t, tampered, "a", "r")
	if text, err := EventTriggers(r.ctx(), r.conn); err != nil || text != "" {
		t.Errorf("without event triggers: %q, %v", text, err)
	}
	if ok, err := InstallEventTriggers(r.ctx(), r.conn, r.cfg); err != nil || !ok {
		t.Fatalf("event triggers: %v, %v", ok, err)
	}
	there, err := EventTriggers(r.ctx(), r.conn)
	if err != nil || there == "" {
		t.Fatalf("event triggers: %q, %v", there, err)
	}
	owner, role := r.as("culprit", "superuser")
	a, root := r.log("a"), r.log("r")
	start := r.String("select pg_current_snapshot()")
	for _, c := range []struct {
		change string
		log    *Log // which it concerns
		want   string
	}{
		{"alter table a disable trigger millrace_N_i", a, "ALTER TABLE public.a false"},
		{"set session_replication_role = replica;; alter table a enable always trigger millrace_N_i", a, "ALTER TABLE public.a false"},
		{"reset session_replication_role;; alter table a alter v type text using v || 'x'", a, "ALTER TABLE public.a true, ALTER TABLE public.a false"},
		{"alter table r2 add check (id > 0)", root, "ALTER TABLE public.r2 false"},
		{"create table r3 partition of r for values from (20) to (30)", root, "CREATE TABLE public.r3 false"},
		{"alter table r alter v type bigint", root, "ALTER TABLE public.r1 true, ALTER TABLE public.r2 true, ALTER TABLE public.r3 true, ALTER TABLE public.r false"},
		{"do $$ begin execute pg_get_functiondef('millrace.log_N_u'::regproc); end $$", a, "CREATE FUNCTION millrace.log_N_u() false"},
		{"create trigger mine before insert on a for each row execute function suppress_redundant_updates_trigger()", a, "CREATE TRIGGER mine on public.a false"},
		{"drop trigger millrace_N_k on a", a, "DROP TRIGGER millrace_N_k on public.a false"},
		{"drop function millrace.log_M_t() cascade", root, "DROP FUNCTION millrace.log_M_t() false, DROP FUNCTION millrace_M_t on public.r false"},
		{"drop table a", a, "DROP TABLE public.a false, DROP TABLE millrace_N_i on public.a false, DROP TABLE millrace_N_u on public.a false, DROP TABLE millrace_N_d on public.a false, DROP TABLE millrace_N_t on public.a false"},
		{"create table other (id int);; alter table other add v int;; drop table other;; vacuum full r1", root, ""},
	} {
		before := r.String("select pg_current_snapshot()")
		for _, statement := range strings.Split(c.change, ";; ") {
			mustExec(t, owner, strings.NewReplacer("_N_", fmt.Sprintf("_%d_", a.ID), "_M_", fmt.Sprintf("_%d_", root.ID)).Replace(statement))
		}
		events, err := Events(r.ctx(), r.conn, c.log.Table.ID, before)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, e := range events {
			got = append(got, fmt.Sprintf("%s %s %v", e.Tag, e.Object, e.Rewritten))
			if e.Who != role || e.Command == "" {
				t.Errorf("%s: who %q, command %q", c.change, e.Who, e.Command)
			}
		}
		want := strings.NewReplacer("_N_", fmt.Sprintf("_%d_", a.ID), "_M_", fmt.Sprintf("_%d_", root.ID)).Replace(c.want)
		if strings.Join(got, ", ") != want {
			t.Errorf("%s: got %v, want %s", c.change, got, want)
		}
	}
	events, err := Events(r.ctx(), r.conn, a.Table.ID, start)
	if err != nil || len(events) == 0 {
		t.Fatalf("events: %v, %v", events, err)
	}
	if err := r.look()[0].Err(&events[0]); err == nil || !strings.Contains(err.Error(), role) || !strings.Contains(err.Error(), "disable trigger") {
		t.Errorf("error: %v", err)
	}
	if now, err := EventTriggers(r.ctx(), r.conn); err != nil || now != there {
		t.Errorf("event triggers: %q, %v, before it %q", now, err, there)
	}
	// init's own commands are not noted, and a command is not failed by a note.
	before := r.String("select count(*) from millrace.ddl_event")
	r.cfg.Tables = r.cfg.Tables[1:]
	r.install()
	if after := r.String("select count(*) from millrace.ddl_event"); after != before {
		t.Errorf("init is noted: %s events, before it %s", after, before)
	}
	r.Exec("alter table millrace.ddl_event rename to away; alter table r add x int; alter table millrace.away rename to ddl_event")
	r.Exec("alter event trigger millrace_note_end disable; alter event trigger millrace_note_end enable always")
	if now, err := EventTriggers(r.ctx(), r.conn); err != nil || now == there {
		t.Errorf("event triggers after one was disabled for a time: %q, %v", now, err)
	}
}
