package trigger

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/capture/table"
	"github.com/millrace-db/millrace/capture/trigger/keylog"
	"github.com/millrace-db/millrace/internal/finding"
)

// minVersion is the oldest server version, as server_version_num has it.
const minVersion = 140000

// Check looks at the source without changing it: server, role, tables, logs of
// keys. It returns an error only where it cannot look.
func (c *Capture) Check(ctx context.Context) ([]finding.Finding, error) {
	conn, err := c.connect(ctx)
	if err != nil {
		return nil, err
	}
	defer capture.Close(conn)
	problems, err := c.checkServer(ctx, conn)
	if err != nil || capture.FirstError(problems) != nil {
		return capture.Findings(problems), err
	}
	err = look(ctx, conn, func(tx pgx.Tx) error {
		logs, found, err := c.logs(ctx, tx)
		if err != nil {
			return err
		}
		problems = append(problems, found...)
		tables, found, err := c.checkTables(ctx, tx, logs)
		if err != nil {
			return err
		}
		problems = append(problems, found...)
		problems = append(problems, checkLogs(tables, logs)...)
		return nil
	})
	if err != nil {
		return nil, err
	}
	if capture.FirstError(problems) == nil {
		if problems, err = c.checkFilters(ctx, conn, problems); err != nil {
			return nil, err
		}
	}
	return capture.Findings(problems), nil
}

// CheckAnew is Check for a stream that is to be copied anew, which Check says the
// same of.
func (c *Capture) CheckAnew(ctx context.Context) ([]finding.Finding, error) { return c.Check(ctx) }

// CheckPosition looks whether capture could go on at a position of the stream,
// without changing anything: it says which of the fences that Open has would stop
// it. A zero position is that of a stream that has its first copy before it.
func (c *Capture) CheckPosition(ctx context.Context, position func(context.Context) (millrace.Position, time.Time, error)) ([]finding.Finding, error) {
	p, _, err := position(ctx)
	if err != nil || p.IsZero() {
		return nil, err
	}
	conn, err := c.connect(ctx)
	if err != nil {
		return nil, err
	}
	defer capture.Close(conn)
	var f facts
	err = look(ctx, conn, func(tx pgx.Tx) error {
		return ask(ctx, conn.PgConn(), factsQuery(c.cfg.Stream, "(SELECT s.epoch FROM millrace.stream s WHERE s.name = "+literal(c.cfg.Stream)+")", p.Tick), func(row [][]byte) error {
			_, err := f.parse(row)
			return err
		})
	})
	if err != nil {
		return nil, fmt.Errorf("look at tick %d: %w", p.Tick, err)
	}
	err = fence(p, &f, c.planted)
	if err == nil {
		return nil, nil
	}
	if !errors.Is(err, millrace.ErrStop) {
		return nil, err
	}
	// The error says its mend behind the rest.
	text, mend, _ := strings.Cut(err.Error(), "; mend: ")
	text = strings.TrimPrefix(text, millrace.ErrStop.Error()+": ")
	return []finding.Finding{{Level: finding.Problem, Subject: "source", Text: text, Mend: mend}}, nil
}

// Reach connects to the source as capture does and refuses a server that cannot be
// captured from. It looks at nothing that is a stream's own.
func (c *Capture) Reach(ctx context.Context) error {
	conn, err := c.connect(ctx)
	if err != nil {
		return err
	}
	defer capture.Close(conn)
	problems, err := c.checkServer(ctx, conn)
	if err != nil {
		return err
	}
	return capture.FirstError(problems)
}

func (c *Capture) checkServer(ctx context.Context, conn *pgx.Conn) (problems []capture.Problem, err error) {
	err = ask(ctx, conn.PgConn(), `SELECT current_setting('server_version_num'), pg_is_in_recovery()::text, pg_encoding_to_char(encoding), datname
FROM pg_catalog.pg_database WHERE datname = current_database()`, func(row [][]byte) error {
		version, err := strconv.Atoi(string(row[0]))
		if err != nil {
			return err
		}
		if version < minVersion {
			problems = append(problems, capture.Refuse(capture.ErrVersion, "server version", fmt.Sprintf("it is %d.%d", version/10000, version%10000), "use Postgres 14 or later"))
		}
		if string(row[1]) == "true" {
			problems = append(problems, capture.Refuse(capture.ErrStandby, "server", "it is a standby, whose snapshots leave running transactions out", "give the primary's address in the source URL"))
		}
		if string(row[2]) == "SQL_ASCII" {
			problems = append(problems, capture.Warn("database "+string(row[3]), "its encoding is SQL_ASCII, so its texts need not be UTF-8", "make sure that they are, or move it to a database with encoding UTF8"))
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look at the server: %w", sourceError(err))
	}
	return problems, nil
}

// logs looks at the logs of the stream, by the IDs of their tables.
func (c *Capture) logs(ctx context.Context, tx pgx.Tx) (map[millrace.TableID]*keylog.Log, []capture.Problem, error) {
	all := make(map[millrace.TableID]*keylog.Log)
	var there bool
	if err := tx.QueryRow(ctx, "SELECT to_regclass('millrace.key_log') IS NOT NULL").Scan(&there); err != nil {
		return nil, nil, fmt.Errorf("look for the control schema: %w", err)
	}
	if !there {
		return all, []capture.Problem{capture.Refuse(keylog.ErrNotInstalled, "control schema", "it has no registry of logs", "millrace init")}, nil
	}
	logs, err := c.looker.Look(ctx, tx)
	if err != nil {
		return nil, nil, err
	}
	for i := range logs {
		all[logs[i].Table.ID] = &logs[i]
	}
	return all, nil, nil
}

// checkTables looks up the configured tables. Those that exist are returned, in the
// order of the configuration, with the fitness of each among the problems.
func (c *Capture) checkTables(ctx context.Context, tx pgx.Tx, logs map[millrace.TableID]*keylog.Log) ([]*table.Info, []capture.Problem, error) {
	tables, problems, err := table.Configured(ctx, tx, c.tables, &c.choices)
	if err != nil {
		return nil, nil, err
	}
	for _, t := range tables {
		if l := logs[t.ID]; l != nil {
			t.Logged = l.Table.Key
		}
	}
	for _, t := range tables {
		problems = append(problems, t.CheckChoice()...)
		found, err := table.Fit(ctx, tx, millrace.ModeTrigger, t, tables)
		if err != nil {
			return nil, nil, err
		}
		problems = append(problems, found...)
	}
	return tables, problems, nil
}

// checkLogs says of which tables not every change is logged.
func checkLogs(tables []*table.Info, logs map[millrace.TableID]*keylog.Log) []capture.Problem {
	var problems []capture.Problem
	for _, t := range tables {
		subject := "table " + t.Name.String()
		l := logs[t.ID]
		if l == nil {
			problems = append(problems, capture.Refuse(keylog.ErrNotInstalled, subject, "it has no log of keys", "millrace init"))
			continue
		}
		for _, p := range l.Problems {
			problems = append(problems, capture.Refuse(keylog.ErrTriggers, subject, p.Text, "millrace init, which makes its log whole and has the table loaded again"))
		}
	}
	return problems
}

// checkFilters adds conditions that do not depend on a row alone: rows would come
// into what is chosen, or go from it, without having been changed. The server says
// so of the expression of a generated column.
func (c *Capture) checkFilters(ctx context.Context, conn *pgx.Conn, problems []capture.Problem) ([]capture.Problem, error) {
	for _, name := range c.tables {
		where := c.choices.Of(name).Where
		if where == "" {
			continue
		}
		err := ask(ctx, conn.PgConn(), "BEGIN; "+settings(conn.PgConn())+"; CREATE TEMP TABLE millrace_probe (LIKE "+name.Quoted()+") ON COMMIT DROP; "+
			"ALTER TABLE pg_temp.millrace_probe ADD COLUMN millrace_where boolean GENERATED ALWAYS AS ("+where+") STORED; ROLLBACK")
		var pg *pgconn.PgError
		if err == nil {
			continue
		}
		if !errors.As(err, &pg) {
			return nil, err
		}
		if err := ask(ctx, conn.PgConn(), "ROLLBACK"); err != nil {
			return nil, err
		}
		if pg.Code == "42501" { // no right to make temporary tables
			problems = append(problems, capture.Warn("table "+name.String(), "whether source.where depends on its rows alone cannot be tried: "+pg.Message, "GRANT TEMPORARY ON DATABASE … TO the role, or make sure of it"))
			continue
		}
		problems = append(problems, capture.Refuse(capture.ErrTable, "table "+name.String(), "source.where: "+pg.Message, "use the table's columns, and functions that are immutable"))
	}
	return problems, nil
}

// sourceError tells what the server says that no retry mends.
func sourceError(err error) error {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) || errors.Is(err, millrace.ErrStop) {
		return err
	}
	switch {
	case pg.Code == "42501": // insufficient_privilege
		return fmt.Errorf("%w: %w; mend: give the role of the source URL the right, as millrace check says", capture.ErrTable, err)
	case slices.Contains([]string{"25006", "57P03"}, pg.Code) && strings.Contains(pg.Message, "recovery"):
		return fmt.Errorf("%w: %w; mend: give the primary's address in the source URL", capture.ErrStandby, err)
	}
	return err
}
