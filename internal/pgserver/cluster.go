package pgserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/millrace-db/millrace/internal/child"
)

const (
	superuser    = "postgres"
	settingsFile = "millrace.conf" // included at the end of postgresql.conf
	logFile      = "server.log"
	logLimit     = 16 << 20 // bytes; a longer log is set aside at the next start

	// socketPathLimit is the kernel's limit on the path of a unix socket (108
	// bytes on Linux, 104 elsewhere), less the socket's own name and lock file.
	socketPathLimit = 104 - len("/.s.PGSQL.65535.lock")
)

// dataVersion is the major version that made the data in dir, or 0 if dir is
// missing or empty.
func dataVersion(dir string) (int, error) {
	text, err := os.ReadFile(filepath.Join(dir, "PG_VERSION"))
	if err == nil {
		version, err := strconv.Atoi(strings.TrimSpace(string(text)))
		if err != nil {
			return 0, fmt.Errorf("read %s/PG_VERSION: %w", dir, err)
		}
		return version, nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return 0, fmt.Errorf("read Postgres data directory: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return 0, fmt.Errorf("read Postgres data directory: %w", err)
	}
	if len(entries) > 0 {
		return 0, fmt.Errorf("start Postgres on %s: the directory is not empty and holds no Postgres data (no PG_VERSION); name another directory", dir)
	}
	return 0, nil
}

// Create makes a new cluster in dir, as Start does where there is none, and starts
// nothing. Copies of it, owners included, may be started elsewhere; they have one
// system identifier.
func Create(ctx context.Context, dir string, binaries Binaries) error {
	who, err := ownerOf(dir)
	if err != nil {
		return err
	}
	return initialize(ctx, dir, binaries, who, false)
}

// initialize makes a new cluster in dir. It works in a directory beside it and
// renames that at the end: a start that was cut off leaves no half-made cluster
// that a later start would take for a whole one.
func initialize(ctx context.Context, dir string, binaries Binaries, who owner, sync bool) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return fmt.Errorf("make directory for Postgres data: %w", err)
	}
	if at := who.blockedBy(dir); at != "" {
		return fmt.Errorf("start Postgres on %s: it runs as user %s, who may not pass through %s; name another directory, or chmod o+x %s", dir, who.name, at, at)
	}
	fresh := dir + ".incomplete"
	var failures error
	for _, locale := range []string{"C.UTF-8", "C"} { // not every libc knows C.UTF-8
		if err := os.RemoveAll(fresh); err != nil {
			return fmt.Errorf("remove what an earlier start left: %w", err)
		}
		if err := os.Mkdir(fresh, 0o700); err != nil {
			return fmt.Errorf("make Postgres data directory: %w", err)
		}
		if err := who.give(fresh); err != nil {
			return err
		}
		err := initdb(ctx, fresh, binaries, who, locale, sync)
		if err == nil {
			failures = nil
			break
		}
		failures = errors.Join(failures, err)
		if ctx.Err() != nil {
			break
		}
	}
	if failures != nil {
		return errors.Join(failures, os.RemoveAll(fresh))
	}
	conf, err := os.OpenFile(filepath.Join(fresh, "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open postgresql.conf: %w", err)
	}
	_, err = fmt.Fprintf(conf, "\ninclude_if_exists = '%s'\n", settingsFile)
	if err := errors.Join(err, conf.Close()); err != nil {
		return fmt.Errorf("write postgresql.conf: %w", err)
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("put new Postgres data into place: %w", err)
	}
	if err := os.Rename(fresh, dir); err != nil {
		return fmt.Errorf("put new Postgres data into place: %w", err)
	}
	return nil
}

func initdb(ctx context.Context, dir string, binaries Binaries, who owner, locale string, sync bool) error {
	args := []string{
		"--pgdata", dir, "--username", superuser, "--encoding", "UTF8", "--locale", locale,
		"--auth-local", "trust", "--auth-host", "trust",
	}
	if !sync {
		args = append(args, "--no-sync")
	}
	cmd := exec.CommandContext(ctx, binaries.initdb(), args...)
	cmd.Dir = dir
	cmd.Env = environment()
	cmd.SysProcAttr = who.attributes()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := child.Run(cmd, syscall.SIGKILL); err != nil {
		return fmt.Errorf("make Postgres cluster with %s (locale %s): %w: %s", binaries.initdb(), locale, err, bytes.TrimSpace(out.Bytes()))
	}
	return nil
}

// environment is this process's, without what would steer Postgres programs.
func environment() []string {
	env := slices.DeleteFunc(os.Environ(), func(v string) bool {
		return strings.HasPrefix(v, "PG") || strings.HasPrefix(v, "LC_") || strings.HasPrefix(v, "LANG")
	})
	return append(env, "LC_ALL=C")
}

// writeSettings writes the settings file that postgresql.conf includes.
func writeSettings(dir string, who owner, settings map[string]string) error {
	var text strings.Builder
	text.WriteString("# Written by millrace at each start. ALTER SYSTEM overrides it.\n")
	escape := strings.NewReplacer(`'`, `''`, `\`, `\\`, "\n", `\n`)
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		fmt.Fprintf(&text, "%s = '%s'\n", name, escape.Replace(settings[name]))
	}
	path := filepath.Join(dir, settingsFile)
	if err := os.WriteFile(path, []byte(text.String()), 0o600); err != nil {
		return fmt.Errorf("write Postgres settings: %w", err)
	}
	return who.give(path)
}

// socketDirectory returns the directory for the server's unix socket: the data
// directory, or a short temporary one (second result true) if its path is too
// long for a socket.
func socketDirectory(dir string, who owner) (string, bool, error) {
	if len(dir) <= socketPathLimit && !strings.ContainsAny(dir, ",'\"") {
		return dir, false, nil
	}
	short, err := os.MkdirTemp("", "millrace-pg-")
	if err != nil {
		return "", false, fmt.Errorf("make directory for Postgres's socket: %w", err)
	}
	if err := who.give(short); err != nil {
		return "", false, errors.Join(err, os.Remove(short))
	}
	return short, true, nil
}
