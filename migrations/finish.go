package migrations

import (
	"context"
	"fmt"

	"github.com/millrace-db/millrace/capture"
)

// Finish takes gates, ways and state away where writers are to stay: the source is
// closed no more, and no way leads back. The rows of millrace.migration_manager stay,
// for clients that ask. Errors: ErrStep, while
// writers have not gone over.
func (m *Migration) Finish(ctx context.Context) error {
	if begun, err := m.finishing(ctx); err != nil || begun {
		return err
	}
	w, err := m.openWays(ctx)
	if err != nil {
		return err
	}
	defer w.close()
	now, err := w.decided(ctx)
	if err != nil {
		return err
	}
	if err := w.settle(ctx, now); err != nil {
		return err
	}
	if now.Active != target {
		return fmt.Errorf("%w: the source takes writes; mend: millrace migrate cutover -f FILE, or millrace migrate abort -f FILE to give the migration up", ErrStep)
	}
	return w.m.takeAway(ctx, w, true)
}

// takeAway removes all that the migration has made, but for the tables; keep is
// gate.remove's.
func (m *Migration) takeAway(ctx context.Context, w *ways, keep bool) error {
	if err := w.back.abort(ctx); err != nil {
		return err
	}
	m.pass("taken away: the way back")
	for _, where := range []side{source, target} {
		if err := w.gates[where].remove(ctx, m.tables(where), keep); err != nil {
			return err
		}
		m.pass("taken away: gate at the " + string(where))
	}
	return m.abort(ctx)
}

// finishing brings a Finish to its end that was cut off, and reports whether one was,
// or has been done: both rows of millrace.migration_manager have writers at the target,
// and a gate or the state of a side is gone. The way back had gone before these.
func (m *Migration) finishing(ctx context.Context) (begun bool, err error) {
	src, dst, err := m.both(ctx)
	if err != nil {
		return false, err
	}
	defer capture.Close(src)
	defer capture.Close(dst)
	s, d, err := m.states(ctx, src, dst)
	if err != nil {
		return false, err
	}
	begun = s == nil || d == nil
	gates := []*gate{{conn: src, where: source, name: m.cfg.Name}, {conn: dst, where: target, name: m.cfg.Name}}
	for _, g := range gates {
		now, err := readManager(ctx, g.conn, m.cfg.Name)
		if err != nil || now == nil || now.Active != target {
			return false, err
		}
		var there bool
		if err := g.conn.QueryRow(ctx, "SELECT to_regclass($1) IS NOT NULL", g.sequence()).Scan(&there); err != nil {
			return false, fmt.Errorf("look for the gate at the %s: %w", g.where, err)
		}
		begun = begun || !there
	}
	if !begun || s == nil && d == nil {
		return begun, nil
	}
	if err = m.takeOver(ctx, dst); err == nil {
		m, err = m.aside(ctx, src)
	}
	if err != nil {
		return false, err
	}
	for _, g := range gates {
		if err := g.remove(ctx, m.tables(g.where), true); err != nil {
			return false, err
		}
	}
	return true, m.abort(ctx)
}
