package transfer

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/control"
	"github.com/millrace-db/millrace/internal/failpoint"
)

const (
	ledgerLimit = 10 * time.Second // for one statement
	pruneEvery  = time.Hour
	markPause   = time.Minute // after a mark that could not be written
)

// keepLedger writes a row for what was accepted, at most one in LedgerEvery and
// a last one at the end. A row that cannot be written is made again with what
// came since: publishing does not wait for it, and confirming does not depend
// on it.
func (r *reign) keepLedger(ctx context.Context) {
	tick := time.NewTicker(r.t.config.LedgerEvery)
	defer tick.Stop()
	var pruned time.Time
	failing := false
	for ended := false; !ended; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			ended = true
		}
		err := r.writeLedger(ctx)
		if err == nil && !ended && time.Since(pruned) > pruneEvery {
			pruned = time.Now()
			err = r.pruneLedger(ctx)
		}
		switch {
		case err != nil:
			r.t.metrics.ledgerFails.Inc()
			if !failing && !ended {
				r.t.log.Warn("ledger cannot be written, publishing goes on", "error", err)
			}
			failing = true
		case failing:
			r.t.log.Info("ledger is written again")
			failing = false
		}
	}
}

func (r *reign) writeLedger(ctx context.Context) error {
	row := r.accepted.row(&r.t.config.Stream)
	if row == nil {
		return nil
	}
	// The last row is written when ctx has ended.
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), ledgerLimit)
	defer cancel()
	if err := r.ledger.Insert(limited, row); err != nil {
		return err
	}
	r.accepted.wrote(row)
	r.t.metrics.ledgerRows.Inc()
	failpoint.Hit("ledger")
	r.mark(limited, row)
	return nil
}

// mark keeps the state record that a row attests as a place where the topic may begin,
// once. What fails costs that place alone: the next one is written a minute later.
func (r *reign) mark(ctx context.Context, row *control.LedgerRow) {
	m, _ := r.accepted.mark()
	if m.Offset != row.StateOffset || m.Offset == r.marked || time.Now().Before(r.markNext) {
		return
	}
	base, err := r.countedBefore(ctx, r.ledger)
	if err == nil {
		m.Bytes += base
		err = r.ledger.Mark(ctx, m)
	}
	if err == nil {
		r.marked = m.Offset
	} else {
		// An error costs the ledger its connection.
		r.markNext = time.Now().Add(markPause)
	}
	r.t.marking(err)
}

// countedBefore is how many bytes publishers have counted before the record that this
// one began to read at.
func (r *reign) countedBefore(ctx context.Context, ledger Ledger) (uint64, error) {
	if base := r.base.Load(); base != nil {
		return *base, nil
	}
	marks, err := ledger.Marks(ctx)
	if err != nil {
		return 0, err
	}
	base := uint64(0)
	for _, m := range marks {
		if m.Offset <= r.accepted.history.from {
			base = m.Bytes
		}
	}
	r.base.Store(&base)
	return base, nil
}

func (r *reign) pruneLedger(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, ledgerLimit)
	defer cancel()
	if err := r.ledger.Prune(limited, r.t.config.LedgerKeep); err != nil {
		return err
	}
	r.t.marking(r.ledger.ThinMarks(limited))
	return nil
}

// pgLedger is the ledger in the source database, on a connection that is opened
// when it is needed and again after an error.
type pgLedger struct {
	config *pgx.ConnConfig
	stream control.Stream
	conn   *pgx.Conn
}

func newPGLedger(url string, stream control.Stream) (*pgLedger, error) {
	config, err := pgx.ParseConfig(url)
	if err != nil {
		return nil, fmt.Errorf("open ledger: %w", err)
	}
	config.RuntimeParams["application_name"] = "millrace ledger " + stream.Name
	// The URL may lead through a pooler, which has no place for prepared statements.
	config.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe
	return &pgLedger{config: config, stream: stream}, nil
}

// with runs do on the connection. After an error the connection is dropped: it
// may be in any state.
func (l *pgLedger) with(ctx context.Context, do func(conn *pgx.Conn) error) error {
	if l.conn == nil {
		conn, err := pgx.ConnectConfig(ctx, l.config)
		if err != nil {
			return fmt.Errorf("open ledger: %w", err)
		}
		l.conn = conn
	}
	err := do(l.conn)
	if err != nil {
		control.CloseConn(ctx, l.conn) // err says what was wrong
		l.conn = nil
	}
	return err
}

// Newest implements Ledger.
func (l *pgLedger) Newest(ctx context.Context) (row *control.LedgerRow, err error) {
	err = l.with(ctx, func(conn *pgx.Conn) error {
		row, err = control.NewestLedger(ctx, conn, l.stream.Name, l.stream.Epoch)
		return err
	})
	return row, err
}

// Insert implements Ledger.
func (l *pgLedger) Insert(ctx context.Context, row *control.LedgerRow) error {
	return l.with(ctx, func(conn *pgx.Conn) error { return control.InsertLedger(ctx, conn, row) })
}

// Prune implements Ledger.
func (l *pgLedger) Prune(ctx context.Context, keep time.Duration) error {
	return l.with(ctx, func(conn *pgx.Conn) error {
		_, err := control.PruneLedger(ctx, conn, l.stream.Name, keep)
		return err
	})
}

// Mark implements Ledger.
func (l *pgLedger) Mark(ctx context.Context, m control.Mark) error {
	return l.with(ctx, func(conn *pgx.Conn) error { return control.InsertMark(ctx, conn, l.stream.Name, l.stream.Epoch, m) })
}

// Marks implements Ledger.
func (l *pgLedger) Marks(ctx context.Context) (all []control.Mark, err error) {
	err = l.with(ctx, func(conn *pgx.Conn) error {
		all, err = control.Marks(ctx, conn, l.stream.Name, l.stream.Epoch)
		return err
	})
	return all, err
}

// ThinMarks implements Ledger.
func (l *pgLedger) ThinMarks(ctx context.Context) error {
	return l.with(ctx, func(conn *pgx.Conn) error { return control.ThinMarks(ctx, conn, l.stream.Name, l.stream.Epoch) })
}

// DropMarks implements Ledger.
func (l *pgLedger) DropMarks(ctx context.Context, before millrace.Offset) error {
	return l.with(ctx, func(conn *pgx.Conn) error { return control.DropMarks(ctx, conn, l.stream.Name, l.stream.Epoch, before) })
}

// DecideTrim implements Ledger.
func (l *pgLedger) DecideTrim(ctx context.Context, t control.Trim) error {
	return l.with(ctx, func(conn *pgx.Conn) error { return control.DecideTrim(ctx, conn, t) })
}

// Close implements Ledger.
func (l *pgLedger) Close(ctx context.Context) error {
	if l.conn == nil {
		return nil
	}
	conn := l.conn
	l.conn = nil
	control.CloseConn(ctx, conn)
	return nil
}
