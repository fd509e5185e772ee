//go:build planted

package applier

import (
	"context"
	"os"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge"
)

// planted makes one mistake again and again, so that a test can see whether its
// checker finds it. The environment variable MILLRACE_PLANT says which:
//
//	stale_accepted    a batch of a publisher that does not reign is taken for one of it
//	torn_unit         half of a unit is committed by itself, and the rest a moment later
//	checkpoint_first  a checkpoint is committed before its rows, and these get lost
type planted struct{}

// tornFor is how long half of a unit can be seen. Readers look now and then, and where
// a sync costs nothing the rest would follow at once.
const tornFor = 20 * time.Millisecond

func plant(name string) bool { return os.Getenv("MILLRACE_PLANT") == name }

func (planted) folding(f *fetcher, r *millrace.Record) {
	if plant("stale_accepted") && r.Kind == millrace.RecordBatch {
		r.Term, r.Publisher = f.fold.Term()
	}
}

func (planted) applying(w *writer, next *work, index millrace.Index) error {
	if !plant("torn_unit") || next.at == nil || index != next.batch.First+millrace.Index(next.batch.Count/2) {
		return nil
	}
	at := w.at
	if at == nil {
		err := w.config.Store.View(context.Background(), func(v *edge.View) (err error) {
			at, err = v.Checkpoint()
			return err
		})
		if err != nil || at == nil {
			return err
		}
	}
	if err := w.w.Commit(at); err != nil {
		return err
	}
	time.Sleep(tornFor)
	w.held = 0
	return w.w.Begin()
}

func (planted) committing(w *writer) error {
	if w.config.Store.Index() == 0 || !plant("checkpoint_first") {
		return nil
	}
	w.w.Abort()
	return w.w.Begin()
}
