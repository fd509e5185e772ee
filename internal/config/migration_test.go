package config

import (
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
