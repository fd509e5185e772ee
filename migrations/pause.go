package migrations

import (
	"context"
	"errors"
	"fmt"
	"strings"
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
	// crossing tells that writers may have gone over already.
	crossing bool
}

func (c *closer) decision() *manager { return &manager{Active: c.to, Term: c.term, Fence: c.mark} }

// nearly is how far behind, in bytes of WAL, the opening side may be when writers are
// held.
const nearly = 256 << 10

// run drains, holds, and goes over.
func (c *closer) run(ctx context.Context, rehearse bool) (*Pause, error) {
	src, dst, err := c.way.both(ctx)
	if err != nil {
		return nil, err
	}
	defer capture.Close(src)
	defer capture.Close(dst)
	d, err := c.way.at(ctx, src, dst)
	if err != nil {
		return nil, err
	}
	if again, err := d.Step.Next(StepFollowing); err != nil {
		return nil, err
	} else if again {
		return nil, fmt.Errorf("%w: the %s has not converged; mend: millrace migrate follow -f FILE", ErrStep, c.to)
	}
	if err := c.refusePrepared(ctx, src); err != nil {
		return nil, err
	}
	letGo, err := c.way.takeFromFollower(ctx, dst)
	if err != nil {
		return nil, err
	}
	defer letGo()
	f := &follower{m: c.way, src: src, dst: dst}
	if err := f.open(ctx); err != nil {
		return nil, err
	}
	defer f.close()
	pairs, err := c.sequences(ctx)
	if err != nil {
		return nil, err
	}
	for {
		end, err := f.sourceEnd(ctx)
		if err != nil {
			return nil, err
		}
		if f.before == f.at.Index && f.at.Position.Token()+nearly >= end {
			break
		}
		if err := f.once(ctx); err != nil {
			return nil, err
		}
	}
	c.way.pass("drained")
	return c.hold(ctx, f, pairs, rehearse)
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

// hold is the pause.
func (c *closer) hold(ctx context.Context, f *follower, pairs []sequencePair, rehearse bool) (done *Pause, err error) {
	budget := c.w.m.cfg.PauseBudget
	began := time.Now()
	limited, cancel := context.WithTimeout(ctx, budget)
	defer cancel()
	over := func(what string, err error) error {
		if limited.Err() != nil && ctx.Err() == nil || code(err) == "55P03" || code(err) == "57014" {
			return fmt.Errorf("%w: %s after %v, the budget is %v; writers go on at the %s (%w)", ErrBudget, what, time.Since(began).Round(time.Millisecond), budget, c.from, err)
		}
		return err
	}
	closing := c.w.gates[c.from]
	lock, err := c.holder(ctx, budget)
	if err != nil {
		return nil, err
	}
	writable := c.from
	defer func() { // when the lock is gone
		err = errors.Join(err, c.w.releaseBouncers(ctx, writable))
		if err != nil {
			done = nil
		} else if len(c.w.m.cfg.Bouncers) > 0 {
			done.Total = time.Since(began)
		}
	}()
	defer capture.Close(lock) // and with it the lock, where it was not committed
	var names []string
	for _, t := range c.w.m.tables(c.from) { // and with them their partitions
		names = append(names, t.Quoted())
	}
	began = time.Now()
	if err := c.w.pauseBouncers(limited); err != nil {
		return nil, over("PgBouncer did not pause", err)
	}
	c.way.pass("paused")
	if _, err := lock.Exec(limited, fmt.Sprintf("BEGIN; SET LOCAL lock_timeout = %d; SET LOCAL synchronous_commit = on; SELECT FROM millrace.migration_manager WHERE name = %s FOR UPDATE; LOCK TABLE %s IN EXCLUSIVE MODE; SET LOCAL lock_timeout = 0",
		max(1, budget.Milliseconds()*9/10), literal(c.w.m.cfg.Name), strings.Join(names, ", ")), pgx.QueryExecModeSimpleProtocol); err != nil {
		return nil, over("writers were still at work", err)
	}
	p := &Pause{Locked: time.Since(began)}
	if err := closing.stands(limited, lock, c.w.m.tables(c.from)); err != nil {
		return nil, over("the gate was not looked at", err)
	}
	c.way.pass("held")
	if f.fence, err = newToken(); err != nil {
		return nil, err
	}
	if _, err := f.src.Exec(limited, "SELECT pg_logical_emit_message(true, $1, $2::text)", fencePrefix, f.fence); err != nil {
		return nil, over("the fence was not written", err)
	}
	for !f.fenced {
		if err := f.once(limited); err != nil {
			return nil, over("changes were not applied", err)
		}
		if limited.Err() != nil {
			return nil, over("changes were not applied", limited.Err())
		}
	}
	p.Drained = time.Since(began)
	c.way.pass("fenced")
	if rehearse {
		if _, err := lock.Exec(ctx, "ROLLBACK"); err != nil {
			return nil, fmt.Errorf("let writers go on: %w", err)
		}
		p.Total = time.Since(began)
		return p, nil
	}
	if err := ahead(limited, f.src, f.dst, pairs); err != nil {
		return nil, over("sequences were not set", err)
	}
	c.way.pass("ahead")
	if c.mark, err = newToken(); err != nil {
		return nil, err
	}
	if _, err := f.dst.Exec(limited, "SELECT pg_logical_emit_message(true, $1, $2::text)", fencePrefix, c.mark); err != nil {
		return nil, over("the fence of the way back was not written", err)
	}
	c.way.pass("marked")
	if err := c.w.sendBouncers(limited, c.to); err != nil {
		return nil, over("PgBouncer was not sent to the "+string(c.to), err)
	}
	c.way.pass("sent")
	c.crossing = true
	if err := c.flip(limited, lock, closing); err != nil {
		// The commit may have come through all the same: the row tells.
		capture.Close(lock)
		if err := c.undo(ctx, over("the side was not closed", err)); err != nil {
			return nil, err
		}
	}
	writable = c.to
	c.way.pass("closed")
	if err := c.w.opens(ctx, c.decision()); err != nil {
		return nil, err
	}
	p.Total = time.Since(began)
	p.Active, p.Term = string(c.to), c.term
	return p, nil
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
func (c *closer) flip(ctx context.Context, lock *pgx.Conn, g *gate) error {
	locked := &gate{conn: lock, where: g.where, name: g.name}
	if err := locked.set(ctx, lock, c.term, false); err != nil {
		return err
	}
	c.way.pass("closing")
	if err := locked.row(ctx, lock, c.decision()); err != nil {
		return err
	}
	_, err := lock.Exec(ctx, "COMMIT")
	return err
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
