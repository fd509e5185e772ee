package transfer

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/kafkatest"
	"github.com/millrace-db/millrace/internal/topic"
)

// TestRandomFaults lets appends fail before they are sent, lose their answers,
// happen twice, come late, in several publishers that all get the hold, and
// restarts those that end.
func TestRandomFaults(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("MILLRACE_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("MILLRACE_SEED=%d", seed)
	const units = 400
	w := newWorld(t, kafkatest.Fake(t))
	w.make = func(n int) *millrace.Unit {
		if n%37 == 0 {
			return unitOf(n, slices.Repeat([]int{100_000}, 35))
		}
		return smallUnit(n)
	}
	var mu sync.Mutex
	random := rand.New(rand.NewPCG(seed, 0))
	chance := func(n int) int {
		mu.Lock()
		defer mu.Unlock()
		return random.IntN(n)
	}
	var late sync.WaitGroup
	var batches atomic.Int64
	faulty := func(ctx context.Context, log *topic.Topic, value []byte, first millrace.Index, count uint32) (millrace.Offset, error) {
		again := func() {
			other, err := topic.Open(context.WithoutCancel(ctx), topic.Config{Brokers: w.brokers, Topic: w.stream.Topic})
			if err != nil {
				t.Error(err)
				return
			}
			defer func() { _ = other.Close() }()
			if _, err := other.Append(context.WithoutCancel(ctx), value, first, count); err != nil {
				t.Error(err)
			}
		}
		// Repeats and late records come in every run, the rest by chance.
		fault := chance(60)
		if count > 0 {
			switch batches.Add(1) % 20 {
			case 10:
				again()
			case 15:
				fault = 2
			}
		}
		switch fault {
		case 0:
			return millrace.NoOffset, errors.New("planted: nothing was sent")
		case 1:
			if _, err := log.Append(ctx, value, first, count); err != nil {
				return millrace.NoOffset, err
			}
			return millrace.NoOffset, errors.New("planted: the answer was lost")
		case 2:
			value = slices.Clone(value)
			wanted := w.snapshot() + 1 + chance(30)
			late.Go(func() {
				limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), testLimit)
				defer cancel()
				if w.await(limited, func() bool { return w.confirmed >= min(wanted, units) }) == nil {
					again()
				}
			})
			return millrace.NoOffset, errors.New("planted: the answer was lost, and the record comes late")
		}
		return log.Append(ctx, value, first, count)
	}
	ctx, cancel := context.WithCancel(testContext(t))
	var publishers sync.WaitGroup
	defer publishers.Wait()
	defer cancel()
	for range 2 {
		publishers.Go(func() {
			for ctx.Err() == nil {
				config := w.config()
				if chance(4) > 0 {
					free(&config)
				}
				config.StateBytes = int64(1 + chance(3_000_000))
				w.hook(&config, hooked{append: faulty})
				tr, err := New(config)
				if err != nil {
					t.Error(err)
					return
				}
				limited, stop := context.WithCancel(ctx)
				end := w.snapshot() + 10 + chance(80)
				go func() {
					_ = w.await(limited, func() bool { return w.confirmed >= end })
					stop()
				}()
				if err := tr.Run(limited); err != nil && !errors.Is(err, ErrFenced) && !strings.Contains(err.Error(), "is confirmed: what is between is lost") {
					t.Errorf("publisher: %v", err)
				}
				stop()
			}
		})
	}
	for n := 0; n < units; n += 20 {
		w.commit(20)
		w.waitConfirmed(n + 10)
	}
	w.waitConfirmed(units)
	cancel()
	publishers.Wait()
	late.Wait()
	v := w.check(units)
	t.Logf("outcomes %v, %d parts, %d terms with batches, %d ledger rows", v.outcomes, v.parts, len(v.firstBatchOfEachTerm), len(w.rows))
	if v.outcomes[millrace.Stale] == 0 || v.outcomes[millrace.Repeated] == 0 || len(v.firstBatchOfEachTerm) < 3 {
		t.Error("the faults left no trace: the test proves nothing")
	}
}

func (w *world) snapshot() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.confirmed
}
