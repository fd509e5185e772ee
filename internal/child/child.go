// Package child runs the servers that this project starts itself, Postgres and
// Kafka, as child processes.
//
// It promises that a child is reaped, that a Ctrl-C meant for this process does
// not reach it, and, on Linux, that it is signalled when this process dies,
// however it dies. When to start and stop is left to the caller.
package child

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

// Process is one run of a child. Its methods may be called concurrently.
type Process struct {
	pid  int
	done chan struct{}
	err  error // read only after done
}

// Start starts cmd and reaps it in the background. With the death of this
// process the child gets onDeath (Linux only). Start sets cmd.SysProcAttr but for
// its Credential, which the caller may have set.
//
// The kernel sends that signal when the *thread* that forked ends. So one
// goroutine keeps its thread from the fork until the child is gone.
func Start(cmd *exec.Cmd, onDeath syscall.Signal) (*Process, error) {
	attributes(cmd, onDeath)
	p := &Process{done: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		p.pid = cmd.Process.Pid
		started <- nil
		p.err = cmd.Wait()
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	return p, nil
}

// Run starts cmd and waits for its end. For short-lived children; cmd's own
// context bounds it.
func Run(cmd *exec.Cmd, onDeath syscall.Signal) error {
	p, err := Start(cmd, onDeath)
	if err != nil {
		return err
	}
	<-p.done
	return p.err
}

// PID is the process ID.
func (p *Process) PID() int { return p.pid }

// Done is closed when the process has ended and was reaped.
func (p *Process) Done() <-chan struct{} { return p.done }

// Running reports whether the process has not ended yet.
func (p *Process) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Err says how the process ended, never nil. It waits for that end.
func (p *Process) Err() error {
	<-p.done
	if p.err == nil {
		return errors.New("exit status 0")
	}
	return p.err
}

// Signal sends sig. A process that has ended is no error.
func (p *Process) Signal(sig syscall.Signal) error {
	if !p.Running() {
		return nil
	}
	if err := syscall.Kill(p.pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("send %s to process %d: %w", sig, p.pid, err)
	}
	return nil
}

// EndsWithin waits for the end of the process for at most d.
func (p *Process) EndsWithin(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-p.done:
		return true
	case <-timer.C:
		return false
	}
}

// Kill sends SIGKILL and returns when the process is gone.
func (p *Process) Kill() error {
	const limit = time.Minute // a loaded machine is slow to take a large process down
	if err := p.Signal(syscall.SIGKILL); err != nil {
		return err
	}
	if !p.EndsWithin(limit) {
		return fmt.Errorf("kill process %d: it is still there after %s", p.pid, limit)
	}
	return nil
}

// Tail returns what was added to a log file since offset, at most its last
// limit bytes, or "" if it cannot be read: it goes into error messages.
func Tail(path string, offset, limit int64) string {
	file, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer func() { _ = file.Close() }() // only read from
	info, err := file.Stat()
	if err != nil {
		return ""
	}
	offset = max(offset, info.Size()-limit)
	text, err := io.ReadAll(io.NewSectionReader(file, offset, max(info.Size()-offset, 0)))
	if err != nil {
		return ""
	}
	return string(text)
}
