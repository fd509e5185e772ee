// Package testdir makes scratch directories for servers that tests start.
//
// Unlike testing's own, they may be passed through by the unprivileged user that
// a server runs as, they can outlive one test, their paths are short enough for
// unix sockets, and those of a test binary that was killed are cleared away by
// the next one. MILLRACE_TEST_DIR says where they are made, in memory for
// instance, if not where temporary files go: no test ends the machine.
package testdir

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

const (
	prefix = "millrace-test-"
	env    = "MILLRACE_TEST_DIR"
)

func place() string {
	if dir := os.Getenv(env); dir != "" {
		return dir
	}
	return os.TempDir()
}

// New makes a directory that the caller removes.
func New() (string, error) {
	if err := sweep(); err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp(place(), fmt.Sprintf("%s%d-", prefix, os.Getpid()))
	if err != nil {
		return "", fmt.Errorf("make test directory: %w", err)
	}
	if err := os.Chmod(dir, 0o755); err != nil { // a server's user has to pass through
		return "", errors.Join(fmt.Errorf("open test directory: %w", err), os.Remove(dir))
	}
	return dir, nil
}

// For makes a directory that is removed when the test ends, after the cleanups
// that are registered later have stopped what runs in it.
func For(t testing.TB) string {
	t.Helper()
	dir, err := New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("remove test directory: %v", err)
		}
	})
	return dir
}

// sweep removes the directories of test binaries that are no longer alive.
func sweep() error {
	dirs, err := filepath.Glob(filepath.Join(place(), prefix+"*"))
	if err != nil {
		return fmt.Errorf("list old test directories: %w", err)
	}
	for _, dir := range dirs {
		text, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), prefix), "-")
		pid, err := strconv.Atoi(text)
		if err != nil || pid <= 0 {
			continue
		}
		if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
			continue
		}
		// Another test binary may sweep the same one at this moment, and a
		// server may still be ending in it: the next sweep gets the rest.
		_ = os.RemoveAll(dir)
	}
	return nil
}
