package wal

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/capture/table"
	"github.com/millrace-db/millrace/internal/finding"
)

// minVersion is the oldest server version, as server_version_num has it.
const minVersion = 140000

// Check looks at the source without changing it: server, role, tables,
// publication, slot. It returns an error only where it cannot look.
func (c *Capture) Check(ctx context.Context) ([]finding.Finding, error) {
	conn, err := c.connect(ctx, nil)
	if err != nil {
		return nil, err
	}
	defer capture.Close(conn)
	server, problems, err := checkServer(ctx, conn)
	if err != nil {
		return nil, err
	}
	if capture.FirstError(problems) == nil {
		tables, found, err := c.checkTables(ctx, conn)
		if err != nil {
			return nil, err
		}
		problems = append(problems, found...)
		if found, err = checkUpdates(ctx, conn, server, tables); err != nil {
			return nil, err
		}
		problems = append(problems, found...)
		problems = append(problems, c.checkChoices(server)...)
		if found, err = c.checkPublication(ctx, conn, server, tables); err != nil {
			return nil, err
		}
		problems = append(problems, found...)
		if found, err = checkTriggers(ctx, conn, server, tables); err != nil {
			return nil, err
		}
		problems = append(problems, found...)
		slot, err := c.lookUpSlot(ctx, conn)
		if err != nil {
			return nil, err
		}
		if slot == nil {
			if server.slots >= server.maxSlots {
				problems = append(problems, capture.Refuse(ErrSlotMissing, "max_replication_slots",
					fmt.Sprintf("all %d replication slots are in use", server.maxSlots), "raise max_replication_slots and restart the server, or drop a slot that nobody uses"))
			}
		} else if err := c.fenceSlot(slot, server); err != nil {
			problems = append(problems, capture.Refuse(err, "slot "+c.cfg.Slot, err.Error(), "see there"))
		}
		if found, err = c.checkSlot(ctx, conn, server, slot); err != nil {
			return nil, err
		}
		problems = append(problems, found...)
		if p := c.checkReplication(ctx); p != nil {
			problems = append(problems, *p)
		}
	}
	return capture.Findings(problems), nil
}

// Reach connects to the source as capture does and refuses a server that cannot
// be captured from. It looks at nothing that is a stream's own.
func (c *Capture) Reach(ctx context.Context) error {
	conn, err := c.connect(ctx, nil)
	if err != nil {
		return err
	}
	defer capture.Close(conn)
	_, problems, err := checkServer(ctx, conn)
	if err != nil {
		return err
	}
	return capture.FirstError(problems)
}

// checkReplication opens a replication connection, because only that shows what
// role, pg_hba.conf and a pooler in between let through.
func (c *Capture) checkReplication(ctx context.Context) *capture.Problem {
	conn, err := c.connectReplication(ctx)
	if err == nil {
		capture.Close(conn)
		return nil
	}
	p := capture.Refuse(capture.ErrConnect, "replication connection", err.Error(), "see there; the URL must lead to the server itself, and the role needs REPLICATION")
	return &p
}

// serverInfo is what the checks and fences need of the server.
type serverInfo struct {
	version         int
	database        string
	slots, maxSlots int
	// keep is max_slot_wal_keep_size in MiB, -1 for no limit; idleTimeout is
	// idle_replication_slot_timeout in seconds, 0 for none.
	keep, idleTimeout int64
}

func checkServer(ctx context.Context, conn *pgx.Conn) (*serverInfo, []capture.Problem, error) {
	var (
		s                  serverInfo
		recovery           bool
		walLevel, encoding string
		settings           string
	)
	err := conn.QueryRow(ctx, `
SELECT current_setting('server_version_num')::int, current_database()::text, pg_is_in_recovery(), current_setting('wal_level'),
       pg_encoding_to_char(encoding)::text, (SELECT count(*) FROM pg_replication_slots)::int, current_setting('max_replication_slots')::int,
       (SELECT setting::bigint FROM pg_settings WHERE name = 'max_slot_wal_keep_size'),
       coalesce((SELECT setting::bigint FROM pg_settings WHERE name = 'idle_replication_slot_timeout'), 0),
       concat_ws(' ', current_setting('search_path'), current_setting('extra_float_digits'), current_setting('row_security'))
FROM pg_database WHERE datname = current_database()`).
		Scan(&s.version, &s.database, &recovery, &walLevel, &encoding, &s.slots, &s.maxSlots,
			&s.keep, &s.idleTimeout, &settings)
	if err != nil {
		return nil, nil, fmt.Errorf("look at the server: %w", err)
	}
	var problems []capture.Problem
	// A pooler may be told to leave settings out without a word.
	if pinned := capture.Session(); settings != pinned["search_path"]+" "+pinned["extra_float_digits"]+" "+pinned["row_security"] {
		problems = append(problems, capture.Refuse(capture.ErrConnect, "connection", "session settings do not reach the server, as through a connection pooler (PgBouncer, or a managed one), which passes neither them nor replication on", poolerMend))
	}
	if s.version < minVersion {
		problems = append(problems, capture.Refuse(capture.ErrVersion, "server version", fmt.Sprintf("it is %d.%d", s.version/10000, s.version%10000), "use Postgres 14 or later"))
	}
	if recovery {
		problems = append(problems, capture.Refuse(capture.ErrStandby, "server", "it is a standby, whose snapshots leave running transactions out", "give the primary's address in the source URL"))
	}
	if walLevel != "logical" {
		problems = append(problems, capture.Refuse(ErrWALLevel, "wal_level", "it is "+walLevel, "ALTER SYSTEM SET wal_level = logical, then restart the server"))
	}
	if encoding == "SQL_ASCII" {
		problems = append(problems, capture.Warn("database "+s.database, "its encoding is SQL_ASCII, so its texts need not be UTF-8", "make sure that they are, or move it to a database with encoding UTF8"))
	}
	return &s, problems, nil
}

// checkTables looks up the configured tables. Those that exist are returned, in
// the order of the configuration, with the fitness of each among the problems.
func (c *Capture) checkTables(ctx context.Context, conn *pgx.Conn) ([]*table.Info, []capture.Problem, error) {
	tables, problems, err := table.Configured(ctx, conn, c.tables, &c.choices)
	if err != nil {
		return nil, nil, err
	}
	for _, t := range tables {
		problems = append(problems, checkChoice(t)...)
		found, err := table.Fit(ctx, conn, millrace.ModeWAL, t, tables)
		if err != nil {
			return nil, nil, err
		}
		problems = append(problems, found...)
	}
	return tables, problems, nil
}
