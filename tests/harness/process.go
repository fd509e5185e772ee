package harness

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/millrace-db/millrace/internal/child"
)

// tailLines is how much of a process's log a failed test shows.
const tailLines = 80

// Process is one run of the program. Its methods may be called from any
// goroutine of the test.
type Process struct {
	// Name tells processes apart in messages.
	Name string
	// Started is the moment before the process was made.
	Started time.Time

	t       testing.TB
	process *child.Process
	stdout  string
	stderr  string
}

// Command is a run of the program that is to come.
type Command struct {
	// Name tells the process apart in messages and names its log files.
	Name string
	// Binary is the program; empty means the Release one.
	Binary string
	Args   []string
	// Env is added to the environment of the test.
	Env []string
	// Dir for log files and as working directory.
	Dir string
	// UID other than 0 runs the program as that user (root only).
	UID uint32
}

// Start starts c. The process is killed at the test's end if it still runs; the
// end of its log is shown if the test has failed.
func Start(t testing.TB, c Command) *Process {
	t.Helper()
	p, err := start(t, c)
	must(t, "start "+c.Name, err)
	return p
}

func start(t testing.TB, c Command) (*Process, error) {
	p := &Process{Name: c.Name, t: t}
	stdout, err := logFile(c.Dir, c.Name+".out")
	if err != nil {
		return nil, err
	}
	defer func() { _ = stdout.Close() }() // the process has its own descriptor
	stderr, err := logFile(c.Dir, c.Name+".err")
	if err != nil {
		return nil, err
	}
	defer func() { _ = stderr.Close() }()
	p.stdout, p.stderr = stdout.Name(), stderr.Name()
	if c.Binary == "" {
		c.Binary = Binary(t, Release)
	}
	// No context on the command: the test ends it.
	cmd := exec.Command(c.Binary, c.Args...) //nolint:noctx // see above
	cmd.Dir = c.Dir
	cmd.Env = append(os.Environ(), c.Env...)
	cmd.Stdout, cmd.Stderr = stdout, stderr
	if c.UID != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: c.UID, Gid: c.UID}}
	}
	p.Started = time.Now()
	if p.process, err = child.Start(cmd, syscall.SIGKILL); err != nil {
		return nil, err
	}
	t.Cleanup(p.finish)
	return p, nil
}

// logFile makes a new file: each run of a process has its own.
func logFile(dir, name string) (*os.File, error) {
	for i := 1; ; i++ {
		path := filepath.Join(dir, fmt.Sprintf("%s.%d", name, i))
		f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if errors.Is(err, os.ErrExist) {
			continue
		}
		return f, err
	}
}

func (p *Process) finish() {
	if err := p.process.Kill(); err != nil {
		p.t.Error(err)
	}
	if raceDetector && strings.Contains(p.Stderr(), "DATA RACE") {
		p.t.Errorf("%s has a data race: %s", p.Name, p.Stderr())
	}
	if p.t.Failed() {
		p.t.Logf("--- %s (pid %d, %v), end of its log:\n%s", p.Name, p.process.PID(), p.process.Err(), lastLines(p.Stderr(), tailLines))
	}
}

func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// PID is the process ID.
func (p *Process) PID() int { return p.process.PID() }

// Stdout returns what the process has written so far.
func (p *Process) Stdout() string { return child.Tail(p.stdout, 0, 64<<20) }

// Stderr returns what the process has written so far.
func (p *Process) Stderr() string { return child.Tail(p.stderr, 0, 64<<20) }

// Running reports whether the process has not ended.
func (p *Process) Running() bool { return p.process.Running() }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.process.Done() }

// Kill ends the process with SIGKILL and returns when it is gone.
func (p *Process) Kill() {
	if err := p.process.Kill(); err != nil {
		p.t.Errorf("%v", err)
	}
}

// Pause stops the process (SIGSTOP): its connections stay open and silent.
func (p *Process) Pause() { p.signal(syscall.SIGSTOP) }

// Resume lets a paused process go on.
func (p *Process) Resume() { p.signal(syscall.SIGCONT) }

// Paused reports whether the process is stopped, by Pause or by a failpoint.
func (p *Process) Paused() bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID()))
	if err != nil {
		return false
	}
	// The state stands after the command's name, which is in parentheses.
	_, rest, _ := strings.Cut(string(text), ") ")
	return strings.HasPrefix(rest, "T")
}

func (p *Process) signal(sig syscall.Signal) {
	if err := p.process.Signal(sig); err != nil {
		p.t.Errorf("%v", err)
	}
}

// Stop ends the process as an operator does (SIGTERM) and wants exit code 0
// within limit.
func (p *Process) Stop(limit time.Duration) {
	p.t.Helper()
	p.signal(syscall.SIGTERM)
	if code := p.Wait(limit); code != 0 {
		p.t.Errorf("%s ended with exit code %d after SIGTERM, want 0", p.Name, code)
	}
}

// Wait returns the exit code, or -1 for the end by a signal. It fails the test
// when the process does not end within limit.
func (p *Process) Wait(limit time.Duration) int {
	p.t.Helper()
	if !p.process.EndsWithin(limit) {
		p.t.Fatalf("%s (pid %d) still runs after %s; end of its log:\n%s", p.Name, p.PID(), limit, lastLines(p.Stderr(), tailLines))
	}
	return p.ExitCode()
}

// ExitCode is that of a process that has ended, -1 for the end by a signal.
func (p *Process) ExitCode() int {
	var exit *exec.ExitError
	if errors.As(p.process.Err(), &exit) {
		return exit.ExitCode()
	}
	return 0
}
