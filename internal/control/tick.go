package control

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
)

// Logged is what a window of trigger capture counted of a table, by SQL: changes by
// what they did, and the distinct keys among them, each of which is one entry.
type Logged struct {
	Inserted  uint64 `json:"inserted"`
	Updated   uint64 `json:"updated"`
	Deleted   uint64 `json:"deleted"`
	Truncated uint64 `json:"truncated"`
	Keys      uint64 `json:"keys"`
}

// Tick is a window as the source has it.
type Tick struct {
	Number uint64
	Tables map[millrace.TableID]Logged
}

const (
	ticksAfter = `
SELECT tick, counts->'tables' FROM millrace.tick
WHERE stream = $1 AND epoch = $2 AND tick > $3 ORDER BY tick LIMIT $4`
	tickOldest = `SELECT coalesce(min(tick), 0) FROM millrace.tick WHERE stream = $1 AND epoch = $2`
)

// TicksAfter reads at most limit ticks of a stream's epoch after a number, in their
// order. Errors: ErrNotInitialised.
func TicksAfter(ctx context.Context, conn *pgx.Conn, stream string, epoch millrace.Epoch, after uint64, limit int) ([]Tick, error) {
	var all []Tick
	rows, err := conn.Query(ctx, ticksAfter, stream, int64(epoch), int64(after), limit) //nolint:gosec // it came out of a bigint
	if err == nil {
		var number int64
		var tables []byte
		_, err = pgx.ForEachRow(rows, []any{&number, &tables}, func() error {
			t := Tick{Number: uint64(number)} //nolint:gosec // numbers count from 1
			if err := json.Unmarshal(tables, &t.Tables); err != nil {
				return fmt.Errorf("tick %d: %w", number, err)
			}
			all = append(all, t)
			return nil
		})
	}
	if err != nil {
		return nil, explain("read the ticks of stream "+stream, err)
	}
	return all, nil
}

// OldestTick returns the lowest number that the source keeps, 0 for none. Errors:
// ErrNotInitialised.
func OldestTick(ctx context.Context, conn *pgx.Conn, stream string, epoch millrace.Epoch) (uint64, error) {
	var oldest int64
	if err := conn.QueryRow(ctx, tickOldest, stream, int64(epoch)).Scan(&oldest); err != nil {
		return 0, explain("read the ticks of stream "+stream, err)
	}
	return uint64(oldest), nil //nolint:gosec // numbers count from 1
}
