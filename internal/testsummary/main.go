// Command testsummary reads `go test -json` on standard input and prints what a
// person wants to see: a line a package, the whole output of what failed, what
// was skipped, and as its last line the counts: "N passed, N failed".
//
// It exits with 1 if anything failed or nothing ran. Tests and subtests count
// alike; a package that failed outside a test (it does not compile, it panicked,
// it ran out of time) counts as one failure.
//
// With -summary FILE it writes the last line into that file too.
package main

import (
	"flag"
	"fmt"
	"io"
	"os"
)

func main() {
	path := flag.String("summary", os.Getenv("MILLRACE_TEST_SUMMARY"), "file that gets the counts too")
	flag.Parse()
	code, err := run(os.Stdin, os.Stdout, *path)
	if err != nil {
		fmt.Fprintln(os.Stderr, "testsummary:", err)
		os.Exit(2)
	}
	os.Exit(code)
}

func run(in io.Reader, out io.Writer, path string) (int, error) {
	report := newReport(out)
	if err := report.read(in); err != nil {
		return 0, err
	}
	line := report.finish()
	if path != "" {
		if err := os.WriteFile(path, []byte(line+"\n"), 0o600); err != nil {
			return 0, fmt.Errorf("write summary: %w", err)
		}
	}
	if report.failed > 0 || report.passed == 0 {
		return 1, nil
	}
	return 0, nil
}
