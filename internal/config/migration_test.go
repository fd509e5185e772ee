package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestMigrationCapture(t *testing.T) {
	for _, c := range []struct{ source, target, wantSource, wantTarget, problem string }{
		{"", "", CaptureWAL, CaptureWAL, ""},
		{", capture: trigger", "", CaptureTrigger, CaptureTrigger, ""},
		{", capture: trigger, memory: 2MiB", ", capture: wal", CaptureTrigger, CaptureWAL, ""},
		{"", ", capture: trigger", CaptureWAL, CaptureTrigger, ""},
		{", capture: trigger, memory: 2MiB", "", "", "", "source.memory: means nothing with capture trigger at both sides"},
		{", capture: triggers", "", "", "", `source.capture: "triggers": did you mean "trigger"?`},
		{"", ", capture: none", "", "", `target.capture: "none"`},
	} {
		text := "name: dns\nsource: {url: 'postgres://u@a/d'" + c.source + "}\ntarget: {url: 'postgres://u@b/d'" + c.target + "}\ntables: [{from: public.t}]\n"
		m, err := ParseMigration("m.yaml", []byte(text), nil)
		if c.problem != "" {
			if err == nil || !strings.Contains(err.Error(), c.problem) {
				t.Errorf("%s%s: got %v, want %q", c.source, c.target, err, c.problem)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s%s: %v", c.source, c.target, err)
			continue
		}
		if m.Source.Capture != c.wantSource || m.Target.Capture != c.wantTarget {
			t.Errorf("%s%s: source %s, target %s", c.source, c.target, m.Source.Capture, m.Target.Capture)
		}
	}
}

func TestLoadMigration(t *testing.T) {
	file := filepath.Join(t.TempDir(), "m.yaml")
	if _, err := LoadMigration(file, nil); err == nil || !strings.Contains(err.Error(), "no such migration file; name one with -f FILE") {
		t.Errorf("a file that is not there: %v", err)
	}
	if err := os.WriteFile(file, []byte("name: dns\nsource: {url: 'postgres://u@a/d'}\ntables: [{from: public.t}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadMigration(file, nil); err == nil || !strings.HasPrefix(err.Error(), file+": target.url: not set") {
		t.Errorf("a file without a target: %v", err)
	}
	m, err := LoadMigration(file, []string{"MILLRACE_MIGRATE_SOURCE_URL=a", "MILLRACE_MIGRATE_TARGET_URL=b=c", "MILLRACE_MIGRATE_EMERGENCY_URL=d", "HOME=e"})
	if err != nil {
		t.Fatal(err)
	}
	if got := m.Source.URL.Reveal() + " " + m.Target.URL.Reveal() + " " + m.Emergency.URL.Reveal(); got != "a b=c d" {
		t.Errorf("the URLs of the environment are %s", got)
	}
}
