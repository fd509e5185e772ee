package kafkatest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

func TestMain(m *testing.M) { Main(m) }

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func newClient(t *testing.T, brokers []string, topic string) *kgo.Client {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.DefaultProduceTopic(topic), kgo.ConsumeTopics(topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

func createTopic(t *testing.T, client *kgo.Client, topic string, replicas int16) {
	t.Helper()
	request := kmsg.NewPtrCreateTopicsRequest()
	request.TimeoutMillis = 60_000
	one := kmsg.NewCreateTopicsRequestTopic()
	one.Topic, one.NumPartitions, one.ReplicationFactor = topic, 1, replicas
	request.Topics = append(request.Topics, one)
	response, err := request.RequestWith(testContext(t), client)
	if err != nil {
		t.Fatal(err)
	}
	if err := kerr.ErrorForCode(response.Topics[0].ErrorCode); err != nil {
		t.Fatal(err)
	}
}

func produce(t *testing.T, client *kgo.Client, value string) {
	t.Helper()
	if err := client.ProduceSync(testContext(t), &kgo.Record{Value: []byte(value)}).FirstErr(); err != nil {
		t.Fatalf("produce %s: %v", value, err)
	}
}

// consume reads until it has n values.
func consume(t *testing.T, client *kgo.Client, n int) []string {
	t.Helper()
	ctx := testContext(t)
	var values []string
	var last error // such as that there is no topic yet, from before there was one
	for len(values) < n {
		fetches := client.PollFetches(ctx)
		if ctx.Err() != nil {
			t.Fatalf("consume: %v; so far %v", errors.Join(context.Cause(ctx), last), values)
		}
		if err := fetches.Err(); err != nil {
			last = err
		}
		fetches.EachRecord(func(r *kgo.Record) { values = append(values, string(r.Value)) })
	}
	return values
}

func TestFake(t *testing.T) {
	brokers := Fake(t)
	for _, address := range brokers {
		if !strings.HasPrefix(address, "127.0.0.1:") {
			t.Errorf("the in-process broker listens on %s, want loopback", address)
		}
	}
	topic := Topic(t)
	client := newClient(t, brokers, topic)
	createTopic(t, client, topic, 1)
	produce(t, client, "a")
	if got := consume(t, client, 1); !slices.Equal(got, []string{"a"}) {
		t.Errorf("consumed %v", got)
	}
}

func TestSharedMakesNoTopics(t *testing.T) {
	cluster := Shared(t)
	if cluster != Shared(t) {
		t.Error("two calls of Shared give two clusters")
	}
	client := newClient(t, cluster.Brokers(), "never-made")
	request := kmsg.NewPtrMetadataRequest()
	request.AllowAutoTopicCreation = true
	one := kmsg.NewMetadataRequestTopic()
	one.Topic = kmsg.StringPtr("never-made")
	request.Topics = append(request.Topics, one)
	response, err := request.RequestWith(testContext(t), client)
	if err != nil {
		t.Fatal(err)
	}
	if err := kerr.ErrorForCode(response.Topics[0].ErrorCode); !errors.Is(err, kerr.UnknownTopicOrPartition) {
		t.Errorf("metadata of a missing topic: got %v, want unknown", err)
	}
}

func TestOneNodeKilled(t *testing.T) {
	cluster := Start(t, 1)
	topic := Topic(t)
	client := newClient(t, cluster.Brokers(), topic)
	createTopic(t, client, topic, 1)
	produce(t, client, "before")
	segments, err := filepath.Glob(filepath.Join(cluster.LogDir(0), topic+"-0", "*.log"))
	if err != nil || len(segments) != 1 {
		t.Errorf("segments: %v, %v, want one", segments, err)
	}
	pid := cluster.PID(0)
	if err := cluster.Kill(0); err != nil {
		t.Fatal(err)
	}
	if err := cluster.Restart(); err != nil {
		t.Fatal(err)
	}
	if cluster.PID(0) == pid {
		t.Errorf("PID after a restart is still %d", pid)
	}
	produce(t, client, "after")
	if got, want := consume(t, client, 2), []string{"before", "after"}; !slices.Equal(got, want) {
		t.Errorf("consumed %v, want %v", got, want)
	}
}

func TestThreeNodesWithOneDown(t *testing.T) {
	cluster := Start(t, 3)
	topic := Topic(t)
	client := newClient(t, cluster.Brokers(), topic)
	createTopic(t, client, topic, 3)
	produce(t, client, "all")
	if err := cluster.Kill(0); err != nil {
		t.Fatal(err)
	}
	produce(t, client, "killed")
	if err := cluster.Restart(0); err != nil {
		t.Fatal(err)
	}
	if err := cluster.Stop(1); err != nil {
		t.Fatal(err)
	}
	if err := cluster.Pause(1); err == nil {
		t.Error("pausing a stopped node gives no error")
	}
	produce(t, client, "stopped")
	if err := cluster.Restart(); err != nil {
		t.Fatal(err)
	}
	if err := cluster.Pause(2); err != nil {
		t.Fatal(err)
	}
	produce(t, client, "paused")
	if err := cluster.Resume(2); err != nil {
		t.Fatal(err)
	}
	produce(t, client, "resumed")
	want := []string{"all", "killed", "stopped", "paused", "resumed"}
	if got := consume(t, client, len(want)); !slices.Equal(got, want) {
		t.Errorf("consumed %v, want %v", got, want)
	}
}

func TestMissingJars(t *testing.T) {
	t.Setenv(homeEnv, t.TempDir())
	_, err := start(t.TempDir(), 1, false, session)
	if err == nil || !strings.Contains(err.Error(), "make setup") || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("start without jars: got %v, want the mend", err)
	}
}
