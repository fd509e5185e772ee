package embeddedkafka

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"go.uber.org/goleak"

	"github.com/millrace-db/millrace/internal/kafkatest"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if code == 0 {
		ctx, cancel := context.WithTimeout(context.Background(), waitLimit)
		if err := kafkatest.Leaks(ctx, goleak.IgnoreAnyFunction("github.com/rcrowley/go-metrics.(*meterArbiter).tick")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
		cancel()
	}
	os.Exit(code)
}

const (
	topic     = "millrace.bank"
	waitLimit = time.Minute // of every wait; the machine may be busy with other tests
)

// settings are those of a stream's topic.
var settings = map[string]string{ // a table of cases
	"cleanup.policy":         "delete",
	"retention.ms":           "-1",
	"retention.bytes":        "-1",
	"message.timestamp.type": "LogAppendTime",
	"max.message.bytes":      "20971520",
}

func startBroker(t *testing.T, dir string) *Broker {
	t.Helper()
	broker, err := Start(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := broker.Close(); err != nil {
			t.Error(err)
		}
	})
	return broker
}

func clientConfig() *sarama.Config {
	cfg := sarama.NewConfig()
	cfg.Version = sarama.V3_6_0_0
	cfg.Producer.RequiredAcks = sarama.WaitForAll
	cfg.Producer.Idempotent = true
	cfg.Producer.Return.Successes = true
	cfg.Producer.MaxMessageBytes = 20 << 20
	cfg.Net.MaxOpenRequests = 1
	cfg.Metadata.AllowAutoTopicCreation = false
	return cfg
}

func newAdmin(t *testing.T, addrs []string) sarama.ClusterAdmin {
	t.Helper()
	admin, err := sarama.NewClusterAdmin(addrs, clientConfig())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := admin.Close(); err != nil {
			t.Error(err)
		}
	})
	return admin
}

func createTopic(t *testing.T, admin sarama.ClusterAdmin) {
	t.Helper()
	entries := map[string]*string{}
	for name, value := range settings {
		entries[name] = &value
	}
	if err := admin.CreateTopic(topic, &sarama.TopicDetail{NumPartitions: 1, ReplicationFactor: 1, ConfigEntries: entries}, false); err != nil {
		t.Fatal(err)
	}
}

func topicID(t *testing.T, admin sarama.ClusterAdmin) sarama.Uuid {
	t.Helper()
	metadata, err := admin.DescribeTopics([]string{topic})
	if err != nil {
		t.Fatal(err)
	}
	if len(metadata) != 1 || metadata[0].Err != sarama.ErrNoError {
		t.Fatalf("describe topic: %+v", metadata)
	}
	if n := len(metadata[0].Partitions); n != 1 {
		t.Errorf("partitions: got %d, want 1", n)
	}
	return metadata[0].Uuid
}

func produce(t *testing.T, addrs []string, values ...string) {
	t.Helper()
	producer, err := sarama.NewSyncProducer(addrs, clientConfig())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := producer.Close(); err != nil {
			t.Error(err)
		}
	}()
	for _, value := range values {
		if _, _, err := producer.SendMessage(&sarama.ProducerMessage{Topic: topic, Value: sarama.StringEncoder(value)}); err != nil {
			t.Fatalf("produce: %v", err)
		}
	}
}

// consume reads n messages from the start.
func consume(t *testing.T, addrs []string, n int) []*sarama.ConsumerMessage {
	t.Helper()
	consumer, err := sarama.NewConsumer(addrs, clientConfig())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := consumer.Close(); err != nil {
			t.Error(err)
		}
	}()
	partition, err := consumer.ConsumePartition(topic, 0, sarama.OffsetOldest)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := partition.Close(); err != nil {
			t.Error(err)
		}
	}()
	deadline := time.After(waitLimit)
	var messages []*sarama.ConsumerMessage
	for len(messages) < n {
		select {
		case m := <-partition.Messages():
			messages = append(messages, m)
		case <-deadline:
			t.Fatalf("got %d of %d messages", len(messages), n)
		}
	}
	return messages
}

func values(messages []*sarama.ConsumerMessage) []string {
	var all []string
	for _, m := range messages {
		all = append(all, string(m.Value))
	}
	return all
}

func TestTopicSettingsAreReadBack(t *testing.T) {
	broker := startBroker(t, t.TempDir())
	admin := newAdmin(t, broker.Addrs())
	createTopic(t, admin)
	resources, err := admin.DescribeConfigs([]*sarama.ConfigResource{{Type: sarama.TopicResource, Name: topic}}, sarama.DescribeConfigsOptions{})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, entry := range resources[0].Configs {
		got[entry.Name] = entry.Value
	}
	for name, want := range settings {
		if got[name] != want {
			t.Errorf("%s: got %q, want %q", name, got[name], want)
		}
	}
}

func TestDataAndTopicIDSurvive(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "broker")
	big := strings.Repeat("x", 16<<20)
	start := time.Now()

	first := startBroker(t, dir)
	admin := newAdmin(t, first.Addrs())
	createTopic(t, admin)
	id := topicID(t, admin)
	if id == (sarama.Uuid{}) {
		t.Error("the topic has no ID")
	}
	produce(t, first.Addrs(), "one", big)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}

	second := startBroker(t, dir)
	if got := topicID(t, newAdmin(t, second.Addrs())); got != id {
		t.Errorf("topic ID after a restart: got %v, want %v", got, id)
	}
	produce(t, second.Addrs(), "three")
	messages := consume(t, second.Addrs(), 3)
	if got, want := values(messages), []string{"one", big, "three"}; !slices.Equal(got, want) {
		t.Errorf("consumed %d messages, want one, 16 MiB, three", len(got))
	}
	for i, m := range messages {
		if m.Offset != int64(i) {
			t.Errorf("message %d has offset %d", i, m.Offset)
		}
		if m.Timestamp.Before(start.Add(-time.Second)) || m.Timestamp.After(time.Now().Add(time.Second)) {
			t.Errorf("message %d: time %s is not of this test", i, m.Timestamp)
		}
	}
}

func TestDirectoryIsExclusive(t *testing.T) {
	dir := t.TempDir()
	broker := startBroker(t, dir)
	if _, err := Start(Config{Dir: dir}); !errors.Is(err, ErrInUse) {
		t.Errorf("second broker on the same directory: got %v, want ErrInUse", err)
	}
	if err := broker.Close(); err != nil {
		t.Fatal(err)
	}
	startBroker(t, dir)
}

func TestPortTaken(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	port := l.Addr().(*net.TCPAddr).Port
	dir := t.TempDir()
	if _, err := Start(Config{Dir: dir, Port: port}); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("port %d", port)) {
		t.Errorf("start on a taken port: got %v, want it to name port %d", err, port)
	}
	startBroker(t, dir) // the failed start has let go of the directory
}

// What was acknowledged is there after the process was killed.
func TestKilled(t *testing.T) {
	dir := t.TempDir()
	process := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKilledProcess$")
	process.Env = append(os.Environ(), killedDir+"="+dir)
	out, err := process.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	if err := process.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = process.Wait() // killed, so it says so

	broker := startBroker(t, dir)
	if got := fmt.Sprintln(topicID(t, newAdmin(t, broker.Addrs()))); got != line {
		t.Errorf("topic ID after a kill: got %s, want %s", got, line)
	}
	if got, want := values(consume(t, broker.Addrs(), 2)), []string{"a", "b"}; !slices.Equal(got, want) {
		t.Errorf("consumed %v, want %v", got, want)
	}
}

const killedDir = "MILLRACE_TEST_EMBEDDEDKAFKA_KILLED"

// TestKilledProcess is the process that TestKilled kills, and nothing when run
// as a test of its own.
func TestKilledProcess(t *testing.T) {
	dir := os.Getenv(killedDir)
	if dir == "" {
		return
	}
	broker := startBroker(t, dir)
	admin := newAdmin(t, broker.Addrs())
	createTopic(t, admin)
	produce(t, broker.Addrs(), "a", "b")
	fmt.Println(topicID(t, admin))
	select {} // until it is killed
}
