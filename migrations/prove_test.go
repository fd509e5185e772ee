package migrations

import (
	"errors"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/pgtest"
)

// TestWayBackProven breaks the way back after it was made, each time in another way:
// writers do not go over, and are not held.
func TestWayBackProven(t *testing.T) { bothModes(t, wayBackProven) }

func wayBackProven(t *testing.T, mode millrace.Mode) {
	r := newRigBy(t, mode, 15, hits+"; CREATE TABLE empty (id int PRIMARY KEY, v int)", tablesOf("hits", "other", "empty")...)
	// A role that is no superuser, and owns the tables.
	role := "mover_" + r.cfg.Name
	for _, sql := range []string{
		"CREATE ROLE " + role + " LOGIN REPLICATION", "ALTER DATABASE " + r.src.Name + " OWNER TO " + role, "ALTER SCHEMA public OWNER TO " + role,
		"ALTER TABLE hits OWNER TO " + role, "ALTER TABLE other OWNER TO " + role, "ALTER TABLE empty OWNER TO " + role, "GRANT SET ON PARAMETER session_replication_role TO " + role,
	} {
		r.src.Exec(sql)
	}
	t.Cleanup(func() { r.forget(r.src, role) })
	u, err := url.Parse(r.cfg.SourceURL)
	r.must("read the URL", err)
	u.User = url.User(role)
	r.cfg.SourceURL, r.cfg.PauseBudget = u.String(), 20*time.Second
	r.renew()
	r.follow()
	cases := []struct {
		name        string
		db          *pgtest.DB
		plant, mend string
		says        string
	}{
		{"a right is missing", r.src, "REVOKE UPDATE ON hits FROM " + role, "GRANT UPDATE ON hits TO " + role, "permission denied for table hits"},
		{"a right on a table without rows is missing", r.src, "REVOKE INSERT ON empty FROM " + role, "GRANT INSERT ON empty TO " + role, "permission denied for table empty"},
		{"a rule keeps rows out", r.src, "CREATE RULE keep AS ON UPDATE TO other DO INSTEAD NOTHING; ALTER TABLE other ENABLE ALWAYS RULE keep", "DROP RULE keep ON other", "1 rows were to be put, 0 were updated"},
		{"its slot is gone", r.dst, "SELECT pg_drop_replication_slot('millrace_migrate_" + r.cfg.Name + "_back')", "", "slot"},
		{"a type has changed", r.src, `ALTER TABLE other ALTER COLUMN "Order" TYPE smallint`, "", "smallint"},
	}
	if mode == millrace.ModeTrigger {
		cases[3].name, cases[3].plant = "its triggers are off", "DO $$ DECLARE t record; BEGIN FOR t IN SELECT tgname FROM pg_trigger WHERE tgrelid = 'hits'::regclass AND tgname NOT LIKE 'millrace_deny%' AND tgname LIKE 'millrace%' LOOP EXECUTE format('ALTER TABLE hits DISABLE TRIGGER %I', t.tgname); END LOOP; END $$"
		cases[3].says = "trigger"
		cases = append(cases[:1], cases[3])
	}
	for i, c := range cases {
		held := false
		r.m.passed = func(step string) {
			held = held || step == "paused"
			if step == "armed" {
				c.db.Exec(c.plant)
			}
		}
		if _, err := r.m.Cutover(r.ctx()); !errors.Is(err, ErrWayBack) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: got %v, want ErrWayBack with %q", c.name, err, c.says)
		}
		if held {
			t.Errorf("%s: writers were held", c.name)
		}
		if open := r.open(); !open[source] || open[target] {
			t.Fatalf("%s: open: %v, want the source alone", c.name, open)
		}
		if c.mend != "" {
			c.db.Exec(c.mend)
		}
		if i != min(3, len(cases)-1) {
			continue
		}
		// Mended, it works: nothing of what was tried is left at either side.
		r.m.passed = nil
		_, err := r.m.Cutover(r.ctx())
		r.must("cutover when all is mended", err)
		_, err = r.m.Rollback(r.ctx())
		r.must("rollback", err)
		r.same()
	}
}

// forget drops a role. Sessions of it that end take their staging tables away first.
func (r *rig) forget(db *pgtest.DB, role string) {
	waitFor(r.t, "sessions of "+role+" to end", func() bool {
		return db.String("SELECT count(*) FROM pg_stat_activity WHERE usename = $1", role) == "0"
	})
	db.Exec("REASSIGN OWNED BY " + role + " TO CURRENT_USER; DROP OWNED BY " + role + "; DROP ROLE " + role)
}

// TestTriggersThatMayNotBeSilenced has a role at the target that may not keep triggers
// silent, which nothing needs until somebody makes one there: no change goes in then, and
// no row is tried.
func TestTriggersThatMayNotBeSilenced(t *testing.T) {
	r := newRig(t, 15, "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT n, 'v' FROM generate_series(1, 5) n", tablesOf("t")...)
	role := "loud_" + r.cfg.Name
	r.dst.Exec("CREATE ROLE " + role + " LOGIN REPLICATION")
	r.dst.Exec("ALTER DATABASE " + r.dst.Name + " OWNER TO " + role)
	r.dst.Exec("ALTER SCHEMA public OWNER TO " + role)
	t.Cleanup(func() { r.forget(r.dst, role) })
	u, err := url.Parse(r.cfg.TargetURL)
	r.must("read the URL", err)
	u.User = url.User(role)
	r.cfg.TargetURL, r.cfg.PauseBudget = u.String(), 20*time.Second
	r.renew()
	r.follow()
	_, err = r.m.Rehearse(r.ctx())
	r.must("rehearse", err)

	const make = `CREATE FUNCTION fires() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.v := 'fired'; RETURN NEW; END $$; CREATE TRIGGER fires BEFORE UPDATE ON t FOR EACH ROW EXECUTE FUNCTION fires()`
	f, closed := r.opened()
	r.dst.Exec(make)
	r.src.Exec("UPDATE t SET v = 'w' WHERE id = 3")
	reached := r.reached()
	for err = nil; err == nil && !reached(f); {
		err = f.once(r.ctx())
	}
	closed()
	if !errors.Is(err, ErrBlocked) || !strings.Contains(err.Error(), "GRANT SET ON PARAMETER session_replication_role") {
		t.Errorf("follow with a trigger: %v, want ErrBlocked", err)
	}
	if _, err := r.m.Cutover(r.ctx()); !errors.Is(err, ErrBlocked) {
		t.Errorf("cutover with a trigger: %v, want ErrBlocked", err)
	}
	if got := r.dst.String("SELECT count(*) FROM t WHERE v = 'fired'"); got != "0" {
		t.Errorf("the trigger has fired for %s rows", got)
	}
	r.dst.Exec("DROP TRIGGER fires ON t")
	r.catchUp()
	r.same()
}
