package migrations

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
)

// keyed is a table with all that is unique in some way.
const keyed = `CREATE TABLE keyed (id int PRIMARY KEY, slot int NOT NULL UNIQUE DEFERRABLE INITIALLY IMMEDIATE, tag text, a text);
CREATE UNIQUE INDEX keyed_tag ON keyed (lower(tag)) WHERE tag IS NOT NULL;
CREATE INDEX keyed_a ON keyed (a);
INSERT INTO keyed SELECT i, i, CASE WHEN i % 2 = 0 THEN 'T' || i END, repeat('x', 500) FROM generate_series(1, 4000) i;
ALTER TABLE keyed SET (autovacuum_enabled = off)`

const keysThere = `SELECT coalesce(string_agg(x.relname || ' ' || i.indisunique, ',' ORDER BY 1), '') FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid WHERE i.indrelid = 'keyed'::regclass`

// definitions are how indexes and constraints are made.
const definitions = `SELECT string_agg(d, E'\n' ORDER BY d) FROM (
	SELECT pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid = 'keyed'::regclass
	UNION ALL SELECT conname || ' ' || pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = 'keyed'::regclass AND contype <> 'n') x (d)`

// TestKeysAside copies a table whose keys stand aside while its rows move and swap what
// is unique in them: they are made again over rows that are there twice.
func TestKeysAside(t *testing.T) {
	r := newRig(t, 17, keyed, tablesOf("keyed")...)
	r.cfg.Workers = 1
	r.renew()
	r.must("prepare", r.m.Prepare(r.ctx(), nil))
	if got, want := r.dst.String(definitions), strings.Replace(r.src.String(definitions), "CREATE INDEX keyed_a ON public.keyed USING btree (a)\n", "", 1); got != want {
		t.Errorf("behind prepare:\n%s\nwant\n%s", got, want)
	}
	var chunks atomic.Int64
	r.m.copied = func() {
		switch chunks.Add(1) {
		case 3: // what was read comes again at the end, a row with another key in its place
			if got := r.dst.String(keysThere); got != "" {
				t.Errorf("while rows come there is %s", got)
			}
			r.src.Exec("UPDATE keyed SET a = repeat('w', 900) WHERE id <= 10")
			r.src.Exec("UPDATE keyed SET id = id + 10000, a = repeat('v', 900) WHERE id BETWEEN 11 AND 20")
		case 4: // values of rows that were read go to rows that were not
			r.src.Exec("UPDATE keyed SET slot = CASE WHEN id <= 40 THEN slot + 3900 ELSE slot - 3900 END WHERE id BETWEEN 31 AND 40 OR id BETWEEN 3931 AND 3940")
			r.src.Exec("UPDATE keyed SET tag = NULL WHERE id BETWEEN 61 AND 70; UPDATE keyed SET tag = 't' || id - 3880 WHERE id BETWEEN 3941 AND 3950 AND id % 2 = 0")
		case 5: // and the last comes first, where nobody looks any more
			r.src.Exec("DELETE FROM keyed WHERE id BETWEEN 41 AND 60")
			r.src.Exec("VACUUM keyed")
			r.src.Exec("UPDATE keyed SET a = repeat('u', 510) WHERE id BETWEEN 3990 AND 4000")
		}
	}
	r.must("copy", r.m.Copy(r.ctx()))
	r.m.copied = nil
	if got, want := r.dst.String(definitions), r.src.String(definitions); got != want {
		t.Errorf("behind the copy:\n%s\nwant\n%s", got, want)
	}
	for _, c := range []struct{ statement, what string }{{"%PRIMARY KEY%", "the key"}, {"%(slot)%", "a unique constraint"}, {"%lower(tag)%", "a unique index"}} {
		if got := r.dst.String("SELECT removed > 0 FROM millrace.migration_key WHERE statement LIKE '" + c.statement + "'"); got != "t" {
			t.Errorf("rows that were in the way of %s: %s, want some", c.what, got)
		}
	}
	status, err := r.m.Status(r.ctx())
	r.must("status", err)
	if c := status.Copy; c.Keys != 3 || c.KeysMade != 3 || fmt.Sprint(c.RowsThere-c.RowsTwice) != r.dst.String("SELECT count(*) FROM keyed") {
		t.Errorf("status: %+v, and the table has %s rows", c, r.dst.String("SELECT count(*) FROM keyed"))
	}
	r.must("follow", r.m.Follow(r.ctx(), Converged))
	r.catchUp()
	r.same()
}

// TestKeysKilled kills the copy between two keys that it makes again, and has the server
// end what it was at work on late.
func TestKeysKilled(t *testing.T) {
	r := newRig(t, 15, keyed, tablesOf("keyed")...)
	r.must("prepare", r.m.Prepare(r.ctx(), nil))
	for range 2 {
		made := r.dst.String("SELECT count(made_at) FROM millrace.migration_key")
		cmd, out := r.start("copy:key made")
		if err := cmd.Wait(); err == nil || cmd.ProcessState.ExitCode() >= 0 {
			t.Fatalf("copy ended by itself: %v\n%s", err, out)
		}
		if got := r.dst.String("SELECT count(made_at) - " + made + " FROM millrace.migration_key"); got != "1" {
			t.Fatalf("%s keys are noted as made, want one more", got)
		}
		waitFor(t, "the migration to be free", func() bool { return r.dst.String("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == "0" })
		report, err := r.m.Plan(r.ctx())
		r.must("plan in between", err)
		for _, f := range report.Findings {
			if strings.Contains(f.Text, "unique index") {
				t.Errorf("the plan in between finds %v", f)
			}
		}
	}
	// What the server was at work on when a process was killed commits while the next one
	// comes to the same.
	commit := func(sql string) func() {
		conn, err := pgx.Connect(r.ctx(), r.dst.URL)
		r.must("connect", err)
		t.Cleanup(func() { conn.Close(context.Background()) }) //nolint:errcheck // nothing is lost with it
		_, err = conn.Exec(r.ctx(), "BEGIN; "+sql, pgx.QueryExecModeSimpleProtocol)
		r.must(sql, err)
		return func() {
			_, err := conn.Exec(r.ctx(), "COMMIT")
			r.must("commit", err)
		}
	}
	key := commit(r.dst.String("SELECT statement FROM millrace.migration_key WHERE made_at IS NULL") + "; UPDATE millrace.migration_key SET made_at = clock_timestamp() WHERE made_at IS NULL")
	index := commit("CREATE INDEX keyed_a ON keyed (a)")
	done := make(chan error, 1)
	go func() { done <- r.m.Copy(r.ctx()) }()
	waits := func(query string) {
		waitFor(t, "the copy to wait at "+query, func() bool {
			select {
			case err := <-done:
				t.Fatalf("the copy ended: %v", err)
			default:
			}
			return r.dst.String("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name LIKE 'millrace migrate%' AND datname = current_database() AND query LIKE $1", query) == "1"
		})
	}
	waits("%migration_key%FOR UPDATE")
	key()
	waits("CREATE INDEX%keyed_a%")
	index()
	r.must("copy", <-done)
	if got, want := r.dst.String(definitions), r.src.String(definitions); got != want {
		t.Errorf("behind the copy:\n%s\nwant\n%s", got, want)
	}
	r.must("follow", r.m.Follow(r.ctx(), Converged))
	r.same()
}

// TestKeysStay has somebody use the keys of the target's table: they stay where they are.
func TestKeysStay(t *testing.T) {
	r := newRig(t, 15, keyed, tablesOf("keyed")...)
	free := func() { // the server frees the migration a moment after its holder has gone
		waitFor(t, "the migration to be free", func() bool { return r.dst.String("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == "0" })
	}
	for name, use := range map[string]string{
		"made by hand": "CREATE TABLE keyed (id int PRIMARY KEY, slot int NOT NULL UNIQUE, tag text, a text)",
		"in a view":    "CREATE VIEW used AS SELECT a, id FROM keyed GROUP BY id",
		"published":    "CREATE PUBLICATION used FOR TABLE keyed",
		"referenced":   "CREATE TABLE used (id int REFERENCES keyed)",
	} {
		if strings.HasPrefix(use, "CREATE TABLE keyed") {
			r.dst.Exec(use)
			r.must("prepare", r.m.Prepare(r.ctx(), nil))
		} else {
			r.must("prepare", r.m.Prepare(r.ctx(), nil))
			r.dst.Exec(use)
		}
		free()
		there := r.dst.String(keysThere)
		var chunks atomic.Int64
		r.m.copied = func() {
			if got := r.dst.String(keysThere); got != there && chunks.Add(1) == 1 {
				t.Errorf("%s: while rows come there is %s, want %s", name, got, there)
			}
		}
		r.must("copy", r.m.Copy(r.ctx()))
		free()
		r.m.copied = nil
		if got := r.dst.String("SELECT count(*) FROM keyed"); got != "4000" {
			t.Errorf("%s: %s rows", name, got)
		}
		r.must("abort", r.m.Abort(r.ctx()))
		free()
		for _, sql := range []string{"DROP TABLE keyed CASCADE", "DROP TABLE IF EXISTS used", "DROP VIEW IF EXISTS used", "DROP PUBLICATION IF EXISTS used"} {
			if _, err := r.dst.Pool.Exec(r.ctx(), sql, pgx.QueryExecModeSimpleProtocol); err != nil && !strings.Contains(err.Error(), "is not a") {
				t.Fatal(err)
			}
		}
	}
}
