package follow

import (
	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/applier"
	"github.com/millrace-db/millrace/internal/edgestatus"
)

// remembered is how many of the newest places are kept to compare the chains of edges
// below this one with: 640 KiB.
const remembered = 1 << 14

// tree is what this edge knows of the edges that follow it.
type tree struct {
	reports edgestatus.Collector
	history *edgestatus.History
}

func (f *Stream) newTree() *tree {
	t := &tree{history: edgestatus.NewHistory(remembered)}
	t.reports.History = t.history.At
	t.reports.StreamID = func() string {
		if id := f.stream(); !id.IsZero() {
			return id.String()
		}
		return ""
	}
	return t
}

// below sums up the edges that follow this one, and those that follow them; nil if
// there are none.
func (f *Stream) below() *edgestatus.Summary {
	if f.relay == nil {
		return nil
	}
	here := make(map[string]bool)
	for _, p := range f.relay.Peers() {
		here[p.Node] = true
	}
	return f.tree.reports.Below(func(node string) bool { return here[node] })
}

// remembering is the log of readers' epoch, whose places are remembered.
type remembering struct {
	applier.Log
	history *edgestatus.History
}

// Append implements applier.Log.
func (l remembering) Append(offset millrace.Offset, value []byte, r *millrace.Record, whole bool) {
	l.Log.Append(offset, value, r, whole)
	if whole && r.Kind == millrace.RecordBatch {
		l.history.Add(r.Epoch, r.Last(), r.Chain)
	}
}
