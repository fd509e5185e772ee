package migrations

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/millrace-db/millrace"
)

// TestCaptureMixed goes over and back where the source is captured by triggers and the
// target by WAL.
func TestCaptureMixed(t *testing.T) {
	r := newRig(t, 15, hits, tablesOf("hits", "other")...)
	r.cfg.Capture, r.cfg.TargetCapture, r.cfg.PauseBudget = millrace.ModeTrigger, millrace.ModeWAL, 20*time.Second
	r.renew()
	r.follow()
	r.src.Exec("UPDATE hits SET note = 'at the source' WHERE id < -400")
	if _, err := r.m.Cutover(r.ctx()); err != nil {
		t.Fatal(err)
	}
	r.dst.Exec("UPDATE hits SET note = 'at the target' WHERE id BETWEEN -450 AND -350")
	status, err := r.m.Status(r.ctx())
	r.must("status", err)
	if status.Follow.LagBytes == 0 || status.Follow.LagKeys != 0 {
		t.Errorf("the way back: %+v", status.Follow)
	}
	if _, err := r.m.Rollback(r.ctx()); err != nil {
		t.Fatal(err)
	}
	r.same()
	r.src.Exec("DELETE FROM hits WHERE id < -480")
	status, err = r.m.Status(r.ctx())
	r.must("status", err)
	if status.Follow.LagBytes != 0 || status.Follow.LagKeys != 20 {
		t.Errorf("the way there: %+v", status.Follow)
	}
	r.catchUp()
	r.same()
	r.must("abort", r.m.Abort(r.ctx()))
}

// TestCaptureByTriggers wants what only triggers can capture to go over, and what they do
// not see to stop the migration.
func TestCaptureByTriggers(t *testing.T) {
	r := newRigBy(t, millrace.ModeTrigger, 17, `CREATE TABLE seats (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, who text);
		INSERT INTO seats SELECT n, 'guest ' || n FROM generate_series(1, 1000) n`, tablesOf("seats")...)
	var script strings.Builder
	r.must("prepare --dry-run", r.m.Prepare(r.ctx(), &script))
	if text := script.String(); !strings.Contains(text, "CREATE OR REPLACE TRIGGER") || !strings.Contains(text, "millrace.applier") || strings.Contains(text, "CREATE ROLE") {
		t.Errorf("prepare --dry-run: %s", text)
	}
	r.follow()
	r.src.Exec("UPDATE seats SET id = 1001 - id; DELETE FROM seats WHERE id % 10 = 0")
	r.src.Exec("BEGIN; INSERT INTO seats VALUES (1, 'twice'); DELETE FROM seats WHERE id = 1 AND who <> 'twice'; COMMIT")
	r.catchUp()
	r.same()
	r.src.Exec("VACUUM FULL seats")
	r.src.Exec("UPDATE seats SET who = 'again' WHERE id < 10")
	r.catchUp()
	r.same()

	r.cfg.Capture = millrace.ModeWAL
	r.renew()
	if err := r.m.Follow(r.ctx(), Forever); !errors.Is(err, ErrOther) || !strings.Contains(err.Error(), "source.capture") {
		t.Errorf("follow with another capture: got %v, want ErrOther", err)
	}
	r.cfg.Capture = millrace.ModeTrigger
	r.renew()

	r.src.Exec("ALTER TABLE seats DISABLE TRIGGER ALL; UPDATE seats SET who = 'unseen' WHERE id = 5; ALTER TABLE seats ENABLE TRIGGER ALL")
	if err := r.m.Follow(r.ctx(), Forever); !errors.Is(err, ErrChanged) || !strings.Contains(err.Error(), "migrate abort") {
		t.Errorf("follow after triggers were disabled: got %v, want ErrChanged", err)
	}
	r.must("abort", r.m.Abort(r.ctx()))
	if got := r.src.String("SELECT (SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'millrace%') || ' ' || (SELECT count(*) FROM millrace.tick)"); got != "0 0" {
		t.Errorf("abort leaves triggers and ticks: %s", got)
	}
}
