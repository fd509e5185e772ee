package migrations

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/internal/wait"
)

// Bouncer is a PgBouncer that clients reach one of the two sides through. When writers go
// over it is paused, sent to the other side, and resumed.
type Bouncer struct {
	// Admin is the URL of its console, with database pgbouncer; the role is one of its
	// admin_users.
	Admin string
	// Database is the name that clients ask it for.
	Database string
	// Source and Target are what stands behind the database's name in its file, for
	// each side.
	Source, Target string
	// File is the file that holds the database's line, which is changed there; Command
	// what is run instead. One of the two.
	File    string
	Command []string
}

func (b *Bouncer) line(where side) string {
	if where == source {
		return b.Source
	}
	return b.Target
}

// bouncer is one whose console is open.
type bouncer struct {
	Bouncer
	name string // of the migration that people know
	conn *pgconn.PgConn
}

func (b *bouncer) fail(what string, err error) error {
	return fmt.Errorf("PgBouncer, database %s: %s: %w", b.Database, what, err)
}

func (b *bouncer) blocked(text, mend string) error {
	return fmt.Errorf("%w: PgBouncer, database %s: %s; mend: %s", ErrBlocked, b.Database, text, mend)
}

// openBouncer opens the console of a PgBouncer.
func (m *Migration) openBouncer(ctx context.Context, b Bouncer) (*bouncer, error) {
	o := &bouncer{Bouncer: b, name: m.known()}
	cfg, err := pgconn.ParseConfig(b.Admin)
	if err != nil {
		return nil, o.fail("read its URL", capture.ConnectError(err))
	}
	cfg.ConnectTimeout = 10 * time.Second
	if o.conn, err = pgconn.ConnectConfig(ctx, cfg); err != nil {
		return nil, o.fail("connect to its console", capture.ConnectError(err))
	}
	return o, nil
}

func (b *bouncer) close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = b.conn.Close(ctx) // nothing is lost with it
}

// say runs a command of the console.
func (b *bouncer) say(ctx context.Context, text string) ([]*pgconn.Result, error) {
	got, err := b.conn.Exec(ctx, text).ReadAll()
	if err != nil {
		return nil, b.fail(text, err)
	}
	return got, nil
}

// shown is what the console says of the database.
type shown struct {
	words  map[string]string // host, port and dbname, where they are given
	paused bool
}

func (b *bouncer) show(ctx context.Context) (*shown, error) {
	got, err := b.say(ctx, "SHOW DATABASES")
	if err != nil {
		return nil, err
	}
	for _, result := range got {
		for _, row := range result.Rows {
			s := &shown{words: make(map[string]string)}
			name := ""
			for i, f := range result.FieldDescriptions {
				value := string(row[i])
				switch f.Name {
				case "name":
					name = value
				case "host", "port":
					s.words[f.Name] = value
				case "database":
					s.words["dbname"] = value
				case "paused":
					s.paused = value == "1"
				}
			}
			if name == b.Database {
				return s, nil
			}
		}
	}
	return nil, b.blocked("it does not know the database", "give it a line of its own in [databases]; one for * is not enough")
}

var word = regexp.MustCompile(`(\w+)\s*=\s*('(?:[^']|'')*'|\S+)`)

// goesTo reports whether it sends clients to a side: whatever the side's line says of
// host, port and database is as the console says.
func (b *bouncer) goesTo(s *shown, where side) bool {
	for _, x := range word.FindAllStringSubmatch(b.line(where), -1) {
		value := x[2]
		if strings.HasPrefix(value, "'") {
			value = strings.ReplaceAll(value[1:len(value)-1], "''", "'")
		}
		if got, ok := s.words[x[1]]; ok && got != value {
			return false
		}
	}
	return true
}

// ready refuses what would fail when clients wait.
func (b *bouncer) ready(ctx context.Context, from side) error {
	s, err := b.show(ctx)
	if err != nil {
		return err
	}
	switch {
	case s.paused:
		return b.blocked("somebody has paused it", "RESUME "+b.Database)
	case !b.goesTo(s, from):
		return b.blocked(fmt.Sprintf("it sends clients to %s:%s/%s, and writers are at the %s", s.words["host"], s.words["port"], s.words["dbname"], from), "correct its file, or pgbouncer in the migration file, and RELOAD")
	case b.goesTo(s, from.other()):
		return b.blocked("the lines for source and target lead to the same server", "correct pgbouncer in the migration file")
	}
	if b.File != "" {
		_, _, err = b.changed(from)
	}
	return err
}

// changed returns the file as it is and with the line of a side.
func (b *bouncer) changed(where side) (was, is string, err error) {
	text, err := os.ReadFile(b.File)
	if err != nil {
		return "", "", b.fail("read its file", err)
	}
	line := regexp.MustCompile(`(?m)^[ \t]*("?)` + regexp.QuoteMeta(b.Database) + `("?)[ \t]*=.*$`)
	if n := len(line.FindAllIndex(text, -1)); n != 1 {
		return "", "", b.blocked(fmt.Sprintf("%s has %d lines for it, want 1", b.File, n), "correct the file, or name the one that is included")
	}
	return string(text), line.ReplaceAllStringFunc(string(text), func(old string) string {
		name, _, _ := strings.Cut(old, "=")
		return strings.TrimRight(name, " \t") + " = " + b.line(where)
	}), nil
}

// write replaces the file as a whole, with the rights that it has.
func (b *bouncer) write(text string) (err error) {
	info, err := os.Stat(b.File)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(b.File), ".millrace-*")
	if err != nil {
		return err
	}
	defer func() {
		if closing := f.Close(); err == nil {
			err = closing
		}
		if err == nil {
			err = os.Rename(f.Name(), b.File)
		}
		if err != nil {
			_ = os.Remove(f.Name()) // the failure is told
		}
	}()
	if err := f.Chmod(info.Mode().Perm()); err != nil {
		return err
	}
	if owner, ok := info.Sys().(*syscall.Stat_t); ok {
		if err := f.Chown(int(owner.Uid), int(owner.Gid)); err != nil {
			return err
		}
	}
	if _, err := f.WriteString(text); err != nil {
		return err
	}
	return f.Sync()
}

// send has it send clients to a side from now on.
func (b *bouncer) send(ctx context.Context, where side) error {
	s, err := b.show(ctx)
	if err != nil {
		return err
	}
	if b.File != "" {
		was, is, err := b.changed(where)
		if err != nil {
			return err
		}
		if was == is && b.goesTo(s, where) {
			return nil
		}
		if err := b.write(is); err != nil {
			return b.fail("write its file", err)
		}
	} else {
		cmd := exec.CommandContext(ctx, b.Command[0], b.Command[1:]...) //nolint:gosec // the operator's
		cmd.Env = append(os.Environ(), "MILLRACE_MIGRATION="+b.name, "MILLRACE_DATABASE="+b.Database, "MILLRACE_SIDE="+string(where), "MILLRACE_CONNECTION="+b.line(where))
		cmd.WaitDelay = time.Second
		if out, err := cmd.CombinedOutput(); err != nil {
			return b.fail(fmt.Sprintf("run %s: %.1000s", b.Command[0], strings.TrimSpace(string(out))), err)
		}
	}
	if _, err := b.say(ctx, "RELOAD"); err != nil {
		return err
	}
	for began := time.Now(); ; {
		if s, err = b.show(ctx); err != nil || b.goesTo(s, where) {
			return err
		}
		if time.Since(began) > 5*time.Second {
			return b.fail("RELOAD", fmt.Errorf("it still sends clients to %s:%s/%s", s.words["host"], s.words["port"], s.words["dbname"]))
		}
		if err := wait.For(ctx, 10*time.Millisecond); err != nil {
			return err
		}
	}
}

// resume lets clients go on.
func (b *bouncer) resume(ctx context.Context) error {
	s, err := b.show(ctx)
	if err != nil || !s.paused {
		return err
	}
	_, err = b.say(ctx, "RESUME "+quoteConsole(b.Database))
	return err
}

func quoteConsole(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }

// each runs fn with the console of every PgBouncer, at once.
func (m *Migration) each(ctx context.Context, fn func(context.Context, *bouncer) error) error {
	results := make(chan error, len(m.cfg.Bouncers))
	for _, b := range m.cfg.Bouncers {
		go func() {
			o, err := m.openBouncer(ctx, b)
			if err == nil {
				err = fn(ctx, o)
				o.close()
			}
			results <- err
		}()
	}
	var all []error
	for range m.cfg.Bouncers {
		all = append(all, <-results)
	}
	return errors.Join(all...)
}

// bouncersReady refuses to go over where a PgBouncer would be in the way.
func (m *Migration) bouncersReady(ctx context.Context, from side) error {
	return m.each(ctx, func(ctx context.Context, b *bouncer) error { return b.ready(ctx, from) })
}

// markBouncers notes at the target whether PgBouncers are held.
func (w *ways) markBouncers(ctx context.Context, held bool) error {
	if _, err := w.dst.Exec(ctx, "UPDATE millrace.migration SET bouncers = $2 WHERE name = $1", w.m.cfg.Name, held); err != nil {
		return fmt.Errorf("note that PgBouncers are held: %w", err)
	}
	return nil
}

// pauseBouncers holds clients: when it returns none is within a transaction.
func (w *ways) pauseBouncers(ctx context.Context) error {
	if len(w.m.cfg.Bouncers) == 0 {
		return nil
	}
	if err := w.markBouncers(ctx, true); err != nil {
		return err
	}
	return w.m.each(ctx, func(ctx context.Context, b *bouncer) error {
		_, err := b.say(ctx, "PAUSE "+quoteConsole(b.Database))
		return err
	})
}

func (w *ways) sendBouncers(ctx context.Context, where side) error {
	return w.m.each(ctx, func(ctx context.Context, b *bouncer) error { return b.send(ctx, where) })
}

// releaseLimit is how long PgBouncers are tried to be let go.
const releaseLimit = 30 * time.Second

// releaseBouncers lets clients go on, to the side that takes writes. A PgBouncer that
// cannot be sent there is resumed all the same: its clients can read, and are told why
// they cannot write.
func (w *ways) releaseBouncers(ctx context.Context, active side) error {
	if len(w.m.cfg.Bouncers) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseLimit)
	defer cancel()
	err := w.m.each(ctx, func(ctx context.Context, b *bouncer) error {
		return errors.Join(b.send(ctx, active), b.resume(ctx))
	})
	if err != nil {
		return fmt.Errorf("writers are at the %s, and not every PgBouncer is: %w; mend: what it says, then the same command again", active, err)
	}
	return w.markBouncers(ctx, false)
}

// bouncersLeft releases those that a process has held that was killed.
func (w *ways) bouncersLeft(ctx context.Context, active side) error {
	version, err := installed(ctx, w.dst)
	if err != nil || version < 4 {
		return err
	}
	var held bool
	if err := w.dst.QueryRow(ctx, "SELECT coalesce((SELECT bouncers FROM millrace.migration WHERE name = $1), false)", w.m.cfg.Name).Scan(&held); err != nil {
		return fmt.Errorf("look whether PgBouncers are held: %w", err)
	}
	if !held {
		return nil
	}
	if len(w.m.cfg.Bouncers) == 0 {
		return fmt.Errorf("%w: PgBouncers were held when a process ended, and the migration file names none; mend: put pgbouncer back", ErrOther)
	}
	w.m.log.Warn("PgBouncers were held when a process ended", "active", string(active))
	return w.releaseBouncers(ctx, active)
}
