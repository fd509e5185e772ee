package transfer

import (
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/kafkatest"
)

// TestRefusedTopics: each is one named error that says what to do.
func TestRefusedTopics(t *testing.T) {
	brokers := kafkatest.Fake(t)
	request := func(w *world, r kmsg.Request) {
		t.Helper()
		client, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		answer, err := client.Request(testContext(t), r)
		if err != nil {
			t.Fatal(err)
		}
		var code int16
		switch a := answer.(type) {
		case *kmsg.DeleteTopicsResponse:
			code = a.Topics[0].ErrorCode
		case *kmsg.CreatePartitionsResponse:
			code = a.Topics[0].ErrorCode
		case *kmsg.IncrementalAlterConfigsResponse:
			code = a.Resources[0].ErrorCode
		case *kmsg.DeleteRecordsResponse:
			code = a.Topics[0].Partitions[0].ErrorCode
		}
		if err := kerr.ErrorForCode(code); err != nil {
			t.Fatal(err)
		}
	}
	deleteTopic := func(w *world) {
		r := kmsg.NewPtrDeleteTopicsRequest()
		r.TimeoutMillis = 10_000
		r.TopicNames = []string{w.stream.Topic}
		one := kmsg.NewDeleteTopicsRequestTopic()
		one.Topic = &w.stream.Topic
		r.Topics = append(r.Topics, one)
		request(w, r)
	}
	alter := func(w *world, name, value string) {
		r := kmsg.NewPtrIncrementalAlterConfigsRequest()
		one := kmsg.NewIncrementalAlterConfigsRequestResource()
		one.ResourceType, one.ResourceName = kmsg.ConfigResourceTypeTopic, w.stream.Topic
		setting := kmsg.NewIncrementalAlterConfigsRequestResourceConfig()
		setting.Name, setting.Value = name, &value
		one.Configs = append(one.Configs, setting)
		r.Resources = append(r.Resources, one)
		request(w, r)
	}
	empty := func(w *world) {
		r := kmsg.NewPtrDeleteRecordsRequest()
		r.TimeoutMillis = 10_000
		one := kmsg.NewDeleteRecordsRequestTopic()
		one.Topic = w.stream.Topic
		partition := kmsg.NewDeleteRecordsRequestTopicPartition()
		partition.Offset = -1
		one.Partitions = append(one.Partitions, partition)
		r.Topics = append(r.Topics, one)
		request(w, r)
	}
	for _, c := range []struct {
		name  string
		spoil func(w *world)
		want  string
	}{
		{"deleted", deleteTopic, "millrace init"},
		{"made again", func(w *world) {
			deleteTopic(w)
			if err := w.openTopic(w.stream.Topic).Create(testContext(t), 1); err != nil {
				t.Fatal(err)
			}
		}, "deleted and made again"},
		{"made again and registered", func(w *world) {
			deleteTopic(w)
			log := w.openTopic(w.stream.Topic)
			if err := log.Create(testContext(t), 1); err != nil {
				t.Fatal(err)
			}
			info, err := log.Info(testContext(t))
			if err != nil {
				t.Fatal(err)
			}
			w.stream.TopicID = info.ID
		}, "the ledger in the source database knows it as"},
		{"emptied", empty, "records were deleted"},
		{"emptied, and the ledger too", func(w *world) {
			empty(w)
			w.rows = nil
		}, "history is needed from 0 on"},
		{"ends before the ledger", func(w *world) {
			w.rows[len(w.rows)-1].LastOffset += 100
		}, "records were lost"},
		{"history of another", func(w *world) {
			w.rows[len(w.rows)-1].Chain[0] ^= 1
		}, "history diverged"},
		{"index of another", func(w *world) {
			w.rows[len(w.rows)-1].Last += 100
		}, "records were lost"},
		{"state that is none", func(w *world) {
			w.rows[len(w.rows)-1].StateOffset--
		}, "that the ledger attests"},
		{"compacted", func(w *world) { alter(w, "cleanup.policy", "compact") }, "cleanup.policy"},
		{"finite retention", func(w *world) { alter(w, "retention.ms", "1000") }, "retention.ms=-1"},
		{"two partitions", func(w *world) {
			r := kmsg.NewPtrCreatePartitionsRequest()
			r.TimeoutMillis = 10_000
			one := kmsg.NewCreatePartitionsRequestTopic()
			one.Topic, one.Count = w.stream.Topic, 2
			r.Topics = append(r.Topics, one)
			request(w, r)
		}, "2 partitions"},
		{"another stream", func(w *world) {
			w.stream.ID[0] ^= 1
			w.rows = nil
		}, "record of another stream"},
		{"another epoch", func(w *world) { w.stream.Epoch = 2 }, "record of another stream"},
		{"a record that is not ours", func(w *world) {
			if _, err := w.openTopic(w.stream.Topic).Append(testContext(t), []byte("hello"), 0, 0); err != nil {
				t.Fatal(err)
			}
		}, "malformed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, brokers)
			w.commit(10)
			r := w.start(w.config())
			w.waitConfirmed(10)
			r.stop()
			c.spoil(w)
			before := w.opened
			again := w.start(w.config())
			err := again.wait()
			if !millrace.NeedsOperator(err) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want an error for the operator with %q", err, c.want)
			}
			t.Log(err)
			if w.opened != before {
				t.Error("the source was opened")
			}
			if s := again.Status(); s.Phase != PhaseStopped || s.Problem == "" {
				t.Errorf("status: %+v", s)
			}
		})
	}
}
