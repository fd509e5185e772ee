package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestReport(t *testing.T) {
	for name, c := range map[string]struct {
		in   string
		code int
		last string
		has  []string
	}{
		"all pass": {
			in: `{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestA","Output":"chatter\n"}
{"Action":"pass","Package":"p","Test":"TestA","Elapsed":0.1}
{"Action":"pass","Package":"p","Test":"TestA/sub","Elapsed":0.1}
{"Action":"output","Package":"p","Output":"ok p\n"}
{"Action":"pass","Package":"p","Elapsed":0.2}
`,
			last: "2 passed, 0 failed",
			has:  []string{"ok    p", "2 tests"},
		},
		"one fails": {
			in: `{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:1: got 1, want 2\n"}
{"Action":"fail","Package":"p","Test":"TestA","Elapsed":0.1}
{"Action":"pass","Package":"p","Test":"TestB","Elapsed":0.1}
{"Action":"output","Package":"p","Output":"FAIL\n"}
{"Action":"fail","Package":"p","Elapsed":0.2}
`,
			code: 1,
			last: "1 passed, 1 failed",
			has:  []string{"got 1, want 2", "failed: p TestA"},
		},
		"does not compile": {
			in: `{"ImportPath":"p [p.test]","Action":"build-output","Output":"a.go:3: undefined: x\n"}
{"ImportPath":"p [p.test]","Action":"build-fail"}
{"Action":"start","Package":"p"}
{"Action":"output","Package":"p","Output":"FAIL p [build failed]\n"}
{"Action":"fail","Package":"p","Elapsed":0,"FailedBuild":"p [p.test]"}
{"Action":"pass","Package":"q","Test":"TestQ"}
{"Action":"pass","Package":"q"}
`,
			code: 1,
			last: "1 passed, 1 failed",
			has:  []string{"undefined: x", "failed: p\n"},
		},
		"runs out of time": {
			in: `{"Action":"run","Package":"p","Test":"TestSlow"}
{"Action":"output","Package":"p","Test":"TestSlow","Output":"=== RUN TestSlow\n"}
{"Action":"output","Package":"p","Test":"TestSlow","Output":"panic: test timed out\n"}
{"Action":"fail","Package":"p","Elapsed":60}
`,
			code: 1,
			last: "0 passed, 1 failed",
			has:  []string{"panic: test timed out", "ended while running TestSlow"},
		},
		"a skip is told": {
			in: `{"Action":"skip","Package":"p","Test":"TestA"}
{"Action":"pass","Package":"p","Test":"TestB"}
{"Action":"pass","Package":"p"}
`,
			last: "1 passed, 0 failed, 1 skipped",
			has:  []string{"skipped: p TestA"},
		},
		"nothing ran": {
			in:   "go: no such package\n",
			code: 1,
			last: "0 passed, 0 failed",
			has:  []string{"go: no such package", "no tests ran"},
		},
		"a package without tests": {
			in: `{"Action":"output","Package":"e","Output":"? e [no test files]\n"}
{"Action":"skip","Package":"e","Elapsed":0}
{"Action":"pass","Package":"p","Test":"TestA"}
{"Action":"pass","Package":"p"}
`,
			last: "1 passed, 0 failed",
		},
	} {
		t.Run(name, func(t *testing.T) {
			var out strings.Builder
			path := filepath.Join(t.TempDir(), "summary")
			code, err := run(strings.NewReader(c.in), &out, path)
			if err != nil {
				t.Fatal(err)
			}
			if code != c.code {
				t.Errorf("exit code: got %d, want %d", code, c.code)
			}
			if !strings.HasSuffix(out.String(), "\n"+c.last+"\n") {
				t.Errorf("report ends in %q, want %q", out.String()[max(0, out.Len()-60):], c.last)
			}
			for _, want := range c.has {
				if !strings.Contains(out.String(), want) {
					t.Errorf("report lacks %q:\n%s", want, out.String())
				}
			}
			written, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if string(written) != c.last+"\n" {
				t.Errorf("summary file: got %q, want %q", written, c.last)
			}
		})
	}
}
