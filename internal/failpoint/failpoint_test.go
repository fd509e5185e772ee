//go:build failpoint

package failpoint

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// TestMain lets the test binary stand in for a process with three places.
func TestMain(m *testing.M) {
	if os.Getenv("MILLRACE_FAILPOINT_TEST") == "" {
		os.Exit(m.Run())
	}
	for _, name := range []string{"captured", "sequenced", "captured"} {
		Hit(name)
		_, _ = os.Stdout.WriteString(name + "\n")
	}
}

func TestHit(t *testing.T) {
	for armed, want := range map[string]string{
		"":            "captured sequenced captured",
		"captured":    "",
		"sequenced":   "captured",
		"captured:2":  "captured sequenced",
		"sequenced:2": "captured sequenced captured",
		"other":       "captured sequenced captured",
	} {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), "MILLRACE_FAILPOINT_TEST=1", Variable+"="+armed)
		out, err := cmd.Output()
		if got := strings.Join(strings.Fields(string(out)), " "); got != want {
			t.Errorf("%q: the process passed %q, want %q", armed, got, want)
		}
		var exit *exec.ExitError
		killed := errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL
		if wantKilled := want != "captured sequenced captured"; killed != wantKilled {
			t.Errorf("%q: killed %v, want %v", armed, killed, wantKilled)
		}
	}
}
