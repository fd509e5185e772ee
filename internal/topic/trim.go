package topic

import (
	"context"
	"fmt"

	"github.com/IBM/sarama"

	"github.com/millrace-db/millrace"
)

// DeleteBefore deletes the topic's records before an offset, for good, and returns
// where the topic begins then: there, or later if it did already. The caller knows
// that nobody needs them. After an error the records may be gone or not; to ask again
// is harmless. The brokers want the right to delete on the topic.
func (t *Topic) DeleteBefore(ctx context.Context, offset millrace.Offset) (millrace.Offset, error) {
	start, err := t.deleteBefore(ctx, offset)
	if err != nil {
		return millrace.NoOffset, fmt.Errorf("delete the records of topic %s before offset %v: %w", t.config.Topic, offset, t.noTopic(err))
	}
	return start, nil
}

func (t *Topic) deleteBefore(ctx context.Context, offset millrace.Offset) (millrace.Offset, error) {
	c, err := t.meet(ctx)
	if err != nil {
		return millrace.NoOffset, err
	}
	defer c.close()
	admin, err := sarama.NewClusterAdminFromClient(c.client)
	if err != nil {
		return millrace.NoOffset, c.explain(ctx, err)
	}
	if err := admin.DeleteRecords(t.config.Topic, map[int32]int64{0: int64(offset)}); err != nil {
		return millrace.NoOffset, c.explain(ctx, err)
	}
	start, err := c.client.GetOffset(t.config.Topic, 0, sarama.OffsetOldest)
	if err != nil {
		return millrace.NoOffset, c.explain(ctx, err)
	}
	if millrace.Offset(start) < offset {
		return millrace.NoOffset, fmt.Errorf("the brokers said that it was done, and the topic begins at offset %d", start)
	}
	return millrace.Offset(start), nil
}
