package migrations

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace/capture/table"
)

// A partition that is made while a side is closed has no trigger that denies writes to it.
// An event trigger puts them there at once, where the role may make one; the process that
// follows looks once a second, puts them there, and says that the partition was open.

// guardEvent is the name of the event trigger.
const guardEvent = "millrace_migration_guard"

// watchPartitions makes the event trigger, if the role may.
func (g *gate) watchPartitions(ctx context.Context) error {
	var there bool
	if err := g.conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_event_trigger WHERE evtname = $1)", guardEvent).Scan(&there); err != nil || there {
		return err
	}
	_, err := g.conn.Exec(ctx, fmt.Sprintf("BEGIN; CREATE EVENT TRIGGER %s ON ddl_command_end WHEN TAG IN ('CREATE TABLE', 'ALTER TABLE', 'CREATE FOREIGN TABLE') EXECUTE FUNCTION millrace.migration_guard(); ALTER EVENT TRIGGER %[1]s ENABLE ALWAYS; COMMIT", guardEvent), pgx.QueryExecModeSimpleProtocol)
	if err == nil {
		return nil
	}
	if _, again := g.conn.Exec(ctx, "ROLLBACK"); again != nil {
		return again
	}
	if c := code(err); c == "42501" || c == "42710" { // it may not, or somebody was faster
		return nil
	}
	return fmt.Errorf("watch for new partitions at the %s: %w", g.where, err)
}

// forgetPartitions takes the event trigger away when no gate is left that it serves.
func (g *gate) forgetPartitions(ctx context.Context) error {
	var drop bool
	if err := g.conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_event_trigger WHERE evtname = $1 AND pg_has_role(evtowner, 'USAGE')) AND NOT EXISTS (SELECT FROM millrace.migration_applier)", guardEvent).Scan(&drop); err != nil || !drop {
		return err
	}
	if _, err := g.conn.Exec(ctx, "DROP EVENT TRIGGER IF EXISTS "+guardEvent); err != nil {
		return fmt.Errorf("watch for new partitions at the %s no more: %w", g.where, err)
	}
	return nil
}

// unguarded lists tables of a side that has a gate on which no trigger stands.
func (g *gate) unguarded(ctx context.Context, tables []table.Name) (open []string, err error) {
	var there bool
	if err := g.conn.QueryRow(ctx, "SELECT to_regclass($1) IS NOT NULL", g.sequence()).Scan(&there); err != nil {
		return nil, fmt.Errorf("look for the gate at the %s: %w", g.where, err)
	}
	if !there {
		return nil, nil
	}
	var names []string
	for _, t := range tables {
		names = append(names, t.Quoted())
	}
	if err := g.conn.QueryRow(ctx, guarded+"SELECT coalesce(array_agg(oid::regclass::text ORDER BY 1), '{}') FROM guarded WHERE NOT statements OR NOT rows", names, denyTrigger, denyRows).Scan(&open); err != nil {
		return nil, fmt.Errorf("look for triggers at the %s: %w", g.where, err)
	}
	return open, nil
}

// closeGaps guards what was made at the side that the follower's changes go to, which is
// the one that takes no writes.
func (f *follower) closeGaps(ctx context.Context) error {
	g := &gate{conn: f.dst, where: target, name: f.m.known()}
	tables := f.m.tables(target)
	open, err := g.unguarded(ctx, tables)
	if err != nil || len(open) == 0 {
		return err
	}
	// Whoever goes over, or takes the gates away, holds this for as long.
	over := f.dst
	if f.m.base != "" {
		over = f.src
	}
	taken, err := tryLock(ctx, over, f.m.known()+goesOver)
	if err != nil {
		return fmt.Errorf("look whether writers are going over: %w", err)
	}
	if !taken {
		return nil // a second later, if it is open still
	}
	if open, err = g.unguarded(ctx, tables); len(open) > 0 {
		for _, t := range tables {
			if err == nil {
				err = g.guard(ctx, t)
			}
		}
	}
	if _, unlock := over.Exec(ctx, "SELECT pg_advisory_unlock("+lockKey+")", f.m.known()+goesOver); err == nil {
		err = unlock
	}
	switch {
	case errors.Is(err, ErrBlocked):
		f.m.log.Error("tables take writes at the side that is closed, and cannot be guarded yet", "tables", open, "error", err)
	case err != nil:
		return fmt.Errorf("guard %s: %w", strings.Join(open, ", "), err)
	case len(open) > 0:
		f.m.log.Error("tables took writes at the side that is closed, until now: somebody has made them, or disabled their triggers, since the gate was put there; run millrace migrate verify -f FILE --full", "tables", open)
	}
	return nil
}
