package pgtest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/millrace-db/millrace/internal/child"
	"github.com/millrace-db/millrace/internal/loopback"
	"github.com/millrace-db/millrace/internal/pgserver"
	"github.com/millrace-db/millrace/internal/testdir"
)

// Bouncer puts a real PgBouncer in transaction mode before a server and returns
// the URL of the named database through it. It ends with the test. ignored are
// the startup parameters that it is told to pass over in silence, separated by
// commas; those it does not know make it refuse a connection otherwise.
func Bouncer(t testing.TB, server *pgserver.Server, database, ignored string) string {
	t.Helper()
	return BouncerWith(t, server, database, BouncerOptions{Ignored: ignored})
}

// BouncerOptions say how a PgBouncer is.
type BouncerOptions struct {
	// Ignored is as in Bouncer.
	Ignored string
	// Roles may connect beside postgres.
	Roles []string
	// Prepared is how many named prepared statements it keeps apart for each
	// client. Versions before 1.21 know none, as 0 says.
	Prepared int
	// Databases are lines that stand in [databases], in a file of their own that tests
	// may change; File is then called with its name. Such a PgBouncer lets postgres use
	// its console.
	Databases string
	File      func(path string)
}

// BouncerPrepared returns the numbers of prepared statements that the machine's
// PgBouncer can be told to keep apart: none, and some where it knows them.
func BouncerPrepared(t testing.TB) []int {
	t.Helper()
	out, err := exec.Command(bouncerProgram(t), "--version").Output() //nolint:noctx // it ends at once
	if err != nil {
		t.Fatalf("pgbouncer --version: %v", err)
	}
	var major, minor int
	if _, err := fmt.Sscanf(string(out), "PgBouncer %d.%d", &major, &minor); err != nil {
		t.Fatalf("read the version in %q: %v", out, err)
	}
	if major == 1 && minor < 21 {
		return []int{0}
	}
	return []int{0, 100}
}

func bouncerProgram(t testing.TB) string {
	t.Helper()
	program, err := exec.LookPath("pgbouncer")
	if err != nil {
		program = "/usr/sbin/pgbouncer" // not in everybody's PATH
	}
	if _, err := os.Stat(program); err != nil {
		t.Fatalf("no PgBouncer on this machine: install it with `make setup` or your package manager: %v", err)
	}
	return program
}

// BouncerWith is Bouncer with more to choose.
func BouncerWith(t testing.TB, server *pgserver.Server, database string, options BouncerOptions) string {
	t.Helper()
	program := bouncerProgram(t)
	dir := testdir.For(t)
	ports, err := loopback.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil { //nolint:gosec // another user reads it
			t.Fatal(err)
		}
		return path
	}
	names := ""
	for _, role := range append([]string{"postgres"}, options.Roles...) {
		names += fmt.Sprintf("%q \"\"\n", role)
	}
	users := write("users.txt", names)
	prepared := ""
	if options.Prepared > 0 {
		prepared = fmt.Sprintf("max_prepared_statements = %d\n", options.Prepared)
	}
	databases, admins := fmt.Sprintf("* = host=127.0.0.1 port=%d", server.Port()), ""
	if options.Databases != "" {
		file := write("databases.ini", options.Databases)
		databases, admins = "%include "+file, "admin_users = postgres\n"
		options.File(file)
	}
	config := write("pgbouncer.ini", fmt.Sprintf(`[databases]
%s
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
auth_type = trust
auth_file = %s
pool_mode = transaction
ignore_startup_parameters = %s
%s%s`, databases, ports[0], users, options.Ignored, prepared, admins))
	args := []string{config}
	if os.Geteuid() == 0 { // it refuses to run as root
		args = []string{"-u", "nobody", config}
	}
	b := &bouncer{program: program, args: args, log: filepath.Join(dir, "log"), ended: make(chan struct{})}
	if err := b.start(); err != nil {
		t.Fatal(err)
	}
	process := b.process
	go b.watch()
	t.Cleanup(func() {
		if err := b.stop(); err != nil {
			t.Errorf("%v; it says: %s", err, child.Tail(b.log, 0, 4096))
		}
	})
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(ports[0]))
	if err := awaitListener(address, process); err != nil {
		t.Fatalf("start PgBouncer: %v; it says: %s", err, child.Tail(b.log, 0, 4096))
	}
	u, err := url.Parse(server.URL(database))
	if err != nil {
		t.Fatal(err)
	}
	u.Host = address
	return u.String()
}

// bouncer is a PgBouncer that is started again where it ends by a fault of its own.
type bouncer struct {
	program string
	args    []string
	log     string
	ended   chan struct{} // closed when watch has ended

	mu       sync.Mutex
	process  *child.Process
	stopping bool
	fault    error
}

// ownFault is what PgBouncer 1.18 ends with now and then where a client cancels a query
// and leaves at once.
const ownFault = "disconnect_client(): bad client state"

func (b *bouncer) start() error {
	log, err := os.OpenFile(b.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644) //nolint:gosec // another user may read it
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()        // the process has its own descriptor
	cmd := exec.Command(b.program, b.args...) //nolint:noctx // the test's end ends it
	cmd.Stdout, cmd.Stderr = log, log
	b.process, err = child.Start(cmd, syscall.SIGKILL)
	return err
}

// watch starts it again, as its service would, until it is stopped or ends otherwise.
func (b *bouncer) watch() {
	defer close(b.ended)
	for {
		b.mu.Lock()
		process := b.process
		b.mu.Unlock()
		<-process.Done()
		b.mu.Lock()
		switch {
		case b.stopping:
		case !strings.Contains(child.Tail(b.log, 0, 4096), ownFault):
			b.fault = fmt.Errorf("PgBouncer ended by itself: %w", process.Err())
		default:
			b.fault = b.start()
		}
		over := b.stopping || b.fault != nil
		b.mu.Unlock()
		if over {
			return
		}
	}
}

// stop ends it, and says whether it had ended by itself.
func (b *bouncer) stop() error {
	b.mu.Lock()
	b.stopping = true
	err := errors.Join(b.fault, b.process.Kill())
	b.mu.Unlock()
	<-b.ended
	return err
}

// awaitListener waits until something listens at address.
func awaitListener(address string, process *child.Process) error {
	ctx, cancel := context.WithTimeout(context.Background(), cleanupLimit)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-process.Done():
			return fmt.Errorf("it ended: %w", process.Err())
		case <-ctx.Done():
			return err
		case <-tick.C:
		}
	}
}
