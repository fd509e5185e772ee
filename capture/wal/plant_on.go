//go:build planted

package wal

import (
	"os"

	"github.com/millrace-db/millrace"
)

// planted makes one mistake again and again, so that a test can see whether its
// checker finds it. The environment variable MILLRACE_PLANT says which:
//
//	subabort_ignored  what a subtransaction of a streamed transaction did stays after its abort
//	subabort_whole    its abort takes the whole transaction along
//	unchanged_lost    a column that the source did not send, because it did not change, becomes null
//	window_ignored    rows of a load's chunk come although the stream has changed them since its snapshot
type planted struct{}

func plant(name string) bool { return os.Getenv("MILLRACE_PLANT") == name }

func (planted) aborting(t *streamed, sub uint32) bool {
	if plant("subabort_whole") && sub != t.xid {
		t.tape.size = 0
		t.tape.blocks, t.tape.file = nil, nil
		return true
	}
	return plant("subabort_ignored") && sub != t.xid
}

func (planted) putting(r *relation) {
	if !plant("unchanged_lost") {
		return
	}
	for i := range r.new {
		if r.new[i].State == millrace.ColumnUnchanged {
			r.new[i].State = millrace.ColumnNull
		}
	}
}

func (planted) windowless() bool { return plant("window_ignored") }
