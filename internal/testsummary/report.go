package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// event is one line of `go test -json` (see `go doc test2json`, and `go help
// buildjson` for the build's).
type event struct {
	Action      string
	Package     string
	ImportPath  string
	Test        string
	Elapsed     float64 // seconds
	Output      string
	FailedBuild string
}

type testName struct{ pkg, test string } // test is "" for what the package says

// report keeps the output of what has not ended yet, and of nothing else.
type report struct {
	out     io.Writer
	pending map[testName]*strings.Builder
	builds  map[string]*strings.Builder // compiler output by import path
	counts  map[string]int              // tests passed, by package
	broken  map[string]bool             // packages with a failed test
	skipped []string
	failing []string
	started time.Time

	passed, failed int
}

func newReport(out io.Writer) *report {
	return &report{
		out:     out,
		pending: map[testName]*strings.Builder{},
		builds:  map[string]*strings.Builder{},
		counts:  map[string]int{},
		broken:  map[string]bool{},
		started: time.Now(),
	}
}

// read takes all events. Lines that are none are passed on as they are.
func (r *report) read(in io.Reader) error {
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if jsonErr := json.Unmarshal(line, &e); jsonErr != nil || e.Action == "" {
				r.printf("%s", line)
			} else {
				r.take(e)
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read test events: %w", err)
		}
	}
}

func (r *report) take(e event) {
	name := testName{e.Package, e.Test}
	switch e.Action {
	case "build-output":
		add(r.builds, e.ImportPath, e.Output)
	case "output":
		add(r.pending, name, e.Output)
	case "pass", "fail", "skip":
		if e.Test == "" {
			r.endPackage(e)
		} else {
			r.endTest(e)
		}
	}
}

func add[K comparable](to map[K]*strings.Builder, key K, text string) {
	if to[key] == nil {
		to[key] = &strings.Builder{}
	}
	to[key].WriteString(text)
}

// drain returns what was kept under key and forgets it.
func drain[K comparable](from map[K]*strings.Builder, key K) string {
	text := from[key]
	if text == nil {
		return ""
	}
	delete(from, key)
	return text.String()
}

func (r *report) endTest(e event) {
	output := drain(r.pending, testName{e.Package, e.Test})
	switch e.Action {
	case "pass":
		r.passed++
		r.counts[e.Package]++
	case "skip":
		r.skipped = append(r.skipped, e.Package+" "+e.Test)
	case "fail":
		r.failed++
		r.broken[e.Package] = true
		r.failing = append(r.failing, e.Package+" "+e.Test)
		r.printf("\n--- FAIL %s %s (%.2fs)\n%s\n", e.Package, e.Test, e.Elapsed, output)
	}
}

func (r *report) endPackage(e event) {
	output := drain(r.pending, testName{e.Package, ""})
	switch e.Action {
	case "pass":
		r.printf("ok    %-60s %4d tests %8.2fs\n", e.Package, r.counts[e.Package], e.Elapsed)
	case "fail":
		r.failPackage(e, output)
	}
	for name := range r.pending {
		if name.pkg == e.Package {
			delete(r.pending, name)
		}
	}
}

// failPackage tells of a package that failed, and counts it if none of its tests
// has been counted: then the failure is the package's own.
func (r *report) failPackage(e event, output string) {
	r.printf("FAIL  %-60s %4d tests %8.2fs\n", e.Package, r.counts[e.Package], e.Elapsed)
	if e.FailedBuild != "" {
		r.printf("%s", drain(r.builds, e.FailedBuild))
	}
	// A test that was running when the binary ended has no end of its own.
	var running []string
	for name, text := range r.pending {
		if name.pkg == e.Package && name.test != "" {
			running = append(running, name.test)
			r.printf("--- was running: %s\n%s", name.test, text)
		}
	}
	slices.Sort(running)
	if r.broken[e.Package] && len(running) == 0 {
		return
	}
	r.printf("%s", output)
	r.failed++
	what := e.Package
	if len(running) > 0 {
		what += " (ended while running " + strings.Join(running, ", ") + ")"
	}
	r.failing = append(r.failing, what)
}

// finish prints the end of the report and returns its last line.
func (r *report) finish() string {
	// Compiler output that no package's failure pointed at, of `go vet` for one.
	for path := range r.builds {
		r.printf("%s", drain(r.builds, path))
	}
	r.printf("\n")
	for _, name := range r.skipped {
		r.printf("skipped: %s\n", name)
	}
	for _, name := range r.failing {
		r.printf("failed: %s\n", name)
	}
	if r.passed+r.failed == 0 {
		r.printf("no tests ran\n")
	}
	r.printf("%s\n", time.Since(r.started).Round(time.Second))
	line := fmt.Sprintf("%d passed, %d failed", r.passed, r.failed)
	if n := len(r.skipped); n > 0 {
		line += fmt.Sprintf(", %d skipped", n)
	}
	r.printf("%s\n", line)
	return line
}

// printf writes to the output. A reader of a terminal that went away gets no
// report, and needs none.
func (r *report) printf(format string, args ...any) {
	_, _ = fmt.Fprintf(r.out, format, args...)
}
