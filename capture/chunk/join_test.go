package chunk

import (
	"errors"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
)

// A reader that joins reads what the transaction's own snapshot sees, chunk by
// chunk and range by range, and leaves nothing set behind.
func TestReaderJoins(t *testing.T) {
	b := newBench(t, 23, "int4", ReaderConfig{}, Limits{Blocks: 4}, plainTable+
		"; INSERT INTO t SELECT i, 'a' || i, repeat('c', 100) FROM generate_series(1, 1000) i")
	conn := b.connect()
	begin := func() {
		t.Helper()
		for _, sql := range []string{"BEGIN ISOLATION LEVEL REPEATABLE READ", "LOCK TABLE t IN ACCESS SHARE MODE", "SELECT pg_current_snapshot()"} {
			if _, err := conn.Exec(b.ctx, sql, pgx.QueryExecModeSimpleProtocol); err != nil {
				t.Fatal(err)
			}
		}
	}
	end := func() {
		t.Helper()
		if _, err := conn.Exec(b.ctx, "ROLLBACK"); err != nil {
			t.Fatal(err)
		}
	}
	settings := func() (text string) {
		t.Helper()
		if err := conn.QueryRow(b.ctx, "SELECT coalesce(string_agg(name || '=' || setting, ',' ORDER BY name), '') FROM pg_settings WHERE source = 'session'").Scan(&text); err != nil {
			t.Fatal(err)
		}
		return text
	}
	before := settings()
	begin()
	db := b.db
	db.Exec("UPDATE t SET a = 'later'; DELETE FROM t WHERE id < 100; INSERT INTO t SELECT i, 'later' FROM generate_series(2000, 3000) i")
	r, err := NewReader(b.ctx, conn, ReaderConfig{Schema: b.schema, Joins: true})
	if err != nil {
		t.Fatal(err)
	}
	read := make(map[string]int)
	take := func(_ []byte, columns []millrace.Datum) error {
		if text := string(columns[1].Text); text != "a"+string(columns[0].Text) {
			return fmt.Errorf("row %s has %s, which the snapshot does not see", columns[0].Text, text)
		}
		read[string(columns[0].Text)]++
		return nil
	}
	for chunks := 0; !b.load.Finished(); chunks++ {
		w := b.load.Open(NewPending(Snapshot{Xmin: 1, Xmax: 1}))
		s, leaves, err := r.Join(b.ctx)
		if err != nil || !w.Accept(s) {
			t.Fatal(s, err)
		}
		if again := !b.load.Match(w, leaves); again != (chunks == 0) {
			t.Fatalf("chunk %d: its heaps are others: %v", chunks, leaves)
		}
		c := b.load.Next(w)
		if err := r.Rows(b.ctx, &c, take); err != nil {
			t.Fatal(err)
		}
		b.load.Done(w, c)
	}
	for low := []byte(nil); ; {
		if low, err = r.Range(b.ctx, low, 300, []bool{false}, take); err != nil {
			t.Fatal(err)
		}
		if low == nil {
			break
		}
	}
	if err := r.All(b.ctx, take); err != nil {
		t.Fatal(err)
	}
	if len(read) != 1000 || read["1"] != 3 || read["1000"] != 3 {
		t.Errorf("%d rows were read, the first %d times, the last %d times; want 1000, 3 times", len(read), read["1"], read["1000"])
	}
	end()
	if after := settings(); after != before {
		t.Errorf("the session has settings %s, had %s", after, before)
	}

	db.Exec("ALTER TABLE t ADD COLUMN late int")
	begin()
	if _, _, err := r.Join(b.ctx); !errors.Is(err, ErrReshaped) {
		t.Errorf("join after ALTER: %v", err)
	}
	end()
}
