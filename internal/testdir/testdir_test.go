package testdir

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
)

func TestSweepTakesOnlyTheDead(t *testing.T) {
	mine := For(t)
	dead := exec.CommandContext(t.Context(), "true")
	if err := dead.Run(); err != nil {
		t.Fatal(err)
	}
	left := filepath.Join(place(), prefix+strconv.Itoa(dead.Process.Pid)+"-left")
	if err := os.MkdirAll(filepath.Join(left, "data"), 0o700); err != nil {
		t.Fatal(err)
	}
	For(t)
	if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("directory of a dead process: %v, want it gone", err)
	}
	if _, err := os.Stat(mine); err != nil {
		t.Errorf("directory of a live process: %v", err)
	}
}
