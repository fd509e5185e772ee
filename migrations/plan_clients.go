package migrations

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
)

// PlannedBouncer is a PgBouncer of the migration file as the plan sees it.
type PlannedBouncer struct {
	Database string `json:"database"`
	Version  string `json:"version"`
	PoolMode string `json:"pool_mode"`
}

// checkBouncers looks at the PgBouncers that clients are sent over by. active is the
// side that takes writes.
func (m *Migration) checkBouncers(ctx context.Context, active side, r *Report) []capture.Problem {
	var problems []capture.Problem
	for _, cfg := range m.cfg.Bouncers {
		bad := func(text, mend string) {
			problems = append(problems, capture.Refuse(ErrBlocked, "PgBouncer, database "+cfg.Database, text, mend))
		}
		b, err := m.openBouncer(ctx, cfg)
		if err != nil {
			bad("its console is not to be reached: "+err.Error(), "correct pgbouncer[].admin in the migration file: a URL with database pgbouncer and a role of its admin_users")
			continue
		}
		p := PlannedBouncer{Database: cfg.Database}
		if p.Version, p.PoolMode, err = b.looks(ctx); err == nil {
			err = b.ready(ctx, active)
		}
		b.close()
		if err != nil {
			text, mend, _ := strings.Cut(strings.TrimPrefix(err.Error(), ErrBlocked.Error()+": PgBouncer, database "+cfg.Database+": "), "; mend: ")
			if mend == "" {
				mend = "see there"
			}
			bad(text, mend)
		}
		r.Bouncers = append(r.Bouncers, p)
		if p.PoolMode == "session" {
			problems = append(problems, capture.Warn("PgBouncer, database "+cfg.Database, "its pool_mode is session, so PAUSE waits until clients leave, and going over takes longer than its budget while one stays", "pool_mode = transaction for the database"))
		}
		switch {
		case cfg.File != "":
			if err := syscall.Access(filepath.Dir(cfg.File), 2); err != nil { // W_OK
				bad("the directory of "+cfg.File+" may not be written to: "+err.Error(), "run millrace as a user that may replace the file, or give a command in its place")
			}
		case len(cfg.Command) > 0:
			if _, err := exec.LookPath(cfg.Command[0]); err != nil {
				bad("its command cannot be run: "+err.Error(), "correct pgbouncer[].command in the migration file")
			}
		}
	}
	return problems
}

// looks returns what PgBouncer says of itself, and of the pool of the database.
func (b *bouncer) looks(ctx context.Context) (version, mode string, err error) {
	cells := func(command, key, name, column string) (string, error) {
		got, err := b.say(ctx, command)
		if err != nil {
			return "", err
		}
		for _, result := range got {
			for _, row := range result.Rows {
				var is, value string
				for i, f := range result.FieldDescriptions {
					if f.Name == key {
						is = string(row[i])
					}
					if f.Name == column {
						value = string(row[i])
					}
				}
				if is == name || key == "" {
					return value, nil
				}
			}
		}
		return "", nil
	}
	if version, err = cells("SHOW VERSION", "", "", "version"); err != nil {
		return "", "", err
	}
	if mode, err = cells("SHOW DATABASES", "name", b.Database, "pool_mode"); err == nil && mode == "" {
		mode, err = cells("SHOW CONFIG", "key", "pool_mode", "value")
	}
	return version, mode, err
}

// checkEmergency looks whether emergency access could be made, should it be needed when
// writers have gone over.
func (m *Migration) checkEmergency(ctx context.Context, src *pgx.Conn) ([]capture.Problem, error) {
	var there, available, super, usable, creates bool
	if err := src.QueryRow(ctx, `
SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'postgres_fdw'), EXISTS (SELECT FROM pg_available_extensions WHERE name = 'postgres_fdw'),
       (SELECT rolsuper FROM pg_roles WHERE rolname = current_user),
       coalesce((SELECT has_foreign_data_wrapper_privilege(oid, 'USAGE') FROM pg_foreign_data_wrapper WHERE fdwname = 'postgres_fdw'), false),
       has_database_privilege(current_database(), 'CREATE')`).Scan(&there, &available, &super, &usable, &creates); err != nil {
		return nil, fmt.Errorf("look for postgres_fdw at the source: %w", err)
	}
	var text, mend string
	switch {
	case !available && !there:
		text, mend = "the source's server does not have postgres_fdw", "install the contrib package of its version there, or have no client left that goes to the source"
	case !there && !super:
		text, mend = "the source's database does not have extension postgres_fdw, and the role may not make it", "as a superuser there, CREATE EXTENSION postgres_fdw; GRANT USAGE ON FOREIGN DATA WRAPPER postgres_fdw TO "+capture.Role(m.cfg.SourceURL)
	case there && !usable:
		text, mend = "the role may not use postgres_fdw at the source", "as a superuser there, GRANT USAGE ON FOREIGN DATA WRAPPER postgres_fdw TO "+capture.Role(m.cfg.SourceURL)
	default:
		return nil, nil
	}
	return []capture.Problem{capture.Warn("emergency access", text+": millrace migrate emergency would be refused", mend)}, nil
}

// checkComingBack looks whether changes could come back: the source's triggers and foreign
// keys have to be silent for them.
func (m *Migration) checkComingBack(ctx context.Context, src *pgx.Conn) ([]capture.Problem, error) {
	silences, err := maySilence(ctx, src)
	if err != nil || silences {
		return nil, err
	}
	role := capture.Role(m.cfg.SourceURL)
	mend := "GRANT SET ON PARAMETER session_replication_role TO " + role + " at the source"
	if capture.ServerMajor(src.PgConn()) < 15 {
		mend = "use a superuser in source.url, since no right to session_replication_role can be given before Postgres 15; or drop them before cutover"
	}
	var problems []capture.Problem
	for i := range m.cfg.Tables {
		from := m.cfg.Tables[i].From
		var id int64
		if err := src.QueryRow(ctx, "SELECT coalesce(to_regclass($1)::oid, 0)::bigint", from.Quoted()).Scan(&id); err != nil {
			return nil, fmt.Errorf("look up %v at the source: %w", from, err)
		}
		back := &mapping{to: from}
		if _, err := back.checkGuards(ctx, src, millrace.TableID(id)); err != nil { //nolint:gosec // an OID
			return nil, err
		}
		if back.guarded {
			problems = append(problems, capture.Warn("table "+from.String(), "it has triggers or foreign keys, and the role may not keep them silent: rehearse and cutover would be refused, since nothing could come back there", mend))
		}
	}
	return problems, nil
}

// checkWayBack looks at what going over needs of the target: the way back is captured
// there.
func (m *Migration) checkWayBack(ctx context.Context, dst *pgx.Conn) ([]capture.Problem, error) {
	if m.cfg.TargetCapture == millrace.ModeTrigger {
		return nil, nil // the right to make a schema, and to own the tables
	}
	var walLevel string
	var replication bool
	var slots, maxSlots, senders, maxSenders, keep int
	if err := dst.QueryRow(ctx, `
SELECT current_setting('wal_level'), (SELECT rolreplication OR rolsuper FROM pg_roles WHERE rolname = current_user),
       (SELECT count(*) FROM pg_replication_slots WHERE slot_name <> $1)::int, current_setting('max_replication_slots')::int,
       (SELECT count(*) FROM pg_stat_replication)::int, current_setting('max_wal_senders')::int, (SELECT setting::int FROM pg_settings WHERE name = 'max_slot_wal_keep_size')`, m.slot()+backSuffix).
		Scan(&walLevel, &replication, &slots, &maxSlots, &senders, &maxSenders, &keep); err != nil {
		return nil, fmt.Errorf("look at what the way back needs of the target: %w", err)
	}
	var problems []capture.Problem
	warn := func(subject, text, mend string) {
		problems = append(problems, capture.Warn("target: "+subject, text, mend))
	}
	const needs = ": rehearse and cutover would be refused, since the way back is captured there"
	if walLevel != "logical" {
		warn("wal_level", "it is "+walLevel+needs, "ALTER SYSTEM SET wal_level = logical at the target, then restart it while it serves nobody; or target.capture: trigger in the migration file")
	}
	if slots >= maxSlots {
		warn("max_replication_slots", fmt.Sprintf("all %d are in use%s", maxSlots, needs), "raise it and restart the target while it serves nobody, or drop a slot that nobody uses")
	}
	if senders >= maxSenders {
		warn("max_wal_senders", fmt.Sprintf("all %d are in use%s", maxSenders, needs), "raise it and restart the target while it serves nobody")
	}
	if !replication {
		warn("role", "it may not replicate"+needs, "ALTER ROLE "+capture.Role(m.cfg.TargetURL)+" REPLICATION at the target; or target.capture: trigger in the migration file")
	}
	if keep < 0 {
		warn("max_slot_wal_keep_size", "it is -1: when writers have gone over and nobody follows, the WAL that the way back's slot holds may fill the disk", "watch the disk, or set it to what the disk can spare")
	}
	return problems, nil
}
