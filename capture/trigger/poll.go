package trigger

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/millrace-db/millrace/capture/chunk"
)

// poll asks the source whether anything that is visible by now was logged since the
// newest window. A server whose transactions have not moved on has nothing, and most
// of the time that is all there is to it.
func (s *Source) poll(ctx context.Context) (found bool, err error) {
	s.c.metrics.polls.Inc()
	conn := s.conn.PgConn()
	if err := s.polls.begin(ctx, conn.Conn()); err != nil {
		return false, err
	}
	defer s.polls.end()
	var now chunk.Snapshot
	err = ask(context.Background(), conn, "SELECT pg_catalog.pg_current_snapshot()", func(row [][]byte) (err error) {
		now, err = chunk.ParseSnapshot(string(row[0]))
		return err
	})
	switch {
	case err != nil:
	case now.Xmax < s.before.Xmax:
		return true, nil // it is another server; the window's fences say so
	default:
		if u := unseenBy(s.known(), now); !u.isEmpty() {
			found, err = s.pollLogs(conn, &u)
		}
		if err == nil && !found {
			s.polls.seen = &now
		}
	}
	if ctx.Err() != nil {
		return false, context.Cause(ctx)
	}
	if err != nil {
		return false, fmt.Errorf("poll: %w", err)
	}
	return found, nil
}

// known is the newest snapshot of which it is known that it has nothing new: that of
// the newest window, or of a later poll that found nothing. The tick itself is a
// transaction that the window did not see, so without the polls' own snapshot each
// of them would look for its rows. Windows do not begin here, but where the newest
// one that was given out ended.
func (s *Source) known() chunk.Snapshot {
	if s.polls.seen != nil {
		return *s.polls.seen
	}
	return s.before
}

// pollLogs asks whether transactions have logged anything.
func (s *Source) pollLogs(conn *pgconn.PgConn, u *unseen) (found bool, err error) {
	var parts []string
	for _, t := range s.tables {
		for _, segment := range t.log.segments() {
			parts = append(parts, "EXISTS (SELECT FROM "+segment+" WHERE "+strings.Join(u.conditions("txid"), " OR ")+")")
		}
	}
	// Several statements in one message are one transaction.
	err = ask(context.Background(), conn, "SET LOCAL enable_seqscan = off; SET LOCAL jit = off; SET LOCAL search_path = pg_catalog; SELECT "+strings.Join(parts, " OR "), func(row [][]byte) error {
		found = string(row[0]) == "t"
		return nil
	})
	return found, err
}

// polls bounds polls by the deadline of their socket: to watch a context costs more
// than the poll itself. The zero value is ready.
type polls struct {
	n uint64
	// seen is the snapshot of the newest poll since the newest window, if it found
	// nothing. The goroutine that polls owns it.
	seen *chunk.Snapshot

	mu sync.Mutex
	// conn is that of the poll under way.
	conn net.Conn
}

// begin begins a poll, unless ctx has ended.
func (p *polls) begin(ctx context.Context, conn net.Conn) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	p.n++
	p.conn = conn
	return conn.SetDeadline(time.Now().Add(stepLimit))
}

// end ends it.
func (p *polls) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	_ = p.conn.SetDeadline(time.Time{}) // one that is closed says so at its next use
	p.conn = nil
}

// interrupt ends the poll under way with an error. It is called when the context of
// begin has ended, by any goroutine.
func (p *polls) interrupt() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conn != nil {
		_ = p.conn.SetDeadline(time.Unix(1, 0))
	}
}
