package migrations

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/capture/table"
	"github.com/millrace-db/millrace/internal/wait"
)

// ways are the two ways of a migration with gates at both sides.
type ways struct {
	m, back  *Migration
	src, dst *pgx.Conn
	gates    map[side]*gate
}

// way is the one that leads away from a side.
func (w *ways) from(where side) *Migration {
	if where == source {
		return w.m
	}
	return w.back
}

// converged refuses to have writers go over from a side whose way has not come that far.
// Errors: ErrStep.
func (w *ways) converged(ctx context.Context, from side) error {
	src, dst := w.src, w.dst
	if from == target {
		src, dst = dst, src
	}
	d, err := w.from(from).at(ctx, src, dst)
	if err != nil {
		return err
	}
	again, err := d.Step.Next(StepFollowing)
	if err == nil && again {
		err = fmt.Errorf("%w: the %s has not converged; mend: millrace migrate follow -f FILE", ErrStep, from.other())
	}
	return err
}

func (s side) other() side {
	if s == source {
		return target
	}
	return source
}

func (w *ways) close() {
	capture.Close(w.src)
	capture.Close(w.dst)
}

// openWays connects to both sides, and takes for this process who decides which of them
// takes writes. Errors: ErrStep, ErrRunning.
func (m *Migration) openWays(ctx context.Context) (*ways, error) {
	src, dst, err := m.both(ctx)
	if err != nil {
		return nil, err
	}
	w := &ways{src: src, dst: dst, gates: map[side]*gate{source: {conn: src, where: source, name: m.cfg.Name}, target: {conn: dst, where: target, name: m.cfg.Name}}}
	if err = m.takeOver(ctx, dst); err == nil { // before anything is looked at: it may wait
		m, err = m.aside(ctx, src)
	}
	if err != nil {
		w.close()
		return nil, err
	}
	w.m = m
	d, err := m.at(ctx, src, dst)
	if err == nil && d.Step == StepNone {
		err = m.notBegun(ctx, dst)
	}
	if err == nil {
		err = m.forgetYield(ctx, src, dst)
	}
	if err == nil {
		w.back, err = m.backward(ctx, src, dst)
	}
	if err != nil {
		w.close()
		return nil, err
	}
	return w, nil
}

// notBegun says what to do where no step has been taken, or finish has taken them all
// away. It returns ErrStep.
func (m *Migration) notBegun(ctx context.Context, dst queryer) error {
	term, err := m.finished(ctx, dst)
	if err != nil {
		return err
	}
	if term > 0 {
		return fmt.Errorf("%w: the migration is finished, and writers are at the target; mend: nothing is left to be done, and no way leads back", ErrStep)
	}
	return fmt.Errorf("%w: the migration has not begun; mend: millrace migrate prepare -f FILE", ErrStep)
}

// finished returns the term at which a migration of the name was finished with writers at
// the target, 0 if none was with this database as its target.
func (m *Migration) finished(ctx context.Context, dst queryer) (term int64, err error) {
	if version, err := installed(ctx, dst); err != nil || version < 7 {
		return 0, err
	}
	err = dst.QueryRow(ctx, `
SELECT coalesce(max(term), 0) FROM millrace.migration_manager g WHERE name = $1 AND active = 'target' AND side = 'target'
AND NOT EXISTS (SELECT FROM millrace.migration m WHERE m.name = g.name)`, m.cfg.Name).Scan(&term)
	if err != nil {
		return 0, fmt.Errorf("look whether migration %s is finished: %w", m.cfg.Name, err)
	}
	return term, nil
}

// takeOver takes for this process who decides which side takes writes, until the
// connection to the target ends. Whoever begins to follow, or guards a new partition, has
// it for a moment, and whoever goes over for longer: it waits for them. Errors: ErrRunning.
func (m *Migration) takeOver(ctx context.Context, dst *pgx.Conn) error {
	told := false
	return m.takeLock(ctx, dst, goesOver, func(waited time.Duration) error {
		switch {
		case waited > overLimit:
			return fmt.Errorf("%w (%s): writers have been going over for %v; end it, or wait for it", ErrRunning, m.cfg.Name, waited.Round(time.Second))
		case waited > letGoLimit && !told:
			told = true
			m.log.Info("waiting for another process, with which writers go over or which begins to follow", "at_most", overLimit)
		}
		return nil
	})
}

// overLimit is how long it waits: a guard's locks, and most of what goes over, take less.
const overLimit = 2 * time.Minute

// yieldLimit is how long the process that follows may take to let go.
const yieldLimit = 30 * time.Second

// takeFromFollower is take, and asks the process that follows to let go first. It goes
// on once letGo has been called and the migration is free.
func (m *Migration) takeFromFollower(ctx context.Context, dst *pgx.Conn) (letGo func(), err error) {
	yield := func(ctx context.Context, yes bool) error {
		if _, err := dst.Exec(ctx, "UPDATE millrace.migration SET yield = $2 WHERE name = $1", m.cfg.Name, yes); err != nil {
			return fmt.Errorf("ask the process that follows to let go: %w", err)
		}
		return nil
	}
	letGo = func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		if err := yield(ctx, false); err != nil && !dst.IsClosed() {
			m.log.Warn("the process that follows does not know that it may go on", "error", err)
		}
	}
	if err := yield(ctx, true); err != nil {
		return nil, err
	}
	for began := time.Now(); ; {
		err := m.take(ctx, dst)
		if err == nil {
			return letGo, nil
		}
		if !errors.Is(err, ErrRunning) || time.Since(began) > yieldLimit {
			letGo()
			return nil, err
		}
		if err := wait.For(ctx, lockPause); err != nil {
			letGo()
			return nil, err
		}
	}
}

// forgetYield takes back what a process has asked for that was killed since.
func (m *Migration) forgetYield(ctx context.Context, src, dst *pgx.Conn) error {
	for _, conn := range []*pgx.Conn{src, dst} {
		version, err := installed(ctx, conn)
		if err == nil && version >= 2 {
			_, err = conn.Exec(ctx, "UPDATE millrace.migration SET yield = false WHERE name IN ($1, $2) AND yield", m.cfg.Name, m.cfg.Name+backSuffix)
		}
		if err != nil {
			return fmt.Errorf("let the process that follows go on: %w", err)
		}
	}
	return nil
}

// tables are the migration's at a side.
func (m *Migration) tables(where side) []table.Name {
	var names []table.Name
	for i := range m.cfg.Tables {
		if where == source {
			names = append(names, m.cfg.Tables[i].From)
		} else {
			names = append(names, m.cfg.Tables[i].To)
		}
	}
	return names
}

// decided returns who takes writes: what the newer of the two rows says. It brings to
// its end what was cut off. The rows are locked meanwhile: a session that was going
// over when its process ended may still be at work, and has its row locked first.
func (w *ways) decided(ctx context.Context) (now *manager, err error) {
	version, err := installed(ctx, w.src)
	if err != nil || version < 2 {
		return &manager{Active: source}, err
	}
	if version, err = installed(ctx, w.dst); err != nil || version < 2 {
		return &manager{Active: source}, err
	}
	rows := make(map[side]*manager)
	for _, where := range []side{source, target} {
		tx, err := w.gates[where].conn.Begin(ctx)
		if err != nil {
			return nil, fmt.Errorf("look who takes writes, at the %s: %w", where, err)
		}
		defer tx.Rollback(context.WithoutCancel(ctx)) //nolint:errcheck // it has been committed, or its connection is gone
		if _, err := tx.Exec(ctx, "SELECT FROM millrace.migration_manager WHERE name = $1 FOR UPDATE", w.m.cfg.Name); err != nil {
			return nil, fmt.Errorf("look who takes writes, at the %s: %w", where, err)
		}
		if rows[where], err = readManager(ctx, tx, w.m.cfg.Name); err != nil {
			return nil, err
		}
	}
	a, b := rows[source], rows[target]
	if a == nil || b == nil {
		return &manager{Active: source}, nil
	}
	now, late := a, target
	if b.Term > a.Term {
		now, late = b, source
	}
	if a.Term != b.Term {
		// The side that closed has written its row, and the other one has not.
		if late != now.Active {
			return nil, fmt.Errorf("%w: the rows of the two sides contradict each other: %+v at the source, %+v at the target; mend: see which side takes writes, and correct millrace.migration_manager at both", ErrOther, *a, *b)
		}
		if err := w.gates[late].row(ctx, "", now, w.from(late).fenceSQL(now.Fence)); err != nil {
			return nil, err
		}
	}
	// The other side's is closed before this one's is opened.
	for _, where := range []side{now.Active.other(), now.Active} {
		g := w.gates[where]
		open, err := g.isOpen(ctx)
		if err != nil {
			return nil, err
		}
		want := where == now.Active
		if open != want {
			w.m.log.Warn("going over was cut off", "side", string(where), "open", want)
		}
		if open && !want {
			if err := g.set(ctx, g.conn, now.Term, false); err != nil {
				return nil, err
			}
		}
		if _, err := g.conn.Exec(ctx, "COMMIT"); err != nil {
			return nil, fmt.Errorf("write who takes writes, at the %s: %w", where, err)
		}
		if want && !open {
			if err := g.open(ctx, now.Term); err != nil {
				return nil, err
			}
		}
	}
	return now, nil
}

// opens has the opening side take writes. The fence of the way back is in the
// transaction with its row: behind all that has come from the other side, and before
// what anybody writes here.
//
// Neither commit is waited for: a write that this side accepts is behind both in its
// WAL, so where they are lost no such write is left, and the other side's row tells
// what to do.
func (w *ways) opens(ctx context.Context, to *manager) error {
	g := w.gates[to.Active]
	if err := g.row(ctx, "BEGIN; SET LOCAL synchronous_commit = off; ", to, w.from(to.Active).fenceSQL(to.Fence)+"; COMMIT"); err != nil {
		if _, again := g.conn.Exec(ctx, "ROLLBACK"); again != nil {
			err = errors.Join(err, again)
		}
		return err
	}
	w.m.pass("opening")
	return g.open(ctx, to.Term)
}

// settle takes the way that leads away from the side that takes writes to its fence,
// and gives the other one up.
func (w *ways) settle(ctx context.Context, now *manager) error {
	way := w.from(now.Active)
	src, dst, err := way.both(ctx)
	if err != nil {
		return err
	}
	s, err := way.read(ctx, dst)
	capture.Close(src)
	capture.Close(dst)
	if err != nil {
		return err
	}
	if s != nil && s.Step == StepArmed && now.Fence != "" {
		if err := way.toFence(ctx, now.Fence); err != nil {
			return err
		}
		w.m.pass("at the fence")
	}
	return w.from(now.Active.other()).disarm(ctx)
}

func (m *Migration) pass(step string) {
	if m.passed != nil {
		m.passed(step)
	}
}
