package trigger

import (
	"context"
	"fmt"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/capture/chunk"
	"github.com/millrace-db/millrace/capture/table"
)

// load is one table's. All of it is under the lock of loads.
type load struct {
	id     millrace.LoadID
	table  millrace.TableID
	name   string
	reason string
	// initial loads end together: the tables that the stream began with appear at
	// once.
	initial bool
	work    *chunk.Load
	paced   time.Time // when its next chunk may be read
	turn    uint64    // of its newest chunk

	started time.Time
	// sizes are the lengths of the heaps in blocks, as of so many restarts.
	sizes    []int64
	measured int
	restarts int
	before   uint64 // blocks that were read when this process took the load up
}

// resumeLoad takes up a load that the stream has under way.
func resumeLoad(l *millrace.Load, schema *millrace.Schema, limits chunk.Limits) (*load, error) {
	note, work, err := chunk.TakeUp(l, schema, limits)
	if err != nil {
		return nil, err
	}
	return &load{
		id: l.ID, table: l.Table, name: schema.QualifiedName(), reason: note.Reason, initial: note.Initial, work: work, started: time.Now(),
	}, nil
}

// note is what a successor needs to go on.
func (ld *load) note() []byte {
	return append(chunk.Note{Initial: ld.initial, Reason: ld.reason}.Append(nil), ld.work.Progress()...)
}

// write writes an entry of the load.
func (ld *load) write(w *millrace.UnitWriter, kind millrace.Kind, info *millrace.LoadInfo) error {
	if err := w.Append(&millrace.Entry{Kind: kind, Table: ld.table, Load: ld.id, LoadInfo: info}); err != nil {
		return fmt.Errorf("load of %s: %w", ld.name, err)
	}
	return nil
}

func (ld *load) status() capture.LoadStatus {
	st := capture.LoadStatus{
		Table: ld.name, Reason: ld.reason, Initial: ld.initial, Rows: ld.work.Rows(), Restarts: ld.restarts,
		Waiting: ld.work.Finished(), StartedAt: ld.started,
	}
	leaf, _, block := ld.work.Place()
	st.Measure(ld.sizes, leaf, block, ld.before)
	return st
}

// heapSizes returns how long heaps are, in blocks.
func heapSizes(ctx context.Context, q table.Querier, leaves []chunk.Leaf) ([]int64, error) {
	ids := make([]uint32, len(leaves))
	for i := range leaves {
		ids[i] = uint32(leaves[i].ID)
	}
	var sizes []int64
	err := q.QueryRow(ctx, `
SELECT ARRAY(SELECT pg_relation_size(oid) / current_setting('block_size')::bigint FROM unnest($1::oid[]) WITH ORDINALITY l (oid, n) ORDER BY n)`, ids).Scan(&sizes)
	if err != nil {
		return nil, fmt.Errorf("look at the size of heaps: %w", err)
	}
	return sizes, nil
}

// took notes the sizes of the heaps that a load is about.
func (ld *load) took(sizes []int64) {
	first := ld.sizes == nil
	ld.sizes, ld.measured = sizes, ld.restarts
	if first {
		ld.before = ld.status().BlocksDone
	}
}
