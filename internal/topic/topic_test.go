package topic

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/goleak"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/finding"
	"github.com/millrace-db/millrace/internal/kafkatest"
)

func TestMain(m *testing.M) { kafkatest.Main(m) }

func testContext(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// open makes a topic on the brokers.
func open(t testing.TB, brokers []string) *Topic {
	t.Helper()
	topic := openConfig(t, Config{Brokers: brokers, Topic: kafkatest.Topic(t)})
	if err := topic.Create(testContext(t), 1); err != nil {
		t.Fatal(err)
	}
	return topic
}

func openConfig(t testing.TB, config Config) *Topic {
	t.Helper()
	topic, err := Open(testContext(t), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = topic.Close() })
	return topic
}

func appendValues(t testing.TB, topic *Topic, values ...string) {
	t.Helper()
	for i, v := range values {
		if _, err := topic.Append(testContext(t), []byte(v), millrace.Index(i+1), 1); err != nil {
			t.Fatal(err)
		}
	}
}

func readUntil(t testing.TB, topic *Topic, from, end millrace.Offset) []string {
	t.Helper()
	r, err := topic.Read(testContext(t), from)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var got []string
	for {
		m, err := r.Until(testContext(t), end)
		if errors.Is(err, io.EOF) {
			return got
		}
		if err != nil {
			t.Fatalf("after %q: %v", got, err)
		}
		got = append(got, string(m.Value))
	}
}

// both runs a test on the in-process broker and on a real one.
func both(t *testing.T, test func(t *testing.T, brokers []string)) {
	t.Run("kfake", func(t *testing.T) { test(t, kafkatest.Fake(t)) })
	t.Run("kafka", func(t *testing.T) { test(t, kafkatest.Shared(t).Brokers()) })
}

func TestCreateAndCheck(t *testing.T) {
	both(t, func(t *testing.T, brokers []string) {
		topic := open(t, brokers)
		info, err := topic.Info(testContext(t))
		if err != nil {
			t.Fatal(err)
		}
		if len(info.ID) != 22 || info.Partitions != 1 || info.Replicas != 1 || info.Start != 0 || info.End != 0 {
			t.Errorf("info of a new topic: %+v", info)
		}
		for name, want := range wantedSettings(1) {
			if got := info.Settings[name]; got != want {
				t.Errorf("%s is %q, want %q", name, got, want)
			}
		}
		found, err := topic.Check(testContext(t))
		if err != nil {
			t.Fatal(err)
		}
		if len(found) != 1 || found[0].Level != finding.Warning || !strings.Contains(found[0].Text, "replicas") {
			t.Errorf("check of a new topic: %v, want a warning of few replicas", found)
		}
		if err := topic.Create(testContext(t), 1); !errors.Is(err, ErrTopicExists) {
			t.Errorf("create twice: %v", err)
		}
	})
}

func TestCheck(t *testing.T) {
	for _, c := range []struct {
		name  string
		alter func(*Info)
		want  string
	}{
		{"as made", func(*Info) {}, ""},
		{"partitions", func(i *Info) { i.Partitions = 2 }, "problem it has 2 partitions"},
		{"compaction", func(i *Info) { i.Settings[settingPolicy] = "compact,delete" }, "problem cleanup.policy is"},
		{"age", func(i *Info) { i.Settings[settingAge] = "604800000" }, "problem retention.ms is 604800000"},
		{"size", func(i *Info) { i.Settings[settingSize] = "1000" }, "problem retention.bytes is 1000"},
		{"message", func(i *Info) { i.Settings[settingMessage] = "1048588" }, "problem max.message.bytes is 1048588"},
		{"in sync", func(i *Info) { i.Settings[settingInSync] = "4" }, "problem min.insync.replicas is 4"},
		{"in sync 1", func(i *Info) { i.Settings[settingInSync] = "1" }, "warning min.insync.replicas is 1"},
		{"replicas", func(i *Info) { i.Replicas = 2 }, "warning it has 2 of 3 replicas"},
		{"unclean", func(i *Info) { i.Settings[settingUnclean] = "true" }, "warning unclean.leader"},
		{"times", func(i *Info) { i.Settings[settingTimestamp] = "CreateTime" }, "warning message.timestamp.type"},
	} {
		t.Run(c.name, func(t *testing.T) {
			info := Info{Partitions: 1, Replicas: 3, Settings: wantedSettings(3)}
			c.alter(&info)
			var got string
			for _, f := range check("x", &info) {
				got += string(f.Level) + " " + f.Text
				if f.Mend == "" {
					t.Errorf("no mend: %v", f)
				}
			}
			if (c.want == "") != (got == "") || !strings.HasPrefix(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestCheckForeignTopics(t *testing.T) {
	brokers := kafkatest.Shared(t).Brokers()
	name := kafkatest.Topic(t)
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	request := kmsg.NewPtrCreateTopicsRequest()
	request.TimeoutMillis = 60_000
	one := kmsg.NewCreateTopicsRequestTopic()
	one.Topic, one.NumPartitions, one.ReplicationFactor = name, 2, 1
	policy := kmsg.NewCreateTopicsRequestTopicConfig()
	policy.Name, policy.Value = "cleanup.policy", kmsg.StringPtr("compact")
	one.Configs = append(one.Configs, policy)
	request.Topics = append(request.Topics, one)
	response, err := request.RequestWith(testContext(t), client)
	if err != nil {
		t.Fatal(err)
	}
	if err := kerr.ErrorForCode(response.Topics[0].ErrorCode); err != nil {
		t.Fatal(err)
	}
	topic := openConfig(t, Config{Brokers: brokers, Topic: name})
	ctx := testContext(t)
	found, err := topic.Check(ctx)
	for err != nil { // the brokers agree on leaders only after the request
		select {
		case <-ctx.Done():
			t.Fatal(err)
		case <-time.After(leaderPoll):
			found, err = topic.Check(ctx)
		}
	}
	text := fmt.Sprint(finding.Error(found))
	for _, want := range []string{"2 partitions", "compact", "retention.ms", "max.message.bytes"} {
		if !strings.Contains(text, want) {
			t.Errorf("findings lack %q: %s", want, text)
		}
	}
}

func TestNoTopic(t *testing.T) {
	both(t, func(t *testing.T, brokers []string) {
		topic := openConfig(t, Config{Brokers: brokers, Topic: "missing"})
		if _, err := topic.Info(testContext(t)); !errors.Is(err, ErrNoTopic) {
			t.Errorf("info: %v", err)
		}
		r, err := topic.Read(testContext(t), 0)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if _, err := r.Next(testContext(t)); !errors.Is(err, ErrNoTopic) {
			t.Errorf("read: %v", err)
		}
		if _, err := topic.Append(testContext(t), []byte("x"), 1, 1); err == nil {
			t.Error("append to a missing topic gives no error")
		}
		if _, err := topic.Info(testContext(t)); !errors.Is(err, ErrNoTopic) {
			t.Errorf("the topic was made by asking for it: %v", err)
		}
	})
}

func TestUnreachable(t *testing.T) {
	_, err := Open(testContext(t), Config{Brokers: []string{"127.0.0.1:1"}, Topic: "x"})
	if err == nil || !strings.Contains(err.Error(), "127.0.0.1:1") || !strings.Contains(err.Error(), "refused") {
		t.Errorf("open with a wrong address: %v, want it named and why", err)
	}
	if _, err := Open(testContext(t), Config{Brokers: []string{"127.0.0.1:1"}, Topic: "a b"}); err == nil {
		t.Error("a bad name is taken")
	}
}

func TestAppendAndRead(t *testing.T) {
	both(t, func(t *testing.T, brokers []string) {
		topic := open(t, brokers)
		appendValues(t, topic, "a", "b", "c")
		if got := readUntil(t, topic, 0, 3); !slices.Equal(got, []string{"a", "b", "c"}) {
			t.Errorf("read %q", got)
		}
		if got := readUntil(t, topic, 2, 3); !slices.Equal(got, []string{"c"}) {
			t.Errorf("read from 2: %q", got)
		}
		if got := readUntil(t, topic, 3, 3); len(got) > 0 {
			t.Errorf("read from the end: %q", got)
		}
		r, err := topic.Read(testContext(t), 3)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		started := time.Now()
		appendValues(t, topic, "d")
		m, err := r.Next(testContext(t))
		if err != nil || string(m.Value) != "d" || m.Offset != 3 || time.Since(m.Time).Abs() > time.Minute {
			t.Errorf("next: %+v, %v", m, err)
		}
		t.Logf("append to read: %v", time.Since(started))
	})
}

func TestOffsetGone(t *testing.T) {
	both(t, func(t *testing.T, brokers []string) {
		topic := open(t, brokers)
		appendValues(t, topic, "a")
		r, err := topic.Read(testContext(t), 2)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		_, err = r.Next(testContext(t))
		if !errors.Is(err, ErrOffsetGone) || !strings.Contains(err.Error(), "0 to before 1") {
			t.Errorf("read after the end: %v", err)
		}
		if _, again := r.Next(testContext(t)); !errors.Is(again, ErrOffsetGone) {
			t.Errorf("read on after an error: %v", again)
		}
	})
}

func TestLargeRecords(t *testing.T) {
	both(t, func(t *testing.T, brokers []string) {
		topic := open(t, brokers)
		random := rand.New(rand.NewPCG(1, 2))
		var want [][]byte
		for _, size := range []int{1, fetchBytes - 100, millrace.MaxRecord, 2, millrace.MaxRecord, 1 << 20, 1 << 20} {
			value := make([]byte, size)
			for i := range value {
				value[i] = byte(random.Uint32())
			}
			want = append(want, value)
			if _, err := topic.Append(testContext(t), value, 1, 1); err != nil {
				t.Fatalf("append %d bytes: %v", size, err)
			}
		}
		got := readUntil(t, topic, 0, millrace.Offset(len(want)))
		if len(got) != len(want) {
			t.Fatalf("read %d records of %d", len(got), len(want))
		}
		for i := range want {
			if !bytes.Equal([]byte(got[i]), want[i]) {
				t.Errorf("record %d of %d bytes differs", i, len(want[i]))
			}
		}
		_, err := topic.Append(testContext(t), make([]byte, millrace.MaxRecord+1), 1, 1)
		if !errors.Is(err, millrace.ErrTooLarge) {
			t.Errorf("append over the limit: %v", err)
		}
	})
}

// TestForeignTransactions ends the topic in markers that hold no record for a
// reader, and lets a transaction hang open.
func TestForeignTransactions(t *testing.T) {
	brokers := kafkatest.Shared(t).Brokers()
	topic := open(t, brokers)
	appendValues(t, topic, "a")
	ctx := testContext(t)
	other, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.TransactionalID(t.Name()), kgo.DefaultProduceTopic(topic.Name()))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	transact := func(value string, end kgo.TransactionEndTry) {
		t.Helper()
		if err := other.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		if err := other.ProduceSync(ctx, &kgo.Record{Value: []byte(value)}).FirstErr(); err != nil {
			t.Fatal(err)
		}
		if err := other.EndTransaction(ctx, end); err != nil {
			t.Fatal(err)
		}
	}
	transact("committed", kgo.TryCommit)
	transact("aborted", kgo.TryAbort)
	info, err := topic.Info(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if info.End < 5 {
		t.Fatalf("end is %v, want at least two records and two markers after the first", info.End)
	}
	if got, want := readUntil(t, topic, 0, info.End), []string{"a", "committed", "aborted"}; !slices.Equal(got, want) {
		t.Errorf("read %q, want %q", got, want)
	}
	if got := readUntil(t, topic, info.End-1, info.End); len(got) > 0 {
		t.Errorf("read a marker: %q", got)
	}
	if err := other.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	if err := other.ProduceSync(ctx, &kgo.Record{Value: []byte("open")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	appendValues(t, topic, "after")
	if got, want := readUntil(t, topic, info.End, info.End+2), []string{"open", "after"}; !slices.Equal(got, want) {
		t.Errorf("read behind an open transaction: %q, want %q", got, want)
	}
	if err := other.EndTransaction(ctx, kgo.TryAbort); err != nil {
		t.Fatal(err)
	}
}

func TestContextEndsCalls(t *testing.T) {
	// A broker that accepts connections and says nothing.
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	ctx, cancel := context.WithCancel(t.Context())
	accepted := make(chan struct{})
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		close(accepted)
		<-ctx.Done()
		_ = conn.Close()
	}()
	ended := make(chan error, 1)
	go func() {
		_, err := Open(ctx, Config{Brokers: []string{listener.Addr().String()}, Topic: "x"})
		ended <- err
	}()
	select {
	case <-accepted:
	case err := <-ended:
		t.Fatalf("open ended before it asked: %v", err)
	}
	cancel()
	select {
	case err := <-ended:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("open: %v", err)
		}
	case <-time.After(30 * time.Second):
		t.Error("open still waits for the broker")
	}
}

// TestAppendOutcomeUnknown cuts the connection after the record was sent and
// before the answer was read.
func TestAppendOutcomeUnknown(t *testing.T) {
	brokers := kafkatest.Shared(t).Brokers()
	name := open(t, brokers).Name()
	var deaf atomic.Bool
	dial := func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, address)
		return &deafConn{Conn: conn, deaf: &deaf}, err
	}
	topic := openConfig(t, Config{Brokers: brokers, Topic: name, Dial: dial})
	appendValues(t, topic, "a")
	deaf.Store(true)
	if _, err := topic.Append(testContext(t), []byte("b"), 2, 1); err == nil {
		t.Fatal("append without an answer gives no error")
	}
	if _, err := topic.Append(testContext(t), []byte("c"), 3, 1); !errors.Is(err, ErrClosed) {
		t.Errorf("append after a failed one: %v", err)
	}
	healthy := openConfig(t, Config{Brokers: brokers, Topic: name})
	info, err := healthy.Info(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := readUntil(t, healthy, 0, info.End), []string{"a", "b"}; !slices.Equal(got, want) {
		t.Errorf("topic holds %q, want %q: the record is there although its append failed, once", got, want)
	}
}

// deafConn loses every answer.
type deafConn struct {
	net.Conn
	deaf *atomic.Bool
}

func (c *deafConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err == nil && c.deaf.Load() {
		_ = c.Close()
		return 0, errors.New("answer lost")
	}
	return n, err
}

func TestCloseWhileReading(t *testing.T) {
	topic := open(t, kafkatest.Fake(t))
	ignore := goleak.IgnoreCurrent()
	r, err := topic.Read(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		_, err := r.Next(t.Context())
		ended <- err
	}()
	r.Close()
	if err := <-ended; err == nil {
		t.Error("next of a closed reader gives no error")
	}
	if err := kafkatest.Leaks(testContext(t), append(kafkatest.IgnoreFake(), ignore)...); err != nil {
		t.Fatal(err)
	}
}

func TestDamagedSegment(t *testing.T) {
	brokers := kafkatest.Fake(t)
	topic := open(t, brokers)
	appendValues(t, topic, "a", strings.Repeat("b", 100))
	var flip atomic.Bool
	dial := func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, address)
		return &flippingConn{Conn: conn, flip: &flip}, err
	}
	flip.Store(true)
	through := openConfig(t, Config{Brokers: brokers, Topic: topic.Name(), Dial: dial})
	r, err := through.Read(testContext(t), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	_, err = r.Until(testContext(t), 2)
	if !errors.Is(err, millrace.ErrMalformed) || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("read of an altered record: %v", err)
	}
}

// flippingConn alters a byte of the record that TestDamagedSegment wrote.
type flippingConn struct {
	net.Conn
	flip *atomic.Bool
}

func (c *flippingConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if i := bytes.Index(b[:n], []byte("bbbb")); i >= 0 && c.flip.Load() {
		b[i] = 'x'
	}
	return n, err
}

func BenchmarkAppend(b *testing.B) {
	topic := open(b, kafkatest.Shared(b).Brokers())
	value := make([]byte, 400)
	for b.Loop() {
		if _, err := topic.Append(b.Context(), value, 1, 1); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkAppendToRead is the time from the append to the record's delivery.
func BenchmarkAppendToRead(b *testing.B) {
	topic := open(b, kafkatest.Shared(b).Brokers())
	r, err := topic.Read(b.Context(), 0)
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	value := make([]byte, 400)
	for b.Loop() {
		if _, err := topic.Append(b.Context(), value, 1, 1); err != nil {
			b.Fatal(err)
		}
		if _, err := r.Next(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
