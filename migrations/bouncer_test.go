package migrations

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace/internal/pgtest"
)

// behind puts a PgBouncer before the source that has one database, app, and returns the
// URL of that.
func (r *rig) behind() (app string) {
	r.t.Helper()
	line := func(db *pgtest.DB) string {
		u, err := url.Parse(db.URL)
		r.must("read a URL", err)
		return fmt.Sprintf("host=%s port=%s dbname='%s' pool_size=5", u.Hostname(), u.Port(), strings.TrimPrefix(u.Path, "/"))
	}
	b := Bouncer{Database: "app", Source: line(r.src), Target: line(r.dst)}
	at := pgtest.BouncerWith(r.t, server(r.t, "source", 15), "app", pgtest.BouncerOptions{
		Databases: "; what the application uses\napp = " + b.Source + "\nother = " + b.Source + "\n", File: func(path string) { b.File = path },
	})
	u, err := url.Parse(at)
	r.must("read a URL", err)
	u.Path = "/pgbouncer"
	b.Admin = u.String()
	r.cfg.Bouncers = []Bouncer{b}
	r.cfg.PauseBudget = 20 * time.Second // the machine may be busy
	r.renew()
	return at
}

// through writes through PgBouncer until stop is called, which returns how many writes
// were accepted; any that fails is an error. It breaks none off, which the test's end does.
func (r *rig) through(url string) (count *atomic.Int64, stop func() int64) {
	ctx, cancel := context.WithCancel(r.t.Context())
	count = new(atomic.Int64)
	var group sync.WaitGroup
	for range 3 {
		group.Go(func() {
			cfg, err := pgx.ParseConfig(url)
			if err != nil {
				r.t.Error(err)
				return
			}
			cfg.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
			conn, err := pgx.ConnectConfig(r.t.Context(), cfg)
			if err != nil {
				r.t.Error(err)
				return
			}
			defer conn.Close(context.Background()) //nolint:errcheck // nothing is lost with it
			for ctx.Err() == nil {
				if _, err := conn.Exec(r.t.Context(), "INSERT INTO hits (id) VALUES ($1)", ids.Add(1)); err != nil {
					if r.t.Context().Err() == nil {
						r.t.Errorf("a write through PgBouncer: %v", err)
					}
					return
				}
				count.Add(1)
			}
		})
	}
	stop = func() int64 { cancel(); group.Wait(); return count.Load() }
	r.t.Cleanup(func() { stop() })
	return count, stop
}

// TestBouncer has clients that know nothing of migrations write through a real PgBouncer
// while writers go over and come back: none of their writes fails. What goes wrong
// leaves them writing where they were.
func TestBouncer(t *testing.T) {
	r := newRig(t, 17, "CREATE TABLE hits (id bigint PRIMARY KEY)", tablesOf("hits")...)
	app := r.behind()
	r.follow()
	more := func(count *atomic.Int64) {
		t.Helper()
		from := count.Load()
		waitFor(t, "writes through PgBouncer", func() bool { return count.Load() > from+20 || t.Failed() })
		if t.Failed() { // nobody writes any more
			t.FailNow()
		}
	}
	count, stop := r.through(app)
	more(count)
	p, err := r.m.Rehearse(r.ctx())
	r.must("rehearse", err)
	t.Logf("rehearsed: %+v", *p)
	more(count)
	p, err = r.m.Cutover(r.ctx())
	r.must("cutover", err)
	t.Logf("cut over: %+v", *p)
	more(count)
	text, err := os.ReadFile(r.cfg.Bouncers[0].File)
	r.must("read the file", err)
	if want := "; what the application uses\napp = " + r.cfg.Bouncers[0].Target + "\nother = " + r.cfg.Bouncers[0].Source + "\n"; string(text) != want {
		t.Errorf("the file is %q, want %q", text, want)
	}
	r.must("follow back", r.m.Follow(r.ctx(), r.reachedBack()))
	_, err = r.m.Rollback(r.ctx())
	r.must("rollback", err)
	more(count)

	// A command that fails gives the move up.
	file := r.cfg.Bouncers[0].File
	r.cfg.Bouncers[0].File, r.cfg.Bouncers[0].Command = "", []string{"/bin/sh", "-c", `[ "$MILLRACE_SIDE" = source ] || { echo "cannot do $MILLRACE_DATABASE"; exit 3; }`}
	r.renew()
	if _, err := r.m.Cutover(r.ctx()); err == nil || !strings.Contains(err.Error(), "cannot do app") {
		t.Errorf("cutover with a command that fails: got %v, want what it says", err)
	}
	if s, err := r.m.Status(r.ctx()); err != nil || s.Active != "source" {
		t.Errorf("then the status is %+v, %v; want the source to take writes", s, err)
	}
	more(count)
	// A command that does nothing is seen through.
	r.cfg.Bouncers[0].Command = []string{"/bin/true"}
	r.renew()
	if _, err := r.m.Cutover(r.ctx()); err == nil || !strings.Contains(err.Error(), "it still sends clients to") {
		t.Errorf("cutover with a command that does nothing: got %v", err)
	}
	more(count)

	// One that does not end is not waited for.
	r.cfg.Bouncers[0].Command = []string{"/bin/sh", "-c", `[ "$MILLRACE_SIDE" = source ] || exec sleep 100`}
	r.cfg.PauseBudget = 2 * time.Second
	r.renew()
	if _, err := r.m.Cutover(r.ctx()); !errors.Is(err, ErrBudget) {
		t.Errorf("cutover with a command that does not end: got %v, want ErrBudget", err)
	}
	more(count)

	// A client that stays in its transaction, for longer than the budget.
	r.cfg.Bouncers[0].File, r.cfg.Bouncers[0].Command = file, nil
	r.cfg.PauseBudget = 300 * time.Millisecond
	r.renew()
	cfg, err := pgx.ParseConfig(app)
	r.must("read the URL", err)
	cfg.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
	long, err := pgx.ConnectConfig(r.ctx(), cfg)
	r.must("connect", err)
	defer long.Close(context.Background()) //nolint:errcheck // nothing is lost with it
	if _, err := long.Exec(r.ctx(), "BEGIN; SELECT 1"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.m.Cutover(r.ctx()); !errors.Is(err, ErrBudget) || !strings.Contains(err.Error(), "PgBouncer did not pause") {
		t.Errorf("cutover while a transaction runs: got %v, want ErrBudget", err)
	}
	more(count)
	if _, err := long.Exec(r.ctx(), "ROLLBACK"); err != nil {
		t.Fatal(err)
	}

	// A process that was killed while clients waited: the next one lets them go on.
	r.cfg.PauseBudget = 20 * time.Second
	r.renew()
	w, err := r.m.openWays(r.ctx())
	r.must("open", err)
	r.must("pause", w.pauseBouncers(r.ctx()))
	w.close()
	r.catchUp()
	more(count)

	// Somebody has sent it elsewhere.
	r.cfg.Bouncers[0].Source = strings.Replace(r.cfg.Bouncers[0].Source, "host=", "host=localhost", 1)
	r.renew()
	if _, err := r.m.Cutover(r.ctx()); !errors.Is(err, ErrBlocked) {
		t.Errorf("cutover with a PgBouncer that goes elsewhere: got %v, want ErrBlocked", err)
	}
	accepted := stop()
	r.catchUp()
	r.same()
	if got := r.src.String("SELECT count(*) FROM hits"); got != fmt.Sprint(accepted) {
		t.Errorf("the source has %s rows, accepted were %d", got, accepted)
	}
}

// TestOpeningFails has the sessions at the target end right behind the commit that
// closes the source: the way back is kept, and the next command opens the target.
func TestOpeningFails(t *testing.T) {
	r := newRig(t, 15, "CREATE TABLE hits (id bigint PRIMARY KEY)", tablesOf("hits")...)
	r.cfg.PauseBudget = 20 * time.Second // the machine may be busy
	r.renew()
	r.follow()
	r.m.passed = func(step string) {
		if step == "closed" {
			r.dst.Exec("SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'millrace migrate%' AND backend_type = 'client backend'")
		}
	}
	if p, err := r.m.Cutover(r.ctx()); err == nil {
		t.Fatalf("cutover whose sessions at the target were ended: got %+v, want an error", *p)
	}
	r.m.passed = nil
	p, err := r.m.Cutover(r.ctx())
	r.must("cutover again", err)
	if p.Active != "target" || p.Term != 1 {
		t.Errorf("cutover again: got %+v, want the target to take writes in term 1", *p)
	}
	r.dst.Exec("INSERT INTO hits VALUES (1)")
	r.must("follow back", r.m.Follow(r.ctx(), r.reachedBack()))
	r.same()
	_, err = r.m.Rollback(r.ctx())
	r.must("rollback", err)

	// A process that was stopped where it was to open the target comes to it only now.
	w, err := r.m.openWays(r.ctx())
	r.must("open", err)
	defer w.close()
	if err := w.gates[target].open(r.ctx(), 1); !errors.Is(err, ErrRunning) {
		t.Errorf("opening the target for term 1, in term 2: got %v, want ErrRunning", err)
	}
	if open := r.open(); !open[source] || open[target] {
		t.Errorf("open: %v, want the source alone", open)
	}
}
