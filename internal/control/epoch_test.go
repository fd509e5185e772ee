package control

import (
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/millrace-db/millrace"
)

func TestBeginEpoch(t *testing.T) {
	_, conn, s := bank(t)
	ctx := testContext(t)
	next := s
	next.Epoch, next.Topic, next.TopicID, next.Slot = 2, "millrace.bank.2", "def", "millrace_bank_x"
	if err := BeginEpoch(ctx, conn, s, next); err != nil {
		t.Fatal(err)
	}
	if got, err := LoadStream(ctx, conn, "bank"); err != nil || got != next {
		t.Errorf("got %+v, %v, want %+v", got, err, next)
	}
	// Whoever prepared one from the same place comes too late.
	err := BeginEpoch(ctx, conn, s, next)
	if !errors.Is(err, ErrEpochMoved) || !millrace.NeedsOperator(err) || !strings.Contains(err.Error(), "millrace.bank.2") {
		t.Errorf("a second time: %v, want ErrEpochMoved", err)
	}
	for name, change := range map[string]func(*Stream){
		"the same epoch":  func(s *Stream) { s.Epoch = 2 },
		"an older epoch":  func(s *Stream) { s.Epoch = 1 },
		"no topic ID":     func(s *Stream) { s.TopicID = "" },
		"another stream":  func(s *Stream) { s.ID[0]++ },
		"another's epoch": func(s *Stream) { s.Name = "other" },
	} {
		to := next
		to.Epoch = 3
		change(&to)
		if err := BeginEpoch(ctx, conn, next, to); err == nil {
			t.Errorf("%s is begun", name)
		}
	}
	other := next
	other.Name = "other"
	to := other
	to.Epoch = 3
	if err := BeginEpoch(ctx, conn, other, to); !errors.Is(err, ErrNoStream) {
		t.Errorf("a stream that is not registered: %v, want ErrNoStream", err)
	}
}

// Of several who begin an epoch at once one does.
func TestBeginEpochAtOnce(t *testing.T) {
	db, _, s := bank(t)
	ctx := testContext(t)
	errs := make([]error, 6)
	var wg sync.WaitGroup
	for i := range errs {
		conn := connect(t, db)
		wg.Go(func() {
			next := s
			next.Epoch, next.Topic, next.TopicID = 2, "millrace.bank.2", strings.Repeat("x", i+1)
			errs[i] = BeginEpoch(ctx, conn, s, next)
		})
	}
	wg.Wait()
	done := 0
	for _, err := range errs {
		if err == nil {
			done++
		} else if !errors.Is(err, ErrEpochMoved) {
			t.Error(err)
		}
	}
	if done != 1 {
		t.Errorf("%d of %d have begun an epoch, want 1", done, len(errs))
	}
}
