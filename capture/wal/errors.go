package wal

import (
	"fmt"

	"github.com/millrace-db/millrace/capture"
)

// The errors of this way of capturing that stop a stream until an operator acts,
// beside those of package capture. Each wraps millrace.ErrStop; the message that
// they come in names the thing and the mend.
var (
	// ErrWALLevel occurs when wal_level is not logical.
	ErrWALLevel = capture.Stop("wal_level is not logical")

	// ErrSlotMissing occurs when the slot is gone. Mend: a new epoch.
	ErrSlotMissing = capture.Stop("replication slot is missing")

	// ErrSlotAhead occurs when the slot is ahead of what was published: it was
	// made again, advanced by hand or used by somebody else. Mend: a new epoch.
	ErrSlotAhead = capture.Stop("replication slot is ahead of what was published")

	// ErrSlotLost occurs when the server has given up the WAL that the slot
	// needs. Mend: a new epoch.
	ErrSlotLost = capture.Stop("replication slot is lost")

	// ErrSlotGivenUp occurs when the slot held more WAL than Config.RetainLimit
	// and was dropped, so that the source's disk does not fill. Mend: a new
	// epoch.
	ErrSlotGivenUp = capture.Stop("replication slot was given up")

	// ErrSlotForeign occurs when the slot of our name is of another database,
	// plugin or kind. Mend: another slot name, or drop that slot.
	ErrSlotForeign = capture.Stop("replication slot is not ours")

	// ErrPublication occurs when the publication is missing or would send other
	// than what the stream needs. Mend: millrace init.
	ErrPublication = capture.Stop("publication does not fit")

	// ErrProtocol occurs when the source sends what this version cannot decode.
	ErrProtocol = capture.Stop("replication message cannot be decoded")

	// ErrSpool occurs when a transaction above the memory budget cannot be
	// written to the spool directory. Mend: free space there.
	ErrSpool = capture.Stop("spool file cannot be written")
)

// ErrSilent occurs when the source has sent nothing for Config.Silence, not even
// an answer. A new connection may mend it.
var ErrSilent = fmt.Errorf("source has fallen silent")

// ErrShutdown occurs when the source is being shut down while changes are
// streamed from it: it waits for us to leave. A new connection mends it once the
// source is back.
var ErrShutdown = fmt.Errorf("source is being shut down")
