package main

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/millrace-db/millrace/internal/pgtest"
	"github.com/millrace-db/millrace/internal/testdir"
)

var proofLine = regexp.MustCompile(`(?m)^proof at index (\d+): (\d+) rows at the source, (\d+) rows at the edge, 0 differences; commit to edge: p50 [\d.]+ ms, p99 [\d.]+ ms, max [\d.]+ ms of \d+ probes$`)

// proofs returns the lines of proof in a run's output: index and rows of each.
func proofs(t *testing.T, out string, want int) (index, rows []int) {
	t.Helper()
	for _, m := range proofLine.FindAllStringSubmatch(out, -1) {
		i, err := strconv.Atoi(m[1])
		if err != nil {
			t.Fatal(err)
		}
		n, err := strconv.Atoi(m[2])
		if err != nil {
			t.Fatal(err)
		}
		if m[2] != m[3] {
			t.Errorf("rows differ in number: %s", m[0])
		}
		index, rows = append(index, i), append(rows, n)
	}
	if len(index) != want {
		t.Fatalf("got %d lines of proof, want %d:\n%s", len(index), want, out)
	}
	return index, rows
}

// TestDev runs everything on this machine, ends by itself, goes on at the next
// start where it was, and ends at Ctrl-C.
func TestDev(t *testing.T) {
	dir := testdir.For(t)
	data := filepath.Join(dir, "dev")
	first := spawn(t, dir, nil, "dev", "--data-dir", data, "--workload", "pgbench", "--for", "5s")
	if code := first.wait(); code != 0 {
		t.Fatalf("exit code %d", code)
	}
	index, rows := proofs(t, first.out(), 2)
	if rows[0] < 100_011 || rows[1] <= rows[0] || index[1] <= index[0] {
		t.Errorf("got %d, then %d rows; want pgbench's, growing", rows[0], rows[1])
	}
	for _, word := range []string{"curl 'http://127.0.0.1:", " get -c ", " status -c ", "index ", "changes/s", "lag "} {
		if !strings.Contains(first.out(), word) {
			t.Errorf("dev does not say %q:\n%s", word, first.out())
		}
	}

	second := spawn(t, dir, nil, "dev", "--data-dir", data)
	until(t, "the second start has proved its rows", func() error {
		if !strings.Contains(second.out(), "try, in another terminal:") {
			return fmt.Errorf("it says %s", second.out())
		}
		return nil
	})
	refusal(t, dir, nil, exitFailure, []string{data, "--data-dir"}, "dev", "--data-dir", data)
	file := filepath.Join(data, "millrace.yaml")
	if got := program(t, dir, "get", "-c", file, "public.pgbench_branches", "1"); !strings.Contains(got, `"bid":1`) {
		t.Errorf("get: %s", got)
	}
	if got := program(t, dir, "status", "-c", file); !strings.Contains(got, "transfer (publishing)") {
		t.Errorf("status: %s", got)
	}
	if got := program(t, dir, "check", "-c", file); !strings.Contains(got, "no problems") {
		t.Errorf("check: %s", got)
	}
	second.stop(syscall.SIGINT)
	later, same := proofs(t, second.out(), 2)
	if later[0] < index[1] || same[0] != rows[1] || same[1] != rows[1] {
		t.Errorf("the second start is at index %d with %d rows, want to go on after %d with %d", later[0], same[0], index[1], rows[1])
	}
	if strings.Contains(second.out(), "made at scale") {
		t.Errorf("the second start made the tables anew:\n%s", second.out())
	}
}

// TestDevOnAGivenSource captures what is there, and leaves out what cannot be.
func TestDevOnAGivenSource(t *testing.T) {
	db := pgtest.New(t)
	db.Exec(`CREATE TABLE items (id int PRIMARY KEY, note text); INSERT INTO items SELECT i, 'n' FROM generate_series(1, 10) i;
		CREATE TABLE loose (id int); CREATE SCHEMA "Odd Name"; CREATE TABLE "Odd Name"."Items" ("Key" text PRIMARY KEY); INSERT INTO "Odd Name"."Items" VALUES ('a,b'), ('%')`)
	dir := testdir.For(t)
	data := filepath.Join(dir, "dev")
	p := spawn(t, dir, nil, "dev", "--data-dir", data, "--source", db.URL, "--for", "1s")
	if code := p.wait(); code != 0 {
		t.Fatalf("exit code %d", code)
	}
	if _, rows := proofs(t, p.out(), 2); rows[0] != 12 {
		t.Errorf("got %d rows, want 12", rows[0])
	}
	if !strings.Contains(p.out(), "left out, because they have no primary key that can be used: public.loose") {
		t.Errorf("dev does not say what it leaves out:\n%s", p.out())
	}
	// The slot at the source is the test's to remove.
	program(t, dir, "uninstall", "--yes", "-c", filepath.Join(data, "millrace.yaml"))
}
