package harness

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/pgtest"
)

// lookInterval is the pause between two looks at the slot.
const lookInterval = 25 * time.Millisecond

// ConfirmWatch holds promise P8 against the source: what the slot says is
// confirmed must, at that moment, stand in the topic as accepted history.
type ConfirmWatch struct {
	DB      *pgtest.DB
	Witness *Witness
	// Looks counts comparisons of a confirmed position with the topic.
	Looks atomic.Int64
}

// Run looks until ctx ends and returns an error where a position was confirmed
// that the topic does not have.
func (c *ConfirmWatch) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		// What ends with ctx was cut off in the middle of a look.
		if err := c.look(ctx); err != nil && ctx.Err() == nil {
			return err
		}
		Pass(ctx, lookInterval)
	}
	return nil
}

// look reads the slot first and the topic after it.
func (c *ConfirmWatch) look(ctx context.Context) error {
	var text string
	err := c.DB.Pool.QueryRow(ctx, `SELECT confirmed_flush_lsn::text FROM pg_replication_slots
		WHERE database = current_database() AND slot_name LIKE 'millrace%' AND confirmed_flush_lsn IS NOT NULL`).Scan(&text)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the slot: %w", err)
	}
	confirmed, err := millrace.ParseLSN(text)
	if err != nil {
		return err
	}
	if err := c.Witness.Advance(ctx); err != nil {
		if errors.Is(err, context.Canceled) || !c.Witness.Broken() {
			return nil // a broker that is down says nothing about the history
		}
		return err
	}
	// Until the first copy is complete its slot may be made anew, further on
	// than what is in the topic; nothing is confirmed to it.
	if !c.Witness.Loaded() {
		return nil
	}
	c.Looks.Add(1)
	if confirmed > c.Witness.Position.LSN {
		return fmt.Errorf("the source was told that %v is done, and the topic's history ends at %v (index %v)",
			confirmed, c.Witness.Position.LSN, c.Witness.Index)
	}
	return nil
}
