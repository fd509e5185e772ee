package pgserver

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// testDir is a directory that the server's user may reach also when the tests
// run as root, which testing's own directories are not.
func testDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "millrace-pgserver-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil { // the server's user has to pass through
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func startServer(t *testing.T, cfg Config) *Server {
	t.Helper()
	s, err := Start(testContext(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := s.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	return s
}

func query(t *testing.T, url, sql string) string {
	t.Helper()
	ctx := testContext(t)
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(ctx) }()
	var got string
	if err := conn.QueryRow(ctx, sql).Scan(&got); err != nil && !errors.Is(err, pgx.ErrNoRows) {
		t.Fatalf("%s: %v", sql, err)
	}
	return got
}

func TestStartKillRestartStop(t *testing.T) {
	ctx := testContext(t)
	dir := filepath.Join(testDir(t), "data")
	s := startServer(t, Config{Dir: dir, FSync: true, Settings: map[string]string{"work_mem": "7MB", "application_name": `it's a \test`}})
	url := s.URL("postgres")

	for sql, want := range map[string]string{
		"select current_setting('wal_level')":        "logical",
		"select current_setting('work_mem')":         "7MB",
		"select current_setting('fsync')":            "on",
		"select current_setting('listen_addresses')": "127.0.0.1",
		"select current_setting('server_encoding')":  "UTF8",
		"select current_setting('data_directory')":   s.Dir(),
		"select current_setting('is_superuser')":     "on",
		"select inet_server_port()::text":            fmt.Sprint(s.Port()),
	} {
		if got := query(t, url, sql); got != want {
			t.Errorf("%s: got %q, want %q", sql, got, want)
		}
	}

	query(t, url, "create table kept (id int primary key)")
	query(t, url, "insert into kept values (1)")
	pid := s.PID()
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-s.Done():
	default:
		t.Error("Done is open after Kill")
	}
	if left := processesIn(s.Dir()); len(left) > 0 {
		t.Errorf("processes left after Kill: %v", left)
	}
	if err := s.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	if s.PID() == pid {
		t.Errorf("PID is still %d after a restart", pid)
	}
	if got := s.URL("postgres"); got != url {
		t.Errorf("URL after restart: got %s, want %s", got, url)
	}
	if got := query(t, url, "select count(*)::text from kept"); got != "1" {
		t.Errorf("rows after a crash: got %s, want 1", got)
	}

	if _, err := Start(ctx, Config{Dir: dir}); !errors.Is(err, ErrInUse) {
		t.Errorf("second server on the same directory: got %v, want ErrInUse", err)
	}
	if err := s.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.Stop(ctx); err != nil {
		t.Errorf("stop a stopped server: %v", err)
	}
	again := startServer(t, Config{Dir: dir})
	if got := query(t, again.URL("postgres"), "select count(*)::text from kept"); got != "1" {
		t.Errorf("rows after a new start: got %s, want 1", got)
	}
}

// A lock file of a server that died long ago names a process number that a
// stranger may have by now. Postgres alone would refuse to start.
func TestStaleLockFileOfALiveStranger(t *testing.T) {
	ctx := testContext(t)
	s := startServer(t, Config{Dir: filepath.Join(testDir(t), "data")})
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	lock := filepath.Join(s.Dir(), "postmaster.pid")
	text, err := os.ReadFile(lock)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "\n")
	stranger := exec.CommandContext(ctx, "sleep", "600")
	stranger.SysProcAttr = s.who.attributes()
	if err := stranger.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = stranger.Process.Kill()
		_ = stranger.Wait() // killed, so it says so
	})
	if err := os.WriteFile(lock, fmt.Appendf(nil, "%d\n%s", stranger.Process.Pid, rest), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Restart(ctx); err != nil {
		t.Fatalf("restart beside a stale lock file: %v", err)
	}
}

func TestRefusals(t *testing.T) {
	ctx := testContext(t)
	base := testDir(t)

	strange := filepath.Join(base, "strange")
	if err := os.MkdirAll(strange, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(strange, "letter.txt"), []byte("dear"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Start(ctx, Config{Dir: strange}); err == nil || !strings.Contains(err.Error(), "holds no Postgres data") {
		t.Errorf("start on a directory of other things: got %v", err)
	}

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	port := l.Addr().(*net.TCPAddr).Port
	if _, err := Start(ctx, Config{Dir: filepath.Join(base, "taken"), Port: port}); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("port %d: another program listens there", port)) {
		t.Errorf("start on a taken port: got %v", err)
	}

	if _, err := Start(ctx, Config{Dir: filepath.Join(base, "setting"), Settings: map[string]string{"wal_level": "nonsense"}}); err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("start with a wrong setting: got %v, want the server's own words", err)
	}

	binaries, err := Find(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	old := filepath.Join(base, "old")
	if err := os.MkdirAll(old, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(old, "PG_VERSION"), []byte("11\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Start(ctx, Config{Dir: old, Binaries: binaries}); err == nil || !strings.Contains(err.Error(), "made by version 11") {
		t.Errorf("start on another version's data: got %v", err)
	}
}

// When the process that started it is killed, the server goes too.
func TestEndsWithItsParent(t *testing.T) {
	if !canListProcesses {
		return // a Linux promise
	}
	ctx := testContext(t)
	dir := filepath.Join(testDir(t), "data")
	parent := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestParentProcess$")
	parent.Env = append(os.Environ(), parentDir+"="+dir)
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("parent says %q, %v", line, err)
	}
	if len(processesIn(dir)) == 0 {
		t.Fatal("no server runs below a live parent")
	}
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = parent.Wait() // killed, so it says so
	for len(processesIn(dir)) > 0 {
		select {
		case <-ctx.Done():
			t.Fatalf("the server outlives its parent: %v", processesIn(dir))
		case <-time.After(pollInterval):
		}
	}
	// The kernel asked for an orderly end, so a new start finds no lock file.
	if _, err := os.Stat(filepath.Join(dir, "postmaster.pid")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("lock file: %v, want it gone", err)
	}
}

const parentDir = "MILLRACE_TEST_PGSERVER_PARENT"

// TestParentProcess is the parent in TestEndsWithItsParent, and nothing when run
// as a test of its own.
func TestParentProcess(t *testing.T) {
	dir := os.Getenv(parentDir)
	if dir == "" {
		return
	}
	if _, err := Start(testContext(t), Config{Dir: dir}); err != nil {
		t.Fatal(err)
	}
	fmt.Println("ready")
	select {} // until it is killed
}

// A path too long for a unix socket gets its socket elsewhere, and that place is
// cleared away again.
func TestLongPath(t *testing.T) {
	dir := testDir(t)
	for range 10 {
		dir = filepath.Join(dir, "a-rather-long-name")
	}
	s := startServer(t, Config{Dir: dir})
	socket := s.SocketDir()
	if strings.HasPrefix(socket, dir) {
		t.Errorf("socket directory %s is below a path of %d bytes", socket, len(dir))
	}
	if got := query(t, s.URL("postgres"), "select 'yes'"); got != "yes" {
		t.Errorf("got %q", got)
	}
	if err := s.Stop(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("socket directory after Stop: %v, want it gone", err)
	}
}

// A start that was cut off leaves a half-made cluster beside the directory, and
// the next start does not take it for a whole one.
func TestCutOffInitialization(t *testing.T) {
	dir := filepath.Join(testDir(t), "data")
	if err := os.MkdirAll(dir+".incomplete", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir+".incomplete", "PG_VERSION"), []byte("15\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	startServer(t, Config{Dir: dir})
	if _, err := os.Stat(dir + ".incomplete"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("half-made cluster: %v, want it gone", err)
	}
}

func TestFind(t *testing.T) {
	ctx := testContext(t)
	b, err := Find(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	if b.Version < MinVersion {
		t.Errorf("found version %d, want %d or later", b.Version, MinVersion)
	}
	same, err := Find(ctx, b.Version)
	if err != nil {
		t.Fatal(err)
	}
	if same != b {
		t.Errorf("Find(%d) = %v, Find(0) = %v", b.Version, same, b)
	}
	if _, err := Find(ctx, 99); !errors.Is(err, ErrNotFound) {
		t.Errorf("Find(99): got %v, want ErrNotFound", err)
	}
	if _, err := Find(ctx, 9); err == nil || errors.Is(err, ErrNotFound) {
		t.Errorf("Find(9): got %v, want a refusal", err)
	}
}

// A version that is not installed comes from an archive, which the server's
// unprivileged user can run, and is there the next time.
func TestFetch(t *testing.T) {
	ctx := testContext(t)
	const version = 17
	cache := filepath.Join(testDir(t), "cache")
	b, err := fetch(ctx, version, cache)
	if err != nil {
		t.Fatal(err)
	}
	s := startServer(t, Config{Dir: filepath.Join(testDir(t), "data"), Binaries: b})
	if got := query(t, s.URL("postgres"), "show server_version_num"); !strings.HasPrefix(got, "17") {
		t.Errorf("server_version_num: got %s, want 17…", got)
	}
	if again := newest(ctx, finder{cacheDir: cache}.cached(), version); again != b {
		t.Errorf("in the cache: got %v, want %v", again, b)
	}
	if left, err := filepath.Glob(filepath.Join(cache, "fetch-*")); err != nil || len(left) > 0 {
		t.Errorf("left in the cache: %v, %v", left, err)
	}
}

func TestPlace(t *testing.T) {
	base := testDir(t)
	open := filepath.Join(base, "open")
	got, err := Place(open)
	if err != nil {
		t.Fatal(err)
	}
	if got != open {
		t.Errorf("Place(%s) = %s, want it unchanged", open, got)
	}
	closed := filepath.Join(base, "closed")
	if err := os.Mkdir(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	inside := filepath.Join(closed, "data")
	got, err = Place(inside)
	if err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() != 0 {
		if got != inside {
			t.Errorf("Place(%s) = %s, want it unchanged for who owns it", inside, got)
		}
		return
	}
	if !strings.HasPrefix(got, "/var/lib/millrace/data-") {
		t.Errorf("Place(%s) = %s, want a place that the server's user can reach", inside, got)
	}
	if _, err := Start(testContext(t), Config{Dir: inside}); err == nil || !strings.Contains(err.Error(), closed) {
		t.Errorf("start below a closed directory: got %v, want it to name %s", err, closed)
	}
}
