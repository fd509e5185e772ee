package serve_test

import (
	"context"
	"flag"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/millrace-db/millrace/edge/serve"
)

// Programs that scripts/setup fetches, under its names.
const (
	postgrestJS  = "postgrest-js-2.75.0"
	schemathesis = "schemathesis-4.32.5"
)

var examples = flag.Int("examples", 25, "how many requests schemathesis makes up for each operation")

// fetched is the directory of something that scripts/setup fetches.
func fetched(t *testing.T, name, file string) string {
	t.Helper()
	const env = "MILLRACE_TEST_CLIENTS"
	dir := os.Getenv(env)
	if dir == "" {
		cache := os.Getenv("XDG_CACHE_HOME")
		if cache == "" {
			home, err := os.UserHomeDir()
			if err != nil {
				t.Fatal(err)
			}
			cache = filepath.Join(home, ".cache")
		}
		dir = filepath.Join(cache, "millrace")
	}
	path := filepath.Join(dir, name)
	if _, err := os.Stat(filepath.Join(path, file)); err != nil {
		t.Fatalf("%s is not there (%s names another directory than %s): run `make setup`, which fetches it: %v", name, env, dir, err)
	}
	return path
}

// runClient runs a program that asks a server, and returns what it prints.
func runClient(t *testing.T, limit time.Duration, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	c := exec.CommandContext(ctx, name, args...)
	c.WaitDelay = 10 * time.Second
	c.Dir = t.TempDir() // what it leaves behind
	// Nothing is asked but the server, also where the machine has a proxy.
	c.Env = append(os.Environ(), "NO_PROXY=127.0.0.1", "no_proxy=127.0.0.1", "SCHEMATHESIS_HOOKS=", "PYTHONDONTWRITEBYTECODE=1")
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", filepath.Base(name), err, out)
	}
	return string(out)
}

// The stock client of PostgREST, which knows nothing of millrace.
func TestPostgrestJS(t *testing.T) {
	dir := fetched(t, postgrestJS, "node_modules/@supabase/postgrest-js/package.json")
	store, _ := newStore(t)
	s := newServer(t, store, func(c *serve.Config) { c.Listen = "127.0.0.1:0" })
	run(t, s)
	script, err := filepath.Abs("testdata/client.mjs")
	if err != nil {
		t.Fatal(err)
	}
	out := runClient(t, 2*time.Minute, "node", script, "http://"+s.Addr()+restURL, dir)
	checks, _, _ := strings.Cut(out, " checks")
	if n, err := strconv.Atoi(checks); err != nil || n < 35 {
		t.Errorf("the client did not say what it has checked: %s", out)
	}
}

// Schemathesis makes up requests from the OpenAPI document, good ones and bad ones, and
// holds the answers against it.
func TestSchemathesis(t *testing.T) {
	dir := fetched(t, schemathesis, "bin/schemathesis")
	store, _ := newStore(t)
	s := newServer(t, store, func(c *serve.Config) { c.Listen, c.Compactor = "127.0.0.1:0", &compactorOf{} })
	run(t, s)
	config, err := filepath.Abs("testdata/schemathesis.toml")
	if err != nil {
		t.Fatal(err)
	}
	seed := newSeed(t)
	out := runClient(t, 5*time.Minute, filepath.Join(dir, "bin", "schemathesis"), "--config-file", config, "run",
		"http://"+s.Addr()+"/v1/openapi.json", "--url", "http://"+s.Addr(), "--phases", "examples,coverage,fuzzing",
		"--checks", "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,response_schema_conformance,unsupported_method",
		"--max-examples", strconv.Itoa(*examples), "--seed", seed, "--exclude-path-regex", "/watch$", "--request-timeout", "30",
		"--generation-database", "none", "--suppress-health-check", "all", "--no-color")
	m := regexp.MustCompile(`(\d+) generated, (\d+) passed`).FindStringSubmatch(out)
	if m == nil || m[1] != m[2] || len(m[1]) < 3 {
		t.Errorf("want hundreds of requests that all pass:\n%s", out)
	}
}

var seedFlag = flag.Int("seed", 0, "seed of what is made up; 0 for one of this run's own")

// newSeed is a seed for a program that takes one.
func newSeed(t *testing.T) string {
	seed := *seedFlag
	if seed == 0 {
		seed = 1 + rand.IntN(1<<30)
	}
	t.Logf("-seed %d", seed)
	return strconv.Itoa(seed)
}
