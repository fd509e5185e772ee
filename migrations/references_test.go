package migrations

import (
	"errors"
	"strings"
	"testing"

	"github.com/millrace-db/millrace/internal/finding"
)

// TestForeignKeys has the source's foreign keys made at the target before writers go
// over: composite, deferrable, with actions, of a table to itself, to renamed columns and
// tables, of a partitioned table; and those that cannot be made are named by the plan.
func TestForeignKeys(t *testing.T) {
	tables := tablesOf("owners", "zones", "records", "notes")
	tables[1].To = public("areas")
	tables[1].Columns = map[string]string{"owner_id": "owner"}
	tables[2].PartitionBy, tables[2].PartitionCount = "mod(zone, 4)", 4
	r := newRig(t, 17, `
CREATE TABLE elsewhere (id int PRIMARY KEY); INSERT INTO elsewhere VALUES (1);
CREATE TABLE owners (id int, part int, PRIMARY KEY (id, part), boss int, boss_part int, FOREIGN KEY (boss, boss_part) REFERENCES owners DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE zones (id int PRIMARY KEY, owner int, part int, other int REFERENCES elsewhere, CONSTRAINT "Of" FOREIGN KEY (owner, part) REFERENCES owners ON DELETE SET NULL ON UPDATE CASCADE);
CREATE TABLE records (id int PRIMARY KEY, zone int NOT NULL REFERENCES zones ON DELETE CASCADE);
CREATE TABLE notes (id int PRIMARY KEY, record int REFERENCES records, owner int, part int);
INSERT INTO owners SELECT i, 1, nullif(i / 2, 0), 1 FROM generate_series(1, 50) i;
INSERT INTO zones SELECT i, 1 + i % 50, 1, 1 FROM generate_series(1, 200) i;
INSERT INTO records SELECT i, 1 + i % 200 FROM generate_series(1, 2000) i;
INSERT INTO notes SELECT i, i, 77, 1 FROM generate_series(1, 100) i;
ALTER TABLE notes ADD CONSTRAINT loose FOREIGN KEY (owner, part) REFERENCES owners NOT VALID`, tables...)
	r.dst.Exec("CREATE TABLE areas (id int PRIMARY KEY, owner_id int, part int, other int)")
	report, err := r.m.Plan(r.ctx())
	r.must("plan", err)
	if report.Blocked() {
		t.Fatalf("plan: %+v", report.Findings)
	}
	found(t, report, finding.Warning, "table public.zones", "zones_other_fkey", "elsewhere, which does not move", "NOT VALID")
	found(t, report, finding.Warning, "table public.notes", "notes_record_fkey", "no unique index over (id)", "partitions")
	r.follow()
	if got := r.dst.String("SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND connamespace = 'public'::regnamespace"); got != "0" {
		t.Errorf("%s foreign keys are there before it is wanted", got)
	}
	// Rows that hold in the end only: a batch puts children first.
	r.src.Exec("BEGIN; INSERT INTO zones VALUES (1000, 1, 1, 1); INSERT INTO records SELECT 10000 + i, 1000 FROM generate_series(1, 50) i; DELETE FROM zones WHERE id = 150; COMMIT")
	_, err = r.m.Rehearse(r.ctx())
	r.must("rehearse", err)
	const list = "SELECT string_agg(conrelid::regclass || ': ' || conname || ' ' || pg_get_constraintdef(oid), E'\\n' ORDER BY conrelid::regclass::text, conname) FROM pg_constraint WHERE contype = 'f' AND conparentid = 0 AND connamespace = 'public'::regnamespace"
	want := `areas: Of FOREIGN KEY (owner_id, part) REFERENCES public.owners(id, part) ON UPDATE CASCADE ON DELETE SET NULL
notes: loose FOREIGN KEY (owner, part) REFERENCES public.owners(id, part) NOT VALID
owners: owners_boss_boss_part_fkey FOREIGN KEY (boss, boss_part) REFERENCES public.owners(id, part) DEFERRABLE INITIALLY DEFERRED
records: records_zone_fkey FOREIGN KEY (zone) REFERENCES public.areas(id) ON DELETE CASCADE`
	if got := strings.ReplaceAll(r.dst.String(list), "public.", ""); got != strings.ReplaceAll(want, "public.", "") {
		t.Errorf("foreign keys at the target:\n%s\nwant\n%s", got, want)
	}
	if got := r.dst.String("SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND conrelid::regclass::text LIKE 'records_%' AND convalidated AND conparentid <> 0"); got != "5" {
		t.Errorf("%s partitions have the key from their table, want 5", got)
	}
	_, err = r.m.Rehearse(r.ctx())
	r.must("rehearse again", err)
	r.src.Exec("DELETE FROM zones WHERE id = 151; BEGIN; INSERT INTO owners VALUES (90, 1, 91, 1); INSERT INTO owners VALUES (91, 1, NULL, NULL); COMMIT")
	r.catchUp()
	certificate, err := r.m.Verify(r.ctx())
	if !errors.Is(err, ErrDiffers) || len(certificate.ForeignKeys) != 1 || !strings.Contains(certificate.ForeignKeys[0], "loose") {
		t.Errorf("verify with a key that does not hold at either side: %v, %+v", err, certificate)
	}

	// One that was made by hand, and that rows do not hold to.
	r.dst.Exec("ALTER TABLE notes ADD CONSTRAINT byhand FOREIGN KEY (owner) REFERENCES areas NOT VALID")
	if _, err = r.m.Cutover(r.ctx()); !errors.Is(err, ErrBlocked) || !strings.Contains(err.Error(), "byhand of public.notes") || !strings.Contains(err.Error(), `VALIDATE CONSTRAINT "byhand"`) || strings.Contains(err.Error(), "loose") {
		t.Errorf("cutover with a key that nobody has validated: %v", err)
	}
	r.dst.Exec("ALTER TABLE notes DROP CONSTRAINT byhand; ALTER TABLE records DROP CONSTRAINT records_zone_fkey")
	r.src.Exec("SET session_replication_role = replica; INSERT INTO records VALUES (5, -1) ON CONFLICT (id) DO UPDATE SET zone = -1; RESET session_replication_role")
	r.catchUp()
	if _, err = r.m.Cutover(r.ctx()); !errors.Is(err, ErrBlocked) || !strings.Contains(err.Error(), "records_zone_fkey of public.records does not hold") {
		t.Errorf("cutover with rows that do not hold: %v", err)
	}
	r.src.Exec("UPDATE records SET zone = 1 WHERE id = 5")
	r.catchUp()
	_, err = r.m.Cutover(r.ctx())
	r.must("cutover", err)
	r.dst.Exec("DELETE FROM areas WHERE id = 159")
	if got := r.dst.String("SELECT count(*) FROM records WHERE zone = 159"); got != "0" {
		t.Errorf("%s rows stay behind where the key says CASCADE", got)
	}
	_, err = r.m.Rollback(r.ctx())
	r.must("rollback", err)
	if got := r.src.String("SELECT count(*) FROM records WHERE zone = 159"); got != "0" {
		t.Errorf("%s rows stay behind at the source", got)
	}
}
