package topic

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/IBM/sarama"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/finding"
)

// A compacted topic keeps the newest record of each key. It is no log: what edges
// say of themselves is kept in one.

const (
	settingSegmentBytes = "segment.bytes"
	settingSegmentAge   = "segment.ms"
	settingDirty        = "min.cleanable.dirty.ratio"
)

// CreateCompacted makes the topic as Create does, but compacted. Its segments are
// small and short-lived, because Kafka does not compact the one that is written.
func (t *Topic) CreateCompacted(ctx context.Context, replicas int) error {
	return t.createWith(ctx, replicas, map[string]string{
		settingPolicy:       "compact",
		settingTimestamp:    "LogAppendTime",
		settingSegmentBytes: strconv.Itoa(16 << 20),
		settingSegmentAge:   strconv.Itoa(10 * 60 * 1000),
		settingDirty:        "0.1",
		settingInSync:       wantedSettings(replicas)[settingInSync],
	})
}

// CheckCompacted asks the brokers and says what keeps the topic from keeping the
// newest record of each key.
func (t *Topic) CheckCompacted(ctx context.Context) ([]finding.Finding, error) {
	info, err := t.Info(ctx)
	if err != nil {
		return nil, err
	}
	return checkCompacted(t.config.Topic, &info), nil
}

func checkCompacted(name string, info *Info) []finding.Finding {
	f := findings{name: name, info: info}
	f.partitions("one is read", "delete it and let millrace init make it; edges report anew")
	if v := info.Settings[settingPolicy]; v != "compact" {
		f.add(finding.Problem, fmt.Sprintf("%s is %q: reports are lost with time, or are never removed", settingPolicy, v), f.alter(settingPolicy, "compact"))
	}
	f.appendTime("the age of a report is told by the clock of the edge")
	f.inSync()
	return f.all
}

// Put appends a record with a key, which takes the place of older ones of that
// key; a nil value removes them. It returns once all in-sync replicas have it,
// and keeps neither key nor value. After an error the outcome is unknown and the
// Topic is closed, as with Append.
func (t *Topic) Put(ctx context.Context, key, value []byte) error {
	p, err := t.begin(ctx)
	if err != nil {
		return fmt.Errorf("put into topic %s: %w", t.config.Topic, t.noTopic(err))
	}
	message := &sarama.ProducerMessage{Topic: t.config.Topic, Partition: 0, Key: sarama.ByteEncoder(key)}
	if value != nil {
		message.Value = sarama.ByteEncoder(value)
	}
	if _, err := p.send(ctx, message); err != nil {
		_ = t.Close()
		if errors.Is(err, sarama.ErrMessageSizeTooLarge) {
			err = fmt.Errorf("%w: %w", millrace.ErrTooLarge, err)
		}
		return fmt.Errorf("put into topic %s: %w", t.config.Topic, t.noTopic(err))
	}
	return nil
}
