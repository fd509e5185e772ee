package migrations

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/millrace-db/millrace"
)

// TestAltered alters a table at the source while it is followed: a column that comes stops
// the migration with the statement for the target, and it goes on behind that.
func TestAltered(t *testing.T) { bothModes(t, altered) }

func altered(t *testing.T, mode millrace.Mode) {
	r := newRigBy(t, mode, 15, `CREATE TABLE a (id int PRIMARY KEY, old text, n int, big text); ALTER TABLE a ALTER COLUMN big SET STORAGE EXTERNAL;
		INSERT INTO a SELECT i, 'old', i, repeat('b', 3000) FROM generate_series(1, 300) i; CREATE TABLE b (id int PRIMARY KEY); INSERT INTO b VALUES (1)`, tablesOf("a", "b")...)
	r.follow()
	if _, err := r.m.Verify(r.ctx()); err != nil {
		t.Fatal(err)
	}
	var last *follower
	follow := func() error {
		ctx, cancel := context.WithTimeout(r.ctx(), limit)
		defer cancel()
		reached := r.reached()
		return r.m.Follow(ctx, func(f *follower) bool {
			last = f
			return reached(f)
		})
	}
	// Rows before and behind it, in one transaction too.
	r.src.Exec("UPDATE a SET n = n + 1 WHERE id <= 10")
	r.src.Exec(`BEGIN; ALTER TABLE a ADD COLUMN "New" varchar(10); INSERT INTO b VALUES (2); UPDATE a SET "New" = 'new' WHERE id BETWEEN 5 AND 20; COMMIT; UPDATE a SET n = 0 WHERE id = 300`)
	err := follow()
	const add = `ALTER TABLE "public"."a" ADD COLUMN "New" character varying(10)`
	if !errors.Is(err, ErrChanged) || !strings.Contains(err.Error(), "mend: "+add+" at the target, then millrace migrate follow") {
		t.Fatalf("follow past a new column: %v", err)
	}
	if got := r.dst.String("SELECT count(*) FROM a WHERE n = id + 1"); got != "10" && mode == millrace.ModeWAL { // by triggers they are one unit
		t.Errorf("%s rows of before the column came are at the target, want 10", got)
	}
	r.dst.Exec(add + " DEFAULT 'x'")
	if err := follow(); !errors.Is(err, ErrChanged) || !strings.Contains(err.Error(), "has a default") || !strings.Contains(err.Error(), `DROP COLUMN "New"`) {
		t.Errorf("follow with a column that has a default: %v", err)
	}
	r.dst.Exec(`ALTER TABLE a DROP COLUMN "New"; ` + add)
	r.must("follow", follow())
	r.same()
	r.must("follow again", follow())

	// Several, one behind the other, with rows before and between them.
	r.dst.Exec("ALTER TABLE a ADD COLUMN second int, ADD COLUMN third int")
	for _, name := range []string{"second", "third"} {
		r.src.Exec("UPDATE a SET n = n + 1 WHERE id = 30")
		r.src.Exec(fmt.Sprintf("ALTER TABLE a ADD COLUMN %s int; UPDATE a SET %[1]s = id WHERE id = 31", name))
	}
	r.must("follow past two columns", follow())
	r.same()
	if last.gatherer.adopt.single {
		t.Error("behind the description each batch is of one unit still")
	}
	c, err := r.m.Verify(r.ctx())
	if err != nil || c.Tables[0].Carried != 0 || c.Tables[1].Rows != 2 {
		t.Errorf("verify: %v, %+v", err, c)
	}

	_, err = r.m.Rehearse(r.ctx())
	r.must("rehearse", err)
	if mode == millrace.ModeTrigger {
		return // what a window has of a table is read behind it
	}
	r.src.Exec("BEGIN; UPDATE a SET n = 5 WHERE id = 1; ALTER TABLE a ADD COLUMN late int; UPDATE a SET n = 6 WHERE id = 1; COMMIT")
	r.dst.Exec("ALTER TABLE a ADD COLUMN late int")
	if err := follow(); !errors.Is(err, ErrChanged) || !strings.Contains(err.Error(), "had written to it before") {
		t.Errorf("follow past a column that comes between two changes: %v", err)
	}
}

// TestAlteredForGood changes rows with their table: the mend is to begin again.
func TestAlteredForGood(t *testing.T) {
	r := newRig(t, 15, "CREATE TABLE a (id int PRIMARY KEY, n int); INSERT INTO a VALUES (3, 3)", tablesOf("a")...)
	r.follow()
	for _, sql := range []string{"ALTER TABLE a DROP COLUMN n, ADD COLUMN o int", "ALTER TABLE a ALTER COLUMN id TYPE bigint"} {
		r.src.Exec(sql + "; INSERT INTO a (id) SELECT max(id) + 1 FROM a")
		if err := r.m.Follow(r.ctx(), r.reached()); !errors.Is(err, ErrChanged) || !strings.Contains(err.Error(), "abort") {
			t.Errorf("follow past %s: %v", sql, err)
		}
	}
}
