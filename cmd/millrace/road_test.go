package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/millrace-db/millrace/internal/pgtest"
	"github.com/millrace-db/millrace/internal/topic"
)

// TestRoad goes through the commands as an operator does.
func TestRoad(t *testing.T) {
	t.Run("wal", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		road(t, w, `CREATE PUBLICATION "millrace_shop" FOR TABLE "public"."items"`, func() {})
		run := func(args ...string) string { return program(t, w.dir, append(args, "-c", w.file)...) }
		run("uninstall", "--yes")
		refusal(t, w.dir, nil, exitOperator, []string{"millrace.shop", "another stream"}, "init", "-c", w.file)
	})
	// Transfer has a role of its own that may do little, and reaches the source
	// through a pooler in transaction mode.
	for _, prepared := range pgtest.BouncerPrepared(t) {
		t.Run(fmt.Sprintf("trigger, through a pooler with %d prepared statements", prepared), func(t *testing.T) {
			t.Parallel()
			// Roles are of the whole server, which is compared.
			w := newWorldApart(t)
			w.trigger(t, prepared)
			road(t, w, `CREATE OR REPLACE TRIGGER millrace_1_i AFTER INSERT ON "public"."items"`, func() {
				if n := w.db.String(`SELECT count(*)::text FROM millrace.mark`); n == "0" {
					t.Error("a role that may do little keeps no places where the topic may begin")
				}
				w.tamper(t)
				w.newEpoch(t)
			})
		})
	}
}

// trigger makes the world one that is captured by triggers, through a pooler, by a
// role that init has made a member of what it needs.
func (w *world) trigger(t *testing.T, prepared int) {
	t.Helper()
	role := "transfer_" + w.db.Name[:strings.IndexByte(w.db.Name, '_')]
	w.db.Exec("CREATE ROLE " + role + " LOGIN")
	t.Cleanup(func() { w.db.Exec("DROP ROLE " + role) })
	u, err := url.Parse(pgtest.BouncerWith(t, w.db.Server, w.db.Name, pgtest.BouncerOptions{Roles: []string{role}, Prepared: prepared}))
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.User(role)
	w.source = fmt.Sprintf("capture: trigger, spool_dir: spool, setup_url: %q, poll: {max: 20ms}", w.db.URL)
	w.file = w.write(t, "millrace.yaml", w.config(u.String(), ""))
}

// tamper takes a trigger away, which check sees and mends.
func (w *world) tamper(t *testing.T) {
	t.Helper()
	w.db.Exec("DROP TRIGGER millrace_1_u ON items")
	refusal(t, w.dir, nil, exitOperator, []string{"public.items", "millrace init"}, "check", "-c", w.file)
	if got := program(t, w.dir, "check", "--fix", "-c", w.file); !strings.Contains(got, "capture are as init makes them") || !strings.Contains(got, "no problems") {
		t.Errorf("check --fix: %s", got)
	}
}

// newEpoch begins a new epoch and waits until the edge serves it.
func (w *world) newEpoch(t *testing.T) {
	t.Helper()
	dry := program(t, w.dir, "epoch", "new", "--dry-run", "-c", w.file)
	if !strings.Contains(dry, "SET epoch = 2, topic = 'millrace.shop.2', topic_id = the topic's ID, slot = NULL") || strings.Contains(dry, "pg_drop_replication_slot") {
		t.Errorf("epoch new --dry-run: %s", dry)
	}
	if got := program(t, w.dir, "epoch", "new", "--yes", "-c", w.file); !strings.Contains(got, "epoch 2 is begun in topic millrace.shop.2") {
		t.Errorf("epoch new: %s", got)
	}
	transfer := spawn(t, w.dir, nil, "transfer", "-c", w.file)
	edge := spawn(t, w.dir, nil, "edge", "-c", w.file)
	until(t, "the edge serves epoch 2", func() error {
		text := program(t, w.dir, "status", "--json", "-c", w.file)
		var all []place
		if err := json.Unmarshal([]byte(text), &all); err != nil {
			return err
		}
		if len(all) != 1 || all[0].Edge == nil {
			return fmt.Errorf("it says nothing: %s", text)
		}
		if got := all[0].Edge.Epoch; got != 2 {
			return fmt.Errorf("it serves epoch %d", got)
		}
		return nil
	})
	if got := program(t, w.dir, "verify", "--wait", "-c", w.file); !regexp.MustCompile(`here +public\.items +equal +1 +29 `).MatchString(got) {
		t.Errorf("verify --wait in epoch 2: %s", got)
	}
	transfer.stop(syscall.SIGTERM)
	edge.stop(syscall.SIGTERM)
	if got := program(t, w.dir, "audit", "-c", w.file); !strings.Contains(got, "epoch 2: indexes 1 to") || !strings.HasSuffix(got, "equal\n") {
		t.Errorf("audit of epoch 2: %s", got)
	}
}

// road goes from init to uninstall. made is what init --dry-run says it would make
// for the table; before uninstall comes more. The source's catalogs are as they were
// at the end.
func road(t *testing.T, w *world, made string, more func()) {
	t.Helper()
	before := w.db.String(catalogs)
	run := func(args ...string) string { return program(t, w.dir, append(args, "-c", w.file)...) }

	dry := run("init", "--dry-run")
	for _, word := range []string{"CREATE TABLE millrace.stream", made, "retention.ms=-1", "millrace.shop"} {
		if !strings.Contains(dry, word) {
			t.Errorf("init --dry-run does not say %q:\n%s", word, dry)
		}
	}
	if after := w.db.String(catalogs); after != before {
		t.Errorf("init --dry-run has made something:%s", difference(before, after))
	}
	refusal(t, w.dir, nil, exitOperator, []string{"millrace init"}, "check", "-c", w.file)

	first, again := run("init"), run("init")
	id := w.db.String(`SELECT replace(id::text, '-', '') FROM millrace.stream`)
	if !strings.Contains(first, id) || !strings.Contains(again, id) {
		t.Errorf("init, and again: want both to name stream %s:\n%s%s", id, first, again)
	}
	if got := run("check"); !strings.Contains(got, "no problems") {
		t.Errorf("check: %s", got)
	}

	refusal(t, w.dir, nil, exitOperator, []string{"shop", "millrace uninstall"}, "init", "--downgrade-to", "0", "-c", w.file)
	if got := run("init", "--downgrade-to", "1", "--dry-run"); !strings.Contains(got, "DROP TABLE millrace.tick") || !strings.Contains(got, "DROP TABLE millrace.leaf") {
		t.Errorf("init --downgrade-to 1 --dry-run: %s", got)
	}

	transfer := spawn(t, w.dir, nil, "transfer", "-c", w.file)
	edge := spawn(t, w.dir, nil, "edge", "-c", w.file)
	w.ready(t)

	if got, want := run("get", "public.items", "s1,4"), `{"shop":"s1","id":4,"note":"note 4"}`+"\n"; got != want {
		t.Errorf("get: got %s, want %s", got, want)
	}
	several := spawn(t, w.dir, nil, "get", "-c", w.file, "public.items", "s1,4", "s2,4")
	if code := several.wait(); code != exitFailure || !strings.HasSuffix(several.out(), "\nnull\n") || !strings.Contains(several.err(), "s2,4") {
		t.Errorf("get of two keys, one missing: exit code %d, %s%s", code, several.out(), several.err())
	}
	if got := strings.Count(run("scan", "public.items"), "\n"); got != 30 {
		t.Errorf("scan: got %d rows, want 30", got)
	}
	if got := strings.Count(run("scan", "public.items", "s1"), `"shop":"s1"`); got != 10 {
		t.Errorf("scan by prefix: got %d rows, want 10", got)
	}
	if got := strings.Count(run("scan", "public.items", "s*", "--limit", "7"), "\n"); got != 7 {
		t.Errorf("scan with a limit: got %d rows, want 7", got)
	}
	refusal(t, w.dir, nil, exitFailure, []string{"public.nothing", "public.items"}, "get", "-c", w.file, "public.nothing", "1")

	w.db.Exec(`BEGIN; UPDATE items SET note = 'new' WHERE id = 5; DELETE FROM items WHERE id = 6; COMMIT`)
	until(t, "the change is at the edge", func() error {
		if got := run("get", "public.items", "s2,5"); !strings.Contains(got, `"new"`) {
			return fmt.Errorf("got %s", got)
		}
		return nil
	})
	w.status(t, "transfer")
	w.edges(t, "stream")
	w.tail(t)
	if got := run("load", "public.items", "--wait"); !strings.Contains(got, "has ended: 29 rows") {
		t.Errorf("load --wait: %s", got)
	}
	if got := run("verify", "--wait"); !regexp.MustCompile(`here +public\.items +equal +1 +29 `).MatchString(got) {
		t.Errorf("verify --wait: %s", got)
	}
	if got := run("audit"); !strings.Contains(got, "equal\n") || !regexp.MustCompile(`public\.items .*\b1 +1 +0 +59\n`).MatchString(got) {
		t.Errorf("audit: %s", got)
	}
	if got := run("status"); !strings.Contains(got, "equal at ") {
		t.Errorf("status after verifying: %s", got)
	}
	// The store is compacted while changes go on, and twice.
	for i := range 2 {
		if got := run("edge", "compact"); !strings.Contains(got, "store of stream shop took ") {
			t.Errorf("edge compact: %s", got)
		}
		w.db.Exec(fmt.Sprintf(`UPDATE items SET note = 'compacted %d' WHERE id = 5`, i))
		until(t, "a change is in the compacted store", func() error {
			if got := run("get", "public.items", "s2,5"); !strings.Contains(got, fmt.Sprintf(`"compacted %d"`, i)) {
				return fmt.Errorf("got %s", got)
			}
			return nil
		})
	}
	edge = w.image(t, edge)
	refusal(t, w.dir, nil, exitFailure, []string{w.admin, "transfer.admin"}, "transfer", "-c", w.file)
	refusal(t, w.dir, nil, exitUsage, []string{"--yes"}, "uninstall", "-c", w.file)
	refusal(t, w.dir, nil, exitOperator, []string{"stop millrace transfer"}, "uninstall", "--yes", "-c", w.file)

	transfer.stop(syscall.SIGTERM)
	w.status(t, "edge")
	edge.stop(syscall.SIGINT)
	w.status(t, "ledger")
	w.edges(t, "stopped")
	if got := run("check"); !strings.Contains(got, "no problems") {
		t.Errorf("check: %s", got)
	}
	more()
	if got := run("uninstall", "--yes"); !strings.Contains(got, " is left, as is millrace.shop.status") {
		t.Errorf("uninstall: %s", got)
	}
	if after := w.db.String(catalogs); after != before {
		t.Errorf("uninstall has left something at the source, or taken too much:%s", difference(before, after))
	}
}

// difference lists the lines that only one of two texts has.
func difference(before, after string) string {
	var b strings.Builder
	for _, side := range []struct{ mark, in, notIn string }{{"- ", before, after}, {"+ ", after, before}} {
		for line := range strings.Lines(side.in) {
			if line = strings.TrimSpace(line); !strings.Contains("\n"+side.notIn+"\n", "\n"+line+"\n") {
				b.WriteString("\n" + side.mark + line)
			}
		}
	}
	return b.String()
}

// catalogs names what the database has, and of the server what init may make.
const catalogs = `
SELECT string_agg(line, E'\n' ORDER BY line) FROM (
    SELECT format('relation %s %s %s', oid::regclass, relkind, nullif(relacl, acldefault('r', relowner))) FROM pg_class
  UNION ALL SELECT format('function %s %s', oid::regprocedure, nullif(proacl, acldefault('f', proowner))) FROM pg_proc
  UNION ALL SELECT format('trigger %s on %s %s', tgname, tgrelid::regclass, tgenabled) FROM pg_trigger
  UNION ALL SELECT format('event trigger %s', evtname) FROM pg_event_trigger
  UNION ALL SELECT format('schema %s %s', nspname, nullif(nspacl, acldefault('n', nspowner))) FROM pg_namespace WHERE nspname !~ '^pg_(toast_)?temp_'
  UNION ALL SELECT format('type %s', oid::regtype) FROM pg_type
  UNION ALL SELECT format('constraint %s %s', conname, conrelid::regclass) FROM pg_constraint
  UNION ALL SELECT format('publication %s', pubname) FROM pg_publication
  UNION ALL SELECT format('slot %s', slot_name) FROM pg_replication_slots WHERE database = current_database()
  UNION ALL SELECT format('role %s', rolname) FROM pg_roles
  UNION ALL SELECT format('member %s of %s', member::regrole, roleid::regrole) FROM pg_auth_members
) AS all_of_it (line) WHERE line NOT LIKE '%pg_toast%'`

// TestStoppedStream: with on_stop: serve an edge whose stream needs somebody to
// act goes on answering, says so in its status, and in its exit code.
func TestStoppedStream(t *testing.T) {
	w := newWorld(t)
	w.file = w.write(t, "millrace.yaml", strings.Replace(w.config(w.db.URL, ""), "  id: here\n", "  id: here\n  on_stop: serve\n", 1))
	program(t, w.dir, "init", "-c", w.file)
	transfer := spawn(t, w.dir, nil, "transfer", "-c", w.file)
	edge := spawn(t, w.dir, nil, "edge", "-c", w.file)
	w.ready(t)
	transfer.stop(syscall.SIGTERM)

	ctx := context.Background()
	log, err := topic.Open(ctx, topic.Config{Brokers: []string{w.broker}, Topic: "millrace.shop"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := log.Append(ctx, []byte("hello"), 1, 1); err != nil {
		t.Fatal(err)
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	until(t, "the edge's status tells of the fault", func() error {
		if got := program(t, w.dir, "status", "-c", w.file); !strings.Contains(got, "does not begin as one of millrace") {
			return fmt.Errorf("got %s", got)
		}
		return nil
	})
	if got := program(t, w.dir, "get", "-c", w.file, "public.items", "s1,4"); !strings.Contains(got, "note 4") {
		t.Errorf("get from a stopped stream: %s", got)
	}
	if err := edge.process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := edge.wait(); code != exitOperator {
		t.Errorf("the edge ended with exit code %d, want %d", code, exitOperator)
	}
}

// status wants millrace status to have its answer from one place.
func (w *world) status(t *testing.T, from string) {
	t.Helper()
	var all []map[string]any
	until(t, "status comes from "+from, func() error {
		text := program(t, w.dir, "status", "--json", "-c", w.file)
		if err := json.Unmarshal([]byte(text), &all); err != nil || len(all) != 1 {
			return fmt.Errorf("read %s: %w", text, err)
		}
		// The ledger has a row a second.
		if chain, _ := all[0]["chain"].(string); all[0]["from"] != from || len(chain) != 64 {
			return fmt.Errorf("got %s", text)
		}
		return nil
	})
	for _, name := range []string{"stream", "epoch", "index", "chain", "lag_seconds"} {
		if all[0][name] == nil {
			t.Errorf("status from %s has no %s: %v", from, name, all[0])
		}
	}
	if text := program(t, w.dir, "status", "-c", w.file); !strings.Contains(text, "shop") || !strings.Contains(text, from) {
		t.Errorf("status: %s", text)
	}
}

// edges wants millrace status to show this edge in a state and without anything
// to go, and transfer to know of it while it runs.
func (w *world) edges(t *testing.T, state string) {
	t.Helper()
	until(t, "the status shows that the edge is "+state, func() error {
		var all []place
		text := program(t, w.dir, "status", "--json", "-c", w.file)
		if err := json.Unmarshal([]byte(text), &all); err != nil || len(all) != 1 || len(all[0].Edges) != 1 {
			return fmt.Errorf("read %s: %w", text, err)
		}
		e := all[0].Edges[0]
		if e.Edge != "here" || e.State != state || e.Silent || e.Tables != 1 || e.Rows != 29 || uint64(e.Epoch) != all[0].Epoch || e.StreamID != all[0].StreamID {
			return fmt.Errorf("got %s", text)
		}
		return nil
	})
	if state == "stopped" {
		return
	}
	until(t, "transfer counts the edge", func() error {
		text, _, err := newClient("http://"+w.admin, "transfer", "tcp", w.admin).ask(t.Context(), http.MethodGet, "/metrics", nil)
		if err != nil {
			return err
		}
		for _, word := range []string{`millrace_edges{state="reporting",stream="shop"} 1`, `millrace_edge_lowest_index{stream="shop"} `} {
			if !strings.Contains(string(text), word) {
				return fmt.Errorf("it has no %s", word)
			}
		}
		return nil
	})
}

// tail wants the topic's entries to be dense and to tell of the change.
func (w *world) tail(t *testing.T) {
	t.Helper()
	next, puts, deletes, changes := 1.0, 0, 0, 0
	for line := range strings.Lines(program(t, w.dir, "tail", "-c", w.file)) {
		var e map[string]any
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("read %s: %v", line, err)
		}
		if e["kind"] == "term" {
			continue
		}
		if e["index"] != next {
			t.Fatalf("got %s, want index %v", line, next)
		}
		next++
		switch e["kind"] {
		case "put":
			puts++
			if row, _ := e["row"].(map[string]any); row["id"] == nil || e["table"] != "public.items" {
				t.Errorf("a put without row or table: %s", line)
			}
		case "delete":
			deletes++
			if fmt.Sprint(e["key"]) != "[s0 6]" {
				t.Errorf("got %s, want s0,6 to be deleted", line)
			}
		}
		if e["kind"] == "delete" || e["kind"] == "put" && e["load"] == nil {
			changes++
			if ends := e["unit_end"] == true && e["chain"] != nil; ends != (changes == 2) {
				t.Errorf("got %s, want the second of the two changes to be the end of their unit", line)
			}
		}
	}
	if puts != 31 || deletes != 1 {
		t.Errorf("got %d puts and %d deletes, want 31 and 1", puts, deletes)
	}
	from := program(t, w.dir, "tail", "-c", w.file, "--from", "30")
	if strings.Contains(from, `"index":29,`) || !strings.Contains(from, `"index":30,`) {
		t.Errorf("tail --from 30 begins elsewhere: %.300s", from)
	}
}
