package migrations

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/internal/finding"
)

// TestMapped moves a table whose columns are renamed, computed, left out and added at
// the target.
func TestMapped(t *testing.T) {
	r := newRig(t, 17, `CREATE TABLE accounts (id int PRIMARY KEY, "Name" text, secret text, amount numeric(10,2), note varchar(20));
		INSERT INTO accounts SELECT n, 'N' || n, 's', n / 4.0, CASE WHEN n % 3 = 0 THEN NULL ELSE 'note' END FROM generate_series(1, 2000) n`,
		Table{
			From: public("accounts"), To: public("ledger"),
			Columns:     map[string]string{"title": "Name"},
			Expressions: map[string]string{"initial": `left("Name", 1)`, "cents": "(amount * 100)::bigint"},
			Omit:        []string{"secret"},
		})
	report, err := r.m.Plan(r.ctx())
	r.must("plan", err)
	if !report.Blocked() {
		t.Fatal("the plan finds nothing where the target's table is missing")
	}
	if err := r.m.Prepare(r.ctx(), nil); !errors.Is(err, ErrBlocked) || !strings.Contains(err.Error(), "mend:") {
		t.Fatalf("prepare without the target's table: got %v, want ErrBlocked with a mend", err)
	}
	// Its columns in another order, a wider key and an added column.
	r.dst.Exec(`CREATE TABLE ledger (cents bigint, title text, id bigint PRIMARY KEY, note text, amount numeric, initial text,
		added int NOT NULL DEFAULT 7, twice bigint GENERATED ALWAYS AS (cents * 2) STORED)`)
	r.follow()
	check := func() {
		t.Helper()
		r.sameQuery(`SELECT string_agg(concat_ws('|', id, "Name", left("Name", 1), amount, (amount * 100)::bigint, note, 7, 2 * (amount * 100)::bigint), E'\n' ORDER BY id) FROM accounts`,
			`SELECT string_agg(concat_ws('|', id, title, initial, amount, cents, note, added, twice), E'\n' ORDER BY id) FROM ledger`)
	}
	check()
	r.src.Exec(`UPDATE accounts SET "Name" = 'X' || id, amount = amount + 1 WHERE id % 2 = 0; UPDATE accounts SET secret = 'changed', id = id + 5000 WHERE id % 5 = 0; DELETE FROM accounts WHERE id % 7 = 0;
		INSERT INTO accounts VALUES (9000, NULL, NULL, NULL, NULL)`)
	r.catchUp()
	check()
	certificate, err := r.m.VerifyFull(r.ctx())
	r.must("verify", err)
	if !certificate.Equal {
		t.Errorf("certificate: %+v", certificate)
	}

	// Verification finds what somebody else does at the target, by its row.
	r.dst.Exec(`UPDATE ledger SET note = 'slip' WHERE id = 13`)
	certificate, err = r.m.VerifyFull(r.ctx())
	if !errors.Is(err, ErrDiffers) || certificate == nil || !strings.Contains(fmt.Sprintf("%s", certificate.Tables[0].Found), `"slip"`) || !strings.Contains(fmt.Sprintf("%s", certificate.Tables[0].Found), `["13"]`) {
		t.Errorf("verify with an altered row: got %+v, %v; want ErrDiffers and the row", certificate, err)
	}
	r.dst.Exec(`UPDATE ledger SET note = 'note', cents = 5 WHERE id = 13`)
	if _, err = r.m.VerifyFull(r.ctx()); !errors.Is(err, ErrDiffers) {
		t.Errorf("verify with an altered computed column: got %v, want ErrDiffers", err)
	}
	r.dst.Exec(`UPDATE ledger SET cents = amount * 100 WHERE id = 13; DELETE FROM ledger WHERE id = 17`)
	if certificate, err = r.m.VerifyFull(r.ctx()); !errors.Is(err, ErrDiffers) || !strings.Contains(fmt.Sprintf("%s", certificate.Tables[0].Found), `["17"]`) {
		t.Errorf("verify without a row: got %+v, %v; want ErrDiffers and the row", certificate, err)
	}
}

// TestStops lets each thing happen that a migration cannot go on from.
func TestStops(t *testing.T) {
	const setup = `CREATE TABLE t (id int PRIMARY KEY, a text, u int UNIQUE); ALTER TABLE t ALTER COLUMN a SET STORAGE EXTERNAL; INSERT INTO t SELECT n, repeat('a', 3000), n FROM generate_series(1, 100) n`
	for _, c := range []struct {
		name     string
		src, dst string
		want     error
	}{
		{"column added", "ALTER TABLE t ADD COLUMN more int; INSERT INTO t VALUES (200, 'a', 200, 1)", "", ErrChanged},
		{"table rewritten", "ALTER TABLE t ALTER COLUMN u TYPE bigint; UPDATE t SET u = u", "", ErrChanged},
		{"row gone at the target", "UPDATE t SET u = 500 WHERE id = 5", "DELETE FROM t WHERE id = 5", ErrConflict},
		{"value taken at the target", "INSERT INTO t VALUES (300, 'x', 7000)", "INSERT INTO t VALUES (299, 'x', 7000)", ErrConflict},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, 17, setup, tablesOf("t")...)
			r.follow()
			if c.dst != "" {
				r.dst.Exec(c.dst)
			}
			r.src.Exec(c.src)
			err := r.m.Follow(r.ctx(), r.reached())
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), "mend:") {
				t.Errorf("follow: got %v, want %v with a mend", err, c.want)
			}
		})
	}
}

// TestPlanFinds makes a source and a target of which much has to be mended, and wants
// each thing to be told of with its mend.
func TestPlanFinds(t *testing.T) {
	r := newRig(t, 15, `CREATE TABLE nokey (a int); CREATE TABLE parent (id int PRIMARY KEY);
		CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent, extra int);
		CREATE TABLE typed (id int PRIMARY KEY, v int, w int GENERATED ALWAYS AS (v * 2) STORED);
		CREATE TABLE full_there (id int PRIMARY KEY)`, append(tablesOf("nokey", "child", "typed", "full_there", "absent"), Table{From: public("parent"), To: public("noindex")})...)
	r.dst.Exec(`CREATE TABLE child (id int PRIMARY KEY, parent int); CREATE TABLE typed (id int PRIMARY KEY, v smallint);
		CREATE TABLE full_there (id int PRIMARY KEY); INSERT INTO full_there VALUES (1); CREATE TABLE noindex (id int)`)
	report, err := r.m.Plan(r.ctx())
	r.must("plan", err)
	for _, want := range []string{"no primary key", "extra has no place", "has type integer, and the target's v has smallint", "it has rows", "the source does not have it", "no unique index over the key", "foreign key child_parent_fkey is not made"} {
		found := false
		for _, f := range report.Findings {
			found = found || strings.Contains(f.Text, want) && f.Mend != "" && (f.Level == finding.Problem || strings.HasPrefix(want, "foreign"))
		}
		if !found {
			t.Errorf("the plan does not say %q: %+v", want, report.Findings)
		}
	}
	absent := 0
	for _, f := range report.Findings {
		if f.Subject == "table public.absent" {
			absent++
		}
	}
	if absent != 1 {
		t.Errorf("the plan says %d times that a table is not there: %+v", absent, report.Findings)
	}

	good := r.cfg.TargetURL
	r.cfg.TargetURL = r.cfg.SourceURL
	r.renew()
	report, err = r.m.Plan(r.ctx())
	r.must("plan with one database", err)
	if len(report.Findings) != 1 || report.Findings[0].Level != finding.Problem || report.Findings[0].Subject != "target.url" {
		t.Errorf("a source that is the target: %+v", report.Findings)
	}
	if err := r.m.Prepare(r.ctx(), nil); !errors.Is(err, ErrBlocked) || !strings.Contains(err.Error(), "the database that source.url leads to") {
		t.Errorf("prepare, with a source that is the target: %v", err)
	}
	r.cfg.TargetURL = strings.Replace(good, "/"+r.dst.Name, "/no_such_database", 1)
	r.renew()
	if _, err := r.m.Plan(r.ctx()); !errors.Is(err, capture.ErrConnect) || strings.Contains(err.Error(), "source") || !strings.Contains(err.Error(), "correct the database in the target URL") {
		t.Errorf("a target's database that is not there: %v", err)
	}
}
