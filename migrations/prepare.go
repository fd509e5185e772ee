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

// Prepare makes what the migration needs: its state in both databases, the tables
// that the target lacks, and the publication. With dry it writes the statements that
// it would run there, and changes nothing. What is there and fits is left as it is.
// Errors: ErrBlocked, with all that the plan finds.
func (m *Migration) Prepare(ctx context.Context, dry io.Writer) error {
	src, dst, err := m.both(ctx)
	if err != nil {
		return err
	}
	defer capture.Close(src)
	defer capture.Close(dst)
	_, d, err := m.states(ctx, src, dst)
	if err != nil {
		return err
	}
	if d != nil && d.Step != StepNone {
		if _, err := m.at(ctx, src, dst); err != nil {
			return err
		}
		_, err := d.Step.Next(StepPrepared)
		return err
	}
	if dry == nil {
		if err := m.take(ctx, dst); err != nil {
			return err
		}
	}
	_, blocked, err := m.plan(ctx, src, dst)
	if err == nil {
		err = blocked
	}
	if err != nil {
		return err
	}
	making, _, err := m.toMake(ctx, src, dst)
	if err != nil {
		return err
	}
	c, err := m.capture(ctx, src)
	if err != nil {
		return err
	}
	if dry != nil {
		return m.dryRun(ctx, dry, making, c)
	}
	if err := control.Migrate(ctx, src); err != nil {
		return err
	}
	for _, conn := range []*pgx.Conn{src, dst} {
		if err := install(ctx, conn); err != nil {
			return fmt.Errorf("make the tables of migrations: %w", err)
		}
		// Of one of this name that was finished.
		if _, err := conn.Exec(ctx, "DELETE FROM millrace.migration_manager WHERE name = $1", m.cfg.Name); err != nil {
			return fmt.Errorf("forget who took writes before: %w", err)
		}
	}
	made, err := m.makeTables(ctx, dst, making)
	if err != nil {
		return err
	}
	if err := m.register(ctx, src, dst, made); err != nil {
		return err
	}
	if err := c.Install(ctx); err != nil {
		return err
	}
	return m.done(ctx, src, dst, StepPrepared)
}

func (m *Migration) dryRun(ctx context.Context, w io.Writer, making map[int]*definition, c capturer) error {
	statements, err := c.Statements(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "-- at both sides: schema millrace, with what a migration keeps (sql/migrations)\n-- at the source\n%s-- at the target\n", statements)
	for i := range m.cfg.Tables {
		if d := making[i]; d != nil {
			for _, text := range slices.Concat(d.before, d.table) {
				fmt.Fprintf(w, "%s;\n", text)
			}
		}
	}
	for i := range m.cfg.Tables {
		if d := making[i]; d != nil && len(d.after) > 0 {
			fmt.Fprintf(w, "-- when the rows of %v are there\n%s;\n", m.cfg.Tables[i].To, strings.Join(d.after, ";\n"))
		}
	}
	return nil
}

// makeTables makes the tables that the target lacks, all or none.
func (m *Migration) makeTables(ctx context.Context, dst *pgx.Conn, making map[int]*definition) ([]string, error) {
	made := []string{}
	err := pgx.BeginFunc(ctx, dst, func(tx pgx.Tx) error {
		for i := range m.cfg.Tables {
			d := making[i]
			if d == nil {
				continue
			}
			for _, text := range slices.Concat(d.before, d.table) {
				if _, err := tx.Exec(ctx, text); err != nil {
					return fmt.Errorf("make table %v at the target: %s: %w", m.cfg.Tables[i].To, text, err)
				}
			}
			made = append(made, m.cfg.Tables[i].To.String())
		}
		return nil
	})
	for _, name := range made {
		m.log.Info("table made at the target", "table", name)
	}
	return made, err
}

// register enters the migration at both sides under one ID: the source's, which is
// entered first.
func (m *Migration) register(ctx context.Context, src, dst *pgx.Conn, made []string) error {
	text, err := m.tablesText()
	if err != nil {
		return err
	}
	srcSystem, err := systemOf(ctx, src)
	if err != nil {
		return err
	}
	dstSystem, err := systemOf(ctx, dst)
	if err != nil {
		return err
	}
	const enter = `
INSERT INTO millrace.migration AS m (name, id, side, system, peer, step, tables, made)
VALUES ($1, coalesce(nullif($2, '')::uuid, gen_random_uuid()), $3, $4, $5, '', $6::text::jsonb, $7)
ON CONFLICT (name) DO UPDATE SET tables = excluded.tables, made = m.made || excluded.made
RETURNING id::text`
	var id string
	if err := src.QueryRow(ctx, enter, m.cfg.Name, "", string(source), srcSystem, dstSystem, text, []string{}).Scan(&id); err != nil {
		return fmt.Errorf("enter migration %s at the source: %w", m.cfg.Name, err)
	}
	if err := m.registerStream(ctx, src, id); err != nil {
		return err
	}
	if err := dst.QueryRow(ctx, enter, m.cfg.Name, id, string(target), dstSystem, srcSystem, text, made).Scan(&id); err != nil {
		return fmt.Errorf("enter migration %s at the target: %w", m.cfg.Name, err)
	}
	return nil
}

// registerStream enters what is captured in the source's registry of streams, so that
// DDL on the tables is told, and the control schema stays while it is needed. It has
// no topic.
func (m *Migration) registerStream(ctx context.Context, src *pgx.Conn, id string) error {
	if err := m.checkCapture(ctx, src); err != nil {
		return err
	}
	slot := ""
	if m.cfg.Capture == millrace.ModeWAL {
		slot = m.slot()
	}
	var there string
	err := src.QueryRow(ctx, `
WITH entered AS (
    INSERT INTO millrace.stream (name, id, capture, topic, topic_id, publication, slot) VALUES ($1, $2::text::uuid, $4, '', '', nullif($3, ''), nullif($3, ''))
    ON CONFLICT (name) DO NOTHING RETURNING id
)
SELECT id::text FROM entered UNION ALL SELECT id::text FROM millrace.stream WHERE name = $1`, m.stream(), id, slot, captureName(m.cfg.Capture)).Scan(&there)
	if err != nil {
		return fmt.Errorf("enter stream %s at the source: %w", m.stream(), err)
	}
	if there != id {
		return fmt.Errorf("%w: the source has a stream %s of somebody else's; mend: choose another name for the migration", ErrOther, m.stream())
	}
	return nil
}

// Abort takes away what the migration has made but for the target's tables: slots,
// publications, gates and state. What is not there is no error. The source is as it
// was. Errors: ErrStep, where the target takes writes.
func (m *Migration) Abort(ctx context.Context) error {
	src, dst, err := m.both(ctx)
	if err != nil {
		return err
	}
	defer capture.Close(src)
	defer capture.Close(dst)
	if err := m.atSource(ctx, src, dst); err != nil {
		return err
	}
	if d, err := m.read(ctx, dst); err == nil && d != nil && d.Side == target && d.Step != StepNone {
		w, err := m.openWays(ctx)
		if err == nil {
			defer w.close()
		}
		if gone := m.atSource(ctx, src, dst); gone != nil { // it may have waited while they went over
			return gone
		}
		if err == nil {
			return m.takeAway(ctx, w, false)
		}
		if !millrace.NeedsOperator(err) {
			return err
		}
		// Tables that do not fit any more have no way back either.
	}
	for _, g := range []*gate{{conn: src, where: source, name: m.cfg.Name}, {conn: dst, where: target, name: m.cfg.Name}} {
		if err := g.remove(ctx, m.tables(g.where), false); err != nil {
			return err
		}
	}
	return m.abort(ctx)
}

// atSource refuses what would leave writers alone at the target. Errors: ErrStep.
func (m *Migration) atSource(ctx context.Context, src, dst *pgx.Conn) error {
	for _, conn := range []*pgx.Conn{src, dst} {
		now, err := readManager(ctx, conn, m.cfg.Name)
		if err != nil {
			return err
		}
		if now != nil && now.Active == target {
			if s, d, err := m.states(ctx, src, dst); err != nil || s == nil && d == nil {
				return errors.Join(err, m.notBegun(ctx, dst))
			}
			return fmt.Errorf("%w: the target takes writes; mend: millrace migrate rollback -f FILE first, or millrace migrate finish -f FILE to stay there", ErrStep)
		}
	}
	return nil
}

// abort is Abort for one way.
func (m *Migration) abort(ctx context.Context) error {
	src, dst, err := m.both(ctx)
	if err != nil {
		return err
	}
	defer capture.Close(src)
	defer capture.Close(dst)
	if err := m.take(ctx, dst); err != nil {
		return err
	}
	if err := m.checkCapture(ctx, src); err != nil {
		return err
	}
	c, err := m.capture(ctx, src)
	if err != nil {
		return err
	}
	if err := c.Uninstall(ctx); err != nil {
		return err
	}
	for _, x := range []struct {
		conn  *pgx.Conn
		where side
	}{{dst, target}, {src, source}} {
		s, err := m.read(ctx, x.conn)
		if err != nil {
			return err
		}
		if s == nil {
			continue
		}
		if s.Side != x.where {
			return fmt.Errorf("%w: the %s takes part in a migration %s as its %s; mend: correct the URLs of the migration file", ErrOther, x.where, m.cfg.Name, s.Side)
		}
		if x.where == source {
			if _, err := x.conn.Exec(ctx, "DELETE FROM millrace.stream WHERE name = $1 AND id = $2::text::uuid", m.stream(), s.ID); err != nil {
				return fmt.Errorf("take migration %s away from the source: %w", m.cfg.Name, err)
			}
		}
		if _, err := x.conn.Exec(ctx, "DELETE FROM millrace.migration WHERE name = $1", m.cfg.Name); err != nil {
			return fmt.Errorf("take migration %s away from the %s: %w", m.cfg.Name, x.where, err)
		}
		m.pass("taken away: state at the " + string(x.where))
	}
	m.log.Info("what the migration had made is taken away")
	return nil
}
