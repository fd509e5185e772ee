package harness

import (
	"strings"
	"testing"
	"time"
)

// refusalLimit is how long a process may take to refuse what it is given.
const refusalLimit = 3 * time.Minute

// WantRefusal wants the process to end by itself with the exit code, and its
// standard error to hold one line for a person, beside the log, that has all of
// words in it.
func WantRefusal(t testing.TB, p *Process, code int, words ...string) {
	t.Helper()
	if got := p.Wait(refusalLimit); got != code {
		t.Errorf("%s ended with exit code %d, want %d", p.Name, got, code)
	}
	lines := forPeople(p.Stderr())
	if len(lines) != 1 {
		t.Errorf("%s says %d lines, want one: %s", p.Name, len(lines), strings.Join(lines, "\n"))
		return
	}
	t.Logf("%s: %s", p.Name, lines[0])
	for _, word := range words {
		if !strings.Contains(lines[0], word) {
			t.Errorf("%s does not name %q: %s", p.Name, word, lines[0])
		}
	}
}

// forPeople returns the lines of a standard error that are no log lines.
func forPeople(stderr string) []string {
	var lines []string
	for line := range strings.Lines(stderr) {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "time=") {
			lines = append(lines, line)
		}
	}
	return lines
}
