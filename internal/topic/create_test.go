package topic

import (
	"errors"
	"testing"

	"github.com/IBM/sarama"
	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/millrace-db/millrace/internal/kafkatest"
)

// TestAskingMakesNoTopic: brokers that make what they are asked for would make a
// topic with their own defaults, that is with retention.
func TestAskingMakesNoTopic(t *testing.T) {
	topic := openConfig(t, Config{Brokers: kafkatest.Fake(t, kfake.AllowAutoTopicCreation()), Topic: "missing"})
	if _, err := topic.Append(testContext(t), []byte("x"), 1, 1); err == nil {
		t.Error("append to a missing topic gives no error")
	}
	topic = openConfig(t, topic.config) // one whose append failed is closed
	r, err := topic.Read(testContext(t), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := r.Next(testContext(t)); !errors.Is(err, ErrNoTopic) {
		t.Errorf("read: %v", err)
	}
	if _, err := topic.Info(testContext(t)); !errors.Is(err, ErrNoTopic) {
		t.Errorf("the topic was made by asking for it: %v", err)
	}
}

// TestEveryBrokerKnows has two brokers, of which one learns of a new topic later, and one
// that is down.
func TestEveryBrokerKnows(t *testing.T) {
	var brokers []*sarama.MockBroker
	for id := range int32(2) {
		b := sarama.NewMockBroker(t, id+1)
		defer b.Close()
		brokers = append(brokers, b)
	}
	answer := func(b *sarama.MockBroker, knows bool) {
		m := sarama.NewMockMetadataResponse(t).SetController(1).SetBroker("127.0.0.1:1", 3)
		for i, one := range brokers {
			m.SetBroker(one.Addr(), int32(i)+1) //nolint:gosec // two
		}
		if knows {
			m.SetLeader("late", 0, 1)
		} else {
			m.SetError("late", sarama.ErrUnknownTopicOrPartition)
		}
		b.SetHandlerByMap(map[string]sarama.MockResponse{
			"ApiVersionsRequest": sarama.NewMockApiVersionsResponse(t).SetApiKeys([]sarama.ApiVersionsResponseKey{{ApiKey: 3, MaxVersion: 9}}), // metadata
			"MetadataRequest":    m,
		})
	}
	topic := &Topic{config: Config{Brokers: []string{brokers[0].Addr()}, Topic: "late", ClientID: "test"}}
	answer(brokers[0], true)
	answer(brokers[1], false)
	if err := topic.everywhere(testContext(t)); !errors.Is(err, sarama.ErrUnknownTopicOrPartition) {
		t.Errorf("while one broker does not know the topic: %v", err)
	}
	answer(brokers[1], true)
	if err := topic.everywhere(testContext(t)); err != nil {
		t.Errorf("when both know the topic: %v", err)
	}
}
