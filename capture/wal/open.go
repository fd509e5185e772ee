package wal

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/capture/chunk"
	"github.com/millrace-db/millrace/capture/table"
	"github.com/millrace-db/millrace/internal/wait"
)

// Source gives the units of a stream, from a Position on. Next is called by one
// goroutine; the other methods may be called beside it.
type Source struct {
	c      *Capture
	queue  *queue
	spool  *spool
	cancel context.CancelCauseFunc
	done   chan struct{}
	// The source as it was at Open.
	server        *serverInfo
	senderTimeout time.Duration
	publication   string // its fingerprint
	follow        *follower

	confirmed atomic.Uint64 // newest LSN given to Confirm
	given     atomic.Uint64 // newest LSN given out by Next
	live      atomic.Pointer[stream]
	loads     *loads

	closing  sync.Once
	closeErr error
}

// Open begins or goes on with a stream whose history ends at from. ctx bounds
// the opening only; Close ends the source.
//
// At a first start (from.Position is zero) it makes the slot, and all tables join
// the stream and are loaded. Loads that are under way in from.Catalog go on where
// they were.
//
// An error that wraps millrace.ErrStop needs an operator; others are worth a
// retry.
func (c *Capture) Open(ctx context.Context, from *millrace.Checkpoint) (*Source, error) {
	s, err := c.open(ctx, from)
	if err != nil {
		return nil, fmt.Errorf("open capture of stream %s: %w", c.cfg.Stream, err)
	}
	return s, nil
}

// stepLimit bounds the steps of opening that ask the source something which it
// answers at once: a link may take what is sent and carry nothing.
const stepLimit = 2 * time.Minute

func (c *Capture) open(whole context.Context, from *millrace.Checkpoint) (*Source, error) {
	ctx, cancel := context.WithTimeout(whole, c.stepLimit)
	defer cancel()
	conn, err := c.connect(ctx, nil)
	if err != nil {
		return nil, err
	}
	keep := false
	defer func() {
		if !keep {
			capture.Close(conn)
		}
	}()
	server, problems, err := checkServer(ctx, conn)
	if err == nil {
		err = capture.FirstError(problems)
	}
	if err != nil {
		return nil, err
	}
	s := &Source{c: c, queue: newQueue(c.cfg.MemoryBudget / 2), done: make(chan struct{}), server: server}
	if s.spool, err = openSpool(c.cfg.SpoolDir, c.cfg.Stream, c.metrics); err != nil {
		return nil, err
	}
	if s.senderTimeout, err = senderTimeout(ctx, conn); err != nil {
		return nil, err
	}
	if s.publication, err = c.publicationFingerprint(ctx, conn); err != nil {
		return nil, err
	}
	tables, err := c.fenceTables(ctx, conn, server, &from.Catalog)
	if err != nil {
		return nil, err
	}
	s.follow = s.newFollower(tables)
	position := from.Position
	if position.IsZero() {
		if position, err = c.makeSlot(whole, conn, server); err != nil {
			return nil, err
		}
	}
	if err := s.resume(whole, conn, position, from.Time, &from.Catalog, tables); err != nil {
		return nil, err
	}
	keep = true // the source's goroutine closes it
	return s, nil
}

func senderTimeout(ctx context.Context, conn *pgx.Conn) (time.Duration, error) {
	var ms int64
	if err := conn.QueryRow(ctx, "SELECT setting::bigint FROM pg_settings WHERE name = 'wal_sender_timeout'").Scan(&ms); err != nil {
		return 0, fmt.Errorf("read wal_sender_timeout: %w", err)
	}
	return time.Duration(ms) * time.Millisecond, nil
}

// fenceTables refuses tables that are unfit, and a publication of others.
func (c *Capture) fenceTables(ctx context.Context, conn *pgx.Conn, server *serverInfo, catalog *millrace.Catalog) ([]*table.Info, error) {
	tables, problems, err := c.checkTables(ctx, conn)
	if err != nil {
		return nil, err
	}
	if len(tables) < len(c.tables) {
		if err := table.FenceNames(ctx, conn, catalog, tables); err != nil {
			return nil, errors.Join(capture.FirstError(problems), err)
		}
	}
	more, err := c.checkPublication(ctx, conn, server, tables)
	if err != nil {
		return nil, err
	}
	triggers, err := checkTriggers(ctx, conn, server, tables)
	if err != nil {
		return nil, err
	}
	if err := capture.FirstError(slices.Concat(problems, c.checkChoices(server), more, triggers)); err != nil {
		return nil, err
	}
	return tables, c.choose(ctx, conn, server)
}

// choose takes over which columns and rows the publication has, as the server
// prints them.
func (c *Capture) choose(ctx context.Context, conn *pgx.Conn, server *serverInfo) error {
	p, err := c.lookUpPublication(ctx, conn, server)
	if err != nil {
		return err
	}
	chosen := make(map[millrace.TableID]table.Choice)
	if p != nil {
		for _, m := range p.members {
			chosen[m.id] = m.Choice
		}
	}
	c.chosen.Store(&chosen)
	return nil
}

// resume goes on with the stream after a position. at is the time of the newest
// unit there.
func (s *Source) resume(ctx context.Context, conn *pgx.Conn, position millrace.Position, at time.Time, catalog *millrace.Catalog, tables []*table.Info) error {
	plan := makePlan(catalog, tables)
	repl, p, err := s.c.beginStream(ctx, conn, s.server, position, at)
	if err != nil {
		return err
	}
	if s.loads, err = resumeLoads(ctx, conn, catalog, s.c.chunks); err == nil && !plan.isEmpty() {
		err = s.announce(ctx, conn, plan)
	}
	if err != nil {
		capture.Close(repl)
		return err
	}
	s.loads.paused, s.loads.spool = s.c.holdLoads, s.spool
	schemas := make(map[millrace.TableID]*millrace.Schema)
	for _, schema := range catalog.Schemas {
		schemas[schema.Table] = schema
	}
	version := catalog.LastVersion
	s.c.log.Info("capture goes on", "position", p.LSN.String(), "timeline", p.Timeline, "loads", len(catalog.Loads))
	s.start(func(ctx context.Context) error {
		defer capture.Close(conn)
		return s.stream(ctx, conn, repl, p, schemas, version, plan)
	})
	return nil
}

// announce has a plan carried out.
func (s *Source) announce(ctx context.Context, conn *pgx.Conn, p *plan) error {
	marks, err := s.c.marks(ctx, conn, p.joining)
	if err != nil {
		return err
	}
	if err := p.announce(ctx, conn); err != nil {
		return err
	}
	s.follow.began(marks, p.joining, p.lsn)
	s.c.log.Info("tables join and leave the stream", "joining", len(p.joining), "leaving", len(p.leaving))
	return nil
}

// start runs fn in the source's goroutine.
func (s *Source) start(fn func(context.Context) error) {
	ctx, cancel := context.WithCancelCause(context.Background())
	s.cancel = cancel
	go func() {
		defer close(s.done)
		err := fn(ctx)
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		} else {
			err = fmt.Errorf("capture stream %s: %w", s.c.cfg.Stream, err)
		}
		cancel(err)
		s.queue.close(err)
	}()
}

// stream receives from repl until ctx ends or something fails.
func (s *Source) stream(ctx context.Context, conn *pgx.Conn, repl *replication, p millrace.Position, schemas map[millrace.TableID]*millrace.Schema, version millrace.SchemaVersion, plan *plan) error {
	st, err := s.newStream(repl, p)
	if err != nil {
		capture.Close(repl)
		return err
	}
	defer st.close()
	catalog := &lookUps{c: s.c, conn: conn}
	defer catalog.close()
	st.d = &decoder{
		stream: s.c.cfg.Stream, position: p, schemas: schemas, version: version, plan: plan, asSent: s.c.cfg.AsSent,
		lookUp:  func(id millrace.TableID, types []uint32) (*table.Info, error) { return catalog.table(ctx, id, types) },
		strange: func(id millrace.TableID) (millrace.TableID, error) { return catalog.strange(ctx, id) },
		met:     make(map[millrace.TableID]bool),
		settled: func(xid uint32) error { return catalog.settled(ctx, xid, st.breathe) },
		snapshot: func() (snapshot chunk.Snapshot, err error) {
			err = catalog.do(ctx, func(ctx context.Context, conn *pgx.Conn) error {
				snapshot, err = chunk.CurrentSnapshot(ctx, conn)
				return err
			})
			return snapshot, err
		},
		emit: func(u *millrace.Unit, size int64) error {
			s.c.metrics.received.Set(float64(u.Position.LSN))
			return st.push(ctx, u, size)
		},
		spool:     s.spool,
		budget:    int(s.c.cfg.MemoryBudget / 4),
		open:      newOpenTransactions(s.spool, s.c.metrics, s.c.cfg.MemoryBudget/4),
		breathe:   func() error { return st.breathe(ctx) },
		relations: make(map[millrace.TableID]*relation),
		told:      make(map[millrace.TableID]uint64),
		loads:     s.loads,
		loaded:    make(map[millrace.TableID]bool),
		under:     make(map[millrace.TableID]chunk.Snapshot),
		read:      make(map[millrace.TableID]chunk.Snapshot),
		log:       s.c.log,
		metrics:   s.c.metrics,
	}
	s.live.Store(st)
	defer s.live.Store(nil)

	beating, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		a := &attendant{c: s.c, loads: s.loads, publication: s.publication, follow: s.follow}
		if err := a.run(beating); err != nil {
			s.cancel(fmt.Errorf("capture stream %s: %w", s.c.cfg.Stream, err))
		}
	})
	wg.Go(func() {
		if err := s.loads.verify(beating, s.c); err != nil {
			s.cancel(fmt.Errorf("capture stream %s: %w", s.c.cfg.Stream, err))
		}
	})
	for range s.c.cfg.LoadWorkers {
		wg.Go(func() {
			if err := s.loads.work(beating, s.c); err != nil {
				s.cancel(fmt.Errorf("capture stream %s: %w", s.c.cfg.Stream, err))
			}
		})
	}
	err = s.c.replicationError(st.run(ctx))
	stop()
	wg.Wait()
	return errors.Join(err, st.d.close())
}

// lookUps asks the source's catalogs during the stream, over a connection that
// may have died in the idle time between.
type lookUps struct {
	c     *Capture
	conn  *pgx.Conn
	owned bool // conn is not the one that was given
}

// lookUpLimit bounds a look-up: the stream waits for it.
const lookUpLimit = 20 * time.Second

func (l *lookUps) table(ctx context.Context, id millrace.TableID, types []uint32) (info *table.Info, err error) {
	err = l.do(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		// In one snapshot: columns and keys of before and after a command fit nothing.
		return pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) (err error) {
			info, err = l.c.table(ctx, tx.Conn(), id, types)
			return err
		})
	})
	return info, err
}

// do runs fn, on another connection if the one at hand has died.
func (l *lookUps) do(ctx context.Context, fn func(context.Context, *pgx.Conn) error) error {
	ctx, cancel := context.WithTimeout(ctx, lookUpLimit)
	defer cancel()
	err := fn(ctx, l.conn)
	if err == nil || !l.conn.IsClosed() {
		return err
	}
	l.close()
	conn, err := l.c.connect(ctx, nil)
	if err != nil {
		return err
	}
	l.conn, l.owned = conn, true
	return fn(ctx, l.conn)
}

// strange returns the table of the publication that id is a partition of, if that
// is news: there are no event triggers that would have told, and it is not among
// what is kept of the table's partitions.
func (l *lookUps) strange(ctx context.Context, id millrace.TableID) (root millrace.TableID, err error) {
	err = l.do(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		root, err = l.c.strange(ctx, conn, id)
		return err
	})
	return root, err
}

// settleInterval is how often settled looks again.
const settleInterval = 5 * time.Millisecond

// settled waits until a transaction that was decoded is visible. Its commit is in
// the WAL before others see what it did, with synchronous replication for as long
// as the standby takes; then its number is unlocked.
func (l *lookUps) settled(ctx context.Context, xid uint32, breathe func(context.Context) error) error {
	for {
		var running bool
		err := l.do(ctx, func(ctx context.Context, conn *pgx.Conn) error {
			return conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'transactionid' AND transactionid = $1::bigint::text::xid AND granted AND mode = 'ExclusiveLock')", int64(xid)).Scan(&running)
		})
		if err != nil {
			return fmt.Errorf("wait for transaction %d to be visible: %w", xid, err)
		}
		if !running {
			return nil
		}
		if err := breathe(ctx); err != nil {
			return err
		}
		if err := wait.For(ctx, settleInterval); err != nil {
			return context.Cause(ctx)
		}
	}
}

func (l *lookUps) close() {
	if l.owned {
		capture.Close(l.conn)
	}
}

// Next waits for the next unit. Whoever takes it closes its Body. After the
// source has failed, the units that came before are still given, then the error
// at every call. It returns ErrClosed after Close.
func (s *Source) Next(ctx context.Context) (*millrace.Unit, error) {
	u, err := s.queue.take(ctx)
	if err != nil {
		return nil, err
	}
	s.c.metrics.units.Inc()
	if lsn := uint64(u.Position.LSN); lsn > s.given.Load() {
		s.given.Store(lsn)
	}
	return u, nil
}

// Confirm says that everything up to p is published: the source may forget it.
// It never blocks. A position that was not given out by Next is not passed on.
func (s *Source) Confirm(p millrace.Position) {
	if p.Mode != millrace.ModeWAL || p.Slot != s.c.cfg.Slot {
		return
	}
	lsn := min(uint64(p.LSN), s.given.Load())
	for {
		old := s.confirmed.Load()
		if lsn <= old {
			return
		}
		if s.confirmed.CompareAndSwap(old, lsn) {
			break
		}
	}
	if st := s.live.Load(); st != nil {
		st.nudge()
	}
}

// Close ends the source and returns when everything it started has ended. Units
// that were not taken are thrown away; they come again after the next Open.
func (s *Source) Close() error {
	s.closing.Do(func() {
		s.cancel(capture.ErrClosed)
		<-s.done
		s.closeErr = s.queue.drain()
	})
	return s.closeErr
}
