package pgserver

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

// process is one run of the postmaster.
type process struct {
	pid  int
	done chan struct{} // closed once the process was reaped
	err  error         // how it ended; read only after done
}

// spawn starts cmd and reaps it in the background.
//
// The kernel sends the parent-death signal when the *thread* that forked ends.
// So one goroutine keeps its thread from the fork until the child is gone.
func spawn(cmd *exec.Cmd) (*process, error) {
	p := &process{done: make(chan struct{})}
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
		return nil, err
	}
	return p, nil
}

// signal sends sig unless the process has ended, which is no error.
func (p *process) signal(sig syscall.Signal) error {
	select {
	case <-p.done:
		return nil
	default:
	}
	if err := syscall.Kill(p.pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("send %s to Postgres (process %d): %w", sig, p.pid, err)
	}
	return nil
}

// endsWithin waits for the end of the process for at most d.
func (p *process) endsWithin(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-p.done:
		return true
	case <-timer.C:
		return false
	}
}

// clearOut kills what is left of a dead postmaster in dir and returns when
// nothing is: a backend that outlives its postmaster still writes to the data
// directory, and the next postmaster refuses to start beside it.
func clearOut(dir string, limit time.Duration) error {
	deadline := time.Now().Add(limit)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		pids := processesIn(dir)
		if len(pids) == 0 {
			return nil
		}
		for _, pid := range pids {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("kill Postgres process %d: %w", pid, err)
			}
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("kill Postgres in %s: processes %v are still there after %s", dir, pids, limit)
		}
		<-tick.C
	}
}

// tail returns the end of the file from the given offset, at most 4 KiB, for
// error messages.
func tail(path string, offset int64) string {
	const most = 4096
	file, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer func() { _ = file.Close() }() // only read from
	info, err := file.Stat()
	if err != nil {
		return ""
	}
	if info.Size()-offset > most {
		offset = info.Size() - most
	}
	if info.Size() <= offset {
		return ""
	}
	text := make([]byte, info.Size()-offset)
	n, err := file.ReadAt(text, offset)
	if err != nil && n == 0 {
		return ""
	}
	return string(text[:n])
}
