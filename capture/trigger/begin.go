package trigger

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture/chunk"
	"github.com/millrace-db/millrace/capture/trigger/keylog"
	"github.com/millrace-db/millrace/internal/wait"
)

// beginEpoch is the epoch of streams whose place is made by Begin.
const beginEpoch millrace.Epoch = 1

// Begin makes the place at which changes begin, with the tables as the catalogs have
// them: for a stream whose rows are copied by somebody else. Opened there, in the
// stream's first epoch, a Source gives the changes of all tables from that place on, and
// no load. Install has made the logs.
//
// The place is a snapshot, whose tick is written. A row that is read by a snapshot which
// is taken after Begin is as it was at that place, or its key is logged behind it: the
// logs were made under locks that waited for everybody who wrote to the tables. So Begin
// waits for nobody.
//
// Position, Time and Catalog of the result are set, nothing else.
func (c *Capture) Begin(ctx context.Context) (*millrace.Checkpoint, error) {
	from, err := c.begin(ctx)
	if err != nil {
		return nil, fmt.Errorf("begin capture of stream %s: %w", c.cfg.Stream, sourceError(err))
	}
	return from, nil
}

func (c *Capture) begin(ctx context.Context) (*millrace.Checkpoint, error) {
	s, err := c.open(ctx, &millrace.Checkpoint{Epoch: beginEpoch})
	if err != nil {
		return nil, err
	}
	defer s.Close() //nolint:errcheck // it has given nothing out
	var w *window
	var aspects map[millrace.TableID]*aspect
	for waits := 1; ; waits++ {
		w, aspects, err = s.begin(ctx)
		if err == nil {
			break
		}
		if !errors.Is(err, errBusy) && !errors.Is(err, errNames) {
			return nil, err
		}
		if waits%lockedLong == 0 {
			c.log.Warn("the place of changes is not to be had: somebody keeps a table or its log locked (see pg_locks)", "error", err)
		}
		if err := wait.For(ctx, c.lockTimeout); err != nil {
			return nil, err
		}
	}
	from := &millrace.Checkpoint{Position: w.position, Time: w.at}
	for _, t := range s.tables { // in the order of their IDs
		schema, err := s.describeFirst(ctx, w, t, aspects[t.id])
		if err != nil {
			return nil, err
		}
		from.Catalog.Schemas = append(from.Catalog.Schemas, schema)
	}
	from.Catalog.LastVersion = s.version
	if err := ask(ctx, w.conn.PgConn(), w.endQuery()); err != nil {
		return nil, fmt.Errorf("write tick: %w", err)
	}
	return from, nil
}

// describeFirst makes the schema that a table begins with, and its marks.
func (s *Source) describeFirst(ctx context.Context, w *window, t *captured, a *aspect) (*millrace.Schema, error) {
	if err := s.intact(ctx, w.conn, t, a.log); err != nil {
		return nil, err
	}
	if !w.facts.Snapshot.Sees(chunk.XID(a.log.CompleteSince)) {
		return nil, fmt.Errorf("%w: the log of %v is being made anew right now; mend: try again", keylog.ErrTriggers, t.name)
	}
	info, err := lookUp(ctx, w.conn, t)
	if err != nil {
		return nil, err
	}
	if info == nil {
		return nil, goneError(t)
	}
	t.log = logOf(a.log)
	schema, err := info.Schema(millrace.ModeTrigger)
	if err != nil {
		return nil, err
	}
	if err := t.fitsLog(schema); err != nil {
		return nil, err
	}
	s.version++
	schema.Version = s.version
	a.marks.Choice = choiceMark(&t.choice)
	t.marks = &a.marks
	return schema, nil
}

// Behind counts the changes that are logged and committed, and that a stream does not
// have at p: keys, each as often as it was logged. It asks over conn, which is in no
// transaction.
func (c *Capture) Behind(ctx context.Context, conn *pgx.Conn, p millrace.Position) (keys int64, err error) {
	if err := fenceMode(p); err != nil {
		return 0, err
	}
	at, err := chunk.ParseSnapshot(p.Snapshot)
	if err != nil {
		return 0, fmt.Errorf("position %v: %w", p, err)
	}
	var text string
	if err := conn.QueryRow(ctx, "SELECT pg_catalog.pg_current_snapshot()::text").Scan(&text); err != nil {
		return 0, fmt.Errorf("count what is behind %v: %w", p, err)
	}
	now, err := chunk.ParseSnapshot(text)
	if err != nil || now.Xmax < at.Xmax { // another server, which Open says more of
		return 0, err
	}
	logs, err := c.looker.Look(ctx, conn)
	if err != nil {
		return 0, err
	}
	u := unseenBy(at, now)
	if u.isEmpty() || len(logs) == 0 {
		return 0, nil
	}
	var parts []string
	for i := range logs {
		l := logOf(&logs[i])
		parts = append(parts, l.read("n", &u, ""))
	}
	query := "SELECT coalesce(sum(n), 0)::bigint FROM (" + strings.Join(parts, " UNION ALL ") + ") l"
	if err := conn.QueryRow(ctx, query).Scan(&keys); err != nil {
		return 0, fmt.Errorf("count what is behind %v: %w", p, err)
	}
	return keys, nil
}

// Ahead is above the tick of every window that was made before it is asked for: one
// with this tick, or a higher one, sees all that has committed by then, where no Source
// of the stream is open meanwhile.
func (c *Capture) Ahead(ctx context.Context, conn *pgx.Conn) (tick uint64, err error) {
	var highest int64
	if err := conn.QueryRow(ctx, "SELECT coalesce(max(tick), 0) FROM millrace.tick WHERE stream = $1 AND epoch = $2", c.cfg.Stream, int64(beginEpoch)).Scan(&highest); err != nil {
		return 0, fmt.Errorf("read ticks: %w", err)
	}
	return uint64(highest) + 1, nil
}

// Installed reports whether logs of the stream are there.
func (c *Capture) Installed(ctx context.Context, conn *pgx.Conn) (there bool, err error) {
	if err = conn.QueryRow(ctx, "SELECT to_regclass('millrace.key_log') IS NOT NULL").Scan(&there); err == nil && there {
		err = conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM millrace.key_log WHERE stream = $1)", c.cfg.Stream).Scan(&there)
	}
	if err != nil {
		return false, fmt.Errorf("look for logs of stream %s: %w", c.cfg.Stream, err)
	}
	return there, nil
}
