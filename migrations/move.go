package migrations

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Writers go over in this order, and come back in the same one with the sides
// exchanged. What stands between hold and open is the pause that they notice:
//
//	arm     the way back begins to keep changes; gates stand on both sides
//	prove   a row of each table goes the way back, and is taken back at its end
//	drain   changes are applied until nearly none is left
//	hold    the tables are locked at the closing side: writers wait
//	fence   a message is written there, and changes are applied up to it
//	ahead   meanwhile sequences of the opening side are set to where the closing side's are
//	count   what either side has counted is compared
//	close   the closing side's gate is closed, its row says who takes writes; commit
//	open    the opening side's row says so too, with a message that the way back begins
//	        behind; then its gate is opened
//	settle  the way back comes to its fence, the way there is given up
//
// The row of the closing side decides. Killed before its commit, nothing has happened;
// killed behind it, the rest is done by whoever comes next. In between nobody can
// write, as the gates show: the closing one denies at once, the other one still does.

// Pause is what writers noticed, or would have.
type Pause struct {
	// Locked is how long it took until no writer was at work, Drained how long until
	// the other side had everything, Total from the first writer that waited until the
	// other side took writes, or would have.
	Locked  time.Duration `json:"locked"`
	Drained time.Duration `json:"drained"`
	Total   time.Duration `json:"total"`
	// Steps are what was done meanwhile, each with how long after the first writer
	// waited. Some are done at once.
	Steps []PauseStep `json:"steps"`
	// Active is the side that takes writes now.
	Active string `json:"active"`
	Term   int64  `json:"term"`
}

// PauseStep is a step of a pause, and when it was done.
type PauseStep struct {
	Step string        `json:"step"`
	At   time.Duration `json:"at"`
}

// ErrBudget occurs when going over would have held writers for longer than the pause
// budget. Nothing has changed then, and writers go on where they were. Try again when
// there is less to do, or look for long transactions.
var ErrBudget = errors.New("writers would have been held for too long")

// Rehearse does all that Cutover does but going over, and says how long writers were
// held. It may be called as often as is wanted. Errors: those of Cutover.
func (m *Migration) Rehearse(ctx context.Context) (*Pause, error) {
	return m.move(ctx, source, true)
}

// Cutover has the target take writes in place of the source. Killed, it is either
// undone or brought to its end by the next call of Cutover, Rollback or Follow. Errors:
// ErrStep, ErrRunning, ErrBudget, ErrBlocked, and those of Follow.
func (m *Migration) Cutover(ctx context.Context) (*Pause, error) {
	return m.move(ctx, source, false)
}

// Rollback has the source take writes again. Errors: those of Cutover.
func (m *Migration) Rollback(ctx context.Context) (*Pause, error) {
	return m.move(ctx, target, false)
}

// move has writers go over from a side.
func (m *Migration) move(ctx context.Context, from side, rehearse bool) (*Pause, error) {
	w, err := m.openWays(ctx)
	if err != nil {
		return nil, err
	}
	defer w.close()
	for _, conn := range []*pgx.Conn{w.src, w.dst} {
		if err := install(ctx, conn); err != nil {
			return nil, fmt.Errorf("make the tables of migrations: %w", err)
		}
	}
	now, err := w.decided(ctx)
	if err == nil {
		err = w.bouncersLeft(ctx, now.Active)
	}
	if err == nil {
		err = w.settle(ctx, now)
	}
	if err != nil {
		return nil, err
	}
	if now.Active != from {
		if rehearse {
			return nil, fmt.Errorf("%w: the %s takes writes already; mend: millrace migrate rollback -f FILE first, or nothing", ErrStep, now.Active)
		}
		return &Pause{Active: string(now.Active), Term: now.Term}, nil
	}
	if from == target && now.Term == 0 {
		return nil, fmt.Errorf("%w: writers have not gone over; mend: millrace migrate cutover -f FILE first", ErrStep)
	}
	if err := w.converged(ctx, from); err != nil {
		return nil, err
	}
	if err := w.m.refuseEmergency(); err != nil {
		return nil, err
	}
	if err := w.m.bouncersReady(ctx, from); err != nil {
		return nil, err
	}
	if from == source {
		if err := w.m.makeReferences(ctx, w.src, w.dst); err != nil {
			return nil, err
		}
	}
	for _, where := range []side{source, target} {
		if err := w.gates[where].install(ctx, m.tables(where)); err != nil {
			return nil, err
		}
	}
	m.pass("guarded")
	if err := w.from(from.other()).arm(ctx); err != nil {
		return nil, err
	}
	m.pass("armed")
	closing := &closer{w: w, from: from, to: from.other(), term: now.Term + 1, way: w.from(from)}
	p, err := closing.run(ctx, rehearse)
	if err != nil {
		if ctx.Err() == nil && !closing.crossing { // the way back may be in use
			err = errors.Join(err, w.from(from.other()).disarm(ctx))
		}
		return nil, err
	}
	if rehearse {
		p.Active, p.Term = string(from), now.Term
		return p, w.from(from.other()).disarm(ctx)
	}
	m.log.Info("writers have gone over", "to", string(closing.to), "term", closing.term, "pause", p.Total, "steps", p.Steps)
	return p, w.settle(ctx, closing.decision())
}
