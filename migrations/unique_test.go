package migrations

import (
	"errors"
	"strings"
	"testing"
)

// TestUniqueGenerated moves a table whose unique index is over a generated column:
// values swap under it while rows are copied and when changes follow.
func TestUniqueGenerated(t *testing.T) {
	r := newRig(t, 17, `CREATE TABLE t (id int PRIMARY KEY, mail text NOT NULL, "Low" text GENERATED ALWAYS AS (lower(mail)) STORED, big text);
		CREATE UNIQUE INDEX ON t ("Low") WHERE "Low" <> '';
		INSERT INTO t (id, mail, big) SELECT n, 'User' || n, repeat('x', 500) FROM generate_series(1, 2000) n`, tablesOf("t")...)
	r.cfg.Workers = 1
	r.renew()
	r.must("prepare", r.m.Prepare(r.ctx(), nil))
	copied := 0
	r.m.copied = func() {
		if copied++; copied == 3 { // the last row gets what the first one had
			r.src.Exec("DELETE FROM t WHERE id = 1; UPDATE t SET mail = 'USER1' WHERE id = 2000")
		}
	}
	r.must("copy", r.m.Copy(r.ctx()))
	const swap = "BEGIN; UPDATE t SET mail = 'nobody' WHERE id = 10; UPDATE t SET mail = 'USER10' WHERE id = 20; UPDATE t SET mail = 'USER20' WHERE id = 10; COMMIT"
	r.src.Exec(swap)
	r.must("follow", r.m.Follow(r.ctx(), Converged))
	r.src.Exec(strings.NewReplacer("10", "30", "20", "40").Replace(swap))
	r.catchUp()
	r.same()
}

// TestUniqueOfNothing wants an index over a column that does not move to be told of
// before anything is copied.
func TestUniqueOfNothing(t *testing.T) {
	r := newRig(t, 15, "CREATE TABLE t (id int PRIMARY KEY, a int UNIQUE)", Table{From: public("t"), Omit: []string{"a"}})
	r.dst.Exec("CREATE TABLE t (id int PRIMARY KEY, a int UNIQUE)")
	if err := r.m.Prepare(r.ctx(), nil); !errors.Is(err, ErrBlocked) || !strings.Contains(err.Error(), "t_a_key") {
		t.Errorf("prepare: got %v, want ErrBlocked and the index", err)
	}
}

// TestCopyAgainLarge has the target refuse the first row of a chunk whose rest does not
// fit into any buffer between the two sides: the chunk is copied with care.
func TestCopyAgainLarge(t *testing.T) {
	r := newRig(t, 15, `CREATE TABLE t (id int PRIMARY KEY, a text); ALTER TABLE t ALTER COLUMN a SET STORAGE EXTERNAL;
		INSERT INTO t SELECT n, repeat('x', 7000) FROM generate_series(1, 3000) n`, tablesOf("t")...)
	r.cfg.Chunk = 64 << 20
	r.renew()
	r.must("prepare", r.m.Prepare(r.ctx(), nil))
	r.dst.Exec("INSERT INTO t SELECT 1, repeat('x', 7000)") // as a process does that was killed and whose commit came through
	r.must("copy", r.m.Copy(r.ctx()))
	r.must("follow", r.m.Follow(r.ctx(), Converged))
	r.same()
}
