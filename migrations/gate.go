package migrations

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace/capture/table"
	"github.com/millrace-db/millrace/internal/wait"
)

// denyTrigger is the name of the triggers that deny writes, and denyRows of those that
// deny rows: statements on a table above fire no trigger of the table itself but these.
const (
	denyTrigger = "millrace_deny"
	denyRows    = denyTrigger + "_rows"
)

// gate is what keeps writers from one side. It stands on the migration's tables there,
// and on the partitions under them, for every role and every session_replication_role.
type gate struct {
	conn  *pgx.Conn
	where side
	name  string // of the migration that people know
}

func (g *gate) sequence() string { return "millrace." + table.Quote("gate_"+g.name) }

// manager is the row that says which side takes writes.
type manager struct {
	Active side
	Locked bool
	Term   int64
	Fence  string
}

// readManager returns the row of a side, nil where there is none.
func readManager(ctx context.Context, q queryer, name string) (*manager, error) {
	var there bool
	if err := q.QueryRow(ctx, "SELECT to_regclass('millrace.migration_manager') IS NOT NULL").Scan(&there); err != nil {
		return nil, fmt.Errorf("look who takes writes: %w", err)
	}
	if !there {
		return nil, nil
	}
	m := new(manager)
	err := q.QueryRow(ctx, "SELECT active, locked, term, fence FROM millrace.migration_manager WHERE name = $1", name).Scan(&m.Active, &m.Locked, &m.Term, &m.Fence)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look who takes writes: %w", err)
	}
	return m, nil
}

// newToken makes what is known to nobody else.
func newToken() (string, error) {
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", fmt.Errorf("make a token: %w", err)
	}
	return hex.EncodeToString(b[:]), nil
}

// The triggers are made and dropped under a lock that writers queue behind, for no
// longer than guardWait at a time.
const (
	guardWait     = "100ms"
	guardAttempts = 50
)

// install makes gate and triggers if they are not there: open at the source, closed at
// the target. What is there stays as it is.
func (g *gate) install(ctx context.Context, tables []table.Name) error {
	token, err := newToken()
	if err != nil {
		return err
	}
	start := 1
	if g.where == target {
		start = 0
	}
	for _, sql := range []string{
		fmt.Sprintf("CREATE SEQUENCE IF NOT EXISTS %s MINVALUE 0 START %d", g.sequence(), start),
		fmt.Sprintf("INSERT INTO millrace.migration_manager (name, active, term, id, side) SELECT name, 'source', 0, id, side FROM millrace.migration WHERE name = %s ON CONFLICT DO NOTHING", literal(g.name)),
		fmt.Sprintf("INSERT INTO millrace.migration_applier (name, token) VALUES (%s, %s) ON CONFLICT DO NOTHING", literal(g.name), literal(token)),
	} {
		if _, err := g.conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("make the gate at the %s: %w", g.where, err)
		}
	}
	if err := g.watchPartitions(ctx); err != nil {
		return err
	}
	for _, t := range tables {
		if err := g.guard(ctx, t); err != nil {
			return fmt.Errorf("guard table %v at the %s: %w", t, g.where, err)
		}
	}
	return nil
}

// guarded lists tables $1 and what is under them, and which triggers stand or are not
// needed: $2 for statements, and $3 for rows of heaps that have a table above them
// which does not move.
const guarded = `
WITH RECURSIVE tree (oid, above) AS (
    SELECT to_regclass(t)::oid, EXISTS (SELECT FROM pg_inherits i WHERE i.inhrelid = to_regclass(t)::oid) FROM unnest($1::text[]) t
  UNION
    SELECT i.inhrelid, above FROM tree JOIN pg_inherits i ON i.inhparent = tree.oid
), guarded (oid, statements, rows) AS (
    SELECT c.oid, EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = c.oid AND g.tgname = $2 AND g.tgenabled = 'A'),
           NOT bool_or(above) OR c.relkind <> 'r' OR EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = c.oid AND g.tgname = $3 AND g.tgenabled = 'A')
    FROM tree JOIN pg_class c ON c.oid = tree.oid GROUP BY c.oid, c.relkind
)`

// stands wants every table to be guarded: partitions may have been made since, and
// triggers disabled. q holds the tables, so that none is from now on.
func (g *gate) stands(ctx context.Context, q queryer, tables []table.Name) error {
	var names []string
	for _, t := range tables {
		names = append(names, t.Quoted())
	}
	var open string
	if err := q.QueryRow(ctx, guarded+"SELECT coalesce(string_agg(oid::regclass::text, ', '), '') FROM guarded WHERE NOT statements OR NOT rows", names, denyTrigger, denyRows).Scan(&open); err != nil {
		return fmt.Errorf("look for triggers at the %s: %w", g.where, err)
	}
	if open != "" {
		return fmt.Errorf("%w: nothing denies writes to %s at the %s: the table was made, or its trigger %s disabled, meanwhile; mend: try again", ErrBlocked, open, g.where, denyTrigger)
	}
	return nil
}

// guard puts triggers on a table and what is under it.
func (g *gate) guard(ctx context.Context, t table.Name) error {
	rows, err := g.conn.Query(ctx, guarded+`
SELECT oid::regclass::text, EXISTS (SELECT FROM pg_subscription_rel r WHERE r.srrelid = oid), CASE WHEN NOT statements THEN $2 ELSE '' END, CASE WHEN NOT rows THEN $3 ELSE '' END
FROM guarded WHERE NOT statements OR NOT rows ORDER BY 1`, []string{t.Quoted()}, denyTrigger, denyRows)
	if err != nil {
		return err
	}
	var names, triggers []string
	var subscribed string
	if _, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (name string, err error) {
		var bySubscription bool
		var statements, byRow string
		if err = row.Scan(&name, &bySubscription, &statements, &byRow); bySubscription {
			subscribed = name
		}
		for _, trigger := range []string{statements, byRow} {
			if trigger != "" {
				names, triggers = append(names, name), append(triggers, trigger)
			}
		}
		return name, err
	}); err != nil {
		return err
	}
	if subscribed != "" {
		return fmt.Errorf("%w: a subscription writes to %s, whose apply worker no trigger of this kind denies; mend: drop the subscription there", ErrBlocked, subscribed)
	}
	for i, name := range names {
		when, each := "BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE", "STATEMENT"
		if triggers[i] == denyRows {
			when, each = "AFTER INSERT OR UPDATE OR DELETE", "ROW"
		}
		if err := g.locked(ctx, fmt.Sprintf("CREATE OR REPLACE TRIGGER %s %s ON %s FOR EACH %s EXECUTE FUNCTION millrace.migration_deny(%s); ALTER TABLE %[3]s ENABLE ALWAYS TRIGGER %[1]s",
			triggers[i], when, name, each, literal(g.name))); err != nil {
			return err
		}
	}
	return nil
}

// locked runs statements on a table in a transaction of theirs that nobody queues
// behind for long: all who read or write the table would.
func (g *gate) locked(ctx context.Context, sql string) error {
	for attempt := 0; ; attempt++ {
		_, err := g.conn.Exec(ctx, "BEGIN; SET LOCAL lock_timeout = '"+guardWait+"'; "+sql+"; COMMIT", pgx.QueryExecModeSimpleProtocol)
		if err == nil {
			return nil
		}
		if _, again := g.conn.Exec(ctx, "ROLLBACK"); again != nil {
			return errors.Join(err, again)
		}
		if code(err) != "55P03" {
			return err
		}
		if attempt == guardAttempts {
			return fmt.Errorf("%w: long transactions keep it locked: %w; mend: end them (pg_stat_activity, pg_locks), and try again", ErrBlocked, err)
		}
		if err := wait.For(ctx, lockPause); err != nil {
			return err
		}
	}
}

// remove takes triggers and gate away, so that everybody may write. With keep, the row
// that says which side takes writes stays, for clients that ask.
func (g *gate) remove(ctx context.Context, tables []table.Name, keep bool) error {
	version, err := installed(ctx, g.conn)
	if err != nil || version < 2 {
		return err
	}
	for _, t := range tables {
		rows, err := g.conn.Query(ctx, `
WITH RECURSIVE tree (oid, level) AS (SELECT to_regclass($1)::oid, 0 UNION SELECT i.inhrelid, level + 1 FROM tree JOIN pg_inherits i ON i.inhparent = tree.oid)
SELECT g.tgname || ' ON ' || c.oid::regclass FROM tree JOIN pg_class c ON c.oid = tree.oid JOIN pg_trigger g ON g.tgrelid = c.oid AND g.tgname IN ($2, $3)
ORDER BY level -- from above, or the event trigger might put some back`, t.Quoted(), denyTrigger, denyRows)
		if err != nil {
			return fmt.Errorf("look for triggers at the %s: %w", g.where, err)
		}
		names, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return fmt.Errorf("look for triggers at the %s: %w", g.where, err)
		}
		for _, name := range names {
			if err := g.locked(ctx, "DROP TRIGGER IF EXISTS "+name); err != nil {
				return fmt.Errorf("take trigger %s at the %s away: %w", name, g.where, err)
			}
		}
	}
	statements := []string{"DROP SEQUENCE IF EXISTS " + g.sequence(), "DELETE FROM millrace.migration_applier WHERE name = " + literal(g.name)}
	if !keep {
		statements = append(statements, "DELETE FROM millrace.migration_manager WHERE name = "+literal(g.name))
	}
	for _, sql := range statements {
		if _, err := g.conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("take the gate at the %s away: %w", g.where, err)
		}
	}
	return g.forgetPartitions(ctx)
}

// set closes the gate for a term, or opens it where nobody else can be at work. It takes
// effect at once, whatever becomes of the transaction, so the closing side decides by
// its row what it means.
func (g *gate) set(ctx context.Context, q queryer, term int64, open bool) error {
	value := 2 * term
	if open {
		value++
	}
	var ignored string
	if err := q.QueryRow(ctx, fmt.Sprintf("SELECT setval(%s::regclass, %d)::text", literal(g.sequence()), value), pgx.QueryExecModeSimpleProtocol).Scan(&ignored); err != nil {
		return fmt.Errorf("set the gate at the %s: %w", g.where, err)
	}
	return nil
}

// open opens the gate of a side whose row says that it takes writes in a term, and tells
// clients. The row is locked meanwhile: a process that was stopped for a while may come
// here when others have gone over again. Errors: ErrRunning.
func (g *gate) open(ctx context.Context, term int64) error {
	sql := fmt.Sprintf(`BEGIN; SET LOCAL synchronous_commit = off;
SELECT setval(%[1]s::regclass, %[2]d) FROM (SELECT FROM millrace.migration_manager WHERE name = %[3]s AND active = %[4]s AND term = %[5]d FOR UPDATE) x;
SELECT pg_notify('millrace_migration', %[3]s); COMMIT`, literal(g.sequence()), 2*term+1, literal(g.name), literal(string(g.where)), term)
	results, err := g.conn.PgConn().Exec(ctx, sql).ReadAll()
	if err != nil {
		return fmt.Errorf("open the gate at the %s: %w", g.where, err)
	}
	if len(results) != 5 || len(results[2].Rows) != 1 {
		return fmt.Errorf("open the gate at the %s: %w: it has gone beyond term %d", g.where, ErrRunning, term)
	}
	return nil
}

// tryRow is row, and takes it back.
func (g *gate) tryRow(ctx context.Context, m *manager, then string) error {
	if _, err := g.isOpen(ctx); err != nil {
		return err
	}
	return g.row(ctx, "BEGIN; ", m, then+"; ROLLBACK")
}

// isOpen reports whether the side takes writes.
func (g *gate) isOpen(ctx context.Context) (open bool, err error) {
	if err = g.conn.QueryRow(ctx, "SELECT last_value % 2 = 1 FROM "+g.sequence()).Scan(&open); err != nil {
		err = fmt.Errorf("read the gate at the %s: %w", g.where, err)
	}
	return open, err
}

// row writes the side's row and another token, which is for the term, between other
// statements, in the transaction that is open then. It is one message, because writers
// wait.
func (g *gate) row(ctx context.Context, first string, m *manager, then string) error {
	token, err := newToken()
	if err != nil {
		return err
	}
	sql := first + fmt.Sprintf(`UPDATE millrace.migration_manager SET active = %[2]s, locked = false, term = %[3]d, fence = %[4]s, changed_at = clock_timestamp() WHERE name = %[1]s;
UPDATE millrace.migration_applier SET token = %[5]s WHERE name = %[1]s; SELECT pg_notify('millrace_migration', %[1]s); %[6]s`,
		literal(g.name), literal(string(m.Active)), m.Term, literal(m.Fence), literal(token), then)
	if _, err := g.conn.Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol); err != nil {
		return fmt.Errorf("write who takes writes, at the %s: %w", g.where, err)
	}
	return nil
}

// showApplier lets a session of the target write where others may not.
func (m *Migration) showApplier(ctx context.Context, dst *pgx.Conn) error {
	version, err := installed(ctx, dst)
	if err != nil || version < 2 {
		return err
	}
	if _, err := dst.Exec(ctx, "SELECT set_config('millrace.applier', coalesce((SELECT token FROM millrace.migration_applier WHERE name = $1), ''), false)", m.known()); err != nil {
		return fmt.Errorf("show that changes are applied, at the target: %w", err)
	}
	return nil
}
