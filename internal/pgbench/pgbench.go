// Package pgbench makes Postgres's own benchmark tables and runs its load, for
// `millrace dev`.
//
// It promises tables that can be captured: pgbench_history, which has no key in
// the original, gets one. Tables and load are pgbench's own where that program
// is installed; where it is not, the same tables and the same transaction come
// from here.
package pgbench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/millrace-db/millrace/internal/child"
)

// Tables are the names of the tables, in the order in which the transaction
// touches them first.
func Tables() []string {
	return []string{"public.pgbench_accounts", "public.pgbench_tellers", "public.pgbench_branches", "public.pgbench_history"}
}

// Bench is a database to make the tables in and to load.
type Bench struct {
	// URL reaches the database.
	URL string
	// Program is the path of pgbench; empty where it is not installed.
	Program string
}

const (
	existing = `
SELECT count(*) FROM pg_class
WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')
  AND relname IN ('pgbench_accounts', 'pgbench_tellers', 'pgbench_branches', 'pgbench_history')`
	historyKey = `
SELECT EXISTS (SELECT FROM pg_index WHERE indrelid = 'public.pgbench_history'::regclass AND indisprimary)`
	addHistoryKey = `ALTER TABLE public.pgbench_history ADD COLUMN id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY`
)

// Exist reports whether the tables are there.
func Exist(ctx context.Context, conn *pgx.Conn) (bool, error) {
	var n int
	if err := conn.QueryRow(ctx, existing).Scan(&n); err != nil {
		return false, fmt.Errorf("look for pgbench's tables: %w", err)
	}
	if n != 0 && n != len(Tables()) {
		return false, fmt.Errorf("the database has %d of pgbench's %d tables; drop them, or make all of them with pgbench -i", n, len(Tables()))
	}
	return n != 0, nil
}

// Make makes the tables if they are not there, scale times 100,000 accounts, and
// gives pgbench_history its key if it has none. made tells what was done, for
// people; empty if nothing.
func (b *Bench) Make(ctx context.Context, conn *pgx.Conn, scale int) (made string, err error) {
	there, err := Exist(ctx, conn)
	if err != nil {
		return "", err
	}
	if !there {
		made = fmt.Sprintf("pgbench's tables made at scale %d", scale)
		if b.Program != "" {
			err = b.initialise(ctx, scale)
		} else {
			made += ", with SQL, because the program pgbench is not installed"
			err = makeTables(ctx, conn, scale)
		}
		if err != nil {
			return "", fmt.Errorf("make pgbench's tables: %w", err)
		}
	}
	var hasKey bool
	if err := conn.QueryRow(ctx, historyKey).Scan(&hasKey); err != nil {
		return "", fmt.Errorf("look at the key of pgbench_history: %w", err)
	}
	if hasKey {
		return made, nil
	}
	if _, err := conn.Exec(ctx, addHistoryKey); err != nil {
		return "", fmt.Errorf("add a key to pgbench_history: %w", err)
	}
	if made == "" {
		made = "pgbench_history given an identity key"
	}
	return made, nil
}

func (b *Bench) initialise(ctx context.Context, scale int) error {
	cmd, err := b.command(ctx, "--initialize", "--quiet", "--scale", strconv.Itoa(scale))
	if err != nil {
		return err
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := child.Run(cmd, syscall.SIGKILL); err != nil {
		return fmt.Errorf("run %s: %w: %s", b.Program, err, lastLine(out.String()))
	}
	return nil
}

// command makes a run of pgbench. The password goes into its environment: a
// command line is open to all users of the machine.
func (b *Bench) command(ctx context.Context, args ...string) (*exec.Cmd, error) {
	config, err := pgconn.ParseConfig(b.URL)
	if err != nil {
		return nil, fmt.Errorf("read database URL: %w", err)
	}
	environ := append(os.Environ(), "PGPASSWORD="+config.Password, "PGAPPNAME=pgbench")
	if u, err := url.Parse(b.URL); err == nil && strings.HasPrefix(u.Scheme, "postgres") {
		if u.User != nil {
			u.User = url.User(u.User.Username())
		}
		args = append(args, u.String())
	} else {
		environ = append(environ, "PGHOST="+config.Host, fmt.Sprintf("PGPORT=%d", config.Port), "PGUSER="+config.User)
		args = append(args, config.Database)
	}
	cmd := exec.CommandContext(ctx, b.Program, args...)
	cmd.Env = environ
	return cmd, nil
}

// makeTables makes what pgbench -i makes.
func makeTables(ctx context.Context, conn *pgx.Conn, scale int) error {
	_, err := conn.Exec(ctx, fmt.Sprintf(`
CREATE TABLE public.pgbench_branches (bid int PRIMARY KEY, bbalance int, filler char(88));
CREATE TABLE public.pgbench_tellers  (tid int PRIMARY KEY, bid int, tbalance int, filler char(84));
CREATE TABLE public.pgbench_accounts (aid int PRIMARY KEY, bid int, abalance int, filler char(84));
CREATE TABLE public.pgbench_history  (tid int, bid int, aid int, delta int, mtime timestamp, filler char(22));
INSERT INTO public.pgbench_branches (bid, bbalance) SELECT bid, 0 FROM generate_series(1, %[1]d) AS bid;
INSERT INTO public.pgbench_tellers (tid, bid, tbalance) SELECT tid, (tid - 1) / 10 + 1, 0 FROM generate_series(1, %[1]d * 10) AS tid;
INSERT INTO public.pgbench_accounts (aid, bid, abalance, filler) SELECT aid, (aid - 1) / 100000 + 1, 0, '' FROM generate_series(1, %[1]d * 100000) AS aid;
ANALYZE public.pgbench_branches, public.pgbench_tellers, public.pgbench_accounts, public.pgbench_history`, scale), pgx.QueryExecModeSimpleProtocol)
	return err
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}

var errNoAccounts = errors.New("pgbench_branches is empty: make the tables anew")
