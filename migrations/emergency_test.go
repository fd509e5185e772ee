package migrations

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace/internal/pgtest"
)

const stragglers = `CREATE TYPE public.mood AS ENUM ('ok', 'bad');
	CREATE TABLE "Odd ones" (id serial PRIMARY KEY, "select" text COLLATE "C" DEFAULT 'none', mood public.mood, n numeric(8,2), doubled numeric GENERATED ALWAYS AS (n * 2) STORED, secret text, made timestamptz DEFAULT now());
	INSERT INTO "Odd ones" ("select", n) SELECT 'row ' || i, i FROM generate_series(1, 50) i;
	CREATE TABLE plain (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, odd int REFERENCES "Odd ones"); INSERT INTO plain (odd) SELECT i FROM generate_series(1, 20) i;
	CREATE VIEW looks AS SELECT id FROM plain`

// TestEmergency has a client that was forgotten at the source read and write through to
// the target, on 15 to 17 and 17 to 15, while the way back goes on; writers come back
// when the names have.
func TestEmergency(t *testing.T) {
	for _, version := range []int{17, 15} {
		t.Run(fmt.Sprintf("to %d", version), func(t *testing.T) {
			r := newRig(t, version, stragglers, tablesOf("Odd ones", "plain")...)
			if version == 15 { // from a 17
				r.src.Exec(`DROP VIEW looks; DROP TABLE plain, "Odd ones"; DROP TYPE mood`)
				r.src, r.dst = pgtest.On(t, server(t, "target17", 17)), pgtest.On(t, server(t, "source", 15))
				r.src.Exec(stragglers)
				r.cfg.SourceURL, r.cfg.TargetURL = r.src.URL, r.dst.URL
			}
			r.cfg.PauseBudget = 20 * time.Second
			r.renew()
			emergency(t, r, version == 17)
		})
	}
}

func emergency(t *testing.T, r *rig, finish bool) {
	r.follow()
	if _, err := r.m.Emergency(r.ctx(), EmergencyOptions{}); !errors.Is(err, ErrStep) {
		t.Fatalf("emergency access before writers have gone over: got %v, want ErrStep", err)
	}
	_, err := r.m.Cutover(r.ctx())
	r.must("cutover", err)
	role := "straggler_" + r.src.Name
	r.src.Exec(fmt.Sprintf(`CREATE ROLE %[1]q LOGIN; GRANT SELECT, INSERT, UPDATE, DELETE ON "Odd ones" TO %[1]q; GRANT SELECT ON plain TO %[1]q`, role))
	t.Cleanup(func() { r.src.Exec(fmt.Sprintf(`DROP OWNED BY %[1]q; DROP ROLE %[1]q`, role)) })
	cfg, err := pgx.ParseConfig(r.src.URL)
	r.must("read the URL", err)
	cfg.User, cfg.RuntimeParams["application_name"] = role, "old job"
	cfg.DefaultQueryExecMode = pgx.QueryExecModeExec
	client, err := pgx.ConnectConfig(r.ctx(), cfg)
	r.must("connect", err)
	defer client.Close(r.ctx()) //nolint:errcheck // nothing is lost with it
	ask := func(sql string) string {
		t.Helper()
		var text string
		if err := client.QueryRow(r.ctx(), sql).Scan(&text); err != nil {
			return err.Error()
		}
		return text
	}
	r.dst.Exec(`UPDATE "Odd ones" SET "select" = 'at the target' WHERE id = 7`)

	var dry bytes.Buffer
	_, err = r.m.Emergency(r.ctx(), EmergencyOptions{Dry: &dry})
	r.must("dry run", err)
	if got := r.src.String("SELECT count(*) FROM pg_foreign_server"); got != "0" || !strings.Contains(dry.String(), `ALTER TABLE "public"."plain" RENAME TO "plain_millrace_aside"`) {
		t.Errorf("dry run made %s servers and says %s", got, dry.String())
	}
	// Where the source does not reach the target, nothing is renamed.
	if _, err := r.m.Emergency(r.ctx(), EmergencyOptions{URL: "postgres://nobody@127.0.0.1:1/nowhere"}); !errors.Is(err, ErrBlocked) {
		t.Errorf("emergency access to nowhere: got %v, want ErrBlocked", err)
	}
	s, err := r.m.Emergency(r.ctx(), EmergencyOptions{})
	r.must("emergency", err)
	var lacks []string
	for _, x := range s.Tables {
		lacks = append(lacks, x.Lacks...)
	}
	slices.Sort(lacks)
	if got := strings.Join(lacks, "; "); !strings.Contains(got, "looks reads the table that stands aside") || !strings.Contains(got, "foreign key plain_odd_fkey") {
		t.Errorf("emergency access lacks %q; want the view and the foreign key named", got)
	}
	if got := ask(`SELECT "select" || ' ' || doubled FROM "Odd ones" WHERE id = 7`); got != "at the target 14.00" {
		t.Errorf("the client reads %q", got)
	}
	if got := ask(`INSERT INTO "Odd ones" (n) VALUES (1) RETURNING id::text`); !strings.Contains(got, "ERROR") {
		t.Errorf("a write where none is asked for: got %q, want an error", got)
	}
	if _, err := r.m.Rollback(r.ctx()); !errors.Is(err, ErrStep) || !strings.Contains(err.Error(), "--remove") {
		t.Errorf("rollback while it stands: got %v, want ErrStep that names --remove", err)
	}

	_, err = r.m.Emergency(r.ctx(), EmergencyOptions{Writes: true})
	r.must("emergency with writes", err)
	if got := ask(`INSERT INTO "Odd ones" (n, mood) VALUES (3, 'bad') RETURNING id || ' ' || "select" || ' ' || mood`); got != "51 none bad" {
		t.Errorf("the client's insert: got %q", got)
	}
	if got := ask(`WITH x AS (UPDATE "Odd ones" SET n = 100 WHERE id = 8 RETURNING 1), y AS (DELETE FROM "Odd ones" WHERE id = 50 RETURNING 1) SELECT (SELECT count(*) FROM x) || ' ' || (SELECT count(*) FROM y)`); got != "1 1" {
		t.Errorf("the client's update and delete: got %q", got)
	}
	if got := ask("INSERT INTO plain (odd) VALUES (1) RETURNING id::text"); !strings.Contains(got, "42501") {
		t.Errorf("a write without the right to: got %q", got)
	}
	if got := r.dst.String(`INSERT INTO "Odd ones" (n) VALUES (4) RETURNING id`); got != "52" {
		t.Errorf("the target's sequence goes on at %s, want 52", got)
	}
	if got := r.dst.String(`SELECT count(*) || ' ' || sum(doubled) FILTER (WHERE id IN (8, 51)) FROM "Odd ones"`); got != "51 206.00" {
		t.Errorf("the target has %s", got)
	}
	client.Exec(r.ctx(), "SET default_transaction_read_only = on") //nolint:errcheck // the next statement tells
	if got := ask(`SELECT count(*)::text FROM plain`); got != "20" {
		t.Errorf("the client reads %q in a transaction that may not write", got)
	}

	// The way back goes on.
	r.must("follow back", r.m.Follow(r.ctx(), r.reachedBack()))
	if got := r.src.String(`SELECT count(*) || ' ' || sum(doubled) FILTER (WHERE id IN (8, 51)) FROM "Odd ones_millrace_aside"`); got != "51 206.00" {
		t.Errorf("the table that stands aside has %s", got)
	}
	certificate, err := r.m.Verify(r.ctx())
	r.must("verify the way back", err)
	if !certificate.Equal {
		t.Errorf("certificate: %+v", certificate)
	}
	status, err := r.m.Status(r.ctx())
	r.must("status", err)
	var uses []string
	if status.Emergency != nil {
		for _, u := range status.Emergency.Uses {
			uses = append(uses, fmt.Sprintf("%s %s %s %s", u.Kind, u.Table, u.Role, u.Application))
		}
	}
	for _, kind := range []string{"READ", "INSERT", "UPDATE", "DELETE"} {
		if want := kind + " public.Odd ones " + role + " old job"; !slices.Contains(uses, want) {
			t.Errorf("status names the uses %q, want %q among them", uses, want)
		}
	}

	r.must("take it away", r.m.RemoveEmergency(r.ctx(), nil))
	r.must("take it away again", r.m.RemoveEmergency(r.ctx(), nil))
	for _, db := range []*pgtest.DB{r.src, r.dst} {
		if got := db.String("SELECT coalesce(string_agg(relname, ' '), '') FROM pg_class WHERE relname LIKE 'emergency%' OR relname LIKE '%aside' OR relkind = 'f'") + db.String("SELECT coalesce(string_agg(proname, ' '), '') FROM pg_proc WHERE proname LIKE 'emergency%'"); got != "" {
			t.Errorf("left are %s", got)
		}
	}
	_, err = r.m.Rollback(r.ctx())
	r.must("rollback", err)
	r.src.Exec(`INSERT INTO "Odd ones" (n) VALUES (9)`)
	r.catchUp()
	r.same()

	if !finish {
		return
	}
	// When the migration is finished it may stand all the same.
	_, err = r.m.Cutover(r.ctx())
	r.must("cutover again", err)
	_, err = r.m.Emergency(r.ctx(), EmergencyOptions{Writes: true})
	r.must("emergency", err)
	r.must("finish", r.m.Finish(r.ctx()))
	client.Exec(r.ctx(), "SET default_transaction_read_only = off") //nolint:errcheck // the next statement tells
	if got := ask(`INSERT INTO "Odd ones" (n) VALUES (5) RETURNING id::text`); got != "54" {
		t.Errorf("the client's insert behind finish: got %q", got)
	}
	if status, err = r.m.Status(r.ctx()); err != nil || status.Emergency == nil || len(status.Emergency.Tables) != 2 {
		t.Errorf("status behind finish: %+v, %v", status, err)
	}
	r.must("take it away", r.m.RemoveEmergency(r.ctx(), nil))
	if got := r.src.String(`SELECT count(*) FROM "Odd ones" WHERE id = 54`); got != "0" {
		t.Errorf("the source's own table has %s rows of the client's last write", got)
	}
}
