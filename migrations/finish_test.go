package migrations

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/millrace-db/millrace/internal/pgtest"
)

// TestFinishCutOff has finish end behind each thing that it takes away: another finish
// takes the rest away, and one more has nothing to do.
func TestFinishCutOff(t *testing.T) {
	r := newRig(t, 15, hits, tablesOf("hits", "other")...)
	r.cfg.PauseBudget = 20 * time.Second
	r.renew()
	r.must("prepare", r.m.Prepare(r.ctx(), nil))
	for what, move := range map[string]func(context.Context) (*Pause, error){"rehearse": r.m.Rehearse, "cutover": r.m.Cutover} {
		if _, err := move(r.ctx()); !errors.Is(err, ErrStep) || !strings.Contains(err.Error(), "copy comes first") {
			t.Errorf("%s before the copy: %v", what, err)
		}
	}
	if got := r.dst.String("SELECT (SELECT count(*) FROM millrace.migration) || ' ' || (SELECT count(*) FROM pg_publication)"); got != "1 0" {
		t.Errorf("what was refused has made something at the target (migrations, publications): %s", got)
	}
	r.must("abort", r.m.Abort(r.ctx()))
	for _, step := range []string{"the way back", "gate at the source", "gate at the target", "state at the target"} {
		r.dst.Exec("DROP TABLE IF EXISTS hits, other")
		r.follow()
		if _, err := r.m.Cutover(r.ctx()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(r.ctx())
		gone := false // the way back is a migration too
		r.m.passed = func(at string) {
			gone = gone || at == "taken away: the way back"
			if gone && at == "taken away: "+step {
				cancel()
			}
		}
		if err := r.m.Finish(ctx); !errors.Is(err, context.Canceled) {
			t.Fatalf("finish, to be cut off behind %s: %v", step, err)
		}
		r.m.passed = nil
		r.must("finish, cut off behind "+step, r.m.Finish(r.ctx()))
		r.must("finish again", r.m.Finish(r.ctx()))
		for where, db := range map[side]*pgtest.DB{source: r.src, target: r.dst} {
			for what, query := range map[string]string{
				"migrations": "SELECT count(*) FROM millrace.migration", "streams": "SELECT count(*) FROM millrace.stream WHERE name LIKE 'migrate%'",
				"triggers": "SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'millrace_deny%'", "sequences": "SELECT count(*) FROM pg_class WHERE relname LIKE 'gate%'",
				"slots": "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()", "publications": "SELECT count(*) FROM pg_publication",
			} {
				if got := db.String(query); got != "0" {
					t.Errorf("finish, cut off behind %s, leaves %s %s at the %s", step, got, what, where)
				}
			}
		}
		if got := r.dst.String("SELECT active FROM millrace.migration_manager"); got != "target" {
			t.Errorf("the %s takes writes, want the target", got)
		}
		status, err := r.m.Status(r.ctx())
		r.must("status", err)
		if status.Active != "target" || status.Term == 0 || !strings.HasPrefix(status.Phase, "finished") {
			t.Errorf("status behind finish: %+v", status)
		}
		if err := r.m.Abort(r.ctx()); !errors.Is(err, ErrStep) || !strings.Contains(err.Error(), "is finished") {
			t.Errorf("abort behind finish: %v", err)
		}
		if _, err := r.m.Rollback(r.ctx()); !errors.Is(err, ErrStep) || !strings.Contains(err.Error(), "is finished") {
			t.Errorf("rollback behind finish: %v", err)
		}
		if err := r.m.Prepare(r.ctx(), nil); !errors.Is(err, ErrBlocked) || strings.Contains(err.Error(), "TRUNCATE") {
			t.Errorf("prepare behind finish, with writers' rows at the target: %v", err)
		}
	}
}

// TestFinishBesideReader has somebody read a table for long while its gate is taken
// away: nobody waits behind finish for longer than that takes to give up.
func TestFinishBesideReader(t *testing.T) {
	r := newRig(t, 15, hits, tablesOf("hits", "other")...)
	r.cfg.PauseBudget = 20 * time.Second
	r.renew()
	r.follow()
	if _, err := r.m.Cutover(r.ctx()); err != nil {
		t.Fatal(err)
	}
	reader, err := r.dst.Pool.Begin(r.ctx())
	r.must("begin", err)
	defer reader.Rollback(context.Background()) //nolint:errcheck // nothing is lost with it
	if _, err := reader.Exec(r.ctx(), "SELECT FROM hits LIMIT 1"); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- r.m.Finish(r.ctx()) }()
	waitFor(t, "finish to want the table", func() bool {
		return r.dst.String("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%DROP TRIGGER%' AND datname = current_database()") != "0"
	})
	r.dst.Exec("SET lock_timeout = '10s'; INSERT INTO hits (id) VALUES (1000001)")
	r.must("end reading", reader.Rollback(r.ctx()))
	if err := <-done; err != nil {
		r.must("finish, again", r.m.Finish(r.ctx())) // the reader was there for too long
	}
}
