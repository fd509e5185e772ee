package migrations

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace/capture"
)

// closer closes one side and opens the other.
type closer struct {
	w        *ways
	from, to side
	term     int64
	way      *Migration // from the closing side to the opening one
	mark     string
	tally    *tally
	// crossing tells that writers may have gone over already.
	crossing bool
}

func (c *closer) decision() *manager { return &manager{Active: c.to, Term: c.term, Fence: c.mark} }

// Writers are held when the opening side is nearly where the closing one is, and what
// was written to the closing side has come over within calm: that is most of the pause.
// Where it does not come about, they are held after so many rounds all the same, and
// the budget says whether that was too early.
const (
	calm   = 30 * time.Millisecond
	rounds = 20
)

// run drains, holds, and goes over.
func (c *closer) run(ctx context.Context, rehearse bool) (*Pause, error) {
	src, dst, err := c.way.both(ctx)
	if err != nil {
		return nil, err
	}
	defer capture.Close(src)
	defer capture.Close(dst)
	if err := c.w.converged(ctx, c.from); err != nil { // it may have been lost since
		return nil, err
	}
	if err := c.refusePrepared(ctx, src); err != nil {
		return nil, err
	}
	letGo, err := c.way.takeFromFollower(ctx, dst)
	if err != nil {
		return nil, err
	}
	defer letGo()
	if err := c.w.prove(ctx, c.from); err != nil {
		return nil, err
	}
	c.way.pass("proven")
	f := &follower{m: c.way, src: src, dst: dst}
	if err := f.open(ctx); err != nil {
		return nil, err
	}
	defer f.close()
	pairs, err := c.sequences(ctx)
	if err != nil {
		return nil, err
	}
	if err := c.drain(ctx, f); err != nil {
		return nil, err
	}
	p, err := c.hold(ctx, f, pairs, rehearse)
	if err == nil {
		// Whoever opens this way next would enter it, too.
		if owed := f.enterOwed(ctx); owed != nil {
			c.way.log.Warn("the newest batches are not entered at the side that writers left", "error", owed)
		}
	}
	return p, err
}

// drain applies changes until nearly none is left. From then on each batch is what has
// come while the one before was applied.
func (c *closer) drain(ctx context.Context, f *follower) error {
	for {
		behind, err := f.capture.Behind(ctx, f.src, f.at.Position)
		if err != nil {
			return err
		}
		if behind <= f.capture.Nearly() {
			break
		}
		if err := f.once(ctx); err != nil {
			return err
		}
	}
	var err error
	if c.tally, err = c.count(ctx, f); err != nil {
		return err
	}
	f.hot = true
	f.from.Hurry()
	for range rounds {
		began := time.Now()
		if err := f.awaitFence(); err != nil {
			return err
		}
		if err := c.fence(ctx, f); err != nil {
			return err
		}
		for !f.fenced {
			if err := f.once(ctx); err != nil {
				return err
			}
		}
		if time.Since(began) < calm {
			break
		}
	}
	c.way.pass("drained")
	return nil
}

// fence makes the fence that f waits for at the closing side. Where it is written, what
// is flushed is sent, whichever standby has it.
func (c *closer) fence(ctx context.Context, f *follower) error {
	if f.from.Fence(f.fence) {
		return nil
	}
	sql := "BEGIN; SET LOCAL synchronous_commit = local; " + c.way.fenceSQL(f.fence.message) + "; COMMIT"
	if _, err := c.w.gates[c.from].conn.Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol); err != nil {
		return fmt.Errorf("write a fence at the %s: %w", c.from, err)
	}
	return nil
}

// refusePrepared refuses to go over while transactions are prepared: nobody knows when
// they end, and they hold the tables locked.
func (c *closer) refusePrepared(ctx context.Context, src *pgx.Conn) error {
	var names []string
	if err := src.QueryRow(ctx, "SELECT ARRAY(SELECT gid FROM pg_prepared_xacts WHERE database = current_database() ORDER BY 1)").Scan(&names); err != nil {
		return fmt.Errorf("look for prepared transactions: %w", err)
	}
	if len(names) > 0 {
		return fmt.Errorf("%w: transactions are prepared at the side that writers leave: %s; mend: COMMIT PREPARED or ROLLBACK PREPARED", ErrBlocked, strings.Join(names, ", "))
	}
	return nil
}

// pause is one time that writers are held.
type pause struct {
	*closer
	f        *follower
	lock     *pgx.Conn // holds the tables of the closing side
	rehearse bool
	budget   time.Duration
	limited  context.Context // ends with the budget
	whole    context.Context
	began    time.Time
	mu       sync.Mutex
	told     Pause
}

// note says that a step is done.
func (p *pause) note(step string) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	at := time.Since(p.began)
	p.told.Steps = append(p.told.Steps, PauseStep{step, at})
	return at
}

// over tells whether an error is due to the budget's being spent, at what.
func (p *pause) over(what string, err error) error {
	if err != nil && (p.limited.Err() != nil && p.whole.Err() == nil || code(err) == "55P03" || code(err) == "57014") {
		return fmt.Errorf("%w: %s after %v, the budget is %v; writers go on at the %s (%w)", ErrBudget, what, time.Since(p.began).Round(time.Millisecond), p.budget, p.from, err)
	}
	return err
}

// hold holds writers, and has them go over.
func (c *closer) hold(ctx context.Context, f *follower, pairs []sequencePair, rehearse bool) (done *Pause, err error) {
	p := &pause{closer: c, f: f, rehearse: rehearse, budget: c.w.m.cfg.PauseBudget, whole: ctx}
	if p.lock, err = c.holder(ctx, p.budget); err != nil {
		return nil, err
	}
	writable := c.from
	defer func() { // when the lock is gone
		err = errors.Join(err, c.w.releaseBouncers(ctx, writable))
		if err != nil {
			done = nil
		} else if len(c.w.m.cfg.Bouncers) > 0 {
			done.Total = p.note("clients go on")
		}
	}()
	defer func() { capture.Close(p.lock) }() // and with it the lock, where it was not committed
	if c.mark, err = newToken(); err == nil {
		err = f.awaitFence()
	}
	if err != nil {
		return nil, err
	}
	if err := p.warm(ctx, pairs); err != nil {
		return nil, err
	}
	limited, cancel := context.WithTimeout(ctx, p.budget)
	defer cancel()
	p.limited, p.began = limited, time.Now()
	if err := c.w.pauseBouncers(limited); err != nil {
		return nil, p.over("PgBouncer did not pause", err)
	}
	c.way.pass("paused")
	// Changes go on being applied while the last writers end, and the side that is held
	// is looked at while what they wrote is applied.
	if err := together(limited, p.drained, func(ctx context.Context) error { return p.held(ctx, pairs) }); err != nil {
		return nil, err
	}
	if err := p.over("counts were not compared", c.tally.compare(limited, f)); err != nil {
		return nil, err
	}
	p.note("counted")
	c.way.pass("counted")
	if rehearse {
		if _, err := p.lock.Exec(ctx, "ROLLBACK"); err != nil { // the server may have let them go
			return nil, p.over("writers were not let go", fmt.Errorf("let writers go on: %w", err))
		}
		p.told.Total = p.note("let go")
		return &p.told, nil
	}
	c.way.pass("ahead")
	if err := c.w.sendBouncers(limited, c.to); err != nil {
		return nil, p.over("PgBouncer was not sent to the "+string(c.to), err)
	}
	c.way.pass("sent")
	c.crossing = true
	if err := c.flip(limited, p.lock); err != nil {
		// The commit may have come through all the same: the row tells.
		capture.Close(p.lock)
		if err := c.undo(ctx, p.over("the side was not closed", err)); err != nil {
			return nil, err
		}
	}
	writable = c.to
	p.note("closed")
	c.way.pass("closed")
	if err := c.w.opens(ctx, c.decision()); err != nil {
		return nil, err
	}
	p.told.Total = p.note("opened")
	p.told.Active, p.told.Term = string(c.to), c.term
	return &p.told, nil
}

// warm runs what the pause will run, and takes back what it does: a session's first
// look at a table, and at a plan, takes longer than all that follow.
func (p *pause) warm(ctx context.Context, pairs []sequencePair) error {
	closing := &gate{conn: p.lock, where: p.from, name: p.w.m.cfg.Name}
	opening := p.w.gates[p.to]
	return together(ctx, func(ctx context.Context) error {
		if err := closing.tryRow(ctx, p.decision(), ""); err != nil {
			return err
		}
		if err := closing.stands(ctx, p.lock, p.w.m.tables(p.from)); err != nil {
			return err
		}
		if err := p.tally.closing(ctx, p.lock); err != nil {
			return err
		}
		_, err := ahead(ctx, p.lock, pairs)
		return err
	}, func(ctx context.Context) error {
		if err := opening.tryRow(ctx, p.decision(), p.w.from(p.to).fenceSQL(p.mark)); err != nil {
			return err
		}
		_, _, err := p.tally.opening(ctx, p.f)
		return err
	})
}

// drained applies changes up to the fence.
func (p *pause) drained(ctx context.Context) error {
	for !p.f.fenced {
		err := p.f.once(ctx)
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return p.over("changes were not applied", err)
		}
	}
	p.told.Drained = p.note("drained")
	p.way.pass("fenced")
	return nil
}

// held locks the tables of the closing side and writes the fence behind the last
// writer. Meanwhile it sees to what depends on the closing side alone.
func (p *pause) held(ctx context.Context, pairs []sequencePair) error {
	var names []string
	for _, t := range p.w.m.tables(p.from) { // and with them their partitions
		names = append(names, t.Quoted())
	}
	sql := fmt.Sprintf("BEGIN; SET LOCAL lock_timeout = %d; SET LOCAL synchronous_commit = on; SELECT FROM millrace.migration_manager WHERE name = %s FOR UPDATE; LOCK TABLE %s IN EXCLUSIVE MODE; SET LOCAL lock_timeout = 0",
		max(1, p.budget.Milliseconds()*9/10), literal(p.w.m.cfg.Name), strings.Join(names, ", "))
	_, err := p.lock.Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol)
	for code(err) == "40P01" { // deadlock_detected: a writer takes the tables in another order, and goes first
		if _, err = p.lock.Exec(ctx, "ROLLBACK"); err == nil {
			_, err = p.lock.Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol)
		}
	}
	if err != nil {
		return p.over("writers were still at work", err)
	}
	p.told.Locked = p.note("locked")
	p.way.pass("held")
	return together(ctx, func(ctx context.Context) error {
		if err := p.fence(ctx, p.f); err != nil {
			return p.over("the fence was not written", err)
		}
		p.note("fence written")
		return nil
	}, func(ctx context.Context) error {
		if err := p.w.gates[p.from].stands(ctx, p.lock, p.w.m.tables(p.from)); err != nil {
			return p.over("the gate was not looked at", err)
		}
		if err := p.tally.closing(ctx, p.lock); err != nil {
			return p.over("rows were not counted", err)
		}
		set, err := ahead(ctx, p.lock, pairs)
		if err == nil && set != "" && !p.rehearse {
			_, err = p.w.gates[p.to].conn.Exec(ctx, set, pgx.QueryExecModeSimpleProtocol)
		}
		if err != nil {
			return p.over("sequences were not set", err)
		}
		p.note("looked at")
		return nil
	})
}

// together runs functions at once. The first that fails ends the others, and its error
// is returned when all have ended.
func together(ctx context.Context, fns ...func(context.Context) error) (first error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	results := make(chan error, len(fns))
	for _, fn := range fns {
		go func() { results <- fn(ctx) }()
	}
	for range fns {
		if err := <-results; err != nil && first == nil {
			first = err
			cancel()
		}
	}
	return first
}

// holder opens the session that holds writers. The server ends it where nothing is
// heard of it for as long as they may be held: the process may be stopped, and its host
// or the network gone.
func (c *closer) holder(ctx context.Context, budget time.Duration) (*pgx.Conn, error) {
	conn, err := c.way.connect(ctx, source) // the way's source is the side that closes
	if err != nil {
		return nil, err
	}
	if _, err := conn.Exec(ctx, fmt.Sprintf("SET idle_in_transaction_session_timeout = %d", max(1, budget.Milliseconds()))); err != nil {
		capture.Close(conn)
		return nil, fmt.Errorf("set the session at the %s: %w", c.from, err)
	}
	return conn, nil
}

// flip closes the side that writers leave, in the transaction that holds them.
func (c *closer) flip(ctx context.Context, lock *pgx.Conn) error {
	locked := &gate{conn: lock, where: c.from, name: c.w.m.cfg.Name}
	if err := locked.set(ctx, lock, c.term, false); err != nil {
		return err
	}
	c.way.pass("closing")
	return locked.row(ctx, "", c.decision(), "COMMIT")
}

// undo opens the closing side's gate again where its row does not say that it is
// closed.
func (c *closer) undo(ctx context.Context, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	now, err := c.w.decided(ctx)
	if err != nil {
		return errors.Join(cause, err)
	}
	if now.Active == c.to {
		return nil // it came through, and decided has opened the other side
	}
	c.crossing = false
	return cause
}
