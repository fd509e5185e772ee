package pgserver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// MinVersion is the oldest major version of Postgres that millrace works with.
const MinVersion = 14

// ErrNotFound says that no fitting Postgres server is on this machine. Install
// one (`make setup`), or let Find fetch an archive with AllowFetch.
var ErrNotFound = errors.New("no Postgres server found")

// Binaries is an installed Postgres server.
type Binaries struct {
	// Dir is the directory that holds the programs postgres and initdb.
	Dir string
	// Version is the major version, 15 for instance.
	Version int
}

// IsZero reports whether b names no server.
func (b Binaries) IsZero() bool { return b.Dir == "" }

// Program returns the path of the named program, looked for beside the server
// first and in PATH after that: archives hold the server alone, while pgbench
// and psql may be installed elsewhere.
func (b Binaries) Program(name string) (string, error) {
	path := filepath.Join(b.Dir, name)
	if executable(path) {
		return path, nil
	}
	found, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("find %s in %s and in PATH: install the Postgres client programs: %w", name, b.Dir, err)
	}
	return found, nil
}

func (b Binaries) postgres() string { return filepath.Join(b.Dir, "postgres") }
func (b Binaries) initdb() string   { return filepath.Join(b.Dir, "initdb") }

// FindOption changes where Find looks.
type FindOption func(*finder)

type finder struct {
	fetch    bool
	cacheDir string
}

// AllowFetch lets Find fetch a server archive (about 10 MB) into cacheDir when
// the machine has no fitting server. An empty cacheDir means CacheDir.
func AllowFetch(cacheDir string) FindOption {
	return func(f *finder) {
		f.fetch = true
		f.cacheDir = cacheDir
	}
}

// CacheDir is where fetched server archives are kept: the user's cache
// directory, and for root a directory that the unprivileged user who runs the
// server can read.
func CacheDir() (string, error) {
	if os.Geteuid() == 0 {
		return "/var/cache/millrace/postgres", nil
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the cache directory: %w", err)
	}
	return filepath.Join(dir, "millrace", "postgres"), nil
}

// Find looks for a Postgres server of the given major version, or for the
// newest installed one if version is 0: where distributions install servers and
// where pg_config and PATH point. If there is none it looks into the cache of
// fetched archives, and, where AllowFetch permits it, fetches one. It returns
// ErrNotFound if nothing is left.
func Find(ctx context.Context, version int, options ...FindOption) (Binaries, error) {
	if version != 0 && version < MinVersion {
		return Binaries{}, fmt.Errorf("find Postgres %d: millrace needs version %d or later", version, MinVersion)
	}
	var f finder
	for _, option := range options {
		option(&f)
	}
	if f.cacheDir == "" {
		dir, err := CacheDir()
		if err != nil {
			return Binaries{}, err
		}
		f.cacheDir = dir
	}
	// What is installed wins over archives of any version: it has its security
	// updates, and its client programs beside it.
	for _, dirs := range [][]string{installed(ctx), f.cached()} {
		if b := newest(ctx, dirs, version); !b.IsZero() {
			return b, nil
		}
	}
	if err := ctx.Err(); err != nil {
		return Binaries{}, fmt.Errorf("find Postgres server: %w", err)
	}
	if f.fetch {
		return fetch(ctx, version, f.cacheDir)
	}
	wanted := fmt.Sprintf("version %d", version)
	if version == 0 {
		wanted = fmt.Sprintf("version %d or later", MinVersion)
	}
	return Binaries{}, fmt.Errorf("%w: wanted %s; install it with `make setup` or your package manager (Debian and Ubuntu: apt-get install postgresql)", ErrNotFound, wanted)
}

// newest returns the newest server in dirs of the wanted major version (0: of
// any that millrace works with), or none.
func newest(ctx context.Context, dirs []string, version int) Binaries {
	var best Binaries
	for _, dir := range dirs {
		if !executable(filepath.Join(dir, "postgres")) || !executable(filepath.Join(dir, "initdb")) {
			continue
		}
		major, err := serverVersion(ctx, dir)
		if err != nil {
			continue // a directory without a working server is not a finding
		}
		if major < MinVersion || (version != 0 && major != version) {
			continue
		}
		if major > best.Version {
			best = Binaries{Dir: dir, Version: major}
		}
	}
	return best
}

// installed lists the directories in which a server may be installed.
func installed(ctx context.Context) []string {
	var dirs []string
	for _, pattern := range []string{
		"/usr/lib/postgresql/*/bin", // Debian, Ubuntu
		"/usr/pgsql-*/bin",          // the PostgreSQL project's rpm packages
		"/usr/libexec/postgresql*",  // Alpine
		"/opt/homebrew/opt/postgresql@*/bin",
		"/usr/local/opt/postgresql@*/bin",
	} {
		matches, err := filepath.Glob(pattern)
		if err != nil {
			continue // only a malformed pattern fails, and these are constants
		}
		dirs = append(dirs, matches...)
	}
	if pgConfig, err := exec.LookPath("pg_config"); err == nil {
		if out, err := exec.CommandContext(ctx, pgConfig, "--bindir").Output(); err == nil {
			dirs = append(dirs, strings.TrimSpace(string(out)))
		}
	}
	for _, program := range []string{"postgres", "initdb", "pg_ctl"} {
		if path, err := exec.LookPath(program); err == nil {
			if real, err := filepath.EvalSymlinks(path); err == nil {
				dirs = append(dirs, filepath.Dir(real))
			}
		}
	}
	slices.Sort(dirs)
	return slices.Compact(dirs)
}

// cached lists the directories of archives that were fetched before.
func (f finder) cached() []string {
	dirs, err := filepath.Glob(filepath.Join(f.cacheDir, "[0-9]*", "bin"))
	if err != nil {
		return nil // only a malformed pattern fails: a cache directory with a bracket in its name
	}
	return dirs
}

var versionPattern = regexp.MustCompile(`\(PostgreSQL\) (\d+)`)

// serverVersion asks the server program in dir for its major version.
func serverVersion(ctx context.Context, dir string) (int, error) {
	out, err := exec.CommandContext(ctx, filepath.Join(dir, "postgres"), "--version").Output()
	if err != nil {
		return 0, fmt.Errorf("ask %s/postgres for its version: %w", dir, err)
	}
	match := versionPattern.FindSubmatch(out)
	if match == nil {
		return 0, fmt.Errorf("read version of %s/postgres: unexpected answer %q", dir, out)
	}
	return strconv.Atoi(string(match[1]))
}

func executable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}
