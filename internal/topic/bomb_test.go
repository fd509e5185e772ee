package topic

import (
	"errors"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/kafkatest"
)

// TestBatchThatUnpacksTooFar: somebody else's compressed batch, small as it is in
// the topic, asks for more memory than a reader gives.
func TestBatchThatUnpacksTooFar(t *testing.T) {
	brokers := kafkatest.Fake(t)
	topic := open(t, brokers)
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.DefaultProduceTopic(topic.Name()),
		kgo.ProducerBatchCompression(kgo.GzipCompression()), kgo.ProducerBatchMaxBytes(2*maxUnpacked), kgo.BrokerMaxWriteBytes(4*maxUnpacked))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if err := client.ProduceSync(testContext(t), &kgo.Record{Value: make([]byte, maxUnpacked+1)}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	r, err := topic.Read(testContext(t), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if m, err := r.Next(testContext(t)); !errors.Is(err, millrace.ErrMalformed) {
		t.Errorf("read: a value of %d bytes, %v; want ErrMalformed", len(m.Value), err)
	}
}
