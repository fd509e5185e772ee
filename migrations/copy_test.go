package migrations

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
)

// TestCopyBesideRewrites has rows move through the files while they are copied: into
// room that was read already, into other files by VACUUM FULL, away by TRUNCATE.
func TestCopyBesideRewrites(t *testing.T) {
	r := newRig(t, 17, `CREATE TABLE moving (id int PRIMARY KEY, a text, n int); INSERT INTO moving SELECT i, repeat('x', 500), i FROM generate_series(1, 4000) i;
		CREATE TABLE rewritten (id int PRIMARY KEY, a text); INSERT INTO rewritten SELECT i, repeat('y', 500) FROM generate_series(1, 4000) i; DELETE FROM rewritten WHERE id % 3 = 0;
		CREATE TABLE emptied (id int PRIMARY KEY, a text); INSERT INTO emptied SELECT i, repeat('z', 500) FROM generate_series(1, 4000) i`, tablesOf("moving", "rewritten", "emptied")...)
	// A partition of its own for most rows, in which the key is not enforced over all.
	r.cfg.Tables[0].PartitionBy, r.cfg.Tables[0].PartitionCount = "mod(n, 3)", 3
	r.cfg.Workers = 1
	r.renew()
	r.must("prepare", r.m.Prepare(r.ctx(), nil))
	// The first chunks are of the first table.
	var chunks atomic.Int64
	r.m.copied = func() {
		switch chunks.Add(1) {
		case 3: // rows of the end go to the front, and to another partition
			r.src.Exec("DELETE FROM moving WHERE id <= 200")
			r.src.Exec("VACUUM moving")
			r.src.Exec("UPDATE moving SET n = n + 1 WHERE id > 3900")
		case 5: // rows of the front go to the end
			r.src.Exec("UPDATE moving SET n = n + 1, a = repeat('w', 900) WHERE id BETWEEN 201 AND 400")
		case 40:
			r.src.Exec("VACUUM FULL rewritten")
		case 80:
			// The first table has been settled while the others are copied.
			if got := r.dst.String("SELECT string_agg(DISTINCT table_name, ' ') FROM millrace.migration_key WHERE made_at IS NULL"); strings.Contains(got, "moving") || !strings.Contains(got, "emptied") {
				t.Errorf("keys of %s stand aside", got)
			}
			r.src.Exec("TRUNCATE emptied; INSERT INTO emptied SELECT i, 'new' FROM generate_series(1, 100) i")
		}
	}
	r.must("copy", r.m.Copy(r.ctx()))
	if chunks.Load() < 90 {
		t.Fatalf("%d chunks were copied, want the whole script to have run", chunks.Load())
	}
	if got := r.dst.String("SELECT string_agg(table_name, ' ' ORDER BY 1) FROM millrace.migration_heap WHERE again"); got == "" {
		t.Error("no heap was found rewritten")
	}
	r.must("follow", r.m.Follow(r.ctx(), Converged))
	r.catchUp()
	r.same()
}

// TestChecksum has the target alter rows while they are copied, lose them, and alter
// what it has stored, with its keys there and set aside.
func TestChecksum(t *testing.T) {
	r := newRig(t, 15, "CREATE TABLE t (id int PRIMARY KEY, a text); INSERT INTO t SELECT i, 'a' FROM generate_series(1, 10) i", tablesOf("t")...)
	r.must("prepare", r.m.Prepare(r.ctx(), nil))
	for _, c := range []struct{ name, when, body string }{
		{"alters", "BEFORE INSERT ON t FOR EACH ROW", "IF new.id = 7 THEN new.a := 'b'; END IF; RETURN new"},
		{"loses", "BEFORE INSERT ON t FOR EACH ROW", "IF new.id = 7 THEN RETURN NULL; END IF; RETURN new"},
		{"updates", "AFTER INSERT ON t FOR EACH STATEMENT", "UPDATE t SET a = 'b' WHERE id = 7; RETURN NULL"},
		{"deletes", "AFTER INSERT ON t FOR EACH STATEMENT", "DELETE FROM t WHERE id = 7; RETURN NULL"},
		{"doubles", "AFTER INSERT ON t FOR EACH STATEMENT", "UPDATE t SET id = 8, a = 'a' WHERE id = 7; RETURN NULL"},
	} {
		// A trigger that a role without the right to silence it would meet, made when the
		// keys stand aside.
		r.m.planted = func(ctx context.Context, dst *pgx.Conn) error {
			_, err := dst.Exec(ctx, `SET search_path = public; CREATE OR REPLACE FUNCTION plant() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN `+c.body+`; END $$;
				CREATE OR REPLACE TRIGGER plants `+c.when+` EXECUTE FUNCTION plant(); SET session_replication_role = origin`, pgx.QueryExecModeSimpleProtocol)
			return err
		}
		if err := r.m.Copy(r.ctx()); !errors.Is(err, ErrChecksum) {
			t.Errorf("copy into a table that %s rows: got %v, want ErrChecksum", c.name, err)
		}
		if got := r.dst.String("SELECT (SELECT count(*) FROM t) || ' ' || (SELECT count(*) FROM pg_index WHERE indrelid = 't'::regclass)"); got != "0 0" {
			t.Errorf("rows and keys behind that: %s, want none", got)
		}
	}
	r.m.planted = nil
	r.must("copy", r.m.Copy(r.ctx())) // the trigger is silent
	r.must("follow", r.m.Follow(r.ctx(), Converged))
	r.same()
}

// TestPause pauses the copy in its middle, and has a second process refused.
func TestPause(t *testing.T) {
	r := newRig(t, 15, "CREATE TABLE t (id int PRIMARY KEY, a text); INSERT INTO t SELECT i, repeat('a', 1000) FROM generate_series(1, 3000) i", tablesOf("t")...)
	r.cfg.RowsPerSecond = 1000 // so that it goes on for long enough to look
	r.renew()
	r.must("prepare", r.m.Prepare(r.ctx(), nil))
	paused := make(chan struct{})
	var chunks atomic.Int64
	r.m.copied = func() {
		if chunks.Add(1) == 5 {
			r.must("pause", r.m.Pause(r.ctx(), true))
			close(paused)
		}
	}
	done := make(chan error, 1)
	go func() { done <- r.m.Copy(r.ctx()) }()
	select {
	case <-paused:
	case err := <-done:
		t.Fatalf("the copy ended before it was paused: %v", err)
	}
	if err := r.m.Copy(r.ctx()); !errors.Is(err, ErrRunning) {
		t.Errorf("a second copy: got %v, want ErrRunning", err)
	}
	waitFor(t, "the copy to wait", func() bool {
		s, err := r.m.Status(r.ctx())
		r.must("status", err)
		return s.Phase == "paused" && s.Running && r.dst.String("SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction' AND application_name LIKE 'millrace migrate%'") == "0"
	})
	select {
	case err := <-done:
		t.Fatalf("the copy ended while it was paused: %v", err)
	default:
	}
	r.must("resume", r.m.Pause(r.ctx(), false))
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got, want := r.dst.String("SELECT count(*) FROM t"), "3000"; got != want {
		t.Errorf("%s rows, want %s", got, want)
	}
}
