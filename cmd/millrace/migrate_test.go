package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/millrace-db/millrace/internal/pgtest"
	"github.com/millrace-db/millrace/internal/testdir"
)

// TestMigrateCommands takes a table through all steps from the command line.
func TestMigrateCommands(t *testing.T) {
	src, dst, dir := pgtest.New(t), pgtest.New(t), testdir.For(t)
	src.Exec("CREATE TABLE items (id int PRIMARY KEY, note text); INSERT INTO items SELECT i, 'note ' || i FROM generate_series(1, 500) i")
	file := filepath.Join(dir, "m.yaml")
	write := func(extra string) {
		text := fmt.Sprintf("name: shop\nsource: {url: %q, spool_dir: spool}\ntarget: {url: %q}\ntables:\n  - {from: public.items, to: public.goods}\nfollow: {batch_interval: 20ms}\n%s", src.URL, dst.URL, extra)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("copy: {worker: 3}\n")
	refusal(t, dir, nil, exitUsage, []string{"m.yaml:7", "worker", "workers"}, "migrate", "plan", "-f", file)
	write("")
	refusal(t, dir, nil, exitOperator, []string{"prepare comes first", "mend:"}, "migrate", "copy", "-f", file)
	if got := program(t, dir, "migrate", "plan", "-f", file); !strings.Contains(got, "public.goods (made by prepare)") {
		t.Errorf("plan: %s", got)
	}
	if got := program(t, dir, "migrate", "prepare", "--dry-run", "-f", file); !strings.Contains(got, `CREATE TABLE "public"."goods"`) || !strings.Contains(got, "CREATE PUBLICATION") {
		t.Errorf("dry run of prepare: %s", got)
	}
	if got := dst.String("SELECT to_regclass('public.goods')"); got != "" {
		t.Error("the dry run has made the table")
	}
	program(t, dir, "migrate", "prepare", "-f", file)
	if got := program(t, dir, "migrate", "copy", "--dry-run", "-f", file); !strings.Contains(got, "would have changes kept and copy 1 tables") {
		t.Errorf("dry run of copy: %s", got)
	}
	program(t, dir, "migrate", "run", "--until", "copy", "-f", file)
	program(t, dir, "migrate", "follow", "--until-converged", "-f", file)

	follow := spawn(t, dir, nil, "migrate", "follow", "-f", file)
	src.Exec("UPDATE items SET note = 'changed' WHERE id % 10 = 0; DELETE FROM items WHERE id = 7")
	until(t, "the changes are at the target", func() error {
		if got := dst.String("SELECT count(*) FILTER (WHERE note = 'changed') || ' of ' || count(*) FROM goods"); got != "50 of 499" {
			return fmt.Errorf("got %s", got)
		}
		return nil
	})
	// The process that follows is asked.
	var certificate struct {
		Equal  bool
		Tables []struct{ Rows int }
	}
	if err := json.Unmarshal([]byte(program(t, dir, "migrate", "verify", "--json", "-f", file)), &certificate); err != nil || !certificate.Equal || len(certificate.Tables) != 1 || certificate.Tables[0].Rows != 499 {
		t.Errorf("verify: %+v, %v", certificate, err)
	}
	for _, c := range []struct{ flag, want string }{{"--full=false", "1 ranges carried forward, 0 changed since: equal"}, {"--full", "0 ranges carried forward, 0 changed since: equal"}} {
		if got := program(t, dir, "migrate", "verify", c.flag, "-f", file); !strings.Contains(got, c.want) || !strings.HasPrefix(got, "index ") {
			t.Errorf("verify %s: %s", c.flag, got)
		}
	}
	program(t, dir, "migrate", "pause", "-f", file)
	var status struct {
		Step, Phase string
		Running     bool
		Batches     []struct{ Captured, Applied map[string]map[string]int }
	}
	if err := json.Unmarshal([]byte(program(t, dir, "migrate", "status", "-f", file)), &status); err != nil || status.Step != "following" || status.Phase != "paused" || !status.Running {
		t.Errorf("status: %+v, %v", status, err)
	}
	program(t, dir, "migrate", "resume", "-f", file)
	follow.stop(syscall.SIGTERM)

	write("pgbouncer: [{admin: postgres://a@h/pgbouncer, database: shop, source: host=a, target: host=b}]\n")
	refusal(t, dir, nil, exitUsage, []string{"pgbouncer", "want file or command"}, "migrate", "plan", "-f", file)
	write("pause_budget: 20s\n")
	refusal(t, dir, nil, exitUsage, []string{"--write", "--remove"}, "migrate", "emergency", "--write", "--remove", "-f", file)
	refusal(t, dir, nil, exitOperator, []string{"writers have not gone over", "cutover"}, "migrate", "emergency", "-f", file)
	if got := program(t, dir, "migrate", "rehearse", "-f", file); !strings.Contains(got, "writers were held for") || !strings.Contains(got, "the source takes writes (term 0)") {
		t.Errorf("rehearse: %s", got)
	}
	if got := program(t, dir, "migrate", "cutover", "-f", file); !strings.Contains(got, "the target takes writes (term 1)") {
		t.Errorf("cutover: %s", got)
	}
	if got := program(t, dir, "migrate", "cutover", "-f", file); strings.TrimSpace(got) != "the target takes writes (term 1)" {
		t.Errorf("cutover again: %s", got)
	}
	dst.Exec("INSERT INTO goods VALUES (1000, 'at the target')")
	refusal(t, dir, nil, exitOperator, []string{"the target takes writes", "rollback"}, "migrate", "abort", "-f", file)
	if got := program(t, dir, "migrate", "emergency", "--write", "-f", file); !strings.Contains(got, "public.items leads to the target; the table itself is public.items_millrace_aside") || !strings.Contains(got, "do not commit as one") {
		t.Errorf("emergency: %s", got)
	}
	src.Exec("UPDATE items SET note = 'by a straggler' WHERE id = 1")
	if got := program(t, dir, "migrate", "status", "-f", file); !strings.Contains(got, `"kind": "UPDATE"`) {
		t.Errorf("status does not say who uses emergency access: %s", got)
	}
	refusal(t, dir, nil, exitOperator, []string{"emergency access stands", "--remove"}, "migrate", "rollback", "-f", file)
	program(t, dir, "migrate", "emergency", "--remove", "-f", file)
	program(t, dir, "migrate", "rollback", "-f", file)
	if got := src.String("SELECT note FROM items WHERE id = 1"); got != "by a straggler" {
		t.Errorf("the row that was written through the source is %q there", got)
	}
	if got := src.String("SELECT note FROM items WHERE id = 1000"); got != "at the target" {
		t.Errorf("the row that was written at the target is %q at the source", got)
	}
	refusal(t, dir, nil, exitOperator, []string{"the source takes writes", "mend:"}, "migrate", "finish", "-f", file)
	program(t, dir, "migrate", "abort", "-f", file)
	if got := src.String("SELECT count(*) FROM pg_replication_slots WHERE database = current_database()"); got != "0" {
		t.Errorf("slots after abort: %s", got)
	}
}
