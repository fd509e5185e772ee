package migrations

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/capture/table"
	"github.com/millrace-db/millrace/internal/wait"
)

// Writers go over in this order, and come back in the same one with the sides
// exchanged. What stands between hold and open is the pause that they notice:
//
//	arm     the way back begins to keep changes; gates stand on both sides
//	drain   changes are applied until nearly none is left
//	hold    the tables are locked at the closing side: writers wait
//	fence   a message is written there, and changes are applied up to it
//	ahead   sequences of the opening side are set to where the closing side's are
//	mark    a message is written at the opening side: the way back begins behind it
//	close   the closing side's gate is closed, its row says who takes writes; commit
//	open    the opening side's row says so too, its gate is opened
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
	// Active is the side that takes writes now.
	Active string `json:"active"`
	Term   int64  `json:"term"`
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

// openWays connects to both sides.
func (m *Migration) openWays(ctx context.Context) (*ways, error) {
	src, dst, err := m.both(ctx)
	if err != nil {
		return nil, err
	}
	if m, err = m.aside(ctx, src); err != nil {
		capture.Close(src)
		capture.Close(dst)
		return nil, err
	}
	w := &ways{m: m, src: src, dst: dst, gates: map[side]*gate{source: {conn: src, where: source, name: m.cfg.Name}, target: {conn: dst, where: target, name: m.cfg.Name}}}
	d, err := m.at(ctx, src, dst)
	if err == nil && d.Step == StepNone {
		err = fmt.Errorf("%w: the migration has not begun; mend: millrace migrate prepare -f FILE", ErrStep)
	}
	if err == nil {
		err = m.takeOver(ctx, dst)
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

// takeOver takes for this process who decides which side takes writes, until the
// connection to the target ends. Errors: ErrRunning.
func (m *Migration) takeOver(ctx context.Context, dst *pgx.Conn) error {
	var taken bool
	if err := dst.QueryRow(ctx, "SELECT pg_try_advisory_lock(hashtextextended('millrace.migration.' || $1 || ' goes over', 0))", m.cfg.Name).Scan(&taken); err != nil {
		return fmt.Errorf("take migration %s: %w", m.cfg.Name, err)
	}
	if !taken {
		return fmt.Errorf("%w (%s): writers are going over, or it begins to follow; wait for it", ErrRunning, m.cfg.Name)
	}
	return nil
}

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
		if err := w.gates[late].row(ctx, w.gates[late].conn, now); err != nil {
			return nil, err
		}
	}
	for _, where := range []side{now.Active.other(), now.Active} {
		g := w.gates[where]
		open, err := g.isOpen(ctx)
		if err != nil {
			return nil, err
		}
		if want := where == now.Active; open != want {
			w.m.log.Warn("going over was cut off", "side", string(where), "open", want)
			if err := g.set(ctx, g.conn, now.Term, want); err != nil {
				return nil, err
			}
		}
		// The other side's is closed before this one's is opened.
		if _, err := g.conn.Exec(ctx, "COMMIT"); err != nil {
			return nil, fmt.Errorf("write who takes writes, at the %s: %w", where, err)
		}
	}
	return now, nil
}

// opens has the opening side take writes.
func (w *ways) opens(ctx context.Context, to *manager) error {
	g := w.gates[to.Active]
	if err := pgx.BeginFunc(ctx, g.conn, func(tx pgx.Tx) error { return g.row(ctx, tx, to) }); err != nil {
		return err
	}
	w.m.pass("opening")
	return g.set(ctx, g.conn, to.Term, true)
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
			return nil, fmt.Errorf("%w: the %s takes writes already", ErrStep, now.Active)
		}
		return &Pause{Active: string(now.Active), Term: now.Term}, nil
	}
	if from == target && now.Term == 0 {
		return nil, fmt.Errorf("%w: writers have not gone over", ErrStep)
	}
	if err := w.m.refuseEmergency(); err != nil {
		return nil, err
	}
	if err := w.m.bouncersReady(ctx, from); err != nil {
		return nil, err
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
	m.log.Info("writers have gone over", "to", string(closing.to), "term", closing.term, "pause", p.Total)
	return p, w.settle(ctx, closing.decision())
}

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

// sequencePair is a sequence of the closing side and its counterpart.
type sequencePair struct{ from, to string }

// sequences pairs those that columns of the tables draw from.
func (c *closer) sequences(ctx context.Context) ([]sequencePair, error) {
	var pairs []sequencePair
	for i := range c.w.m.cfg.Tables {
		t := &c.w.m.cfg.Tables[i]
		one, _, err := readMapping(ctx, c.w.src, c.w.dst, t, nil)
		if err != nil {
			return nil, err
		}
		if one == nil {
			return nil, fmt.Errorf("%w: table %v is gone; mend: millrace migrate abort -f FILE, and begin again", ErrChanged, t.From)
		}
		for _, k := range one.carried {
			p := sequencePair{}
			if p.from, err = drawnFrom(ctx, c.w.src, t.From, k.source); err != nil {
				return nil, err
			}
			if p.to, err = drawnFrom(ctx, c.w.dst, t.To, k.target); err != nil {
				return nil, err
			}
			if c.from == target {
				p.from, p.to = p.to, p.from
			}
			if p.from != "" && p.to != "" {
				pairs = append(pairs, p)
			}
		}
	}
	return pairs, nil
}

// drawnFrom returns the sequence that a column draws from, as SQL writes it.
func drawnFrom(ctx context.Context, q queryer, t table.Name, column string) (name string, err error) {
	err = q.QueryRow(ctx, `
SELECT coalesce(pg_get_serial_sequence($1, $2), (
    SELECT c.oid::regclass::text FROM pg_attrdef f JOIN pg_attribute a ON a.attrelid = f.adrelid AND a.attnum = f.adnum
    JOIN pg_depend p ON p.classid = 'pg_attrdef'::regclass AND p.objid = f.oid AND p.refclassid = 'pg_class'::regclass
    JOIN pg_class c ON c.oid = p.refobjid AND c.relkind = 'S'
    WHERE f.adrelid = to_regclass($1) AND a.attname = $2 LIMIT 1), '')`, t.Quoted(), column).Scan(&name)
	if err != nil {
		return "", fmt.Errorf("look up the sequence of column %s of %v: %w", column, t, err)
	}
	return name, nil
}

// ahead sets sequences to where their counterparts are: in two messages, because
// writers wait.
func ahead(ctx context.Context, src, dst *pgx.Conn, pairs []sequencePair) error {
	if len(pairs) == 0 {
		return nil
	}
	var read, set []string
	for i, p := range pairs {
		read = append(read, fmt.Sprintf("SELECT %d, last_value, is_called FROM %s", i, p.from))
	}
	rows, err := src.Query(ctx, strings.Join(read, " UNION ALL "), pgx.QueryExecModeSimpleProtocol)
	if err != nil {
		return fmt.Errorf("read sequences: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var i int
		var last int64
		var called bool
		if err := rows.Scan(&i, &last, &called); err != nil {
			return fmt.Errorf("read sequences: %w", err)
		}
		set = append(set, fmt.Sprintf("setval(%s::regclass, %d, %t)", literal(pairs[i].to), last, called))
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read sequences: %w", err)
	}
	if len(set) != len(pairs) {
		return fmt.Errorf("read sequences: %d of %d answered", len(set), len(pairs))
	}
	if _, err := dst.Exec(ctx, "SELECT "+strings.Join(set, ", "), pgx.QueryExecModeSimpleProtocol); err != nil {
		return fmt.Errorf("set sequences: %w", err)
	}
	return nil
}

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
	if m, err = m.aside(ctx, src); err != nil {
		return false, err
	}
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
	if err := m.takeOver(ctx, dst); err != nil {
		return false, err
	}
	for _, g := range gates {
		if err := g.remove(ctx, m.tables(g.where), true); err != nil {
			return false, err
		}
	}
	return true, m.abort(ctx)
}
