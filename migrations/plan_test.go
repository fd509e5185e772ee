package migrations

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/internal/finding"
	"github.com/millrace-db/millrace/internal/pgtest"
)

// found wants a finding of a level about a subject, with some words in it.
func found(t *testing.T, r *Report, level finding.Level, subject string, words ...string) {
	t.Helper()
	for _, f := range r.Findings {
		if f.Level == level && f.Subject == subject && !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(f.String(), w) }) && f.Mend != "" {
			return
		}
	}
	t.Errorf("no %s about %q with %q among %+v", level, subject, words, r.Findings)
}

// TestPoolerIsRefused leads one URL, and the other, to a real PgBouncer, which refuses
// what it does not know or was told to swallow it: every step says so, and does nothing.
func TestPoolerIsRefused(t *testing.T) {
	r := newRig(t, 15, "CREATE TABLE a (id int PRIMARY KEY)", tablesOf("a")...)
	direct := r.cfg
	for _, ignored := range []string{"", strings.Join(slices.Collect(maps.Keys(capture.Session())), ",")} {
		at := pgtest.Bouncer(t, server(t, "source", 15), r.src.Name, ignored)
		for _, where := range []side{source, target} {
			r.cfg = direct
			if where == source {
				r.cfg.SourceURL = at
			} else {
				r.cfg.TargetURL = at
			}
			r.renew()
			report, err := r.m.Plan(r.ctx())
			r.must("plan", err)
			if !report.Blocked() {
				t.Error("the plan is not blocked")
			}
			found(t, report, finding.Problem, string(where)+".url", "pooler", "address of the server")
			for name, step := range map[string]func(context.Context) error{
				"prepare": func(ctx context.Context) error { return r.m.Prepare(ctx, nil) },
				"copy":    r.m.Copy,
				"follow":  func(ctx context.Context) error { return r.m.Follow(ctx, Converged) },
				"verify":  func(ctx context.Context) error { _, err := r.m.Verify(ctx); return err },
				"cutover": func(ctx context.Context) error { _, err := r.m.Cutover(ctx); return err },
				"abort":   r.m.Abort,
			} {
				if err := step(r.ctx()); !errors.Is(err, ErrBlocked) || !strings.Contains(err.Error(), string(where)+".url") || !strings.Contains(err.Error(), "mend: give the address") {
					t.Errorf("%s through a pooler: %v", name, err)
				}
			}
		}
	}
}

// TestPlanLooksAhead finds before anything is made what would be in the way of going over.
func TestPlanLooksAhead(t *testing.T) {
	r := newRig(t, 17, "CREATE TABLE hits (id bigint PRIMARY KEY, note text); INSERT INTO hits SELECT i, 'x' FROM generate_series(1, 2000) i; ANALYZE hits", tablesOf("hits")...)
	r.behind()
	plan := func() *Report {
		t.Helper()
		report, err := r.m.Plan(r.ctx())
		r.must("plan", err)
		return report
	}
	report := plan()
	if report.Blocked() || len(report.Bouncers) != 1 || !strings.HasPrefix(report.Bouncers[0].Version, "PgBouncer 1.") || report.Bouncers[0].PoolMode != "transaction" {
		t.Errorf("plan: %+v", report)
	}
	if !strings.Contains(report.CopyBasis, "assumed") {
		t.Errorf("the copy is reckoned from: %s", report.CopyBasis)
	}
	b := &r.cfg.Bouncers[0]
	good := *b
	for _, c := range []struct {
		what  string
		spoil func()
		words []string
	}{
		{"the console is away", func() { b.Admin = strings.Replace(b.Admin, "/pgbouncer", "/nothing", 1) }, []string{"console is not to be reached"}},
		{"another database", func() { b.Database = "none" }, []string{"does not know the database"}},
		{"it leads elsewhere", func() { b.Source, b.Target = b.Target, b.Source }, []string{"writers are at the source"}},
		{"a file that may not be replaced", func() { b.File = "/proc/self/databases.ini" }, []string{"databases.ini"}},
		{"a command that is not there", func() { b.File, b.Command = "", []string{"/no/such/command"} }, []string{"its command cannot be run"}},
	} {
		*b = good
		c.spoil()
		r.renew()
		report := plan()
		if !report.Blocked() {
			t.Errorf("%s: the plan is not blocked", c.what)
		}
		found(t, report, finding.Problem, "PgBouncer, database "+b.Database, c.words...)
		if err := r.m.Prepare(r.ctx(), nil); !errors.Is(err, ErrBlocked) {
			t.Errorf("%s: prepare: %v", c.what, err)
		}
	}
	*b = good
	r.renew()
	file, err := os.ReadFile(b.File)
	r.must("read the file", err)
	text := strings.Replace(string(file), "pool_size=5", "pool_size=5 pool_mode=session", 1)
	r.must("write the file", os.WriteFile(b.File, []byte(text), 0o600))
	console, err := r.m.openBouncer(r.ctx(), *b)
	r.must("connect", err)
	defer console.close()
	_, err = console.say(r.ctx(), "RELOAD")
	r.must("reload", err)
	waitFor(t, "the pool's mode to be another", func() bool { report = plan(); return report.Bouncers[0].PoolMode == "session" })
	found(t, report, finding.Warning, "PgBouncer, database app", "session", "transaction")

	// A role that may copy, and no more.
	role := r.src.Name + "_plain"
	for _, db := range []*pgtest.DB{r.src, r.dst} {
		db.Exec(fmt.Sprintf("CREATE ROLE %[1]s LOGIN; GRANT CREATE ON DATABASE %[2]q TO %[1]s; GRANT ALL ON SCHEMA public TO %[1]s", role, db.Name))
		t.Cleanup(func() { db.Exec(fmt.Sprintf("DROP OWNED BY %[1]s CASCADE; DROP ROLE %[1]s", role)) })
	}
	r.src.Exec(fmt.Sprintf("ALTER ROLE %[1]s REPLICATION; ALTER TABLE hits OWNER TO %[1]s", role))
	r.dst.Exec("CREATE TABLE hits (id bigint PRIMARY KEY, note text); GRANT ALL ON hits TO " + role)
	r.cfg.Bouncers = nil
	as := func(text string) string {
		u, err := url.Parse(text)
		r.must("read a URL", err)
		u.User = url.User(role)
		return u.String()
	}
	r.cfg.SourceURL, r.cfg.TargetURL = as(r.src.URL), as(r.dst.URL)
	r.renew()
	report = plan()
	found(t, report, finding.Warning, "target: role", "may not replicate", "rehearse and cutover")
	found(t, report, finding.Warning, "emergency access", "CREATE EXTENSION postgres_fdw")
	found(t, report, finding.Problem, "table public.hits at the target", "does not own it", "OWNER TO")
	r.src.Exec("CREATE TABLE refers (hit bigint REFERENCES hits)")
	found(t, plan(), finding.Warning, "table public.hits", "nothing could come back", fmt.Sprintf("GRANT SET ON PARAMETER session_replication_role TO %q", role))
	r.src.Exec("DROP TABLE refers")

	// What was copied tells how fast it goes.
	r.cfg.SourceURL, r.cfg.TargetURL = r.src.URL, r.dst.URL
	r.renew()
	r.must("prepare", r.m.Prepare(r.ctx(), nil))
	r.must("copy", r.m.Copy(r.ctx()))
	if report = plan(); !strings.Contains(report.CopyBasis, "chunks that were copied") {
		t.Errorf("the copy is reckoned from: %s", report.CopyBasis)
	}
	status, err := r.m.Status(r.ctx())
	r.must("status", err)
	if got, want := fmt.Sprint(status.Copy.Blocks, " ", status.Copy.BlocksDone), r.src.String("SELECT concat_ws(' ', n, n) FROM (SELECT pg_relation_size('hits') / 8192 AS n) x"); got != want {
		t.Errorf("blocks, and those that are copied: %s, want %s", got, want)
	}
}
