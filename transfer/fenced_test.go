package transfer

import (
	"context"
	"errors"
	"log/slog"
	"testing"

	"github.com/millrace-db/millrace"
)

// TestFencedByWhatWasReadBack: the reign may end by its lost hold when the successor's
// term record has just been read back.
func TestFencedByWhatWasReadBack(t *testing.T) {
	h := &history{fold: millrace.NewFold(millrace.StreamID{1}, 1)}
	for term, publisher := range []millrace.PublisherID{1: {1}, 2: {2}} {
		if term == 0 {
			continue
		}
		record := &millrace.Record{Header: millrace.Header{Kind: millrace.RecordTerm, Stream: millrace.StreamID{1}, Epoch: 1, Term: millrace.Term(term), Publisher: publisher}}
		if outcome, err := h.fold.Step(record); err != nil || outcome != millrace.Reign {
			t.Fatalf("term %d: %v, %v", term, outcome, err)
		}
	}
	r := &reign{t: &Transfer{log: slog.New(slog.DiscardHandler)}, term: 1, me: millrace.PublisherID{1}, history: h}
	r.accepted = newAccepted(h, 1, r.me)
	if err := r.whyEnded(context.Background(), errHoldLost); !errors.Is(err, ErrFenced) {
		t.Errorf("got %v, want ErrFenced", err)
	}
}
