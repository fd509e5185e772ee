package control

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// ErrEpochMoved occurs when the stream's epoch is another one than it was when a
// new one was prepared: somebody else has begun one. Mend: look at it (millrace
// epoch show) before another is begun.
var ErrEpochMoved error = stopError("the stream's epoch has changed meanwhile")

// The row is compared whole in what names the epoch, so that of two who begin one
// at the same time only one does.
const streamEpoch = `
UPDATE millrace.stream SET epoch = $5, topic = $6, topic_id = $7, slot = nullif($8, '')
WHERE name = $1 AND id = $2 AND epoch = $3 AND topic_id = $4`

// BeginEpoch puts the epoch, topic, topic ID and slot of to in the place of those
// of from, which must be the registry's. After it, publishers start anew in to's
// topic. Errors: ErrEpochMoved, ErrNoStream, ErrNotInitialised.
func BeginEpoch(ctx context.Context, conn *pgx.Conn, from, to Stream) error {
	if to.Epoch <= from.Epoch || to.Topic == "" || to.TopicID == "" || to.Name != from.Name || to.ID != from.ID {
		return fmt.Errorf("begin epoch %v of stream %s after epoch %v: want a higher epoch of the same stream, with its topic", to.Epoch, from.Name, from.Epoch)
	}
	doing := fmt.Sprintf("begin epoch %v of stream %s", to.Epoch, from.Name)
	tag, err := conn.Exec(ctx, streamEpoch, from.Name, [16]byte(from.ID), int64(from.Epoch), from.TopicID,
		int64(to.Epoch), to.Topic, to.TopicID, to.Slot)
	if err != nil {
		return explain(doing, err)
	}
	if tag.RowsAffected() == 1 {
		return nil
	}
	now, err := LoadStream(ctx, conn, from.Name)
	if err != nil {
		return err
	}
	return fmt.Errorf("%s: %w: it was %v, in topic %s, and now is %v, in topic %s; mend: look at it with millrace epoch show before you begin another",
		doing, ErrEpochMoved, from.Epoch, from.Topic, now.Epoch, now.Topic)
}
