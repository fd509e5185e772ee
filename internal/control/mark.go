package control

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
)

// ErrDeposed occurs when a publisher decides to trim a topic after another one has
// begun to publish. Nothing was written, and nothing may be deleted.
var ErrDeposed = errors.New("another publisher has written to the ledger since")

// Mark is a place where a stream's topic may begin: a state record that the
// publisher's own fold has accepted.
type Mark struct {
	// Offset is that of the state record, Index the one that it stands behind.
	Offset millrace.Offset
	Index  millrace.Index
	// Bytes are those of the records before it, counted from wherever marks began.
	Bytes uint64
	// Age is how long ago it was written, by the database's clock.
	Age time.Duration
}

// Trim is a decision to let a topic begin at a mark.
type Trim struct {
	Stream    string
	Epoch     millrace.Epoch
	Term      millrace.Term
	Publisher millrace.PublisherID
	Offset    millrace.Offset
	Index     millrace.Index
	// Forced tells that what edges need was not looked at.
	Forced bool
}

const (
	markInsert = `
INSERT INTO millrace.mark (stream, epoch, log_offset, last_index, bytes) VALUES ($1, $2, $3, $4::text::numeric, $5::text::numeric)
ON CONFLICT (stream, epoch, log_offset) DO NOTHING`
	markAll = `
SELECT log_offset, last_index::text, bytes::text, greatest(extract(epoch FROM clock_timestamp() - marked_at), 0)::float8
FROM millrace.mark WHERE stream = $1 AND epoch = $2 ORDER BY log_offset`
	markDrop = `DELETE FROM millrace.mark WHERE stream = $1 AND (epoch < $2 OR epoch = $2 AND log_offset < $3)`
	// Of marks that are older than a day one an hour is enough.
	markThin = `
DELETE FROM millrace.mark m
WHERE stream = $1 AND epoch = $2 AND marked_at < now() - interval '1 day'
  AND EXISTS (SELECT FROM millrace.mark o WHERE o.stream = m.stream AND o.epoch = m.epoch AND o.log_offset < m.log_offset
    AND date_trunc('hour', o.marked_at) = date_trunc('hour', m.marked_at))
  AND log_offset > (SELECT min(log_offset) FROM millrace.mark f WHERE f.stream = m.stream AND f.epoch = m.epoch)`
	trimDecide = `
INSERT INTO millrace.trim AS t (stream, epoch, term, publisher, log_offset, last_index, forced)
SELECT $1, $2, $3, $4, $5, $6::text::numeric, $7
FROM millrace.stream s
WHERE s.name = $1 AND s.epoch = $2
  AND NOT EXISTS (SELECT FROM millrace.ledger l WHERE l.stream = $1 AND (l.epoch > $2 OR l.epoch = $2 AND l.term > $3))
ON CONFLICT (stream) DO UPDATE
SET epoch = excluded.epoch, term = excluded.term, publisher = excluded.publisher, log_offset = excluded.log_offset,
    last_index = excluded.last_index, forced = excluded.forced, decided_at = excluded.decided_at
WHERE t.epoch < excluded.epoch OR t.epoch = excluded.epoch AND t.term <= excluded.term`
)

// InsertMark writes a mark; one that is there already stays. Errors: ErrNoStream,
// ErrNotInitialised, ErrRights.
func InsertMark(ctx context.Context, conn *pgx.Conn, stream string, epoch millrace.Epoch, m Mark) error {
	_, err := conn.Exec(ctx, markInsert, stream, int64(epoch), int64(m.Offset), m.Index.String(), fmt.Sprint(m.Bytes))
	if err != nil {
		return explain("write a mark of stream "+stream, err)
	}
	return nil
}

// Marks returns those of a stream's epoch in the order of their offsets. Errors:
// ErrNotInitialised, ErrRights.
func Marks(ctx context.Context, conn *pgx.Conn, stream string, epoch millrace.Epoch) ([]Mark, error) {
	rows, err := conn.Query(ctx, markAll, stream, int64(epoch))
	if err == nil {
		var all []Mark
		if all, err = pgx.CollectRows(rows, scanMark); err == nil {
			return all, nil
		}
	}
	return nil, explain("read the marks of stream "+stream, err)
}

func scanMark(row pgx.CollectableRow) (m Mark, err error) {
	var offset int64
	var index, bytes string
	var age float64
	if err := row.Scan(&offset, &index, &bytes, &age); err != nil {
		return m, err
	}
	m.Offset, m.Age = millrace.Offset(offset), time.Duration(age*float64(time.Second))
	if m.Index, err = millrace.ParseIndex(index); err != nil {
		return m, err
	}
	n, err := millrace.ParseIndex(bytes) // as many digits as a number of bytes may have
	m.Bytes = uint64(n)
	return m, err
}

// DropMarks deletes those of earlier epochs, and of this one before an offset.
// Errors: ErrNotInitialised, ErrRights.
func DropMarks(ctx context.Context, conn *pgx.Conn, stream string, epoch millrace.Epoch, before millrace.Offset) error {
	if _, err := conn.Exec(ctx, markDrop, stream, int64(epoch), int64(before)); err != nil {
		return explain("delete marks of stream "+stream, err)
	}
	return nil
}

// ThinMarks leaves the first of each hour of those that are older than a day.
// Errors: ErrNotInitialised, ErrRights.
func ThinMarks(ctx context.Context, conn *pgx.Conn, stream string, epoch millrace.Epoch) error {
	if _, err := conn.Exec(ctx, markThin, stream, int64(epoch)); err != nil {
		return explain("thin out the marks of stream "+stream, err)
	}
	return nil
}

// DecideTrim notes that a topic is to begin at a mark. It gives ErrDeposed where the
// ledger, the registry or an earlier decision are of a later term or epoch: then
// nothing is deleted. Other errors: ErrNotInitialised, ErrRights.
func DecideTrim(ctx context.Context, conn *pgx.Conn, t Trim) error {
	doing := "decide to trim the topic of stream " + t.Stream
	tag, err := conn.Exec(ctx, trimDecide, t.Stream, int64(t.Epoch), int64(t.Term), [16]byte(t.Publisher), int64(t.Offset), t.Index.String(), t.Forced)
	if err != nil {
		return explain(doing, err)
	}
	if tag.RowsAffected() == 0 {
		return fmt.Errorf("%s: %w", doing, ErrDeposed)
	}
	return nil
}
