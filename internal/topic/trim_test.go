package topic

import (
	"errors"
	"fmt"
	"testing"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/kafkatest"
)

// TestDeleteBefore: the topic begins exactly where it was told to, with Kafka itself and
// with the embedded broker; what is asked for again, or less, changes nothing.
func TestDeleteBefore(t *testing.T) {
	for name, brokers := range map[string][]string{"kafka": kafkatest.Shared(t).Brokers(), "embedded": kafkatest.Fake(t)} {
		t.Run(name, func(t *testing.T) {
			ctx := testContext(t)
			log := openConfig(t, Config{Brokers: brokers, Topic: kafkatest.Topic(t)})
			if _, err := log.DeleteBefore(ctx, 1); err == nil {
				t.Error("records of a missing topic can be deleted")
			}
			if err := log.Create(ctx, 1); err != nil {
				t.Fatal(err)
			}
			for i := range 6 {
				if _, err := log.Append(ctx, fmt.Append(nil, "value ", i), millrace.Index(i), 1); err != nil {
					t.Fatal(err)
				}
			}
			for _, to := range []millrace.Offset{3, 3, 4} {
				start, err := log.DeleteBefore(ctx, to)
				if err != nil || start != to {
					t.Fatalf("delete before %v: begins at %v, %v", to, start, err)
				}
			}
			if start, err := log.DeleteBefore(ctx, 2); err == nil && start != 4 {
				t.Errorf("a later start is taken back to %v", start)
			}
			if start, err := log.DeleteBefore(ctx, 100); err == nil {
				t.Errorf("records that are still to come are deleted: begins at %v", start)
			}
			info, err := log.Info(ctx)
			if err != nil || info.Start != 4 || info.End != 6 {
				t.Errorf("offsets %v to %v, %v", info.Start, info.End, err)
			}
			for from, want := range map[millrace.Offset]error{3: ErrOffsetGone, 4: nil} {
				r, err := log.Read(ctx, from)
				if err != nil {
					t.Fatal(err)
				}
				m, err := r.Next(ctx)
				r.Close()
				if !errors.Is(err, want) || err == nil && (m.Offset != from || string(m.Value) != fmt.Sprint("value ", from)) {
					t.Errorf("read from %v: %v %q, %v", from, m.Offset, m.Value, err)
				}
			}
		})
	}
}
