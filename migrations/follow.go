package migrations

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/capture/chunk"
	"github.com/millrace-db/millrace/internal/wait"
)

// Until says when Follow returns.
type Until func(*follower) bool

// Converged has Follow return when the target has converged.
func Converged(f *follower) bool { return f.sink.exact }

// Forever has it go on until its context ends.
func Forever(*follower) bool { return false }

// retry bounds the pause before Follow begins again after a failure that passes.
const (
	firstRetry = 100 * time.Millisecond
	lastRetry  = 10 * time.Second
)

// Follow applies changes until ctx ends or until says so: from the source to the
// target, or back where writers have gone over. It goes on after failures that pass. Errors: ErrStep, ErrRunning, ErrChanged, ErrConflict, and those of the
// capture that need an operator.
func (m *Migration) Follow(ctx context.Context, until Until) error {
	return m.retry(ctx, func() error {
		for yielded := false; ; yielded = true {
			way, err := m.inUse(ctx)
			if err == nil {
				err = way.follow(ctx, until)
			}
			if again := errors.Is(err, errYield) || yielded && errors.Is(err, ErrRunning); !again {
				return err
			}
			if err := wait.For(ctx, lockPause); err != nil {
				return err
			}
		}
	})
}

// errYield occurs when somebody wants to go over: the migration is let go of.
var errYield = errors.New("somebody wants to go over")

// retry runs fn until it succeeds, ctx ends, or it fails in a way that does not pass.
func (m *Migration) retry(ctx context.Context, fn func() error) error {
	for pause := firstRetry; ; pause = min(2*pause, lastRetry) {
		began := time.Now()
		err := fn()
		if err == nil || ctx.Err() != nil || millrace.NeedsOperator(err) || errors.Is(err, ErrRunning) {
			return err
		}
		if time.Since(began) > lastRetry {
			pause = firstRetry
		}
		m.log.Warn("following is interrupted", "error", err, "again_in", pause)
		if err := wait.For(ctx, pause); err != nil {
			return err
		}
	}
}

// inUse is the way that leads away from the side that takes writes. It brings to its end
// what was cut off when writers went over.
func (m *Migration) inUse(ctx context.Context) (*Migration, error) {
	src, dst, err := m.both(ctx)
	if err != nil {
		return nil, err
	}
	defer capture.Close(src)
	defer capture.Close(dst)
	now, err := readManager(ctx, dst, m.cfg.Name)
	if err != nil || now == nil {
		return m, err // nobody can have gone over
	}
	w, err := m.openWays(ctx)
	if err != nil {
		return nil, err
	}
	defer w.close()
	if now, err = w.decided(ctx); err != nil {
		return nil, err
	}
	if err := w.bouncersLeft(ctx, now.Active); err != nil {
		return nil, err
	}
	return w.from(now.Active), w.settle(ctx, now)
}

// follower is one run of Follow, from connecting to the first failure.
type follower struct {
	m        *Migration
	src, dst *pgx.Conn // for all but the changes themselves
	from     changes
	capture  capturer
	sink     *sink
	at       *millrace.Checkpoint // behind the last unit that is committed
	pending  *chunk.Pending
	// horizon is the place behind which the copied rows are as their changes say.
	horizon uint64
	mend    *mend
	certify *certifier
	adopt   adoption

	gatherer *gatherer
	// ahead gives the batch that is being gathered, if one is: it may use the sink once
	// free is closed, and ends early when stop is called. spare is a batch that is empty.
	ahead chan *gathered
	free  chan struct{}
	stop  context.CancelFunc
	spare *batch
	byID  map[millrace.TableID]*mapping

	// fence is what is waited for, if anything; fenced tells that everything up to it is
	// committed.
	fence  *fence
	fenced bool
	// hot has each batch be what has come while the one before was applied, and what is
	// entered at the source of them be owed.
	hot     bool
	owed    []*record
	tended  time.Time
	shown   *chunk.Snapshot // to pending, once nothing is being gathered
	pausing bool
}

// followUntil is one follower, from connecting to the first failure.
func (m *Migration) followUntil(ctx context.Context, until Until, adopt *adoption) (err error) {
	src, dst, err := m.both(ctx)
	if err != nil {
		return err
	}
	defer capture.Close(src)
	defer capture.Close(dst)
	d, err := m.at(ctx, src, dst)
	if err != nil {
		return err
	}
	if _, err := d.Step.Next(StepFollowing); err != nil {
		return err
	}
	if err := m.take(ctx, dst); err != nil {
		return err
	}
	f := &follower{m: m, src: src, dst: dst, adopt: *adopt}
	if err := f.open(ctx); err != nil {
		return err
	}
	defer f.close()
	if f.sink.exact && d.Step == StepCopied { // the process ended before it was noted
		if err := m.done(ctx, src, dst, StepFollowing); err != nil {
			return err
		}
	}
	for !until(f) {
		if err := f.tend(ctx); err != nil {
			return err
		}
		if f.pausing && f.ahead == nil {
			if err := wait.For(ctx, tendInterval); err != nil {
				return err
			}
			continue
		}
		if err := f.once(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (f *follower) open(ctx context.Context) (err error) {
	m := f.m
	if f.at, err = settledPlace(ctx, f.dst, m.cfg.Name); err != nil {
		return err
	}
	if f.at == nil {
		return fmt.Errorf("%w: the place that changes begin at is gone; mend: millrace migrate abort -f FILE, and begin again", ErrChanged)
	}
	var horizon *string
	var converged bool
	if err := f.dst.QueryRow(ctx, "SELECT horizon::text, converged_at IS NOT NULL FROM millrace.migration_place WHERE name = $1", m.cfg.Name).Scan(&horizon, &converged); err != nil {
		return fmt.Errorf("read the place of migration %s: %w", m.cfg.Name, err)
	}
	if horizon != nil {
		if _, err := fmt.Sscan(*horizon, &f.horizon); err != nil {
			return fmt.Errorf("read the place of migration %s: %w", m.cfg.Name, err)
		}
	}
	catalog := f.adopt.expect(&f.at.Catalog)
	all, err := m.mappings(ctx, f.src, f.dst, catalog)
	if err != nil {
		return err
	}
	if err := f.catchUpRecords(ctx); err != nil {
		return err
	}
	c, err := m.capture(ctx, f.src)
	if err != nil {
		return err
	}
	now, err := chunk.CurrentSnapshot(ctx, f.src)
	if err != nil {
		return err
	}
	f.pending = chunk.NewPending(now)
	f.byID = make(map[millrace.TableID]*mapping)
	for _, t := range all {
		f.byID[t.id] = t
	}
	f.capture = c
	if err = together(ctx, func(ctx context.Context) (err error) {
		f.sink, err = m.openSink(ctx, all, converged)
		return err
	}, func(ctx context.Context) (err error) {
		f.certify, err = m.openCertifier(ctx, all, catalog.Schemas)
		return err
	}, func(ctx context.Context) (err error) {
		f.from, err = c.Open(ctx, f.at)
		return err
	}); err != nil {
		f.close()
		return err
	}
	f.sink.applying = f.certify.touch
	f.gatherer = &gatherer{m: m, from: f.from, sink: f.sink, at: f.at, pending: f.pending, adopt: f.adopt}
	m.log.Info("following", "index", f.at.Index.String(), "position", f.at.Position.String(), "converged", converged)
	return nil
}

func (f *follower) close() {
	if f.ahead != nil {
		f.stop()
		<-f.ahead
	}
	if f.from != nil {
		_ = f.from.Close() // what was not taken comes again
	}
	if f.sink != nil {
		f.sink.close()
	}
	if f.certify != nil {
		f.certify.close()
	}
}

// once takes the batch that was gathered and commits it. Meanwhile the next one is
// gathered.
func (f *follower) once(ctx context.Context) error {
	t, err := f.gathered(ctx)
	if err != nil {
		return err
	}
	if t.at.Index == f.at.Index {
		f.spare = t.batch
		return nil
	}
	if f.mayGather(t.at) {
		f.gather(ctx)
	}
	if err := f.commit(ctx, t); err != nil {
		return err
	}
	for _, e := range t.verify {
		if err := f.certify.compare(ctx, f, e); err != nil {
			return err
		}
	}
	if err := f.certify.again(ctx, f); err != nil {
		return err
	}
	return f.converge(ctx)
}

// commit applies what a batch holds and moves the place, at the target; then it tells
// the source.
func (f *follower) commit(ctx context.Context, t *gathered) error {
	if t.batch.holds() {
		if err := f.sink.apply(ctx, t.batch); err != nil {
			return err
		}
	}
	r := &record{First: f.at.Index + 1, Last: t.at.Index, Chain: t.at.Chain, Position: t.at.Position.String(), Units: t.units, Time: t.at.Time, Counts: make(map[string]Counts)}
	captured := *r
	captured.Counts = make(map[string]Counts)
	for _, b := range t.batch.tables {
		if b.counts != (Counts{}) {
			r.Counts[b.m.from.String()] = b.counts
			captured.Counts[b.m.from.String()] = Counts{Puts: b.counts.Puts, Deletes: b.counts.Deletes, Truncates: b.counts.Truncates}
		}
	}
	if err := f.certify.commit(ctx, f.sink, t.at.Index); err != nil {
		return err
	}
	if err := f.sink.commit(ctx, f.at.Index, t.at, r); err != nil {
		return err
	}
	f.at = t.at
	t.batch.reset()
	f.spare = t.batch
	if f.hot && !captured.empty() {
		f.owed = append(f.owed, &captured)
	} else if !captured.empty() {
		if err := f.sink.record(ctx, f.src, quickRecordSQL, &captured); err != nil {
			return err
		}
	}
	f.from.Confirm(f.at.Position)
	f.fenced = f.fenced || t.passed != nil && t.passed == f.fence
	return nil
}

// awaitFence has f wait for a fence that is still to be written.
func (f *follower) awaitFence() error {
	message, err := newToken()
	f.fence, f.fenced = &fence{message: message}, false
	f.gatherer.fence.Store(f.fence)
	return err
}

// enterOwed enters at the source what is owed there.
func (f *follower) enterOwed(ctx context.Context) error {
	for _, r := range f.owed {
		if err := f.sink.record(ctx, f.src, quickRecordSQL, r); err != nil {
			return err
		}
	}
	f.owed = nil
	return nil
}

// catchUpRecords enters at the source what was captured in batches that the target
// has and the source has no record of, because the process ended in between.
func (f *follower) catchUpRecords(ctx context.Context) error {
	var last string
	if err := f.src.QueryRow(ctx, "SELECT coalesce(max(last_index), 0)::text FROM millrace.migration_batch WHERE name = $1", f.m.cfg.Name).Scan(&last); err != nil {
		return fmt.Errorf("read batches at the source: %w", err)
	}
	rows, err := f.dst.Query(ctx, `
SELECT first_index::text, last_index::text, chain, position, units, source_time, (extract(epoch FROM now() - written_at) * 1000000)::bigint,
       (SELECT jsonb_object_agg(k, (SELECT coalesce(jsonb_object_agg(n, c), '{}') FROM jsonb_each(v) AS e (n, c) WHERE n IN ('puts', 'deletes', 'truncates'))) FROM jsonb_each(counts) AS t (k, v))::text
FROM millrace.migration_batch WHERE name = $1 AND last_index > $2::text::numeric ORDER BY last_index`, f.m.cfg.Name, last)
	if err != nil {
		return fmt.Errorf("read batches at the target: %w", err)
	}
	type line struct {
		first, last, position, counts string
		chain                         []byte
		units, age                    int64
		at                            time.Time
	}
	lines, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (l line, err error) {
		return l, row.Scan(&l.first, &l.last, &l.chain, &l.position, &l.units, &l.at, &l.age, &l.counts)
	})
	if err != nil {
		return fmt.Errorf("read batches at the target: %w", err)
	}
	for _, l := range lines {
		if _, err := f.src.Exec(ctx, lateRecordSQL, f.m.cfg.Name, l.first, l.last, l.chain, l.position, l.units, l.counts, l.at, l.age); err != nil {
			return fmt.Errorf("enter a batch: %w", err)
		}
	}
	return nil
}

// tendInterval is how often the follower looks what people want, and tidies up;
// keepBatches is how long records of batches stay.
const (
	tendInterval = time.Second
	keepBatches  = "7 days"
)

// yields reports whether somebody wants to go over.
func (m *Migration) yields(ctx context.Context, dst queryer) (yield bool, err error) {
	version, err := installed(ctx, dst)
	if err == nil && version >= 2 {
		err = dst.QueryRow(ctx, "SELECT yield FROM millrace.migration WHERE name = $1", m.cfg.Name).Scan(&yield)
	}
	if err != nil {
		return false, fmt.Errorf("look whether somebody wants to go over: %w", err)
	}
	return yield, nil
}

// tend looks whether the migration is paused and a pass is wanted, now and then.
func (f *follower) tend(ctx context.Context) error {
	if time.Since(f.tended) < tendInterval {
		return nil
	}
	f.tended = time.Now()
	paused, err := f.m.paused(ctx, f.dst)
	if err != nil {
		return err
	}
	if yield, err := f.m.yields(ctx, f.dst); err != nil || yield {
		return errors.Join(err, errYield)
	}
	if paused != f.pausing {
		f.m.log.Info("following is paused", "paused", paused)
		f.pausing = paused
	}
	now, err := chunk.CurrentSnapshot(ctx, f.src)
	if err != nil {
		return err
	}
	f.shown = &now
	for _, conn := range []*pgx.Conn{f.src, f.dst} {
		if _, err := conn.Exec(ctx, "DELETE FROM millrace.migration_batch WHERE name = $1 AND written_at < now() - $2::text::interval", f.m.cfg.Name, keepBatches); err != nil {
			return fmt.Errorf("prune batches: %w", err)
		}
	}
	if err := f.closeGaps(ctx); err != nil {
		return err
	}
	return f.certify.tend(ctx, f)
}
