package harness

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace-db/millrace/internal/testdir"
)

// Variant is a way to build the program.
type Variant int

// The variants.
const (
	// Release is what users run.
	Release Variant = iota
	// Faulty has failpoints and planted bugs, off unless the environment of
	// the process names one.
	Faulty
)

func (v Variant) tags() string {
	if v == Faulty {
		return "failpoint,planted"
	}
	return ""
}

const buildLimit = 10 * time.Minute

// built holds the programs of this test binary, each built at its first use.
var built struct { //nolint:gochecknoglobals // a test binary has no other place that outlives its tests
	mu    sync.Mutex
	dir   string
	paths map[Variant]string
}

// Binary builds the program, once for each variant, and returns its path.
func Binary(t testing.TB, v Variant) string {
	t.Helper()
	built.mu.Lock()
	defer built.mu.Unlock()
	if path := built.paths[v]; path != "" {
		return path
	}
	path, err := build(v)
	must(t, "build millrace", err)
	return path
}

func build(v Variant) (string, error) {
	if built.dir == "" {
		dir, err := testdir.New()
		if err != nil {
			return "", err
		}
		built.dir, built.paths = dir, map[Variant]string{}
	}
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), buildLimit)
	defer cancel()
	path := filepath.Join(built.dir, fmt.Sprintf("millrace-%d", v))
	// Without what a debugger wants it is linked in two thirds of the time.
	args := []string{"build", "-buildvcs=false", "-ldflags", "-s -w", "-tags", v.tags(), "-o", path}
	if raceDetector {
		args = append(args, "-race")
	}
	cmd := exec.CommandContext(ctx, "go", append(args, "./cmd/millrace")...)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	built.paths[v] = path
	return path, nil
}

// moduleRoot is the directory of go.mod.
func moduleRoot() (string, error) {
	out, err := exec.CommandContext(context.Background(), "go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("find the module: %w", err)
	}
	return filepath.Dir(strings.TrimSpace(string(out))), nil
}

func removeBinaries() error {
	built.mu.Lock()
	defer built.mu.Unlock()
	if built.dir == "" {
		return nil
	}
	return os.RemoveAll(built.dir)
}
