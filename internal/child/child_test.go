package child

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

func TestProcess(t *testing.T) {
	p, err := Start(exec.CommandContext(t.Context(), "sleep", "600"), syscall.SIGKILL)
	if err != nil {
		t.Fatal(err)
	}
	if !p.Running() || p.EndsWithin(0) {
		t.Error("a sleeping process counts as ended")
	}
	if group, err := syscall.Getpgid(p.PID()); err != nil || group != p.PID() {
		t.Errorf("process group: got %d, %v, want its own, %d", group, err, p.PID())
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	if p.Running() || !p.EndsWithin(time.Minute) {
		t.Error("a killed process counts as running")
	}
	if got := p.Err().Error(); got != "signal: killed" {
		t.Errorf("Err: got %q", got)
	}
	if err := p.Signal(syscall.SIGTERM); err != nil {
		t.Errorf("signal an ended process: %v", err)
	}
}

func TestStartFails(t *testing.T) {
	if _, err := Start(exec.CommandContext(t.Context(), "/nonexistent/program"), syscall.SIGKILL); err == nil {
		t.Error("start of a missing program gives no error")
	}
}

func TestTail(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path, []byte("0123456789"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		offset, limit int64
		want          string
	}{{0, 100, "0123456789"}, {4, 100, "456789"}, {0, 3, "789"}, {10, 3, ""}} {
		if got := Tail(path, c.offset, c.limit); got != c.want {
			t.Errorf("Tail(%d, %d) = %q, want %q", c.offset, c.limit, got, c.want)
		}
	}
	if got := Tail(path+".missing", 0, 10); got != "" {
		t.Errorf("Tail of a missing file = %q", got)
	}
}
