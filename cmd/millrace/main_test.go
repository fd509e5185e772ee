package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/millrace-db/millrace/internal/child"
	"github.com/millrace-db/millrace/internal/embeddedkafka"
	"github.com/millrace-db/millrace/internal/loopback"
	"github.com/millrace-db/millrace/internal/pgtest"
	"github.com/millrace-db/millrace/internal/testdir"
)

// asProgram makes the test binary behave as the program itself, so that tests
// run it as a process without building it a second time.
const asProgram = "MILLRACE_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		return
	}
	pgtest.Main(m)
}

const (
	runLimit  = time.Minute
	waitLimit = time.Minute
	pollEvery = 10 * time.Millisecond
)

// process is a run of the program.
type process struct {
	t              *testing.T
	name           string
	process        *child.Process
	stdout, stderr string // files
}

// spawn starts the program in dir. It is killed at the test's end if it still
// runs, and its output is shown if the test has failed.
func spawn(t *testing.T, dir string, env []string, args ...string) *process {
	t.Helper()
	return spawnProgram(t, os.Args[0], dir, env, args...)
}

// spawnProgram is spawn with another binary than the tests'.
func spawnProgram(t *testing.T, path, dir string, env []string, args ...string) *process {
	t.Helper()
	cmd := exec.Command(path, args...) //nolint:noctx // the test ends it
	cmd.Dir = dir
	cmd.Env = append(append(os.Environ(), asProgram+"=1"), env...)
	p := &process{t: t, name: args[0]}
	for _, file := range []struct {
		name string
		path *string
		to   func(*os.File)
	}{
		{"out", &p.stdout, func(f *os.File) { cmd.Stdout = f }},
		{"err", &p.stderr, func(f *os.File) { cmd.Stderr = f }},
	} {
		f, err := os.CreateTemp(dir, "run-*."+file.name)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = f.Close() }() // the process has its own descriptor
		*file.path = f.Name()
		file.to(f)
	}
	var err error
	if p.process, err = child.Start(cmd, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.process.Kill(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("--- millrace %s: %v\n%s%s", strings.Join(args, " "), p.process.Err(), p.out(), p.err())
		}
	})
	return p
}

func (p *process) out() string { return child.Tail(p.stdout, 0, 64<<20) }
func (p *process) err() string { return child.Tail(p.stderr, 0, 64<<20) }

// wait returns the exit code.
func (p *process) wait() int {
	p.t.Helper()
	if !p.process.EndsWithin(runLimit) {
		p.t.Fatalf("millrace %s still runs after %s", p.name, runLimit)
	}
	var exit *exec.ExitError
	if errors.As(p.process.Err(), &exit) {
		return exit.ExitCode()
	}
	return 0
}

// stop ends the process with a signal and wants exit code 0.
func (p *process) stop(sig syscall.Signal) {
	p.t.Helper()
	if err := p.process.Signal(sig); err != nil {
		p.t.Fatal(err)
	}
	if code := p.wait(); code != 0 {
		p.t.Errorf("millrace %s ended with exit code %d after %v, want 0", p.name, code, sig)
	}
}

// program runs it to its end and wants exit code 0.
func program(t *testing.T, dir string, args ...string) string {
	t.Helper()
	p := spawn(t, dir, nil, args...)
	if code := p.wait(); code != 0 {
		t.Fatalf("millrace %s: exit code %d: %s", strings.Join(args, " "), code, p.err())
	}
	return p.out()
}

// refusal runs the program to its end, and wants the exit code and one line for
// a person that has all words in it.
func refusal(t *testing.T, dir string, env []string, code int, words []string, args ...string) {
	t.Helper()
	p := spawn(t, dir, env, args...)
	if got := p.wait(); got != code {
		t.Errorf("millrace %s: exit code %d, want %d", strings.Join(args, " "), got, code)
	}
	var lines []string
	for line := range strings.Lines(p.err()) {
		if !strings.HasPrefix(line, "time=") { // the log
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	if len(lines) != 1 {
		t.Errorf("millrace %s says %d lines, want one:\n%s", strings.Join(args, " "), len(lines), strings.Join(lines, "\n"))
		return
	}
	for _, word := range words {
		if !strings.Contains(lines[0], word) {
			t.Errorf("millrace %s does not say %q: %s", strings.Join(args, " "), word, lines[0])
		}
	}
}

// until waits for a condition.
func until(t *testing.T, what string, holds func() error) {
	t.Helper()
	deadline := time.NewTimer(waitLimit)
	defer deadline.Stop()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		err := holds()
		if err == nil {
			return
		}
		select {
		case <-deadline.C:
			t.Fatalf("wait until %s: %v", what, err)
		case <-tick.C:
		}
	}
}

// world is a source with a table, a broker, and a configuration for both sides.
type world struct {
	db                     *pgtest.DB
	dir, file, edge, admin string
	broker                 string
	// source are the keys of the stream's source beside its URL and tables.
	source string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	return newWorldOn(t, pgtest.New(t))
}

// newWorldApart is a world whose server is its own: slots are of the whole server, and
// the stream of every world has the same name.
func newWorldApart(t *testing.T) *world {
	t.Helper()
	return newWorldOn(t, pgtest.On(t, pgtest.Cluster(t, pgtest.Options{})))
}

// newWorldOn is a world whose source is db.
func newWorldOn(t *testing.T, db *pgtest.DB) *world {
	t.Helper()
	w := &world{db: db, dir: testdir.For(t), source: "spool_dir: spool"}
	broker, err := embeddedkafka.Start(embeddedkafka.Config{Dir: filepath.Join(w.dir, "kafka")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := broker.Close(); err != nil {
			t.Error(err)
		}
	})
	w.broker = broker.Addrs()[0]
	ports, err := loopback.FreePorts(2)
	if err != nil {
		t.Fatal(err)
	}
	w.edge, w.admin = fmt.Sprintf("127.0.0.1:%d", ports[0]), fmt.Sprintf("127.0.0.1:%d", ports[1])
	w.db.Exec(`CREATE TABLE items (shop text, id int, note text, PRIMARY KEY (shop, id));
		INSERT INTO items SELECT 's' || i % 3, i, 'note ' || i FROM generate_series(1, 30) i`)
	w.file = w.write(t, "millrace.yaml", w.config(w.db.URL, ""))
	return w
}

func (w *world) config(source, extra string) string {
	return fmt.Sprintf(`
streams:
  - name: shop
    source: {url: %q, tables: [public.items], %s}
    kafka: {brokers: [%q]}
transfer: {admin: %q}
edge:
  id: here
  data_dir: edge
  report: 1s
  http: {listen: %q, unix: edge.sock}
%s`, source, w.source, w.broker, w.admin, w.edge, extra)
}

func (w *world) write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(w.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// ready waits until the edge has its first copy.
func (w *world) ready(t *testing.T) {
	t.Helper()
	until(t, "the edge is ready", func() error { return httpOK("http://" + w.edge + "/readyz") })
}

func httpOK(url string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }() // its status is enough
	if resp.StatusCode != http.StatusOK {
		var b bytes.Buffer
		_, _ = b.ReadFrom(resp.Body)
		return fmt.Errorf("%s: %s", resp.Status, b.String())
	}
	return nil
}
