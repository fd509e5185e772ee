//go:build planted

package trigger

import (
	"os"

	"github.com/millrace-db/millrace/capture/chunk"
)

// planted makes one mistake again and again, so that a test can see whether its
// checker finds it. The environment variable MILLRACE_PLANT says which:
//
//	xip_ignored    transactions that were running for the snapshot before are left out
//	id_cursor      what has a lower number than the newest that was read is taken to be read
//	xmin_bound     the window ends at the oldest transaction that runs
//	no_tick        a window is given out before its tick is written, and never written
//	early_snapshot the snapshot is taken before the tables are locked
//	row_log        what the log says last of a key is believed, not what the table has
type planted struct{}

func plant(name string) bool { return os.Getenv("MILLRACE_PLANT") == name }

func (planted) unseen(u unseen, before, now chunk.Snapshot) unseen {
	switch {
	case plant("xip_ignored"):
		u.Old = nil
	case plant("id_cursor"):
		u = unseen{New: []span{{before.Xmax, now.Xmax}}}
	case plant("xmin_bound"):
		u = unseen{New: []span{{before.Xmin, now.Xmin}}}
	}
	return u
}

func (planted) tickless() bool { return plant("no_tick") }

func (planted) early() bool { return plant("early_snapshot") }

func (planted) rows() bool { return plant("row_log") }
