package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace/internal/config"
	"github.com/millrace-db/millrace/internal/loopback"
	"github.com/millrace-db/millrace/internal/pgbench"
)

// devDatabase is the database in the private Postgres.
const devDatabase = "bank"

func makeDatabase(ctx context.Context, url string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return fmt.Errorf("reach the private Postgres: %w", err)
	}
	defer closeConn(conn)
	var there bool
	if err := conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", devDatabase).Scan(&there); err != nil || there {
		return err
	}
	if _, err := conn.Exec(ctx, "CREATE DATABASE "+devDatabase); err != nil {
		return fmt.Errorf("make database %s: %w", devDatabase, err)
	}
	return nil
}

// lockFile makes a file this process's until the returned function is called.
// The kernel lets go of it with the process.
func lockFile(path string) (unlock func() error, err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644) //nolint:gosec // nothing is in it
	if err != nil {
		return nil, operator("%w; name another one with --data-dir", err)
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) //nolint:gosec // a descriptor fits
	if errors.Is(err, syscall.EWOULDBLOCK) {
		err = errors.New("another millrace dev uses it; end that one, or name another one with --data-dir")
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f.Close, nil
}

// configure writes the configuration that this run and other commands use.
func (d *dev) configure(ctx context.Context, source string, brokers []string) error {
	file := filepath.Join(d.dir, "millrace.yaml")
	draft := &config.Config{
		Streams: []config.Stream{{
			Name:   d.options.stream,
			Source: config.Source{URL: config.Secret(source), Capture: d.options.capture, SpoolDir: filepath.Join(d.dir, "spool")},
			Kafka:  config.Kafka{Brokers: brokers, Topic: "millrace." + d.options.stream, Replicas: 3},
		}},
	}
	earlier := d.earlier(file)
	if earlier != nil && earlier.Source.Capture != d.options.capture {
		return operator("the stream of %s is captured by %s; say --capture %[2]s, or name another --data-dir", d.options.dataDir, earlier.Source.Capture)
	}
	s := &draft.Streams[0]
	err := withSource(ctx, s, func(conn *pgx.Conn) (err error) {
		s.Source.Tables, err = d.tables(ctx, conn, earlier)
		return err
	})
	if err != nil {
		return err
	}
	if draft.Edge.HTTP.Listen, err = d.address("127.0.0.1:7480"); err != nil {
		return err
	}
	admin, err := freeAddress("127.0.0.1:7470")
	if err != nil {
		return err
	}
	draft.Transfer.Admin = admin
	draft.Edge.ID, draft.Edge.DataDir = "dev", filepath.Join(d.dir, "edge")
	text, err := draft.YAML()
	if err != nil {
		return err
	}
	// Reading it back completes and checks it. This process's environment is
	// for other configurations.
	if d.config, err = config.Parse(file, text, nil); err != nil {
		return err
	}
	d.stream = d.config.Stream(d.options.stream)
	// It may hold a password.
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	return nil
}

// earlier reads the configuration of the run before; nil if there was none.
func (d *dev) earlier(file string) *config.Stream {
	c, err := config.Load(file, nil)
	if err != nil {
		return nil
	}
	return c.Stream(d.options.stream)
}

// tables chooses what to capture: what is named, what the run before captured,
// or every table that can be captured; and makes pgbench's where there is none
// or the load needs them.
func (d *dev) tables(ctx context.Context, conn *pgx.Conn, earlier *config.Stream) ([]string, error) {
	if len(d.options.tables) > 0 {
		return d.options.tables, d.readyBench(ctx, conn, d.options.workload == workloadPgbench)
	}
	if earlier != nil && len(earlier.Source.Tables) > 0 {
		benched := slices.Contains(earlier.Source.Tables, pgbench.Tables()[0])
		if d.options.workload == workloadPgbench && !benched {
			return nil, operator("the stream of %s does not have pgbench's tables; name another --data-dir for --workload pgbench", d.options.dataDir)
		}
		return earlier.Source.Tables, d.readyBench(ctx, conn, d.options.workload == workloadPgbench)
	}
	found, keyless, err := userTables(ctx, conn)
	if err != nil {
		return nil, err
	}
	need := d.options.workload == workloadPgbench || len(found)+len(keyless) == 0
	if err := d.readyBench(ctx, conn, need); err != nil {
		return nil, err
	}
	if found, keyless, err = userTables(ctx, conn); err != nil {
		return nil, err
	}
	if len(keyless) > 0 {
		d.screen.say("left out, because they have no primary key that can be used: %s", strings.Join(keyless, ", "))
	}
	if len(found) == 0 {
		return nil, operator("the database has no table with a primary key; add one (ALTER TABLE … ADD PRIMARY KEY)")
	}
	// The order is that in which the proof locks the tables: the way pgbench
	// goes through its own.
	slices.SortStableFunc(found, func(a, b string) int { return benchPlace(a) - benchPlace(b) })
	d.screen.say("tables: %s", strings.Join(found, ", "))
	return found, nil
}

func benchPlace(table string) int {
	if i := slices.Index(pgbench.Tables(), table); i >= 0 {
		return i
	}
	return len(pgbench.Tables())
}

// readyBench makes pgbench's tables if they are needed and not there.
func (d *dev) readyBench(ctx context.Context, conn *pgx.Conn, need bool) error {
	if !need {
		return nil
	}
	made, err := d.bench.Make(ctx, conn, d.options.scale)
	if err != nil {
		return err
	}
	if made != "" {
		d.screen.say("%s", made)
	}
	if d.options.workload == workloadPgbench && d.bench.Program == "" {
		d.screen.say("pgbench is not installed; millrace runs the same load itself")
	}
	return nil
}

// Partitions are captured with their root, and a key that is deferrable cannot
// be used.
const userTablesQuery = `
SELECT n.nspname || '.' || c.relname,
       EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary AND i.indimmediate AND i.indisvalid)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence = 'p'
  AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'millrace') AND n.nspname NOT LIKE 'pg\_%'
  AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.classid = 'pg_class'::regclass AND d.deptype = 'e')
ORDER BY 1`

func userTables(ctx context.Context, conn *pgx.Conn) (usable, keyless []string, err error) {
	rows, err := conn.Query(ctx, userTablesQuery)
	if err != nil {
		return nil, nil, fmt.Errorf("list tables of the source: %w", err)
	}
	var name string
	var keyed bool
	_, err = pgx.ForEachRow(rows, []any{&name, &keyed}, func() error {
		if keyed {
			usable = append(usable, name)
		} else {
			keyless = append(keyless, name)
		}
		return nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("list tables of the source: %w", err)
	}
	return usable, keyless, nil
}

// address is where the edge listens: what was asked for, or a good one.
func (d *dev) address(preferred string) (string, error) {
	if d.options.listen != "" {
		return d.options.listen, nil
	}
	return freeAddress(preferred)
}

// freeAddress returns the preferred loopback address if nobody listens there,
// or one with a free port.
func freeAddress(preferred string) (string, error) {
	l, err := net.Listen("tcp", preferred)
	if err == nil {
		return preferred, l.Close()
	}
	port, err := loopback.FreePort()
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("127.0.0.1:%d", port), nil
}
