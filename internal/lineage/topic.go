// Package lineage knows which topics a configured stream has: one an epoch, and the
// one that its edges report to.
package lineage

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	"github.com/millrace-db/millrace/internal/config"
	"github.com/millrace-db/millrace/internal/edgestatus"
	"github.com/millrace-db/millrace/internal/topic"
)

// OpenTopic reaches the brokers of a stream. name is the topic's; empty means
// the configured one.
func OpenTopic(ctx context.Context, s *config.Stream, name string, log *slog.Logger) (*topic.Topic, error) {
	if name == "" {
		name = s.Kafka.Topic
	}
	t, err := topic.Open(ctx, topic.Config{Brokers: s.Kafka.Brokers, Topic: name, ClientID: "millrace-" + s.Name, Logger: log})
	if err != nil {
		return nil, fmt.Errorf("cannot reach Kafka at %s: %w; are the brokers running, and is streams.%s.kafka.brokers right?", strings.Join(s.Kafka.Brokers, ", "), err, s.Name)
	}
	return t, nil
}

// Reports is where the edges of a stream report to.
func Reports(s *config.Stream, client string, log *slog.Logger) topic.Config {
	return topic.Config{Brokers: s.Kafka.Brokers, Topic: edgestatus.TopicOf(s.Kafka.Topic), ClientID: client + s.Name, Logger: log}
}
