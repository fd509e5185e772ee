package wal

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/finding"
)

// minVersion is the oldest server version, as server_version_num has it.
const minVersion = 140000

// problem is a finding with the error that it is where it stops something.
type problem struct {
	kind error // nil for a warning
	finding.Finding
}

func refuse(kind error, subject, text, mend string) problem {
	return problem{kind, finding.Finding{Level: finding.Problem, Subject: subject, Text: text, Mend: mend}}
}

func warn(subject, text, mend string) problem {
	return problem{nil, finding.Finding{Level: finding.Warning, Subject: subject, Text: text, Mend: mend}}
}

// firstError returns the problems as one error, or nil if there are only
// warnings.
func firstError(problems []problem) error {
	var all []error
	for _, p := range problems {
		if p.kind != nil {
			all = append(all, fmt.Errorf("%w: %s", p.kind, p.Finding))
		}
	}
	return errors.Join(all...)
}

// Check looks at the source without changing it: server, role, tables,
// publication, slot. It returns an error only where it cannot look.
func (c *Capture) Check(ctx context.Context) ([]finding.Finding, error) {
	conn, err := c.connect(ctx, nil)
	if err != nil {
		return nil, err
	}
	defer closeConn(conn)
	server, problems, err := checkServer(ctx, conn)
	if err != nil {
		return nil, err
	}
	if firstError(problems) == nil {
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
				problems = append(problems, refuse(ErrSlotMissing, "max_replication_slots",
					fmt.Sprintf("all %d replication slots are in use", server.maxSlots), "raise max_replication_slots and restart the server, or drop a slot that nobody uses"))
			}
		} else if err := c.fenceSlot(slot, server); err != nil {
			problems = append(problems, refuse(err, "slot "+c.cfg.Slot, err.Error(), "see there"))
		}
		if found, err = c.checkSlot(ctx, conn, server, slot); err != nil {
			return nil, err
		}
		problems = append(problems, found...)
		if p := c.checkReplication(ctx); p != nil {
			problems = append(problems, *p)
		}
	}
	var findings []finding.Finding
	for _, p := range problems {
		findings = append(findings, p.Finding)
	}
	return findings, nil
}

// Reach connects to the source as capture does and refuses a server that cannot
// be captured from. It looks at nothing that is a stream's own.
func (c *Capture) Reach(ctx context.Context) error {
	conn, err := c.connect(ctx, nil)
	if err != nil {
		return err
	}
	defer closeConn(conn)
	_, problems, err := checkServer(ctx, conn)
	if err != nil {
		return err
	}
	return firstError(problems)
}

// checkReplication opens a replication connection, because only that shows what
// role, pg_hba.conf and a pooler in between let through.
func (c *Capture) checkReplication(ctx context.Context) *problem {
	conn, err := c.connectReplication(ctx)
	if err == nil {
		closeConn(conn)
		return nil
	}
	p := refuse(ErrConnect, "replication connection", err.Error(), "see there; the URL must lead to the server itself, and the role needs REPLICATION")
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

func checkServer(ctx context.Context, conn *pgx.Conn) (*serverInfo, []problem, error) {
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
	var problems []problem
	// A pooler may be told to leave settings out without a word.
	if pinned := session(); settings != pinned["search_path"]+" "+pinned["extra_float_digits"]+" "+pinned["row_security"] {
		problems = append(problems, refuse(ErrConnect, "connection", "session settings do not reach the server, as through a connection pooler (PgBouncer, or a managed one), which passes neither them nor replication on", poolerMend))
	}
	if s.version < minVersion {
		problems = append(problems, refuse(ErrVersion, "server version", fmt.Sprintf("it is %d.%d", s.version/10000, s.version%10000), "use Postgres 14 or later"))
	}
	if recovery {
		problems = append(problems, refuse(ErrStandby, "server", "it is a standby, whose snapshots leave running transactions out", "give the primary's address in the source URL"))
	}
	if walLevel != "logical" {
		problems = append(problems, refuse(ErrWALLevel, "wal_level", "it is "+walLevel, "ALTER SYSTEM SET wal_level = logical, then restart the server"))
	}
	if encoding == "SQL_ASCII" {
		problems = append(problems, warn("database "+s.database, "its encoding is SQL_ASCII, so its texts need not be UTF-8", "make sure that they are, or move it to a database with encoding UTF8"))
	}
	return &s, problems, nil
}

// checkTables looks up the configured tables. Those that exist are returned, in
// the order of the configuration, with the fitness of each among the problems.
func (c *Capture) checkTables(ctx context.Context, conn *pgx.Conn) ([]*tableInfo, []problem, error) {
	var (
		tables   []*tableInfo
		problems []problem
	)
	for _, name := range c.tables {
		t, err := tableByName(ctx, conn, name)
		if err != nil {
			return nil, nil, err
		}
		if t == nil {
			problems = append(problems, refuse(ErrTables, "table "+name.String(), "the source has no such table", "correct its name in the configuration, or create it"))
			continue
		}
		t.choice = c.configured(name)
		tables = append(tables, t)
	}
	for _, t := range tables {
		problems = append(problems, t.checkChoice()...)
		found, err := c.checkTable(ctx, conn, t, tables)
		if err != nil {
			return nil, nil, err
		}
		problems = append(problems, found...)
	}
	return tables, problems, nil
}

func (c *Capture) checkTable(ctx context.Context, conn *pgx.Conn, t *tableInfo, all []*tableInfo) ([]problem, error) {
	subject := "table " + t.name.String()
	one := func(text, mend string) ([]problem, error) {
		return []problem{refuse(ErrTable, subject, text, mend)}, nil
	}
	switch {
	case t.kind != "r" && t.kind != "p":
		kinds := map[string]string{"v": "a view", "m": "a materialized view", "f": "a foreign table", "i": "an index", "I": "an index", "S": "a sequence", "c": "a composite type"}
		return one("it is "+kinds[t.kind]+", which logical decoding does not see", "capture the tables under it instead")
	case t.persistence == "u":
		return one("it is unlogged, so its changes are not in the WAL", "ALTER TABLE "+t.name.quoted()+" SET LOGGED")
	case t.persistence != "p":
		return one("it is temporary", "capture a permanent table")
	case t.kind == "r" && t.inherits && !t.partition:
		return one("it takes part in plain inheritance, so its rows are spread over several tables", "make it a partitioned table, or capture tables without INHERITS")
	}
	s, err := t.schema()
	if err != nil {
		if _, problem, mend := t.key(); problem != "" {
			return one(problem, mend)
		}
		return one(err.Error(), "see there")
	}
	s.Version = 1
	if _, err := millrace.NewKeyCodec(s); err != nil {
		return one(err.Error(), "ALTER TABLE "+t.name.quoted()+" REPLICA IDENTITY USING INDEX …, with a unique index over columns of other types")
	}
	var problems []problem
	if t.kind == "p" {
		found, err := checkLeaves(ctx, conn, t, s)
		if err != nil {
			return nil, err
		}
		problems = append(problems, found...)
	}
	if t.partition {
		root, err := coveredBy(ctx, conn, t, all)
		if err != nil {
			return nil, err
		}
		if root != "" {
			return one("it is a partition of "+root+", under whose name its rows are captured", "remove it from the configuration")
		}
	}
	var schemaUsage, tableSelect bool
	if err := conn.QueryRow(ctx, "SELECT has_schema_privilege($1, 'USAGE'), has_table_privilege($2::bigint::oid, 'SELECT')", t.name.schema, int64(t.id)).
		Scan(&schemaUsage, &tableSelect); err != nil {
		return nil, fmt.Errorf("look up privileges on %v: %w", t.name, err)
	}
	if !schemaUsage {
		problems = append(problems, refuse(ErrTable, subject, "the role may not use schema "+t.name.schema, "GRANT USAGE ON SCHEMA "+quote(t.name.schema)+" TO the role of the source URL"))
	}
	if !tableSelect {
		problems = append(problems, refuse(ErrTable, subject, "the role may not read it", "GRANT SELECT ON "+t.name.quoted()+" TO the role of the source URL"))
	}
	if t.rowSecurity {
		problems = append(problems, warn(subject, "it has row security, which does not exist at the edge: whoever reads there sees all rows", "make sure that is wanted; the role needs BYPASSRLS for the first copy"))
	}
	return problems, nil
}

// checkLeaves looks at the partitions: the WAL holds the key that each leaf's
// own replica identity has, and it must be the root's.
func checkLeaves(ctx context.Context, conn *pgx.Conn, t *tableInfo, s *millrace.Schema) ([]problem, error) {
	leaves, err := lookUpLeaves(ctx, conn, t.id)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, i := range s.KeyColumns() {
		names = append(names, s.Columns[i].Name)
	}
	slices.Sort(names)
	key := ""
	for i, name := range names {
		if i > 0 {
			key += ","
		}
		key += name
	}
	var problems []problem
	for _, l := range leaves {
		subject := "partition " + l.name + " of " + t.name.String()
		switch {
		case l.kind != "r":
			problems = append(problems, refuse(ErrTable, subject, "it is no plain table, so logical decoding does not see its changes", "ALTER TABLE "+t.name.quoted()+" DETACH PARTITION "+l.name))
		case l.persistence != "p":
			problems = append(problems, refuse(ErrTable, subject, "it is unlogged, so its changes are not in the WAL", "ALTER TABLE "+l.name+" SET LOGGED"))
		case l.identity != "f" && l.key != key:
			problems = append(problems, refuse(ErrTable, subject, "its replica identity has columns ("+l.key+"), the table's key has ("+key+")", "ALTER TABLE "+l.name+" REPLICA IDENTITY DEFAULT, or USING INDEX over the key's columns"))
		}
	}
	return problems, nil
}

// coveredBy names the captured table that t is a partition of, if any.
func coveredBy(ctx context.Context, conn *pgx.Conn, t *tableInfo, all []*tableInfo) (string, error) {
	rows, err := conn.Query(ctx, `
WITH RECURSIVE up (oid) AS (
    SELECT $1::bigint::oid
  UNION
    SELECT i.inhparent FROM up JOIN pg_inherits i ON i.inhrelid = up.oid
)
SELECT oid::bigint FROM up`, int64(t.id))
	if err != nil {
		return "", fmt.Errorf("look up parents of %v: %w", t.name, err)
	}
	parents, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return "", fmt.Errorf("look up parents of %v: %w", t.name, err)
	}
	for _, other := range all {
		if other != t && slices.Contains(parents, int64(other.id)) {
			return other.name.String(), nil
		}
	}
	return "", nil
}
