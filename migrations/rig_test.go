package migrations

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture/table"
	"github.com/millrace-db/millrace/internal/pgserver"
	"github.com/millrace-db/millrace/internal/pgtest"
	"github.com/millrace-db/millrace/internal/testdir"
)

// limit bounds every wait of a test.
const limit = 2 * time.Minute

// servers are the clusters that tests of this package share: the source's is a
// Postgres 15, the target's the same or a 17.
var servers struct {
	sync.Mutex
	all map[string]*pgserver.Server
	dir []string
}

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		os.Exit(child())
	}
	pgtest.Main(m, func() error {
		var failed error
		for _, s := range servers.all {
			failed = errors.Join(failed, s.Quit())
		}
		for _, dir := range servers.dir {
			failed = errors.Join(failed, os.RemoveAll(dir))
		}
		return failed
	})
}

// server returns a shared cluster of a version; one whose name begins with replica does
// not allow logical decoding.
func server(t *testing.T, name string, version int) *pgserver.Server {
	t.Helper()
	servers.Lock()
	defer servers.Unlock()
	if s := servers.all[name]; s != nil {
		return s
	}
	dir, err := testdir.New()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	binaries, err := pgserver.Find(ctx, version, pgserver.AllowFetch(""))
	if err != nil {
		t.Fatal(err)
	}
	settings := map[string]string{"max_prepared_transactions": "5"}
	if strings.HasPrefix(name, "replica") {
		settings["wal_level"], settings["max_replication_slots"] = "replica", "0"
	}
	if name == "mortal" { // what nobody has asked to be on disk is not there when it is killed
		settings["synchronous_commit"], settings["wal_writer_delay"], settings["wal_writer_flush_after"] = "off", "10s", "1GB"
	}
	s, err := pgserver.Start(ctx, pgserver.Config{Dir: dir + "/data", Binaries: binaries, Settings: settings})
	if err != nil {
		t.Fatal(err)
	}
	if servers.all == nil {
		servers.all = make(map[string]*pgserver.Server)
	}
	servers.all[name], servers.dir = s, append(servers.dir, dir)
	return s
}

// rig is a source, a target and a migration between them.
type rig struct {
	t        *testing.T
	src, dst *pgtest.DB
	cfg      Config
	m        *Migration
	life     context.Context // ends with the test, behind tell
}

// newRig makes a database on each of two clusters, the target's of a version, and a
// migration of tables of schema public that the source's setup makes.
func newRig(t *testing.T, version int, setup string, tables ...Table) *rig {
	t.Helper()
	return newRigBy(t, millrace.ModeWAL, version, setup, tables...)
}

// newRigBy is newRig with a way of capturing. With triggers both clusters are such that
// do not allow anything else.
func newRigBy(t *testing.T, mode millrace.Mode, version int, setup string, tables ...Table) *rig {
	t.Helper()
	kind := ""
	if mode == millrace.ModeTrigger {
		kind = "replica "
	}
	r := &rig{t: t, src: pgtest.On(t, server(t, kind+"source", 15)), dst: pgtest.On(t, server(t, fmt.Sprint(kind, "target", version), version))}
	life, cancel := context.WithCancel(context.Background())
	r.life = life
	t.Cleanup(func() { // before the databases go
		r.tell()
		cancel()
	})
	r.src.Exec(setup)
	for i := range tables {
		if tables[i].To.Name == "" {
			tables[i].To = tables[i].From
		}
	}
	r.cfg = Config{
		Name: strings.SplitN(r.src.Name, "_", 2)[0], Capture: mode, SourceURL: r.src.URL, TargetURL: r.dst.URL, Tables: tables,
		SpoolDir: t.TempDir(), Chunk: 64 << 10, Workers: 2, BatchInterval: 20 * time.Millisecond, Heartbeat: 50 * time.Millisecond,
		Logger: slog.New(slog.NewTextHandler(testWriter{t}, nil)),
	}
	r.renew()
	return r
}

// tell says of a test that has failed what goes on at both sides, and what is kept there.
func (r *rig) tell() {
	if !r.t.Failed() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for where, db := range map[side]*pgtest.DB{source: r.src, target: r.dst} {
		for what, sql := range map[string]string{
			"sessions": `SELECT concat_ws(' ', a.pid, a.application_name, a.backend_type, a.state, a.wait_event_type, a.wait_event, now() - a.state_change,
    'held by', nullif(pg_blocking_pids(a.pid), '{}'), left(regexp_replace(a.query, '\s+', ' ', 'g'), 150)) FROM pg_stat_activity a WHERE a.datname = current_database() AND a.pid <> pg_backend_pid() ORDER BY 1 LIMIT 40`,
			"locks":     `SELECT concat_ws(' ', pid, mode, granted, (classid::bigint << 32) | objid::bigint) FROM pg_locks WHERE locktype = 'advisory' LIMIT 40`,
			"slots":     `SELECT concat_ws(' ', slot_name, active_pid, restart_lsn, confirmed_flush_lsn) FROM pg_replication_slots WHERE database = current_database()`,
			"migration": `SELECT to_jsonb(m) - 'tables' FROM millrace.migration m`,
			"manager":   `SELECT to_jsonb(m) FROM millrace.migration_manager m`,
			"place":     `SELECT to_jsonb(p) - 'checkpoint' FROM millrace.migration_place p`,
		} {
			rows, err := db.Pool.Query(ctx, sql, pgx.QueryResultFormats{pgx.TextFormatCode})
			var lines []string
			if err == nil {
				lines, err = pgx.CollectRows(rows, pgx.RowTo[string])
			}
			if len(lines) > 0 {
				r.t.Logf("%s at the %s:\n%s", what, where, strings.Join(lines, "\n"))
			}
			if err != nil {
				r.t.Logf("%s at the %s: %v", what, where, err)
			}
		}
	}
}

// testWriter logs into the test's output.
type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	if w.t.Context().Err() == nil {
		w.t.Log(strings.TrimSpace(string(b)))
	}
	return len(b), nil
}

// renew makes the migration of the configuration as it is now.
func (r *rig) renew() {
	r.t.Helper()
	m, err := New(r.cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	r.m = m
}

func public(name string) table.Name { return table.Name{Schema: "public", Name: name} }

func (r *rig) ctx() context.Context {
	ctx, cancel := context.WithTimeout(r.life, limit)
	context.AfterFunc(ctx, cancel)
	return ctx
}

func (r *rig) must(what string, err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatalf("%s: %v", what, err)
	}
}

// follow takes all steps up to the target's having converged.
func (r *rig) follow() {
	r.t.Helper()
	r.must("prepare", r.m.Prepare(r.ctx(), nil))
	r.must("copy", r.m.Copy(r.ctx()))
	r.must("follow", r.m.Follow(r.ctx(), Converged))
}

// catchUp follows until everything that the source has now is at the target.
func (r *rig) catchUp() {
	r.t.Helper()
	r.must("catch up", r.m.Follow(r.ctx(), r.reached()))
}

// reached says when a follower has come to where the source is now.
func (r *rig) reached() Until {
	here := upTo(r.ctx())
	return func(f *follower) bool { return f.sink.exact && here(f) }
}

// upTo says when a follower has come to where its source was when it was first asked.
func upTo(ctx context.Context) Until {
	var end uint64
	return func(f *follower) bool {
		if end == 0 {
			end, _ = f.sourceEnd(ctx) // what fails is asked for again
		}
		return end > 0 && f.at.Position.Token() >= end
	}
}

// bothModes runs a test for each way of capturing.
func bothModes(t *testing.T, test func(t *testing.T, mode millrace.Mode)) {
	for _, mode := range []millrace.Mode{millrace.ModeWAL, millrace.ModeTrigger} {
		t.Run(mode.String(), func(t *testing.T) { test(t, mode) })
	}
}

// same compares all rows of the tables on both sides, over the columns that both
// have, and by a query of one's own where that is given.
func (r *rig) same() {
	r.t.Helper()
	for _, t := range r.cfg.Tables {
		if t.mapped() {
			continue
		}
		const all = "SELECT coalesce(string_agg(x::text, E'\\n' ORDER BY x::text COLLATE \"C\"), '') FROM (SELECT * FROM %s) x"
		r.sameQuery(fmt.Sprintf(all, t.From.Quoted()), fmt.Sprintf(all, t.To.Quoted()))
	}
}

func (r *rig) sameQuery(src, dst string) {
	r.t.Helper()
	got, want := strings.Split(r.dst.String(dst), "\n"), strings.Split(r.src.String(src), "\n")
	if len(got) == len(want) && strings.Join(got, "\n") == strings.Join(want, "\n") {
		return
	}
	has := make(map[string]int)
	for _, row := range want {
		has[row]++
	}
	for _, row := range got {
		has[row]--
	}
	shown := 0
	for row, n := range has {
		if n != 0 && shown < 10 {
			shown++
			r.t.Errorf("row %.200s: the source has %d more than the target", row, n)
		}
	}
	r.t.Fatalf("%s: the target has %d rows, the source %d", dst, len(got), len(want))
}
