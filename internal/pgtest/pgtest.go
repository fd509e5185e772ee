// Package pgtest gives tests real Postgres servers and databases.
//
// One cluster serves a whole test binary; each test gets a database of its own
// in it. Tests that stop, kill or reconfigure a server get a private one.
// Nothing is ever skipped for want of a server: a machine without one fails the
// test and says what mends it. MILLRACE_TEST_PG_VERSION chooses the major
// version (14 to 18), which is fetched if it is not installed.
//
// A package that uses New or Server ends the shared cluster in its TestMain:
//
//	func TestMain(m *testing.M) { pgtest.Main(m) }
package pgtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millrace-db/millrace/internal/pgserver"
	"github.com/millrace-db/millrace/internal/testdir"
)

const (
	startLimit   = 2 * time.Minute
	cleanupLimit = 2 * time.Minute
	versionEnv   = "MILLRACE_TEST_PG_VERSION"
)

// shared is the test binary's one cluster. A test binary has no other place to
// keep it: tests start in any order and none of them owns it.
var shared struct {
	once   sync.Once
	server *pgserver.Server
	dir    string
	err    error
}

var databases atomic.Uint64 // numbers the databases of the shared cluster

// Main runs the tests, stops the shared cluster, runs the given other ends (such
// as kafkatest.StopShared) and exits.
func Main(m *testing.M, ends ...func() error) {
	code := m.Run()
	for _, end := range append(ends, StopShared) {
		if err := end(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = max(code, 1)
		}
	}
	os.Exit(code)
}

// StopShared ends the shared cluster and removes its data, and what private ones
// were copied from. For a TestMain that does not call Main.
func StopShared() error {
	err := removeTemplates()
	if shared.server == nil {
		return err
	}
	// Its data is thrown away, so it need not be written out first.
	return errors.Join(err, shared.server.Quit(), os.RemoveAll(shared.dir))
}

// Server returns the test binary's shared cluster, started at the first call.
// Tests must not stop or reconfigure it.
func Server(t testing.TB) *pgserver.Server {
	t.Helper()
	shared.once.Do(func() {
		if shared.dir, shared.err = testdir.New(); shared.err != nil {
			return
		}
		shared.server, shared.err = start(shared.dir, Options{}, false)
	})
	if shared.err != nil {
		t.Fatalf("start the shared Postgres: %v", shared.err)
	}
	return shared.server
}

// Options are for a private server.
type Options struct {
	// Settings over those of pgserver, for instance wal_level.
	Settings map[string]string
	// Version is the major version; 0 means MILLRACE_TEST_PG_VERSION, or the
	// newest on the machine.
	Version int
	// FSync makes the server sync its files; without it the server is quicker
	// and its data still survives Kill.
	FSync bool
}

// Cluster starts a server for this test alone, which may kill and restart it. It
// ends with the test. Private servers of one version have one system identifier,
// unless FSync is set.
func Cluster(t testing.TB, options Options) *pgserver.Server {
	t.Helper()
	server, err := start(testdir.For(t), options, !options.FSync)
	if err != nil {
		t.Fatalf("start a private Postgres: %v", err)
	}
	t.Cleanup(func() {
		if err := server.Quit(); err != nil {
			t.Error(err)
		}
	})
	return server
}

// start starts a server on a cluster that is made in dir, by a copy or anew.
func start(dir string, options Options, byCopy bool) (*pgserver.Server, error) {
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	version := options.Version
	if text := os.Getenv(versionEnv); version == 0 && text != "" {
		var err error
		if version, err = strconv.Atoi(text); err != nil {
			return nil, fmt.Errorf("read %s=%s: want a major version such as 17", versionEnv, text)
		}
	}
	var find []pgserver.FindOption
	if version != 0 {
		find = append(find, pgserver.AllowFetch(""))
	}
	binaries, err := pgserver.Find(ctx, version, find...)
	if err != nil {
		return nil, err
	}
	data := filepath.Join(dir, "data")
	if byCopy {
		if err := fromTemplate(ctx, binaries, data); err != nil {
			return nil, err
		}
	}
	return pgserver.Start(ctx, pgserver.Config{
		Dir:      data,
		Settings: options.Settings,
		Binaries: binaries,
		FSync:    options.FSync,
	})
}

// DB is a database of one test.
type DB struct {
	// Name of the database.
	Name string
	// URL reaches it as superuser over TCP.
	URL string
	// Pool is open until the test ends.
	Pool *pgxpool.Pool
	// Server it is on.
	Server *pgserver.Server

	t testing.TB
}

// New makes a fresh database on the shared cluster. With the test it goes away,
// along with its connections and replication slots.
func New(t testing.TB) *DB {
	t.Helper()
	return On(t, Server(t))
}

var notInNames = regexp.MustCompile(`[^a-z0-9]+`)

// On makes a fresh database on the given server. If the server still answers at
// the test's end, the database goes away.
func On(t testing.TB, server *pgserver.Server) *DB {
	t.Helper()
	name := fmt.Sprintf("t%d_%s", databases.Add(1), notInNames.ReplaceAllString(strings.ToLower(t.Name()), "_"))
	name = name[:min(len(name), 60)]
	ctx, cancel := context.WithTimeout(context.Background(), cleanupLimit)
	defer cancel()
	if err := admin(ctx, server, "create database "+pgx.Identifier{name}.Sanitize()); err != nil {
		t.Fatalf("make database: %v", err)
	}
	db := &DB{Name: name, URL: server.URL(name), Server: server, t: t}
	pool, err := pgxpool.New(ctx, db.URL)
	if err != nil {
		t.Fatalf("open pool: %v", err)
	}
	db.Pool = pool
	t.Cleanup(db.drop)
	return db
}

// At is the same database on another server, a standby for instance, reached
// through a pool that the caller closes.
func (db *DB) At(server *pgserver.Server, pool *pgxpool.Pool) *DB {
	return &DB{Name: db.Name, URL: server.URL(db.Name), Pool: pool, Server: server, t: db.t}
}

// Exec runs statements without arguments, several at once if separated by
// semicolons, and fails the test where one fails.
func (db *DB) Exec(sql string) {
	db.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	// The simple protocol takes several statements.
	if _, err := db.Pool.Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol); err != nil {
		db.t.Fatalf("%s: %v", sql, err)
	}
}

// String returns the text of a query's single value, "" for none or null.
func (db *DB) String(sql string, args ...any) string {
	db.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	rows, err := db.Pool.Query(ctx, sql, append([]any{pgx.QueryResultFormats{pgx.TextFormatCode}}, args...)...)
	if err != nil {
		db.t.Fatalf("%s: %v", sql, err)
	}
	defer rows.Close()
	got := ""
	if rows.Next() {
		got = string(rows.RawValues()[0])
	}
	rows.Close()
	if err := rows.Err(); err != nil {
		db.t.Fatalf("%s: %v", sql, err)
	}
	return got
}

func (db *DB) drop() {
	db.Pool.Close()
	select {
	case <-db.Server.Done():
		return // a private server that the test has killed takes it along
	default:
	}
	ctx, cancel := context.WithTimeout(context.Background(), cleanupLimit)
	defer cancel()
	if err := dropDatabase(ctx, db.Server, db.Name); err != nil {
		db.t.Errorf("drop database %s: %v", db.Name, err)
	}
}

// dropDatabase drops the database and its replication slots: a slot left behind
// holds the write-ahead log and a place among few, and blocks the drop.
func dropDatabase(ctx context.Context, server *pgserver.Server, name string) error {
	conn, err := pgx.Connect(ctx, server.URL("postgres"))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }() // nothing is lost with it
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := dropOnce(ctx, conn, name)
		if err == nil || conn.IsClosed() {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-tick.C: // a terminated session needs a moment to let go, and a busy server more than it gives one
		}
	}
}

func dropOnce(ctx context.Context, conn *pgx.Conn, name string) error {
	if _, err := conn.Exec(ctx, `select pg_terminate_backend(active_pid) from pg_replication_slots
		where database = $1 and active_pid is not null`, name); err != nil {
		return fmt.Errorf("end replication connections: %w", err)
	}
	if _, err := conn.Exec(ctx, `select pg_drop_replication_slot(slot_name) from pg_replication_slots
		where database = $1 and active_pid is null`, name); err != nil {
		return fmt.Errorf("drop replication slots: %w", err)
	}
	var left int
	if err := conn.QueryRow(ctx, `select count(*) from pg_replication_slots where database = $1`, name).Scan(&left); err != nil {
		return fmt.Errorf("count replication slots: %w", err)
	}
	if left > 0 {
		return fmt.Errorf("drop replication slots: %d are still held", left)
	}
	_, err := conn.Exec(ctx, "drop database "+pgx.Identifier{name}.Sanitize()+" with (force)")
	return err
}

func admin(ctx context.Context, server *pgserver.Server, sql string) error {
	conn, err := pgx.Connect(ctx, server.URL("postgres"))
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, sql)
	return errors.Join(err, conn.Close(ctx))
}
