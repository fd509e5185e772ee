package migrations

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
)

// checkSource looks at the source's server and at what the role may do there.
func (m *Migration) checkSource(ctx context.Context, src *pgx.Conn) ([]capture.Problem, error) {
	var (
		version, slots, maxSlots, senders, maxSenders, keep, prepared int
		recovery, replication, creates, known                         bool
		walLevel, encoding                                            string
		largeObjects                                                  bool
	)
	err := src.QueryRow(ctx, `
SELECT current_setting('server_version_num')::int, pg_is_in_recovery(), current_setting('wal_level'), pg_encoding_to_char(d.encoding)::text,
       (SELECT count(*) FROM pg_replication_slots WHERE slot_name <> $1)::int, current_setting('max_replication_slots')::int,
       (SELECT count(*) FROM pg_stat_replication)::int, current_setting('max_wal_senders')::int,
       (SELECT setting::int FROM pg_settings WHERE name = 'max_slot_wal_keep_size'),
       (SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database())::int,
       (SELECT rolreplication OR rolsuper FROM pg_roles WHERE rolname = current_user),
       has_database_privilege(current_database(), 'CREATE'), to_regnamespace('millrace') IS NOT NULL,
       EXISTS (SELECT FROM pg_largeobject_metadata)
FROM pg_database d WHERE d.datname = current_database()`, m.slot()).
		Scan(&version, &recovery, &walLevel, &encoding, &slots, &maxSlots, &senders, &maxSenders, &keep, &prepared, &replication, &creates, &known, &largeObjects)
	if err != nil {
		return nil, fmt.Errorf("look at the source: %w", err)
	}
	var problems []capture.Problem
	bad := func(subject, text, mend string) {
		problems = append(problems, capture.Refuse(ErrBlocked, "source: "+subject, text, mend))
	}
	warn := func(subject, text, mend string) {
		problems = append(problems, capture.Warn("source: "+subject, text, mend))
	}
	if version < 140000 {
		bad("server version", fmt.Sprintf("it is %d", version/10000), "upgrade it to Postgres 14 or later")
	}
	if recovery {
		bad("server", "it is a standby", "give the primary's address in source.url")
	}
	byWAL := m.cfg.Capture == millrace.ModeWAL
	if byWAL && walLevel != "logical" {
		bad("wal_level", "it is "+walLevel, "ALTER SYSTEM SET wal_level = logical, then restart the server; or source.capture: trigger in the migration file")
	}
	if byWAL && slots >= maxSlots {
		bad("max_replication_slots", fmt.Sprintf("all %d are in use", maxSlots), "raise it and restart the server, or drop a slot that nobody uses")
	}
	if byWAL && senders >= maxSenders {
		bad("max_wal_senders", fmt.Sprintf("all %d are in use", maxSenders), "raise it and restart the server")
	}
	if byWAL && !replication {
		bad("role", "it may not replicate", "ALTER ROLE … REPLICATION, for the role of source.url; or source.capture: trigger in the migration file")
	}
	if !creates {
		bad("role", "it may not make a schema, or a publication, in the database", "GRANT CREATE ON DATABASE … TO the role of source.url")
	}
	if encoding != "UTF8" {
		warn("database encoding", "it is "+encoding, "make sure that every text there can be written in the target's encoding")
	}
	if byWAL && keep < 0 {
		warn("max_slot_wal_keep_size", "it is -1: while the migration stands still, the WAL that its slot holds may fill the disk", "watch the disk, or set it to what the disk can spare")
	}
	if byWAL && prepared > 0 {
		warn("prepared transactions", fmt.Sprintf("there are %d, and copy waits for those that run when it begins", prepared), "COMMIT PREPARED or ROLLBACK PREPARED (pg_prepared_xacts)")
	}
	if largeObjects {
		warn("large objects", "the database has some, and they do not move", "move them by hand, if a table refers to them (columns of type oid or lo)")
	}
	for i := range m.cfg.Tables {
		if byWAL && len(m.cfg.Tables[i].Omit) > 0 && version < 150000 {
			bad("server version", fmt.Sprintf("it is %d, and columns are left out of %v, which came with Postgres 15", version/10000, m.cfg.Tables[i].From), "upgrade it, or move the columns too and drop them later")
		}
	}
	return problems, nil
}

// checkTarget looks at the target's server and at what the role may do there.
func (m *Migration) checkTarget(ctx context.Context, dst *pgx.Conn) ([]capture.Problem, error) {
	var version int
	var recovery, creates, temporary bool
	var encoding string
	err := dst.QueryRow(ctx, `
SELECT current_setting('server_version_num')::int, pg_is_in_recovery(), pg_encoding_to_char(d.encoding)::text,
       has_database_privilege(current_database(), 'CREATE'), has_database_privilege(current_database(), 'TEMP')
FROM pg_database d WHERE d.datname = current_database()`).Scan(&version, &recovery, &encoding, &creates, &temporary)
	if err != nil {
		return nil, fmt.Errorf("look at the target: %w", err)
	}
	var problems []capture.Problem
	bad := func(subject, text, mend string) {
		problems = append(problems, capture.Refuse(ErrBlocked, "target: "+subject, text, mend))
	}
	if version < 140000 {
		bad("server version", fmt.Sprintf("it is %d", version/10000), "use Postgres 14 or later")
	}
	if recovery {
		bad("server", "it is a standby", "give the primary's address in target.url")
	}
	if !creates {
		bad("role", "it may not make a schema in the database", "GRANT CREATE ON DATABASE … TO the role of target.url")
	}
	if !temporary {
		bad("role", "it may not make temporary tables in the database", "GRANT TEMPORARY ON DATABASE … TO the role of target.url")
	}
	if encoding != "UTF8" {
		bad("database encoding", "it is "+encoding, "make the database with ENCODING 'UTF8'")
	}
	return problems, nil
}

// checkRelations looks at what hangs together with a table at the source.
func (m *Migration) checkRelations(ctx context.Context, src *pgx.Conn, t *Table, id int64) ([]capture.Problem, error) {
	if id == 0 { // readMapping says so
		return nil, nil
	}
	var moving []string
	for i := range m.cfg.Tables {
		moving = append(moving, m.cfg.Tables[i].From.Quoted())
	}
	var owner bool
	var triggers, references, referenced, views []string
	err := src.QueryRow(ctx, `
SELECT pg_has_role(c.relowner, 'USAGE'),
       ARRAY(SELECT tgname::text FROM pg_trigger WHERE tgrelid = c.oid AND NOT tgisinternal AND tgname NOT LIKE $2
             AND NOT EXISTS (SELECT FROM pg_proc f JOIN pg_namespace n ON n.oid = f.pronamespace WHERE f.oid = tgfoid AND n.nspname = 'millrace') ORDER BY 1),
       ARRAY(SELECT conname || ' (' || confrelid::regclass || ')' FROM pg_constraint WHERE conrelid = c.oid AND contype = 'f' AND conparentid = 0 ORDER BY 1),
       ARRAY(SELECT conname || ' (' || conrelid::regclass || ')' FROM pg_constraint WHERE confrelid = c.oid AND contype = 'f' AND conparentid = 0
             AND conrelid <> ALL (SELECT coalesce(to_regclass(t), 0) FROM unnest($3::text[]) t) ORDER BY 1),
       ARRAY(SELECT DISTINCT r.ev_class::regclass::text FROM pg_depend p JOIN pg_rewrite r ON r.oid = p.objid
             WHERE p.classid = 'pg_rewrite'::regclass AND p.refclassid = 'pg_class'::regclass AND p.refobjid = c.oid AND r.ev_class <> c.oid ORDER BY 1)
FROM pg_class c WHERE c.oid = $1::bigint::oid`, id, denyTrigger+"%", moving).Scan(&owner, &triggers, &references, &referenced, &views)
	if err != nil {
		return nil, fmt.Errorf("look at what hangs together with table %v: %w", t.From, err)
	}
	subject := "table " + t.From.String()
	var problems []capture.Problem
	if !owner {
		problems = append(problems, capture.Refuse(ErrBlocked, subject, "the role does not own it, so it cannot be published, and gets no triggers", "ALTER TABLE "+t.From.Quoted()+" OWNER TO …, or use the owner in source.url"))
	}
	warn := func(what string, names []string, text, mend string) {
		if len(names) > 0 {
			problems = append(problems, capture.Warn(subject, what+" "+strings.Join(names, ", ")+text, mend))
		}
	}
	warn("its triggers", triggers, " are not made at the target by prepare", "make them there; they are kept silent while changes go in")
	if m.cfg.LeaveForeignKeys {
		warn("its foreign keys", references, " are not made at the target", "make them there when the migration follows, or take foreign_keys: leave out of the migration file; verify looks whether they hold")
	}
	warn("foreign keys of others,", referenced, ", refer to it", "see to it that the tables that have them move too, or drop them")
	warn("views", views, " depend on it and do not move", "make them at the target")
	return problems, nil
}

// checkWrites looks whether the role may do at the target what has to be done, and
// whether the table is empty while nothing has been copied.
func (m *Migration) checkWrites(ctx context.Context, dst *pgx.Conn, to *mapping, step Step) ([]capture.Problem, error) {
	var writes, owner, begun bool
	silences, err := maySilence(ctx, dst)
	if err != nil {
		return nil, err
	}
	err = dst.QueryRow(ctx, `
SELECT has_table_privilege(c.oid, 'SELECT') AND has_table_privilege(c.oid, 'INSERT') AND has_table_privilege(c.oid, 'UPDATE') AND has_table_privilege(c.oid, 'DELETE'),
       pg_has_role(c.relowner, 'USAGE'),
       to_regclass('millrace.migration_heap') IS NOT NULL
FROM pg_class c WHERE c.oid = to_regclass($1)`, to.to.Quoted()).Scan(&writes, &owner, &begun)
	if err != nil {
		return nil, fmt.Errorf("look up privileges on %v at the target: %w", to.to, err)
	}
	subject := "table " + to.to.String() + " at the target"
	var problems []capture.Problem
	bad := func(text, mend string) {
		problems = append(problems, capture.Refuse(ErrBlocked, subject, text, mend))
	}
	if !writes {
		bad("the role may not read and write it", "GRANT SELECT, INSERT, UPDATE, DELETE ON "+to.to.Quoted()+" TO the role of target.url")
		return problems, nil
	}
	if !owner {
		bad("the role does not own it, so rehearse and cutover can put no gate there, nor capture the way back", "ALTER TABLE "+to.to.Quoted()+" OWNER TO …, or use the owner in target.url")
	}
	if to.guarded && !silences {
		bad("it has triggers or foreign keys, and the role may not keep them silent", "GRANT SET ON PARAMETER session_replication_role TO the role of target.url (Postgres 15 and later, or use a superuser), or drop them until the migration follows")
	}
	if begun {
		if err := dst.QueryRow(ctx, "SELECT EXISTS (SELECT FROM millrace.migration_heap WHERE name = $1 AND table_name = $2)", m.cfg.Name, to.from.String()).Scan(&begun); err != nil {
			return nil, fmt.Errorf("look whether %v is being copied: %w", to.from, err)
		}
	}
	if step == StepNone || step == StepPrepared && !begun {
		var rows bool
		if err := dst.QueryRow(ctx, "SELECT EXISTS (SELECT FROM "+to.to.Quoted()+")").Scan(&rows); err != nil {
			return nil, fmt.Errorf("look into %v at the target: %w", to.to, err)
		}
		if !rows {
			return problems, nil
		}
		term, err := m.finished(ctx, dst)
		if err != nil {
			return nil, err
		}
		if term > 0 { // nobody else may have these rows
			bad("it has rows, and writers went over to it with a migration of this name, which is finished", "leave it as it is, or choose another name for what else is to move")
		} else {
			bad("it has rows, and nothing has been copied", "empty it with TRUNCATE "+to.to.Quoted()+" at the target, if they are not wanted")
		}
	}
	return problems, nil
}

// silence keeps triggers and foreign keys silent in a session at the target: those that
// are there, and where the role may, those that are made while it is open. loud tells
// that it may not. Errors: ErrBlocked.
func silence(ctx context.Context, dst *pgx.Conn, all []*mapping) (loud bool, err error) {
	_, err = dst.Exec(ctx, "SET session_replication_role = replica")
	if err == nil {
		return false, nil
	}
	if code(err) != "42501" { // insufficient_privilege
		return false, fmt.Errorf("keep triggers silent at the target: %w", err)
	}
	for _, m := range all {
		if m.guarded {
			return true, m.notSilent()
		}
	}
	return true, nil
}

func (m *mapping) notSilent() error {
	return fmt.Errorf("%w: %v has triggers or foreign keys that the role may not keep silent while changes go in; mend: GRANT SET ON PARAMETER session_replication_role TO that role (Postgres 15 and later, or use a superuser)", ErrBlocked, m.to)
}

// staysSilent refuses a table on which somebody has made triggers or foreign keys since
// its session turned out to be loud. In a transaction nobody makes any up to its end.
// Errors: ErrBlocked.
func (m *mapping) staysSilent(ctx context.Context, dst *pgx.Conn) error {
	if dst.PgConn().TxStatus() == 'T' {
		if _, err := dst.Exec(ctx, "LOCK TABLE "+m.to.Quoted()+" IN ROW EXCLUSIVE MODE"); err != nil {
			return err
		}
	}
	var id int64
	if err := dst.QueryRow(ctx, "SELECT coalesce(to_regclass($1)::oid, 0)::bigint", m.to.Quoted()).Scan(&id); err != nil {
		return fmt.Errorf("look up %v at the target: %w", m.to, err)
	}
	now := &mapping{from: m.from, to: m.to}
	problems, err := now.checkGuards(ctx, dst, millrace.TableID(id))
	if err == nil {
		err = capture.FirstError(problems)
	}
	if err == nil && now.guarded {
		err = m.notSilent()
	}
	return err
}
