package migrations

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
)

// unconfirmed tells the source of no progress.
type unconfirmed struct{ changes }

func (unconfirmed) Confirm(millrace.Position) {}

// TestCommitUnderWay has the commit of a process that was killed come through while the
// next one begins: that goes on behind it.
func TestCommitUnderWay(t *testing.T) {
	r := newRig(t, 15, "CREATE TABLE t (id int PRIMARY KEY, a int); INSERT INTO t SELECT n, 0 FROM generate_series(1, 100) n", tablesOf("t")...)
	r.follow()
	r.dst.Exec("CREATE TABLE before AS SELECT * FROM millrace.migration_place")
	f, closed := r.opened()
	f.from = &unconfirmed{f.from}
	r.src.Exec("INSERT INTO t VALUES (101, 1)")
	reached := r.reached()
	for !reached(f) {
		r.must("follow", f.once(r.ctx()))
	}
	closed()
	r.same()

	// All of it once more, as far as to the commit.
	const place = "UPDATE millrace.migration_place p SET checkpoint = x.checkpoint, index = x.index, position = x.position, token = x.token, source_time = x.source_time FROM "
	r.dst.Exec("CREATE TABLE behind AS SELECT * FROM millrace.migration_place; " + place + "before x; DELETE FROM t WHERE id = 101")
	killed, err := pgx.Connect(r.ctx(), r.dst.URL)
	r.must("connect", err)
	defer killed.Close(context.Background()) //nolint:errcheck // nothing is lost with it
	_, err = killed.Exec(r.ctx(), "BEGIN; INSERT INTO t VALUES (101, 1); "+place+"behind x", pgx.QueryExecModeSimpleProtocol)
	r.must("apply", err)
	r.src.Exec("UPDATE t SET a = 2 WHERE id = 101")
	ctx := r.ctx()
	reached = r.reached()
	done := make(chan error, 1)
	go func() { done <- r.m.Follow(ctx, reached) }()
	waitFor(t, "the next process to wait for the commit", func() bool {
		return r.dst.String("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name LIKE 'millrace migrate%' AND datname = current_database() AND query LIKE '%migration_place%FOR UPDATE%'") == "1"
	})
	_, err = killed.Exec(r.ctx(), "COMMIT")
	r.must("commit", err)
	r.must("follow", <-done)
	r.same()
}
