package migrations

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/internal/control"
)

// fencePrefix is that of the message that is written where writers go over.
const fencePrefix = "millrace_fence"

// backSuffix names the way back, which is a migration of its own: from the target to
// the source, with its own slot, place and records. It has nothing to copy. Its
// changes begin at the fence that is written at the target when writers go over: what
// comes before it are changes that have come from the source, so nothing is ever sent
// back to where it came from. The same holds for the way there, once writers go back.
const backSuffix = "_back"

// backward makes the way back of a migration. Columns that only the target has are
// left out there; the source's that do not move keep what they have.
func (m *Migration) backward(ctx context.Context, src, dst *pgx.Conn) (*Migration, error) {
	cfg := m.cfg
	cfg.Name += backSuffix
	cfg.SourceURL, cfg.TargetURL = m.cfg.TargetURL, m.cfg.SourceURL
	cfg.Capture, cfg.TargetCapture = m.cfg.TargetCapture, m.cfg.Capture
	cfg.Tables = nil
	for i := range m.cfg.Tables {
		t := &m.cfg.Tables[i]
		one, problems, err := readMapping(ctx, src, dst, t, nil)
		if err == nil {
			err = capture.FirstError(problems)
		}
		if err != nil {
			return nil, err
		}
		back := Table{From: t.To, To: t.From}
		for _, c := range one.carried {
			if c.source != c.target {
				if back.Columns == nil {
					back.Columns = make(map[string]string)
				}
				back.Columns[c.source] = c.target
			}
		}
		for _, c := range one.others {
			if !slices.Contains(back.Omit, c) {
				back.Omit = append(back.Omit, c)
			}
		}
		if !one.loose {
			cfg.Tables = append(cfg.Tables, back)
			continue
		}
		if cfg.Capture == millrace.ModeTrigger { // which needs columns, and no index over all partitions
			back.key = one.keyNames()
			cfg.Tables = append(cfg.Tables, back)
			continue
		}
		parts, err := partsOf(ctx, dst, back)
		if err != nil {
			return nil, err
		}
		cfg.Tables = append(cfg.Tables, parts...)
	}
	b, err := New(cfg)
	if err != nil {
		return nil, err
	}
	b.base, b.passed, b.written = m.known(), m.passed, m.written
	return b, nil
}

// partsOf returns the partitions of a table whose key is not enforced over all of them:
// they are captured one by one, since Postgres captures no table without a key.
func partsOf(ctx context.Context, q queryer, t Table) ([]Table, error) {
	rows, err := q.Query(ctx, strings.ReplaceAll(tree, "$1::bigint::oid", "to_regclass($1)::oid")+`
SELECT n.nspname::text, c.relname::text, coalesce(pg_get_partition_constraintdef(c.oid), 'true')
FROM tree JOIN pg_class c ON c.oid = tree.oid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'r' ORDER BY 1, 2`, t.From.Quoted())
	if err != nil {
		return nil, fmt.Errorf("look up partitions of %v: %w", t.From, err)
	}
	parts, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (Table, error) {
		part := t
		return part, row.Scan(&part.From.Schema, &part.From.Name, &part.part)
	})
	if err != nil {
		return nil, fmt.Errorf("look up partitions of %v: %w", t.From, err)
	}
	return parts, nil
}

// arm makes all that a way needs whose changes begin at a fence that is still to come:
// its changes are kept from now on. It is made anew each time, so that it keeps no
// more than it has to. A slot waits for transactions that run at the way's source.
func (m *Migration) arm(ctx context.Context) error {
	src, dst, err := m.both(ctx)
	if err != nil {
		return err
	}
	defer capture.Close(src)
	defer capture.Close(dst)
	if err := control.Migrate(ctx, src); err != nil {
		return err
	}
	for _, conn := range []*pgx.Conn{src, dst} {
		if err := install(ctx, conn); err != nil {
			return fmt.Errorf("make the tables of migrations: %w", err)
		}
	}
	for i := range m.cfg.Tables {
		_, problems, err := readMapping(ctx, src, dst, &m.cfg.Tables[i], nil)
		if err == nil {
			err = capture.FirstError(problems)
		}
		if err != nil {
			return fmt.Errorf("the other way: %w", err)
		}
	}
	if _, _, err := m.states(ctx, src, dst); err != nil {
		return err
	}
	if err := m.register(ctx, src, dst, []string{}); err != nil {
		return err
	}
	c, err := m.capture(ctx, src)
	if err != nil {
		return err
	}
	if err := c.Install(ctx); err != nil {
		return err
	}
	from, err := c.Begin(ctx)
	if err != nil {
		return err
	}
	if err := identify(from); err != nil {
		return err
	}
	if _, err := dst.Exec(ctx, "DELETE FROM millrace.migration_place WHERE name = $1", m.cfg.Name); err != nil {
		return fmt.Errorf("forget where the other way was: %w", err)
	}
	for _, conn := range []*pgx.Conn{src, dst} {
		if _, err := conn.Exec(ctx, "DELETE FROM millrace.migration_batch WHERE name = $1", m.cfg.Name); err != nil {
			return fmt.Errorf("forget batches of the other way: %w", err)
		}
	}
	if err := m.notePlace(ctx, dst, from); err != nil {
		return err
	}
	return m.done(ctx, src, dst, StepArmed)
}

// disarm gives up a way that nobody needs now: its slot would keep WAL for nothing.
func (m *Migration) disarm(ctx context.Context) error {
	src, dst, err := m.both(ctx)
	if err != nil {
		return err
	}
	defer capture.Close(src)
	defer capture.Close(dst)
	s, err := m.read(ctx, dst)
	if err != nil || s == nil {
		return err
	}
	c, err := m.capture(ctx, src)
	if err != nil {
		return err
	}
	if err := c.Release(ctx); err != nil || s.Step == StepArmed {
		return err
	}
	return m.done(ctx, src, dst, StepArmed)
}

// toFence takes an armed way to its fence: changes before it are read and not
// applied, and behind it the two sides are equal. It may be called again.
func (m *Migration) toFence(ctx context.Context, fence string) error {
	src, dst, err := m.both(ctx)
	if err != nil {
		return err
	}
	defer capture.Close(src)
	defer capture.Close(dst)
	if err := m.take(ctx, dst); err != nil {
		return err
	}
	at, err := settledPlace(ctx, dst, m.cfg.Name)
	if err != nil {
		return err
	}
	if at == nil {
		return fmt.Errorf("%w: the way that writers have gone over has no place; mend: millrace migrate abort -f FILE, and begin again in the other direction", ErrChanged)
	}
	var done bool
	if err := dst.QueryRow(ctx, "SELECT converged_at IS NOT NULL FROM millrace.migration_place WHERE name = $1", m.cfg.Name).Scan(&done); err != nil {
		return fmt.Errorf("read the place of %s: %w", m.cfg.Name, err)
	}
	c, err := m.capture(ctx, src)
	if err != nil {
		return err
	}
	if !done {
		if err := m.skip(ctx, c, at, fence, func(*millrace.Head) error { return nil }); err != nil {
			return err
		}
		tag, err := dst.Exec(ctx, `
UPDATE millrace.migration_place SET checkpoint = $2, index = $3::text::numeric, position = $4, token = $5::text::numeric, horizon = $5::text::numeric, source_time = $6,
    applied_at = clock_timestamp(), converged_at = clock_timestamp()
WHERE name = $1 AND converged_at IS NULL`, m.cfg.Name, millrace.AppendCheckpoint(nil, at), at.Index.String(), at.Position.String(), fmt.Sprint(at.Position.Token()), at.Time)
		if err == nil && tag.RowsAffected() != 1 {
			err = ErrRunning
		}
		if err != nil {
			return fmt.Errorf("note the place of the fence: %w", err)
		}
	}
	return m.done(ctx, src, dst, StepFollowing)
}

// skip moves at behind the fence, and shows each entry before it, which is valid during
// the call.
func (m *Migration) skip(ctx context.Context, c capturer, at *millrace.Checkpoint, fence string, each func(*millrace.Head) error) error {
	if !c.Skips() {
		return nil
	}
	from, err := c.Open(ctx, at)
	if err != nil {
		return err
	}
	defer from.Close() //nolint:errcheck // what was not taken comes again
	var hash millrace.UnitHash
	for found := false; !found; {
		u, err := from.Next(ctx, ctx)
		if err == nil && u == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		hash.Reset()
		err = readThrough(u, func(h *millrace.Head) error {
			hash.Add(h.Table, h.Raw)
			at.Index++
			is, err := isFence(h, fence)
			found = found || is
			if err == nil {
				err = each(h)
			}
			if h.Kind == millrace.KindSchema || h.Kind == millrace.KindLoadBegin || h.Kind == millrace.KindDrop {
				err = fmt.Errorf("%w: table %v; mend: millrace migrate abort -f FILE, and begin again", ErrChanged, h.Table)
			}
			return err
		}, hash.Absorb)
		if err != nil {
			return err
		}
		at.Chain = hash.Chain(at.Chain)
		at.Position, at.Time = u.Position, u.Time
	}
	return nil
}

// readThrough shows each entry of a unit, which is valid during the call, calls shown
// behind each run of them, before the next one takes its place, and closes the unit.
func readThrough(u *millrace.Unit, each func(*millrace.Head) error, shown func()) (err error) {
	for last := false; !last && err == nil; {
		var run []byte
		if run, err = u.Body.Next(maxRun); errors.Is(err, io.EOF) {
			err = fmt.Errorf("%w: a unit has no end", millrace.ErrMalformed)
		}
		for len(run) > 0 && err == nil {
			var h millrace.Head
			if run, err = millrace.NextHead(run, &h); err == nil {
				last = last || h.Last
				err = each(&h)
			}
		}
		shown()
	}
	return errors.Join(err, u.Body.Close())
}

// fenceSQL writes a fence at the way's source, within the transaction that runs it: the
// changes of transactions that end behind that one come behind the fence. Triggers need
// none, and it does nothing.
func (m *Migration) fenceSQL(fence string) string {
	if m.cfg.Capture == millrace.ModeTrigger {
		return "SELECT"
	}
	return fmt.Sprintf("SELECT pg_logical_emit_message(true, %s, %s::text)", literal(fencePrefix), literal(fence))
}

// isFence reports whether an entry is the message of a fence.
func isFence(h *millrace.Head, fence string) (bool, error) {
	if h.Kind != millrace.KindMessage {
		return false, nil
	}
	var e millrace.Entry
	if err := millrace.DecodeEntry(h.Body, &e); err != nil {
		return false, err
	}
	return e.Message.Prefix == fencePrefix && string(e.Message.Content) == fence, nil
}
