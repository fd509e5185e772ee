package migrations

import (
	"context"
	"errors"
	"strings"
	"testing"
)

// TestNewPartitions makes and attaches partitions at the side that writers have left:
// they deny writes from the moment on that they are there; or, where no event trigger may
// be made, since the process that follows has seen them, which status shows until then.
func TestNewPartitions(t *testing.T) {
	r := newRig(t, 15, `CREATE TABLE whole (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE low PARTITION OF whole FOR VALUES FROM (0) TO (100);
		CREATE TABLE above (id int PRIMARY KEY) PARTITION BY RANGE (id);
		CREATE TABLE moved PARTITION OF above FOR VALUES FROM (0) TO (100) PARTITION BY RANGE (id)`, tablesOf("whole", "moved")...)
	r.dst.Exec(`CREATE TABLE whole (id int PRIMARY KEY); CREATE TABLE moved (id int PRIMARY KEY)`)
	r.follow()
	_, err := r.m.Cutover(r.ctx())
	r.must("cutover", err)
	denied := func(sql string) {
		t.Helper()
		if _, err := r.src.Pool.Exec(r.ctx(), sql); code(err) != "25006" {
			t.Errorf("%s at the side that is closed: got %v, want it denied", sql, err)
		}
	}
	r.src.Exec(`CREATE TABLE high PARTITION OF whole FOR VALUES FROM (100) TO (200);
		CREATE TABLE top (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE top_1 PARTITION OF top FOR VALUES FROM (200) TO (250); INSERT INTO top VALUES (201);
		CREATE TABLE moved_1 PARTITION OF moved FOR VALUES FROM (0) TO (50); CREATE TABLE beside PARTITION OF above FOR VALUES FROM (100) TO (200);
		CREATE TABLE unrelated (id int)`)
	r.src.Exec("ALTER TABLE whole ATTACH PARTITION top FOR VALUES FROM (200) TO (300)")
	for _, sql := range []string{
		"INSERT INTO high VALUES (101)", "TRUNCATE high", "INSERT INTO top VALUES (202)", "DELETE FROM top_1", "INSERT INTO whole VALUES (102)",
		"INSERT INTO moved_1 VALUES (1)", "INSERT INTO above VALUES (2)",
	} {
		denied(sql)
	}
	r.src.Exec("INSERT INTO above VALUES (101); INSERT INTO unrelated VALUES (1)") // nobody moves these

	r.src.Exec("DROP EVENT TRIGGER millrace_migration_guard; CREATE TABLE peak PARTITION OF whole FOR VALUES FROM (300) TO (400)")
	r.src.Exec("INSERT INTO peak VALUES (301)")
	if s, err := r.m.Status(r.ctx()); err != nil || strings.Join(s.Unguarded, " ") != "peak" && strings.Join(s.Unguarded, " ") != "public.peak" {
		t.Errorf("status with a partition that is open: %v, %+v", err, s)
	}
	ctx, stop := context.WithCancel(r.ctx())
	defer stop()
	done := make(chan error, 1)
	go func() { done <- r.m.Follow(ctx, Forever) }()
	waitFor(t, "the partition to be guarded", func() bool {
		return r.src.String("SELECT count(*) FROM pg_trigger WHERE tgname = 'millrace_deny' AND tgrelid = 'peak'::regclass AND tgenabled = 'A'") == "1"
	})
	denied("INSERT INTO peak VALUES (302)")
	stop()
	if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("follow: %v", err)
	}
	r.must("finish", r.m.Finish(r.ctx()))
	r.src.Exec("INSERT INTO high VALUES (103)")
	for _, db := range []interface {
		String(string, ...any) string
	}{r.src, r.dst} {
		if got := db.String("SELECT count(*) FROM pg_event_trigger WHERE evtname = 'millrace_migration_guard'"); got != "0" {
			t.Error("finish leaves the event trigger")
		}
	}
}
