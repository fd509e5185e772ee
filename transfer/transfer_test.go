package transfer

import (
	"testing"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/kafkatest"
)

// both runs a test on the in-process broker and on a real one.
func both(t *testing.T, test func(t *testing.T, brokers []string)) {
	t.Run("kfake", func(t *testing.T) { test(t, kafkatest.Fake(t)) })
	t.Run("kafka", func(t *testing.T) { test(t, kafkatest.Shared(t).Brokers()) })
}

func TestPublish(t *testing.T) {
	both(t, func(t *testing.T, brokers []string) {
		w := newWorld(t, brokers)
		w.commit(500)
		r := w.start(w.config())
		w.waitConfirmed(500)
		w.commit(1)
		w.waitConfirmed(501)
		r.stop()
		v := w.check(501)
		s := r.Status()
		if s.Index != v.fold.Index() || s.Chain != v.fold.Chain().String() || s.Term != 1 || s.LagSeconds == nil || s.Phase != PhaseStopped {
			t.Errorf("status: %+v", s)
		}
		last := w.rows[len(w.rows)-1]
		if last.Last != v.fold.Index() || last.Chain != v.fold.Chain() || last.Position != position(501) || last.StateOffset == millrace.NoOffset {
			t.Errorf("last ledger row after a clean end: %+v", last)
		}
		next := millrace.Index(1)
		for _, row := range w.rows {
			if row.First != next || !row.Captured.Equal(row.ReadBack) || row.Captured.Total() != uint64(row.Last-row.First+1) {
				t.Errorf("ledger row %v to %v, want from %v: captured %v, read back %v", row.First, row.Last, next, row.Captured, row.ReadBack)
			}
			next = row.Last + 1
		}
		if v.batches >= 400 {
			t.Errorf("%d batches for 501 units: they are not gathered", v.batches)
		}

		// A second process goes on where the first one was.
		w.commit(10)
		second := w.start(w.config())
		w.waitConfirmed(511)
		second.stop()
		w.check(511)
		if got := second.Status().Term; got != 2 {
			t.Errorf("term of the second reign: %v", got)
		}
	})
}
