package migrations

import (
	"encoding/json"
	"testing"
)

// Two tables with what a DNS provider's have: names in mixed case and reserved ones,
// sequences, generated columns, unique values, large ones.
const dns = `
CREATE TYPE rrtype AS ENUM ('A', 'AAAA', 'TXT');
CREATE TABLE zones (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL UNIQUE, "Serial" int NOT NULL DEFAULT 1);
CREATE TABLE "Records" (id serial PRIMARY KEY, zone_id bigint NOT NULL, "order" int, type rrtype NOT NULL, content text, ttl numeric(8,2) DEFAULT 300,
    shout text GENERATED ALWAYS AS (upper(content)) STORED, UNIQUE (zone_id, "order"), CHECK (ttl > 0));
CREATE INDEX records_zone ON "Records" (zone_id);
ALTER TABLE "Records" ALTER COLUMN content SET STORAGE EXTERNAL;
INSERT INTO zones (name) SELECT 'zone-' || n || '.example' FROM generate_series(1, 500) n;
INSERT INTO "Records" (zone_id, "order", type, content) SELECT 1 + n % 500, n / 500, 'TXT', CASE WHEN n % 50 = 0 THEN repeat('x' || n, 2000) ELSE E'line\n\ttab \\ ' || n END FROM generate_series(0, 4999) n;
`

func tablesOf(names ...string) []Table {
	var all []Table
	for _, n := range names {
		all = append(all, Table{From: public(n)})
	}
	return all
}

// TestMigrate takes two tables from 15 to 17, and on to a partitioned one of 15,
// while they are written to between the steps.
func TestMigrate(t *testing.T) {
	for _, c := range []struct {
		name    string
		version int
		parts   int
	}{{"to 17", 17, 0}, {"to 15, partitioned", 15, 16}} {
		t.Run(c.name, func(t *testing.T) {
			tables := tablesOf("zones", "Records")
			if c.parts > 0 {
				tables[1].PartitionBy, tables[1].PartitionCount = "mod(zone_id, 16)", c.parts
			}
			r := newRig(t, c.version, dns, tables...)
			report, err := r.m.Plan(r.ctx())
			r.must("plan", err)
			if report.Blocked() {
				t.Fatalf("plan is blocked: %+v", report.Findings)
			}
			r.must("prepare", r.m.Prepare(r.ctx(), nil))
			r.must("prepare again", r.m.Prepare(r.ctx(), nil))
			r.src.Exec(`UPDATE "Records" SET content = 'before the copy' WHERE id % 97 = 0`)
			r.must("copy", r.m.Copy(r.ctx()))
			r.must("copy again", r.m.Copy(r.ctx()))
			// Unchanged large values, keys that move, values that swap, rows that go.
			r.src.Exec(`UPDATE "Records" SET ttl = ttl + 1 WHERE id % 50 = 1;
				UPDATE "Records" SET id = id + 100000 WHERE id % 100 = 1;
				UPDATE "Records" SET zone_id = zone_id + 1000 WHERE id % 7 = 0;
				DELETE FROM "Records" WHERE id % 11 = 0;
				INSERT INTO zones (name) VALUES ('new.example')`)
			r.must("follow", r.m.Follow(r.ctx(), Converged))
			r.catchUp()
			r.same()
			// In one statement, which checks at its end alone if the constraint may wait.
			r.src.Exec(`ALTER TABLE zones DROP CONSTRAINT zones_name_key, ADD UNIQUE (name) DEFERRABLE;
				UPDATE zones SET name = (SELECT z.name FROM zones z WHERE z.id = CASE WHEN zones.id % 2 = 1 THEN zones.id + 1 ELSE zones.id - 1 END) WHERE id <= 400`)
			r.src.Exec(`BEGIN; UPDATE "Records" SET ttl = 1 WHERE id % 3 = 0; DELETE FROM "Records" WHERE id % 5 = 0; COMMIT`)
			r.catchUp()
			r.same()
			certificate, err := r.m.Verify(r.ctx())
			r.must("verify", err)
			if !certificate.Equal || len(certificate.Tables) != 2 || certificate.Tables[0].Rows == 0 {
				t.Errorf("certificate: %+v", certificate)
			}
			r.src.Exec(`TRUNCATE "Records"; INSERT INTO "Records" (zone_id, type) VALUES (17, 'A')`)
			r.catchUp()
			r.same()
			status, err := r.m.Status(r.ctx())
			r.must("status", err)
			text, _ := json.Marshal(status)
			t.Logf("%s", text)
			if status.Step != StepFollowing || status.Copy.Rows != status.Copy.RowsThere || len(status.Batches) == 0 || status.Batches[0].Captured == nil {
				t.Errorf("status: %s", text)
			}
			r.must("abort", r.m.Abort(r.ctx()))
			if got := r.src.String("SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1", r.m.slot()); got != "0" {
				t.Error("abort leaves the slot")
			}
		})
	}
}
