package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
)

// KindCounts are numbers of entries by kind. In JSON it is an object of the
// kinds' names, without zeros.
type KindCounts [millrace.NumKinds]uint64

// MarshalJSON writes the names of the kinds.
func (k KindCounts) MarshalJSON() ([]byte, error) {
	m := make(map[string]uint64)
	for kind, n := range k {
		if n != 0 {
			m[millrace.Kind(kind).String()] = n
		}
	}
	return json.Marshal(m)
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (k *KindCounts) UnmarshalJSON(b []byte) error {
	var m map[string]uint64
	if err := json.Unmarshal(b, &m); err != nil {
		return err
	}
	*k = KindCounts{}
	for kind := range k {
		name := millrace.Kind(kind).String()
		if n, ok := m[name]; ok {
			k[kind] = n
			delete(m, name)
		}
	}
	for name := range m {
		return fmt.Errorf("read counts: unknown kind %q", name)
	}
	return nil
}

// Counts are numbers of entries by table and kind. Entries of no table count
// for table 0.
type Counts map[millrace.TableID]*KindCounts

// Add counts n entries.
func (c Counts) Add(table millrace.TableID, kind millrace.Kind, n uint64) {
	k := c[table]
	if k == nil {
		k = new(KindCounts)
		c[table] = k
	}
	k[kind] += n
}

// Total returns the number of all entries.
func (c Counts) Total() (n uint64) {
	for _, k := range c {
		for _, m := range k {
			n += m
		}
	}
	return n
}

// Equal reports whether both count the same.
func (c Counts) Equal(o Counts) bool { return c.within(o) && o.within(c) }

func (c Counts) within(o Counts) bool {
	for table, k := range c {
		var other KindCounts
		if p := o[table]; p != nil {
			other = *p
		}
		if *k != other {
			return false
		}
	}
	return true
}

// LedgerRow says what was published and read back from the topic.
type LedgerRow struct {
	// ID and WrittenAt are given by the database at insertion.
	ID        int64
	WrittenAt time.Time

	Stream    string
	Epoch     millrace.Epoch
	Term      millrace.Term
	Publisher millrace.PublisherID
	// First and Last are the indexes that the row covers, Chain is that at
	// Last.
	First, Last millrace.Index
	Chain       millrace.Chain
	TopicID     string
	// LastOffset is that of the record that ends at Last; StateOffset that of
	// the newest accepted state record, NoOffset if there is none.
	LastOffset, StateOffset millrace.Offset
	// Position is that at Last.
	Position millrace.Position
	// Captured are the counts that capture gave for First to Last, ReadBack
	// those found in the topic.
	Captured, ReadBack Counts
	// SourceTime is the commit time of the newest unit.
	SourceTime time.Time
}

const (
	ledgerInsert = `
INSERT INTO millrace.ledger (stream, epoch, term, publisher, first_index, last_index, chain, topic_id,
    last_offset, state_offset, position, token, captured, read_back, source_time)
VALUES ($1, $2, $3, $4, $5::text::numeric, $6::text::numeric, $7, $8,
    $9, nullif($10::bigint, -1), $11, $12::text::numeric, $13, $14, $15)`
	ledgerNewest = `
SELECT id, written_at, stream, epoch, term, publisher, first_index::text, last_index::text, chain, topic_id,
    last_offset, coalesce(state_offset, -1), position, captured, read_back, source_time
FROM millrace.ledger WHERE stream = $1 AND epoch = $2 ORDER BY id DESC LIMIT 1`
	ledgerAfter = `
SELECT id, written_at, stream, epoch, term, publisher, first_index::text, last_index::text, chain, topic_id,
    last_offset, coalesce(state_offset, -1), position, captured, read_back, source_time
FROM millrace.ledger WHERE stream = $1 AND epoch = $2 AND last_index > $3::text::numeric
ORDER BY first_index, id LIMIT $4`
	// The newest row that is older, and attests a state record that is still there.
	ledgerBefore = `
SELECT id, written_at, stream, epoch, term, publisher, first_index::text, last_index::text, chain, topic_id,
    last_offset, coalesce(state_offset, -1), position, captured, read_back, source_time
FROM millrace.ledger WHERE stream = $1 AND epoch = $2 AND written_at < now() - make_interval(secs => $3) AND state_offset >= $4
ORDER BY id DESC LIMIT 1`
	// The oldest row that attests a state record which is still there.
	ledgerFrom = `
SELECT id, written_at, stream, epoch, term, publisher, first_index::text, last_index::text, chain, topic_id,
    last_offset, coalesce(state_offset, -1), position, captured, read_back, source_time
FROM millrace.ledger WHERE stream = $1 AND epoch = $2 AND state_offset >= $3
ORDER BY id LIMIT 1`
	// The newest row of each epoch stays: recovery starts from it.
	ledgerPrune = `
DELETE FROM millrace.ledger l
WHERE stream = $1 AND written_at < now() - make_interval(secs => $2)
  AND id < (SELECT max(id) FROM millrace.ledger n WHERE n.stream = l.stream AND n.epoch = l.epoch)`
)

// InsertLedger writes one row. Errors: ErrNoStream, ErrNotInitialised.
func InsertLedger(ctx context.Context, conn *pgx.Conn, r *LedgerRow) error {
	captured, err := json.Marshal(r.Captured)
	if err != nil {
		return fmt.Errorf("write the ledger of stream %s: %w", r.Stream, err)
	}
	readBack, err := json.Marshal(r.ReadBack)
	if err != nil {
		return fmt.Errorf("write the ledger of stream %s: %w", r.Stream, err)
	}
	_, err = conn.Exec(ctx, ledgerInsert, r.Stream, int64(r.Epoch), int64(r.Term), [16]byte(r.Publisher),
		r.First.String(), r.Last.String(), r.Chain[:], r.TopicID,
		int64(r.LastOffset), int64(r.StateOffset), millrace.AppendPosition([]byte{}, r.Position),
		fmt.Sprint(r.Position.Token()), captured, readBack, r.SourceTime)
	if err != nil {
		return explain("write the ledger of stream "+r.Stream, err)
	}
	return nil
}

// NewestLedger reads the newest row of a stream's epoch, or nil if it has none.
// Errors: ErrNotInitialised.
func NewestLedger(ctx context.Context, conn *pgx.Conn, stream string, epoch millrace.Epoch) (*LedgerRow, error) {
	r, err := scanLedger(conn.QueryRow(ctx, ledgerNewest, stream, int64(epoch)))
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, explain("read the ledger of stream "+stream, err)
	}
	return r, nil
}

// LedgerBefore reads the newest row of a stream's epoch that is older than age and
// attests a state record at an offset or after it; nil if there is none. Errors:
// ErrNotInitialised.
func LedgerBefore(ctx context.Context, conn *pgx.Conn, stream string, epoch millrace.Epoch, age time.Duration, from millrace.Offset) (*LedgerRow, error) {
	r, err := scanLedger(conn.QueryRow(ctx, ledgerBefore, stream, int64(epoch), age.Seconds(), int64(from)))
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, explain("read the ledger of stream "+stream, err)
	}
	return r, nil
}

// LedgerFrom reads the oldest row of a stream's epoch that attests a state record at an
// offset or after it; nil if there is none. Errors: ErrNotInitialised.
func LedgerFrom(ctx context.Context, conn *pgx.Conn, stream string, epoch millrace.Epoch, from millrace.Offset) (*LedgerRow, error) {
	r, err := scanLedger(conn.QueryRow(ctx, ledgerFrom, stream, int64(epoch), int64(from)))
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, explain("read the ledger of stream "+stream, err)
	}
	return r, nil
}

// LedgerAfter reads at most limit rows of a stream's epoch that end after an index,
// in the order of their indexes. Errors: ErrNotInitialised.
func LedgerAfter(ctx context.Context, conn *pgx.Conn, stream string, epoch millrace.Epoch, after millrace.Index, limit int) ([]*LedgerRow, error) {
	rows, err := conn.Query(ctx, ledgerAfter, stream, int64(epoch), after.String(), limit)
	if err == nil {
		var all []*LedgerRow
		if all, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (*LedgerRow, error) { return scanLedger(row) }); err == nil {
			return all, nil
		}
	}
	return nil, explain("read the ledger of stream "+stream, err)
}

func scanLedger(row pgx.Row) (*LedgerRow, error) {
	var (
		r                   LedgerRow
		epoch, term         int64
		publisher           [16]byte
		first, last         string
		chain, position     []byte
		lastOffset, state   int64
		captured, readBacks []byte
	)
	err := row.Scan(&r.ID, &r.WrittenAt, &r.Stream, &epoch, &term, &publisher, &first, &last, &chain, &r.TopicID,
		&lastOffset, &state, &position, &captured, &readBacks, &r.SourceTime)
	if err != nil {
		return nil, err
	}
	r.Epoch, r.Term, r.Publisher = millrace.Epoch(epoch), millrace.Term(term), publisher
	r.LastOffset, r.StateOffset = millrace.Offset(lastOffset), millrace.Offset(state)
	if r.First, err = millrace.ParseIndex(first); err != nil {
		return nil, err
	}
	if r.Last, err = millrace.ParseIndex(last); err != nil {
		return nil, err
	}
	if len(chain) != len(r.Chain) {
		return nil, fmt.Errorf("row %d: chain of %d bytes: %w", r.ID, len(chain), millrace.ErrMalformed)
	}
	copy(r.Chain[:], chain)
	if r.Position, err = millrace.DecodePosition(position); err != nil {
		return nil, fmt.Errorf("row %d: %w", r.ID, err)
	}
	if err := json.Unmarshal(captured, &r.Captured); err != nil {
		return nil, fmt.Errorf("row %d: %w", r.ID, err)
	}
	if err := json.Unmarshal(readBacks, &r.ReadBack); err != nil {
		return nil, fmt.Errorf("row %d: %w", r.ID, err)
	}
	return &r, nil
}

// PruneLedger deletes a stream's rows that are older than keep, but never the
// newest of an epoch. It returns how many went. Errors: ErrNotInitialised.
func PruneLedger(ctx context.Context, conn *pgx.Conn, stream string, keep time.Duration) (int64, error) {
	tag, err := conn.Exec(ctx, ledgerPrune, stream, keep.Seconds())
	if err != nil {
		return 0, explain("prune the ledger of stream "+stream, err)
	}
	return tag.RowsAffected(), nil
}
