package topic

import (
	"errors"
	"testing"

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
