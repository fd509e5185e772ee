package keylog

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
)

// InstallEventTriggers makes the event triggers that note who did what, and which
// commands gave rows other values. It reports false where the role may not: only a
// superuser may, or on managed services their admin role.
func InstallEventTriggers(ctx context.Context, conn *pgx.Conn, cfg Config) (bool, error) {
	t, err := parseTexts()
	if err != nil {
		return false, err
	}
	text, err := t.render("event_triggers.sql", cfg.roleTexts())
	if err != nil {
		return false, err
	}
	refused, err := try(ctx, conn, text)
	if err != nil {
		return false, fmt.Errorf("make event triggers: %w", err)
	}
	return !refused, nil
}

// UninstallEventTriggers takes them away; that needs the right to drop their
// function. For the end of the last stream that captures by triggers.
func UninstallEventTriggers(ctx context.Context, conn *pgx.Conn) error {
	_, err := conn.Exec(ctx, "DROP FUNCTION IF EXISTS millrace.note_ddl() CASCADE; DROP FUNCTION IF EXISTS millrace.note_ddl_of(oid)", pgx.QueryExecModeSimpleProtocol)
	if err != nil && code(err) != "3F000" { // invalid_schema_name: nothing is there
		return fmt.Errorf("remove event triggers: %w", err)
	}
	return nil
}

// EventTriggersQuery identifies the event triggers: the same text twice means that
// they were there all the time in between. It is empty where one is missing or does
// not fire for everybody. It is what EventTriggers asks, for whoever asks more at once.
const EventTriggersQuery = `
SELECT CASE WHEN count(*) FILTER (WHERE e.evtenabled = 'A') = 3
            THEN string_agg(concat_ws(' ', e.oid, e.xmin, p.oid, p.xmin), ', ' ORDER BY e.evtname) ELSE '' END
FROM pg_event_trigger e JOIN pg_proc p ON p.oid = e.evtfoid
WHERE e.evtname IN ('millrace_note_end', 'millrace_note_drop', 'millrace_note_rewrite')`

// EventTriggers returns what identifies the event triggers in the snapshot of q: the
// same text in two snapshots means that all DDL in between was noted. It is empty
// where one of them is missing or not ENABLE ALWAYS.
func EventTriggers(ctx context.Context, q Querier) (string, error) {
	var text string
	if err := q.QueryRow(ctx, EventTriggersQuery).Scan(&text); err != nil {
		return "", fmt.Errorf("look for event triggers: %w", err)
	}
	return text, nil
}

// Event is DDL that the event triggers noted.
type Event struct {
	ID          int64
	At          time.Time
	Who         string // session_user
	Application string // application_name
	Tag         string // such as ALTER TABLE
	Command     string // its first 1,000 characters
	Object      string // what it was done to
	// Rewritten says that rows may have other values than before.
	Rewritten bool
}

// Events returns what was noted of a table, and of what concerns all tables, by
// transactions that q sees and the snapshot before, as pg_current_snapshot() prints
// it, does not; in the order of their IDs.
func Events(ctx context.Context, q Querier, table millrace.TableID, before string) ([]Event, error) {
	rows, err := q.Query(ctx, `
SELECT id, happened_at, who, application, tag, command, object, rewritten
FROM millrace.ddl_event
WHERE table_id IN ($1::bigint::oid, 0) AND NOT pg_visible_in_snapshot(txid::text::xid8, $2::text::pg_snapshot)
ORDER BY id`, int64(table), before)
	if err != nil {
		return nil, fmt.Errorf("read the DDL that was noted: %w", err)
	}
	events, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (e Event, err error) {
		return e, row.Scan(&e.ID, &e.At, &e.Who, &e.Application, &e.Tag, &e.Command, &e.Object, &e.Rewritten)
	})
	if err != nil {
		return nil, fmt.Errorf("read the DDL that was noted: %w", err)
	}
	return events, nil
}
