package proof

import (
	"context"
	"fmt"
	"strconv"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture/chunk"
	"github.com/millrace-db/millrace/edge"
)

// heartbeat is a transaction of its own whose commit flows through the stream.
// The LSN it gives is before its commit's.
const heartbeat = `SELECT pg_logical_emit_message(true, 'millrace.heartbeat', $1::text)::text`

// number is a transaction of its own that does nothing but get its number.
const number = `SELECT pg_current_xact_id()::text`

// mark is a place in the history of the source: the commit of a transaction. What
// carries it depends on how the source is captured.
type mark struct {
	mode millrace.Mode
	lsn  millrace.LSN // not after the commit in the WAL (WAL mode)
	xid  chunk.XID    // of the transaction (trigger mode)
}

// setMark commits a transaction of the stream. In WAL mode it is a heartbeat, which
// comes to the edge by itself; by triggers it comes with the next window that has
// anything in it, or with the capture's own heartbeat.
func setMark(ctx context.Context, conn *pgx.Conn, mode millrace.Mode, stream string) (m mark, err error) {
	m.mode = mode
	var text string
	if mode == millrace.ModeTrigger {
		if err := conn.QueryRow(ctx, number).Scan(&text); err != nil {
			return m, fmt.Errorf("commit a transaction: %w", err)
		}
		xid, err := strconv.ParseUint(text, 10, 64)
		m.xid = chunk.XID(xid)
		return m, err
	}
	if err := conn.QueryRow(ctx, heartbeat, stream).Scan(&text); err != nil {
		return m, fmt.Errorf("commit a heartbeat: %w", err)
	}
	m.lsn, err = millrace.ParseLSN(text)
	return m, err
}

// passed reports whether all that was committed before the mark was set, and the
// mark, comes before p in the stream.
func (m *mark) passed(p *millrace.Position) (bool, error) {
	if m.mode != millrace.ModeTrigger || p.IsZero() {
		return !p.IsZero() && p.LSN >= m.lsn, nil
	}
	s, err := chunk.ParseSnapshot(p.Snapshot)
	if err != nil {
		return false, err
	}
	return s.Sees(m.xid), nil
}

func (m *mark) String() string {
	if m.mode == millrace.ModeTrigger {
		return fmt.Sprintf("transaction %d", m.xid)
	}
	return m.lsn.String()
}

// applied returns where the newest unit in the store ended at the source, zero if
// there is none.
func applied(ctx context.Context, store *edge.Store) (p millrace.Position, index millrace.Index, err error) {
	err = store.View(ctx, func(v *edge.View) error {
		checkpoint, err := v.Checkpoint()
		if err != nil || checkpoint == nil {
			return err
		}
		p, index = checkpoint.Position, checkpoint.Index
		return nil
	})
	return p, index, err
}
