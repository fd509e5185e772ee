package wal

import (
	"os"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// TestSpoolOfAZombie: a process that was stopped goes on beside its successor,
// which has cleared away its files and writes under the same names.
func TestSpoolOfAZombie(t *testing.T) {
	dir := t.TempDir()
	m, err := newMetrics(prometheus.NewRegistry(), "s")
	if err != nil {
		t.Fatal(err)
	}
	open := func() *spool {
		t.Helper()
		s, err := openSpool(dir, "s", m)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	write := func(s *spool, text string) *spoolFile {
		t.Helper()
		f, err := s.create()
		if err != nil {
			t.Fatal(err)
		}
		if err := f.write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		return f
	}
	zombie := open()
	first := write(zombie, "first of the zombie")
	successor := open()
	files := map[*spoolFile]string{first: "first of the zombie"}
	for range 3 {
		files[write(successor, "the successor's")] = "the successor's"
		files[write(zombie, "the zombie's, which is longer")] = "the zombie's, which is longer"
	}
	for f, want := range files {
		got := make([]byte, len(want)+1)
		n, _ := f.f.ReadAt(got, 0) // io.EOF, because want is shorter
		if string(got[:n]) != want {
			t.Errorf("%s holds %q, want %q", f.f.Name(), got[:n], want)
		}
		if err := f.remove(); err != nil {
			t.Errorf("remove a file, which a successor may have cleared away: %v", err)
		}
	}
	left, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range left {
		if strings.HasSuffix(e.Name(), ".spool") {
			t.Errorf("%s is left", e.Name())
		}
	}
}
