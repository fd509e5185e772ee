package harness

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const adminLimit = 30 * time.Second

// withAdmin runs do with a client of its own.
func (s *System) withAdmin(doing string, do func(context.Context, *kgo.Client) error) {
	s.T.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(s.Kafka.Brokers()...))
	must(s.T, doing, err)
	defer client.Close()
	ctx, cancel := context.WithTimeout(s.T.Context(), adminLimit)
	defer cancel()
	must(s.T, doing, do(ctx, client))
}

// CreateTopic makes the system's topic by hand, with Kafka's own defaults but
// for settings, and returns when the broker shows it.
func (s *System) CreateTopic(partitions int32, settings map[string]string) {
	s.T.Helper()
	s.withAdmin("create topic "+s.Topic, func(ctx context.Context, client *kgo.Client) error {
		topic := kmsg.NewCreateTopicsRequestTopic()
		topic.Topic, topic.NumPartitions, topic.ReplicationFactor = s.Topic, partitions, 1
		for name, value := range settings {
			c := kmsg.NewCreateTopicsRequestTopicConfig()
			c.Name, c.Value = name, kmsg.StringPtr(value)
			topic.Configs = append(topic.Configs, c)
		}
		req := kmsg.NewPtrCreateTopicsRequest()
		req.Topics = append(req.Topics, topic)
		req.TimeoutMillis = int32(adminLimit.Milliseconds())
		resp, err := req.RequestWith(ctx, client)
		if err != nil {
			return err
		}
		if err := kerr.ErrorForCode(resp.Topics[0].ErrorCode); err != nil {
			return err
		}
		return s.awaitPartitions(ctx, client, partitions)
	})
}

// shown is the system's topic as the broker shows it.
func (s *System) shown(ctx context.Context, client *kgo.Client) (*kmsg.MetadataResponseTopic, error) {
	req := kmsg.NewPtrMetadataRequest()
	topic := kmsg.NewMetadataRequestTopic()
	topic.Topic = kmsg.StringPtr(s.Topic)
	req.Topics = append(req.Topics, topic)
	resp, err := req.RequestWith(ctx, client)
	if err != nil {
		return nil, err
	}
	return &resp.Topics[0], nil
}

// awaitPartitions waits until the broker shows the system's topic with n partitions: the
// controller answers before every broker knows.
func (s *System) awaitPartitions(ctx context.Context, client *kgo.Client, n int32) error {
	return Wait(ctx, adminLimit, func(ctx context.Context) error {
		t, err := s.shown(ctx, client)
		if err != nil {
			return err
		}
		if t.ErrorCode != 0 || len(t.Partitions) != int(n) {
			return NotYet("the broker shows %d partitions (%v)", len(t.Partitions), kerr.ErrorForCode(t.ErrorCode))
		}
		return nil
	})
}

// DeleteTopic deletes the system's topic and returns when it is gone.
func (s *System) DeleteTopic() {
	s.T.Helper()
	s.withAdmin("delete topic "+s.Topic, func(ctx context.Context, client *kgo.Client) error {
		topic := kmsg.NewDeleteTopicsRequestTopic()
		topic.Topic = kmsg.StringPtr(s.Topic)
		req := kmsg.NewPtrDeleteTopicsRequest()
		req.Topics, req.TopicNames = append(req.Topics, topic), []string{s.Topic}
		req.TimeoutMillis = int32(adminLimit.Milliseconds())
		resp, err := req.RequestWith(ctx, client)
		if err != nil {
			return err
		}
		if err := kerr.ErrorForCode(resp.Topics[0].ErrorCode); err != nil {
			return err
		}
		return Wait(ctx, adminLimit, func(ctx context.Context) error {
			t, err := s.shown(ctx, client)
			if err == nil && t.ErrorCode != kerr.UnknownTopicOrPartition.Code {
				err = NotYet("the broker still shows it")
			}
			return err
		})
	})
}

// AddPartitions makes the system's topic one of n partitions, and returns when the broker
// shows them.
func (s *System) AddPartitions(n int32) {
	s.T.Helper()
	s.withAdmin("add partitions to topic "+s.Topic, func(ctx context.Context, client *kgo.Client) error {
		topic := kmsg.NewCreatePartitionsRequestTopic()
		topic.Topic, topic.Count = s.Topic, n
		req := kmsg.NewPtrCreatePartitionsRequest()
		req.Topics = append(req.Topics, topic)
		req.TimeoutMillis = int32(adminLimit.Milliseconds())
		resp, err := req.RequestWith(ctx, client)
		if err != nil {
			return err
		}
		if err := kerr.ErrorForCode(resp.Topics[0].ErrorCode); err != nil {
			return err
		}
		return s.awaitPartitions(ctx, client, n)
	})
}

// SetTopic changes a setting of the system's topic and returns when the broker
// shows it.
func (s *System) SetTopic(name, value string) {
	s.T.Helper()
	doing := fmt.Sprintf("set %s of topic %s to %s", name, s.Topic, value)
	s.withAdmin(doing, func(ctx context.Context, client *kgo.Client) error {
		config := kmsg.NewIncrementalAlterConfigsRequestResourceConfig()
		config.Name, config.Op, config.Value = name, kmsg.IncrementalAlterConfigOpSet, kmsg.StringPtr(value)
		resource := kmsg.NewIncrementalAlterConfigsRequestResource()
		resource.ResourceType, resource.ResourceName = kmsg.ConfigResourceTypeTopic, s.Topic
		resource.Configs = append(resource.Configs, config)
		req := kmsg.NewPtrIncrementalAlterConfigsRequest()
		req.Resources = append(req.Resources, resource)
		resp, err := req.RequestWith(ctx, client)
		if err != nil {
			return err
		}
		if err := kerr.ErrorForCode(resp.Resources[0].ErrorCode); err != nil {
			return err
		}
		return Wait(ctx, adminLimit, func(ctx context.Context) error { return s.topicHas(ctx, client, name, value) })
	})
}

func (s *System) topicHas(ctx context.Context, client *kgo.Client, name, value string) error {
	resource := kmsg.NewDescribeConfigsRequestResource()
	resource.ResourceType, resource.ResourceName, resource.ConfigNames = kmsg.ConfigResourceTypeTopic, s.Topic, []string{name}
	req := kmsg.NewPtrDescribeConfigsRequest()
	req.Resources = append(req.Resources, resource)
	resp, err := req.RequestWith(ctx, client)
	if err != nil {
		return err
	}
	for _, r := range resp.Resources {
		for _, c := range r.Configs {
			if c.Name == name && c.Value != nil && *c.Value == value {
				return nil
			}
		}
	}
	return NotYet("the broker does not show it")
}

// Produce appends records to partition 0 of the system's topic, as a hostile or
// mistaken producer would.
func (s *System) Produce(values ...[]byte) {
	s.T.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(s.Kafka.Brokers()...), kgo.DefaultProduceTopic(s.Topic),
		kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.ProducerBatchMaxBytes(20<<20))
	must(s.T, "produce to topic "+s.Topic, err)
	defer client.Close()
	ctx, cancel := context.WithTimeout(s.T.Context(), adminLimit)
	defer cancel()
	for _, value := range values {
		must(s.T, "produce to topic "+s.Topic, client.ProduceSync(ctx, &kgo.Record{Value: value}).FirstErr())
	}
}

// Records reads the system's topic from its start to its end.
func (s *System) Records(t testing.TB) [][]byte {
	t.Helper()
	w := s.Witness()
	var values [][]byte
	ctx, cancel := context.WithTimeout(t.Context(), adminLimit)
	defer cancel()
	must(t, "read topic "+s.Topic, w.each(ctx, func(_ int64, value []byte) error {
		values = append(values, value)
		return nil
	}))
	return values
}
