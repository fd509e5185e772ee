//go:build planted

package transfer

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/kafkatest"
	"github.com/millrace-db/millrace/internal/topic"
)

// TestPlantedFaults makes each mistake and sees it found: by the publisher's own
// fold, by the source, or by the comparison of topic and source.
func TestPlantedFaults(t *testing.T) {
	for _, c := range []struct {
		plant string
		// stops is part of the error that Run ends with; where it is empty the
		// mistake is silent, and only comparing with the source shows it.
		stops string
	}{
		{"drop_unit:10", ""},
		{"repeat_unit:10", ""},
		{"swap_two:10", ""},
		{"alter_byte:10", ""},
		{"skip_index:10", "gap in the stream"},
	} {
		t.Run(c.plant, func(t *testing.T) {
			t.Setenv("MILLRACE_PLANT", c.plant)
			w := newWorld(t, kafkatest.Fake(t))
			r := w.start(w.config())
			w.commit(30)
			if c.stops != "" {
				if err := r.wait(); !millrace.NeedsOperator(err) || !strings.Contains(err.Error(), c.stops) {
					t.Errorf("got %v, want %q", err, c.stops)
				}
				return
			}
			w.waitConfirmed(30)
			r.stop()
			quiet := &quietT{TB: t}
			w.t = quiet
			w.check(30)
			if quiet.errors == 0 {
				t.Error("the comparison with the source finds nothing")
			}
		})
	}
}

// TestPlantedConfirm confirms units before the fold accepts them: a publisher
// that then fails leaves a source that is ahead of the topic.
func TestPlantedConfirm(t *testing.T) {
	t.Setenv("MILLRACE_PLANT", "confirm_unfolded:1")
	w := newWorld(t, kafkatest.Fake(t))
	config := w.config()
	w.hook(&config, hooked{append: func(ctx context.Context, log *topic.Topic, value []byte, first millrace.Index, count uint32) (millrace.Offset, error) {
		if count == 0 {
			return log.Append(ctx, value, first, count)
		}
		if err := w.await(ctx, func() bool { return w.confirmed >= 5 }); err != nil {
			return millrace.NoOffset, err
		}
		return millrace.NoOffset, errors.New("planted: the connection broke")
	}})
	w.commit(10)
	r := w.start(config)
	if err := r.wait(); !millrace.NeedsOperator(err) || !strings.Contains(err.Error(), "what is between is lost") {
		t.Errorf("got %v, want the source to say what is lost", err)
	}
}

// TestPlantedTrim trims past an edge, which then does not find the record that comes
// after what it has.
func TestPlantedTrim(t *testing.T) {
	t.Setenv("MILLRACE_PLANT", "trim_past_edges")
	w := newWorld(t, kafkatest.Fake(t))
	f := new(fleet)
	r := w.start(w.trimming(f))
	w.publish(10)
	w.awaitMarks()
	edge := w.places()[3]
	f.set(Reader{Name: "fra-1", Epoch: 1, Index: edge.index})
	trim(t, r, TrimRequest{})
	if err := w.canGoOn(edge); !errors.Is(err, topic.ErrOffsetGone) {
		t.Errorf("an edge that was trimmed past finds its next record: %v", err)
	}
}

// quietT counts errors in place of reporting them.
type quietT struct {
	testing.TB
	errors int
}

func (q *quietT) Errorf(format string, args ...any) {
	q.errors++
	q.Log("found: " + fmt.Sprintf(format, args...))
}
