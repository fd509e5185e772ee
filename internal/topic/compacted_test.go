package topic

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/millrace-db/millrace/internal/finding"
	"github.com/millrace-db/millrace/internal/kafkatest"
)

// TestCompacted: a compacted topic of Kafka itself, and of the embedded broker,
// passes its own check, keeps keys and takes removals; a stream's log does not
// pass for one.
func TestCompacted(t *testing.T) {
	for name, brokers := range map[string][]string{"kafka": kafkatest.Shared(t).Brokers(), "embedded": kafkatest.Fake(t)} {
		t.Run(name, func(t *testing.T) {
			ctx := testContext(t)
			topic := openConfig(t, Config{Brokers: brokers, Topic: kafkatest.Topic(t)})
			if err := topic.Put(ctx, []byte("a"), []byte("1")); !errors.Is(err, ErrNoTopic) {
				t.Errorf("put into a missing topic: %v, want ErrNoTopic", err)
			}
			topic = openConfig(t, topic.config)
			if err := topic.CreateCompacted(ctx, 1); err != nil {
				t.Fatal(err)
			}
			if found, err := topic.CheckCompacted(ctx); err != nil || len(found) != 0 {
				t.Errorf("check of what was made: %v, %v", found, err)
			}
			if found, err := topic.Check(ctx); err != nil || finding.Error(found) == nil {
				t.Errorf("a compacted topic passes for a log: %v, %v", found, err)
			}
			for i, value := range []string{"1", "2", "", "3"} {
				v := []byte(value)
				if value == "" {
					v = nil
				}
				if err := topic.Put(ctx, fmt.Append(nil, "key", i%3), v); err != nil {
					t.Fatal(err)
				}
			}
			info, err := topic.Info(ctx)
			if err != nil {
				t.Fatal(err)
			}
			r, err := topic.Read(ctx, info.Start)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			var got []string
			for {
				m, err := r.Until(ctx, info.End)
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, fmt.Sprintf("%s=%s %v %v", m.Key, m.Value, m.Value == nil, !m.Time.IsZero()))
			}
			if want := "key0=1 false true|key1=2 false true|key2= true true|key0=3 false true"; strings.Join(got, "|") != want {
				t.Errorf("read %q, want %q", strings.Join(got, "|"), want)
			}
			log := open(t, brokers)
			if found, err := log.CheckCompacted(ctx); err != nil || finding.Error(found) == nil {
				t.Errorf("a log passes for a compacted topic: %v, %v", found, err)
			}
		})
	}
}
